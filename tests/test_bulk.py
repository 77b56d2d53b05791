"""ORM statements outside of the unit of work are recorded: exactly what changed, set by set."""

from __future__ import annotations

import datetime
import itertools
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import aliased, mapped_column, relationship, with_loader_criteria

from chain import DELETE, INSERT, UPDATE, count_transactions, history, laws
from sqlalchemy_history import verify, versioning_disabled
from support import upsert

__all__ = ["laws"]

CREATED = [(1, INSERT, n, f"a{n}", n) for n in (1, 2, 3, 4)]
COLUMNS = ("id", "name", "n")


@pytest.fixture
def Article(versioning: Any, Base: Any) -> Any:  # noqa: N802
    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {"exclude": ["secret"]}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20), unique=True)
        n = mapped_column("number", sa.Integer, key="n")
        secret = mapped_column(sa.String(20))

    return Article


@pytest.fixture
def session(Article: Any, open_session: Any) -> Any:
    """Four articles."""
    session = open_session()
    for n in (1, 2, 3, 4):
        session.add(Article(name=f"a{n}", n=n))
        session.flush()
    session.commit()
    return session


def changed(session: Any, cls: Any) -> list[Any]:
    """What was recorded after the four articles were made."""
    session.commit()
    found = history(session, cls, *COLUMNS)
    assert found[:4] == CREATED
    return found[4:]


