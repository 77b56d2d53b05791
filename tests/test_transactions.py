"""Savepoints, failures, sessions of every kind: one transaction row where something changed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Session, mapped_column, relationship, sessionmaker
from sqlalchemy.pool import StaticPool

from chain import (
    DELETE,
    EACH_ONCE,
    INSERT,
    UPDATE,
    Laws,
    check_histories,
    count_transactions,
    history,
    laws,
)

__all__ = ["laws"]

pytestmark = EACH_ONCE

sqlite_only = pytest.mark.backends("sqlite")


@pytest.fixture
def Article(versioning: Any, Base: Any) -> Any:  # noqa: N802
    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20), unique=True)
        rank = mapped_column(sa.Integer)

    return Article


@pytest.fixture
def Note(versioning: Any, Base: Any) -> Any:  # noqa: N802
    """An unversioned class."""

    class Note(Base):
        __tablename__ = "note"
        id = mapped_column(sa.Integer, primary_key=True)
        text = mapped_column(sa.String(20))

    return Note


# -- savepoints


def test_first_touched_in_a_savepoint_that_is_rolled_back(Article, open_session) -> None:
    """A rolled-back savepoint that was the first to touch anything leaves no transaction row."""
    session = open_session()
    savepoint = session.begin_nested()
    session.add(Article(name="a"))
    session.flush()
    savepoint.rollback()
    session.commit()
    assert count_transactions(session, Article) == 0


def test_touched_before_and_inside_a_rolled_back_savepoint(Article, open_session) -> None:
    """What was recorded before the savepoint stays as it was."""
    session = open_session()
    article = Article(name="a")
    session.add(article)
    session.flush()
    savepoint = session.begin_nested()
    article.name = "b"
    session.add(Article(name="c"))
    session.flush()
    savepoint.rollback()
    session.commit()
    assert history(session, Article, "name") == [(1, INSERT, "a")]


def test_changed_again_after_a_rolled_back_savepoint(Article, open_session) -> None:
    """After the rollback the transaction goes on, with an id that exists."""
    session = open_session()
    article = Article(name="a")
    session.add(article)
    session.commit()
    savepoint = session.begin_nested()
    article.name = "b"
    session.flush()
    savepoint.rollback()
    article.name = "c"
    session.add(Article(name="d"))
    session.commit()
    assert history(session, Article, "name") == [
        (1, INSERT, "a"),
        (2, UPDATE, "c"),
        (2, INSERT, "d"),
    ]


def test_released_savepoints_keep_theirs(Article, open_session) -> None:
    """What a released savepoint recorded belongs to the transaction: one row for all of it."""
    session = open_session()
    with session.begin_nested():
        article = Article(name="a")
        session.add(article)
    with session.begin_nested():
        article.name = "b"
        session.add(Article(name="c"))
    session.commit()
    assert history(session, Article, "name") == [(1, INSERT, "b"), (1, INSERT, "c")]


def test_deep_savepoints(Article, open_session) -> None:
    """Savepoints in savepoints, released and rolled back in turn, ten deep."""
    session = open_session()
    kept: list[str] = []

    def nest(depth: int, lives: bool) -> None:
        if depth == 10:
            return
        savepoint = session.begin_nested()
        mine_lives = lives and depth not in (4, 8)
        session.add(Article(name=f"before {depth}"))
        session.flush()
        nest(depth + 1, mine_lives)
        session.add(Article(name=f"after {depth}"))
        session.flush()
        if mine_lives or depth not in (4, 8):
            savepoint.commit()
        else:
            savepoint.rollback()
        if mine_lives:
            kept.extend([f"before {depth}", f"after {depth}"])

    nest(0, True)
    session.add(Article(name="last"))
    session.commit()
    assert sorted(history(session, Article, "name")) == sorted(
        (1, INSERT, name) for name in [*kept, "last"]
    )


def test_an_exception_inside_a_savepoint(Article, open_session) -> None:
    """A savepoint that an exception ends leaves nothing; the transaction goes on."""
    session = open_session()
    session.add(Article(name="a"))
    session.flush()
    with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
        session.add_all([Article(name="b"), Article(name="a")])
    session.add(Article(name="c"))
    session.commit()
    assert history(session, Article, "name") == [(1, INSERT, "a"), (1, INSERT, "c")]


def test_an_exception_in_the_first_savepoint(Article, open_session) -> None:
    """The same when the savepoint was the first to touch anything."""
    session = open_session()
    with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
        session.add_all([Article(name="b"), Article(name="b")])
    with pytest.raises(ZeroDivisionError), session.begin_nested():  # noqa: PT012
        session.add(Article(name="b"))
        session.flush()
        raise ZeroDivisionError
    session.add(Article(name="c"))
    session.commit()
    assert history(session, Article, "name") == [(1, INSERT, "c")]


def test_a_closed_session_in_a_savepoint(Article, open_session) -> None:
    """Closing a session inside a savepoint forgets all, and the session can be used again."""
    session = open_session()
    session.begin_nested()
    session.add(Article(name="a"))
    session.flush()
    session.close()
    session.add(Article(name="b"))
    session.commit()
    assert history(session, Article, "name") == [(1, INSERT, "b")]


def test_deleted_in_a_savepoint_that_is_rolled_back(Article, open_session) -> None:
    """A row deleted inside the savepoint is there again, and so is its open version."""
    session = open_session()
    article = Article(name="a")
    session.add(article)
    session.commit()
    article.rank = 1
    session.flush()
    savepoint = session.begin_nested()
    session.delete(article)
    session.flush()
    savepoint.rollback()
    article.rank = 2
    session.commit()
    assert history(session, Article, "rank") == [(1, INSERT, None), (2, UPDATE, 2)]


# -- failures


def test_a_failed_flush_and_a_retry(Article, open_session) -> None:
    """A flush that fails records nothing; after the rollback the session records as before."""
    session = open_session()
    session.add(Article(name="a"))
    session.commit()
    session.add_all([Article(name="b"), Article(name="a")])
    with pytest.raises(sa.exc.IntegrityError):
        session.commit()
    session.rollback()
    session.add(Article(name="b"))
    session.commit()
    assert history(session, Article, "name") == [(1, INSERT, "a"), (2, INSERT, "b")]


def test_a_failed_flush_after_a_good_one(Article, open_session) -> None:
    """All of the transaction is gone, also what an earlier flush had recorded."""
    session = open_session()
    article = Article(name="a")
    session.add(article)
    session.commit()
    article.name = "b"
    session.flush()
    session.add(Article(name="b"))
    with pytest.raises(sa.exc.IntegrityError):
        session.flush()
    session.rollback()
    assert article.name == "a"
    article.name = "c"
    session.commit()
    assert history(session, Article, "name") == [(1, INSERT, "a"), (2, UPDATE, "c")]


def test_an_exception_of_another_listener(Article, open_session) -> None:
    """A listener of the user that fails after the flush takes the history with it."""
    session = open_session()

    def fail(session: Session, flush_context: Any) -> None:
        raise ZeroDivisionError

    event.listen(session, "after_flush", fail)
    session.add(Article(name="a"))
    with pytest.raises(ZeroDivisionError):
        session.commit()
    session.rollback()
    event.remove(session, "after_flush", fail)
    session.add(Article(name="b"))
    session.commit()
    assert history(session, Article, "name") == [(1, INSERT, "b")]


@pytest.mark.orm_capture(reason="triggers are dropped with the version table")
def test_a_history_that_cannot_be_written(Article, open_session, engine) -> None:
    """Never data without history: the user's transaction fails."""
    from sqlalchemy_history import version_table

    session = open_session()
    version_table(Article.__table__).drop(engine)
    session.add(Article(name="a"))
    with pytest.raises(sa.exc.DBAPIError):
        session.commit()
    session.rollback()
    assert session.scalar(sa.select(sa.func.count()).select_from(Article)) == 0
    session.rollback()
    version_table(Article.__table__).create(engine)


