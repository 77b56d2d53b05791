"""What plugins keep agrees with the versions, whatever way the rows were changed."""

from __future__ import annotations

from collections.abc import Callable, Container
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

import sqlalchemy_history as h
from sqlalchemy_history.plan import table_plan
from sqlalchemy_history.plugins import (
    ActivityPlugin,
    ChangeLogPlugin,
    NullDeletePlugin,
    Plugin,
    PropertyModTrackerPlugin,
    TransactionChangesPlugin,
    TransactionMetaPlugin,
)

EVENTS = {0: "INSERT", 1: "UPDATE", 2: "DELETE"}


@pytest.fixture
def plugins() -> list[Plugin]:
    return [
        TransactionMetaPlugin(),
        TransactionChangesPlugin(),
        PropertyModTrackerPlugin(),
        NullDeletePlugin(),
        ActivityPlugin(),
        ChangeLogPlugin(),
    ]


@pytest.fixture
def m(versioning: Any, Base: Any) -> SimpleNamespace:
    links = sa.Table(
        "article_tag",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        word: Mapped[str | None] = mapped_column(sa.String(20))

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        name: Mapped[str | None] = mapped_column(sa.String(50))
        rank: Mapped[int | None]
        tags: Mapped[list[Tag]] = relationship(secondary=links)

    class Comment(Base):
        __tablename__ = "comment"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        text: Mapped[str | None] = mapped_column(sa.String(50))
        article_id: Mapped[int | None] = mapped_column(
            sa.ForeignKey("article.id", ondelete="CASCADE")
        )

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        article_id: Mapped[int | None] = mapped_column(
            sa.ForeignKey("article.id", ondelete="SET NULL")
        )

    class Document(Base):
        __tablename__ = "document"
        __versioned__ = {}
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "document"}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        kind: Mapped[str] = mapped_column(sa.String(20))
        title: Mapped[str | None] = mapped_column(sa.String(20))

    class Letter(Document):
        __tablename__ = "letter"
        __mapper_args__ = {"polymorphic_identity": "letter"}
        id: Mapped[int] = mapped_column(sa.ForeignKey("document.id"), primary_key=True)
        stamp: Mapped[int | None]

    return SimpleNamespace(
        Article=Article,
        Tag=Tag,
        Comment=Comment,
        Note=Note,
        Document=Document,
        Letter=Letter,
        links=links,
        manager=versioning,
        tables=[cls.__table__ for cls in (Article, Tag, Comment, Note, Document, Letter)] + [links],
        classes={
            "article": "Article",
            "tag": "Tag",
            "comment": "Comment",
            "note": "Note",
        },
    )


def versions(session: Session, m: SimpleNamespace) -> dict[str, list[dict[str, Any]]]:
    """All versions, as dicts, by table."""
    found = {}
    for table in m.tables:
        plan = table_plan(table)
        rows = sa.select(plan.version).order_by(plan.tx, *plan.keys_of(plan.version))
        found[table.name] = [dict(row._mapping) for row in session.execute(rows)]
    return found


def check(session: Session, m: SimpleNamespace, unlogged: Container[Any] = ()) -> None:
    """Every table of every plugin says what the versions say.

    :param unlogged: (transaction, table) of which the change log says nothing.
    """
    found = versions(session, m)
    manager = m.manager
    times = dict(
        session.execute(
            sa.select(manager.transaction_cls.id, manager.transaction_cls.issued_at)
        ).all()
    )
    # ChangeLogPlugin
    log = manager.changelog_cls.__table__
    entries = [
        (e.timestamp.replace(tzinfo=None), e.table_name, _listed(e.row_id), e.event_type)
        for e in session.execute(sa.select(log))
    ]
    expected = []
    names = set()
    for table in m.tables:
        plan = table_plan(table)
        keys = [version.key for _, version in plan.keys]
        before: dict[Any, dict[str, Any]] = {}
        for v in found[table.name]:
            tx, op = v["transaction_id"], v["operation_type"]
            key = tuple(v[k] for k in keys)
            if (tx, table.name) not in unlogged:
                expected.append((times[tx], table.name, list(key), EVENTS[op]))
            if table.name in m.classes:
                names.add((tx, m.classes[table.name]))
            elif table.name == "document":
                names.add((tx, v["kind"].title()))
            # PropertyModTrackerPlugin and NullDeletePlugin
            for column, version in plan.columns:
                if version.key in keys:
                    continue
                value, flag = v[version.key], v[f"{version.key}_mod"]
                if op == 2:
                    assert flag, v
                    assert value is None or not column.nullable, v
                elif op == 0:
                    assert bool(flag) == (value is not None), v
                else:
                    assert bool(flag) == (value != before[key][version.key]), v
            before[key] = v
    assert sorted(entries) == sorted(expected)
    # TransactionChangesPlugin
    changes = manager.plugins[1].model_class.__table__
    assert {tuple(row) for row in session.execute(sa.select(changes))} == names
    # TransactionMetaPlugin, ActivityPlugin: nothing refers to a transaction that is not there
    meta = manager.plugins[0].model_class.__table__
    activity = manager.activity_cls.__table__
    for column in (
        meta.c.transaction_id,
        activity.c.transaction_id,
        activity.c.object_tx_id,
        activity.c.target_tx_id,
    ):
        assert set(session.scalars(sa.select(column))) - {None} <= set(times), column
    made = {v["transaction_id"] for rows in found.values() for v in rows}
    kept = {row[0] for row in session.execute(sa.select(activity.c.transaction_id))}
    kept |= {row[0] for row in session.execute(sa.select(meta.c.transaction_id))}
    assert set(times) == made | kept


