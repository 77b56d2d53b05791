"""``as_of``: what was live at a moment, of a class or of any statement about versions."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import aliased, joinedload, selectinload, subqueryload

from sqlalchemy_history import (
    ClassNotVersioned,
    VersioningError,
    as_of,
    version_class,
    version_table,
)
from tests.test_relationships import models, names, session, tell

__all__ = ["models", "session"]

sqlite_only = pytest.mark.backends("sqlite")


@pytest.fixture
def txs(session: Any, models: SimpleNamespace) -> list[int]:
    """The ids of the three transactions of `tell`."""
    return [v.transaction_id for v in tell(session, models).versions]


class TestClass:
    def test_it_selects_what_was_live(
        self, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """What was not there yet, and what was deleted, is not among the rows of a moment."""
        comment = version_class(models.Comment)
        texts = lambda at: names(  # noqa: E731
            session.scalars(as_of(models.Comment, at).order_by(comment.id)), "text"
        )
        assert texts(txs[0] - 1) == []
        assert texts(txs[0]) == ["first", "second"]
        assert texts(txs[1]) == ["changed"]
        assert texts(txs[2] + 100) == ["changed", "third"]

    @sqlite_only
    def test_every_way_to_say_when(
        self, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """A transaction, its id, a version or an aware datetime, in any timezone, say when."""
        cls = version_class(models.Article)
        one, two, _ = session.get(models.Article, 1).versions
        day = dt.datetime(2020, 1, 1)
        for i, version in enumerate(session.get(models.Article, 1).versions):
            version.transaction.issued_at = day + dt.timedelta(days=i)
        session.commit()
        aware = day.replace(tzinfo=dt.timezone.utc)
        east = aware.astimezone(dt.timezone(dt.timedelta(hours=7)))
        for at in (one.transaction, txs[0], one, aware, east, aware + dt.timedelta(hours=9)):
            assert session.scalars(as_of(models.Article, at)).one().name == "one"
        assert session.scalars(as_of(cls, two)).one().name == "two"
        alias = aliased(cls)
        assert session.scalars(as_of(alias, two).where(alias.name == "two")).one().name == "two"
        before = aware - dt.timedelta(seconds=1)
        assert session.scalars(as_of(models.Article, before)).all() == []

    @sqlite_only
    @pytest.mark.parametrize("at", [dt.datetime(2020, 1, 1), "yesterday", 1.5, True, None])
    def test_no_moment(self, models: SimpleNamespace, session: Any, at: Any) -> None:
        """A naive datetime, or anything else that is no moment, is refused with advice."""
        version_class(models.Article)
        with pytest.raises(TypeError, match="timezone"):
            as_of(models.Article, at)

    @sqlite_only
    def test_no_history(self, session: Any, models: SimpleNamespace) -> None:
        """A class without history cannot be asked for its past."""
        with pytest.raises(ClassNotVersioned, match="Country has no history"):
            as_of(models.Country, 1)

    def test_the_whole_graph_shows_the_moment(
        self, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """Objects loaded for a moment show it in their relations, lazily and however deep."""
        (then,) = session.scalars(as_of(models.Article, txs[1]))
        assert names(then.comments, "text") == ["changed"]
        # the comment's and the tag's own versions are as old as they are, their relations are not
        assert then.comments[0].article is then
        assert then.tags[0].articles == [then]
        assert then.author.articles == [then]
        assert then.cover.article is then
        assert then.author.country.name == "France"
        (early,) = session.scalars(as_of(models.Article, txs[0]))
        assert early.cover.article is early
        assert [c.article for c in early.comments] == [early, early]
        assert names(then.comments, "text") == ["changed"]

    @pytest.mark.parametrize("load", [selectinload, joinedload, subqueryload])
    def test_eager_loads_show_the_moment(
        self,
        session: Any,
        models: SimpleNamespace,
        txs: list[int],
        engine: Any,
        statements: Any,
        load: Any,
    ) -> None:
        """Every kind of eager load, and a chain of them, shows the moment."""
        cls, comment = version_class(models.Article), version_class(models.Comment)
        author = version_class(models.Author)
        statement = as_of(models.Article, txs[1]).options(
            load(cls.comments).options(load(comment.article)),
            load(cls.tags),
            load(cls.author).options(load(author.articles)),
        )
        session.expunge_all()
        with statements(engine) as log:
            then = session.scalars(statement).unique().one()
            assert names(then.comments, "text") == ["changed"]
            assert names(then.tags) == ["blue"]
            assert then.author.name == "Eve"
            assert then.comments[0].article is then
            assert then.author.articles == [then]
        assert len(log) <= (1 if load is joinedload else 6)

    @sqlite_only
    def test_one_version_seen_at_two_moments(
        self, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """A version that was live at two moments is two objects, each with its relations."""
        tag = version_class(models.Tag)
        statement = lambda at: as_of(tag, at).where(tag.name == "blue")  # noqa: E731
        (one,), (two,) = session.scalars(statement(txs[0])), session.scalars(statement(txs[1]))
        assert one.transaction_id == two.transaction_id
        assert (names(one.articles), names(two.articles)) == (["one"], ["two"])
        assert session.scalars(statement(txs[0])).one() is one

    @sqlite_only
    def test_live_targets_are_the_live_objects(
        self, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """An unversioned target of a past object is the one that the session has."""
        france = session.get(models.Country, 1)
        author = version_class(models.Author)
        (lazy,) = session.scalars(as_of(author, txs[1]))
        assert lazy.country is france
        session.expire(lazy)
        (eager,) = session.scalars(as_of(author, txs[1]).options(selectinload(author.country)))
        assert eager.country is france
        article = version_class(models.Article)
        for load in (selectinload, subqueryload):
            session.expire_all()
            (then,) = session.scalars(as_of(article, txs[0]).options(load(article.countries)))
            assert then.countries[0] is france, load


class TestStatement:
    def test_joins_show_the_moment(
        self, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """Each version class that a select joins stands for what was live, outer joins included."""
        cls, comment = version_class(models.Article), version_class(models.Comment)
        author = version_class(models.Author)
        joined = (
            sa.select(cls.name, comment.text, author.name)
            .join(comment, comment.article_id == cls.id)
            .outerjoin(author, author.id == cls.author_id)
            .order_by(comment.id)
        )
        run = lambda at: session.execute(as_of(joined, at)).all()  # noqa: E731
        assert run(txs[0]) == [("one", "first", "Ada"), ("one", "second", "Ada")]
        assert run(txs[1]) == [("two", "changed", "Eve")]
        assert run(txs[2]) == [("three", "changed", None), ("three", "third", None)]

    def test_relationship_joins_show_the_moment(
        self, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """Joins along version relationships, `any()` and `has()` are about the moment, too."""
        cls, tag = version_class(models.Article), version_class(models.Tag)
        author = version_class(models.Author)
        joined = sa.select(tag.name).join(tag.articles).order_by(tag.name)
        assert session.scalars(as_of(joined, txs[0])).all() == ["blue", "red"]
        assert session.scalars(as_of(joined, txs[1])).all() == ["blue"]
        assert session.scalars(as_of(joined, txs[2])).all() == ["navy"]
        with_any = sa.select(cls.name).where(
            cls.tags.any(tag.name == "blue"), cls.author.has(author.name == "Eve")
        )
        assert session.scalars(as_of(with_any, txs[0])).all() == []
        assert session.scalars(as_of(with_any, txs[1])).all() == ["two"]
        assert session.scalars(as_of(with_any, txs[2])).all() == []

    def test_aliases_subqueries_and_ctes(
        self, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """Aliases, scalar subqueries, derived tables, CTEs and EXISTS all show the moment."""
        cls, comment = version_class(models.Article), version_class(models.Comment)
        one, two = aliased(comment), aliased(comment)
        pairs = sa.select(one.text, two.text).join(two, one.id < two.id)
        counted = sa.select(
            cls.name,
            sa.select(sa.func.count(comment.id))
            .where(comment.article_id == cls.id)
            .scalar_subquery(),
        )
        derived = sa.select(comment.id, comment.text).subquery()
        from_derived = (
            sa.select(derived.c.text, cls.name).join(cls, sa.true()).order_by(derived.c.id)
        )
        only_derived = sa.select(derived.c.text).order_by(derived.c.id)
        cte = (
            sa.select(comment.article_id, sa.func.count().label("n"))
            .group_by(comment.article_id)
            .cte()
        )
        from_cte = sa.select(cls.name, cte.c.n).join(cte, cte.c.article_id == cls.id)
        entity = aliased(comment, sa.select(comment).where(comment.id > 1).subquery())
        from_entity = sa.select(entity.text).order_by(entity.id)
        exists = sa.select(cls.name).where(
            sa.exists()
            .select_from(comment)
            .where(comment.article_id == cls.id, comment.text == "third")
        )

        def run(statement: Any) -> list[Any]:
            return [[tuple(row) for row in session.execute(as_of(statement, at))] for at in txs]

        assert run(pairs) == [[("first", "second")], [], [("changed", "third")]]
        assert run(counted) == [[("one", 2)], [("two", 1)], [("three", 2)]]
        assert run(from_derived) == [
            [("first", "one"), ("second", "one")],
            [("changed", "two")],
            [("changed", "three"), ("third", "three")],
        ]
        assert run(only_derived) == [
            [("first",), ("second",)],
            [("changed",)],
            [("changed",), ("third",)],
        ]
        assert run(from_cte) == [[("one", 2)], [("two", 1)], [("three", 2)]]
        assert run(from_entity) == [[("second",)], [("changed",)], [("changed",), ("third",)]]
        assert run(exists) == [[], [], [("three",)]]

    @sqlite_only
    def test_its_objects_keep_the_moment(
        self, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """Objects that a statement as of a moment loads show that moment, eager loads included."""
        cls, tag = version_class(models.Article), version_class(models.Tag)
        statement = sa.select(tag, cls).join(tag.articles).options(selectinload(cls.comments))
        rows = session.execute(as_of(statement, txs[1])).all()
        assert [(t.name, a.name) for t, a in rows] == [("blue", "two")]
        assert rows[0].TagVersion.articles == [rows[0].ArticleVersion]
        assert names(rows[0].ArticleVersion.comments, "text") == ["changed"]
        assert rows[0].ArticleVersion.author.name == "Eve"

    @sqlite_only
    def test_datetimes_and_repeated_use(
        self, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """One statement can be asked for many moments; the cache of SQL keeps them apart."""
        cls = version_class(models.Article)
        names_then = sa.select(cls.name)
        now = dt.datetime.now(dt.timezone.utc) + dt.timedelta(hours=1)
        for _ in range(2):
            for at, expected in (*zip(txs, ["one", "two", "three"], strict=True), (now, "three")):
                assert session.scalars(as_of(names_then, at)).all() == [expected]

    @sqlite_only
    def test_inheritance(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """A statement about a subclass, or about the base, of a joined hierarchy works the same."""

        class Animal(Base):
            __tablename__ = "animal"
            __versioned__: dict[str, Any] = {}
            __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}
            id = sa.orm.mapped_column(sa.Integer, primary_key=True)
            kind = sa.orm.mapped_column(sa.String(9))
            name = sa.orm.mapped_column(sa.String(9))

        class Dog(Animal):
            __tablename__ = "dog"
            __mapper_args__ = {"polymorphic_identity": "dog"}
            id = sa.orm.mapped_column(sa.ForeignKey("animal.id"), primary_key=True)
            tricks = sa.orm.mapped_column(sa.Integer)

        session = open_session()
        dog = Dog(id=1, name="rex", tricks=1)
        session.add_all([dog, Animal(id=2, name="cat")])
        session.commit()
        dog.tricks = 2
        session.commit()
        one, two = (v.transaction_id for v in dog.versions)
        dogs, animals = version_class(Dog), version_class(Animal)
        assert session.execute(as_of(sa.select(dogs.name, dogs.tricks), one)).all() == [("rex", 1)]
        assert session.scalars(as_of(sa.select(dogs.tricks), two)).all() == [2]
        found = session.scalars(as_of(sa.select(animals).order_by(animals.id), one)).all()
        assert [type(v) for v in found] == [dogs, animals]
        assert found[0].tricks == 1
        poly = sa.orm.with_polymorphic(animals, [dogs])
        statement = sa.select(poly.name, poly.DogVersion.tricks).order_by(poly.id)
        assert session.execute(as_of(statement, two)).all() == [("rex", 2), ("cat", None)]

    @sqlite_only
    def test_what_only_a_where_names(
        self, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """A version class that only a WHERE names shows the moment, or is refused; never all."""
        cls, comment = version_class(models.Article), version_class(models.Comment)
        exists = sa.select(cls.name).where(
            sa.exists().where(comment.article_id == cls.id, comment.text == "third")
        )
        if sa.__version__.startswith("2.0."):
            with pytest.raises(VersioningError, match=r"select_from\(CommentVersion\)"):
                as_of(exists, txs[0])
        else:
            found = [session.scalars(as_of(exists, tx)).all() for tx in txs]
            assert found == [[], [], ["three"]]

    @sqlite_only
    def test_what_it_refuses(self, session: Any, models: SimpleNamespace) -> None:
        """A statement without version classes, or no select at all, is refused with advice."""
        version_class(models.Article)
        with pytest.raises(ClassNotVersioned, match=r"only Article.*time_machine"):
            as_of(sa.select(models.Article.name), 1)
        with pytest.raises(ClassNotVersioned, match="no class"):
            as_of(sa.select(sa.literal(1)), 1)
        with pytest.raises(TypeError, match="takes a class or a select"):
            as_of(sa.update(models.Article), 1)


@pytest.mark.options(strategy="subquery")
class TestWithoutEnds:
    """The subquery strategy: what is asked decides how the latest versions are found."""

    def statements(self, models: SimpleNamespace, at: int) -> dict[str, tuple[bool, Any]]:
        """By name: whether all of the table is read, and the statement."""
        cls = version_class(models.Comment)
        alias = aliased(cls)
        everything = as_of(models.Comment, at)
        derived = everything.subquery()
        either = sa.or_(cls.article_id == 1, cls.text == "changed")
        return {
            "everything": (True, everything),
            "in order": (True, everything.order_by(cls.text)),
            "an alias": (True, as_of(alias, at).where(alias.text != "first")),
            "by a column": (True, everything.where(cls.text.in_(["first", "changed"]))),
            "by columns": (True, everything.where(either)),
            "derived": (True, sa.select(derived.c.text)),
            "by key": (False, everything.where(cls.id == 1)),
            "by keys": (False, everything.where(sa.or_(cls.id == 1, cls.id == 3))),
            "a page": (False, everything.order_by(cls.id).limit(2)),
            "exists": (False, everything.where(cls.article.has())),
            "by transaction": (False, everything.where(cls.transaction_id > 0)),
            "from derived": (False, sa.select(derived.c.text).where(derived.c.id == 1)),
            "page of derived": (False, sa.select(derived.c.text).order_by(derived.c.id).limit(2)),
            "joined by key": (
                False,
                everything.join(alias, sa.and_(alias.id == cls.article_id, alias.id == 1)),
            ),
        }

    @pytest.mark.parametrize("indexes", ["default", "compatible"])
    def test_whole_tables_are_grouped(
        self, engine: Any, options: dict[str, Any], indexes: str, request: Any
    ) -> None:
        """A statement about the whole table groups it once; one that an index serves does not."""
        options["indexes"] = indexes
        models = request.getfixturevalue("models")
        for name, (reads_all, statement) in self.statements(models, 1).items():
            sql = str(statement.compile(engine))
            grouped = reads_all and engine.dialect.name in ("sqlite", "postgresql")
            assert ("GROUP BY" in sql) is grouped, (name, sql)

    def test_the_rows_are_the_same(
        self, session: Any, models: SimpleNamespace, txs: list[int]
    ) -> None:
        """Whichever way is taken, it gives the rows of the moment, as does its negation."""
        found = {
            name: [
                sorted(getattr(row, "text", row) for row in session.scalars(statement))
                for _, statement in (self.statements(models, at)[name] for at in txs)
            ]
            for name in self.statements(models, 1)
        }
        moments = [["first", "second"], ["changed"], ["changed", "third"]]
        for name in ("everything", "in order", "derived", "a page", "page of derived", "exists"):
            assert found[name] == moments, name
        assert found["an alias"] == [["second"], ["changed"], ["changed", "third"]]
        assert found["by a column"] == [["first"], ["changed"], ["changed"]]
        cls = version_class(models.Comment)
        (condition,) = as_of(models.Comment, txs[0])._where_criteria
        rows = sa.select(cls.id, cls.transaction_id)
        every, live, others = (
            set(session.execute(statement).all())
            for statement in (rows, rows.where(condition), rows.where(sa.not_(condition)))
        )
        assert live and others == every - live


@pytest.mark.options(strategy="validity")
@pytest.mark.parametrize("strategy", ["validity"])
def test_advised_indexes(engine: Any, models: SimpleNamespace, session: Any) -> None:
    """The indexes of the how-to can be made, and are what SQLite and PostgreSQL then read by."""
    table = version_table(models.Article.__table__)
    end = sa.Index("ix_article_version_end", table.c.end_transaction_id)
    columns = (table.c.transaction_id, table.c.end_transaction_id, table.c.operation_type)
    both = sa.Index("ix_article_version_validity", *columns)
    (first,) = [i for i in table.indexes if i.name == "ix_article_version_transaction_id"]
    for index in (end, both):
        index.create(engine)
    first.drop(engine)
    on_postgresql = engine.dialect.name == "postgresql"
    row = {"name": "x", "operation_type": 1}
    rows = [{**row, "id": 1, "transaction_id": i, "end_transaction_id": i + 1} for i in range(5000)]
    explain = {"sqlite": "EXPLAIN QUERY PLAN ", "postgresql": "EXPLAIN "}.get(engine.dialect.name)
    sql = as_of(models.Article, 4999).compile(engine, compile_kwargs={"literal_binds": True})
    with engine.begin() as connection:
        if explain is not None:
            connection.execute(table.insert(), rows)
            connection.exec_driver_sql("ANALYZE")
            plan = "\n".join(found[-1] for found in connection.exec_driver_sql(f"{explain}{sql}"))
            assert (end.name if on_postgresql else both.name) in plan
