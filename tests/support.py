"""What the test suite needs beside pytest: databases of its own, a statement log, a leak detector.

Nothing here knows how `sqlalchemy_history` works inside; it may be imported before the package is.

Database URLs come from the environment (`HISTORY_SQLITE_URL`, `HISTORY_POSTGRESQL_URL`, ...). A
server's URL names a database that we only connect to in order to make another one: each process of
a test run works in a database of its own, which is dropped when the process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import platform
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapper, Session
from sqlalchemy.pool import NullPool, StaticPool

DEFAULT_URLS = {
    "sqlite": "sqlite://",
    "postgresql": "postgresql+psycopg://postgres@127.0.0.1:5432/postgres",
    "mariadb": "mysql+pymysql://root@127.0.0.1:3306/test",
    "mssql": None,
    "oracle": None,
}

# The drivers under which the asynchronous tests run, and the backend each of them belongs to.
ASYNC_DRIVERS = {
    "aiosqlite": "sqlite",
    "psycopg_async": "postgresql",
    "asyncpg": "postgresql",
    "aiomysql": "mariadb",
}

_MAIN_BACKENDS = ("sqlite", "postgresql", "mariadb")


def backend_url(backend: str) -> URL | None:
    """Return the URL of a server, or None where none is set and there is no default."""
    text = os.environ.get(f"HISTORY_{backend.upper()}_URL") or DEFAULT_URLS[backend]
    return make_url(text) if text else None


def selected_backends() -> list[str]:
    """Return the names of the backends of this run: `HISTORY_BACKENDS`, or all that have a URL."""
    named = [
        name.strip() for name in os.environ.get("HISTORY_BACKENDS", "").split(",") if name.strip()
    ]
    unknown = sorted(set(named) - set(DEFAULT_URLS))
    if unknown:
        raise ValueError(f"HISTORY_BACKENDS names {unknown}; the backends are {list(DEFAULT_URLS)}")
    if named:
        return named
    return [name for name in DEFAULT_URLS if name in _MAIN_BACKENDS or backend_url(name)]


def in_ci() -> bool:
    """Whether a server that cannot be reached is a failure, not a reason to skip."""
    return os.environ.get("CI", "").lower() in {"1", "true", "yes"}


def _is_local(url: URL) -> bool:
    return url.host in {None, "", "localhost", "127.0.0.1", "::1"}


_NAME_PREFIX = f"history_test_{zlib.crc32(platform.node().encode()):08x}"


def _own_name() -> str:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return f"{_NAME_PREFIX}_{os.getpid()}_{worker}"


def _process_is_gone(name: str) -> bool:
    """Whether a database of this naming belongs to a process of this machine that has ended."""
    try:
        os.kill(int(name.removeprefix(_NAME_PREFIX).split("_")[1]), 0)
    except ProcessLookupError:
        return True
    except (IndexError, ValueError, PermissionError):
        return False
    return False


class Database:
    """A database of this process: made at first use, emptied after each test, dropped at last."""

    list_databases = ""
    schema_ddl: tuple[str, ...] = ()

    def __init__(self, url: URL) -> None:
        self.server_url = url
        self.url = url.set(database=_own_name())
        self._made = False
        self._engine: Engine | None = None

    @property
    def other_schema(self) -> str:
        """Name of a second schema that exists in this database."""
        return "other"

    def make(self) -> None:
        """Create the database, and drop those that a killed run left behind.

        Raises if there is no server.
        """
        if self._made:
            return
        with self._server() as connection:
            if self.list_databases and _is_local(self.server_url):
                for name in connection.exec_driver_sql(self.list_databases).scalars().all():
                    if str(name).startswith(_NAME_PREFIX) and _process_is_gone(str(name)):
                        self._drop(connection, str(name))
            self._create(connection)
        self._made = True
        atexit.register(self.drop)

    def drop(self) -> None:
        """Drop the database; a second call does nothing."""
        if not self._made:
            return
        self._made = False
        atexit.unregister(self.drop)
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None
        with self._server() as connection:
            self._drop(connection, self._name())

    def empty(self) -> None:
        """Drop everything that a test made, and make sure that nothing is left."""
        if self._engine is None:
            self._engine = sa.create_engine(self.url, isolation_level="AUTOCOMMIT", pool_size=1)
        with self._engine.connect() as connection:
            self._empty(connection)
            left = self._tables(connection)
        assert not left, f"tables are left in {self.url.database} after the test: {left}"

    @contextlib.contextmanager
    def _server(self) -> Iterator[Connection]:
        engine = sa.create_engine(self.server_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            yield connection

    def _name(self) -> str:
        assert self.url.database is not None
        return self.url.database

    def _create(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"CREATE DATABASE {self._name()}")

    def _drop(self, connection: Connection, name: str) -> None:
        connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name}")

    def _empty(self, connection: Connection) -> None:
        metadata = sa.MetaData()
        metadata.reflect(connection)
        metadata.drop_all(connection)

    def _tables(self, connection: Connection) -> list[str]:
        return sa.inspect(connection).get_table_names()


class PostgreSQL(Database):
    """A PostgreSQL database; what a test makes is dropped with the schemas it lies in."""

    list_databases = "SELECT datname FROM pg_database"

    _disconnect = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    _relations = (
        "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace "
        "WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
    )
    _others = (
        "SELECT 'TYPE ' || typname FROM pg_type JOIN pg_namespace n ON n.oid = typnamespace "
        "WHERE nspname = 'public' UNION ALL "
        "SELECT 'FUNCTION ' || proname FROM pg_proc JOIN pg_namespace n ON n.oid = pronamespace "
        "WHERE nspname = 'public' UNION ALL "
        "SELECT 'SCHEMA ' || nspname FROM pg_namespace "
        "WHERE nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'public', 'other')"
    )

    def _create(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"CREATE DATABASE {self._name()} TEMPLATE template0")
        engine = sa.create_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as own:
            own.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS other")

    def _drop(self, connection: Connection, name: str) -> None:
        connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _empty(self, connection: Connection) -> None:
        connection.exec_driver_sql(self._disconnect)
        if not (self._tables(connection) or connection.exec_driver_sql(self._others).first()):
            return
        schemas = connection.exec_driver_sql(
            "SELECT nspname FROM pg_namespace "
            "WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
        )
        quote = connection.dialect.identifier_preparer.quote
        for name in schemas.scalars().all():
            connection.exec_driver_sql(f"DROP SCHEMA {quote(name)} CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
        connection.exec_driver_sql("CREATE SCHEMA other")

    def _tables(self, connection: Connection) -> list[str]:
        return list(connection.exec_driver_sql(self._relations).scalars().all())


class MariaDB(Database):
    """A MariaDB or MySQL database, and one more, since a schema is a database there."""

    list_databases = "SELECT schema_name FROM information_schema.schemata"

    @property
    def other_schema(self) -> str:
        return f"{self._name()}_other"

    def _create(self, connection: Connection) -> None:
        for name in (self._name(), self.other_schema):
            connection.exec_driver_sql(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")

    def drop(self) -> None:
        if self._made:
            with self._server() as connection:
                self._drop(connection, self.other_schema)
        super().drop()

    def _empty(self, connection: Connection) -> None:
        sessions = connection.exec_driver_sql(
            "SELECT id FROM information_schema.processlist "
            "WHERE db = DATABASE() AND id <> CONNECTION_ID() AND command = 'Sleep'"
        )
        for identity in sessions.scalars().all():
            # The session may have ended by itself since it was listed.
            with contextlib.suppress(sa.exc.DBAPIError):
                connection.exec_driver_sql(f"KILL {identity}")
        objects = self._objects(connection)
        if not objects:
            return
        connection.exec_driver_sql("SET FOREIGN_KEY_CHECKS = 0")
        for schema, found, kind in objects:
            name = found.replace("%", "%%")
            connection.exec_driver_sql(f"DROP {kind} IF EXISTS `{schema}`.`{name}`")
        connection.exec_driver_sql("SET FOREIGN_KEY_CHECKS = 1")

    def _tables(self, connection: Connection) -> list[str]:
        return [name for _, name, _ in self._objects(connection)]

    def _objects(self, connection: Connection) -> list[tuple[str, str, str]]:
        rows = connection.execute(
            sa.text(
                "SELECT table_schema, table_name, CASE table_type WHEN 'VIEW' THEN 'VIEW' "
                "WHEN 'SEQUENCE' THEN 'SEQUENCE' ELSE 'TABLE' END "
                "FROM information_schema.tables WHERE table_schema IN (:own, :other) UNION ALL "
                "SELECT routine_schema, routine_name, routine_type "
                "FROM information_schema.routines WHERE routine_schema IN (:own, :other)"
            ),
            {"own": self._name(), "other": self.other_schema},
        )
        return [(row[0], row[1], row[2]) for row in rows]


class SQLServer(Database):
    """A SQL Server database."""


class Oracle(Database):
    """The schema of the URL's own user: Oracle has no databases to make. Not for parallel runs."""

    def __init__(self, url: URL) -> None:
        super().__init__(url)
        self.url = url

    def make(self) -> None:
        if not self._made:
            with self._server() as connection:
                tables = self._tables(connection)
            assert not tables, (
                f"the Oracle schema must be empty before a test run; it holds {tables}"
            )
        self._made = True

    def drop(self) -> None:
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None


