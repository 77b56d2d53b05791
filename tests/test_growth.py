"""A history that has grown: in a schema of its own, in partitions, as the how-to says."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, mapped_column

import sqlalchemy_history as h
from shapes import declare_articles

HOW_TO = Path(__file__).parent.parent / "docs" / "howto" / "growth.rst"


def names(versions: Any) -> list[str]:
    return [version.name for version in versions]


def test_a_history_in_a_schema_of_its_own(
    versioning: Any, Base: Any, engine: sa.Engine, other_schema: str, strategy: str
) -> None:
    """Option schema: versions and transactions lie there, the live tables where they did."""
    versioning.options = {"schema": other_schema, "strategy": strategy}
    shared = declare_articles(Base)
    Article, Tag = shared.Article, shared.Tag
    Base.metadata.create_all(engine)
    found = sa.inspect(engine)
    assert set(found.get_table_names()) == {"article", "article_tag", "tag"}
    assert set(found.get_table_names(schema=other_schema)) == {
        "article_tag_version", "article_version", "tag_version", "transaction",
    }  # fmt: skip
    with Session(engine) as session:
        article = Article(id=1, name="a", tags=[Tag(id=1, name="t")])
        session.add(article)
        session.commit()
        first = article.versions[0].transaction_id
        article.name, article.tags = "b", []
        session.commit()
        session.execute(sa.update(Article).values(name="c"))
        session.commit()
        assert names(article.versions) == ["a", "b", "c"]
        [then] = session.scalars(h.as_of(Article, first))
        assert names(then.tags) == ["t"]
        assert h.verify(session, Article) == []
        session.commit()
        with h.time_machine(engine, first) as past:
            assert past.get(Article, 1).name == "a"
        assert h.prune(session, Article, keep_last=1) == 2
        article.versions[0].revert()
        session.delete(article)
        session.commit()
        assert h.verify(session, Article) == []


def ddl() -> list[str]:
    """The blocks of DDL about partitions in the how-to."""
    blocks = re.findall(r"code-block:: postgresql\n\n((?:    .*\n|\n)+)", HOW_TO.read_text())
    return [textwrap.dedent(block) for block in blocks]


@pytest.mark.backends("postgresql")
@pytest.mark.parametrize("strategy", ["validity"])
def test_partitions(versioning: Any, Base: Any, engine: sa.Engine) -> None:
    """With the DDL of the how-to all goes on; a partition can be dropped as prune() would."""

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {"unique_open": False}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(50))

    def run(text: str) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql(text)

    def partition(version: Any) -> str:
        where = sa.select(sa.text("tableoid::regclass::text")).select_from(type(version))
        v = type(version)
        return session.scalar(
            where.where(v.id == version.id, v.transaction_id == version.transaction_id)
        )

    create, _, drop = ddl()
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        old, kept, deleted = (Article(id=id_, name="first") for id_ in (1, 2, 3))
        session.add_all([old, kept, deleted])
        session.commit()
        old.name = "second"
        session.commit()
        session.delete(deleted)
        session.commit()
        run(create)
        assert h.verify(session, Article) == []

        session.commit()
        run("ALTER SEQUENCE transaction_id_seq RESTART WITH 1000000")
        old.name = "third"
        session.commit()
        session.execute(sa.update(Article).values(name=Article.name + "!"))
        session.commit()
        article_4 = Article(id=4, name="new")
        session.add(article_4)
        session.commit()
        article_4.name = "newer"
        session.commit()
        assert [partition(v) for v in old.versions] == [
            "article_version_1", "article_version_2", "article_version_2", "article_version_open",
        ]  # fmt: skip
        assert partition(kept.versions[0]) == "article_version_2"
        assert h.verify(session, Article) == []
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            session.execute(sa.text("UPDATE article_version SET end_transaction_id = NULL"))

        moments = [*session.scalars(sa.select(h.transaction_class(Article).id))]
        at = [tx for tx in moments if tx >= 1_000_000]

        def shown() -> list[Any]:
            cls = h.version_class(Article)
            return [names(session.scalars(h.as_of(Article, tx).order_by(cls.id))) for tx in at]

        before = shown()
        assert before[0] == ["third", "first"]
        compiled = h.as_of(Article, at[0]).compile(engine, compile_kwargs={"literal_binds": True})
        plan = "".join(session.scalars(sa.text(f"EXPLAIN {compiled}")))
        assert " on article_version_2 " in plan
        assert " on article_version_1 " not in plan

        session.commit()
        run(drop)
        assert h.prune(session, Article, before=999_999) == 1  # the DELETE
        session.commit()
        session.expire_all()
        assert shown() == before
        assert h.verify(session, Article) == []
        assert [v.operation_type for v in old.versions] == [1, 1, 1]
