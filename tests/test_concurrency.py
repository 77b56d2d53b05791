"""Histories under concurrent transactions: ids are handed out before rows are locked.

At the default isolation of each database: READ COMMITTED on PostgreSQL, REPEATABLE READ on MariaDB,
where a plain SELECT shows what was there when the transaction began.
"""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, mapped_column, relationship

from chain import DELETE, INSERT, UPDATE, history, laws

__all__ = ["laws"]

on_servers = pytest.mark.backends("postgresql", "mariadb")


@pytest.fixture
def models(versioning: Any, Base: Any) -> Any:
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
        other = mapped_column(sa.String(20))
        tags = relationship(Tag, secondary=links, order_by=Tag.id)

    class Item(Base):
        __tablename__ = "item"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        kind = mapped_column(sa.String(10))
        name = mapped_column(sa.String(20))
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "item"}

    class Book(Item):
        __tablename__ = "book"
        id = mapped_column(sa.ForeignKey("item.id"), primary_key=True)
        pages = mapped_column(sa.Integer)
        __mapper_args__ = {"polymorphic_identity": "book"}

    return {"Article": Article, "Tag": Tag, "links": links, "Book": Book, "Item": Item}


@pytest.fixture
def sessions(models: Any, open_session: Any) -> tuple[Session, Session]:
    """Two sessions; Article 1 (with tag 1), Book 1 and tags 1 to 3 are there."""
    first, second = open_session(), open_session()
    tags = [models["Tag"](id=n, name=f"tag {n}") for n in (1, 2, 3)]
    first.add_all([models["Article"](id=1, name="a", tags=tags[:1]), *tags])
    first.add(models["Book"](id=1, name="b", pages=1))
    first.commit()
    return first, second


def take_id_early(session: Session, models: Any) -> None:
    """The session's transaction gets its id, and its snapshot if it has one, first."""
    session.execute(sa.select(models["Article"].id))
    session.add(models["Tag"](id=100, name="early"))
    session.flush()


def last_versions(session: Session, entity: Any, *names: str) -> list[tuple[Any, ...]]:
    return [row[1:] for row in history(session, entity, *names)]


