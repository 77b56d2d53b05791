"""Versions written by triggers: every write is recorded, wherever it comes from."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import mapped_column, relationship

import support
from chain import DELETE, INSERT, UPDATE, count_transactions, history, laws
from sqlalchemy_history import (
    ImproperlyConfigured,
    as_of,
    repair,
    transaction_class,
    transaction_context,
    verify,
    version_class,
    versioning_manager,
)
from sqlalchemy_history.native import create_triggers, drop_triggers, triggers_are_current
from sqlalchemy_history.plan import table_plan
from sqlalchemy_history.plugins import NullDeletePlugin, TransactionMetaPlugin

__all__ = ["laws"]

pytestmark = [
    pytest.mark.backends("postgresql", "sqlite", "mariadb"),
    pytest.mark.options(native_versioning=True),
]


#: how SQL says that what follows is one transaction, and that it is over
_MARKS = {
    "sqlite": (
        "UPDATE transaction_current SET history__is_marked = 1, history__tx = NULL",
        "UPDATE transaction_current SET history__is_marked = 0",
    ),
    "mysql": (
        "SET @`history.transaction.history__is_marked` = 1, "
        "@`history.transaction.history__tx` = NULL",
        "SET @`history.transaction.history__is_marked` = NULL",
    ),
}


@contextlib.contextmanager
def outside(engine: Any) -> Iterator[Any]:
    """A transaction of a client that is no session, marked as one where that has to be said."""
    begin, end = _MARKS.get(engine.dialect.name, (None, None))
    with engine.begin() as connection:
        if begin:
            connection.exec_driver_sql(begin)
        yield connection
        if end:
            connection.exec_driver_sql(end)


@pytest.fixture
def Article(versioning: Any, Base: Any) -> Any:  # noqa: N802
    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        name = mapped_column(sa.String(50))

    return Article


STEPS = [
    (None, ["a"], [INSERT]),
    (None, ["a", "b"], [INSERT]),
    (None, ["a", None], []),
    (None, ["a", None, "b"], [INSERT]),
    ("a", ["b"], [UPDATE]),
    ("a", ["a"], []),
    ("a", ["b", "a"], []),
    ("a", ["b", "a", "c"], [UPDATE]),
    ("a", [None], [DELETE]),
    ("a", ["b", None], [DELETE]),
    ("a", [None, "a"], []),
    ("a", [None, "b"], [UPDATE]),
    ("a", [None, "b", None], [DELETE]),
]


@pytest.mark.parametrize(("before", "steps", "expected"), STEPS)
def test_a_transaction_of_plain_sql_leaves_its_net_effect(
    Article: Any, open_session: Any, engine: Any, laws: Any, before: Any, steps: Any, expected: Any
) -> None:
    """What SQL from outside does to a row in one transaction merges as in the unit of work."""
    open_session()
    now = before
    if before is not None:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"INSERT INTO article VALUES (1, '{before}')")
    with outside(engine) as connection:
        for value in steps:
            if value is None:
                connection.exec_driver_sql("DELETE FROM article WHERE id = 1")
            elif now is None:
                connection.exec_driver_sql(f"INSERT INTO article VALUES (1, '{value}')")
            else:
                connection.exec_driver_sql(f"UPDATE article SET name = '{value}' WHERE id = 1")
            now = value
    # elsewhere the row of a marked transaction is taken back by those who mark it
    laws.whole = bool(expected) or engine.dialect.name == "postgresql"
    found = [operation for _, operation, *_ in history(engine, Article)]
    assert found == ([INSERT] if before is not None else []) + expected


@pytest.mark.backends("postgresql")
def test_many_rows_and_statements_share_one_transaction(
    Article: Any, open_session: Any, engine: Any
) -> None:
    """COPY, executemany and set-based statements of one transaction have one transaction row."""
    open_session()
    with engine.begin() as connection:
        cursor = connection.connection.cursor()
        with cursor.copy("COPY article FROM STDIN") as copy:
            copy.write("1\ta\n2\tb\n")
        cursor.executemany("INSERT INTO article VALUES (%s, %s)", [(3, "c"), (4, "d")])
        cursor.execute("UPDATE article SET id = id + 10 WHERE id > 2")
    assert history(engine, Article) == [
        (1, INSERT, 1, "a"),
        (1, INSERT, 2, "b"),
        (1, INSERT, 13, "c"),
        (1, INSERT, 14, "d"),
    ]


@pytest.mark.backends("postgresql")
def test_truncate_is_recorded(Article: Any, open_session: Any, engine: Any) -> None:
    """TRUNCATE deletes every row, and the history says so."""
    session = open_session()
    session.add(Article(id=1, name="a"))
    session.commit()
    with engine.begin() as connection:
        connection.exec_driver_sql("TRUNCATE article")
    assert history(engine, Article) == [(1, INSERT, 1, "a"), (2, DELETE, 1, "a")]


def test_a_session_and_sql_text_share_a_transaction_and_its_context(
    Article: Any, open_session: Any, engine: Any
) -> None:
    """The row that a trigger makes holds what the session's context says."""
    session = open_session()
    with transaction_context(remote_addr="10.0.0.7"):
        session.execute(sa.text("INSERT INTO article VALUES (1, 'a')"))
        session.add(Article(id=2, name="b"))
        session.flush()
        session.execute(sa.update(Article).values(name="c"))
        session.commit()
    assert history(engine, Article) == [(1, INSERT, 1, "c"), (1, INSERT, 2, "c")]
    assert session.scalars(sa.select(transaction_class(Article).remote_addr)).all() == ["10.0.0.7"]