class TestUpdate:
    def test_records_the_rows_that_match(
        self, session, Article, engine, statements, backend, strategy
    ) -> None:
        """An UPDATE is recorded with three statements at most, and keeps its rowcount.

        One more sees to the order of transactions, where others write at the same time and nothing
        else tells.
        """
        with statements(engine) as log:
            result = session.execute(
                sa.update(Article).where(Article.n >= 3).values(n=Article.n + 10)
            )
        assert result.rowcount == 2
        alone = backend == "sqlite" or (backend, strategy) == ("postgresql", "validity")
        assert len(log) - 1 <= (3 if alone else 4)
        assert changed(session, Article) == [(2, UPDATE, 3, "a3", 13), (2, UPDATE, 4, "a4", 14)]

    @pytest.mark.parametrize("how", ["auto", "evaluate", "fetch", False])
    def test_synchronize_session(self, session, Article, how) -> None:
        """Whatever the synchronization, objects and history show the new values."""
        one = session.get(Article, 1)
        session.execute(
            sa.update(Article).where(Article.n < 3).values(n=50),
            execution_options={"synchronize_session": how},
        )
        assert one.n == (1 if how is False else 50)
        session.expire_all()
        assert one.n == 50
        assert changed(session, Article) == [(2, UPDATE, 1, "a1", 50), (2, UPDATE, 2, "a2", 50)]

    def test_leaves_out_what_does_not_change(self, session, Article) -> None:
        """Rows that already hold the new values get no version, but count as matched."""
        result = session.execute(sa.update(Article).where(Article.id < 3).values(n=1))
        assert result.rowcount == 2
        assert changed(session, Article) == [(2, UPDATE, 2, "a2", 1)]

    def test_no_change_at_all(self, session, Article) -> None:
        """An UPDATE that changes nothing leaves no transaction row."""
        session.execute(sa.update(Article).values(n=Article.n))
        session.execute(sa.update(Article).where(Article.n > 99).values(n=5))
        session.execute(sa.update(Article).where(Article.id == 1).values(n=1))
        assert changed(session, Article) == []
        assert count_transactions(session, Article) == 1

    def test_excluded_column(self, session, Article, engine, statements) -> None:
        """A change of a column without history is none."""
        session.execute(sa.update(Article).values(secret="x"))
        assert changed(session, Article) == []
        session.execute(sa.update(Article).where(Article.id == 2).values(secret="y", n=9))
        assert changed(session, Article) == [(2, UPDATE, 2, "a2", 9)]

    def test_null(self, session, Article) -> None:
        """From NULL, to NULL, and from NULL to NULL."""
        session.execute(sa.update(Article).where(Article.id < 3).values(n=None))
        session.commit()
        session.execute(sa.update(Article).where(Article.id < 4).values(n=sa.null()))
        session.commit()
        session.execute(sa.update(Article).where(Article.n.is_(None)).values({Article.n: 7}))
        assert [row[:2] + row[4:] for row in changed(session, Article)] == [
            (2, UPDATE, None),
            (2, UPDATE, None),
            (3, UPDATE, None),
            *[(4, UPDATE, 7)] * 3,
        ]

    @pytest.mark.backends("sqlite", "postgresql")
    def test_returning(self, session, Article) -> None:
        """RETURNING gives what it gave before."""
        rows = session.execute(
            sa.update(Article).where(Article.id > 2).values(n=0).returning(Article.id, Article.n)
        ).all()
        assert sorted(map(tuple, rows)) == [(3, 0), (4, 0)]
        found = session.scalars(
            sa.update(Article).where(Article.id == 1).values(n=5).returning(Article)
        ).one()
        assert (found.id, found.n) == (1, 5)
        assert [row[2:] for row in changed(session, Article)] == [
            (1, "a1", 5),
            (3, "a3", 0),
            (4, "a4", 0),
        ]

    @pytest.mark.parametrize("ordered", [True, False])
    def test_expressions_of_other_columns(self, session, Article, ordered, backend) -> None:
        """Values that depend on each other are stored as the database has computed them."""
        values = [(Article.n, Article.n + 1), (Article.name, sa.func.concat("b", Article.n))]
        if backend == "sqlite":
            values[1] = (Article.name, sa.literal("b").concat(sa.cast(Article.n, sa.String)))
        statement = sa.update(Article).where(Article.id == 4)
        statement = statement.ordered_values(*values) if ordered else statement.values(dict(values))
        session.execute(statement.where(Article.n == 4))
        [row] = changed(session, Article)
        assert row[:3] == (2, UPDATE, 4)

    def test_subqueries(self, session, Article) -> None:
        """Subqueries in SET and WHERE, also about the table itself."""
        other = aliased(Article)
        most = sa.select(sa.func.max(other.n)).scalar_subquery()
        if session.get_bind().dialect.name == "mysql":
            most = sa.select(
                sa.select(sa.func.max(other.n).label("n")).subquery().c.n
            ).scalar_subquery()
        session.execute(
            sa.update(Article)
            .where(Article.id.in_(sa.union_all(sa.select(sa.literal(1)), sa.select(sa.literal(2)))))
            .values(n=most),
            execution_options={"synchronize_session": False},
        )
        assert changed(session, Article) == [(2, UPDATE, 1, "a1", 4), (2, UPDATE, 2, "a2", 4)]

    def test_from_another_table(self, session, Article, Base, engine) -> None:
        """UPDATE ... FROM: the values come from another table."""
        news = sa.Table(
            "news", Base.metadata, sa.Column("id", sa.Integer), sa.Column("value", sa.Integer)
        )
        news.create(engine)
        session.execute(sa.insert(news), [{"id": 2, "value": 20}, {"id": 3, "value": 3}])
        session.execute(
            sa.update(Article).where(Article.id == news.c.id).values(n=news.c.value),
            execution_options={"synchronize_session": False},
        )
        assert changed(session, Article) == [(2, UPDATE, 2, "a2", 20)]

    def test_functions_that_vary(self, session, Article, backend) -> None:
        """A random value is the row's, not another draw."""
        random = sa.func.rand() if backend == "mariadb" else sa.func.random()
        session.execute(sa.update(Article).values(n=sa.cast(random * 1000000, sa.Integer) % 100000))
        session.commit()

    def test_onupdate(self, versioning, Base, open_session) -> None:
        """Columns with `onupdate` have the row's value in the version."""

        class Page(Base):
            __tablename__ = "page"
            __versioned__ = {}
            id = mapped_column(sa.Integer, primary_key=True)
            title = mapped_column(sa.String(20))
            at = mapped_column(sa.DateTime, onupdate=sa.func.now())
            by = mapped_column(sa.String(20), onupdate=lambda: "somebody")

        session = open_session()
        session.add_all([Page(title="a"), Page(title="b")])
        session.commit()
        session.execute(sa.update(Page).values(title="c"))
        session.commit()
        found = history(session, Page, "title", "by", "at")
        assert [row[:4] for row in found[2:]] == [(2, UPDATE, "c", "somebody")] * 2
        assert all(isinstance(row[4], datetime.datetime) for row in found[2:])

    def test_computed_column(self, versioning, Base, open_session) -> None:
        """A computed column has the row's value in the version."""

        class Box(Base):
            __tablename__ = "box"
            __versioned__ = {}
            id = mapped_column(sa.Integer, primary_key=True)
            side = mapped_column(sa.Integer)
            area = mapped_column(sa.Integer, sa.Computed("side * side", persisted=True))

        session = open_session()
        session.add(Box(side=2))
        session.commit()
        session.execute(sa.update(Box).values(side=Box.side + 1))
        session.commit()
        assert history(session, Box, "side", "area") == [(1, INSERT, 2, 4), (2, UPDATE, 3, 9)]

    def test_trigger(self, session, Article, backend, engine) -> None:
        """What a trigger makes of the row is in the version, also if the SET changes nothing."""
        with engine.begin() as connection:
            for ddl in _TRIGGERS[backend]:
                connection.exec_driver_sql(ddl)
        session.execute(sa.update(Article).where(Article.n > 2).values(n=7))
        session.commit()
        session.execute(sa.update(Article).where(Article.id < 2).values(n=1))
        session.commit()
        assert changed(session, Article) == [
            (2, UPDATE, 3, "triggered 3", 7),
            (2, UPDATE, 4, "triggered 4", 7),
            (3, UPDATE, 1, "triggered 1", 1),
        ]

    @pytest.mark.backends("mariadb")
    def test_limit(self, session, Article) -> None:
        """An UPDATE with LIMIT records the rows that it changed."""
        table = Article.__table__
        session.execute(sa.update(table).values(n=9).with_dialect_options(mysql_limit=2))
        assert len(changed(session, Article)) == 2

    def test_loader_criteria(self, session, Article) -> None:
        """Criteria that the ORM adds hold for what is recorded, too."""
        session.execute(
            sa.update(Article)
            .values(n=0)
            .options(with_loader_criteria(Article, Article.id > 3))
            .execution_options(synchronize_session=False)
        )
        assert changed(session, Article) == [(2, UPDATE, 4, "a4", 0)]

    def test_new_keys(self, session, Article) -> None:
        """A changed primary key ends the old identity and begins a new one."""
        session.execute(
            sa.update(Article).where(Article.id > 2).values(id=Article.id + 10),
            execution_options={"synchronize_session": False},
        )
        assert sorted(changed(session, Article)) == [
            (2, INSERT, 13, "a3", 3),
            (2, INSERT, 14, "a4", 4),
            (2, DELETE, 3, "a3", 3),
            (2, DELETE, 4, "a4", 4),
        ]

    def test_keys_that_move_up(self, session, Article) -> None:
        """A key that one row leaves and another one takes was updated."""
        session.execute(
            sa.update(Article).where(Article.id == 4).values(id=5, n=55),
            execution_options={"synchronize_session": False},
        )
        session.execute(
            sa.update(Article).where(Article.id == 3).values(id=4),
            execution_options={"synchronize_session": False},
        )
        assert changed(session, Article) == [
            (2, DELETE, 3, "a3", 3),
            (2, UPDATE, 4, "a3", 3),
            (2, INSERT, 5, "a4", 55),
        ]

    def test_query_update(self, session, Article) -> None:
        """The legacy `Query.update()` too."""
        assert session.query(Article).filter(Article.n == 2).update({"n": 22}) == 1
        assert changed(session, Article) == [(2, UPDATE, 2, "a2", 22)]

    def test_failure(self, session, Article) -> None:
        """A statement that fails leaves no versions behind, also if the transaction goes on."""
        with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
            session.execute(sa.update(Article).values(name="same"))
        assert changed(session, Article) == []
        assert count_transactions(session, Article) == 1

    @pytest.mark.backends("sqlite", "mariadb")
    def test_failure_without_savepoint(self, session, Article) -> None:
        """The same where the database lets the transaction go on; what it did before stays."""
        with pytest.raises(sa.exc.IntegrityError):
            session.execute(sa.update(Article).values(name="same"))
        session.execute(sa.update(Article).where(Article.n == 1).values(n=11))
        with pytest.raises(sa.exc.IntegrityError):
            session.execute(sa.update(Article).values(name="same"))
        session.execute(sa.update(Article).where(Article.n == 2).values(n=22))
        assert changed(session, Article) == [(2, UPDATE, 1, "a1", 11), (2, UPDATE, 2, "a2", 22)]

    def test_disabled(self, session, Article, laws) -> None:
        """Nothing is recorded where versioning is disabled."""
        with versioning_disabled(session):
            session.execute(sa.update(Article).values(secret="x", n=Article.n))
        assert changed(session, Article) == []


