"""Writes that cannot be recorded are announced: once, by the table's name, with the way out."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import mapped_column

import support
from sqlalchemy_history import UntrackedWrite, UntrackedWriteWarning, versioning_disabled
from sqlalchemy_history.untracked import written_tables

sqlite_only = pytest.mark.backends("sqlite")


@pytest.fixture
def Article(versioning: Any, Base: Any) -> Any:  # noqa: N802
    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        n = mapped_column(sa.Integer)

    class Note(Base):
        __tablename__ = "note"
        id = mapped_column(sa.Integer, primary_key=True)

    return Article


@pytest.fixture
def session(Article: Any, open_session: Any) -> Any:
    session = open_session()
    session.add(Article(id=1, n=1))
    session.commit()
    return session


def other_table(session: Any) -> None:
    session.execute(sa.update(sa.table("article", sa.column("n"))).values(n=2))


def reflected_table(session: Any) -> None:
    table = sa.Table("article", sa.MetaData(), autoload_with=session.connection())
    session.execute(sa.delete(table))


def with_clause(session: Any) -> None:
    table = sa.table("article", sa.column("id"), sa.column("n"))
    written = sa.insert(table).values(id=5).returning(table.c.id).cte("written")
    session.execute(sa.select(written.c.id))


WRITES = {
    "text": lambda session: session.execute(sa.text("UPDATE article SET n = 2")),
    "quoted": lambda session: session.execute(
        sa.text('DELETE FROM main."article" WHERE id = :x'), {"x": 1}
    ),
    "driver": lambda session: session.connection().exec_driver_sql(
        "INSERT INTO Article (n) VALUES (3)"
    ),
    "replace": lambda session: session.execute(
        sa.text("REPLACE INTO article (id, n) VALUES (1, 2)")
    ),
    "other table": other_table,
    "reflected table": reflected_table,
}


@sqlite_only
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_warns_once(session, Article, write) -> None:
    """By default there is one warning for each table and kind, which names the way out."""
    with pytest.warns(UntrackedWriteWarning, match=r"'article'.*(update\(\)|__table__)") as caught:
        write(session)
    write(session)  # a second warning would be an error
    assert len(caught) == 1
    assert caught[0].filename == __file__


@sqlite_only
@pytest.mark.options(untracked="raise")
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_raises(session, Article, write) -> None:
    """With `untracked="raise"` the statement is refused, and nothing is written."""
    with pytest.raises(UntrackedWrite, match="'article'"):
        write(session)
    assert session.execute(sa.select(Article.id, Article.n)).all() == [(1, 1)]


@sqlite_only
@pytest.mark.options(untracked="ignore")
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_ignores(session, Article, write) -> None:
    """With `untracked="ignore"` nothing is said."""
    write(session)
    session.rollback()


@pytest.mark.backends("postgresql")
@pytest.mark.options(untracked="raise")
def test_a_with_clause(session, Article) -> None:
    """An INSERT, UPDATE or DELETE in a WITH clause is found."""
    written = sa.update(Article.__table__).values(n=2).returning(Article.__table__.c.id).cte("w")
    with pytest.raises(UntrackedWrite, match="WITH"):
        session.execute(sa.select(written.c.id))


@sqlite_only
@pytest.mark.options(untracked="raise")
def test_what_is_no_write(session, Article) -> None:
    """Reading, other tables and disabled blocks are nobody's business."""
    for sql in (
        "SELECT * FROM article",
        "INSERT INTO note (id) SELECT id FROM article",
        "UPDATE note SET id = id WHERE id IN (SELECT id FROM article)",
        "DELETE FROM note -- DELETE FROM article",
        "INSERT INTO note (id) SELECT id FROM note WHERE 'update article' = 'x'",
        "CREATE TABLE other (id INTEGER)",
    ):
        session.execute(sa.text(sql))
    with versioning_disabled(session):
        session.execute(sa.text("UPDATE article SET n = n"))
    session.rollback()


@sqlite_only
def test_a_policy_of_a_class(versioning, Base, open_session) -> None:
    """The option holds for a class, too."""

    class Strict(Base):
        __tablename__ = "strict"
        __versioned__ = {"untracked": "raise"}
        id = mapped_column(sa.Integer, primary_key=True)

    class Lax(Base):
        __tablename__ = "lax"
        __versioned__ = {"untracked": "ignore"}
        id = mapped_column(sa.Integer, primary_key=True)

    session = open_session()
    session.execute(sa.text("DELETE FROM lax"))
    with pytest.raises(UntrackedWrite):
        session.execute(sa.text("DELETE FROM strict"))


@sqlite_only
@pytest.mark.options(untracked="raise")
def test_keys_that_cannot_be_foreseen(session, Article) -> None:
    """An UPDATE of a primary key to a random value is refused."""
    with pytest.raises(UntrackedWrite, match="primary keys"):
        session.execute(
            sa.update(Article).values(id=sa.func.random()),
            execution_options={"synchronize_session": False},
        )


@sqlite_only
@pytest.mark.options(untracked="raise")
@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_table_of_that_name_in_another_database(versioning, make_base, native, write) -> None:
    """Where there is no history, a table that is called like a versioned one is nobody's business."""

    class Article(make_base()):
        __tablename__ = "article"
        __versioned__ = {"native_versioning": native}
        id = mapped_column(sa.Integer, primary_key=True)

    base = make_base()

    class Other(base):
        __tablename__ = "article"
        id = mapped_column(sa.Integer, primary_key=True)
        n = mapped_column(sa.Integer)

    sa.orm.configure_mappers()
    engine = support.sqlite_engine(sa.make_url("sqlite://"))
    base.metadata.create_all(engine)
    with sa.orm.Session(engine) as session:
        session.add(Other(id=1))
        session.commit()
        write(session)
        session.commit()
    engine.dispose()


@sqlite_only
def test_a_connection_of_nobody(session, Article, engine) -> None:
    """Outside of watched sessions nothing is said."""
    session.close()
    with warnings.catch_warnings(), engine.begin() as connection:
        warnings.simplefilter("error")
        connection.execute(sa.text("UPDATE article SET n = n"))


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("update a set x = 1", {"a"}),
        ("UPDATE OR IGNORE a SET x = 1", {"a"}),
        ("update only s.a set x = 1", {"a"}),
        ("insert into `b` values (1)", {"b"}),
        ("INSERT OR REPLACE INTO b VALUES (1)", {"b"}),
        ("insert into b values (1) on conflict do update set x = 1", {"b"}),
        ("insert into b values (1) on duplicate key update x = 1", {"b"}),
        ("delete from [dbo].[c] where 1 = 1", {"c"}),
        ("with x as (delete from c returning *) select * from x", {"c"}),
        ("truncate table c", {"c"}),
        ("TRUNCATE c", {"c"}),
        ("merge into c using d on true when matched then delete", {"c"}),
        ("copy c (x) from stdin", {"c"}),
        ("copy c to stdout", set()),
        ("select * from c for update of c", set()),
        ("select 'delete from c' /* update c set x = 1 */", set()),
    ],
)
def test_tables_that_text_writes(sql, tables) -> None:
    """The tables are found in the SQL of each database."""
    assert written_tables(sql) == tables