def test_a_rolled_back_savepoint_leaves_no_trace(
    Article: Any, open_session: Any, engine: Any
) -> None:
    """The transaction row that was made in a savepoint goes with it, and a later write has its own."""
    session = open_session()
    savepoint = session.begin_nested()
    session.add(Article(id=1, name="a"))
    session.flush()
    savepoint.rollback()
    with transaction_context(remote_addr="here"):
        session.add(Article(id=2, name="b"))
        session.commit()
    assert history(engine, Article) == [(1, INSERT, 2, "b")]
    assert session.scalars(sa.select(transaction_class(Article).remote_addr)).all() == ["here"]


def test_a_cascade_of_the_database_is_recorded(
    Article: Any, Base: Any, open_session: Any, engine: Any
) -> None:
    """Rows that ON DELETE CASCADE removes get their DELETE versions."""

    class Comment(Base):
        __tablename__ = "comment"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        article_id = mapped_column(sa.ForeignKey("article.id", ondelete="CASCADE"))

    session = open_session()
    session.add(Article(id=1, name="a"))
    session.flush()
    session.add(Comment(id=7, article_id=1))
    session.commit()
    session.execute(sa.text("DELETE FROM article"))
    session.commit()
    assert history(engine, Comment) == [(1, INSERT, 7, 1), (2, DELETE, 7, 1)]


def test_association_rows_are_recorded(
    Article: Any, Base: Any, open_session: Any, engine: Any
) -> None:
    """Rows of an association table get their versions from its own triggers."""
    links = sa.Table(
        "article_tag",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        articles = relationship(Article, secondary=links)

    session = open_session()
    tag = Tag(id=5, articles=[Article(id=1, name="a")])
    session.add(tag)
    session.commit()
    tag.articles.clear()
    session.commit()
    assert history(engine, links) == [(1, INSERT, 1, 5), (2, DELETE, 1, 5)]


def test_a_change_of_one_table_versions_the_whole_object(
    versioning: Any, Base: Any, open_session: Any, engine: Any, laws: Any
) -> None:
    """Joined inheritance: an object gets a version in each of its tables, and reads back whole."""
    laws.repeats = True

    class Employee(Base):
        __tablename__ = "employee"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        kind = mapped_column(sa.String(20))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}

    class Manager(Employee):
        __tablename__ = "manager"
        id = mapped_column(sa.ForeignKey("employee.id"), primary_key=True)
        car = mapped_column(sa.String(20))
        __mapper_args__ = {"polymorphic_identity": "manager"}

    session = open_session()
    session.add(Manager(id=1, car="red"))
    session.commit()
    session.execute(sa.text("UPDATE manager SET car = 'blue'"))
    session.commit()
    boss = session.get(Manager, 1)
    assert [version.car for version in boss.versions] == ["red", "blue"]
    session.delete(boss)
    session.commit()
    assert [row[1] for row in history(engine, Employee)] == [INSERT, UPDATE, DELETE]
    assert [row[1] for row in history(engine, Manager.__table__)] == [INSERT, UPDATE, DELETE]


@pytest.mark.backends("postgresql", "mariadb")
def test_a_transaction_that_came_first_moves_behind(
    Article: Any, open_session: Any, engine: Any
) -> None:
    """Who got the smaller id but wrote the row later has the later version."""
    session = open_session()
    session.add_all([Article(id=1, name="a"), Article(id=2, name="a")])
    session.commit()
    with outside(engine) as first:
        first.exec_driver_sql("UPDATE article SET name = 'first' WHERE id = 1")
        with outside(engine) as second:
            second.exec_driver_sql("UPDATE article SET name = 'second' WHERE id = 2")
        first.exec_driver_sql("UPDATE article SET name = 'first' WHERE id = 2")
    names = [row[3] for row in history(engine, Article) if row[2] == 2]
    assert names == ["a", "second", "first"]


