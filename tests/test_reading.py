"""Reading the history of one object: ``.versions``, and stepping from version to version."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from sqlalchemy_history import (
    Operation,
    VersioningError,
    blame,
    count_versions,
    revert_transaction,
    timeline,
    transaction_at,
    transaction_class,
    verify,
    version_class,
    version_obj,
    versions_between,
)


def declare(base: Any) -> SimpleNamespace:
    class Article(base):
        __tablename__ = "article"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))
        size: Mapped[int | None]

    class Place(base):
        __tablename__ = "place"
        __versioned__: dict[str, Any] = {}
        b: Mapped[int] = mapped_column(primary_key=True)
        a: Mapped[str] = mapped_column(sa.String(5), primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50))

    return SimpleNamespace(Article=Article, Place=Place)


@pytest.fixture
def models(versioning: Any, Base: Any) -> SimpleNamespace:
    return declare(Base)


@pytest.fixture
def session(models: SimpleNamespace, open_session: Callable[..., Any]) -> Any:
    return open_session()


def make(session: Any, models: SimpleNamespace, *names: str, **kw: Any) -> Any:
    """An article that had these names, one transaction each."""
    article = models.Article(name=names[0], **kw)
    session.add(article)
    session.commit()
    for name in names[1:]:
        article.name = name
        session.commit()
    return article


def make_many(session: Any, models: SimpleNamespace, count: int) -> Any:
    """An article with ``count`` versions, made by copying: only their number matters."""
    article = make(session, models, "v1", "v2")
    cls = version_class(models.Article)
    second = article.versions[1]
    tx = second.transaction_id
    columns = {c.key for c in cls.__table__.c}
    rows = []
    for i in range(1, count - 1):
        row = {"id": article.id, "name": f"v{i + 2}", "transaction_id": tx + i, "operation_type": 1}
        if "end_transaction_id" in columns:
            row["end_transaction_id"] = tx + i + 1 if i < count - 2 else None
        rows.append(row)
    if "end_transaction_id" in columns:
        session.execute(
            sa.update(cls.__table__)
            .where(cls.__table__.c.transaction_id == tx)
            .values(end_transaction_id=tx + 1)
        )
    session.execute(sa.insert(cls.__table__), rows)
    session.execute(
        sa.insert(transaction_class(models.Article).__table__),
        [{"id": row["transaction_id"], "issued_at": dt.datetime(2030, 1, 1)} for row in rows],
    )
    session.commit()
    return article


class TestVersions:
    def test_they_are_indexed_sliced_and_iterated_in_transaction_order(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """`.versions` acts as a list, the oldest first, negative indexes and slices included."""
        article = make(session, models, "a", "b", "c", "d")
        assert article.versions[0].name == "a"
        assert article.versions[-1].name == "d"
        assert article.versions[-2].name == "c"
        assert [v.name for v in article.versions[1:3]] == ["b", "c"]
        assert [v.name for v in article.versions[:2]] == ["a", "b"]
        assert [v.name for v in article.versions] == ["a", "b", "c", "d"]
        assert [v.name for v in article.versions.all()] == ["a", "b", "c", "d"]
        with pytest.raises(IndexError):
            article.versions[9]

    def test_they_are_a_query(self, session: Any, models: SimpleNamespace) -> None:
        """`.versions` counts, filters and sorts in the database."""
        article = make(session, models, "a", "b", "c")
        cls = version_class(models.Article)
        assert article.versions.count() == 3
        assert count_versions(article) == 3
        assert [v.name for v in article.versions.filter_by(name="b")] == ["b"]
        assert article.versions.order_by(None).order_by(cls.name.desc()).first().name == "c"
        assert article.versions.filter(cls.operation_type == Operation.INSERT).one().name == "a"

    @pytest.mark.backends("sqlite")
    def test_select_is_a_statement_for_either_session(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """`.versions.select()` can be narrowed and run by the session."""
        article = make(session, models, "a", "b")
        statement = article.versions.select()
        assert [v.name for v in session.scalars(statement)] == ["a", "b"]
        cls = version_class(models.Article)
        assert session.scalars(statement.where(cls.name == "b")).one().name == "b"

    def test_they_hold_what_this_transaction_has_flushed(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """A version that is amended within its transaction shows its latest values."""
        article = make(session, models, "a")
        article.name = "b"
        assert [v.name for v in article.versions] == ["a", "b"]
        article.name = "c"
        assert [v.name for v in article.versions] == ["a", "c"]
        assert article.versions[1].name == "c"

    def test_held_versions_get_what_was_written_since(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """Whichever way versions are read: one that the session holds shows its row of now."""
        article = make(session, models, "a")
        ident = article.id
        article.name = "b"
        session.flush()
        (*_, held) = article.versions
        for name, read in {
            "versions": lambda: list(article.versions)[-1],
            "a slice": lambda: article.versions[1:][0],
            "select": lambda: session.scalars(article.versions.select()).all()[-1],
            "all_versions": lambda: type(held).all_versions(session, ident)[0],
            "without links": lambda: type(held).all_versions(session, ident, link=False)[0],
            "version_at": lambda: type(held).version_at(session, ident, held.transaction_id),
            "timeline": lambda: timeline(session, article)[-1].version,
            "changed_entities": lambda: held.transaction.changed_entities[type(held)][0],
        }.items():
            article.name = name
            session.flush()
            assert read() is held
            assert held.name == name

    def test_they_belong_to_one_object(self, session: Any, models: SimpleNamespace) -> None:
        """Versions of other objects are not among them, with a composite key neither."""
        for a, b in (("x", 1), ("x", 2), ("y", 1)):
            session.add(models.Place(a=a, b=b, name=f"{a}{b}"))
            session.commit()
        place = session.get(models.Place, {"a": "x", "b": 2})
        place.name = "new"
        session.commit()
        assert [v.name for v in place.versions] == ["x2", "new"]
        assert place.versions[1].previous.name == "x2"
        assert place.versions[1].index == 1
        assert place.versions[0].version_parent is place


class TestWriteOnly:
    pytestmark = [pytest.mark.options(support_async=True), pytest.mark.backends("sqlite")]

    def test_support_async_makes_them_write_only(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """With `support_async=True`, `.versions` is asked through `.select()` only."""
        article = make(session, models, "a", "b")
        assert [v.name for v in session.scalars(article.versions.select())] == ["a", "b"]
        with pytest.raises(TypeError):
            article.versions[0]


class TestSteps:
    def test_previous_next_and_index(self, session: Any, models: SimpleNamespace) -> None:
        """Each version knows its neighbours and its position among those of its object."""
        make(session, models, "other", "another")
        article = make(session, models, "a", "b", "c")
        first, second, third = article.versions
        assert (first.previous, first.next) == (None, second)
        assert (second.previous, second.next) == (first, third)
        assert (third.previous, third.next) == (second, None)
        assert [v.index for v in (first, second, third)] == [0, 1, 2]

    @pytest.mark.backends("sqlite")
    def test_they_start_from_any_version(
        self, session: Any, models: SimpleNamespace, engine: Any, statements: Any
    ) -> None:
        """A single step from a version that was loaded alone reads one row."""
        article = make(session, models, "a", "b", "c")
        cls = version_class(models.Article)
        second = session.scalars(sa.select(cls).where(cls.name == "b")).one()
        with statements(engine) as log:
            assert second.next.name == "c"
        assert len(log) == 1
        assert "limit" in log[0].sql.lower()
        session.commit()
        assert second.index == 1
        assert second.previous.name == "a"
        assert article.id == second.id

    def test_next_is_never_stale(self, session: Any, models: SimpleNamespace) -> None:
        """A version that was the last gets a `next` as soon as there is one."""
        article = make(session, models, "a", "b")
        last = list(article.versions)[-1]
        assert (last.next, last.previous.name) == (None, "a")
        article.name = "c"
        assert last.next.name == "c"
        session.commit()
        assert last.next.name == "c"

    @pytest.mark.backends("sqlite")
    def test_next_forgets_what_was_rolled_back(self, session: Any, models: SimpleNamespace) -> None:
        """After the rollback of a savepoint its version is nobody's neighbour."""
        article = make(session, models, "a", "b")
        last = list(article.versions)[-1]
        with session.begin_nested() as savepoint:
            article.name = "c"
            session.flush()
            assert last.next.name == "c"
            savepoint.rollback()
        assert last.next is None

    @pytest.mark.parametrize("step", ["next", "previous"])
    @pytest.mark.backends("sqlite")
    def test_a_walk_takes_two_queries(
        self,
        session: Any,
        models: SimpleNamespace,
        engine: Any,
        statements: Any,
        step: str,
    ) -> None:
        """Walking over 1,000 versions runs at most two queries, in either direction."""
        article = make_many(session, models, 1000)
        version = article.versions[0 if step == "next" else 999]
        names = []
        with statements(engine) as log:
            while version is not None:
                names.append(version.name)
                version = getattr(version, step)
        assert len(log) <= 2
        expected = [f"v{i}" for i in range(1, 1001)]
        assert names == (expected if step == "next" else expected[::-1])

    def test_changesets_of_a_whole_history_take_one_query(
        self, session: Any, models: SimpleNamespace, engine: Any, statements: Any
    ) -> None:
        """Iterating over `.versions` and asking each for its changeset runs one query in all."""
        article = make_many(session, models, 1000)
        assert article.id
        with statements(engine) as log:
            changesets = [version.changeset for version in article.versions]
        assert len(log) == 1
        assert changesets[0] == {"id": [None, article.id], "name": [None, "v1"]}
        assert changesets[1:] == [{"name": [f"v{i}", f"v{i + 1}"]} for i in range(1, 1000)]

    @pytest.mark.backends("sqlite")
    def test_one_step_of_each_of_many_objects_takes_one_row_each(
        self, session: Any, models: SimpleNamespace, engine: Any, statements: Any
    ) -> None:
        """A step loads the rows of a whole history only where more of it is in use."""
        for name in "abc":
            make(session, models, name, name * 2)
        cls = version_class(models.Article)
        latest = session.scalars(sa.select(cls).where(cls.operation_type == 1)).all()
        with statements(engine) as log:
            assert [v.previous.name for v in latest] == ["a", "b", "c"]
        assert len(log) == 3
        assert all("limit" in one.sql.lower() for one in log)

    @pytest.mark.backends("sqlite")
    def test_a_version_without_a_session_says_so(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """A detached version cannot look its neighbours up, and the error says what to do."""
        version = make(session, models, "a").versions[0]
        session.expunge(version)
        with pytest.raises(VersioningError, match=r"session\.add\(\)"):
            version.previous


class TestChangeset:
    pytestmark = pytest.mark.backends("sqlite")

    def test_it_is_old_and_new_by_name(self, session: Any, models: SimpleNamespace) -> None:
        """A changeset holds what changed, falsy values like any other."""
        article = make(session, models, "a", size=3)
        article.size = 0
        session.commit()
        article.size = None
        article.name = ""
        session.commit()
        assert [v.changeset for v in article.versions] == [
            {"id": [None, article.id], "name": [None, "a"], "size": [None, 3]},
            {"size": [3, 0]},
            {"size": [0, None], "name": ["a", ""]},
        ]

    def test_after_a_delete_it_starts_from_none(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """What comes back after a DELETE is new in all that it has."""
        article = make(session, models, "a")
        ident = article.id
        session.delete(article)
        session.commit()
        session.add(models.Article(id=ident, name="a"))
        session.commit()
        cls = version_class(models.Article)
        last = session.scalars(sa.select(cls).order_by(cls.transaction_id.desc())).first()
        assert last.changeset == {"id": [None, ident], "name": [None, "a"]}
        assert last.previous.operation_type == Operation.DELETE
        assert last.previous.changeset == {}


class TestTransaction:
    pytestmark = pytest.mark.backends("sqlite")

    def test_version_transaction_and_back(self, session: Any, models: SimpleNamespace) -> None:
        """`version.transaction` is the Transaction, which lists the versions that it wrote."""
        article = make(session, models, "a", "b")
        place = models.Place(a="x", b=1, name="p")
        session.add(place)
        article.name = "c"
        session.commit()
        version = article.versions[2]
        tx = version.transaction
        assert tx.id == version.transaction_id
        changed = tx.changed_entities
        assert changed == {
            version_class(models.Article): [version],
            version_class(models.Place): [place.versions[0]],
        }
        session.expunge(tx)
        with pytest.raises(VersioningError, match="in no session"):
            _ = tx.changed_entities

    def test_transactions_are_eager_loaded(
        self, session: Any, models: SimpleNamespace, engine: Any, statements: Any
    ) -> None:
        """`transaction` is a relationship: one statement brings the versions with theirs."""
        make(session, models, "a", "b", "c")
        cls = version_class(models.Article)
        with statements(engine) as log:
            versions = session.scalars(
                sa.select(cls).options(sa.orm.joinedload(cls.transaction))
            ).all()
            assert all(v.transaction.issued_at for v in versions)
        assert len(log) == 1

    def test_version_parent(self, session: Any, models: SimpleNamespace) -> None:
        """`version_parent` is the live object, None after it was deleted."""
        article = make(session, models, "a")
        version = article.versions[0]
        assert version.version_parent is article
        session.delete(article)
        session.commit()
        assert version.version_parent is None

    def test_repr(self, session: Any, models: SimpleNamespace) -> None:
        """A version shows its key, its transaction and its operation."""
        version = make(session, models, "a").versions[0]
        tx = version.transaction_id
        assert (
            repr(version)
            == f"ArticleVersion(id={version.id}, transaction_id={tx}, operation_type=0)"
        )


class TestClassMethods:
    pytestmark = pytest.mark.backends("sqlite")

    def test_version_at(self, session: Any, models: SimpleNamespace) -> None:
        """`version_at` is the version that was the latest after a transaction."""
        article = make(session, models, "a", "b")
        make(session, models, "other")
        cls = version_class(models.Article)
        first, second = article.versions
        for identity in ({"id": article.id}, article.id, (article.id,)):
            assert cls.version_at(session, identity, first.transaction_id) is first
        assert cls.version_at(session, {"id": article.id}, second.transaction_id + 1) is second
        assert cls.version_at(session, {"id": article.id}, first.transaction_id - 1) is None
        with pytest.raises(VersioningError, match="identified by id"):
            cls.version_at(session, {"no": 1}, 1)

    def test_all_versions(
        self, session: Any, models: SimpleNamespace, engine: Any, statements: Any
    ) -> None:
        """`all_versions` pages through a history; with `link`, steps cost nothing."""
        article = make(session, models, "a", "b", "c", "d")
        ident = {"id": article.id}
        cls = version_class(models.Article)
        names = lambda versions: [v.name for v in versions]  # noqa: E731
        assert names(cls.all_versions(session, ident)) == ["d", "c", "b", "a"]
        assert names(cls.all_versions(session, ident, desc=False)) == ["a", "b", "c", "d"]
        assert names(cls.all_versions(session, ident, limit=2, offset=1)) == ["c", "b"]
        assert names(cls.all_versions(session, ident, limit=2, offset=1, link=False)) == ["c", "b"]
        session.commit()
        with statements(engine) as log:
            page = cls.all_versions(session, ident, limit=2, offset=1)
            assert [v.previous.name for v in page] == ["b", "a"]
            assert [v.next.name for v in page] == ["d", "c"]
            assert [v.index for v in page] == [2, 1]
        assert len(log) == 1


class TestTimeline:
    def test_it_is_the_history_with_transactions_in_one_statement(
        self, session: Any, models: SimpleNamespace, engine: Any, statements: Any
    ) -> None:
        """`timeline` of 1,000 versions reads versions, transactions and changesets at once."""
        article = make_many(session, models, 1000)
        assert article.id
        with statements(engine) as log:
            entries = timeline(session, article)
            assert [e.transaction.id for e in entries] == [
                e.version.transaction_id for e in entries
            ]
        assert len(log) <= 2
        assert len(entries) == 1000
        assert entries[-1].changeset == {"name": ["v999", "v1000"]}
        assert entries[0].operation_type == Operation.INSERT

    @pytest.mark.backends("sqlite")
    def test_it_goes_on_after_a_delete(self, session: Any, models: SimpleNamespace) -> None:
        """The timeline of a deleted object is asked of one of its versions."""
        article = make(session, models, "a", "b")
        version = article.versions[0]
        session.delete(article)
        session.commit()
        entries = timeline(session, version)
        assert [e.operation_type for e in entries] == [0, 1, 2]
        assert entries[2].changeset == {}

    @pytest.mark.backends("sqlite")
    def test_it_goes_on_as_another_class(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """A row that passes to another class of the hierarchy: what only one of them has changed."""

        class Animal(Base):
            __tablename__ = "animal"
            __versioned__: ClassVar[dict[str, Any]] = {}
            __mapper_args__: ClassVar[dict[str, Any]] = {
                "polymorphic_on": "kind",
                "polymorphic_identity": "animal",
            }
            id: Mapped[int] = mapped_column(primary_key=True)
            kind: Mapped[str] = mapped_column(sa.String(9))

        class Dog(Animal):
            __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_identity": "dog"}
            tricks: Mapped[str | None] = mapped_column(sa.String(9))

        session = open_session()
        session.add(animal := Animal(id=1))
        session.commit()
        first = animal.versions[0]
        session.delete(animal)
        session.add(Dog(id=1, tricks="sit"))
        session.commit()
        assert timeline(session, first)[-1].changeset == {
            "kind": ["animal", "dog"],
            "tricks": [None, "sit"],
        }

    def test_a_class_is_no_object(self, session: Any, models: SimpleNamespace) -> None:
        """A class in the place of an object is refused: it would stand for all its rows."""
        for function in (timeline, blame):
            with pytest.raises(TypeError, match="Article is a class"):
                function(session, models.Article)


class TestMoments:
    def test_transaction_at(self, session: Any, models: SimpleNamespace) -> None:
        """`transaction_at` is the last transaction issued at or before a moment."""
        article = make(session, models, "a", "b")
        first, second = (v.transaction for v in article.versions)
        day = dt.datetime(2020, 1, 1)
        first.issued_at, second.issued_at = day, day + dt.timedelta(days=1)
        session.commit()
        at = lambda **kw: day.replace(tzinfo=dt.timezone.utc) + dt.timedelta(**kw)  # noqa: E731
        assert transaction_at(session, at(seconds=-1), models.Article) is None
        with pytest.raises(TypeError, match="1 is no datetime"):
            transaction_at(session, 1, models.Article)
        assert transaction_at(session, at(), models.Article) is first
        assert transaction_at(session, at(hours=23), models.Article) is first
        assert transaction_at(session, at(days=1), models.Article) is second
        zone = dt.timezone(dt.timedelta(hours=5))
        assert transaction_at(session, at(hours=24).astimezone(zone), models.Article) is second
        with pytest.raises(TypeError, match="naive"):
            transaction_at(session, day, models.Article)

    def test_versions_between(self, session: Any, models: SimpleNamespace) -> None:
        """`versions_between` is half-open, by transactions, ids, versions and datetimes alike."""
        article = make(session, models, "a", "b", "c")
        versions = list(article.versions)
        day = dt.datetime(2020, 1, 1, tzinfo=dt.timezone.utc)
        for i, version in enumerate(versions):
            version.transaction.issued_at = (day + dt.timedelta(days=i)).replace(tzinfo=None)
        session.commit()
        days = [day + dt.timedelta(days=i) for i in range(4)]
        txs = [v.transaction for v in versions]
        for since, until in (
            (txs[0], txs[2]),
            (txs[0].id, txs[2].id),
            (versions[0], versions[2]),
            (days[0], days[2]),
        ):
            found = session.scalars(versions_between(models.Article, since, until))
            assert [v.name for v in found] == ["a", "b"]
        everything = versions_between(models.Article, days[0], days[3])
        assert len(session.scalars(everything).all()) == 3


class TestAsync:
    def test_everything_has_an_awaitable_form(
        self,
        versioning: Any,
        Base: Any,
        open_async_session: Any,
        run_async: Any,
    ) -> None:
        """In an async session, whatever reads history has a form to await."""
        models = declare(Base)

        async def main() -> None:
            session = await open_async_session()
            article = models.Article(name="a")
            session.add(article)
            await session.commit()
            await session.refresh(article)
            article.name = "b"
            await session.commit()
            await session.refresh(article)
            first, second = (await session.scalars(article.versions.select())).all()
            assert await first.anext is second
            assert await second.aprevious is first
            assert await second.aindex == 1
            assert await second.awaitable_attrs.changeset == {"name": ["a", "b"]}
            assert (await second.awaitable_attrs.transaction).id == second.transaction_id
            assert await second.awaitable_attrs.version_parent is article
            assert await session.run_sync(lambda s: count_versions(article)) == 2
            entries = await session.run_sync(timeline, article)
            assert [e.changeset["name"] for e in entries] == [[None, "a"], ["a", "b"]]
            cls = version_class(models.Article)
            found = await session.run_sync(cls.version_at, {"id": article.id}, first.transaction_id)
            assert found is first
            tx = await second.awaitable_attrs.transaction
            assert await tx.awaitable_attrs.changed_entities == {cls: [second]}

        run_async(main)

    @pytest.mark.backends("sqlite")
    def test_functions_say_how_to_call_them(
        self, versioning: Any, Base: Any, open_async_session: Any, run_async: Any
    ) -> None:
        """A function that is given an AsyncSession answers with the call that works."""
        models = declare(Base)
        cls = version_class(models.Article)
        article = models.Article(name="a")
        at = dt.datetime.now(dt.timezone.utc)

        async def main() -> None:
            session: Any = await open_async_session()
            for function, *arguments in (
                (timeline, article),
                (blame, article),
                (transaction_at, at),
                (revert_transaction, None),
                (verify, models.Article),
                (version_obj, article),
                (versioning.unit_of_work,),
                (versioning.create_transaction,),
                (cls.version_at, 1, 1),
                (cls.all_versions, 1),
            ):
                name = function.__name__
                with pytest.raises(TypeError, match=rf"run_sync\(\S*{name}, \.\.\.\)"):
                    function(session, *arguments)

        run_async(main)
