"""Which statements of a watched connection are recorded, from before they run until after it.

All of them pass ``before_execute``, so there is one way for ORM statements, Core statements and
association tables. Those of a flush change what the flush knows itself; ``bulk`` records the others,
and is loaded when there is one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Join, Table
from sqlalchemy.exc import DBAPIError

from .capture import flushed_keys, note_association
from .plan import CHAINS_KEY, INFO_KEY, Key, TablePlan
from .references import Cascades
from .statement import Parameters, given_keys, is_of_flush, parent_table, table_of
from .triggers import keeps_history
from .unit_of_work import ConnectionUnit, UnitOfWork

if TYPE_CHECKING:
    from sqlalchemy import Connection, CursorResult

    from .bulk import UnderWay
    from .manager import VersioningManager
    from .record import NewRow, Recorder
    from .write import Writer


class Statements:
    """The statements of watched connections, each from before its execution until after it."""

    def __init__(self, manager: VersioningManager) -> None:
        self._manager = manager
        self._recorders: dict[Writer, Recorder] = {}
        self.cascades = Cascades(self._captured_plan_of)
        self._native_cascades = Cascades(self._native_plan_of)
        #: whether a flush's own statements about a table need anything, and for how many tables
        self._need_nothing: dict[Table, tuple[int, bool]] = {}
        #: for which models, and their plans by the name of the table in lower case
        self._names: tuple[tuple[Any, ...], dict[str, TablePlan]] = ((), {})

    def plan_of(self, table: Any) -> TablePlan | None:
        """The plan of a table, of an alias or of what the ORM makes of one."""
        table = parent_table(table)
        plan: TablePlan | None = None if table is None else table.info.get(INFO_KEY)
        mine = plan is not None and plan.manager is self._manager and plan.parent is table
        return plan if mine else None

    def _captured_plan_of(self, table: Any) -> TablePlan | None:
        plan = self.plan_of(table)
        return None if plan is None or plan.options.native_versioning else plan

    def _native_plan_of(self, table: Any) -> TablePlan | None:
        plan = self.plan_of(table)
        return plan if plan is not None and plan.options.native_versioning else None

    def forget(self) -> None:
        """The manager starts anew."""
        self._recorders.clear()
        self.cascades.forget()
        self._native_cascades.forget()
        self._need_nothing.clear()
        self._names = ((), {})

    def is_left_to_flush(self, work: UnitOfWork, statement: Any, options: Any) -> bool:
        """``statement`` is a flush's own, and all that there is to say of it the flush says itself."""
        table = statement.table
        if not (work.is_flushing and is_of_flush(statement, options) and isinstance(table, Table)):
            return False
        # a model that is declared later may refer to the table, as in Cascades.of()
        count = len(table.metadata.tables)
        known = self._need_nothing.get(table)
        if known is None or known[0] != count:
            known = self._need_nothing[table] = count, self._needs_nothing(table)
        return known[1]

    def _needs_nothing(self, table: Table) -> bool:
        plan = self.plan_of(table)
        return (
            plan is not None
            and len(plan.hierarchy) == 1
            and not (plan.association or plan.options.baseline or self._is_native(plan, table))
            and not (self.cascades.of(table, "on_delete") or self.cascades.of(table, "on_update"))
        )

    def begin(self, unit: ConnectionUnit, statement: Any, rows: Parameters, options: Any) -> Any:
        """``statement`` is about to be executed with ``rows``; returns what to execute instead."""
        table = parent_table(table_of(statement))
        plan = self.plan_of(table)
        if plan is None:
            self.warn_of_other(unit, statement.table)
        else:
            self._lock_flushed(unit, plan, statement, rows)
        sets_off_triggers = False
        if self._manager.native.plans:
            sets_off_triggers = self._tell_triggers(unit, plan, table)
            plan = self._captured_plan_of(table)
        in_flush = unit.work.is_flushing
        self._keep_old(unit, plan, statement, rows)
        if in_flush and plan is not None and plan.association:
            if note_association(unit, plan, statement, rows):
                return statement
        by_flush = in_flush and is_of_flush(statement, options)
        is_recorded = plan is not None and not by_flush
        if not is_recorded and not self._is_passed_on(statement, table):
            return statement
        from .bulk import kind_of  # noqa: PLC0415 - a program may never do this

        self._manager.native.read_transaction(unit)
        self._abandon(unit)
        under_way = kind_of(statement)(self, unit, None if by_flush else plan)
        under_way.sets_off_triggers = sets_off_triggers
        unit.under_way = under_way
        try:
            under_way.statement = under_way.begin(statement, rows or [{}])
            if sets_off_triggers:
                self._manager.native.say_transaction(unit, under_way.transaction_before)
        except BaseException:
            self._abandon(unit)
            raise
        return under_way.statement

    def _is_passed_on(self, statement: Any, table: Any) -> bool:
        """The database passes on what ``statement`` does, to tables with a history."""
        if statement.is_insert:
            return False
        return bool(self.cascades.of(table, "on_delete" if statement.is_delete else "on_update"))

    def _lock_flushed(
        self, unit: ConnectionUnit, plan: TablePlan, statement: Any, rows: Parameters
    ) -> None:
        """A flush writes objects of several tables: their rows in the root table are locked first.

        A change of any part of an object writes versions of all parts, so two flushes that write
        different tables must not go on side by side. It is the lock that is taken first also by who
        changes the root table, so that all take them in one order.
        """
        if len(plan.hierarchy) == 1 or statement.is_insert or not unit.work.is_flushing:
            return
        writer, root = self._manager.writer(unit.connection), plan.hierarchy[0]
        keys = self._flushed_keys(unit, root, "lock") if writer.locks else ()
        if plan is root and statement.is_update and len(rows or [{}]) == len(keys):
            return  # the statement locks them all
        writer.lock(unit, root, keys, keeps_keys=statement.is_update)

    def _flushed_keys(self, unit: ConnectionUnit, root: TablePlan, what: str) -> Sequence[Key]:
        """What the flush under way changes or deletes in ``root``; nothing when asked once more."""
        seen = unit.work.flush_context.attributes.setdefault((self, unit.connection, what), set())
        if root in seen:
            return ()
        seen.add(root)
        return flushed_keys(unit.work, self._manager.models.plans, root)

    def _keep_old(
        self, unit: ConnectionUnit, plan: TablePlan | None, statement: Any, rows: Parameters
    ) -> None:
        """A flush writes the table of ``plan``: what it is going to change keeps its old state.

        The first statement about a table sees to all objects at once: the flush knows by then which
        ones it writes, orphans and what it cascades included.
        """
        if plan is None or not plan.options.baseline or statement.is_insert:
            return
        if not unit.work.is_flushing:
            return
        recorder = self.recorder(unit.connection)
        if plan.association:
            columns = [column for column, _ in plan.keys]
            keys = given_keys(columns, statement._where_criteria, rows) or []
            recorder.keep_old_of(unit, plan, keys)
            return
        root = plan.hierarchy[0]
        recorder.keep_old_of(unit, root, self._flushed_keys(unit, root, "baseline"))

    def _is_native(self, plan: TablePlan | None, table: Any) -> bool:
        """Triggers record what a statement does to ``table``, or the database with it to others."""
        if plan is not None and plan.options.native_versioning:
            return True
        cascades = self._native_cascades
        return bool(cascades.of(table, "on_delete") or cascades.of(table, "on_update"))

    def _tell_triggers(self, unit: ConnectionUnit, plan: TablePlan | None, table: Any) -> bool:
        """Whether a statement on ``table`` sets off triggers; if so, they are told who writes."""
        found = self._is_native(plan, table)
        if found:
            self._manager.native.about_to_write(unit)
        return found

    def end(self, unit: ConnectionUnit, statement: Any, result: CursorResult[Any]) -> None:
        """``statement`` was executed."""
        under_way: UnderWay | None = unit.under_way
        if under_way is None or under_way.statement is not statement:
            return
        unit.under_way = None
        if under_way.guarded:
            under_way.recorder.succeeded(unit)
        if under_way.sets_off_triggers:
            self._manager.native.read_transaction(unit)
        under_way.end(result)
        unit.work.session.info.pop(CHAINS_KEY, None)
        self._manager.native.say_transaction(unit, under_way.transaction_before)
        if under_way.written:
            self._manager.after_write(
                unit, under_way.written, under_way.amended, under_way.transaction_before
            )

    def failed(self, unit: ConnectionUnit) -> None:
        """A statement was not executed; if it is the one under way, nothing of it is recorded."""
        if unit.under_way is not None and unit.under_way.statement is not None:
            self._abandon(unit)

    def _abandon(self, unit: ConnectionUnit) -> None:
        """The statement under way, if there is one, never came to its end."""
        under_way, unit.under_way = unit.under_way, None
        # a connection that is lost has lost its transaction, too
        if under_way is not None and not unit.connection.invalidated:
            # a deadlock may have undone the whole transaction, and the savepoint with it
            with contextlib.suppress(DBAPIError):
                under_way.recorder.failed(unit, under_way)

    def recorder(self, connection: Connection) -> Recorder:
        """The recorder for the connection's dialect."""
        writer = self._manager.writer(connection)
        found = self._recorders.get(writer)
        if found is None:
            from .record import Recorder  # noqa: PLC0415 - see begin()

            found = self._recorders[writer] = Recorder(writer)
        return found

    def new_row(self, unit: ConnectionUnit) -> NewRow:
        """What makes the values of a transaction row."""
        return lambda: self._manager.transaction_row(unit.work.session)

    def warn_of(self, unit: ConnectionUnit, tables: Iterable[Any], is_text: bool) -> None:
        """Text or a WITH clause writes ``tables``, given by name or as such."""
        for table in tables:
            plan = self._plan_named(table) if is_text else self.plan_of(table)
            if plan is not None:
                self._written_unseen(
                    unit,
                    plan,
                    "what SQL text writes" if is_text else "what a WITH clause writes",
                    "use update(), delete() or insert() of the class or its table",
                )

    def warn_of_other(self, unit: ConnectionUnit, table: Any) -> None:
        """A statement is about a table that we do not know, perhaps only by another object."""
        name = getattr(table, "name", None)
        parts = (table.left, table.right) if isinstance(table, Join) else ()
        for part in parts:
            self.warn_of_other(unit, part)
        plan = self._plan_named(str(name).lower()) if name and not parts else None
        if plan is not None and getattr(table, "schema", None) == plan.parent.schema:
            self._written_unseen(
                unit,
                plan,
                "what a statement on another table object of this name, or on a join, writes",
                "use the class or its __table__",
            )

    def _written_unseen(
        self, unit: ConnectionUnit, plan: TablePlan, what: str, way_out: str
    ) -> None:
        """A statement names the table of ``plan`` in a way in which only triggers can record it."""
        if not keeps_history(unit.connection, plan.version):
            return
        if plan.options.native_versioning:
            self._manager.native.about_to_write(unit)
        else:
            self.untracked(plan, what, way_out)

    def _plan_named(self, name: str) -> TablePlan | None:
        models = self._manager.models
        known = (len(models.plans), len(models.associations), next(reversed(models.plans), None))
        if self._names[0] != known:
            self._names = known, {plan.parent.name.lower(): plan for plan in models.table_plans}
        return self._names[1].get(name)

    def untracked(self, plan: TablePlan, what: str, way_out: str) -> None:
        """Something is going to happen that cannot be recorded."""
        self._manager.untracked(plan, what, way_out)