# -- what is not versioned


def test_an_unversioned_flush_is_not_touched(
    Article, Note, open_session, engine, statements
) -> None:
    """A transaction of unversioned objects gets no statement of ours and no transaction row."""
    session = open_session()
    with statements(engine) as log:
        note = Note(text="a")
        session.add(note)
        session.commit()
        note.text = "b"
        session.commit()
        session.delete(note)
        session.commit()
    assert not log.containing("transaction")
    assert not log.containing("_version")
    assert count_transactions(session, Article) == 0


@sqlite_only
@pytest.mark.orm_capture(reason="triggers record what no session does, too")
def test_a_session_of_another_class(versioning, Base, engine) -> None:
    """`make_versioned(session=)` watches that session only."""
    import sqlalchemy_history

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class Watched(Session):
        pass

    sqlalchemy_history.make_versioned(session=Watched, user_cls=None)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        other = Article()
        session.add(other)
        session.commit()
        session.delete(other)
        session.commit()
    with Watched(engine) as session:
        session.add(Article())
        session.commit()
        assert len(history(session, Article)) == 1
        assert count_transactions(session, Article) == 1


# -- state


def test_nothing_is_left_in_the_session(Article, open_session, versioning) -> None:
    """After commit, rollback or close, a session holds nothing of ours."""
    session = open_session()
    before = dict(session.info)

    def change() -> None:
        session.add(Article())
        session.flush()

    for end in (session.commit, session.rollback, session.close):
        change()
        end()
        assert dict(session.info) == before
        with session.begin_nested():
            change()
        end()
        assert dict(session.info) == before


