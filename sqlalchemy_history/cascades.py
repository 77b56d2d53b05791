"""What the database does by itself to other tables when rows go or change their keys.

``ON DELETE CASCADE``, ``SET NULL`` and ``SET DEFAULT``, and the same of ``ON UPDATE``: ``references``
has found them in the metadata. The rows that are going to be reached are recorded before the
statement that sets it off, level by level: a level's versions name the rows whose dependants are
next. Tables in between that have no history are passed through. The parents are locked first, so
that nobody adds a dependant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    cast,
    column,
    exists,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
)

from .compare import identical
from .operation import Operation
from .plan import TablePlan
from .record import NewRow, Recorder, Rows, Target
from .references import Cascades, Reference
from .unit_of_work import ConnectionUnit
from .write import number


class Cascade:
    """The dependants of the rows that one statement changes.

    :ivar recorded: tables in which versions were written.
    :ivar set: those of them in which rows are only changed: they show afterwards what they got.
    :ivar moved: those of them in which rows got other keys.
    :ivar marked: those of them in which versions of this transaction were marked as deleted.
    """

    def __init__(
        self, cascades: Cascades, recorder: Recorder, unit: ConnectionUnit, new_row: NewRow
    ) -> None:
        self._cascades = cascades
        self._recorder = recorder
        self._unit = unit
        self._new_row = new_row
        self.recorded: dict[TablePlan, None] = {}
        self.set: set[TablePlan] = set()
        self.moved: set[TablePlan] = set()
        self.marked: set[TablePlan] = set()

    def delete(
        self, table: Any, rows: Rows, path: tuple[Any, ...] = (), without: Iterable[Any] = ()
    ) -> None:
        """The ``rows`` of ``table`` are about to be deleted.

        :param without: tables whose rows are deleted by statements of their own.
        """
        for reference in self._cascades.of(table, "on_delete"):
            if reference.child in without:
                continue
            dependants = self._dependants(reference, rows)
            plan = self._cascades.plan_of(reference.child)
            if reference.on_delete != "CASCADE":
                if plan is not None:
                    self._set(plan, reference, dependants, reference.on_delete)
            elif plan is None:
                if reference.child not in path:
                    self.delete(reference.child, dependants, (*path, table))
            elif self.record_deleted(_target(plan, dependants)):
                self.delete(reference.child, self.recorded_rows(plan), (*path, table))

    def record_deleted(self, target: Target) -> int:
        """The rows of ``target`` are about to be deleted; how many were not known to be."""
        found = self._mark(target)
        found += self._recorder.record(self._unit, target, number(Operation.DELETE), self._new_row)
        if found:
            self.recorded[target.plan] = None
        return found

    def _mark(self, target: Target) -> int:
        found = self._recorder.mark_deleted(self._unit, target)
        if found:
            self.marked.add(target.plan)
        return found

    def recorded_rows(self, plan: TablePlan) -> Rows:
        """The rows of the plan's table that are recorded as deleted."""
        live = plan.parent.alias()
        where = (self._recorder.is_marked(plan, live),)
        return Rows(live=live, where=where, parameters={"history__tx": self._unit.tx})

    def update(self, table: Any, rows: Rows, changing: Iterable[str]) -> None:
        """Columns of ``rows`` that others may refer to are about to change.

        :param changing: their keys; the values of ``rows`` tell to what, as far as that is known.
        """
        changing = set(changing)
        for reference in self._cascades.of(table, "on_update"):
            moved = [parent for _, parent in reference.pairs if parent.key in changing]
            if not moved:
                continue
            changes = [
                not_(identical(rows.live.c[c.key], rows.values[c.key], self._recorder.dialect))
                for c in moved
                if c.key in rows.values
            ]
            source = rows.only(or_(*changes)) if len(changes) == len(moved) else rows
            dependants = self._dependants(reference, source)
            plan = self._cascades.plan_of(reference.child)
            if reference.on_update != "CASCADE":
                if plan is not None:
                    self._set(plan, reference, dependants, reference.on_update)
                continue
            dependants = dataclasses.replace(
                dependants, values=self._new_references(reference, source, dependants.live)
            )
            if plan is not None:
                self._record_moved(_target(plan, dependants), reference)
            self.update(reference.child, dependants, (child.key for child, _ in reference.pairs))

    def _dependants(self, reference: Reference, rows: Rows) -> Rows:
        live = reference.child.alias()
        columns: list[ColumnElement[Any]] = [live.c[child.key] for child, _ in reference.pairs]
        parents = rows.select(*(rows.live.c[parent.key] for _, parent in reference.pairs))
        where = (
            self._recorder.one_of(columns, parents),
            *_is_enforced(self._recorder.dialect.name),
        )
        return Rows(live=live, where=where, parameters=rows.parameters)

    def _new_references(
        self, reference: Reference, source: Rows, live: FromClause
    ) -> dict[str, ColumnElement[Any]]:
        """The new values of the foreign key, where the parent's are known."""
        same = [source.live.c[p.key] == live.c[c.key] for c, p in reference.pairs]
        return {
            child.key: source.only(*same)
            .select(source.values[parent.key])
            .correlate(live)
            .scalar_subquery()
            for child, parent in reference.pairs
            if parent.key in source.values
        }

    def _set(self, plan: TablePlan, reference: Reference, rows: Rows, action: str) -> None:
        """The foreign key becomes NULL, or what the database has for its default."""
        versioned = {c.key for c, _ in plan.columns}
        keys = [child.key for child, _ in reference.pairs if child.key in versioned]
        if keys:
            if action == "SET NULL":
                nulls = {key: cast(null(), rows.live.c[key].type) for key in keys}
                rows = dataclasses.replace(rows, values=nulls)
            self._record_changed(_target(plan, rows))

    def _record_changed(self, target: Target) -> None:
        recorder, unit = self._recorder, self._unit
        amended = target.plan in unit.recorded_plans
        if recorder.record(unit, target, number(Operation.UPDATE), self._new_row) or amended:
            self.recorded[target.plan] = None
            self.set.add(target.plan)

    def _record_moved(self, target: Target, reference: Reference) -> None:
        plan = target.plan
        keys = {column.key for column, _ in plan.keys}
        if keys.isdisjoint(target.values):
            self._record_changed(target)
        else:
            self.record_moved(target)

    def record_moved(self, target: Target) -> int:
        """The rows of ``target`` get other keys: a DELETE of the old one, an INSERT of the new one.

        A key that one row leaves and another one takes was updated.
        """
        recorder, unit = self._recorder, self._unit
        self._mark(target)
        operation = recorder.inserted_or_updated(target)
        found = recorder.record(unit, target, operation, self._new_row)
        left = dataclasses.replace(target, values={})
        found += recorder.record(unit, left, number(Operation.DELETE), self._new_row)
        if found:
            self.recorded[target.plan] = None
            self.moved.add(target.plan)
            self.set.add(target.plan)
        return found


def _target(plan: TablePlan, rows: Rows) -> Target:
    return Target(
        plan=plan,
        live=rows.live,
        where=rows.where,
        values=rows.values,
        parameters=rows.parameters,
    )


def _is_enforced(dialect: str) -> tuple[ColumnElement[bool], ...]:
    """Foreign keys are enforced on this connection, where that is a setting."""
    if dialect == "sqlite":
        setting = func.pragma_foreign_keys().table_valued(column("foreign_keys"), name="setting")
        return (
            exists(
                select(literal_column("1")).where(setting.c.foreign_keys == literal_column("1"))
            ),
        )
    if dialect in ("mysql", "mariadb"):
        return (literal_column("@@foreign_key_checks") == literal_column("1"),)
    return ()