def _listed(key: Any) -> list[Any]:
    return key if isinstance(key, list) else [key]


def seed(session: Session, m: SimpleNamespace) -> None:
    """Two transactions that leave rows of every kind."""
    one, two = m.Tag(id=1, word="x"), m.Tag(id=2, word="y")
    session.add_all(
        [
            one,
            two,
            m.Article(id=1, name="a", rank=1, tags=[one]),
            m.Article(id=2, name="b", rank=2, tags=[one, two]),
            m.Article(id=3, name="c"),
            m.Document(id=1, title="d"),
            m.Letter(id=2, title="e", stamp=1),
        ]
    )
    session.flush()
    session.add_all(
        [
            m.Comment(id=1, text="c", article_id=1),
            m.Comment(id=2, text="d", article_id=2),
            m.Note(id=1, article_id=1),
            m.Note(id=2, article_id=2),
        ]
    )
    session.commit()
    session.get(m.Article, 3).rank = 3
    session.commit()


def upsert(session: Session, table: Any, rows: list[dict[str, Any]]) -> None:
    """INSERT rows, and UPDATE those that are there."""
    dialect = session.get_bind().dialect.name
    if dialect in ("mysql", "mariadb"):
        from sqlalchemy.dialects.mysql import insert

        statement = insert(table).values(rows)
        updated = {k: statement.inserted[k] for k in rows[0] if k != "id"}
        session.execute(statement.on_duplicate_key_update(updated))
        return
    if dialect == "sqlite":
        from sqlalchemy.dialects.sqlite import insert
    else:
        from sqlalchemy.dialects.postgresql import insert
    statement = insert(table).values(rows)
    updated = {k: statement.excluded[k] for k in rows[0] if k != "id"}
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=updated))


def core_association(s: Session, m: SimpleNamespace) -> None:
    s.execute(m.links.insert().values(article_id=1, tag_id=2))
    s.execute(m.links.delete().where(m.links.c.article_id == 2))


def association_added_and_removed(s: Session, m: SimpleNamespace) -> None:
    s.execute(m.links.insert().values(article_id=1, tag_id=2))
    s.execute(m.links.delete().where(m.links.c.article_id == 1, m.links.c.tag_id == 2))


def mixed(s: Session, m: SimpleNamespace) -> None:
    s.get(m.Article, 1).name = "by object"
    s.flush()
    s.execute(sa.update(m.Article).values(rank=m.Article.rank + 1))
    s.get(m.Article, 2).name = "after"
    s.flush()


def there_and_back(s: Session, m: SimpleNamespace) -> None:
    s.execute(sa.update(m.Article).where(m.Article.id < 3).values(name="tmp"))
    s.execute(sa.update(m.Article).where(m.Article.id == 1).values(name="a"))


def nothing_left(s: Session, m: SimpleNamespace) -> None:
    s.execute(sa.update(m.Article).where(m.Article.id == 1).values(name="tmp"))
    s.execute(sa.update(m.Article).where(m.Article.id == 1).values(name="a"))


def inserted_and_deleted(s: Session, m: SimpleNamespace) -> None:
    s.add_all([m.Article(id=8, name="z"), m.Article(id=9, name="z")])
    s.flush()
    s.execute(sa.delete(m.Article).where(m.Article.id == 9))


def deleted_and_inserted(s: Session, m: SimpleNamespace) -> None:
    s.execute(sa.delete(m.Article).where(m.Article.id == 3))
    s.execute(sa.insert(m.Article).values(id=3, name="again", rank=3))


