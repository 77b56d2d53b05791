"""A process that is killed, a connection that is cut, a full disk, a deadlock: live rows and history agree.

The same commit everywhere: inserts, updates and deletes of one table, association rows, a joined
hierarchy, a table with triggers, a bulk statement. It is disturbed before each of its statements in
turn, until it comes through.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, mapped_column, relationship

import sqlalchemy_history as h
import support
from chain import EACH_ONCE, laws
from interleaving import CONNECT_ARGS, LEVELS, gates, play

__all__ = ["laws"]

pytestmark = [EACH_ONCE, pytest.mark.sqlite_file]


@pytest.fixture
def engine_options(backend: str) -> dict[str, Any]:
    return CONNECT_ARGS.get(backend, {})


@pytest.fixture
def models(versioning: Any, Base: Any, laws: Any) -> Any:
    laws.repeats = True
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        name = mapped_column(sa.String(20))

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        name = mapped_column(sa.String(20))
        body = mapped_column(sa.Text)
        tags = relationship(Tag, secondary=links, order_by=Tag.id)

    class Item(Base):
        __tablename__ = "item"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        kind = mapped_column(sa.String(10))
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "item"}

    class Book(Item):
        __tablename__ = "book"
        id = mapped_column(sa.ForeignKey("item.id"), primary_key=True)
        pages = mapped_column(sa.Integer)
        __mapper_args__ = {"polymorphic_identity": "book"}

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {"native_versioning": True}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        name = mapped_column(sa.String(20))

    return SimpleNamespace(Tag=Tag, Article=Article, Item=Item, Book=Book, Note=Note, base=Base)


@pytest.fixture
def session(models: Any, open_session: Any) -> Session:
    """Articles 0 to 99 with a tag, three tags, a book and a note."""
    session = open_session()
    tags = [models.Tag(id=n, name="a") for n in range(3)]
    session.add_all(models.Article(id=n, name="a", tags=tags[:1]) for n in range(100))
    session.add_all([*tags, models.Book(id=1, pages=0), models.Note(id=1, name="a")])
    session.commit()
    return session


def work(session: Session, m: Any, n: int, size: int = 1) -> None:
    """The commit that is disturbed; ``n`` is another number each time, from 1 on."""
    article = session.get_one(m.Article, 0)
    article.name = f"name {n}"
    article.tags = [session.get_one(m.Tag, n % 3)]
    session.add(m.Article(id=1000 + n, name="new", body="x" * size))
    session.delete(session.get_one(m.Article, n))
    session.get_one(m.Book, 1).pages = n
    session.get_one(m.Note, 1).name = f"note {n}"
    session.flush()
    session.execute(sa.update(m.Tag).values(name=f"tag {n}"))
    session.commit()


def content(engine: Engine, m: Any) -> dict[str, Any]:
    """All rows of all tables."""
    tables = {*m.base.metadata.tables.values(), h.transaction_class(m.Tag).__table__}
    with engine.connect() as connection:
        return {
            table.name: sorted(map(repr, connection.execute(sa.select(table)))) for table in tables
        }


def wrong(engine: Engine, m: Any) -> list[str]:
    with Session(engine) as session:
        return [
            finding.message
            for cls in (m.Article, m.Tag, m.Item, m.Note)
            for finding in h.verify(session, cls)
        ]


def transactions(engine: Engine, m: Any) -> int:
    return len(content(engine, m)["transaction"])


class Steps:
    """Calls ``disturb`` before the statement or COMMIT number ``n`` of an engine, counted from 1."""

    def __init__(self, engine: Engine, n: int, disturb: Callable[[Any], None]) -> None:
        self.left = n
        self.disturb = disturb
        sa.event.listen(engine, "before_cursor_execute", self.pass_)
        sa.event.listen(engine, "commit", self.pass_)

    def pass_(self, connection: Any, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.disturb(connection)


def die(_: Any = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(call: Callable[[], None]) -> bool:
    """Run ``call`` in another process; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            call()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def own_engine(engine: Engine) -> Engine:
    """What another process would have."""
    if engine.dialect.name == "sqlite":
        return support.sqlite_engine(engine.url)
    return sa.create_engine(engine.url)