@sqlite_only
def test_objects_are_not_kept_alive(Article, open_session) -> None:
    """Inserted, updated and expunged or forgotten objects can be collected before the commit."""
    session = open_session()
    article = Article(name="a")
    session.add(article)
    session.commit()
    article.name = "b"
    new = Article(name="c")
    session.add(new)
    session.flush()
    references = [weakref.ref(article), weakref.ref(new)]
    del article, new
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    session.commit()
    assert history(session, Article, "name") == [
        (1, INSERT, "a"),
        (2, UPDATE, "b"),
        (2, INSERT, "c"),
    ]


@sqlite_only
def test_deleted_objects_are_not_kept_alive_longer_than_by_the_session(
    Article, open_session
) -> None:
    """The session itself keeps deleted objects until the commit; nobody does after it."""
    session = open_session()
    article = Article(name="a")
    session.add(article)
    session.commit()
    session.delete(article)
    session.flush()
    session.commit()
    reference = weakref.ref(article)
    del article
    gc.collect()
    assert reference() is None


@sqlite_only
def test_sessions_and_engines_are_not_kept_alive(versioning, Base, backend) -> None:
    """A session and an engine that are dropped are gone, whatever they recorded."""
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("other_id", sa.ForeignKey("article.id"), primary_key=True),
    )

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        others = relationship(
            "Article",
            secondary=links,
            primaryjoin=lambda: Article.id == links.c.article_id,
            secondaryjoin=lambda: Article.id == links.c.other_id,
        )

    engine = sa.create_engine("sqlite://", poolclass=StaticPool)
    Base.metadata.create_all(engine)
    session = Session(engine)
    session.add(Article(others=[Article()]))
    session.commit()
    session.close()
    references = [weakref.ref(session), weakref.ref(engine)]
    engine.dispose()
    del session, engine
    gc.collect()
    assert [reference() for reference in references] == [None, None]


# -- sessions of every kind


def test_join_transaction_mode_create_savepoint(Article, open_session, engine) -> None:
    """A test suite's outer transaction: commits inside are savepoints, and transactions of ours."""
    open_session().close()
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            article = Article(name="a")
            session.add(article)
            session.commit()
            article.name = "b"
            session.commit()
            article.name = "c"
            session.flush()
            session.rollback()
            with session.begin_nested():
                article.name = "d"
            session.commit()
            assert history(session, Article, "name") == [
                (1, INSERT, "a"),
                (2, UPDATE, "b"),
                (3, UPDATE, "d"),
            ]
        outer.rollback()
    assert history(engine, Article, "name") == []
    assert count_transactions(engine, Article) == 0


@pytest.mark.parametrize("mode", ["conditional_savepoint", "rollback_only", "control_fully"])
def test_sessions_on_a_connection(Article, open_session, engine, mode) -> None:
    """A session bound to a connection records in the connection's transaction."""
    open_session().close()
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode=mode) as session:
            article = Article(name="a")
            session.add(article)
            session.commit()
        if outer.is_active:
            outer.commit()
    assert history(engine, Article, "name") == [(1, INSERT, "a")]