_TRIGGERS = {
    "sqlite": [
        "CREATE TRIGGER t AFTER UPDATE OF number ON article BEGIN "
        "UPDATE article SET name = 'triggered ' || id WHERE id = new.id; END"
    ],
    "postgresql": [
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN new.name = 'triggered ' || new.id; RETURN new; END $$",
        "CREATE TRIGGER t BEFORE UPDATE ON article FOR EACH ROW EXECUTE FUNCTION f()",
    ],
    "mariadb": [
        "CREATE TRIGGER t BEFORE UPDATE ON article FOR EACH ROW "
        "SET new.name = CONCAT('triggered ', new.id)"
    ],
}


class TestByKey:
    def test_list_of_rows(self, session, Article, engine, statements) -> None:
        """The bulk UPDATE by primary key is recorded with three statements at most."""
        one = session.get(Article, 1)
        with statements(engine) as log:
            session.execute(
                sa.update(Article),
                [{"id": 1, "n": 10}, {"id": 2, "n": 2}, {"id": 3, "n": 30}, {"id": 99, "n": 1}][:3],
            )
        assert len(log) - 1 <= 3
        assert one.n == 10
        assert changed(session, Article) == [(2, UPDATE, 1, "a1", 10), (2, UPDATE, 3, "a3", 30)]

    def test_with_further_criteria(self, session, Article) -> None:
        """The same with a WHERE of its own."""
        session.connection().execute(
            sa.update(Article)
            .where(Article.id == sa.bindparam("key"), Article.n > sa.bindparam("least"))
            .values(n=sa.bindparam("new")),
            [{"key": 1, "least": 5, "new": 10}, {"key": 3, "least": 2, "new": 30}],
        )
        assert changed(session, Article) == [(2, UPDATE, 3, "a3", 30)]

    def test_one_row(self, session, Article, engine, statements) -> None:
        """WHERE with the key alone: as a flush would record it."""
        with statements(engine) as log:
            session.execute(sa.update(Article).where(Article.id == 2).values(n=Article.n * 2))
        assert len(log) - 1 <= 3
        assert changed(session, Article) == [(2, UPDATE, 2, "a2", 4)]

    def test_legacy_methods(self, session, Article) -> None:
        """`bulk_update_mappings`, `bulk_save_objects` and `bulk_insert_mappings`."""
        session.bulk_update_mappings(sa.inspect(Article), [{"id": 1, "n": 10}])
        session.commit()
        two = session.get(Article, 2)
        two.n = 20
        session.bulk_save_objects([two, Article(name="a5", n=5)])
        session.commit()
        session.bulk_insert_mappings(sa.inspect(Article), [{"name": "a6"}, {"name": "a7"}])
        session.expire_all()
        assert [row[:2] + row[3:] for row in changed(session, Article)] == [
            (2, UPDATE, "a1", 10),
            (3, UPDATE, "a2", 20),
            (3, INSERT, "a5", 5),
            (4, INSERT, "a6", None),
            (4, INSERT, "a7", None),
        ]