def test_killed(session: Session, models: Any, engine: Engine) -> None:
    """A process that is killed before COMMIT leaves nothing; right after it, all."""
    session.close()
    before = content(engine, models)

    def commit(n: int) -> None:
        own = own_engine(engine)
        Steps(own, n, die)
        with Session(own) as mine:
            sa.event.listen(mine, "after_commit", die)
            work(mine, models, 1)

    for n in range(1, 100):
        assert in_child(partial(commit, n))
        if content(engine, models) != before:
            break
    assert n > 15
    assert transactions(engine, models) == len(before["transaction"]) + 1
    with Session(engine) as fresh:
        assert fresh.get_one(models.Article, 0).name == "name 1"
        assert fresh.get_one(models.Note, 1).name == "note 1"
    assert not wrong(engine, models)


def cut(engine: Engine, connection: Any) -> None:
    """End the database's side of a connection."""
    driver = connection.connection.driver_connection
    with engine.connect() as other:
        if engine.dialect.name == "postgresql":
            pid = driver.info.backend_pid
            other.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)")
        else:
            other.exec_driver_sql(f"KILL {driver.thread_id()}")


@pytest.mark.backends("postgresql", "mariadb")
def test_connection_cut(session: Session, models: Any, engine: Engine) -> None:
    """After rollback() the same session does it again, and it is recorded once."""
    session.close()
    before = transactions(engine, models)
    own = own_engine(engine)
    for n in range(1, 99):
        with Session(own) as mine:
            held = mine.get_one(models.Article, 0) if n % 2 else None
            steps = Steps(own, n, partial(cut, engine))
            try:
                work(mine, models, n)
            except sa.exc.DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                mine.rollback()
                work(mine, models, n)
            came_through, steps.left = steps.left > 0, 0
            assert held is None or held.name == f"name {n}"
        assert transactions(engine, models) == before + n
        if came_through:
            break
    own.dispose()
    assert n > 15
    assert not wrong(engine, models)


@pytest.mark.backends("sqlite")
@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_disk_full(session: Session, models: Any, engine: Engine, journal: str) -> None:
    """A commit for which the disk has no room leaves nothing, wherever in it; the next one works."""
    session.close()
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        assert driver.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal.lower(),)
    failures = 0
    for n in range(1, 99):
        before = content(engine, models)
        pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar_one()
        free = session.connection().exec_driver_sql("PRAGMA freelist_count").scalar_one()
        session.connection().exec_driver_sql(f"PRAGMA max_page_count = {pages + failures}")
        try:
            work(session, models, n, 4096 * (6 + free))
        except sa.exc.OperationalError as error:
            if "full" not in str(error.orig):
                raise
            session.rollback()
            assert content(engine, models) == before
            failures += 1
        else:
            break
        finally:
            session.connection().exec_driver_sql("PRAGMA max_page_count = 1000000")
        work(session, models, n)
        assert transactions(engine, models) == len(before["transaction"]) + 1
    assert 8 < failures < 98
    assert not wrong(engine, models)


@pytest.fixture
def gated(session: Session, engine: Engine) -> Iterator[Engine]:
    """The engine in the hands of ``play()``; on SQLite nobody waits for a lock."""
    session.close()
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def hurry(dbapi_connection: Any, _record: Any) -> None:
            dbapi_connection.execute("PRAGMA busy_timeout = 0").close()

        engine.dispose()
    with gates(engine):
        yield engine


def test_done_again(gated: Engine, models: Any, backend: str) -> None:
    """Two sessions that update two rows crosswise: what fails is done again with the same objects.

    A deadlock, a serialization failure, or SQLite's lock; each session is recorded once.
    """
    failures: list[Exception] = []

    def attempt(session: Session, articles: Any, name: str) -> bool:
        try:
            for article in articles:
                article.name = name
                session.flush()
            session.commit()
        except sa.exc.DBAPIError as error:
            failures.append(error)
            session.rollback()
            return False
        return True

    def crosswise(first: int, second: int, name: str, session: Session) -> None:
        articles = [session.get_one(models.Article, n) for n in (first, second)]
        assert any(attempt(session, articles, name) for _ in range(20)), failures

    for level in LEVELS[backend]:
        failures.clear()
        before = transactions(gated, models)
        one, two = f"1 {level}", f"2 {level}"
        scripts = [partial(crosswise, 1, 2, one), partial(crosswise, 2, 1, two)]
        engine = gated.execution_options(isolation_level=level)
        found = play(scripts, engine, [0, 1] * 30)
        assert found.errors == [None, None], found
        assert failures
        assert transactions(gated, models) == before + 2
        assert not wrong(gated, models)
