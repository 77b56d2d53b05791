"""Sessions in threads of their own, of which one runs at a time, one statement at a time.

A *script* is a function of a session. :func:`play` runs some of them at once and stops each before
every statement and every COMMIT; which one goes on is a *choice*. One that waits for a lock is told
by the database and is no choice until it has the lock. :func:`orders` goes through all choices: it
plays, looks where it could have chosen otherwise, and plays again. :func:`samples` draws some.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError

Script = Callable[[Session], None]

#: what a script may end with, in an application that has no history either
_FAILURES = (sa.exc.DBAPIError, StaleDataError, ObjectDeletedError)
_PATIENCE = 20.0

#: the isolation levels that there are
LEVELS = {
    "sqlite": ("SERIALIZABLE",),
    "postgresql": ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"),
    "mariadb": ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"),
}
#: arguments of ``create_engine()`` with which nobody waits long
CONNECT_ARGS: dict[str, dict[str, Any]] = {
    "postgresql": {
        "connect_args": {"options": "-c deadlock_timeout=10ms -c synchronous_commit=off"}
    },
    "mariadb": {"connect_args": {"init_command": "SET innodb_lock_wait_timeout = 10"}},
}


@dataclasses.dataclass(frozen=True)
class Step:
    """Who did what, and who else could have."""

    player: int
    what: str
    ready: tuple[int, ...]

    def __str__(self) -> str:
        return f"{'ABC'[self.player]}: {' '.join(self.what.split())[:150]}"


@dataclasses.dataclass
class Play:
    """One order of steps, and the error with which each script ended, if with any."""

    steps: list[Step]
    errors: list[Exception | None]

    def __str__(self) -> str:
        errors = [f"{'ABC'[n]} failed: {error}" for n, error in enumerate(self.errors) if error]
        return "\n".join([*map(str, self.steps), *errors])

    @property
    def choices(self) -> list[int]:
        """The players in the order of their steps."""
        return [step.player for step in self.steps]


class _Player(threading.Thread):
    """The thread of one session. ``state``: it is ready, it runs, or it is done."""

    def __init__(self, stage: _Stage, script: Script, engine: Engine) -> None:
        super().__init__(daemon=True)
        self.stage = stage
        self.script = script
        self.engine = engine
        self.state = "runs"
        self.what = ""
        self.backend: int | None = None
        self.is_merging = False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with Session(self.engine) as session:
                try:
                    self.script(session)
                except _FAILURES as error:
                    self.error = error
        except BaseException as error:  # noqa: BLE001 - play() raises it
            self.error = error
        finally:
            self.stage.report(self, "done")

    def arrive(self, connection: Connection, what: str) -> None:
        """Wait for one's turn to do ``what``."""
        if not self.is_merging:
            self.backend = _backend_of(connection)
            self.what = what
            self.stage.report(self, "ready")
            with self.stage.news:
                assert self.stage.news.wait_for(lambda: self.state == "runs", _PATIENCE)