class TestDelete:
    @pytest.mark.parametrize("how", ["auto", "evaluate", "fetch", False])
    def test_records_the_last_values(self, session, Article, how, engine, statements) -> None:
        """A DELETE version holds the last values; at most three statements."""
        with statements(engine) as log:
            result = session.execute(
                sa.delete(Article).where(Article.n > 2),
                execution_options={"synchronize_session": how},
            )
        assert result.rowcount == 2
        assert len(log.starting("insert", "update", "delete", "with")) - 1 <= 3
        assert changed(session, Article) == [(2, DELETE, 3, "a3", 3), (2, DELETE, 4, "a4", 4)]

    def test_query_delete(self, session, Article) -> None:
        """The legacy `Query.delete()` too."""
        assert session.query(Article).filter(Article.n == 2).delete() == 1
        assert changed(session, Article) == [(2, DELETE, 2, "a2", 2)]

    def test_returning(self, session, Article) -> None:
        """RETURNING gives what it gave before."""
        statement = sa.delete(Article).where(Article.n == 1).returning(Article.id)
        assert session.execute(statement).all() == [(1,)]
        assert changed(session, Article) == [(2, DELETE, 1, "a1", 1)]

    def test_all(self, session, Article) -> None:
        """Without a WHERE; and once more, when nothing is left."""
        session.execute(sa.delete(Article))
        session.commit()
        session.execute(sa.delete(Article))
        assert [row[:3] for row in changed(session, Article)] == [
            (2, DELETE, n) for n in (1, 2, 3, 4)
        ]

    def test_using_another_table(self, session, Article, Base, engine) -> None:
        """DELETE ... USING, where there is one."""
        if session.get_bind().dialect.name == "sqlite":
            other = sa.select(sa.literal(2)).scalar_subquery()
            session.execute(sa.delete(Article).where(Article.id == other))
        else:
            old = sa.Table("old", Base.metadata, sa.Column("id", sa.Integer))
            old.create(engine)
            session.execute(sa.insert(old).values([{"id": 2}, {"id": 2}]))
            session.execute(
                sa.delete(Article).where(Article.id == old.c.id),
                execution_options={"synchronize_session": False},
            )
        assert changed(session, Article) == [(2, DELETE, 2, "a2", 2)]