@pytest.mark.parametrize("engine_options", [{"isolation_level": "AUTOCOMMIT"}])
@pytest.mark.orm_capture(reason="each statement that is committed by itself is a transaction")
def test_autocommit(Article, open_session) -> None:
    """On an AUTOCOMMIT engine, versions are written as in a transaction."""
    session = open_session()
    article = Article(name="a")
    session.add(article)
    session.commit()
    article.name = "b"
    session.flush()
    article.name = "c"
    session.commit()
    session.delete(article)
    session.commit()
    assert history(session, Article, "name") == [
        (1, INSERT, "a"),
        (2, UPDATE, "c"),
        (3, DELETE, "c"),
    ]


def test_a_session_whose_connection_is_autocommit(Article, open_session, engine) -> None:
    """The same where the execution options of one transaction ask for it."""
    open_session().close()
    with Session(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        session.add(Article(name="a"))
        session.commit()
        assert history(session, Article, "name") == [(1, INSERT, "a")]


@pytest.mark.backends("postgresql", "mariadb")
def test_two_phase(Article, open_session, engine, backend) -> None:
    """A two-phase session records like any other."""
    if backend == "postgresql":
        with engine.connect() as connection:
            if connection.scalar(sa.text("SHOW max_prepared_transactions")) == "0":
                pytest.skip("max_prepared_transactions is 0 on this PostgreSQL server")
    session = open_session(twophase=True)
    article = Article(name="a")
    session.add(article)
    session.commit()
    article.name = "b"
    session.flush()
    session.prepare()
    session.commit()
    article.name = "c"
    session.flush()
    session.rollback()
    assert history(session, Article, "name") == [(1, INSERT, "a"), (2, UPDATE, "b")]
    session.commit()


def test_merge(Article, open_session) -> None:
    """`session.merge` of a detached, of a new and of an unchanged object."""
    session = open_session()
    session.merge(Article(id=1, name="a"))
    session.commit()
    session.merge(Article(id=1, name="b"))
    session.commit()
    session.merge(Article(id=1, name="b"))
    session.commit()
    session.merge(Article(id=1, name="b"), load=True)
    session.commit()
    assert history(session, Article, "name") == [(1, INSERT, "a"), (2, UPDATE, "b")]


def test_no_expiry_and_no_autoflush(Article, open_session) -> None:
    """`expire_on_commit=False` and `autoflush=False` record the same."""
    session = open_session(expire_on_commit=False, autoflush=False)
    article = Article(name="a")
    session.add(article)
    session.commit()
    article.name = "b"
    session.commit()
    article.name = "c"
    article.name = "b"
    session.commit()
    session.delete(article)
    session.commit()
    assert history(session, Article, "name") == [
        (1, INSERT, "a"),
        (2, UPDATE, "b"),
        (3, DELETE, "b"),
    ]


def test_objects_moved_between_sessions(Article, open_session) -> None:
    """An object that one session changed and another one flushed is recorded by the latter."""
    first, second = open_session(), open_session()
    article = Article(name="a")
    first.add(article)
    first.commit()
    article.name = "b"
    first.expunge(article)
    first.rollback()
    second.add(article)
    second.commit()
    assert history(second, Article, "name") == [(1, INSERT, "a"), (2, UPDATE, "b")]


@pytest.mark.orm_capture(
    reason="a trigger of SQLite writes in one database file only", backends=("sqlite",)
)
def test_schema_translate_map(versioning, Base, engine, other_schema) -> None:
    """Tables of a schema that is translated have their versions, and transactions, there too."""

    class Article(Base):
        __tablename__ = "article"
        __table_args__ = {"schema": "tenant"}
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))

    Base.registry.configure()
    translated = engine.execution_options(schema_translate_map={"tenant": other_schema})
    Base.metadata.create_all(translated)
    with Session(translated) as session:
        article = Article(name="a")
        session.add(article)
        session.commit()
        article.name = "b"
        session.flush()
        article.name = "c"
        session.commit()
        session.delete(article)
        session.add(Article(name="d"))
        session.commit()
        rows = history(session, Article, "name")
    Base.metadata.drop_all(translated)
    assert rows == [
        (1, INSERT, "a"),
        (2, UPDATE, "c"),
        (3, DELETE, "c"),
        (3, INSERT, "d"),
    ]


