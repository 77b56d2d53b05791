"""PostgreSQL: one WITH statement for the transaction row, what is closed and what is opened.

All parts of such a statement see the database as it was when the statement began, so each part
says by its own conditions what it is about, and only the ids of new rows flow from part to part.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    and_,
    exists,
    false,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    tuple_,
    union_all,
    update,
)

from .operation import Operation
from .plan import Key, TablePlan
from .unit_of_work import Changes, ConnectionUnit
from .write import (
    TX,
    TransactionRow,
    Writer,
    insert_transaction,
    transaction_parameters,
    transaction_values,
    version_columns,
)

_GROUPS = ("inserted", "updated", "unsure", "deleted")

#: which of these groups of keys a table has, and whether they are of a single key
_Groups = dict[str, bool]


class PostgreSQLWriter(Writer):
    """Writes what a flush changed in all tables with one statement."""

    def _write_fresh(
        self,
        unit: ConnectionUnit,
        fresh: Mapping[TablePlan, Changes],
        new_row: Callable[[], TransactionRow],
    ) -> None:
        shapes: list[tuple[TablePlan, _Groups]] = []
        parameters: dict[str, Any] = {}
        for i, (plan, changes) in enumerate(fresh.items()):
            groups: _Groups = {}
            for group in _GROUPS:
                keys: Sequence[Key] = getattr(changes, group)
                if keys:
                    # with an array PostgreSQL plans each execution anew, which takes longer than it
                    one = groups[group] = len(keys) == 1
                    parameters |= self.key_parameters(plan, keys, f"{group}_{i}", one)
            shapes.append((plan, groups))
        old_tx = unit.tx
        new: tuple[Any, TransactionRow, bool] | None = None
        name: Hashable = tuple((plan, *groups.items()) for plan, groups in shapes)
        if old_tx is None:
            table = shapes[0][0].transaction
            row = transaction_values(table, new_row())
            certain = any(changes.certain for changes in fresh.values())
            new, name = (table, row, certain), (name, tuple(row), certain)
            parameters |= transaction_parameters(row)
        else:
            parameters["history__tx"] = old_tx
        build = partial(self._statement, shapes, new)
        tx, newest, *written = self._run(unit, name, build, parameters).row
        if tx is None:
            return
        if old_tx is None:
            unit.set_tx(tx)
        in_vain = False
        for (plan, groups), count in zip(shapes, written, strict=True):
            changes = fresh[plan]
            expected = sum(len(getattr(changes, group)) for group in groups)
            in_vain |= self.after_open(unit, plan, changes, count == expected)
        if in_vain:
            self.forget_empty_transaction(unit)
        if unit.tx is not None and newest is not None and newest > tx:
            self.move_behind(unit, newest, fresh)

    def _statement(
        self,
        shapes: Sequence[tuple[TablePlan, _Groups]],
        new: tuple[Any, TransactionRow, bool] | None,
    ) -> Any:
        changed: dict[TablePlan, Any] = {}
        for i, (plan, groups) in enumerate(shapes):
            if "unsure" in groups:
                root = plan.hierarchy[0]
                statement = select(*plan.keys_of(plan.parent)).where(
                    self.key_clause(plan, plan.parent, f"unsure_{i}", groups["unsure"]),
                    self.changed(plan)
                    if plan is root
                    else self._is_in(plan, plan.parent, changed[root]),
                )
                changed[plan] = statement.cte(f"changed_{i}")
        ctes = []
        tx: ColumnElement[Any] = TX
        if new is not None:
            table, row, certain = new
            condition = None if certain else or_(*(exists(select(cte)) for cte in changed.values()))
            begun = insert_transaction(table, row, self.dialect, condition).cte("begun")
            ctes.append(begun)
            tx = select(begun.c.id).scalar_subquery()
        newest: list[ColumnElement[Any]] = []
        written = []
        for i, (plan, groups) in enumerate(shapes):
            closed = (
                self._closed(plan, i, groups, changed.get(plan), tx)
                if plan.end is not None
                else None
            )
            if closed is not None:
                ctes.append(closed)
                newest.append(select(func.max(closed.c[0])).scalar_subquery())
            elif new is None:
                newest.append(
                    select(func.max(plan.tx_of(plan.version)))
                    .where(or_(*self._any_key(plan, plan.version, i, groups)))
                    .scalar_subquery()
                )
            opened = self._opened(plan, i, groups, changed.get(plan), closed, tx)
            ctes.append(opened)
            written.append(select(func.count()).select_from(opened).scalar_subquery())
        latest = func.greatest(*newest) if len(newest) > 1 else newest[0] if newest else null()
        return select(tx.label("tx"), latest.label("newest"), *written).add_cte(*ctes)

    def _any_key(
        self, plan: TablePlan, from_: FromClause, i: int, groups: _Groups
    ) -> list[ColumnElement[bool]]:
        return [self.key_clause(plan, from_, f"{name}_{i}", one) for name, one in groups.items()]

    def _closed(
        self, plan: TablePlan, i: int, groups: _Groups, changed: Any, tx: ColumnElement[Any]
    ) -> Any:
        v = plan.version
        sure = {name: one for name, one in groups.items() if name in ("inserted", "updated")}
        which = self._any_key(plan, v, i, sure)
        if "deleted" in groups:
            deleted = self._any_key(plan, v, i, {"deleted": groups["deleted"]})
            which.append(and_(*self.is_gone(plan, v), *deleted))
        if changed is not None:
            which.append(self._is_in(plan, v, changed))
        return (
            update(v)
            .where(plan.end_of(v).is_(None), or_(*which))
            .values({plan.end: tx})
            .returning(plan.tx_of(v))
            .cte(f"closed_{i}")
        )

    def _opened(
        self,
        plan: TablePlan,
        i: int,
        groups: _Groups,
        changed: Any,
        closed: Any,
        tx: ColumnElement[Any],
    ) -> Any:
        selects = []
        for name, one in groups.items():
            if name == "deleted":
                old = plan.version.alias(f"old_{i}")
                copy = self.copy_of_version(plan, old, tx).where(
                    self.key_clause(plan, old, f"{name}_{i}", one),
                    plan.strategy.is_open(plan, old),
                    *self.is_gone(plan, old),
                )
            else:
                operation = Operation.INSERT if name == "inserted" else Operation.UPDATE
                copy = self.copy_of_live(plan, operation, tx).where(
                    self._is_in(plan, plan.parent, changed)
                    if name == "unsure"
                    else self.key_clause(plan, plan.parent, f"{name}_{i}", one)
                )
            if closed is not None:
                # the closing must be over before the first new version meets the unique index
                ended = select(func.count()).select_from(closed).scalar_subquery()
                copy = copy.where(ended >= literal_column("0"))
            selects.append(copy)
        return (
            insert(plan.version)
            .from_select(
                version_columns(plan), selects[0] if len(selects) == 1 else union_all(*selects)
            )
            .returning(plan.tx_of(plan.version))
            .cte(f"opened_{i}")
        )

    def _is_in(self, plan: TablePlan, from_: FromClause, keys: Any) -> ColumnElement[bool]:
        columns = plan.keys_of(from_)
        if keys is None:
            return false()
        left: Any = columns[0] if len(columns) == 1 else tuple_(*columns)
        return and_(left.in_(select(*keys.c)))