class TestInsert:
    def test_values(self, session, Article, engine, statements) -> None:
        """One row, with and without its key."""
        with statements(engine) as log:
            result = session.execute(sa.insert(Article).values(name="b", n=sa.literal(1) + 1))
        assert len(log) - 1 <= 3
        assert tuple(result.inserted_primary_key) == (5,)
        session.execute(sa.insert(Article).values(id=9, name="c"))
        assert changed(session, Article) == [(2, INSERT, 5, "b", 2), (2, INSERT, 9, "c", None)]

    def test_several_values(self, session, Article) -> None:
        """`values()` with a list."""
        result = session.execute(
            sa.insert(Article).values([{"name": "b"}, {"name": "c", "n": 3}][:1])
        )
        assert not result.returns_rows
        session.execute(sa.insert(Article).values([{"name": "d", "n": 1}, {"name": "e", "n": 2}]))
        assert [row[1:] for row in changed(session, Article)] == [
            (INSERT, 5, "b", None),
            (INSERT, 6, "d", 1),
            (INSERT, 7, "e", 2),
        ]

    def test_list_of_rows(self, session, Article, engine, statements) -> None:
        """A bulk INSERT, of rows with different columns too."""
        rows = [{"name": f"b{n}"} for n in range(3)]
        with statements(engine) as log:
            session.execute(sa.insert(Article), rows)
        assert len(log) - 1 <= 3
        session.execute(sa.insert(Article), [{"id": 20, "name": "c"}, {"name": "d", "n": 4}])
        assert sorted(row[1:2] + row[3:] for row in changed(session, Article)) == [
            (INSERT, "b0", None),
            (INSERT, "b1", None),
            (INSERT, "b2", None),
            (INSERT, "c", None),
            (INSERT, "d", 4),
        ]

    def test_returning(self, session, Article) -> None:
        """RETURNING of objects, of columns, in the order of the parameters."""
        objects = session.scalars(
            sa.insert(Article).returning(Article), [{"name": "b"}, {"name": "c"}]
        ).all()
        assert sorted(a.name for a in objects) == ["b", "c"]
        names = session.scalars(
            sa.insert(Article).returning(Article.name, sort_by_parameter_order=True),
            [{"name": name} for name in "fed"],
        ).all()
        assert names == ["f", "e", "d"]
        result = session.execute(sa.insert(Article).values(name="g").returning(Article.name))
        assert list(result.keys()) == ["name"]
        assert result.all() == [("g",)]
        result = session.connection().execute(
            sa.insert(Article.__table__).values(name="h").returning(Article.__table__.c.name)
        )
        assert list(result.keys()) == ["name"]
        assert result.one() == ("h",)
        assert {row[3] for row in changed(session, Article)} == set("bcdefgh")

    def test_from_select(self, session, Article) -> None:
        """INSERT ... SELECT, set by set."""
        copies = sa.select(sa.literal("copy ").concat(Article.name), Article.n).where(Article.n > 2)
        result = session.execute(sa.insert(Article).from_select(["name", "n"], copies))
        assert not result.returns_rows
        assert [row[1:] for row in changed(session, Article)] == [
            (INSERT, 5, "copy a3", 3),
            (INSERT, 6, "copy a4", 4),
        ]

    def test_key_made_in_python(self, versioning, Base, open_session) -> None:
        """Keys that a Python default makes."""
        made = iter("abc")

        class Item(Base):
            __tablename__ = "item"
            __versioned__ = {}
            key = mapped_column(sa.String(5), primary_key=True, default=lambda: next(made))
            n = mapped_column(sa.Integer)

        session = open_session()
        session.execute(sa.insert(Item).values(n=1))
        session.execute(sa.insert(Item), [{"n": 2}, {"n": 3}])
        session.commit()
        assert history(session, Item, "key", "n") == [
            (1, INSERT, "a", 1),
            (1, INSERT, "b", 2),
            (1, INSERT, "c", 3),
        ]

    def test_key_used_before(self, session, Article) -> None:
        """A key of a deleted row can be used again."""
        session.execute(sa.delete(Article).where(Article.id == 4))
        session.commit()
        session.execute(sa.insert(Article), [{"id": 4, "name": "again"}])
        assert changed(session, Article) == [
            (2, DELETE, 4, "a4", 4),
            (3, INSERT, 4, "again", None),
        ]


class TestUpsert:
    @pytest.mark.parametrize("core", [True, False])
    def test_update_or_insert(self, session, Article, core, engine, statements) -> None:
        """Rows that were there are updated, others inserted; at most three statements."""
        dialect = session.get_bind().dialect.name
        table = Article.__table__ if core else Article
        with statements(engine) as log:
            session.execute(
                upsert(dialect, table, [{"name": "a1", "n": 7}, {"name": "b", "n": 8}], n=50)
            )
        assert len(log) - 1 <= 3
        session.expire_all()
        found = changed(session, Article)
        assert sorted(row[1:2] + row[3:] for row in found) == [(INSERT, "b", 8), (UPDATE, "a1", 50)]
        assert {row[2] for row in found if row[1] == UPDATE} == {1}

    def test_mixed_with_a_flush(self, session, Article) -> None:
        """An upsert of rows that this transaction inserted, updated and deleted."""
        dialect = session.get_bind().dialect.name
        session.add(Article(name="a5", n=5))
        session.get(Article, 1).n = 11
        session.delete(session.get(Article, 2))
        session.flush()
        for name in ("a5", "a1", "a3"):
            session.execute(upsert(dialect, Article.__table__, {"name": name, "n": 0}, n=33))
        session.execute(sa.insert(Article).values(id=2, name="a2", n=2))
        assert changed(session, Article) == [
            (2, UPDATE, 1, "a1", 33),
            (2, UPDATE, 3, "a3", 33),
            (2, INSERT, 5, "a5", 33),
        ]

    @pytest.mark.backends("sqlite", "postgresql")
    def test_do_nothing(self, session, Article) -> None:
        """A row that stays as it is gets no version, its neighbour does."""
        insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
        statement = insert(Article).values([{"name": "a1", "n": 9}, {"name": "b", "n": 9}])
        session.execute(statement.on_conflict_do_nothing())
        statement = insert(Article).values(name="a2").on_conflict_do_nothing()
        session.execute(statement)
        assert [row[:2] + row[3:] for row in changed(session, Article)] == [(2, INSERT, "b", 9)]

    @pytest.mark.backends("sqlite", "postgresql")
    def test_returning_and_executemany(self, session, Article) -> None:
        """With RETURNING and a list of rows."""
        insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
        statement = insert(Article)
        statement = statement.on_conflict_do_update(
            index_elements=["name"], set_={"n": statement.excluded.n}
        )
        found = session.scalars(
            statement.returning(Article),
            [{"name": "a1", "n": 5}, {"name": "b", "n": 6}],
            execution_options={"populate_existing": True},
        ).all()
        assert sorted((a.name, a.n) for a in found) == [("a1", 5), ("b", 6)]
        assert sorted(row[1:2] + row[3:] for row in changed(session, Article)) == [
            (INSERT, "b", 6),
            (UPDATE, "a1", 5),
        ]

    @pytest.mark.backends("sqlite", "mariadb")
    def test_prefixes(self, session, Article, backend) -> None:
        """INSERT OR IGNORE, INSERT OR REPLACE, INSERT IGNORE."""
        ignore = "OR IGNORE" if backend == "sqlite" else "IGNORE"
        session.execute(sa.insert(Article).prefix_with(ignore).values(id=1, name="x"))
        session.execute(sa.insert(Article).prefix_with(ignore).values(id=5, name="a5"))
        if backend == "sqlite":
            session.execute(
                sa.insert(Article).prefix_with("OR REPLACE").values(id=2, name="a2", n=3)
            )
        else:
            session.execute(sa.update(Article).where(Article.id == 2).values(n=3))
        assert changed(session, Article) == [
            (2, UPDATE, 2, "a2", 3),
            (2, INSERT, 5, "a5", None),
        ]


