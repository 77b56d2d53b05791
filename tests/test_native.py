"""Versions written by triggers: every write is recorded, wherever it comes from."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import mapped_column, relationship

from chain import DELETE, INSERT, UPDATE, count_transactions, history, laws
from sqlalchemy_history import (
    ImproperlyConfigured,
    transaction_class,
    transaction_context,
    versioning_manager,
)
from sqlalchemy_history.native import create_triggers, drop_triggers
from sqlalchemy_history.plugins import NullDeletePlugin, TransactionMetaPlugin

__all__ = ["laws"]

pytestmark = [pytest.mark.backends("postgresql"), pytest.mark.options(native_versioning=True)]


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
    Article: Any, open_session: Any, engine: Any, before: Any, steps: Any, expected: Any
) -> None:
    """What SQL from outside does to a row in one transaction merges as in the unit of work."""
    open_session()
    now = before
    if before is not None:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"INSERT INTO article VALUES (1, '{before}')")
    with engine.begin() as connection:
        for value in steps:
            if value is None:
                connection.exec_driver_sql("DELETE FROM article WHERE id = 1")
            elif now is None:
                connection.exec_driver_sql(f"INSERT INTO article VALUES (1, '{value}')")
            else:
                connection.exec_driver_sql(f"UPDATE article SET name = '{value}' WHERE id = 1")
            now = value
    found = [operation for _, operation, *_ in history(engine, Article)]
    assert found == ([INSERT] if before is not None else []) + expected


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


def test_a_transaction_that_came_first_moves_behind(
    Article: Any, open_session: Any, engine: Any
) -> None:
    """Who got the smaller id but wrote the row later has the later version."""
    session = open_session()
    session.add_all([Article(id=1, name="a"), Article(id=2, name="a")])
    session.commit()
    with engine.begin() as first, engine.begin() as second:
        first.exec_driver_sql("UPDATE article SET name = 'first' WHERE id = 1")
        second.exec_driver_sql("UPDATE article SET name = 'second' WHERE id = 2")
        second.commit()
        first.exec_driver_sql("UPDATE article SET name = 'first' WHERE id = 2")
    names = [row[3] for row in history(engine, Article) if row[2] == 2]
    assert names == ["a", "second", "first"]


def test_hostile_names_are_safe(versioning: Any, Base: Any, open_session: Any, engine: Any) -> None:
    """Quotes, blanks, percent signs, reserved words and other alphabets are names as any other."""

    class Weird(Base):
        __tablename__ = "we\"ird ta'ble %s $$"
        __versioned__ = {}
        id = mapped_column("ünï", sa.Integer, primary_key=True)
        one = mapped_column("select", sa.String(9))
        two = mapped_column('col"umn', sa.String(9))

    session = open_session()
    session.add(Weird(id=1, one="a"))
    session.commit()
    session.execute(sa.update(Weird).values(two="b"))
    session.commit()
    assert history(engine, Weird) == [(1, INSERT, 1, "a", None), (2, UPDATE, 1, "a", "b")]


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
    assert count_transactions(engine, Article) == 1


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


def test_triggers_follow_new_columns(Article: Any, open_session: Any, engine: Any) -> None:
    """Triggers can be dropped and made again on a database that exists."""
    open_session()
    with engine.begin() as connection:
        drop_triggers(connection, Article)
        create_triggers(connection, Article)
        create_triggers(connection, Article)
        connection.exec_driver_sql("INSERT INTO article VALUES (1, 'a')")
    assert history(engine, Article) == [(1, INSERT, 1, "a")]


def test_nothing_is_left_of_dropped_tables(
    Article: Any, Base: Any, open_session: Any, engine: Any
) -> None:
    """The functions go with the tables."""
    open_session().close()
    Base.metadata.drop_all(engine)
    with engine.connect() as connection:
        left = "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        assert connection.exec_driver_sql(left).all() == []
    Base.metadata.create_all(engine)


@pytest.mark.backends("sqlite", "mariadb")
def test_where_there_are_no_triggers_the_option_is_refused(
    Article: Any, Base: Any, engine: Any
) -> None:
    """create_all() on a database that native versioning does not know says so."""
    with pytest.raises(ImproperlyConfigured, match=r"'article'.*native_versioning"):
        Base.metadata.create_all(engine)


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
