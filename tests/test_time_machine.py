"""``time_machine``: the live classes show the past, and nothing can be written."""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Session, joinedload, mapped_column, selectinload

from sqlalchemy_history import (
    ReadOnlyError,
    VersioningError,
    VersioningManager,
    time_machine,
    version_class,
)
from tests.test_relationships import declare, models, names, session, tell

__all__ = ["models", "session"]

pytestmark = pytest.mark.sqlite_file
sqlite_only = pytest.mark.backends("sqlite")


@pytest.fixture
def txs(session: Any, models: SimpleNamespace) -> list[int]:
    """The ids of the three transactions of `tell`; no transaction is left open."""
    found = [v.transaction_id for v in tell(session, models).versions]
    session.rollback()
    return found


def graph(article: Any) -> Any:
    return (
        article.name,
        sorted(names(article.comments, "text")),
        sorted(names(article.tags)),
        article.author and article.author.name,
        article.cover.file,
        names(article.countries),
    )


STATES = [
    ("one", ["first", "second"], ["blue", "red"], "Ada", "a.png", ["France"]),
    ("two", ["changed"], ["blue"], "Eve", "a.png", ["Spain"]),
    ("three", ["changed", "third"], ["navy"], None, "b.png", ["Spain"]),
]


class TestPast:
    def test_live_classes_show_the_past(
        self, engine: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """Objects, and their relations by lazy and eager loads, are what they were."""
        m = models
        for tx, state in zip(txs, STATES, strict=True):
            with time_machine(engine, tx) as past:
                assert graph(past.get(m.Article, 1)) == state
                past.expunge_all()
                eager = sa.select(m.Article).options(
                    selectinload(m.Article.comments),
                    joinedload(m.Article.tags),
                    joinedload(m.Article.author).selectinload(m.Author.articles),
                )
                article = past.scalars(eager).unique().one()
                assert graph(article) == state
                assert article.author is None or article.author.articles == [article]
        with time_machine(engine, txs[0] - 1) as past:
            assert past.scalars(sa.select(m.Article)).all() == []

    def test_joins_core_and_raw_sql_show_the_past(
        self, engine: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """Whatever statement names the live tables sees them as they were."""
        m = models
        with time_machine(engine, txs[0]) as past:
            joined = sa.select(m.Article.name, m.Tag.name).join(m.Article.tags).order_by(m.Tag.name)
            assert past.execute(joined).all() == [("one", "blue"), ("one", "red")]
            twice = sa.select(m.Comment.text).where(
                m.Comment.id == sa.select(sa.func.max(m.Comment.id)).scalar_subquery()
            )
            assert past.scalars(twice).all() == ["second"]
            table = m.Author.__table__
            assert past.execute(sa.select(table.c.name)).all() == [("Ada",)]
            raw = (
                "WITH c AS (SELECT text FROM comment WHERE text <> 'delete from x') SELECT * FROM c"
            )
            assert sorted(past.execute(sa.text(raw)).scalars()) == ["first", "second"]
            # what has no history shows its present rows
            assert len(past.scalars(sa.select(m.Country)).all()) == 2

    def test_every_way_to_say_when(
        self, engine: Any, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """A transaction, a version or an aware datetime say when; a naive one is refused."""
        one = session.get(models.Article, 1).versions[0]
        transaction = one.transaction
        for at in (transaction, one):
            machine = time_machine(engine, at)
            session.rollback()
            with machine as past:
                assert past.get(models.Article, 1).name == "one"
        now = dt.datetime.now(dt.timezone.utc)
        with time_machine(engine, now + dt.timedelta(hours=1)) as past:
            assert past.get(models.Article, 1).name == "three"
        with time_machine(engine, now - dt.timedelta(days=1)) as past:
            assert past.get(models.Article, 1) is None
        with pytest.raises(TypeError, match="naive"):
            time_machine(engine, dt.datetime(2020, 1, 1))

    def test_a_statement_that_was_prepared_before(
        self, engine: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """A connection that ran a statement many times before shows the past with it, and back."""
        statement = sa.select(models.Article.name)
        single = engine.execution_options()
        for _ in range(2):
            with Session(single) as now:
                for _ in range(10):
                    assert now.scalars(statement).one() == "three"
                    now.commit()
            for tx, (name, *_) in zip(txs, STATES, strict=True):
                with time_machine(single, tx) as past:
                    for _ in range(10):
                        assert past.scalars(statement).one() == name

    @sqlite_only
    def test_inheritance_and_excluded_columns(
        self, versioning: Any, Base: Any, engine: Any, open_session: Callable[..., Any]
    ) -> None:
        """Each table of a hierarchy shows the past; an excluded column what it holds now."""

        class Animal(Base):
            __tablename__ = "animal"
            __versioned__ = {"exclude": ["note"]}
            __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}
            id: Mapped[int] = mapped_column(primary_key=True)
            kind: Mapped[str] = mapped_column(sa.String(9))
            title: Mapped[str] = mapped_column("the name", sa.String(9))
            note: Mapped[str | None] = mapped_column(sa.String(9))

        class Dog(Animal):
            __tablename__ = "dog"
            __mapper_args__ = {"polymorphic_identity": "dog"}
            id: Mapped[int] = mapped_column(sa.ForeignKey("animal.id"), primary_key=True)
            tricks: Mapped[int]

        session = open_session()
        dog = Dog(id=1, title="rex", tricks=1, note="old")
        session.add_all([dog, Animal(id=2, title="cat")])
        session.commit()
        tx = dog.versions[0].transaction_id
        dog.title, dog.tricks, dog.note = "max", 2, "new"
        session.commit()
        with time_machine(engine, tx) as past:
            found = past.scalars(sa.select(Animal).order_by(Animal.id)).all()
            assert [(type(a), a.title) for a in found] == [(Dog, "rex"), (Animal, "cat")]
            assert (found[0].tricks, found[0].note) == (1, "new")


class TestReadOnly:
    def test_every_write_is_refused(
        self, engine: Any, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """ORM, bulk, Core and raw SQL writes, to any table, fail with our error and do nothing."""
        m = models
        with time_machine(engine, txs[0]) as past:
            article = past.get(m.Article, 1)
            article.name = "changed"
            with pytest.raises(ReadOnlyError, match=r"Article\(id=1\) .* shows the past"):
                past.flush()
            past.rollback()
            past.add(m.Tag(name="x"))
            with pytest.raises(ReadOnlyError):
                past.commit()
            past.rollback()
            past.delete(past.get(m.Country, 1))
            with pytest.raises(ReadOnlyError):
                past.scalars(sa.select(m.Country)).all()
            past.rollback()
            for write in (
                sa.update(m.Article).values(name="x"),
                sa.delete(m.Comment),
                sa.insert(m.Country.__table__).values(id=9, name="x"),
                sa.text("UPDATE article SET name = 'x'"),
                sa.text("/* SELECT */ DELETE FROM country"),
                sa.text("WITH x AS (SELECT 1) DELETE FROM comment"),
                sa.text("DROP TABLE country"),
                sa.text("COMMIT"),
            ):
                with pytest.raises(ReadOnlyError):
                    past.execute(write)
            # what the eye cannot see the database refuses
            article = past.get(m.Article, 1)
            article.name = article.name
            past.commit()
            assert article.name == "one"
        assert session.get(m.Article, 1).name == "three"
        assert len(session.scalars(sa.select(m.Country)).all()) == 2

    def test_the_connection_goes_back_clean(
        self, engine: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """After the block, also one that fails, the connection shows the present and writes it."""
        m = models
        with engine.connect() as connection:
            for fails in (False, True):
                try:
                    with time_machine(connection, txs[0]) as past:
                        assert past.get(m.Article, 1).name == "one"
                        past.commit()
                        assert past.scalars(sa.select(m.Article.name)).all() == ["one"]
                        if fails:
                            raise ZeroDivisionError
                except ZeroDivisionError:
                    pass
                assert not connection.in_transaction()
                with Session(connection) as now:
                    now.get(m.Article, 1).name = "three"
                    now.get(m.Tag, 2).name = f"navy {fails}"
                    now.commit()
                    assert now.get(m.Tag, 2).name == f"navy {fails}"
                connection.rollback()
        with (
            engine.connect() as connection,
            connection.begin(),
            pytest.raises(VersioningError, match="in no transaction"),
        ):
            time_machine(connection, txs[0]).__enter__()
        with Session(engine) as session, pytest.raises(TypeError, match=r"not a Session; .*bind"):
            time_machine(session, txs[0])

    @pytest.mark.parametrize("engine_options", [{"pool_size": 1, "max_overflow": 0}])
    def test_a_connection_that_is_lost(
        self, engine: Any, models: SimpleNamespace, txs: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If the connection, or the way back, fails, nobody gets it, and the error is the first."""

        def fail(*args: Any) -> None:
            raise ZeroDivisionError

        def lose(past: Session) -> None:
            past.connection().invalidate()
            fail()

        def fail_to_close(past: Session) -> None:
            monkeypatch.setattr(past, "close", fail)

        def fail_to_drop(past: Session) -> None:
            here = sys.modules["sqlalchemy_history.past"]
            monkeypatch.setattr(here._Past, "_drop_views", fail)

        def use(act: Callable[[Session], None]) -> None:
            with time_machine(engine, txs[0]) as past:
                assert past.get(models.Article, 1).name == "one"
                act(past)

        for act in (lose, fail_to_close, fail_to_drop):
            with pytest.raises(ZeroDivisionError):
                use(act)
            with Session(engine) as now:
                article = now.get(models.Article, 1)
                assert article.name in ("three", "lose", "fail_to_close")
                article.name = act.__name__
                now.commit()

    def test_other_connections_see_the_present(
        self, engine: Any, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """While one session is in the past, the others are in the present, and may write."""
        if engine.dialect.name == "sqlite":
            engine = sa.create_engine(engine.url, poolclass=sa.pool.NullPool)
        with time_machine(engine, txs[0]) as past:
            assert past.get(models.Article, 1).name == "one"
            with Session(engine) as now:
                assert now.get(models.Article, 1).name == "three"


class TestRefusals:
    @sqlite_only
    def test_tables_with_a_schema(
        self, versioning: Any, Base: Any, engine: Any, other_schema: str, open_session: Any
    ) -> None:
        """A table that statements name with its schema cannot be shadowed; the error says so."""

        class Thing(Base):
            __tablename__ = "thing"
            __table_args__ = {"schema": other_schema}
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)

        open_session()
        with (
            pytest.raises(VersioningError, match=r"'thing'.*schema 'other'.*as_of"),
            time_machine(engine, 1),
        ):
            pass

    @sqlite_only
    def test_several_managers(self, engine: Any, models: SimpleNamespace, txs: list[int]) -> None:
        """A manager without models has no past; which one is meant can be said."""
        with time_machine(
            engine, txs[0], manager=version_class(models.Article).__version_plan__.manager
        ) as past:
            assert past.get(models.Article, 1).name == "one"
        with pytest.raises(VersioningError, match="no versioned classes"):
            time_machine(engine, 1, manager=VersioningManager())


class TestAsync:
    def test_async_with(
        self, versioning: Any, Base: Any, async_engine: Any, open_async_session: Any, run_async: Any
    ) -> None:
        """With an async engine, `async with` gives an AsyncSession on the past."""
        m = declare(Base)

        async def main() -> None:
            session = await open_async_session()
            await session.run_sync(tell, m)
            cls = version_class(m.Article)
            found = await session.scalars(
                sa.select(cls.transaction_id).order_by(cls.transaction_id)
            )
            txs = found.all()
            await session.rollback()
            statement = sa.select(m.Article).options(
                *map(selectinload, (m.Article.comments, m.Article.tags, m.Article.author)),
                *map(selectinload, (m.Article.cover, m.Article.countries)),
            )
            for _ in range(3):
                assert graph((await session.scalars(statement)).one()) == STATES[2]
                await session.rollback()
                session.expire_all()
                for tx, state in zip(txs, STATES, strict=True):
                    async with time_machine(async_engine, tx) as past:
                        article = (await past.scalars(statement)).one()
                        assert graph(article) == state
                        article.name = "x"
                        with pytest.raises(ReadOnlyError):
                            await past.commit()
            with pytest.raises(VersioningError, match="async with"):
                time_machine(async_engine, txs[0]).__enter__()
            await session.refresh(await session.get(m.Article, 1))

        run_async(main)

    @pytest.mark.parametrize("engine_options", [{"pool_size": 1, "max_overflow": 0}])
    def test_a_task_that_is_cancelled(
        self, versioning: Any, Base: Any, async_engine: Any, open_async_session: Any, run_async: Any
    ) -> None:
        """A cancelled task ends as cancelled, and leaves the pool with a clean connection."""
        m = declare(Base)
        slow = {
            "sqlite": "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c"
            " WHERE x < 1000000) SELECT count(*) FROM c",
            "postgresql": "SELECT pg_sleep(9)",
        }

        async def look(tx: int, under_way: asyncio.Event) -> None:
            async with time_machine(async_engine, tx) as past:
                assert (await past.get(m.Article, 1)).name == "one"
                under_way.set()
                name = async_engine.dialect.name
                await past.execute(sa.text(slow.get(name, "SELECT sleep(9)")))

        async def main() -> None:
            session = await open_async_session()
            article = await session.run_sync(tell, m)
            tx = (await session.scalars(article.versions.select())).first().transaction_id
            await session.close()
            under_way = asyncio.Event()
            task = asyncio.create_task(look(tx, under_way))
            await under_way.wait()
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # aiosqlite goes on with the statement, and keeps the file locked until it is done
            for _ in range(100):
                with suppress(sa.exc.OperationalError):
                    assert (await session.get(m.Article, 1)).name == "three"
                    break
                await session.rollback()

        run_async(main)