def flush_insert(session: Any, cls: Any, key: int) -> None:
    session.add(cls(id=key, name=f"x{key}", n=0))
    session.flush()


def flush_update(session: Any, cls: Any, key: int) -> None:
    session.get(cls, key, populate_existing=True).n += 1
    session.flush()


def flush_delete(session: Any, cls: Any, key: int) -> None:
    session.delete(session.get(cls, key, populate_existing=True))
    session.flush()


def bulk_insert(session: Any, cls: Any, key: int) -> None:
    session.expunge_all()
    session.execute(sa.insert(cls).values(id=key, name=f"x{key}", n=0))


def bulk_update(session: Any, cls: Any, key: int) -> None:
    session.execute(sa.update(cls).where(cls.name == f"x{key}").values(n=cls.n + 1))


def key_update(session: Any, cls: Any, key: int) -> None:
    session.execute(sa.update(cls).where(cls.id == key).values(n=cls.n + 1))


def bulk_back(session: Any, cls: Any, key: int) -> None:
    session.execute(sa.update(cls).where(cls.name == f"x{key}").values(n=0))


def bulk_delete(session: Any, cls: Any, key: int) -> None:
    session.execute(sa.delete(cls).where(cls.name == f"x{key}"))


INSERTS, UPDATES, DELETES = (
    [flush_insert, bulk_insert],
    [flush_update, bulk_update, key_update],
    [flush_delete, bulk_delete],
)


class TestMerge:
    """A transaction leaves one version of a row: what it amounts to, however it was done."""

    @staticmethod
    def check(
        session: Any, cls: Any, expected: list[Any], *ways: list[Any], new: bool = False
    ) -> None:
        """Each combination of `ways` in a transaction of its own, on a row of its own."""
        for key, steps in enumerate(itertools.product(*ways), 10):
            if not new:
                flush_insert(session, cls, key)
                session.commit()
            before = count_transactions(session, cls)
            for step in steps:
                step(session, cls, key)
            session.commit()
            found = [row[1:2] + row[4:] for row in history(session, cls, *COLUMNS) if row[2] == key]
            names = [step.__name__ for step in steps]
            assert found == ([] if new else [(INSERT, 0)]) + expected, names
            assert count_transactions(session, cls) == before + bool(expected), names

    def test_insert_update(self, session, Article) -> None:
        """INSERT, then UPDATE: an INSERT with the last values."""
        self.check(session, Article, [(INSERT, 1)], INSERTS, UPDATES, new=True)

    def test_insert_delete(self, session, Article) -> None:
        """INSERT, then DELETE: nothing, and no transaction row."""
        self.check(session, Article, [], INSERTS, DELETES, new=True)

    def test_update_update(self, session, Article) -> None:
        """Two UPDATEs: one."""
        self.check(session, Article, [(UPDATE, 2)], UPDATES, UPDATES)

    def test_update_delete(self, session, Article) -> None:
        """UPDATE, then DELETE: a DELETE with the last values."""
        self.check(session, Article, [(DELETE, 1)], UPDATES, DELETES)

    def test_delete_insert(self, session, Article) -> None:
        """DELETE, then INSERT of the same key, then UPDATE: an UPDATE."""
        self.check(session, Article, [(UPDATE, 1)], DELETES, INSERTS, UPDATES)

    def test_there_and_back(self, session, Article) -> None:
        """What is as it was before leaves nothing, and no transaction row."""
        self.check(session, Article, [], DELETES, INSERTS)
        session.execute(sa.delete(Article).where(Article.id > 9))
        session.commit()
        session.expunge_all()
        session.execute(sa.insert(Article).values(id=30, name="x30", n=0))
        session.commit()
        for update in UPDATES:
            update(session, Article, 30)
            bulk_back(session, Article, 30)
            session.commit()
        assert [row[1] for row in history(session, Article) if row[2] == 30] == [INSERT]

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    def test_savepoints(self, session, Article, end) -> None:
        """What a savepoint that is rolled back recorded is gone; what it released stays."""
        inners = [bulk_update, bulk_delete, flush_update]
        for key, (outer, inner) in enumerate(
            itertools.product([None, bulk_update, flush_update], inners), 10
        ):
            flush_insert(session, Article, key)
            session.commit()
            if outer is not None:
                outer(session, Article, key)
            savepoint = session.begin_nested()
            inner(session, Article, key)
            getattr(savepoint, end)()
            session.expire_all()
            n = (outer is not None) + (end == "commit" and inner is not bulk_delete)
            if end == "commit" and inner is bulk_delete:
                expected = (DELETE, n)
            else:
                bulk_update(session, Article, key)
                expected = (UPDATE, n + 1)
            session.commit()
            found = [row for row in history(session, Article, *COLUMNS) if row[2] == key]
            assert [row[1:2] + row[4:] for row in found] == [(INSERT, 0), expected]