_SERVERS: dict[str, type[Database]] = {
    "postgresql": PostgreSQL,
    "mariadb": MariaDB,
    "mssql": SQLServer,
    "oracle": Oracle,
}


class Databases:
    """The databases of this test process, by backend."""

    def __init__(self) -> None:
        self._databases: dict[str, Database | Exception] = {}

    def get(self, backend: str) -> Database:
        """Return the database on this backend's server; raise `Unreachable` without one."""
        if backend not in self._databases:
            self._databases[backend] = self._open(backend)
        found = self._databases[backend]
        if isinstance(found, Exception):
            raise Unreachable(
                f"no {backend} server at {backend_url(backend)!r}: {found}"
            ) from found
        return found

    def drop(self) -> None:
        """Drop all of them."""
        for database in self._databases.values():
            if isinstance(database, Database):
                database.drop()
        self._databases.clear()

    @staticmethod
    def _open(backend: str) -> Database | Exception:
        url = backend_url(backend)
        if url is None:
            return LookupError(f"HISTORY_{backend.upper()}_URL is not set")
        database = _SERVERS[backend](url)
        try:
            database.make()
        except (sa.exc.DBAPIError, ImportError) as error:
            return error
        return database


class Unreachable(Exception):
    """A database server that this run should use does not answer."""