class _Stage:
    """Where players meet."""

    def __init__(self) -> None:
        self.news = threading.Condition()

    def report(self, player: _Player, state: str) -> None:
        with self.news:
            player.state = state
            self.news.notify_all()

    def settle(self, players: Sequence[_Player], waiting: Callable[[], set[Any]]) -> None:
        """Return when each player is ready, is done or waits for a lock, and one is not waiting."""

        def running() -> list[_Player]:
            return [player for player in players if player.state == "runs"]

        for _ in range(int(_PATIENCE / 0.002)):
            with self.news:
                if self.news.wait_for(lambda: not running(), 0.002):
                    return
            before = running()
            others = any(player.state == "ready" for player in players)
            if others and {player.backend for player in before} <= waiting():
                # nobody has gone on while we asked
                if running() == before:
                    return
        raise AssertionError(f"stuck: {[(p.state, p.what) for p in players]}")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What a script does inside is one step with the statement that comes first."""
    player = threading.current_thread()
    if not isinstance(player, _Player):
        yield
        return
    stepping = player.arrive

    def first(connection: Connection, what: str) -> None:
        stepping(connection, what)
        player.is_merging = True

    player.arrive = first  # type: ignore[method-assign] # of this one player
    try:
        yield
    finally:
        player.is_merging = False
        del player.arrive


#: what nobody else can see or wait for
_PRIVATE = re.compile(
    r"\s*(BEGIN|SAVEPOINT|RELEASE|ROLLBACK|SET|SELECT pg_catalog|SHOW|PRAGMA|SELECT @"
    r"|INSERT INTO `?\"?transaction\b(?!.*\bFROM\b))",
    re.IGNORECASE | re.DOTALL,
)


@contextlib.contextmanager
def gates(engine: Engine) -> Iterator[None]:
    """Players stop before their statements and commits on ``engine``."""

    def statement(connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
        player = threading.current_thread()
        if isinstance(player, _Player) and not _PRIVATE.match(sql):
            player.arrive(connection, sql)

    def commit(connection: Any) -> None:
        player = threading.current_thread()
        if isinstance(player, _Player):
            player.arrive(connection, "COMMIT")

    listeners = {"before_cursor_execute": statement, "commit": commit}
    for name, listener in listeners.items():
        sa.event.listen(engine, name, listener)
    try:
        yield
    finally:
        for name, listener in listeners.items():
            sa.event.remove(engine, name, listener)


def play(scripts: Sequence[Script], engine: Engine, choices: Sequence[int] = ()) -> Play:
    """Run the scripts at once, in the order of ``choices``, then the first that is ready."""
    stage = _Stage()
    players = [_Player(stage, script, engine) for script in scripts]
    steps: list[Step] = []
    with _waiting(engine) as waiting:
        for n, player in enumerate(players):
            player.start()
            stage.settle(players[: n + 1], waiting)
        wanted = iter(choices)
        while True:
            stage.settle(players, waiting)
            ready = tuple(n for n, player in enumerate(players) if player.state == "ready")
            if not ready:
                break
            choice = next(wanted, ready[0])
            if choice not in ready:
                choice = ready[0]
            steps.append(Step(choice, players[choice].what, ready))
            stage.report(players[choice], "runs")
    errors: list[Exception | None] = []
    for player in players:
        player.join(_PATIENCE)
        if player.error is not None and not isinstance(player.error, _FAILURES):
            raise player.error
        errors.append(player.error)
    return Play(steps, errors)


Perform = Callable[[Sequence[int]], Play]


def orders(perform: Perform) -> Iterator[Play]:
    """Every order in which the steps can be done."""
    todo: list[list[int]] = [[]]
    while todo:
        prefix = todo.pop()
        found = perform(prefix)
        yield found
        for n in range(len(prefix), len(found.steps)):
            step = found.steps[n]
            todo += ([*found.choices[:n], other] for other in step.ready if other != step.player)


def samples(perform: Perform, players: int, size: int, seed: int) -> Iterator[Play]:
    """``size`` orders drawn at random, the same for the same ``seed``."""
    chance = random.Random(seed)
    for _ in range(size):
        yield perform([chance.randrange(players) for _ in range(200)])


# -- what the databases tell of those who wait for locks


def _backend_of(connection: Connection) -> Any:
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "postgresql":
        return driver.info.backend_pid
    return None if connection.dialect.name == "sqlite" else driver.thread_id()


@contextlib.contextmanager
def _waiting(engine: Engine) -> Iterator[Callable[[], set[Any]]]:
    """A function that returns the backends that wait for a lock; on SQLite nobody waits."""
    if engine.dialect.name == "sqlite":
        yield lambda: set()
        return
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        if engine.dialect.name == "postgresql":
            locks = "SELECT pid FROM pg_locks WHERE NOT granted"
            yield lambda: set(connection.exec_driver_sql(locks).scalars())
            return

        def waiting() -> set[Any]:
            # information_schema.innodb_trx is refreshed ten times a second only
            status = connection.exec_driver_sql("SHOW ENGINE INNODB STATUS").one()[2]
            transactions = status.split("---TRANSACTION ")[1:]
            return {
                int(found[1])
                for one in transactions
                if "LOCK WAIT" in one and (found := re.search(r"thread id (\d+)", one))
            }

        yield waiting
