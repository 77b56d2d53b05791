"""Core statements on versioned tables and association tables; connections without a session."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import mapped_column, relationship

from chain import DELETE, INSERT, UPDATE, count_transactions, history, laws
from sqlalchemy_history import make_versioned, transaction_context

__all__ = ["laws"]


@pytest.fixture
def models(versioning: Any, Base: Any) -> Any:
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
        sa.Column("rank", sa.Integer),
    )

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        n = mapped_column(sa.Integer)
        tags = relationship(Tag, secondary=links)

    return Article.__table__, Tag.__table__, links, Article, Tag


@pytest.fixture
def session(models: Any, open_session: Any) -> Any:
    """Articles and tags 1, 2, 3; article 1 is linked with tags 1 and 2."""
    *_, article, tag = models
    session = open_session()
    tags = [tag(id=n) for n in (1, 2, 3)]
    session.add_all(tags)
    session.add_all([article(id=n, n=n, tags=tags[: 2 * (n == 1)]) for n in (1, 2, 3)])
    session.commit()
    return session


@pytest.fixture(params=["session", "connection"])
def execute(request: pytest.FixtureRequest, session: Any) -> Any:
    """`session.execute`, or that of its connection."""
    if request.param == "session":
        return session.execute
    return lambda *args: session.connection().execute(*args)


def since(session: Any, table: Any) -> list[Any]:
    session.commit()
    return [row for row in history(session, table) if row[0] > 1]


def test_statements_on_a_table(session, models, execute) -> None:
    """UPDATE, DELETE, INSERT and INSERT ... SELECT of the table of a class."""
    table = models[0]
    assert execute(sa.update(table).where(table.c.n > 1).values(n=table.c.n * 10)).rowcount == 2
    assert execute(sa.delete(table).where(table.c.n == 30)).rowcount == 1
    execute(sa.insert(table).values(id=8, n=8))
    execute(sa.insert(table).from_select(["id", "n"], sa.select(table.c.id + 20, table.c.n)))
    assert since(session, table) == [
        (2, UPDATE, 2, 20),
        (2, DELETE, 3, 30),
        (2, INSERT, 8, 8),
        (2, INSERT, 21, 1),
        (2, INSERT, 22, 20),
        (2, INSERT, 28, 8),
    ]


def test_lists_of_rows(session, models, execute) -> None:
    """Lists of parameters, for statements by key and for others."""
    table = models[0]
    execute(sa.insert(table), [{"id": 11, "n": 0}, {"id": 12, "n": 0}, {"id": 13, "n": 0}])
    execute(
        sa.update(table).where(table.c.id == sa.bindparam("key")).values(n=sa.bindparam("new")),
        [{"key": 11, "new": 5}, {"key": 1, "new": 5}, {"key": 2, "new": 2}],
    )
    execute(
        sa.update(table).where(table.c.n == sa.bindparam("old")).values(n=sa.bindparam("new")),
        [{"old": 5, "new": 6}, {"old": 6, "new": 7}, {"old": 100, "new": 1}],
    )
    execute(sa.delete(table).where(table.c.id == sa.bindparam("key")), [{"key": 12}, {"key": 3}])
    execute(sa.delete(table).where(table.c.n == sa.bindparam("n")), [{"n": 2}, {"n": 0}])
    assert since(session, table) == [
        (2, UPDATE, 1, 7),
        (2, DELETE, 2, 2),
        (2, DELETE, 3, 3),
        (2, INSERT, 11, 7),
    ]


def test_parameters_named_like_columns(session, models, execute) -> None:
    """A parameter may have the name of a column."""
    table = models[0]
    execute(sa.delete(table).where(table.c.id == sa.bindparam("n")), {"n": 2})
    execute(sa.delete(table).where(table.c.n > sa.bindparam("id")), {"id": 2})
    execute(sa.update(table).where(table.c.id < sa.bindparam("id_")), {"id_": 2, "n": 33})
    assert since(session, table) == [(2, UPDATE, 1, 33), (2, DELETE, 2, 2), (2, DELETE, 3, 3)]


def test_aliases(session, models, execute) -> None:
    """Aliases of the table in a WHERE."""
    table = models[0]
    other = table.alias()
    most = sa.select(sa.func.max(other.c.n).label("n"))
    # MySQL does not read from the table that it deletes from, but from a table derived from it
    derived = sa.select(most.subquery().c.n).scalar_subquery()
    execute(sa.delete(table).where(table.c.n == derived))
    assert since(session, table) == [(2, DELETE, 3, 3)]


def test_association_rows(session, models, execute) -> None:
    """Any statement on an association table, with any WHERE."""
    links = models[2]
    assert execute(sa.delete(links).where(links.c.tag_id > 1)).rowcount == 1
    execute(sa.insert(links), [{"article_id": 2, "tag_id": n} for n in (1, 2)])
    execute(
        sa.insert(links).from_select(
            ["article_id", "tag_id"],
            sa.select(sa.literal(3), links.c.tag_id).where(links.c.article_id == 2),
        )
    )
    execute(sa.update(links).where(links.c.article_id == 1).values(rank=5))
    execute(
        sa.update(links)
        .where(links.c.article_id == 3)
        .values(article_id=1, tag_id=links.c.tag_id + 1)
    )
    assert since(session, links) == [
        (2, UPDATE, 1, 1, 5),
        (2, INSERT, 1, 3, None),
        (2, INSERT, 2, 1, None),
        (2, INSERT, 2, 2, None),
    ]


def test_association_rows_and_collections(session, models, execute) -> None:
    """A statement, then the collection, in one transaction."""
    *_, links, article, tag = models
    one, three = session.get(article, 1), session.get(tag, 3)
    execute(sa.delete(links))
    session.expire_all()
    one.tags.append(three)
    session.flush()
    execute(sa.update(links).values(rank=links.c.tag_id))
    assert since(session, links) == [
        (2, DELETE, 1, 1, None),
        (2, DELETE, 1, 2, None),
        (2, INSERT, 1, 3, 3),
    ]


class TestWatch:
    """`versioning_manager.watch(engine)`: connections without a session."""

    @pytest.fixture
    def engine_(self, session: Any, models: Any, versioning: Any, engine: Any) -> Any:
        session.close()
        versioning.watch(engine)
        return engine

    def test_records(self, engine_, models) -> None:
        """Statements of a connection are recorded in its transaction, with its context."""
        table, _, links, *_ = models
        with transaction_context(remote_addr="10.0.0.1"), engine_.begin() as connection:
            connection.execute(sa.update(table).where(table.c.n > 2).values(n=9))
            connection.execute(sa.insert(table), [{"id": 4, "n": 4}])
            connection.execute(sa.delete(links))
        with engine_.connect() as connection:
            connection.execute(sa.delete(table).where(table.c.id == 4))
            connection.commit()
            connection.execute(sa.delete(table).where(table.c.id == 3))
        found = [row for row in history(engine_, table) if row[0] > 1]
        assert found == [(2, UPDATE, 3, 9), (2, INSERT, 4, 4), (3, DELETE, 4, 4)]
        assert [row[:3] for row in history(engine_, links)[2:]] == [(2, DELETE, 1), (2, DELETE, 1)]
        assert count_transactions(engine_, table) == 3

    def test_a_second_call_of_make_versioned(self, engine_, models, versioning) -> None:
        """It changes settings, and what was watched still is."""
        table = models[0]
        make_versioned(manager=versioning, user_cls=None)
        with engine_.begin() as connection:
            connection.execute(sa.update(table).where(table.c.n == 1).values(n=9))
        assert [row for row in history(engine_, table) if row[0] > 1] == [(2, UPDATE, 1, 9)]

    def test_savepoints(self, engine_, models) -> None:
        """A savepoint that is rolled back takes what it recorded along."""
        table = models[0]
        with engine_.begin() as connection:
            with connection.begin_nested() as savepoint:
                connection.execute(sa.update(table).where(table.c.n == 1).values(n=10))
                savepoint.rollback()
            with connection.begin_nested():
                connection.execute(sa.update(table).where(table.c.n == 2).values(n=20))
            connection.execute(sa.update(table).values(n=table.c.n + 1))
        assert [row for row in history(engine_, table) if row[0] > 1] == [
            (2, UPDATE, 1, 2),
            (2, UPDATE, 2, 21),
            (2, UPDATE, 3, 4),
        ]

    def test_sessions_on_the_engine(self, engine_, models, open_session) -> None:
        """A session on a watched engine is recorded as ever, once."""
        table, *_, article, _ = models
        session = open_session()
        session.get(article, 1).n = 5
        session.execute(sa.update(table).where(table.c.n == 2).values(n=6))
        assert since(session, table) == [(2, UPDATE, 1, 5), (2, UPDATE, 2, 6)]

    @pytest.mark.orm_capture(reason="triggers record what nobody watches, too")
    def test_stops_with_the_manager(self, engine_, models, versioning, laws) -> None:
        """Nothing is recorded any more after `stop()`; others than the watched are not touched."""
        laws.whole = False
        versioning.stop()
        with engine_.begin() as connection:
            connection.execute(sa.insert(models[0]).values(id=7))
            connection.execute(sa.delete(models[0]).where(models[0].c.id == 7))
        assert count_transactions(engine_, models[0]) == 1


@pytest.mark.backends("sqlite")
def test_connections_that_nobody_watches(session, models, engine) -> None:
    """A connection of its own is left alone, unless its engine is watched."""
    session.close()
    table = models[0]
    with engine.begin() as connection:
        connection.execute(sa.update(table).values(n=table.c.n))
    assert count_transactions(engine, table) == 1
