"""Databases of our own, made before a comparison and dropped after it.

Servers are found by HISTORY_POSTGRESQL_URL and HISTORY_MARIADB_URL.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import URL, create_engine, make_url, text

TITLES = {
    "sqlite": "SQLite in memory",
    "sqlite-file": "SQLite in a file",
    "postgresql": "PostgreSQL",
    "mariadb": "MariaDB",
}

#: The variable, where we look without it, and the driver that the environments have.
SERVERS = {
    "postgresql": (
        "HISTORY_POSTGRESQL_URL",
        "postgresql+psycopg://postgres@127.0.0.1:5432/postgres",
        "postgresql+psycopg",
    ),
    "mariadb": (
        "HISTORY_MARIADB_URL",
        "mysql+pymysql://root@127.0.0.1:3306/test",
        "mysql+pymysql",
    ),
}

#: What is said about the database: its version, and whether it waits for the disk.
DESCRIBE = {
    "sqlite": ("select 'SQLite ' || sqlite_version()",),
    "postgresql": (
        "select 'PostgreSQL ' || current_setting('server_version')",
        "select 'synchronous_commit off'",
    ),
    "mariadb": (
        "select version()",
        "select concat('innodb_flush_log_at_trx_commit ', @@innodb_flush_log_at_trx_commit)",
    ),
}


def server_url(database: str) -> URL:
    """Where the server of *database* is."""
    variable, default, driver = SERVERS[database]
    return make_url(os.environ.get(variable, default)).set(drivername=driver)


@contextmanager
def made(database: str, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """The URL of an empty database for each of *names*; they are gone at the end."""
    with ExitStack() as stack:
        if database == "sqlite":
            yield dict.fromkeys(names, "sqlite://")
        elif database == "sqlite-file":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            yield {name: f"sqlite:///{folder / name}.sqlite" for name in names}
        else:
            yield {name: stack.enter_context(_on_server(database, name)) for name in names}


@contextmanager
def _on_server(database: str, name: str) -> Iterator[str]:
    url = server_url(database)
    mine = f"history_benchmark_{os.getpid()}_{name.replace('-', '_')}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {mine}"))
        if database == "postgresql":  # CPU and round trips are measured, not the disk
            connection.execute(text(f"ALTER DATABASE {mine} SET synchronous_commit = off"))
    there = url.set(database=mine)
    if database == "postgresql":
        _add_extensions(there)
    try:
        yield there.render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            force = " WITH (FORCE)" if database == "postgresql" else ""
            connection.execute(text(f"DROP DATABASE IF EXISTS {mine}{force}"))
        engine.dispose()


def _add_extensions(url: URL) -> None:
    """What triggers of other libraries need."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for name in ("hstore", "btree_gist"):
            connection.execute(text(f"CREATE EXTENSION IF NOT EXISTS {name}"))
    engine.dispose()


def describe(database: str) -> str:
    """Version of the database, and the setting that decides how it waits for the disk."""
    kind = "sqlite" if database.startswith("sqlite") else database
    url: URL | str = "sqlite://" if kind == "sqlite" else server_url(kind)
    engine = create_engine(url)
    with engine.connect() as connection:
        parts = [str(connection.scalar(text(query))) for query in DESCRIBE[kind]]
    engine.dispose()
    return ", ".join(parts)
