"""The suite's own tools: what the other tests lean on."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Mapped, Session, mapped_column

import support


def declare_note(base, schema=None):
    class Note(base):
        __tablename__ = "note"
        __table_args__ = {"schema": schema}

        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str] = mapped_column(sa.String(20))

    return Note


def count(session, cls) -> int:
    return session.scalar(sa.select(sa.func.count()).select_from(cls))


@pytest.mark.parametrize("time", ["first", "second"])
def test_each_test_finds_an_empty_database(Base, engine, open_session, time) -> None:
    """What one test leaves in the database is gone before the next."""
    Note = declare_note(Base)
    assert sa.inspect(engine).get_table_names() == []
    session = open_session()
    session.add(Note(text=time))
    session.commit()
    assert count(session, Note) == 1


def test_a_rolled_back_transaction_takes_its_savepoints_along(Base, open_session) -> None:
    """SAVEPOINT is inside a transaction on every backend, also on SQLite."""
    Note = declare_note(Base)
    session = open_session()
    with session.begin_nested():
        session.add(Note(text="gone"))
    session.rollback()
    assert count(session, Note) == 0


@pytest.mark.parametrize("engine_options", [{"isolation_level": "AUTOCOMMIT"}])
def test_engine_options_reach_the_engine(Base, open_session, engine_options) -> None:
    """In AUTOCOMMIT, a rollback takes nothing back."""
    Note = declare_note(Base)
    session = open_session()
    session.add(Note(text="stays"))
    session.flush()
    session.rollback()
    assert count(session, Note) == 1


def test_other_schema_exists(Base, open_session, other_schema) -> None:
    """Tables can be made in a second schema, and are gone after the test."""
    Note = declare_note(Base, other_schema)
    session = open_session()
    session.add(Note(text="elsewhere"))
    session.commit()
    assert count(session, Note) == 1


@pytest.mark.sqlite_file
def test_two_connections_see_one_database(Base, open_session) -> None:
    """Two sessions work on the same database, SQLite included where a file is asked for."""
    Note = declare_note(Base)
    first, second = open_session(), open_session()
    first.add(Note(text="seen"))
    first.commit()
    assert first.connection() is not second.connection()
    assert count(second, Note) == 1


@pytest.mark.backends("postgresql")
def test_backends_marker_rules_out_the_others(engine) -> None:
    """A test that is for one backend runs there only."""
    assert engine.dialect.name == "postgresql"


def test_statements_records_what_is_executed(Base, engine, open_session, statements) -> None:
    """The log has each statement with its parameters, and no transaction control."""
    Note = declare_note(Base)
    session = open_session()
    with statements(engine) as log:
        with session.begin_nested():
            session.add(Note(text="one"))
        session.commit()
        session.scalars(sa.select(Note)).all()
    assert len(log) == 2
    assert len(log.containing("insert", "note")) == 1
    assert len(log.starting("SELECT")) == 1
    assert "one" in str(log[0].parameters)


def test_async_session_on_every_driver(
    Base, async_engine, open_async_session, run_async, statements
) -> None:
    """An AsyncSession works on an empty database of the driver's backend."""
    Note = declare_note(Base)

    async def main() -> None:
        session = await open_async_session()
        with statements(async_engine) as log:
            session.add(Note(text="async"))
            await session.commit()
        assert len(log) == 1
        assert await session.scalar(sa.select(Note.text)) == "async"

    run_async(main)


def test_a_listener_left_on_a_class_is_found() -> None:
    """The leak detector sees through SQLAlchemy's wrappers, and forgets what was removed."""

    def on_flush(session, context) -> None:
        """Do nothing."""

    def on_insert(mapper, connection, target) -> None:
        """Do nothing."""

    def mine(module: str) -> bool:
        return module == __name__

    assert support.class_listeners(mine) == set()
    event.listen(Session, "after_flush", on_flush)
    event.listen(sa.orm.Mapper, "before_insert", on_insert)
    try:
        # a subclass of Session that is there, whichever test has imported it, has it too
        found = {line.partition(":")[0] for line in support.class_listeners(mine)}
        assert found >= {"Session.after_flush", "Mapper.before_insert"}
    finally:
        event.remove(Session, "after_flush", on_flush)
        event.remove(sa.orm.Mapper, "before_insert", on_insert)
    assert support.class_listeners(mine) == set()


def test_a_run_names_only_backends_that_exist(monkeypatch) -> None:
    """A misspelt backend is an error, not a run without it."""
    monkeypatch.setenv("HISTORY_BACKENDS", "sqlite,postgres")
    with pytest.raises(ValueError, match="postgres"):
        support.selected_backends()
