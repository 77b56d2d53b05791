"""What a workload has in hand: models, a database filled quickly, a session, and the clock.

Only what happens inside ``with bench.clock():`` is measured. Set-up goes through the driver's
cursor, so that no contender's listener sees it, and leaves every row with one open INSERT version.
"""

from __future__ import annotations

import datetime as dt
import gc
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    Table,
    create_engine,
    event,
    func,
    insert,
    literal,
    null,
    select,
    text,
)
from sqlalchemy.orm import Session, configure_mappers

from benchmarks.contenders import DELETE, INSERT, UPDATE, Changed, Contender
from benchmarks.models import Models, declare

#: Number of rows by table and by "insert", "update", "delete" or "closed"; of the transaction
#: table by "insert". What is not there is none.
Rows = dict[str, dict[str, int]]

OPERATIONS = {INSERT: "insert", UPDATE: "update", DELETE: "delete"}


@dataclass
class Measured:
    """What the clock saw.

    ``steps`` are instructions of Python's bytecode, by the file of the code; ``peak`` is Python memory
    in bytes, ``kept`` what was left of it.
    """

    seconds: float = 0.0
    statements: list[str] = field(default_factory=list)
    steps: Counter[str] = field(default_factory=Counter)
    peak: int = 0
    kept: int = 0


@contextmanager
def counting_steps(measured: Measured) -> Iterator[None]:
    """Count the instructions of bytecode that run inside: the same number on any machine."""
    steps = measured.steps

    def step(frame: Any, what: str, argument: Any) -> Any:
        if what == "opcode":
            steps[frame.f_code.co_filename] += 1
        return step

    def enter(frame: Any, what: str, argument: Any) -> Any:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return step

    gc.collect()
    gc.disable()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(None)
        gc.enable()