_HOSTILE = "se\"lect' %s %(x)s :x $$ ünï"


@pytest.fixture
def hostile_schema(engine: Any) -> Iterator[str]:
    """A schema with such a name; of SQLite, an attached database."""
    name = f"{_HOSTILE} schema"
    if engine.dialect.name == "sqlite":

        def attach(dbapi_connection: Any, _record: Any) -> None:
            quoted = name.replace('"', '""')
            dbapi_connection.execute(f"ATTACH DATABASE ':memory:' AS \"{quoted}\"").close()

        sa.event.listen(engine, "connect", attach)
        yield name
        return
    with engine.begin() as connection:
        connection.execute(sa.schema.CreateSchema(name))
    yield name
    with engine.begin() as connection:
        connection.execute(sa.schema.DropSchema(name, cascade=engine.dialect.name == "postgresql"))


@pytest.mark.parametrize("in_schema", [False, True])
def test_hostile_names_are_safe(
    versioning: Any,
    Base: Any,
    make_base: Any,
    open_session: Any,
    engine: Any,
    hostile_schema: str,
    in_schema: bool,
    laws: Any,
) -> None:
    """Quotes, blanks, percent signs, reserved words and other alphabets are names as any other."""
    schema = hostile_schema if in_schema else None
    base = make_base(metadata=sa.MetaData(schema=schema))
    laws.whole = not in_schema

    class Weird(base):
        __tablename__ = _HOSTILE
        __versioned__ = {}
        id = mapped_column(_HOSTILE, sa.Integer, primary_key=True)
        one = mapped_column("select", sa.String(9))
        two = mapped_column(f"{_HOSTILE} `\\", sa.String(9))

    class Part(base):
        __tablename__ = f"{_HOSTILE} part"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        weird_id = mapped_column("weird:id", sa.ForeignKey(Weird.id, ondelete="CASCADE"))

    session = open_session()
    session.add(Weird(id=1, one="a"))
    session.flush()
    session.add(Part(id=2, weird_id=1))
    session.commit()
    session.execute(sa.update(Weird).values(two="b"))
    session.commit()
    with engine.begin() as connection:
        assert triggers_are_current(connection, Weird)
    with outside(engine) as connection:
        connection.execute(sa.delete(Weird))
    assert history(engine, Weird) == [
        (1, INSERT, 1, "a", None),
        (2, UPDATE, 1, "a", "b"),
        (3, DELETE, 1, "a", "b"),
    ]
    assert history(engine, Part) == [(1, INSERT, 2, 1), (3, DELETE, 2, 1)]


def test_nothing_of_an_empty_transaction_is_left(
    Article: Any, open_session: Any, engine: Any
) -> None:
    """An UPDATE that changes nothing makes no transaction row."""
    session = open_session()
    session.add(Article(id=1, name="a"))
    session.commit()
    session.execute(sa.update(Article).values(name="a"))
    session.commit()
    assert count_transactions(engine, Article) == 1


def test_a_transaction_row_made_by_hand_is_used(
    Article: Any, open_session: Any, engine: Any
) -> None:
    """The Transaction object of a session is the one that the triggers write versions for."""
    session = open_session()
    made = versioning_manager.unit_of_work(session).create_transaction(session)
    made.remote_addr = "there"
    session.add(Article(id=1, name="a"))
    session.commit()
    assert session.get(Article, 1).versions[0].transaction.remote_addr == "there"
    session.commit()
    assert count_transactions(engine, Article) == 1