def in_savepoint(s: Session, m: SimpleNamespace) -> None:
    s.execute(sa.update(m.Article).where(m.Article.id == 1).values(name="kept"))
    nested = s.begin_nested()
    s.execute(sa.update(m.Article).values(name="gone"))
    s.execute(sa.delete(m.Comment))
    s.execute(m.links.insert().values(article_id=3, tag_id=2))
    nested.rollback()
    s.execute(sa.update(m.Article).where(m.Article.id == 2).values(rank=9))


def first_in_savepoint(s: Session, m: SimpleNamespace) -> None:
    nested = s.begin_nested()
    s.execute(sa.update(m.Article).values(name="gone"))
    nested.rollback()
    with s.begin_nested():
        s.execute(sa.update(m.Article).values(rank=8))


def only_in_savepoint(s: Session, m: SimpleNamespace) -> None:
    nested = s.begin_nested()
    s.execute(sa.delete(m.Comment))
    nested.rollback()


def with_meta(s: Session, m: SimpleNamespace) -> None:
    tx = m.manager.unit_of_work(s).create_transaction(s)
    tx.meta = {"k": "v"}
    s.execute(sa.update(m.Article).values(name="meta"))


def meta_in_savepoint(s: Session, m: SimpleNamespace) -> None:
    nested = s.begin_nested()
    tx = m.manager.unit_of_work(s).create_transaction(s)
    tx.meta = {"k": "v"}
    s.execute(sa.update(m.Article).values(name="meta"))
    nested.rollback()
    s.execute(sa.update(m.Article).where(m.Article.id == 2).values(name="after"))


def activity_before(s: Session, m: SimpleNamespace) -> None:
    s.add(m.manager.activity_cls(verb="v", object=s.get(m.Article, 1)))
    s.flush()
    s.execute(sa.update(m.Article).values(name="done"))


def activity_after(s: Session, m: SimpleNamespace) -> None:
    article = s.get(m.Article, 1)
    s.execute(sa.update(m.Article).values(name="done"))
    s.add(m.manager.activity_cls(verb="v", object=article, target=s.get(m.Tag, 1)))


def activity_of_what_was_taken_back(s: Session, m: SimpleNamespace) -> None:
    article = s.get(m.Article, 1)
    s.execute(sa.update(m.Article).values(name="tmp"))
    s.add(m.manager.activity_cls(verb="v", object=article))
    s.flush()
    s.execute(sa.update(m.Article).where(m.Article.id == 1).values(name="a"))


def activity_in_savepoint(s: Session, m: SimpleNamespace) -> None:
    nested = s.begin_nested()
    s.add(m.manager.activity_cls(verb="v", object=s.get(m.Article, 1)))
    s.execute(sa.update(m.Article).values(name="tmp"))
    nested.rollback()
    s.execute(sa.update(m.Tag).values(word="after"))


