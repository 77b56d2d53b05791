"""A statement that is compiled once and then run as the driver's own SQL.

``Connection.execute()`` looks up a statement's compiled form and its parameters anew each time,
which costs more than SQLite needs to run it. The statements that write versions are fixed when
they are first built, so that work is done once. They still go through the connection and show up
in its log and its cursor events.

>>> from sqlalchemy import bindparam, create_engine, text
>>> engine = create_engine("sqlite://")
>>> double = Prepared(text("SELECT 2 * :n"), engine.dialect)
>>> with engine.connect() as connection:
...     double.execute(connection, {"n": 21}).scalar()
42
>>> engine.dispose()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import Connection, CursorResult, Dialect, Executable

#: dialects that take a parameter as it is, with what type information it needs in the SQL itself
_PLAIN: Final = ("sqlite", "postgresql", "mysql", "mariadb")

_Process = Callable[[Any], Any] | None


class Prepared:
    """``statement`` compiled for ``dialect``; its results are what the driver returns."""

    __slots__ = ("_constants", "_names", "_sql", "_statement")

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        self._statement: Executable = statement
        self._sql: str | None = None
        compiled = statement.compile(dialect=dialect)
        if dialect.name not in _PLAIN or compiled.post_compile_params:
            return
        self._sql = str(compiled)
        names = compiled.positiontup if compiled.positional else list(compiled.binds)
        #: (name in the SQL or None where it has only a position, name of the parameter, processor)
        self._names: list[tuple[str | None, str, _Process]] = []
        #: what parameters have that nobody passes: the literals of the statement
        self._constants: dict[str, Any] = {}
        for name in names:
            bind = compiled.binds[name]
            process = bind.type.dialect_impl(dialect).bind_processor(dialect)
            in_sql = None if compiled.positional else name
            self._names.append((in_sql, bind.key, process))
            if not bind.required:
                self._constants[bind.key] = bind.effective_value

    def execute(self, connection: Connection, parameters: Mapping[str, Any]) -> CursorResult[Any]:
        """Run it with ``parameters`` by name."""
        if self._sql is None or "schema_translate_map" in connection.get_execution_options():
            return connection.execute(self._statement, dict(parameters))
        values = {**self._constants, **parameters}
        processed = [
            (name, values[key] if process is None else process(values[key]))
            for name, key, process in self._names
        ]
        if not processed or processed[0][0] is None:
            return connection.exec_driver_sql(self._sql, tuple(value for _, value in processed))
        return connection.exec_driver_sql(self._sql, {name: v for name, v in processed if name})