@pytest.mark.backends("postgresql")
def test_who_may_write_the_table_can_not_touch_its_history(
    Article: Any, open_session: Any, engine: Any
) -> None:
    """A role with rights on the live table alone is recorded, and cannot change or forge history."""
    session = open_session()
    session.add(Article(id=1, name="a"))
    session.commit()
    role = f"history_app_{engine.url.database}"[:60]
    with engine.begin() as connection:
        connection.exec_driver_sql(f'CREATE ROLE "{role}"')
        connection.exec_driver_sql(f'GRANT USAGE ON SCHEMA public TO "{role}"')
        connection.exec_driver_sql(f'GRANT SELECT, INSERT, UPDATE, DELETE ON article TO "{role}"')
    forbidden = [
        "DELETE FROM article_version",
        "UPDATE article_version SET name = 'x'",
        "DELETE FROM transaction",
        "SELECT transaction_behind(1, 1)",
        "SELECT transaction_forget(1)",
    ]
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f'SET ROLE "{role}"')
            for statement in forbidden:
                with connection.begin_nested() as savepoint:
                    with pytest.raises(sa.exc.DBAPIError, match="permission denied"):
                        connection.exec_driver_sql(statement)
                    savepoint.rollback()
            connection.exec_driver_sql(
                "SELECT set_config('history.tx_' || 'transaction'::regclass::oid, '1', true)"
            )
            connection.exec_driver_sql("UPDATE article SET name = 'b'")
            connection.exec_driver_sql("RESET ROLE")
            connection.commit()
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f'DROP OWNED BY "{role}"')
            connection.exec_driver_sql(f'DROP ROLE "{role}"')
    assert history(engine, Article) == [(1, INSERT, 1, "a"), (2, UPDATE, 1, "b")]


def test_each_statement_without_a_mark_is_recorded(
    Article: Any, open_session: Any, engine: Any
) -> None:
    """What a client does without any ceremony is all recorded, step by step where it has to be."""
    open_session()
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO article VALUES (1, 'a'), (2, 'a')")
    for name in ("b", "c", "c", "d"):
        with engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE article SET name = '{name}'")
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM article WHERE id = 2")
    steps = [row[1:] for row in history(engine, Article)]
    assert [step for step in steps if step[1] == 1] == [
        (INSERT, 1, "a"),
        (UPDATE, 1, "b"),
        (UPDATE, 1, "c"),
        (UPDATE, 1, "d"),
    ]
    assert [step[0] for step in steps if step[1] == 2] == [INSERT, UPDATE, UPDATE, UPDATE, DELETE]


def test_one_statement_makes_one_transaction_row(
    Article: Any, open_session: Any, engine: Any
) -> None:
    """However many rows a statement of a client changes, they share a transaction row."""
    open_session()
    many = ", ".join(f"({i}, 'a')" for i in range(500))
    with engine.begin() as connection:
        connection.exec_driver_sql(f"INSERT INTO article VALUES {many}")
    assert count_transactions(engine, Article) == 1


@pytest.mark.backends("sqlite", "mariadb")
def test_the_mark_ends_with_the_sessions_transaction(
    Article: Any, open_session: Any, engine: Any
) -> None:
    """What the same connection writes after a session's commit or rollback is not the session's."""
    with engine.connect() as connection:
        session = open_session(bind=connection)
        for i, end in enumerate((session.commit, session.rollback)):
            with transaction_context(remote_addr="here"):
                session.add(Article(id=10 + i, name="a"))
                session.flush()
                end()
            connection.exec_driver_sql(f"INSERT INTO article VALUES ({i}, 'a')")
            connection.commit()
    rows = sa.select(transaction_class(Article).remote_addr).order_by(transaction_class(Article).id)
    with engine.connect() as connection:
        assert connection.scalars(rows).all() == ["here", None, None]


@pytest.mark.backends("sqlite", "mariadb")
def test_replace_is_recorded(Article: Any, open_session: Any, engine: Any) -> None:
    """REPLACE of a row is an UPDATE of it, or what it says it is: a DELETE and an INSERT."""
    session = open_session()
    session.add(Article(id=1, name="a"))
    session.commit()
    session.execute(sa.text("REPLACE INTO article VALUES (1, 'b'), (2, 'b')"))
    session.commit()
    assert history(engine, Article) == [
        (1, INSERT, 1, "a"),
        (2, UPDATE, 1, "b"),
        (2, INSERT, 2, "b"),
    ]


@pytest.mark.backends("mariadb")
def test_load_data_is_recorded(Article: Any, open_session: Any, engine: Any, tmp_path: Any) -> None:
    """LOAD DATA calls the triggers for each of its rows."""
    open_session()
    (tmp_path / "rows").write_text("1\ta\n2\tb\n")
    url = engine.url.update_query_dict({"local_infile": "1"})
    loading = sa.create_engine(url)
    with loading.begin() as connection:
        connection.exec_driver_sql(
            f"LOAD DATA LOCAL INFILE '{tmp_path / 'rows'}' INTO TABLE article"
        )
    loading.dispose()
    assert history(engine, Article) == [(1, INSERT, 1, "a"), (1, INSERT, 2, "b")]


