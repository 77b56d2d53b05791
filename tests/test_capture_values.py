"""What a version holds is what the database holds: types, keys, defaults, expressions, names."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import ipaddress
import json
import sqlite3
import sys
import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.mutable import MutableDict, MutableList
from sqlalchemy.orm import Mapped, Session, deferred, mapped_column

from chain import DELETE, INSERT, UPDATE, count_transactions, history, laws

__all__ = ["laws"]

sqlite_only = pytest.mark.backends("sqlite")


class Color(enum.Enum):
    red = 1
    green = 2


class Upper(sa.TypeDecorator[str]):
    """Stored in upper case, read in lower case."""

    impl = sa.String(20)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.upper()

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.lower()


class Json(sa.TypeDecorator[Any]):
    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else json.loads(value)


D = decimal.Decimal
UTC = dt.timezone.utc

#: (type, values to go through)
TYPES: dict[str, tuple[Any, list[Any]]] = {
    "string": (sa.String(20), ["a", "", None, "A", "a ", "ünï'\\x"]),
    "text": (sa.Text(), ["a", "", None, "A", "x" * 3000]),
    "unicode": (sa.Unicode(20), ["ä", "Ä", "\U0001f600"]),
    "char": (sa.CHAR(5), ["abcde", "ABCDE", None]),
    "integer": (sa.Integer(), [0, 1, None, -(2**31)]),
    "big integer": (sa.BigInteger(), [0, 2**62, None]),
    "boolean": (sa.Boolean(), [False, True, None]),
    "float": (sa.Double(), [0.0, 0.1, None, -1e300]),
    "numeric": (sa.Numeric(10, 2), [D("1.00"), D("1.01"), None, D("-12345678.90")]),
    "date": (sa.Date(), [dt.date(2026, 1, 1), None, dt.date(1999, 12, 31)]),
    "time": (sa.Time(), [dt.time(0), dt.time(23, 59, 59), None]),
    "datetime": (
        sa.DateTime(),
        [dt.datetime(2026, 1, 1), None, dt.datetime(1999, 1, 1)],
    ),
    "interval": (sa.Interval(), [dt.timedelta(0), dt.timedelta(days=1), None]),
    "enum": (sa.Enum(Color), [Color.red, Color.green, None]),
    "text enum": (sa.Enum(Color, native_enum=False), [Color.red, None, Color.green]),
    "binary": (sa.LargeBinary(), [b"", b"\x00\xff", None, b"a", b"A"]),
    "uuid": (sa.Uuid(), [uuid.UUID(int=0), uuid.UUID(int=2**127), None]),
    "pickle": (sa.PickleType(), [{"a": 1}, [1, 2], None, {"a": 2}]),
    "json": (sa.JSON(), [{"a": 1}, [], {}, {"a": {"b": [1, None]}}, "text", 0]),
    "json none as null": (sa.JSON(none_as_null=True), [{"a": 1}, None, {"a": 2}]),
    "decorated": (Upper(), ["a", "b", None]),
    "decorated json": (Json(), [{"a": 1}, {"a": 2}, None]),
}

POSTGRESQL_TYPES: dict[str, tuple[Any, list[Any]]] = {
    "jsonb": (postgresql.JSONB(), [{"a": 1}, {"a": 2}, [1]]),
    "array": (postgresql.ARRAY(sa.Integer), [[1, 2], [], None, [2, 1]]),
    "array of text": (sa.ARRAY(sa.Text), [["a"], ["A", "b"], None]),
    "array of enums": (sa.ARRAY(sa.Enum(Color, name="colors")), [[Color.red], [Color.green]]),
    "postgresql json": (postgresql.JSON(), [{"a": 1}, {"a": 2}]),
    "inet": (
        postgresql.INET(),
        [ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("::1"), None],
    ),
    "native interval": (postgresql.INTERVAL(), [dt.timedelta(1), dt.timedelta(2)]),
    "aware datetime": (
        sa.DateTime(timezone=True),
        [
            dt.datetime(2026, 1, 1, tzinfo=UTC),
            None,
            dt.datetime(1999, 1, 1, tzinfo=UTC),
        ],
    ),
    "tsvector": (postgresql.TSVECTOR(), ["'a'", "'b'"]),
    "bit": (postgresql.BIT(3), ["101", "111"]),
}

MARIADB_TYPES: dict[str, tuple[Any, list[Any]]] = {
    "set": (mysql.SET("a", "b"), [{"a"}, {"a", "b"}]),
    "tinyint": (mysql.TINYINT(1), [0, 1]),
    "microseconds": (mysql.DATETIME(fsp=6), [dt.datetime(2026, 1, 1, 0, 0, 0, 1)]),
    "longtext": (mysql.LONGTEXT(), ["a", "A"]),
}


def check_type(base: Any, open_session: Any, type_: Any, values: list[Any]) -> None:
    class Thing(base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        value = mapped_column(type_)
        other = mapped_column(type_)

    session = open_session()
    thing = Thing(value=values[0])
    session.add(thing)
    session.commit()
    for value in values[1:]:
        thing.value = value
        session.commit()
    expected = [(INSERT, values[0]), *((UPDATE, value) for value in values[1:])]
    assert versions(session, Thing) == expected
    # the same again changes nothing: set on a loaded, an expired, a merged object
    last = session.get(Thing, thing.id).value
    session.refresh(thing)
    thing.value = values[-1]
    session.commit()
    thing.value = values[-1]
    session.commit()
    session.merge(Thing(id=thing.id, value=last))
    session.commit()
    assert versions(session, Thing) == expected
    # there and back in two flushes
    thing.value = values[0]
    session.flush()
    thing.value = values[-1]
    session.commit()
    assert versions(session, Thing) == expected
    session.delete(thing)
    session.commit()
    assert versions(session, Thing) == [*expected, (DELETE, values[-1])]


def versions(session: Session, cls: Any, name: str = "value") -> list[tuple[Any, ...]]:
    return [row[1:] for row in history(session, cls, name)]


@sqlite_only
@pytest.mark.parametrize("kind", TYPES)
def test_types(versioning, Base, open_session, kind) -> None:
    """Values of every type are recorded as stored; equal ones are no change."""
    check_type(Base, open_session, *TYPES[kind])


@pytest.mark.backends("postgresql", "mariadb")
@pytest.mark.parametrize("options", [{"strategy": "validity"}], ids=["validity"])
@pytest.mark.parametrize("kind", TYPES)
def test_types_on_servers(versioning, Base, open_session, kind) -> None:
    """The same on the servers."""
    check_type(Base, open_session, *TYPES[kind])


@pytest.mark.backends("postgresql")
@pytest.mark.parametrize("options", [{"strategy": "validity"}], ids=["validity"])
@pytest.mark.parametrize("kind", POSTGRESQL_TYPES)
def test_types_of_postgresql(versioning, Base, open_session, kind) -> None:
    """Types that only PostgreSQL has."""
    check_type(Base, open_session, *POSTGRESQL_TYPES[kind])


@pytest.mark.backends("mariadb")
@pytest.mark.parametrize("options", [{"strategy": "validity"}], ids=["validity"])
@pytest.mark.parametrize("kind", MARIADB_TYPES)
def test_types_of_mariadb(versioning, Base, open_session, kind) -> None:
    """Types that only MariaDB has."""
    check_type(Base, open_session, *MARIADB_TYPES[kind])


# -- keys

KEYS: dict[str, tuple[Any, list[Any]]] = {
    "string": (sa.String(20), ["a", "b c", "ünï", "it's", "100%", '{"x": 1}', "[1]"]),
    "digits": (sa.String(20), ["1", "01", "1.0", "null", "true"]),
    "uuid": (sa.Uuid(), [uuid.UUID(int=1), uuid.UUID(int=2**127)]),
    "text uuid": (sa.Uuid(native_uuid=False), [uuid.UUID(int=1), uuid.UUID(int=2)]),
    "bytes": (sa.LargeBinary(16), [b"a", b"\x00\xff"]),
    "datetime": (
        sa.DateTime(),
        [dt.datetime(2026, 1, 1, 12), dt.datetime(1999, 12, 31, 23, 59, 59)],
    ),
    "date": (sa.Date(), [dt.date(2026, 1, 1), dt.date(1999, 12, 31)]),
    "decimal": (sa.Numeric(10, 2), [D("1.00"), D("1.10"), D("-2.55")]),
    "enum": (sa.Enum(Color), [Color.red, Color.green]),
    "boolean": (sa.Boolean(), [True, False]),
    "float": (sa.Double(), [0.5, 0.1, 1e100]),
    "big integer": (sa.BigInteger(), [2**62, -(2**62), 0]),
    "decorated": (Upper(), ["a", "b"]),
}


def keyed(base: Any, type_: Any) -> Any:
    class Thing(base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(type_, primary_key=True, autoincrement=False)
        value = mapped_column(sa.String(20))

    return Thing


def keyed_twice(base: Any, type_: Any) -> Any:
    class Thing(base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(type_, primary_key=True, autoincrement=False)
        part = mapped_column(sa.Integer, primary_key=True, autoincrement=False, default=1)
        value = mapped_column(sa.String(20))

    return Thing


@pytest.fixture
def few_parameters(engine) -> None:
    """A statement takes as few parameters as in an old SQLite, or in SQL Server."""
    if sys.version_info < (3, 11):
        pytest.skip("sqlite3 has no setlimit()")
    with engine.connect() as connection:
        limited = connection.connection.driver_connection
        limited.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)


@sqlite_only
def test_more_keys_than_a_statement_takes(versioning, Base, open_session, few_parameters) -> None:
    """Keys that are parameters of their own go in as many statements as they need."""
    Thing = keyed(Base, sa.LargeBinary(16))
    session = open_session()
    things = [Thing(id=b"%d" % number, value="a") for number in range(2_000)]
    session.add_all(things)
    session.commit()
    for thing in session.scalars(sa.select(Thing)).all():
        if thing.id.endswith(b"0"):
            session.delete(thing)
        else:
            thing.value = "b"
    session.add_all(Thing(id=b"new %d" % number) for number in range(1_000))
    session.commit()
    operations = [operation for _, operation, _ in history(session, Thing, "id")]
    assert [operations.count(kind) for kind in (INSERT, UPDATE, DELETE)] == [3_000, 1_800, 200]


@sqlite_only
def test_more_doubtful_keys_than_a_statement_takes(
    versioning, Base, open_session, few_parameters
) -> None:
    """What only the database can compare is recorded if it differs, and leaves nothing if not."""
    Thing = keyed(Base, sa.LargeBinary(16))
    session = open_session()
    session.add_all(Thing(id=b"%d" % number, value="a") for number in range(2_000))
    session.commit()
    keys_only = sa.select(Thing).options(sa.orm.load_only(Thing.id))
    for value in ("a", "b"):
        session.expunge_all()
        for thing in session.scalars(keys_only).all():
            thing.value = value if thing.id.endswith(b"0") else "a"
        session.commit()
    assert count_transactions(session, Thing) == 2
    operations = [operation for _, operation, _ in history(session, Thing, "id")]
    assert [operations.count(kind) for kind in (INSERT, UPDATE)] == [2_000, 200]


@pytest.mark.parametrize("build", [keyed, keyed_twice])
@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("options", [{"strategy": "validity"}], ids=["validity"])
def test_keys(versioning, Base, open_session, backend, kind, build) -> None:
    """Primary keys of every type, alone and as part of a composite key; one row and many."""
    type_, keys = KEYS[kind]
    if backend == "mariadb" and kind == "bytes":
        type_ = sa.VARBINARY(16)
    if backend == "mariadb" and kind == "datetime":
        type_ = mysql.DATETIME()
    cls = build(Base, type_)
    session = open_session()
    things = [cls(id=key, value="a") for key in keys]
    session.add_all(things)
    session.commit()
    for thing in things:
        thing.value = "b"
    session.commit()
    things[0].value = sa.func.upper("c")
    session.commit()
    for thing in things:
        thing.value = "d"
        session.flush()
    for thing in things:
        thing.value = "e"
    session.commit()
    for thing in things[1:]:
        session.delete(thing)
    session.commit()
    session.delete(things[0])
    session.commit()
    session.add(cls(id=keys[0], value="again"))
    session.commit()
    rows = history(session, cls, "value")
    count = len(keys)
    assert [row[1:] for row in rows] == (
        [(INSERT, "a")] * count
        + [(UPDATE, "b")] * count
        + [(UPDATE, "C")]
        + [(UPDATE, "e")] * count
        + [(DELETE, "e")] * count
        + [(INSERT, "again")]
    )


def test_keys_that_differ_in_case_and_blanks(versioning, Base, open_session, backend) -> None:
    """Where the database tells 'a', 'A' and 'a ' apart, so do the histories."""
    type_: Any = sa.String(20)
    if backend == "mariadb":
        type_ = sa.String(20, collation="utf8mb4_nopad_bin")
    cls = keyed(Base, type_)
    session = open_session()
    things = [cls(id=key, value="a") for key in ("a", "A", "a ")]
    session.add_all(things)
    session.commit()
    things[1].value = "b"
    session.commit()
    session.delete(things[2])
    session.commit()
    assert sorted(row[1:] for row in history(session, cls, "id", "value")) == sorted(
        [
            (INSERT, "a", "a"),
            (INSERT, "A", "a"),
            (INSERT, "a ", "a"),
            (UPDATE, "A", "b"),
            (DELETE, "a ", "a"),
        ]
    )


def test_keys_of_the_server(versioning, Base, open_session, backend) -> None:
    """Keys by server-side defaults and by SQL expressions."""
    default: Any = {
        "sqlite": sa.text("(lower(hex(randomblob(8))))"),
        "postgresql": sa.text("gen_random_uuid()::text"),
        "mariadb": sa.text("(uuid())"),
    }[backend]

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.String(40), primary_key=True, server_default=default)
        value = mapped_column(sa.String(20))

    class Other(Base):
        __tablename__ = "other"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        value = mapped_column(sa.String(20))

    session = open_session()
    if backend != "mariadb":
        session.add_all([Thing(value="a"), Thing(value="a")])
        session.commit()
        assert versions(session, Thing) == [(INSERT, "a")] * 2
    session.add(Other(id=sa.select(sa.literal(40) + 2).scalar_subquery(), value="a"))
    session.commit()
    session.get(Other, 42).value = "b"
    session.commit()
    assert history(session, Other)[-1][1:] == (UPDATE, 42, "b")


def test_a_natural_key_that_is_a_foreign_key(versioning, Base, open_session) -> None:
    """A one-to-one extension of a row, keyed by it, whose key comes from the relationship."""

    class Country(Base):
        __tablename__ = "country"
        __versioned__ = {}
        code = mapped_column(sa.String(2), primary_key=True)

    class Flag(Base):
        __tablename__ = "flag"
        __versioned__ = {}
        code = mapped_column(sa.ForeignKey("country.code"), primary_key=True)
        colors = mapped_column(sa.String(20))
        country = sa.orm.relationship(Country, backref=sa.orm.backref("flag", uselist=False))

    session = open_session()
    country = Country(code="nl", flag=Flag(colors="red"))
    session.add(country)
    session.commit()
    country.flag.colors = "red, white"
    session.commit()
    session.delete(country.flag)
    session.commit()
    assert history(session, Flag) == [
        (1, INSERT, "nl", "red"),
        (2, UPDATE, "nl", "red, white"),
        (3, DELETE, "nl", "red, white"),
    ]


# -- what the database makes of a value


def test_rounding(versioning, Base, open_session) -> None:
    """1.001 in NUMERIC(10, 2) over 1.00 is no change, where the database rounds it."""

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        value = mapped_column(sa.Numeric(10, 2))

    session = open_session()
    thing = Thing(value=D("1.00"))
    session.add(thing)
    session.commit()
    session.refresh(thing)
    thing.value = D("1.001") if session.get_bind().dialect.name != "sqlite" else D("1.000")
    session.commit()
    assert versions(session, Thing) == [(INSERT, D("1.00"))]
    thing.value = D("1.01")
    session.commit()
    assert versions(session, Thing) == [(INSERT, D("1.00")), (UPDATE, D("1.01"))]


def test_changes_of_case_only(versioning, Base, open_session) -> None:
    """'a' -> 'A' is a change, also where the collation says that they are equal."""

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        value = mapped_column(sa.String(20))

    session = open_session()
    thing = Thing(value="a")
    session.add(thing)
    session.commit()
    thing.value = "A"
    session.commit()
    session.expire(thing)
    thing.value = "a"
    session.commit()
    thing.value = sa.func.upper("a")
    session.commit()
    thing.value = "B"
    session.flush()
    thing.value = "a"
    session.commit()
    assert [value for _, value in versions(session, Thing)] == ["a", "A", "a", "A", "a"]


def test_null_and_the_empty_string(versioning, Base, open_session) -> None:
    """NULL and '' differ; NULL and NULL do not, whoever compares them."""

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        value = mapped_column(sa.String(20))
        data = mapped_column(sa.JSON(none_as_null=True))

    session = open_session()
    thing = Thing(value=None)
    session.add(thing)
    session.commit()
    for value in ("", None, None, "", ""):
        session.expire(thing)
        thing.value = value
        session.commit()
    thing.value = sa.null()
    session.commit()
    thing.data = None
    thing.value = None
    session.commit()
    assert [value for _, value in versions(session, Thing)] == [None, "", None, "", None]


def test_sql_expressions(versioning, Base, open_session) -> None:
    """A value set to a SQL expression is recorded as computed, also when it is the only change."""

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        value = mapped_column(sa.Integer)
        name = mapped_column(sa.String(20))

    session = open_session()
    thing = Thing(value=sa.literal(1) + 1, name="a")
    session.add(thing)
    session.commit()
    thing.value = Thing.value + 1
    session.commit()
    thing.value = Thing.value
    session.commit()
    thing.name = "b"
    thing.value = sa.select(sa.func.count()).select_from(Thing).scalar_subquery()
    session.commit()
    assert history(session, Thing, "value", "name") == [
        (1, INSERT, 2, "a"),
        (2, UPDATE, 3, "a"),
        (3, UPDATE, 1, "b"),
    ]
    # several flushes, there and back
    thing.value = Thing.value + 1
    session.flush()
    thing.value = Thing.value - 1
    session.commit()
    assert count_transactions(session, Thing) == 3


def test_defaults_of_every_kind(versioning, Base, open_session, backend) -> None:
    """Server defaults, Python defaults, SQL defaults, onupdate, computed columns: all recorded."""

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))
        server = mapped_column(sa.String(20), server_default="server")
        python = mapped_column(sa.String(20), default=lambda: "python")
        sql = mapped_column(sa.String(20), default=sa.func.lower("SQL"))
        touched = mapped_column(sa.Integer, default=0, onupdate=7)
        counted = mapped_column(sa.Integer, default=0, onupdate=sa.literal(3) + 1)
        computed = mapped_column(sa.String(40), sa.Computed("upper(name)", persisted=True))

    session = open_session()
    thing = Thing(name="a")
    session.add(thing)
    session.commit()
    thing.name = "b"
    session.commit()
    session.delete(thing)
    session.commit()
    names = ("name", "server", "python", "sql", "touched", "counted", "computed")
    assert history(session, Thing, *names) == [
        (1, INSERT, "a", "server", "python", "sql", 0, 0, "A"),
        (2, UPDATE, "b", "server", "python", "sql", 7, 4, "B"),
        (3, DELETE, "b", "server", "python", "sql", 7, 4, "B"),
    ]


def test_an_onupdate_of_an_unversioned_change(versioning, Base, open_session) -> None:
    """A versioned column that `onupdate` changes is recorded, although only another one was set."""

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {"exclude": ["views"]}
        id = mapped_column(sa.Integer, primary_key=True)
        views = mapped_column(sa.Integer)
        touched = mapped_column(sa.Integer, default=0, onupdate=lambda: 7)

    session = open_session()
    thing = Thing(views=0)
    session.add(thing)
    session.commit()
    thing.views = 1
    session.commit()
    thing.views = 2
    session.commit()
    assert history(session, Thing, "touched") == [(1, INSERT, 0), (2, UPDATE, 7)]


@pytest.mark.backends("sqlite", "postgresql")
def test_triggers(versioning, Base, open_session, engine, backend) -> None:
    """What a trigger makes of a row is in the version."""

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))
        slug = mapped_column(
            sa.String(20), server_default=sa.FetchedValue(), server_onupdate=sa.FetchedValue()
        )

    session = open_session()
    if backend == "sqlite":
        ddl = [
            f"CREATE TRIGGER slug_{when} AFTER {when} ON thing BEGIN "
            f"UPDATE thing SET slug = upper(NEW.name) WHERE id = NEW.id; END"
            for when in ("INSERT", "UPDATE")
        ]
    else:
        ddl = [
            (
                "CREATE FUNCTION slug() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN NEW.slug = upper(NEW.name); RETURN NEW; END $$"
            ),
            (
                "CREATE TRIGGER slug BEFORE INSERT OR UPDATE ON thing "
                "FOR EACH ROW EXECUTE FUNCTION slug()"
            ),
        ]
    with engine.begin() as connection:
        for statement in ddl:
            connection.exec_driver_sql(statement)
    thing = Thing(name="a")
    session.add(thing)
    session.commit()
    thing.name = "b"
    session.commit()
    session.delete(thing)
    session.commit()
    assert history(session, Thing, "name", "slug") == [
        (1, INSERT, "a", "A"),
        (2, UPDATE, "b", "B"),
        (3, DELETE, "b", "B"),
    ]


@pytest.mark.parametrize("eager", [True, False, "auto"])
def test_eager_defaults(versioning, Base, open_session, eager) -> None:
    """`eager_defaults` in each of its values records the same."""

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        __mapper_args__ = {"eager_defaults": eager}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))
        rank = mapped_column(sa.Integer, server_default="5", onupdate=sa.literal(5) + 1)

    session = open_session()
    things = [Thing(name="a"), Thing(name="b", rank=1)]
    session.add_all(things)
    session.commit()
    things[0].name = "c"
    session.commit()
    session.delete(things[0])
    things[1].rank = Thing.rank + 1
    session.commit()
    assert sorted(history(session, Thing, "name", "rank")) == sorted(
        [
            (1, INSERT, "a", 5),
            (1, INSERT, "b", 1),
            (2, UPDATE, "c", 6),
            (3, DELETE, "c", 6),
            (3, UPDATE, "b", 2),
        ]
    )


# -- what is not loaded


@pytest.mark.parametrize("raiseload", [False, True])
def test_deferred_attributes(versioning, Base, open_session, raiseload) -> None:
    """A deferred attribute, also one that raises, is not loaded; its value is in each version."""

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))
        body = deferred(mapped_column(sa.Text), raiseload=raiseload)

    session = open_session()
    session.add(Thing(id=1, name="a", body="text"))
    session.commit()
    session.expunge_all()
    thing = session.get(Thing, 1)
    thing.name = "b"
    session.commit()
    assert "body" in sa.inspect(thing).unloaded
    thing.body = "text"
    session.commit()
    session.expunge_all()
    thing = session.get(Thing, 1)
    thing.body = "more"
    session.commit()
    session.expunge_all()
    session.delete(session.get(Thing, 1))
    session.commit()
    assert history(session, Thing, "name", "body") == [
        (1, INSERT, "a", "text"),
        (2, UPDATE, "b", "text"),
        (3, UPDATE, "b", "more"),
        (4, DELETE, "b", "more"),
    ]


def test_nothing_is_loaded_by_us(Base, versioning, open_session, engine, statements) -> None:
    """Setting an attribute of an expired object emits no SELECT: no `active_history`."""

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))

    session = open_session()
    thing = Thing(name="a")
    session.add(thing)
    session.commit()
    session.begin()
    with statements(engine) as log:
        thing.name = "b"
    assert len(log) == 0
    session.commit()
    assert versions(session, Thing, "name") == [(INSERT, "a"), (UPDATE, "b")]


@pytest.mark.orm_capture(reason="triggers record what is written past the session, too")
def test_rows_without_history(versioning, Base, open_session, laws) -> None:
    """Rows that were there before versioning are recorded from their first change on."""
    laws.whole = False

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))
        body = deferred(mapped_column(sa.Text))

    session = open_session()
    with session.get_bind().begin() as connection:
        for n in range(1, 6):
            connection.execute(sa.insert(Thing.__table__).values(id=n, name="a", body="b"))
    session.get(Thing, 1).name = "c"
    session.commit()
    gone = session.get(Thing, 2)
    assert gone.body == "b"
    session.delete(gone)
    session.commit()
    session.delete(session.get(Thing, 3))
    session.get(Thing, 4).name = "c"
    session.flush()
    session.get(Thing, 4).name = "a"
    session.commit()
    rows = history(session, Thing, "id", "name", "body")
    assert rows[:2] == [(1, UPDATE, 1, "c", "b"), (2, DELETE, 2, "a", "b")]
    assert rows[2][:4] == (3, DELETE, 3, "a")


# -- mutable values


def test_mutable_values(versioning, Base, open_session) -> None:
    """A Mutable value changed twice is stored as last written; old versions keep theirs."""

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        data = mapped_column(MutableDict.as_mutable(sa.JSON()))
        items = mapped_column(MutableList.as_mutable(sa.PickleType()))

    session = open_session()
    thing = Thing(data={"a": 1}, items=[1])
    session.add(thing)
    session.commit()
    thing.data["a"] = 2
    session.flush()
    thing.data["b"] = 3
    thing.items.append(2)
    session.commit()
    thing.data["b"] = 4
    session.flush()
    thing.data["b"] = 3
    session.commit()
    thing.items.pop()
    session.commit()
    assert history(session, Thing, "data", "items") == [
        (1, INSERT, {"a": 1}, [1]),
        (2, UPDATE, {"a": 2, "b": 3}, [1, 2]),
        (3, UPDATE, {"a": 2, "b": 3}, [1]),
    ]


# -- names


@pytest.mark.parametrize(
    "name",
    ["values", "keys", "items", "history_keys", "select", "c", "columns", "history_tx", "param_1"],
)
def test_odd_names_of_columns(versioning, Base, open_session, name) -> None:
    """Columns may be called what methods, keywords and our own parameters are called."""
    namespace = {
        "__tablename__": "thing",
        "__versioned__": {},
        "id": mapped_column(sa.Integer, primary_key=True),
        name: mapped_column(sa.String(20)),
    }
    cls: Any = type("Thing", (Base,), namespace)
    session = open_session()
    things = [cls(**{name: "a"}), cls(**{name: "b"})]
    session.add_all(things)
    session.commit()
    for thing in things:
        setattr(thing, name, "c")
    session.commit()
    setattr(things[0], name, sa.func.upper("d"))
    session.flush()
    setattr(things[0], name, "e")
    session.commit()
    session.delete(things[0])
    session.commit()
    rows = [row[1:] for row in history(session, cls, "id", name)]
    assert rows == [
        (INSERT, 1, "a"),
        (INSERT, 2, "b"),
        (UPDATE, 1, "c"),
        (UPDATE, 2, "c"),
        (UPDATE, 1, "e"),
        (DELETE, 1, "e"),
    ]


def test_attributes_named_differently(versioning, Base, open_session) -> None:
    """Attributes with other names than their columns; `metadata` as a column's name."""

    class Thing(Base):
        __tablename__ = "Odd Table"
        __versioned__ = {}
        ident: Mapped[int] = mapped_column("the id", sa.Integer, primary_key=True)
        metadata_ = mapped_column("metadata", sa.String(20))
        select_ = mapped_column("SELECT", sa.String(20))
        percent = mapped_column("per%cent", sa.String(20))
        colon = mapped_column("a:b", sa.String(20))

    session = open_session()
    things = [Thing(metadata_="a", select_="b", percent="c", colon="d") for _ in range(2)]
    session.add_all(things)
    session.commit()
    for thing in things:
        thing.metadata_ = thing.select_ = thing.percent = thing.colon = "e"
    session.commit()
    session.delete(things[0])
    session.commit()
    assert [row[1:] for row in history(session, Thing)] == [
        (INSERT, 1, "a", "b", "c", "d"),
        (INSERT, 2, "a", "b", "c", "d"),
        (UPDATE, 1, "e", "e", "e", "e"),
        (UPDATE, 2, "e", "e", "e", "e"),
        (DELETE, 1, "e", "e", "e", "e"),
    ]