@on_servers
class TestTheLaterWriterHasTheSmallerId:
    """T1 gets its id, T2 writes a row and commits, T1 writes it: T1's version is the open one."""

    def test_update_after_update(self, sessions, models) -> None:
        """Both update: T1's version follows T2's, and no validity is empty or overlaps."""
        first, second = sessions
        article = models["Article"]
        take_id_early(first, models)
        second.get(article, 1).name = "second"
        second.commit()
        first.execute(sa.select(sa.literal(1)))
        first.get(article, 1, with_for_update=True).name = "first"
        first.commit()
        assert last_versions(first, article, "name") == [
            (INSERT, "a"),
            (UPDATE, "second"),
            (UPDATE, "first"),
        ]

    def test_update_of_a_stale_object(self, sessions, models) -> None:
        """T1 loaded the row before T2 changed it: what the live row holds is recorded."""
        first, second = sessions
        article = models["Article"]
        take_id_early(first, models)
        second.get(article, 1).other = "second"
        second.commit()
        # an UPDATE sees what is committed, whatever the snapshot of the transaction shows
        stale = first.get(article, 1)
        stale.name = "first"
        first.commit()
        assert last_versions(first, article, "name", "other") == [
            (INSERT, "a", None),
            (UPDATE, "a", "second"),
            (UPDATE, "first", "second"),
        ]

    def test_delete_after_update(self, sessions, models, laws) -> None:
        """T1 deletes what T2 updated: the DELETE follows, with T2's values."""
        laws.repeats = True
        first, second = sessions
        book = models["Book"]
        take_id_early(first, models)
        second.get(book, 1).name = "second"
        second.commit()
        first.delete(first.get(book, 1, with_for_update=True))
        first.commit()
        assert last_versions(first, models["Item"], "name") == [
            (INSERT, "b"),
            (UPDATE, "second"),
            (DELETE, "second"),
        ]
        assert last_versions(first, book, "pages")[-1] == (DELETE, 1)

    def test_insert_of_a_key_that_was_deleted(self, sessions, models) -> None:
        """T1 inserts with the key of a row that T2 deleted: INSERT follows DELETE."""
        first, second = sessions
        book = models["Book"]
        take_id_early(first, models)
        second.delete(second.get(book, 1))
        second.commit()
        first.add(book(id=1, name="again", pages=2))
        first.commit()
        assert last_versions(first, models["Item"], "name") == [
            (INSERT, "b"),
            (DELETE, "b"),
            (INSERT, "again"),
        ]

    def test_delete_after_insert(self, sessions, models) -> None:
        """T1 deletes a row that T2 inserted after T1 had begun."""
        first, second = sessions
        tag = models["Tag"]
        take_id_early(first, models)
        second.add(tag(id=50, name="new"))
        second.commit()
        # on MariaDB a plain SELECT shows the snapshot, a locking one what is there
        first.delete(first.get(tag, 50, with_for_update=True))
        first.commit()
        assert [row[1:] for row in history(first, tag, "id") if row[2] == 50] == [
            (INSERT, 50),
            (DELETE, 50),
        ]

    def test_association_row_removed_after_it_was_added(self, sessions, models) -> None:
        """T2 adds a link, T1 removes it."""
        first, second = sessions
        article, links = models["Article"], models["links"]
        take_id_early(first, models)
        theirs = second.get(article, 1)
        theirs.tags.append(second.get(models["Tag"], 2))
        second.commit()
        first.execute(sa.delete(links).where(links.c.article_id == 1, links.c.tag_id == 2))
        first.commit()
        assert [row[1:] for row in history(first, links, "tag_id") if row[2] == 2] == [
            (INSERT, 2),
            (DELETE, 2),
        ]

    def test_association_row_added_after_it_was_removed(self, sessions, models) -> None:
        """T2 removes a link, T1 adds it again."""
        first, second = sessions
        article, links = models["Article"], models["links"]
        take_id_early(first, models)
        theirs = second.get(article, 1)
        theirs.tags.clear()
        second.commit()
        first.execute(sa.insert(links).values(article_id=1, tag_id=1))
        first.commit()
        assert last_versions(first, links, "tag_id") == [(INSERT, 1), (DELETE, 1), (INSERT, 1)]

    def test_what_was_recorded_before_moves_too(self, sessions, models) -> None:
        """What T1 had closed and opened before it met T2's version carries T1's new id."""
        first, second = sessions
        article, tag, links = models["Article"], models["Tag"], models["links"]
        first.get(tag, 1).name = "first"
        first.get(tag, 3).name = "first"
        first.flush()
        second.get(article, 1).name = "second"
        second.commit()
        locked = first.get(article, 1, with_for_update=True)
        first.refresh(locked)
        locked.name = "first"
        locked.tags = [first.get(tag, 3)]
        first.flush()
        first.get(tag, 1).name = "tag 1"
        first.delete(locked)
        first.commit()
        assert last_versions(first, article, "name")[1:] == [(UPDATE, "second"), (DELETE, "first")]
        assert [row[2:] for row in history(first, tag, "id", "name") if row[1] == UPDATE] == [
            (3, "first")
        ]
        assert last_versions(first, links, "tag_id") == [(INSERT, 1), (DELETE, 1)]

    def test_inside_a_savepoint_that_is_rolled_back(self, sessions, models) -> None:
        """A move inside a savepoint is undone with it; the next one happens again."""
        first, second = sessions
        article, tag = models["Article"], models["Tag"]
        take_id_early(first, models)
        second.get(article, 1).name = "second"
        second.commit()
        savepoint = first.begin_nested()
        first.get(article, 1, with_for_update=True).name = "undone"
        first.flush()
        savepoint.rollback()
        first.get(tag, 1).name = "first"
        first.flush()
        first.get(article, 1, with_for_update=True).name = "first"
        first.commit()
        assert last_versions(first, article, "name")[1:] == [(UPDATE, "second"), (UPDATE, "first")]

    def test_equal_to_what_the_other_wrote(self, sessions, models) -> None:
        """T1 sets what T2 had set in the meantime: nothing changed, no version."""
        first, second = sessions
        article = models["Article"]
        take_id_early(first, models)
        first.get(article, 1)
        second.get(article, 1).name = "same"
        second.commit()
        loaded = first.get(article, 1, with_for_update=True)
        first.expire(loaded, ["name"])
        loaded.name = "same"
        first.commit()
        assert last_versions(first, article, "name") == [(INSERT, "a"), (UPDATE, "same")]

    def test_the_transaction_row_moves_with_its_values(self, sessions, models, versioning) -> None:
        """Who made the transaction is still known, and there is one row of it."""
        from sqlalchemy_history import transaction_context

        first, second = sessions
        article = models["Article"]
        with transaction_context(remote_addr="10.0.0.1"):
            take_id_early(first, models)
        second.get(article, 1).name = "second"
        second.commit()
        first.get(article, 1, with_for_update=True).name = "first"
        first.commit()
        transaction = versioning.transaction_cls
        addresses = first.scalars(sa.select(transaction.remote_addr).order_by(transaction.id)).all()
        assert addresses == [None, None, "10.0.0.1"]