def test_a_write_fails_with_its_trigger(Article: Any, open_session: Any, engine: Any) -> None:
    """A history that cannot be written lets the write fail."""
    session = open_session()
    version = Article.__table__.metadata.tables["article_version"]
    with engine.begin() as connection:
        connection.execute(sa.schema.DropTable(version))
    session.add(Article(id=1, name="a"))
    with pytest.raises(sa.exc.DBAPIError):
        session.flush()
    session.rollback()
    assert session.query(Article).count() == 0
    session.close()
    version.create(engine)


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL"])
def test_each_level_of_a_cascade_is_recorded(
    Article: Any, Base: Any, open_session: Any, engine: Any, action: str
) -> None:
    """Rows that a foreign key deletes or changes are recorded, through all levels and tables."""

    class Chapter(Base):  # no history of its own
        __tablename__ = "chapter"
        id = mapped_column(sa.Integer, primary_key=True)
        article_id = mapped_column(sa.ForeignKey("article.id", ondelete="CASCADE"))

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        chapter_id = mapped_column(sa.ForeignKey("chapter.id", ondelete=action))

    session = open_session()
    session.add_all([Article(id=1, name="a"), Article(id=2, name="a")])
    session.flush()
    session.add_all([Chapter(id=3, article_id=1), Chapter(id=4, article_id=2)])
    session.flush()
    session.add_all([Note(id=5, chapter_id=3), Note(id=6, chapter_id=4)])
    session.commit()
    with outside(engine) as connection:
        connection.exec_driver_sql("DELETE FROM article WHERE id = 1")
    last = (2, DELETE, 5, 3) if action == "CASCADE" else (2, UPDATE, 5, None)
    assert history(engine, Note) == [(1, INSERT, 5, 3), (1, INSERT, 6, 4), last]
    assert history(engine, Article)[-1][:3] == (2, DELETE, 1)


def test_a_cascade_of_new_keys_is_recorded(
    Article: Any, Base: Any, open_session: Any, engine: Any
) -> None:
    """ON UPDATE CASCADE changes references, and the keys of association rows."""
    links = sa.Table(
        "article_tag",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id", onupdate="CASCADE"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        main_id = mapped_column(sa.ForeignKey("article.id", onupdate="CASCADE"))
        articles = relationship(Article, secondary=links)

    session = open_session()
    session.add(Article(id=1, name="a"))
    session.flush()
    session.add(Tag(id=5, main_id=1, articles=[session.get(Article, 1)]))
    session.commit()
    with outside(engine) as connection:
        connection.exec_driver_sql("UPDATE article SET id = 9")
    assert history(engine, Tag) == [(1, INSERT, 5, 1), (2, UPDATE, 5, 9)]
    assert history(engine, links) == [(1, INSERT, 1, 5), (2, DELETE, 1, 5), (2, INSERT, 9, 5)]


def test_a_tree_that_a_cascade_deletes_is_recorded(
    versioning: Any, Base: Any, open_session: Any, engine: Any
) -> None:
    """A foreign key to its own table: all that is below a deleted row gets its DELETE version."""

    class Node(Base):
        __tablename__ = "node"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        up_id = mapped_column(sa.ForeignKey("node.id", ondelete="CASCADE"))

    session = open_session()
    for i, up in ((1, None), (2, 1), (3, 2), (4, None)):
        session.add(Node(id=i, up_id=up))
        session.flush()
    session.commit()
    with outside(engine) as connection:
        connection.exec_driver_sql("DELETE FROM node WHERE id = 1")
    assert history(engine, Node)[4:] == [(2, DELETE, 1, None), (2, DELETE, 2, 1), (2, DELETE, 3, 2)]


def test_history_is_read_and_reverted_as_ever(Article: Any, open_session: Any, engine: Any) -> None:
    """as_of(), changeset and revert() work on what triggers wrote, also for another client."""
    session = open_session()
    session.add(Article(id=1, name="a"))
    session.commit()
    with outside(engine) as connection:
        connection.exec_driver_sql("UPDATE article SET name = 'b'")
    article = session.get(Article, 1)
    first, second = article.versions
    assert second.changeset == {"name": ["a", "b"]}
    assert session.scalars(as_of(version_class(Article), first.transaction_id)).one().name == "a"
    first.revert()
    session.commit()
    assert [row[3] for row in history(engine, Article)] == ["a", "b", "a"]


def test_each_database_of_a_session_has_its_own(
    versioning: Any, make_base: Any, engine: Any, laws: Any
) -> None:
    """A session over two databases: both are told, and each has a transaction row of its own."""
    one, other = make_base(), make_base()

    class Here(one):
        __tablename__ = "here"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class There(other):
        __tablename__ = "there"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    second = support.sqlite_engine(sa.make_url("sqlite://"))
    one.metadata.create_all(engine)
    other.metadata.create_all(second)
    laws.whole = False  # they look at one database
    with sa.orm.Session(binds={Here: engine, There: second}) as session:
        both = [Here(id=1), There(id=1)]
        session.add_all(both)
        session.flush()
        session.delete(both[1])
        session.commit()
    assert history(engine, Here) == [(1, INSERT, 1)]
    with second.connect() as connection:
        assert connection.exec_driver_sql("SELECT * FROM there_version").all() == []
        assert connection.exec_driver_sql('SELECT * FROM "transaction"').all() == []
    second.dispose()


def test_a_transaction_that_was_overtaken_keeps_what_sessions_recorded(
    Article: Any, Base: Any, open_session: Any, engine: Any
) -> None:
    """Triggers may go on under another id: what the session records goes on with them."""
    if engine.dialect.name == "sqlite":
        return  # one transaction writes at a time

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {"native_versioning": False}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))

    session = open_session()
    session.add_all([Article(id=1, name="a"), Note(id=5, name="a")])
    session.commit()
    note = session.get(Note, 5)
    note.name = "b"
    session.flush()
    with outside(engine) as connection:
        connection.exec_driver_sql("UPDATE article SET name = 'second'")
    session.execute(sa.update(Article).values(name="first"))
    note.name = "c"
    session.commit()
    assert history(engine, Note, "name")[-1][2] == "c"
    assert [row[3] for row in history(engine, Article)] == ["a", "second", "first"]


