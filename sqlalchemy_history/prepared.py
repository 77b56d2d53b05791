"""A statement that is compiled once and then run as the driver's own SQL.

``Connection.execute()`` looks up a statement's compiled form and its parameters anew each time,
which costs more than SQLite needs to run it. The statements that write versions are fixed when
they are first built, so that work is done once. They show up in the connection's log and its cursor
events; where there are neither, the driver's cursor is used directly.

>>> from sqlalchemy import bindparam, create_engine, text
>>> engine = create_engine("sqlite://")
>>> double = Prepared(text("SELECT 2 * :n"), engine.dialect)
>>> with engine.connect() as connection:
...     double.execute(connection, {"n": 21}).row
(42,)
>>> engine.dispose()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, CursorResult, Dialect, Executable

from .plan import values_of

_PACKAGE: Final = __name__.partition(".")[0]

#: dialects that take a parameter as it is, with what type information it needs in the SQL itself
_PLAIN: Final = ("sqlite", "postgresql", "mysql", "mariadb")


class Outcome(NamedTuple):
    """What a statement returned: its first row as the driver has it, and how many rows it matched."""

    row: Any
    rowcount: int


class Prepared:
    """``statement`` compiled for ``dialect``."""

    __slots__ = ("_constants", "_names", "_pick", "_processes", "_sql", "_statement")

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        self._statement: Executable = statement
        self._sql: str | None = None
        compiled = statement.compile(dialect=dialect)
        if dialect.name not in _PLAIN or compiled.post_compile_params:
            return
        self._sql = str(compiled)
        names = compiled.positiontup if compiled.positional else list(compiled.binds)
        #: the names in the SQL; None where parameters have only positions
        self._names: list[str] | None = None if compiled.positional or not names else names
        keys = [compiled.binds[name].key for name in names]
        #: from parameters by name to their values in the order of the SQL, and what processes some
        self._pick = values_of(keys)
        self._processes: list[tuple[int, Callable[[Any], Any]]] = []
        #: what parameters have that nobody passes: the literals of the statement
        self._constants: dict[str, Any] = {}
        for position, name in enumerate(names):
            bind = compiled.binds[name]
            process = bind.type.dialect_impl(dialect).bind_processor(dialect)
            if process is not None:
                self._processes.append((position, process))
            if not bind.required:
                self._constants[bind.key] = bind.effective_value

    def execute(
        self, connection: Connection, parameters: Mapping[str, Any], *, quietly: bool = False
    ) -> Outcome:
        """Run it with ``parameters`` by name.

        :param quietly: ``is_quiet(connection)`` was asked, and nobody would notice what SQLAlchemy
            makes of the statement besides, which is most of the time that it takes.
        """
        if self._sql is None or not (quietly or _as_it_is(connection)):
            return _outcome(connection.execute(self._statement, dict(parameters)))
        values = {**self._constants, **parameters} if self._constants else parameters
        row = self._pick(values)
        if self._processes:
            row = list(row)
            for position, process in self._processes:
                row[position] = process(row[position])
        names = self._names
        processed: Any = tuple(row) if names is None else dict(zip(names, row, strict=True))
        if not quietly:
            return _outcome(connection.exec_driver_sql(self._sql, processed))
        cursor = connection.connection.cursor()
        try:
            connection.dialect.do_execute(cursor, self._sql, processed)
            return Outcome(cursor.fetchone() if cursor.description else None, cursor.rowcount)
        except BaseException as error:  # noqa: BLE001 - SQLAlchemy raises it again
            connection._handle_dbapi_exception(error, self._sql, processed, cursor, None)
        finally:
            cursor.close()


def is_quiet(connection: Connection) -> bool:
    """Nobody but us listens to the cursors of ``connection``, nor is there a log."""
    dispatch, dialect = connection.dispatch, connection.dialect
    return _as_it_is(connection) and not (
        connection._echo
        or dialect.dispatch.do_execute
        or dispatch.after_cursor_execute
        or any(
            not listener.__module__.startswith(_PACKAGE)
            for listener in dispatch.before_cursor_execute
        )
    )


def _as_it_is(connection: Connection) -> bool:
    """The SQL of a statement holds for ``connection``, whose schemas have no other names."""
    return "schema_translate_map" not in connection.get_execution_options()


def _outcome(result: CursorResult[Any]) -> Outcome:
    return Outcome(result.first() if result.returns_rows else None, result.rowcount)