@on_servers
@pytest.mark.parametrize("engine_options", [{"isolation_level": "READ COMMITTED"}])
def test_the_later_writer_moves_twice(sessions, models) -> None:
    """T1 moves behind T2 and later behind T3.

    (With MariaDB's default isolation T3 would wait for T1, which has locked the end of an index.)
    """
    first, second = sessions
    article, tag = models["Article"], models["Tag"]
    take_id_early(first, models)
    second.get(article, 1).name = "second"
    second.commit()
    first.get(article, 1, with_for_update=True).name = "first"
    first.flush()
    second.get(tag, 2).name = "second"
    second.commit()
    first.get(tag, 2, with_for_update=True).name = "first"
    first.commit()
    assert last_versions(first, article, "name")[1:] == [(UPDATE, "second"), (UPDATE, "first")]
    assert [row[1:] for row in history(first, tag, "id", "name") if row[2] == 2][1:] == [
        (UPDATE, 2, "second"),
        (UPDATE, 2, "first"),
    ]


@pytest.mark.backends("postgresql")
@pytest.mark.parametrize("native", [False, True])
def test_a_way_behind_many_ids_is_short(
    versioning, native, Base, open_session, engine, statements
) -> None:
    """The ids that a sequence with CACHE still has for a connection are drawn by one statement."""

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {"native_versioning": native}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        name = mapped_column(sa.String(20))

    first, second = open_session(), open_session()
    first.execute(sa.text("ALTER SEQUENCE transaction_id_seq CACHE 5000"))
    first.add_all([Article(id=i, name="a") for i in (1, 2)])
    first.commit()
    for session, id_ in ((first, 1), (second, 2)):
        session.get(Article, id_).name = "b"
        session.flush()
    second.commit()
    mine = first.get(Article, 2, with_for_update=True)
    mine.name = "c"
    with statements(engine) as log:
        first.flush()
    assert len(log) < 15
    first.commit()
    assert [row[3] for row in history(engine, Article) if row[2] == 2] == ["a", "b", "c"]


@on_servers
def test_a_high_id_is_drawn_by_few_statements(
    versioning, models, open_session, engine, statements
) -> None:
    """MariaDB ends a recursive query after 1,000 rounds, and the next one goes on."""
    connection = open_session().connection()
    writer, table = versioning.writer(connection), versioning.transaction_cls.__table__
    with statements(engine) as log:
        assert writer._id_above(connection, table, 2500)["id"] > 2500
    assert len(log) <= 3


@on_servers
def test_back_to_what_the_row_was_before_the_other_wrote(sessions, models) -> None:
    """T1 writes what the row was before T2: a change, however T1's snapshot sees it."""
    first, second = sessions
    article = models["Article"]
    take_id_early(first, models)
    second.get(article, 1).name = "second"
    second.commit()
    mine = first.get(article, 1, with_for_update=True)
    mine.name = "first"
    first.flush()
    mine.name = "a"
    first.commit()
    assert last_versions(first, article, "name") == [
        (INSERT, "a"),
        (UPDATE, "second"),
        (UPDATE, "a"),
    ]


