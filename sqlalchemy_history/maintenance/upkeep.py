"""What upkeep functions are made of: which tables, in which batches, under which transaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Executable,
    FromClause,
    Row,
    Select,
    Table,
    and_,
    delete,
    func,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.orm import Mapper, Session

from sqlalchemy_history.exc import refuse_async
from sqlalchemy_history.inspection import version_class
from sqlalchemy_history.keys import KeyFormat
from sqlalchemy_history.plan import (
    CHAINS_KEY,
    UNSEEN,
    ClassPlan,
    Key,
    TablePlan,
    class_plan,
    table_plan,
)
from sqlalchemy_history.query import plan_of
from sqlalchemy_history.unit_of_work import Changes, ConnectionUnit
from sqlalchemy_history.version import VersionBase
from sqlalchemy_history.write import Writer

#: the longest mark, the width of ``remote_addr``
_MARK_LENGTH = 50


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far an upkeep function has come, told after each batch.

    :ivar task: the name of the function.
    :ivar table: the table whose history it is at.
    :ivar done: how many rows or versions it has dealt with, in all tables.
    """

    task: str
    table: str
    done: int


ProgressCallback = Callable[[Progress], object]


class Upkeep:
    """One run of an upkeep function over the history of ``model``."""

    def __init__(
        self,
        session: Session,
        model: Any,
        task: str,
        *,
        batch_size: int = 1000,
        commit: bool = False,
        progress: ProgressCallback | None = None,
    ) -> None:
        refuse_async(session, task)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; it is at least 1")
        version_class(model)
        self.session = session
        self.plan: ClassPlan = plan_of(model)
        self.task = task
        self.batch_size = batch_size
        self.commit = commit
        self.progress = progress
        self.done: int = 0
        self.roots: list[TablePlan] = _roots(self.plan)
        self._tx: int | None = None
        session.flush()

    @property
    def connection(self) -> Connection:
        """The session's connection to the database that the model lives in."""
        return self.session.connection(bind_arguments={"mapper": self.plan.mapper})

    @property
    def writer(self) -> Writer:
        """The writer of versions for that database."""
        return self.plan.manager.writer(self.connection)

    def execute(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> int:
        """Run a statement of which no version is made; the number of rows it matched."""
        unseen = {UNSEEN: True}
        result = self.connection.execute(statement, parameters or {}, execution_options=unseen)
        return result.rowcount

    # -- batches

    def batches(
        self, statement: Select[Any], columns: Sequence[ColumnElement[Any]]
    ) -> Iterator[Sequence[Row[Any]]]:
        """The rows of ``statement``, in batches, in the order of its first ``columns``.

        Each batch is a statement of its own that begins behind the last row of the one before, so
        what the caller does with a batch may change what the statement finds.
        """
        statement = statement.order_by(*columns).limit(self.batch_size)
        rows = self.connection.execute(statement).all()
        while rows:
            yield rows
            if len(rows) < self.batch_size:
                return
            # the first condition follows from the second; databases find their way in by it, also
            # into a subquery with window functions
            behind = statement.where(columns[0] >= rows[-1][0], _behind(columns, rows[-1]))
            rows = self.connection.execute(behind).all()

    def batch_done(self, plan: TablePlan, count: int) -> None:
        """Count a batch, commit it if that is wanted, and tell."""
        self.done += count
        if self.commit:
            self.session.commit()
        if self.progress is not None:
            self.progress(Progress(task=self.task, table=plan.parent.fullname, done=self.done))

    def finish(self) -> int:
        """Let the session forget the versions it has loaded; what ``done`` has come to."""
        self.session.info.pop(CHAINS_KEY, None)
        for obj in list(self.session.identity_map.values()):
            if isinstance(obj, VersionBase):
                self.session.expire(obj)
        return self.done

    # -- which rows

    def recorded_rows(self, root: TablePlan) -> ColumnElement[bool]:
        """Rows of the table of ``root`` whose classes have a history."""
        if root.association:
            return true()
        mappers = _hierarchy(self.plan.mapper)
        recorded = [m for m in mappers if class_plan(m.class_) is not None]
        kind = mappers[0].polymorphic_on
        if len(recorded) == len(mappers) or kind is None:
            return true()
        return kind.in_([m.polymorphic_identity for m in recorded])

    def neighbour(self, plan: TablePlan, v: FromClause, *, later: bool) -> ColumnElement[Any]:
        """The transaction of the version of the same row that comes after ``v``, or before it.

        PostgreSQL is several times as fast with a window function. Other databases are as fast with
        one look into the index for each version, and need not make all of them for each batch.
        """
        keys, tx = plan.keys_of(v), plan.tx_of(v)
        if self.connection.dialect.name == "postgresql":
            return (func.lead if later else func.lag)(tx).over(partition_by=keys, order_by=tx)
        other = plan.version.alias()
        other_tx = plan.tx_of(other)
        nearest, side = (func.min, other_tx > tx) if later else (func.max, other_tx < tx)
        statement = select(nearest(other_tx)).where(plan.same_key(other, v), side)
        return statement.correlate(v).scalar_subquery()

    # -- changing versions

    def remove(self, plan: TablePlan, versions: Sequence[Row[Any]]) -> None:
        """Remove ``versions``, rows of (keys, transaction id, ...), from the table of ``plan``."""
        columns = [*(version for _, version in plan.keys), plan.tx]
        format_ = KeyFormat(self.connection.dialect, columns)
        which = format_.many([*plan.keys_of(plan.version), plan.tx_of(plan.version)], "chosen")
        chosen = [tuple(row[: len(columns)]) for row in versions]
        for portion in format_.portions(chosen):
            parameters = format_.many_parameters(portion, "chosen")
            self.execute(delete(plan.version).where(which), parameters)

    def relink(self, plan: TablePlan, keys: Sequence[Key]) -> int:
        """Let each version of ``keys`` end where the next one starts; how many were wrong."""
        if plan.end is None:
            return 0
        v = plan.version
        inner = v.alias("inner_v")
        following = func.lead(plan.tx_of(inner)).over(
            partition_by=plan.keys_of(inner), order_by=plan.tx_of(inner)
        )
        chain = (
            select(*plan.keys_of(inner), plan.tx_of(inner), following.label("history_next"))
            .where(self.writer.key_clause(plan, inner))
            .subquery("chain")
        )
        mend = (
            update(v)
            .where(
                plan.same_key(v, chain),
                plan.tx_of(v) == plan.tx_of(chain),
                plan.end_of(v).is_distinct_from(chain.c.history_next),
            )
            .values({plan.end: chain.c.history_next})
        )
        # what is closed comes first: at no time may a row have two open versions
        return sum(
            self.execute(mend.where(which), parameters)
            for parameters in self.writer.portions(plan, keys)
            for which in (chain.c.history_next.is_not(None), chain.c.history_next.is_(None))
        )

    # -- writing versions

    def write(self, changes: Mapping[TablePlan, Changes], mark: str) -> None:
        """Write ``changes`` as versions under one transaction row of this run, with ``mark``.

        In a database transaction in which the session has versioned something already, they become
        part of that transaction instead.
        """
        own = self._unit_of_session()
        unit = own or self._unit()
        before = unit.tx
        amended = self.writer.write(unit, changes, lambda: self.transaction_row(mark))
        tables = {plan: written.keys for plan, written in changes.items()}
        self.plan.manager.tell_plugins(unit, tables, amended, before, reconstructed=True)
        if own is None:
            self._tx = unit.tx

    def mark(self, prefix: str, text: str) -> None:
        """Make a transaction row that says who did what, and when."""
        row = self.plan.manager.transaction_row(self.session)
        table = self.plan.root.transaction
        if "remote_addr" in table.c:
            who = row.get("remote_addr")
            text = text if who is None else f"{who}: {text}"
            row["remote_addr"] = f"{prefix}{text}"[:_MARK_LENGTH]
        self.writer.create_transaction(self._unit(), table, row)

    def transaction_row(self, mark: str) -> dict[str, Any]:
        """What ``transaction_context()`` says; ``mark`` as ``remote_addr`` where it says none."""
        row = self.plan.manager.transaction_row(self.session)
        if "remote_addr" in self.plan.root.transaction.c:
            row.setdefault("remote_addr", mark[:_MARK_LENGTH])
        return row

    def new_transaction(self) -> None:
        """What is written from now on gets a transaction row of its own."""
        self._tx = None

    def _unit(self) -> ConnectionUnit:
        unit = ConnectionUnit(self.connection, self.plan.manager.unit_of_work(self.session))
        if self._tx is not None:
            unit.set_tx(self._tx)
        return unit

    def _unit_of_session(self) -> ConnectionUnit | None:
        work = self.plan.manager.unit_of_work(self.session)
        unit = work.connections.get(self.connection)
        return None if unit is None or unit.tx is None else unit


def _behind(columns: Sequence[ColumnElement[Any]], row: Row[Any]) -> ColumnElement[bool]:
    """The values of ``columns`` come after those of ``row``."""
    later = []
    for i, column in enumerate(columns):
        same = (c == value for c, value in zip(columns[:i], row, strict=False))
        later.append(and_(*same, column > row[i]))
    return or_(*later)


def _hierarchy(mapper: Mapper[Any]) -> list[Mapper[Any]]:
    """The mappers of a hierarchy, its base first."""
    base = mapper
    while base.inherits is not None and not base.concrete:
        base = base.inherits
    return [m for m in base.self_and_descendants if base.local_table in m.tables]


def _roots(plan: ClassPlan) -> list[TablePlan]:
    """The root table of the class, and the association tables of its relationships."""
    found = [plan.root]
    for mapper in _hierarchy(plan.mapper):
        for prop in mapper.relationships:
            association = table_plan(prop.secondary) if isinstance(prop.secondary, Table) else None
            if association is not None and association.association:
                found.append(association)
    return list(dict.fromkeys(found))