@pytest.mark.orm_capture(
    reason="a trigger of SQLite writes in one database file only", backends=("sqlite",)
)
def test_tables_of_another_schema(versioning, Base, engine, other_schema) -> None:
    """A table with a schema has its version table in that schema."""

    class Article(Base):
        __tablename__ = "article"
        __table_args__ = {"schema": other_schema}
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))

    Base.metadata.create_all(engine)
    with Session(engine) as session:
        article = Article(name="a")
        session.add(article)
        session.commit()
        article.name = sa.func.upper("b")
        session.commit()
        session.delete(article)
        session.commit()
        rows = history(session, Article, "name")
    Base.metadata.drop_all(engine)
    assert rows == [(1, INSERT, "a"), (2, UPDATE, "B"), (3, DELETE, "B")]


# -- several databases


@pytest.fixture
def databases_of_two(engine: Any) -> Any:
    second = sa.create_engine("sqlite://", poolclass=StaticPool)
    yield engine, second
    second.dispose()


@pytest.fixture
def two_classes(versioning: Any, Base: Any) -> Any:
    class One(Base):
        __tablename__ = "one"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))

    class Two(Base):
        __tablename__ = "two"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))

    class Plain(Base):
        __tablename__ = "plain"
        id = mapped_column(sa.Integer, primary_key=True)

    return One, Two, Plain


@sqlite_only
def test_a_session_with_binds_per_class_only(two_classes, Base, databases_of_two) -> None:
    """Each database gets its own transaction row and versions; the session has no bind."""
    one_cls, two_cls, plain = two_classes
    first, second = databases_of_two
    for engine in databases_of_two:
        Base.metadata.create_all(engine)
    # one transaction of the second database more, so that the ids differ
    with Session(second) as session:
        session.add(two_cls(name="early"))
        session.commit()
    with Session(binds={one_cls: first, two_cls: second, plain: second}) as session:
        one, two = one_cls(name="a"), two_cls(name="b")
        session.add_all([one, two])
        session.commit()
        one.name = "c"
        session.commit()
        two.name = "d"
        session.add(plain())
        session.flush()
        with session.begin_nested():
            two.name = "e"
            session.add(one_cls(name="f"))
        savepoint = session.begin_nested()
        one.name = "undone"
        session.delete(two)
        session.flush()
        savepoint.rollback()
        session.commit()
        session.delete(one)
        session.delete(two)
        session.commit()
    assert history(first, one_cls, "name") == [
        (1, INSERT, "a"),
        (2, UPDATE, "c"),
        (3, INSERT, "f"),
        (4, DELETE, "c"),
    ]
    assert history(second, two_cls, "name") == [
        (1, INSERT, "early"),
        (2, INSERT, "b"),
        (3, UPDATE, "e"),
        (4, DELETE, "e"),
    ]
    for engine in databases_of_two:
        with engine.connect() as connection:
            check_histories(connection, Base.metadata, Laws())


@sqlite_only
def test_binds_by_table(two_classes, Base, databases_of_two) -> None:
    """A session may be told by table where things are."""
    one_cls, two_cls, _ = two_classes
    first, second = databases_of_two
    for engine in databases_of_two:
        Base.metadata.create_all(engine)
    with Session(binds={one_cls.__table__: first, two_cls.__table__: second}) as session:
        session.add_all([one_cls(name="a"), two_cls(name="b")])
        session.commit()
    assert history(first, one_cls, "name") == [(1, INSERT, "a")]
    assert history(second, two_cls, "name") == [(1, INSERT, "b")]


@sqlite_only
def test_an_unversioned_flush_in_one_database_does_not_touch_the_other(
    two_classes, Base, databases_of_two, statements
) -> None:
    """A database in which nothing versioned changed sees no statement of ours."""
    one_cls, _, plain = two_classes
    first, second = databases_of_two
    for engine in databases_of_two:
        Base.metadata.create_all(engine)
    with statements(second) as log, Session(binds={one_cls: first, plain: second}) as session:
        session.add_all([one_cls(name="a"), plain()])
        session.commit()
    assert len(log) == 1
    assert count_transactions(second, one_cls) == 0


