"""What a run of the machine stands on: two databases, the classes in both, and the library.

Building mappers for each example would be too slow: they are built once for each backend and
strategy, and the tables are emptied between the examples.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import hypothesis
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

import support

from .schema import Models, build_models

if TYPE_CHECKING:
    from .machine import HistoryMachine

__all__ = [
    "SEARCH",
    "Bench",
    "Library",
    "open_engines",
    "open_models",
    "profile_name",
    "prove",
    "settings_of",
]


class Library(Protocol):
    """What the judge asks a library for."""

    strategy: str

    @property
    def transaction_cls(self) -> type[Any]:
        """The mapped class of the transaction rows."""

    def version_class(self, cls: type) -> Any:
        """The class of the versions of ``cls``."""

    def as_of(self, cls: type, at: int) -> Any:
        """A Select of the versions that were live rows at a transaction id."""

    def count_versions(self, obj: Any) -> int:
        """How many versions an object has."""

    def time_machine(self, engine: Engine, at: int) -> AbstractContextManager[Session]:
        """A session in which the live classes show what was after a transaction id."""

    def undo(self, session: Session, transaction: Any, overwrite: bool) -> bool:
        """Undo all that a transaction did; whether it was done, and not refused."""


@dataclass(kw_only=True)
class Bench:
    """The two worlds' engines and classes, and the library that keeps the history of one."""

    library: Library
    reading: bool = True
    """Whether the library has version classes."""
    plain_engine: Engine
    engine: Engine
    plain: Models
    versioned: Models
    columns: Mapping[str, frozenset[str]] = field(init=False)
    """Class name -> names of its column attributes."""
    reset: Callable[[], None] = lambda: None
    """Called when the tables have been emptied."""

    def __post_init__(self) -> None:
        self.columns = {
            name: frozenset(sa.inspect(cls).column_attrs.keys())
            for name, cls in self.plain.classes.items()
        }
        # the live tables first: their triggers write to the others
        self._tables = [
            (engine, list(dict.fromkeys([*models.live, *models.base.metadata.tables])))
            for engine, models in ((self.plain_engine, self.plain), (self.engine, self.versioned))
        ]

    def empty(self) -> None:
        """Delete all rows of both databases, past SQLAlchemy."""
        for engine, tables in self._tables:
            before, after = _UNGUARDED[engine.dialect.name]
            quote = engine.dialect.identifier_preparer.quote
            connection = engine.raw_connection()
            cursor = connection.cursor()
            for statement in (*before, *(f"DELETE FROM {quote(table)}" for table in tables)):
                cursor.execute(statement)
            connection.commit()
            for statement in after:
                cursor.execute(statement)
            cursor.close()
            connection.close()
        self.reset()


#: How to switch the check of foreign keys off and on, so that tables can be emptied in any order.
_MARIADB = (("SET FOREIGN_KEY_CHECKS = 0",), ("SET FOREIGN_KEY_CHECKS = 1",))
_UNGUARDED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sqlite": (("BEGIN", "PRAGMA defer_foreign_keys = ON"), ()),
    "postgresql": (("SET LOCAL session_replication_role = replica",), ()),
    "mysql": _MARIADB,
    "mariadb": _MARIADB,
}


@contextlib.contextmanager
def open_engines(
    backend: str, databases: support.Databases, folder: Path
) -> Iterator[tuple[Engine, Engine]]:
    """Two engines on empty databases of one kind, for the plain and for the versioned world."""
    if backend == "sqlite":
        engines = [_sqlite(folder / f"{name}.db") for name in ("plain", "versioned")]
    else:
        database = databases.get(backend)
        plain_url = database.url
        arguments: dict[str, Any] = {}
        if backend == "postgresql":
            arguments = {"options": f"-csearch_path={database.other_schema}"}
        else:
            plain_url = plain_url.set(database=database.other_schema)
        engines = [
            sa.create_engine(plain_url, connect_args=arguments),
            sa.create_engine(database.url),
        ]
    try:
        yield engines[0], engines[1]
    finally:
        for engine in engines:
            engine.dispose()
        if backend != "sqlite":
            databases.get(backend).empty()


def _sqlite(path: Path) -> Engine:
    engine = support.sqlite_engine(make_url(f"sqlite:///{path}"), poolclass=QueuePool)

    @sa.event.listens_for(engine, "connect")
    def hurry(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.execute("PRAGMA synchronous = OFF").close()
        dbapi_connection.execute("PRAGMA journal_mode = MEMORY").close()

    return engine


@contextlib.contextmanager
def open_models(
    plain_engine: Engine, engine: Engine, build: Callable[[], Models]
) -> Iterator[tuple[Models, Models]]:
    """The classes of both worlds, with their tables; disposed of in the end."""
    plain = build_models(versioned=False)
    try:
        versioned = build()
        try:
            plain.base.metadata.create_all(plain_engine)
            versioned.base.metadata.create_all(engine)
            yield plain, versioned
        finally:
            versioned.base.registry.dispose(cascade=True)
    finally:
        plain.base.registry.dispose(cascade=True)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How hard to try: examples on SQLite and on a server, steps of each, whether to shrink."""

    local: int
    remote: int
    steps: int
    reproducible: bool = True
    shrink: bool = False


#: ``ci`` shows what it found as it is, ``shrink`` is the same and takes minutes to make it short
PROFILES = {
    "ci": Profile(local=12, remote=6, steps=40),
    "shrink": Profile(local=12, remote=6, steps=40, shrink=True),
    "nightly": Profile(local=2000, remote=200, steps=60, reproducible=False, shrink=True),
}


def profile_name() -> str:
    """What ``HISTORY_HYPOTHESIS`` says; ``ci`` if it says nothing."""
    name = os.environ.get("HISTORY_HYPOTHESIS", "ci")
    if name not in PROFILES:
        raise ValueError(f"HISTORY_HYPOTHESIS is {name!r}; the profiles are {sorted(PROFILES)}")
    return name


#: how many examples to look for a fault in that must be found
SEARCH = 120


def settings_of(
    backend: str, examples: int | None = None, *, half: bool = False
) -> hypothesis.settings:
    """The settings for a kind of database; ``HISTORY_HYPOTHESIS_EXAMPLES`` overrides the number.

    :param half: half as many examples as the profile says.
    """
    profile = PROFILES[profile_name()]
    examples = examples or (profile.local if backend == "sqlite" else profile.remote)
    examples = examples // 2 if half else examples
    return hypothesis.settings(
        max_examples=int(os.environ.get("HISTORY_HYPOTHESIS_EXAMPLES", examples)),
        stateful_step_count=profile.steps,
        phases=[Phase.generate, Phase.shrink] if profile.shrink else [Phase.generate],
        deadline=None,
        derandomize=profile.reproducible,
        database=None,
        print_blob=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


#: After ten examples, hypothesis begins to repeat parts of them: a waste where one example is forty
#: repetitions already, so we begin anew.
ROUND = 10


def prove(machine: type[HistoryMachine], bench: Bench, settings: hypothesis.settings) -> None:
    """Run the machine on the bench, in rounds with a seed of their own; raises what it finds."""
    start = 0 if settings.derandomize else int.from_bytes(os.urandom(4), "big")
    for done in range(0, settings.max_examples, ROUND):
        bound = hypothesis.seed(start + done)(type(machine.__name__, (machine,), {"bench": bench}))
        examples = min(ROUND, settings.max_examples - done)
        run_state_machine_as_test(
            bound, settings=hypothesis.settings(settings, max_examples=examples, derandomize=False)
        )