def test_an_async_session_tells_its_context(
    Article: Any, open_async_session: Any, run_async: Any
) -> None:
    """Asynchronous drivers: one transaction row, with the context, and no mark left behind."""

    async def main() -> Any:
        session = await open_async_session()
        for i in (1, 2):
            async with transaction_context(remote_addr=f"10.0.0.{i}"):
                session.add(Article(id=i, name="a"))
                await session.flush()
                await session.execute(sa.update(Article).values(name=f"b{i}"))
                await session.commit()
        await session.execute(sa.text("DELETE FROM article WHERE id = 2"))
        await session.commit()
        cls = transaction_class(Article)
        said = await session.scalars(sa.select(cls.remote_addr).order_by(cls.id))
        version = Article.__table__.metadata.tables["article_version"]
        start = version.c.transaction_id
        rows = await session.execute(
            sa.select(version.c.id, version.c.operation_type).order_by(start, version.c.id)
        )
        return said.all(), [tuple(row) for row in rows]

    said, rows = run_async(main)
    assert said == ["10.0.0.1", "10.0.0.2", None]
    assert rows == [(1, INSERT), (1, UPDATE), (2, INSERT), (2, DELETE)]


@pytest.mark.backends("postgresql", "mariadb")
def test_clients_that_insert_do_not_wait_for_each_other(
    Article: Any, open_session: Any, engine: Any
) -> None:
    """Triggers lock nothing that another client's new or other rows need."""
    session = open_session()
    session.add_all([Article(id=1, name="a"), Article(id=2, name="a")])
    session.commit()
    with outside(engine) as one, outside(engine) as two:
        for i, connection in enumerate((one, two, one, two)):
            connection.exec_driver_sql(f"INSERT INTO article VALUES ({10 + i}, 'a')")
        one.exec_driver_sql("UPDATE article SET name = 'b' WHERE id = 1")
        two.exec_driver_sql("UPDATE article SET name = 'b' WHERE id = 2")
    assert sorted(row[1] for row in history(engine, Article)) == [INSERT] * 6 + [UPDATE] * 2


def test_names_may_be_long(versioning: Any, Base: Any, open_session: Any, engine: Any) -> None:
    """Names of triggers and functions are shortened where they would be too long."""

    class Long(Base):
        __tablename__ = "long_" * 8 + "name"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class Longer(Base):
        __tablename__ = "long_" * 8 + "names"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        up_id = mapped_column(sa.ForeignKey(Long.id, ondelete="CASCADE"))

    session = open_session()
    session.add(Long(id=1))
    session.flush()
    session.add(Longer(id=2, up_id=1))
    session.commit()
    with outside(engine) as connection:
        connection.execute(sa.delete(Long))
    assert history(engine, Long) == [(1, INSERT, 1), (2, DELETE, 1)]
    assert history(engine, Longer) == [(1, INSERT, 2, 1), (2, DELETE, 2, 1)]


