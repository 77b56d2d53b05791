"""Connections without a session whose statements are recorded too: ``versioning_manager.watch(engine)``."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from .listeners import Listeners
from .unit_of_work import UnitOfWork

if TYPE_CHECKING:
    from .manager import VersioningManager


class ConnectionWork(UnitOfWork):
    """What a connection has versioned; its session is only there for plugins to ask."""

    __slots__ = ("_connection",)

    def __init__(self, manager: VersioningManager, connection: Connection) -> None:
        session = Session(connection)
        session.info[manager] = self
        super().__init__(manager, session)
        self._connection = connection
        self.connection_unit(connection)

    def current_transaction_of_session(self) -> Any:
        """The savepoint or transaction of the connection."""
        connection = self._connection
        transaction = connection.get_nested_transaction() or connection.get_transaction()
        return transaction or connection.begin()


class Watch:
    """The engines that are watched, and what is going on on their connections."""

    def __init__(self, manager: VersioningManager) -> None:
        self._manager = manager
        self._engines = Listeners()
        self._works: weakref.WeakKeyDictionary[Connection, ConnectionWork] = (
            weakref.WeakKeyDictionary()
        )

    def add(self, engine: Engine) -> None:
        """Watch the connections of ``engine``."""
        if engine not in self._engines:
            self._engines.add(
                engine,
                {
                    "commit": self._end,
                    "rollback": self._end,
                    "commit_twophase": self._end,
                    "rollback_twophase": self._end,
                    "release_savepoint": self._released,
                    "rollback_savepoint": self._rolled_back,
                },
            )

    def engines(self) -> list[Engine]:
        """The engines that are watched."""
        return list(self._engines)

    def stop(self) -> None:
        """Watch nothing any more."""
        self._engines.clear()
        self._works.clear()

    def work_of(self, connection: Connection) -> ConnectionWork | None:
        """The work of a connection that no session uses, None if it is not watched."""
        if (
            not self._engines
            or getattr(connection.engine, "_proxied", connection.engine) not in self._engines
        ):
            return None
        work = self._works.get(connection)
        if work is None:
            work = self._works[connection] = ConnectionWork(self._manager, connection)
        return work

    def _end(self, connection: Connection, *_: Any) -> None:
        self._works.pop(connection, None)

    def _released(self, connection: Connection, *_: Any) -> None:
        work, savepoint = self._works.get(connection), connection.get_nested_transaction()
        if work is not None and savepoint is not None:
            parent: Any = savepoint._previous_nested or connection.get_transaction()
            for unit in work.connections.values():
                unit.released(savepoint, parent)  # type: ignore[arg-type]

    def _rolled_back(self, connection: Connection, *_: Any) -> None:
        work, savepoint = self._works.get(connection), connection.get_nested_transaction()
        if work is not None and savepoint is not None:
            for unit in work.connections.values():
                unit.ended(savepoint)  # type: ignore[arg-type]