class Bench:
    """One contender on one database, for the life of a worker."""

    def __init__(self, contender: Contender, url: str) -> None:
        self.contender = contender
        self.engine: Engine = create_engine(url)
        self.measure = "time"
        self.measured = Measured()
        self.first = 0
        self._models: Models | None = None
        self._filled: object = None

    @property
    def versioned(self) -> bool:
        return self.contender.versioned

    @property
    def models(self) -> Models:
        """The models, declared and configured when first asked for."""
        if self._models is None:
            self.contender.before_models()
            self._models = declare(self.contender.new_base(), self.contender.versioned)
            configure_mappers()
            self.contender.after_models(self._models.base)
        return self._models

    @property
    def tables(self) -> Mapping[str, Table]:
        return self.models.base.metadata.tables

    def session(self) -> Session:
        return Session(self.engine)

    def begin(self, measure: str) -> None:
        """Get ready for one run."""
        self.measure = measure
        self.measured = Measured()

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Measure what is inside: ``time``, ``count`` (of statements), ``steps`` or ``memory``."""
        measured = self.measured
        if self.measure == "steps":
            with counting_steps(measured):
                yield
            return
        if self.measure == "count":

            def seen(conn: Any, cursor: Any, statement: str, *args: Any) -> None:
                measured.statements.append(statement)

            event.listen(self.engine, "before_cursor_execute", seen)
            try:
                yield
            finally:
                event.remove(self.engine, "before_cursor_execute", seen)
            return
        gc.collect()
        if self.measure == "memory":
            tracemalloc.start()
            try:
                yield
                measured.peak = tracemalloc.get_traced_memory()[1]
                gc.collect()
                measured.kept = tracemalloc.get_traced_memory()[0]
            finally:
                tracemalloc.stop()
            return
        # a database in the process's memory waits for nothing: what others do at the time is left out
        in_memory = self.engine.url.database in (None, "", ":memory:")
        now = time.process_time if in_memory else time.perf_counter
        start = now()
        yield
        measured.seconds = now() - start

    def commit(self, session: Session, **changes: Any) -> None:
        """Commit and say what changed; see :class:`.Changed`."""
        self.contender.commit(session, Changed(**changes))

    # Set-up

    @contextmanager
    def preparing(self) -> Iterator[Connection]:
        """A transaction that no contender sees."""
        with self.engine.begin() as connection, self.contender.unseen(connection):
            yield connection

    def empty(self) -> None:
        """Make all tables anew."""
        metadata = self.models.base.metadata
        metadata.drop_all(self.engine)
        self.contender.create_tables(metadata, self.engine)
        self.first = 0
        self._filled = None

    def fill(self, **rows: Sequence[Mapping[str, Any]]) -> None:
        """Empty the database, insert *rows* by table and give each one an open INSERT version."""
        self.empty()
        with self.preparing() as connection:
            self.transactions(connection, 1)
            for name, values in rows.items():
                self.insert(connection, self.tables[name], values)
                self.add_versions(connection, name, select(self.tables[name]), 1, INSERT)
        self.settle()

    @contextmanager
    def filled_once(self, what: object) -> Iterator[bool]:
        """True when the database has to be filled with *what*; a reader needs that only once."""
        yield self._filled != what
        self._filled = what

    def transactions(self, connection: Connection, count: int) -> None:
        """Add transactions until there are *count*; they get the ids 1 to *count*."""
        table = self.tables.get("transaction")
        if table is not None and self.contender.same_tables:
            now = dt.datetime.now(dt.timezone.utc).replace(tzinfo=None)
            connection.execute(insert(table), [{"issued_at": now} for _ in range(count)])
        self.first = count

    def insert(
        self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """INSERT *rows* through the cursor."""
        statement = insert(table).inline()
        compiled: Any = statement.compile(dialect=connection.dialect, column_keys=list(rows[0]))
        parameters: list[Any] = list(rows)
        if compiled.positional:
            parameters = [tuple(row[name] for name in compiled.positiontup) for row in rows]
        connection.connection.cursor().executemany(str(compiled), parameters)

    def add_versions(
        self,
        connection: Connection,
        name: str,
        source: Any,
        transaction: Any,
        operation: int,
        end: Any = None,
    ) -> None:
        """INSERT ... SELECT versions of the rows of *source*, a SELECT of parent columns."""
        version = self.tables.get(f"{name}_version")
        if version is None:
            return
        names = [column.name for column in source.selected_columns]
        extra = {"transaction_id": transaction, "operation_type": operation}
        if "end_transaction_id" in version.columns:
            extra["end_transaction_id"] = null() if end is None else end
        values = [
            (literal(value) if isinstance(value, int) else value).label(key)
            for key, value in extra.items()
        ]
        self.quietly(
            connection, insert(version).from_select([*names, *extra], source.add_columns(*values))
        )

    def quietly(self, connection: Connection, statement: Any) -> None:
        """Execute through the cursor, past everybody's listeners."""
        sql = statement.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
        connection.connection.cursor().execute(str(sql), ())

    def settle(self) -> None:
        """Let the database know how much it holds."""
        if self.engine.dialect.name == "postgresql":
            options = {"isolation_level": "AUTOCOMMIT"}
            with self.engine.connect().execution_options(**options) as connection:
                connection.execute(text("ANALYZE"))

    # Checks

    def written(self) -> Rows:
        """The version rows that were written after the set-up."""
        result: Rows = {}
        with self.engine.connect() as connection:
            for name, version in self.tables.items():
                if name == "transaction":
                    query = select(func.count()).where(version.c.id > self.first)
                    result[name] = {"insert": connection.scalar(query.select_from(version)) or 0}
                if not name.endswith("_version"):
                    continue
                operation = version.c.operation_type
                mine = version.c.transaction_id > self.first
                query_by = select(operation, func.count()).where(mine).group_by(operation)
                counts = {OPERATIONS[row[0]]: row[1] for row in connection.execute(query_by)}
                if "end_transaction_id" in version.columns:
                    closed = version.c.end_transaction_id > self.first
                    query = select(func.count()).select_from(version).where(closed)
                    counts["closed"] = connection.scalar(query) or 0
                result[name.removesuffix("_version")] = counts
        return result