def test_triggers_that_are_out_of_date_are_told(
    Article: Any, open_session: Any, engine: Any
) -> None:
    """Triggers that are missing, or were made for other columns, are not current."""
    open_session()
    with engine.begin() as connection:
        assert triggers_are_current(connection, Article)
        drop_triggers(connection, Article)
        assert not triggers_are_current(connection, Article)
        create_triggers(connection, Article)
        assert triggers_are_current(connection, Article)
    plan = table_plan(Article.__table__)
    narrower = dataclasses.replace(plan, columns=plan.columns[:1], hierarchy=[])
    narrower.hierarchy.append(narrower)
    with engine.begin() as connection:
        plan.manager.native.create(connection, [narrower])
        assert not triggers_are_current(connection, Article)


@pytest.mark.backends("mariadb")
def test_triggers_of_tables_that_cascade_belong_to_those_that_are_current(
    versioning: Any, Base: Any, open_session: Any, engine: Any
) -> None:
    """One that is missing on a table without a history is told, too."""

    class User(Base):
        __tablename__ = "user"
        id = mapped_column(sa.Integer, primary_key=True)

    class Post(Base):
        __tablename__ = "post"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        user_id = mapped_column(sa.ForeignKey("user.id", ondelete="CASCADE"))
        editor_id = mapped_column(sa.ForeignKey("user.id", ondelete="SET NULL"))

    open_session()
    with engine.begin() as connection:
        assert triggers_are_current(connection, Post)
        connection.exec_driver_sql("DROP TRIGGER history_before_delete_user_post")
        assert not triggers_are_current(connection, Post)


def test_triggers_follow_new_columns(
    Article: Any, make_base: Any, open_session: Any, engine: Any, laws: Any
) -> None:
    """Without Alembic: after a column was added, create_triggers() has it recorded."""
    open_session().close()
    laws.repeats = True  # seen through Article, which does not have the column

    class Wider(make_base()):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        name = mapped_column(sa.String(50))
        pages = mapped_column(sa.Integer)

    sa.orm.configure_mappers()
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO article VALUES (1, 'a')")
        for table in ("article", "article_version"):
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN pages INTEGER")
        assert not triggers_are_current(connection, Wider)
        create_triggers(connection, Wider)
        create_triggers(connection, Wider)
        assert triggers_are_current(connection, Wider)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE article SET pages = 5")
    assert history(engine, Wider, "id", "name", "pages") == [
        (1, INSERT, 1, "a", None),
        (2, UPDATE, 1, "a", 5),
    ]


_LEFT = {
    "postgresql": "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    "sqlite": "SELECT name FROM sqlite_master",
    "mysql": "SELECT trigger_name FROM information_schema.triggers "
    "WHERE trigger_schema = database()",
}


def test_nothing_is_left_of_dropped_tables(
    Article: Any, Base: Any, open_session: Any, engine: Any
) -> None:
    """Functions and triggers go with the tables."""
    open_session().close()
    Base.metadata.drop_all(engine)
    with engine.connect() as connection:
        assert connection.exec_driver_sql(_LEFT[engine.dialect.name]).all() == []
    Base.metadata.create_all(engine)


@pytest.mark.backends("postgresql")
def test_where_there_are_no_triggers_the_option_is_refused(
    Article: Any, Base: Any, engine: Any
) -> None:
    """create_all() on a database that native versioning does not know says so."""
    mock = sa.create_mock_engine("oracle://", lambda *_: None)
    with pytest.raises(ImproperlyConfigured, match=r"'article'.*native_versioning"):
        Base.metadata.create_all(mock, checkfirst=False)


def test_triggers_and_sessions_share_a_transaction(
    Article: Any, Base: Any, open_session: Any, engine: Any
) -> None:
    """With the option on some classes only, one database transaction has one transaction row."""

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {"native_versioning": False}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))

    session = open_session()
    for first, second in ((Article, Note), (Note, Article)):
        session.add(first(id=session.query(first).count() + 1, name="a"))
        session.flush()
        session.add(second(id=session.query(second).count() + 1, name="a"))
        session.commit()
    for cls in (Article, Note):
        assert history(engine, cls) == [(1, INSERT, 1, "a"), (2, INSERT, 2, "a")]


def by_object(session: Any, Article: Any) -> None:
    session.get(Article, 1).name = "first"


def by_statement(session: Any, Article: Any) -> None:
    session.execute(sa.update(Article).values(name="first"))