class TestInheritance:
    @pytest.fixture
    def joined(self, versioning: Any, Base: Any) -> Any:
        class Employee(Base):
            __tablename__ = "employee"
            __versioned__ = {}
            id = mapped_column(sa.Integer, primary_key=True)
            name = mapped_column(sa.String(20))
            kind = mapped_column(sa.String(20))
            __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "employee"}

        class Manager(Employee):
            __tablename__ = "manager"
            id = mapped_column(sa.ForeignKey("employee.id", ondelete="CASCADE"), primary_key=True)
            level = mapped_column(sa.Integer)
            __mapper_args__ = {"polymorphic_identity": "manager"}

        return Employee, Manager

    def test_update_of_each_table(self, joined, open_session, laws) -> None:
        """A change of one table of an object gives it a version in each of its tables."""
        laws.repeats = True
        employee, manager = joined
        session = open_session()
        session.add_all([manager(name="m", level=1), employee(name="e")])
        session.commit()
        session.execute(sa.update(employee).values(name="x"))
        session.commit()
        session.execute(sa.update(manager).where(manager.level == 1).values(level=2))
        session.commit()
        assert history(session, employee, "id", "name") == [
            (1, INSERT, 1, "m"),
            (1, INSERT, 2, "e"),
            (2, UPDATE, 1, "x"),
            (2, UPDATE, 2, "x"),
            (3, UPDATE, 1, "x"),
        ]
        assert history(session, manager, "id", "level") == [
            (1, INSERT, 1, 1),
            (2, UPDATE, 1, 1),
            (3, UPDATE, 1, 2),
        ]

    def test_update_by_key(self, joined, open_session, laws) -> None:
        """The bulk UPDATE by key of a subclass writes both tables."""
        laws.repeats = True
        employee, manager = joined
        session = open_session()
        session.add_all([manager(id=1, name="m", level=1), manager(id=2, name="n", level=1)])
        session.commit()
        rows = [{"id": 1, "name": "x", "level": 5}, {"id": 2, "name": "y", "level": 6}]
        session.execute(sa.update(manager), rows)
        session.commit()
        assert history(session, employee, "name")[2:] == [(2, UPDATE, "x"), (2, UPDATE, "y")]
        assert history(session, manager, "level")[2:] == [(2, UPDATE, 5), (2, UPDATE, 6)]

    def test_insert(self, joined, open_session) -> None:
        """A bulk INSERT of a subclass writes both tables."""
        employee, manager = joined
        session = open_session()
        session.execute(sa.insert(manager), [{"name": "m", "level": 1}, {"name": "n", "level": 2}])
        session.bulk_save_objects([manager(name="o", level=3)])
        session.commit()
        assert [row[1:] for row in history(session, employee, "name", "kind")] == [
            (INSERT, name, "manager") for name in "mno"
        ]
        assert [row[1:] for row in history(session, manager, "level")] == [
            (INSERT, level) for level in (1, 2, 3)
        ]

    def test_delete(self, joined, open_session) -> None:
        """Deleting rows of the base table deletes those of the other tables with them."""
        employee, manager = joined
        session = open_session()
        session.add_all([manager(name="m", level=1), employee(name="e")])
        session.commit()
        session.execute(sa.delete(employee).where(employee.name == "m"))
        session.commit()
        assert history(session, employee, "name")[2:] == [(2, DELETE, "m")]
        assert history(session, manager, "level")[1:] == [(2, DELETE, 1)]

    @pytest.mark.backends("sqlite")
    def test_single_table(self, versioning, Base, open_session) -> None:
        """Only the rows of the class that is named."""

        class Animal(Base):
            __tablename__ = "animal"
            __versioned__ = {}
            id = mapped_column(sa.Integer, primary_key=True)
            name = mapped_column(sa.String(20))
            kind = mapped_column(sa.String(20))
            __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "animal"}

        class Cat(Animal):
            __mapper_args__ = {"polymorphic_identity": "cat"}

        session = open_session()
        session.add_all([Animal(name="a"), Cat(name="c")])
        session.commit()
        session.execute(sa.update(Cat).values(name="x"))
        session.commit()
        session.execute(sa.delete(Cat).where(Cat.name != "y"))
        session.commit()
        assert history(session, Animal, "id", "name")[2:] == [
            (2, UPDATE, 2, "x"),
            (3, DELETE, 2, "x"),
        ]

    @pytest.mark.backends("sqlite")
    def test_concrete(self, versioning, Base, open_session) -> None:
        """Each table has a history of its own."""

        class Shape(Base):
            __tablename__ = "shape"
            __versioned__ = {}
            id = mapped_column(sa.Integer, primary_key=True)
            name = mapped_column(sa.String(20))

        class Circle(Shape):
            __tablename__ = "circle"
            id = mapped_column(sa.Integer, primary_key=True)
            name = mapped_column(sa.String(20))
            radius = mapped_column(sa.Integer)
            __mapper_args__ = {"concrete": True}

        session = open_session()
        session.add_all([Shape(name="s"), Circle(name="c", radius=1)])
        session.commit()
        session.execute(sa.update(Circle).values(radius=Circle.radius + 1))
        session.execute(sa.update(Shape).values(name="t"))
        session.commit()
        assert history(session, Circle, "name", "radius")[1:] == [(2, UPDATE, "c", 2)]
        assert history(session, Shape, "name")[1:] == [(2, UPDATE, "t")]


