"""Fixtures: backend x strategy x driver, a fresh Base and a configured manager for each test.

    def test_it(versioning, Base, open_session):
        class Article(Base):
            __tablename__ = "article"
            __versioned__ = {}
            ...
        session = open_session()

runs once for each backend and strategy. `@pytest.mark.options(key=value)` adds options of the
manager, `@pytest.mark.backends("postgresql")` says where a test makes sense,
`@pytest.mark.sqlite_file` asks for a SQLite file instead of memory. `HISTORY_NATIVE=1` in the
environment sets the option `native_versioning` wherever a test does not.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session

import support

BACKENDS = support.selected_backends()
DRIVERS = [name for name, backend in support.ASYNC_DRIVERS.items() if backend in BACKENDS]


def pytest_configure(config: pytest.Config) -> None:
    for line in (
        "backends(*names): run the test on these backends only",
        "options(**options): add these to the options of the manager",
        "orm_capture(reason, backends=all): what it shows cannot be with triggers; left out by "
        "HISTORY_NATIVE=1",
        "sqlite_file: on SQLite, use a file, so that several connections see the same database",
    ):
        config.addinivalue_line("markers", line)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what `@pytest.mark.backends` or `orm_capture` rules out.

    It is no skip, since nothing could be done about it.
    """
    kept, ruled_out = [], []
    for item in items:
        marker = item.get_closest_marker("backends")
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        backend = parameters.get("backend") or support.ASYNC_DRIVERS.get(
            parameters.get("async_driver")
        )
        fits = marker is None or backend is None or backend in marker.args
        capture = item.get_closest_marker("orm_capture")
        if capture is not None and os.environ.get("HISTORY_NATIVE") == "1":
            # of all databases, or of those that it names
            fits = fits and backend not in capture.kwargs.get("backends", (backend,))
        (kept if fits else ruled_out).append(item)
    if ruled_out:
        config.hook.pytest_deselected(items=ruled_out)
        items[:] = kept


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """After each test, no listener of ours or of the test is left on SQLAlchemy's classes."""

    def ours(module: str) -> bool:
        return (
            module.split(".", maxsplit=1)[0] in {"sqlalchemy_history", "tests"} or "test_" in module
        )

    before = support.class_listeners(ours)
    yield
    left = support.class_listeners(ours) - before
    assert not left, "listeners are left on SQLAlchemy's classes:\n" + "\n".join(sorted(left))


@pytest.fixture(scope="session")
def databases() -> Iterator[support.Databases]:
    """The databases of this test process, dropped when it ends."""
    found = support.Databases()
    yield found
    found.drop()


def _database(databases: support.Databases, backend: str) -> support.Database:
    try:
        return databases.get(backend)
    except support.Unreachable as error:
        if support.in_ci():
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The kind of database: sqlite, postgresql, mariadb; mssql and oracle where a URL is given."""
    return request.param


@pytest.fixture
def engine_options() -> dict[str, Any]:
    """Keyword arguments of `create_engine`, to be overridden by `parametrize` or a fixture."""
    return {}


@pytest.fixture
def engine(
    request: pytest.FixtureRequest, backend: str, engine_options: dict[str, Any], tmp_path: Path
) -> Iterator[Engine]:
    """An engine on an empty database."""
    if backend == "sqlite":
        url = support.backend_url("sqlite")
        assert url is not None
        if request.node.get_closest_marker("sqlite_file"):
            url = make_url(f"sqlite:///{tmp_path / 'history.db'}")
        engine = support.sqlite_engine(url, **engine_options)
        yield engine
        engine.dispose()
        return
    database = _database(request.getfixturevalue("databases"), backend)
    engine = sa.create_engine(database.url, **engine_options)
    yield engine
    engine.dispose()
    database.empty()


@pytest.fixture
def other_schema(request: pytest.FixtureRequest, backend: str, engine: Engine) -> str:
    """The name of a second schema in the database of `engine` (SQLite: of an attached database)."""
    if backend != "sqlite":
        return _database(request.getfixturevalue("databases"), backend).other_schema

    def attach(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.execute("ATTACH DATABASE ':memory:' AS other").close()

    sa.event.listen(engine, "connect", attach)
    return "other"


@pytest.fixture(params=DRIVERS)
def async_driver(request: pytest.FixtureRequest) -> str:
    """The driver of `async_engine`: aiosqlite, psycopg_async, asyncpg or aiomysql."""
    return request.param


@pytest.fixture
def run_async() -> Iterator[Callable[[Any], Any]]:
    """`run_async(main)` runs a coroutine function (or coroutine) in this test's event loop."""
    loop = asyncio.new_event_loop()

    def run(main: Callable[[], Awaitable[Any]] | Awaitable[Any]) -> Any:
        async def call() -> Any:
            return await (main if inspect.isawaitable(main) else main())

        return loop.run_until_complete(call())

    yield run
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.fixture
def async_engine(
    request: pytest.FixtureRequest,
    async_driver: str,
    engine_options: dict[str, Any],
    run_async: Callable[[Any], Any],
    tmp_path: Path,
) -> Iterator[AsyncEngine]:
    """An asynchronous engine on an empty database; use it inside `run_async`."""
    backend = support.ASYNC_DRIVERS[async_driver]
    database = None
    if backend == "sqlite":
        url = make_url(f"sqlite:///{tmp_path / 'history.db'}")
    else:
        database = _database(request.getfixturevalue("databases"), backend)
        url = database.url
    engine = support.async_engine_for(async_driver, url, **engine_options)
    yield engine
    run_async(engine.dispose)
    if database is not None:
        database.empty()