Action = Callable[[Session, SimpleNamespace], Any]
ACTIONS: dict[str, Action] = {
    "update": lambda s, m: s.execute(sa.update(m.Article).values(name="n")),
    "update to NULL": lambda s, m: s.execute(sa.update(m.Article).values(name=None, rank=1)),
    "update of some": lambda s, m: s.execute(
        sa.update(m.Article).where(m.Article.rank > 1).values(name="n")
    ),
    "update by expression": lambda s, m: s.execute(
        sa.update(m.Article).values(name=sa.func.upper(m.Article.name), rank=m.Article.rank * 1)
    ),
    "update of nothing": lambda s, m: s.execute(
        sa.update(m.Article).where(m.Article.id == 77).values(name="n")
    ),
    "update by keys": lambda s, m: s.execute(
        sa.update(m.Article), [{"id": 1, "name": "p"}, {"id": 2, "name": "b"}]
    ),
    "update of a key": lambda s, m: s.execute(
        sa.update(m.Article).where(m.Article.id == 3).values(id=30)
    ),
    "update of a base table": lambda s, m: s.execute(sa.update(m.Document).values(title="t")),
    "update of a subclass's table": lambda s, m: s.execute(
        sa.update(m.Letter.__table__).values(stamp=5)
    ),
    "Query.update": lambda s, m: s.query(m.Article).filter_by(id=1).update({"name": "q"}),
    "Query.delete": lambda s, m: s.query(m.Comment).delete(),
    "delete": lambda s, m: s.execute(sa.delete(m.Comment).where(m.Comment.id == 1)),
    "delete with cascades": lambda s, m: (
        s.execute(sa.delete(m.links)),
        s.execute(sa.delete(m.Article)),
    ),
    "delete by object with cascades": lambda s, m: s.delete(s.get(m.Article, 1)),
    "insert": lambda s, m: s.execute(
        sa.insert(m.Article), [{"id": 8, "name": "i"}, {"id": 9, "name": None}]
    ),
    "insert returning": lambda s, m: s.scalars(
        sa.insert(m.Tag).returning(m.Tag.word), [{"id": 8, "word": "i"}, {"id": 9, "word": "j"}]
    ).all(),
    "insert from select": lambda s, m: s.execute(
        sa.insert(m.Tag).from_select(["id", "word"], sa.select(m.Article.id + 10, m.Article.name))
    ),
    "upsert": lambda s, m: upsert(
        s,
        m.Article,
        [{"id": 1, "name": "u", "rank": 1}, {"id": 9, "name": "new", "rank": None}],
    ),
    "bulk_save": lambda s, m: s.bulk_save_objects([m.Article(id=8, name="i"), m.Tag(id=8)]),
    "bulk_update_mappings": lambda s, m: s.bulk_update_mappings(
        sa.inspect(m.Article), [{"id": 1, "name": "m"}]
    ),
    "Core update": lambda s, m: s.execute(m.Article.__table__.update().values(name="core")),
    "Core on the connection": lambda s, m: s.connection().execute(
        m.Article.__table__.update().values(name="core")
    ),
    "Core delete": lambda s, m: s.execute(m.Comment.__table__.delete()),
    "association rows": core_association,
    "association rows and back": association_added_and_removed,
    "objects and statements": mixed,
    "some back again": there_and_back,
    "all back again": nothing_left,
    "inserted and deleted": inserted_and_deleted,
    "deleted and inserted": deleted_and_inserted,
    "savepoint": in_savepoint,
    "savepoint first": first_in_savepoint,
    "savepoint only": only_in_savepoint,
    "meta": with_meta,
    "meta in a savepoint": meta_in_savepoint,
    "activity before": activity_before,
    "activity after": activity_after,
    "activity of what was taken back": activity_of_what_was_taken_back,
    "activity in a savepoint": activity_in_savepoint,
}


#: of what leaves no trace in the versions
NOTHING = (
    "update of nothing",
    "all back again",
    "association rows and back",
    "savepoint only",
)


@pytest.mark.parametrize("name", ACTIONS)
def test_plugins_agree_with_the_versions(m: SimpleNamespace, open_session: Any, name: str) -> None:
    """What plugins keep is what the versions say, before the commit and after it."""
    session = open_session()
    seed(session, m)
    check(session, m)
    ACTIONS[name](session, m)
    session.rollback()
    check(session, m)
    before = versions(session, m)
    ACTIONS[name](session, m)
    session.flush()
    check(session, m)
    after = versions(session, m)
    session.commit()
    check(session, m)
    assert (after == before) == (name in NOTHING)


def behind_the_history(s: Session, m: SimpleNamespace) -> None:
    """Changes of every kind that were not recorded."""
    with h.versioning_disabled(s):
        s.add_all([m.Article(id=7, name="new"), m.Tag(id=7), m.Letter(id=7, title="n")])
        s.get(m.Article, 1).name = "changed"
        s.get(m.Letter, 2).stamp = 9
        s.delete(s.get(m.Note, 2))
        s.flush()
        s.execute(m.links.insert().values(article_id=1, tag_id=2))
    s.commit()


@pytest.mark.parametrize("within", [False, True], ids=["alone", "among changes"])
def test_plugins_are_told_what_upkeep_writes(
    m: SimpleNamespace, open_session: Any, within: bool
) -> None:
    """backfill() and repair() leave nothing out, but the log has no changes that did not happen."""
    session = open_session()
    seed(session, m)
    behind_the_history(session, m)
    known = {v["transaction_id"] for rows in versions(session, m).values() for v in rows}
    if within:
        session.get(m.Comment, 1).text = "changed too"
        session.flush()
    for cls in (m.Article, m.Tag, m.Comment, m.Note, m.Document):
        h.backfill(session, cls)
        h.repair(session, cls)
    session.commit()
    made = {
        (v["transaction_id"], name) for name, rows in versions(session, m).items() for v in rows
    }
    reconstructed = {(tx, name) for tx, name in made if tx not in known and name != "comment"}
    assert {"article", "tag", "document", "letter", "article_tag", "note"} == {
        name for _, name in reconstructed
    }
    check(session, m, unlogged=reconstructed)