def by_text(session: Any, Article: Any) -> None:
    session.execute(sa.text("UPDATE article SET name = 'first'"))


@pytest.mark.parametrize("owner_is_native", [True, False])
def test_an_association_table_has_the_option_of_the_class_with_the_relationship(
    Base: Any, versioning: Any, open_session: Any, engine: Any, owner_is_native: bool
) -> None:
    """What another client does to links is recorded if that class has the option, and only then."""
    links = sa.Table(
        "article_tag",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {"native_versioning": not owner_is_native}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {"native_versioning": owner_is_native}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        tags = relationship(Tag, secondary=links)

    session = open_session()
    session.add(Article(id=1, tags=[Tag(id=2)]))
    session.commit()
    for entity in (Article, Tag, links):
        assert [row[:2] for row in history(engine, entity)] == [(1, INSERT)]
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM article_tag")
    gone = [(2, DELETE)] if owner_is_native else []
    assert [row[:2] for row in history(engine, links)] == [(1, INSERT), *gone]
    found = [finding.kind for finding in verify(session, Article)]
    assert found == ([] if owner_is_native else ["gone without DELETE"])
    repair(session, Article)
    session.commit()


@pytest.mark.parametrize("statement", [sa.delete, sa.update])
def test_a_statement_and_the_triggers_that_it_sets_off_share_a_transaction(
    Article: Any, Base: Any, open_session: Any, engine: Any, statement: Any
) -> None:
    """A session records rows of which the database cascades to a table with triggers."""

    class Topic(Base):
        __tablename__ = "topic"
        __versioned__ = {"native_versioning": False}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        topic_id = mapped_column(sa.ForeignKey("topic.id", ondelete="CASCADE", onupdate="CASCADE"))

    session = open_session()
    session.add(Topic(id=1))
    session.flush()
    session.add(Note(id=5, topic_id=1))
    session.commit()
    changed = statement(Topic).where(Topic.id == 1)
    with transaction_context(remote_addr="here"):
        session.execute(changed if statement is sa.delete else changed.values(id=2))
        session.commit()
    ends = [(tx, operation) for tx, operation, *_ in history(engine, Note)]
    assert ends == [(1, INSERT), (2, DELETE if statement is sa.delete else UPDATE)]
    assert {tx for tx, *_ in history(engine, Topic)} == {1, 2}
    assert count_transactions(engine, Article) == 2


@pytest.mark.backends("postgresql")  # elsewhere nothing overtakes, or it goes on under a new id
@pytest.mark.parametrize("plugins", [[TransactionMetaPlugin()]])
@pytest.mark.parametrize("write", [by_object, by_statement, by_text])
def test_what_is_said_about_a_transaction_follows_it(
    versioning: Any, plugins: Any, Article: Any, open_session: Any, engine: Any, write: Any
) -> None:
    """A trigger gave the transaction another id: its object and its meta are those of the new one."""
    session = open_session()
    session.add(Article(id=1, name="a"))
    session.commit()
    unit_of_work = versioning.unit_of_work(session)
    first = unit_of_work.create_transaction(session)
    first.meta = {"ticket": "A-17"}
    session.flush()
    with engine.begin() as second:
        second.exec_driver_sql("UPDATE article SET name = 'second'")
    write(session, Article)
    session.flush()
    assert unit_of_work.current_transaction is first
    first.meta["by"] = "me"
    session.commit()
    last = session.get(Article, 1).versions[-1]
    assert last.transaction is first
    assert dict(first.meta) == {"ticket": "A-17", "by": "me"}
    rows = session.execute(sa.text("SELECT transaction_id, key FROM transaction_meta")).all()
    assert {tuple(row) for row in rows} == {(first.id, "ticket"), (first.id, "by")}


def test_the_transaction_of_a_trigger_is_the_current_one(
    versioning: Any, Article: Any, open_session: Any
) -> None:
    """A session finds the row that a trigger has made, with what its own context said."""
    session = open_session()
    with transaction_context(remote_addr="here"):
        session.add(Article(id=1, name="a"))
        session.flush()
        found = versioning.unit_of_work(session).current_transaction
    assert found.remote_addr == "here"
    session.commit()
    assert session.get(Article, 1).versions[0].transaction is found


def test_a_plugin_that_has_to_be_told_is_refused(Article: Any) -> None:
    """Triggers do not call plugins, and who combines the two is told so."""
    versioning_manager.plugins = [NullDeletePlugin()]
    with pytest.raises(ImproperlyConfigured, match=r"'article'.*NullDeletePlugin"):
        sa.orm.configure_mappers()