@sqlite_only
def test_horizontal_sharding(two_classes, Base, databases_of_two) -> None:
    """Rows of one class in two databases: each has the history of its own rows."""
    one_cls, _, _ = two_classes
    first, second = databases_of_two
    for engine in databases_of_two:
        Base.metadata.create_all(engine)

    def shard_of(mapper: Any, instance: Any, clause: Any = None) -> str:
        return "odd" if instance.id % 2 else "even"

    session = ShardedSession(
        shards={"odd": first, "even": second},
        shard_chooser=shard_of,
        identity_chooser=lambda mapper, key, **kw: ["odd" if key[0] % 2 else "even"],
        execute_chooser=lambda context: ["odd", "even"],
    )
    objects = [one_cls(id=n, name="a") for n in range(1, 5)]
    session.add_all(objects)
    session.commit()
    objects[0].name = "b"
    objects[1].name = "c"
    session.commit()
    session.delete(objects[2])
    objects[3].name = sa.func.upper("d")
    session.commit()
    session.close()
    assert history(first, one_cls, "id", "name") == [
        (1, INSERT, 1, "a"),
        (1, INSERT, 3, "a"),
        (2, UPDATE, 1, "b"),
        (3, DELETE, 3, "a"),
    ]
    assert history(second, one_cls, "id", "name") == [
        (1, INSERT, 2, "a"),
        (1, INSERT, 4, "a"),
        (2, UPDATE, 2, "c"),
        (3, UPDATE, 4, "D"),
    ]


# -- listeners of the user


@pytest.mark.parametrize("where", ["class", "maker", "session"])
def test_before_flush_of_others(Article, open_session, engine, where, request) -> None:
    """What a `before_flush` listener changes and adds, wherever it is attached, is recorded."""

    def change(session: Session, flush_context: Any, instances: Any) -> None:
        for obj in [*session.new, *session.dirty]:
            obj.rank = (obj.rank or 0) + 1
            if obj.name == "a":
                session.add(Article(name="extra"))
                obj.name = "b"

    class Own(Session):
        pass

    open_session().close()
    maker = sessionmaker(engine, class_=Own)
    session = maker()
    target: Any = {"class": Own, "maker": maker, "session": session}[where]
    event.listen(target, "before_flush", change)
    request.addfinalizer(lambda: event.remove(target, "before_flush", change))
    article = Article(name="a")
    session.add(article)
    session.commit()
    article.name = "c"
    session.commit()
    session.close()
    assert sorted(history(engine, Article, "name", "rank")) == [
        (1, INSERT, "b", 1),
        (1, INSERT, "extra", None),
        (2, UPDATE, "c", 2),
    ]


def test_mapper_events_of_others(Article, open_session) -> None:
    """Values that `before_insert` and `before_update` set are recorded."""

    def change(mapper: Any, connection: Any, target: Any) -> None:
        target.rank = (target.rank or 0) + 10

    event.listen(Article, "before_insert", change)
    event.listen(Article, "before_update", change)
    session = open_session()
    article = Article(name="a")
    session.add(article)
    session.commit()
    article.name = "b"
    session.commit()
    assert history(session, Article, "name", "rank") == [(1, INSERT, "a", 10), (2, UPDATE, "b", 20)]


def test_changes_after_the_flush_by_others(Article, open_session) -> None:
    """What `after_flush_postexec` changes belongs to the next flush of the commit."""

    def change(session: Session, flush_context: Any) -> None:
        for obj in session.identity_map.values():
            if obj.rank is None:
                obj.rank = 1
                session.add(Article(name="extra", rank=2))

    session = open_session()
    event.listen(session, "after_flush_postexec", change)
    article = Article(name="a", rank=None)
    session.add(article)
    session.commit()
    assert history(session, Article, "name", "rank") == [
        (1, INSERT, "a", 1),
        (1, INSERT, "extra", 2),
    ]


def test_core_statements_in_listeners_of_others(Article, open_session) -> None:
    """An UPDATE that a mapper listener runs inside the flush: its effect is in the version."""

    def rank(mapper: Any, connection: Any, target: Any) -> None:
        table = Article.__table__
        connection.execute(sa.update(table).where(table.c.id == target.id).values(rank=99))

    event.listen(Article, "after_insert", rank)
    event.listen(Article, "after_update", rank)
    session = open_session()
    article = Article(name="a", rank=1)
    session.add(article)
    session.commit()
    article.name, article.rank = "b", 2
    session.commit()
    assert history(session, Article, "name", "rank") == [(1, INSERT, "a", 99), (2, UPDATE, "b", 99)]