@sqlite_only
def test_column_keys(versioning, open_session, Base) -> None:
    """A Core table whose columns have keys that differ from their names."""
    table = sa.Table(
        "thing",
        Base.metadata,
        sa.Column("ID", sa.Integer, key="ident", primary_key=True),
        sa.Column("NAME", sa.String(20), key="label"),
    )

    class Thing(Base):
        __table__ = table
        __versioned__ = {}

    session = open_session()
    thing = Thing(label="a")
    session.add(thing)
    session.commit()
    thing.label = "b"
    session.commit()
    session.delete(thing)
    session.commit()
    assert [row[1:] for row in history(session, Thing, "label")] == [
        (INSERT, "a"),
        (UPDATE, "b"),
        (DELETE, "b"),
    ]


@sqlite_only
def test_a_huge_batch(versioning, Base, open_session) -> None:
    """More rows than any limit of parameters, with a composite key."""

    class Cell(Base):
        __tablename__ = "cell"
        __versioned__ = {}
        row = mapped_column(sa.Integer, primary_key=True)
        column = mapped_column(sa.String(5), primary_key=True)
        value = mapped_column(sa.Integer)

    session = open_session()
    cells = [Cell(row=n // 3, column="abc"[n % 3], value=n) for n in range(6000)]
    session.add_all(cells)
    session.commit()
    for cell in session.scalars(sa.select(Cell)).all():
        cell.value += 1
    session.commit()
    assert len(history(session, Cell)) == 12_000