@pytest.mark.orm_capture(reason="triggers record the rows that it makes behind our back")
def test_rows_without_history(versioning, Base, open_session, laws) -> None:
    """Rows that were there before versioning have the change as their first version."""
    laws.whole = False

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        n = mapped_column(sa.Integer)

    session = open_session()
    with session.get_bind().begin() as connection:
        connection.execute(sa.insert(Article.__table__), [{"id": n, "n": n} for n in (1, 2, 3)])
    session.execute(sa.update(Article).where(Article.n > 1).values(n=9))
    session.commit()
    session.execute(sa.delete(Article).where(Article.n < 9))
    session.commit()
    assert history(session, Article) == [(1, UPDATE, 2, 9), (1, UPDATE, 3, 9), (2, DELETE, 1, 1)]


def test_statements_in_listeners(session, Article) -> None:
    """Statements that a listener executes inside of a flush belong to the flush's transaction."""

    @sa.event.listens_for(Article, "after_update")
    def touch(mapper: Any, connection: Any, target: Any) -> None:
        table = Article.__table__
        connection.execute(sa.update(table).where(table.c.n == 4).values(n=40))
        connection.execute(sa.delete(table).where(table.c.n == 3))
        connection.execute(sa.insert(table).values(id=7, name="a7"))

    session.get(Article, 1).n = 11
    session.flush()
    assert changed(session, Article) == [
        (2, UPDATE, 1, "a1", 11),
        (2, DELETE, 3, "a3", 3),
        (2, UPDATE, 4, "a4", 40),
        (2, INSERT, 7, "a7", None),
    ]


def test_relationships_show_bulk_changes(versioning, Base, open_session) -> None:
    """A flush after a bulk statement goes on from what the statement recorded."""

    class Author(Base):
        __tablename__ = "author"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        books = relationship("Book", order_by="Book.id")

    class Book(Base):
        __tablename__ = "book"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        author_id = mapped_column(sa.ForeignKey("author.id"))

    session = open_session()
    one, two = Author(id=1, books=[Book(id=1), Book(id=2)]), Author(id=2)
    session.add_all([one, two])
    session.commit()
    session.execute(sa.update(Book).values(author_id=2))
    session.expire_all()
    one.books.append(two.books[0])
    session.commit()
    assert history(session, Book) == [
        (1, INSERT, 1, 1),
        (1, INSERT, 2, 1),
        (2, UPDATE, 2, 2),
    ]


@pytest.mark.backends("sqlite")
def test_async_sessions(versioning, Base, run_async, open_async_session) -> None:
    """Under an `AsyncSession` as well."""

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        n = mapped_column(sa.Integer)

    async def main() -> None:
        session = await open_async_session()
        await session.execute(sa.insert(Article), [{"n": 1}, {"n": 2}])
        await session.commit()
        await session.execute(sa.update(Article).where(Article.n > 1).values(n=5))
        await session.execute(sa.delete(Article).where(Article.n == 1))
        await session.commit()
        found = await session.run_sync(lambda s: history(s, Article))
        assert found == [(1, INSERT, 1, 1), (1, INSERT, 2, 2), (2, DELETE, 1, 1), (2, UPDATE, 2, 5)]

    run_async(main)


def test_value_made_of_a_column_without_history_that_is_set_before(
    versioning: Any, Base: Any, open_session: Any
) -> None:
    """MySQL assigns from left to right, whether a column has a history or not."""

    class Word(Base):
        __tablename__ = "word"
        __versioned__ = {"exclude": ["hidden"]}
        id = mapped_column(sa.Integer, primary_key=True)
        hidden = mapped_column(sa.String(20))
        text = mapped_column(sa.String(20))

    session = open_session()
    session.add(Word(id=1, hidden="old", text="t"))
    session.commit()
    session.execute(sa.update(Word).values(hidden="new", text=Word.hidden))
    session.commit()
    assert verify(session, Word) == []