@pytest.fixture(params=["validity", "subquery"])
def strategy(request: pytest.FixtureRequest) -> str:
    """How versions are stored and read: validity or subquery."""
    return request.param


@pytest.fixture
def options(request: pytest.FixtureRequest, strategy: str) -> dict[str, Any]:
    """The options of the manager; `@pytest.mark.options(key=value)` adds to them."""
    merged: dict[str, Any] = {"strategy": strategy}
    if os.environ.get("HISTORY_NATIVE") == "1":
        merged["native_versioning"] = True
    for marker in reversed(list(request.node.iter_markers("options"))):
        merged.update(marker.kwargs)
    return merged


@pytest.fixture
def plugins() -> list[Any]:
    """The plugins of the manager; a test may override it."""
    return []


@pytest.fixture
def user_cls() -> Any:
    """The `user_cls` of `make_versioned()`; a test may override it."""
    return None


@pytest.fixture
def versioning(options: dict[str, Any], plugins: list[Any], user_cls: Any) -> Iterator[Any]:
    """The default manager, between `make_versioned()` and `remove_versioning()`."""
    import sqlalchemy_history

    manager = sqlalchemy_history.versioning_manager
    before = manager.options
    sqlalchemy_history.make_versioned(plugins=plugins, options=options, user_cls=user_cls)
    try:
        yield manager
    finally:
        sqlalchemy_history.remove_versioning()
        manager.reset()
        manager.transaction_cls = sqlalchemy_history.TransactionFactory()
        manager.options = before
        manager.plugins = []
        manager.user_cls = None


@pytest.fixture
def make_base() -> Iterator[support.Bases]:
    """`make_base(**namespace)` returns a fresh declarative base, disposed of at the end."""
    bases = support.Bases()
    yield bases
    bases.dispose()


@pytest.fixture
def Base(make_base: support.Bases) -> type[DeclarativeBase]:  # noqa: N802
    """A fresh declarative base."""
    return make_base()


@pytest.fixture
def open_session(
    engine: Engine, Base: type[DeclarativeBase], make_base: support.Bases
) -> Iterator[Callable[..., Session]]:
    """`open_session(**kwargs)` creates the tables and returns a Session, closed at the end."""
    sessions: list[Session] = []

    def open_one(**kwargs: Any) -> Session:
        make_base.create_all(engine)
        sessions.append(Session(kwargs.pop("bind", engine), **kwargs))
        return sessions[-1]

    yield open_one
    for session in sessions:
        session.close()


@pytest.fixture
def open_async_session(
    async_engine: AsyncEngine,
    Base: type[DeclarativeBase],
    make_base: support.Bases,
    run_async: Callable[[Any], Any],
) -> Iterator[Callable[..., Awaitable[AsyncSession]]]:
    """`await open_async_session(**kwargs)` is `open_session` for an AsyncSession."""
    sessions: list[AsyncSession] = []

    async def open_one(**kwargs: Any) -> AsyncSession:
        async with async_engine.begin() as connection:
            await connection.run_sync(make_base.create_all)
        sessions.append(AsyncSession(kwargs.pop("bind", async_engine), **kwargs))
        return sessions[-1]

    yield open_one
    for session in sessions:
        run_async(session.close)


@pytest.fixture
def statements() -> Callable[..., Any]:
    """`with statements(engine) as log:` records what is executed, as a `support.StatementLog`."""
    return support.statements