def sqlite_engine(url: URL, **options: Any) -> Engine:
    """Create an engine on SQLite as `prepare_sqlite` makes it."""
    if url.database in {None, "", ":memory:"}:
        options = {
            "poolclass": StaticPool,
            "connect_args": {"check_same_thread": False},
            **options,
        }
    engine = sa.create_engine(url, **options)
    prepare_sqlite(engine)
    return engine


def prepare_sqlite(engine: Engine) -> None:
    """Switch foreign keys on, and let SAVEPOINT work.

    The sqlite3 module begins a transaction before the first INSERT, UPDATE or DELETE only, so that
    a SAVEPOINT before it would become the transaction. We begin when SQLAlchemy does; not in
    AUTOCOMMIT, which SQLAlchemy tells the module as `isolation_level = None`.
    """

    @event.listens_for(engine, "connect")
    def enforce_foreign_keys(dbapi_connection: Any, _record: Any) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.connection.dbapi_connection.isolation_level is not None:
            connection.exec_driver_sql("BEGIN")


def async_engine_for(driver: str, url: URL, **options: Any) -> AsyncEngine:
    """Create an asynchronous engine on the database that a synchronous URL names."""
    drivername = f"{url.get_backend_name()}+{driver}"
    engine = create_async_engine(url.set(drivername=drivername), **options)
    if driver == "aiosqlite":
        prepare_sqlite(engine.sync_engine)
    return engine