@on_servers
def test_inserts_do_not_wait_for_each_other(sessions, models, backend) -> None:
    """Two transactions insert rows next to each other, in turn: neither waits, no deadlock."""
    first, second = sessions
    tag = models["Tag"]
    if backend == "mariadb":
        for session in sessions:
            session.execute(sa.text("SET innodb_lock_wait_timeout = 1"))
    for n in range(10, 20, 2):
        first.add(tag(id=n, name="first"))
        first.flush()
        second.add(tag(id=n + 1, name="second"))
        second.flush()
    first.commit()
    second.commit()
    assert len(history(first, tag)) == 3 + 10


@on_servers
def test_an_update_does_not_wait_for_an_insert_next_to_it(sessions, models, backend) -> None:
    """To end the version of a row locks no version of the row behind it, which is uncommitted."""
    first, second = sessions
    tag = models["Tag"]
    if backend == "mariadb":
        for session in sessions:
            session.execute(sa.text("SET innodb_lock_wait_timeout = 1"))
    first.add(tag(id=4, name="first"))
    first.flush()
    second.get(tag, 3).name = "second"
    second.commit()
    first.commit()
    assert len(history(first, tag)) == 3 + 2


@on_servers
def test_a_transaction_object_in_hand_survives_the_move(sessions, models, versioning) -> None:
    """A Transaction object that the user holds is the row after the move, too."""
    first, second = sessions
    article = models["Article"]
    work = versioning.unit_of_work(first)
    transaction = work.create_transaction(first)
    second.get(article, 1).name = "second"
    second.commit()
    first.get(article, 1, with_for_update=True).name = "first"
    first.flush()
    transaction.remote_addr = "10.0.0.2"
    first.commit()
    last = first.scalars(
        sa.select(versioning.transaction_cls).order_by(versioning.transaction_cls.id.desc())
    ).first()
    assert last.remote_addr == "10.0.0.2"


@pytest.mark.sqlite_file
def test_threads(engine, sessions, models) -> None:
    """Threads, each with its session, at any switch interval: every chain holds."""
    article = models["Article"]
    if engine.dialect.name == "sqlite":

        @sa.event.listens_for(engine, "connect")
        def wait(dbapi_connection: Any, _record: Any) -> None:
            dbapi_connection.execute("PRAGMA busy_timeout = 60000")

        engine.dispose()

    for session in sessions:
        session.close()
    failures: list[BaseException] = []
    threads, rounds = 4, 6
    begin_immediate = threading.Lock()

    def work(number: int) -> None:
        try:
            for step in range(rounds):
                with Session(engine) as session:
                    if engine.dialect.name == "sqlite":
                        begin_immediate.acquire()
                    try:
                        session.add(article(id=10 + number * rounds + step, name=f"{number}"))
                        session.flush()
                        shared = session.get(
                            article, 1, with_for_update=True, populate_existing=True
                        )
                        shared.name = f"{number} {step}"
                        session.commit()
                    finally:
                        if engine.dialect.name == "sqlite":
                            begin_immediate.release()
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        running = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures, failures
    with engine.connect() as connection:
        versions = [row for row in history(connection, article, "id", "name") if row[2] == 1]
        assert len(versions) == 1 + threads * rounds
        for n in range(threads):
            mine = [name for *_, name in versions if name.startswith(f"{n} ")]
            assert mine == [f"{n} {step}" for step in range(rounds)]


def test_first_use_in_many_threads_at_once(versioning, Base, open_session) -> None:
    """Sessions that flush for the first time at once: the statements are built, and right."""

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))

    session = open_session()
    engine = session.get_bind()
    if engine.dialect.name == "sqlite":
        # one connection for all threads: they take turns
        lock: Any = threading.Lock()
    else:
        lock = threading.Semaphore(4)
    barrier = threading.Barrier(4)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            barrier.wait()
            with lock, Session(engine) as mine:
                mine.add(Article(name=f"{number}"))
                mine.commit()
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert sorted(name for *_, name in history(session, Article, "name")) == ["0", "1", "2", "3"]