class Bases:
    """The declarative bases of one test: their tables are created, their mappers disposed of."""

    def __init__(self) -> None:
        self._made: list[type[DeclarativeBase]] = []

    def __call__(self, **namespace: Any) -> type[DeclarativeBase]:
        base = type("Base", (DeclarativeBase,), namespace)
        self._made.append(base)
        return base

    def create_all(self, bind: Engine | Connection) -> None:
        """Create the tables of all bases."""
        for base in self._made:
            base.metadata.create_all(bind)

    def dispose(self) -> None:
        """Dispose of the mappers of all bases."""
        for base in self._made:
            base.registry.dispose(cascade=True)
        self._made.clear()


@dataclass(frozen=True)
class Statement:
    """One call of a cursor: the SQL text, its parameters, and whether it was an executemany."""

    sql: str
    parameters: Any
    executemany: bool

    def __str__(self) -> str:
        return self.sql


class StatementLog(list[Statement]):
    """The statements that an engine executed while it was watched; `len()` counts them."""

    def containing(self, *fragments: str) -> list[Statement]:
        """Return the statements whose text has all of these fragments, in any case."""
        return [one for one in self if all(text.lower() in one.sql.lower() for text in fragments)]

    def starting(self, *words: str) -> list[Statement]:
        """Return the statements that start with one of these words, in any case."""
        heads = tuple(word.lower() for word in words)
        return [one for one in self if one.sql.lstrip().lower().startswith(heads)]

    def __repr__(self) -> str:
        return "\n".join(
            f"{number}. {one.sql}\n   {one.parameters!r}" for number, one in enumerate(self, 1)
        )


_TRANSACTION_CONTROL = ("begin", "commit", "rollback", "savepoint", "release")


@contextlib.contextmanager
def statements(engine: Engine | AsyncEngine) -> Iterator[StatementLog]:
    """Record what is executed on the engine, but for transaction control (BEGIN, SAVEPOINT)."""
    target = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    log = StatementLog()

    def record(
        connection: Connection,
        cursor: Any,
        sql: str,
        parameters: Any,
        context: Any,
        executemany: bool,
    ) -> None:
        if not sql.lstrip().lower().startswith(_TRANSACTION_CONTROL):
            log.append(Statement(sql, parameters, executemany))

    event.listen(target, "before_cursor_execute", record)
    try:
        yield log
    finally:
        event.remove(target, "before_cursor_execute", record)


_WATCHED_CLASSES: tuple[type, ...] = (
    Mapper,
    Session,
    Engine,
    sa.MetaData,
    sa.Table,
    sa.Column,
)


def class_listeners(of_module: Callable[[str], bool]) -> set[str]:
    """Return, as text, the listeners on SQLAlchemy's classes that come from such a module."""
    found = set()
    for cls in _WATCHED_CLASSES:
        dispatch = cls.dispatch
        for name in dispatch._event_names:
            for target, listeners in list(getattr(dispatch, name)._clslevel.items()):
                for listener in listeners:
                    for module, qualname in _origins(listener):
                        if of_module(module):
                            found.add(f"{target.__name__}.{name}: {module}.{qualname}")
    return found


def _origins(listener: Any, depth: int = 4) -> set[tuple[str, str]]:
    """Return the modules and names that a listener is made of.

    SQLAlchemy wraps some listeners, and keeps the original in the closure.
    """
    if isinstance(listener, FunctionType):
        found = {(listener.__module__ or "", listener.__qualname__)}
        cells = listener.__closure__ or ()
    else:
        call = getattr(listener, "__func__", None) or type(listener)
        found = {(call.__module__ or "", call.__qualname__)}
        cells = ()
    if depth:
        for cell in cells:
            with contextlib.suppress(ValueError):
                if callable(cell.cell_contents) and not isinstance(cell.cell_contents, type):
                    found |= _origins(cell.cell_contents, depth - 1)
    return found


def upsert(dialect: str, table: Any, row: Any, *, key: str = "name", **values: Any) -> Any:
    """An INSERT that updates the row of the same unique `key`, with `values`."""
    if dialect in ("mysql", "mariadb"):
        return mysql.insert(table).values(row).on_duplicate_key_update(**values)
    insert = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}[dialect](table).values(row)
    return insert.on_conflict_do_update(index_elements=[key], set_=values)
