"""From changes to rows of version tables: set-based SQL, a constant number of statements per table.

A flush is written in these steps, ``v`` being a version table:

1. the transaction row, unless this database transaction has one. If the database alone can tell
   whether anything really changed, the INSERT carries that as its condition;
2. *close*: one UPDATE ends the open versions of the rows that changed;
3. *open*: one INSERT ... SELECT copies the live rows (for a deleted row its last version) into ``v``;
4. *amend*, for rows that this transaction had versioned before: their versions take the new values,
   become a DELETE, or go away; and those that are now as before the transaction are taken back.

On PostgreSQL steps 1 to 3 are a single statement (``write_postgresql``). Statements are built once
per table and dialect; the rows never pass through Python.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Dialect,
    Executable,
    FromClause,
    Integer,
    Select,
    SmallInteger,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal_column,
    not_,
    null,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy import Sequence as DatabaseSequence

from .compare import identical
from .keys import KeyFormat
from .operation import Operation
from .plan import Key, TablePlan, as_key, key_values, same_object
from .prepared import Outcome, Prepared, is_quiet
from .unit_of_work import MAYBE, Amendment, Changes, ConnectionUnit, merge_into

if TYPE_CHECKING:
    from sqlalchemy import Connection, Table

#: the parameters that all statements share
TX = bindparam("history__tx", type_=BigInteger)

#: a row for the transaction table: column key -> value
TransactionRow = Mapping[str, Any]


class _Condition(NamedTuple):
    """Under which a transaction row is wanted; equal names stand for equal clauses."""

    name: Hashable
    clause: Callable[[], ColumnElement[bool]]
    parameters: Mapping[str, Any]


class Writer:
    """Writes changes for one dialect; holds the statements that it has built."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self._statements: dict[Hashable, Any] = {}
        self._prepared: dict[Hashable, Prepared] = {}
        self._formats: dict[TablePlan, KeyFormat] = {}
        #: one writer at a time: what was committed before us has a smaller id than ours
        self._serial = dialect.name == "sqlite"
        #: InnoDB: to lock what is not there keeps others from inserting near it, and a plain read
        #: shows what was there when the transaction began
        self._locks_gaps = dialect.name in ("mysql", "mariadb")
        #: rows of a subquery can be locked, also those of an INSERT ... SELECT
        self.locks: bool = dialect.name in ("postgresql", "mysql", "mariadb")
        #: a recursive query can draw from a sequence
        self._draws_many = dialect.supports_sequences and dialect.name in (
            "postgresql",
            "mysql",
            "mariadb",
        )
        #: INSERT ... SELECT ... RETURNING is one statement
        self.selects_and_returns: bool = dialect.insert_returning and dialect.name in (
            "sqlite",
            "postgresql",
            "mysql",
            "mariadb",
        )

    # -- the way of a flush

    def write(
        self,
        unit: ConnectionUnit,
        changes: Mapping[TablePlan, Changes],
        new_row: Callable[[], TransactionRow],
    ) -> bool:
        """Write ``changes`` as versions of the unit's transaction; make that if there is none.

        Returns whether versions that this transaction had written before were changed.
        """
        unit.is_quiet = is_quiet(unit.connection)
        self.stay_behind_past(unit, changes)
        fresh = {plan: table_changes for plan, table_changes in changes.items() if table_changes}
        amend: dict[TablePlan, Amendment] = {}
        for plan, table_changes in list(fresh.items()) if unit.tx is not None else ():
            known = self._recorded_operations(unit, plan, table_changes)
            if known:
                again, amend[plan] = merge_into(known, table_changes)
                if again:
                    fresh[plan] = again
                else:
                    del fresh[plan]
        if fresh:
            self._write_fresh(unit, fresh, new_row)
        for plan, amendment in amend.items():
            if amendment:
                self._amend(unit, plan, amendment)
        if any(amend.values()):
            settled = self.settle(unit, {plan: a for plan, a in amend.items() if a.settle})
            if settled or any(a.void for a in amend.values()):
                self.forget_empty_transaction(unit)
        return any(amend.values())

    def create_transaction(
        self,
        unit: ConnectionUnit,
        table: Table,
        row: TransactionRow,
        condition: _Condition | None = None,
    ) -> bool:
        """Insert the transaction row, unless there is a ``condition`` that does not hold."""
        connection = unit.connection
        if self.selects_and_returns:
            values = transaction_values(table, row)
            parameters = transaction_parameters(values)
            name: Hashable = ("begin", table, tuple(values))
            if condition is not None:
                name = (name, condition.name)
                parameters |= condition.parameters
            made = self._run(
                unit,
                name,
                lambda: insert_transaction(
                    table, values, self.dialect, condition and condition.clause()
                ),
                parameters,
            ).row
        elif condition is not None and not connection.scalar(
            select(literal_column("1")).where(condition.clause()), condition.parameters
        ):
            made = None
        else:
            made = connection.execute(insert(table), dict(row)).inserted_primary_key
        if made is None:
            return False
        unit.set_tx(made[0])
        return True

    def _write_fresh(
        self,
        unit: ConnectionUnit,
        fresh: Mapping[TablePlan, Changes],
        new_row: Callable[[], TransactionRow],
    ) -> None:
        check_order = unit.tx is not None and not self._serial
        in_vain = False
        if unit.tx is None:
            condition = self._is_something_changed(fresh)
            table = next(iter(fresh)).transaction
            if not self.create_transaction(unit, table, new_row(), condition):
                return
            in_vain = condition is None and not any(c.certain for c in fresh.values())
        for plan, changes in fresh.items():
            before = [*changes.updated, *changes.unsure, *changes.deleted]
            again: Sequence[Key] = ()
            if plan.strategy.has_end or check_order:
                again = self._used_before(unit, plan, changes.inserted, others=bool(before))
                before += again
            if check_order and not plan.strategy.has_end:
                self._stay_behind(unit, plan, before)
            self._close(unit, plan, changes, again)
            in_vain |= self._open(unit, plan, changes)
            if check_order and plan.strategy.has_end:
                self._stay_behind(unit, plan, before)
        if in_vain:
            self.forget_empty_transaction(unit)

    # -- 1. the transaction row

    def _is_something_changed(self, fresh: Mapping[TablePlan, Changes]) -> _Condition | None:
        """The question whether anything in ``fresh`` has changed.

        None where that is certain, or where there are more keys than a statement takes.
        """
        if any(changes.certain for changes in fresh.values()):
            return None
        roots = {plan: c.unsure for plan, c in fresh.items() if plan is plan.hierarchy[0]}
        count = sum(map(len, roots.values()))
        if not all(self.format(plan).fits(count) for plan in fresh):
            return None
        shape = tuple((plan, len(keys) == 1) for plan, keys in roots.items())
        parameters: dict[str, Any] = {"history__tx": None}
        for i, (plan, one) in enumerate(shape):
            parameters |= self.key_parameters(plan, roots[plan], f"unsure_{i}", one)

        def something() -> ColumnElement[bool]:
            return or_(
                *(
                    exists().where(
                        self.key_clause(plan, plan.parent, f"unsure_{i}", one), self.changed(plan)
                    )
                    for i, (plan, one) in enumerate(shape)
                )
            )

        return _Condition(shape, something, parameters)

    # -- 2. close

    def _close(
        self, unit: ConnectionUnit, plan: TablePlan, changes: Changes, again: Sequence[Key]
    ) -> None:
        if not plan.strategy.has_end:
            return
        sure = [*again, *changes.updated, *changes.deleted]
        for keys, unsure in ((sure, False), (changes.unsure, True)):
            if keys:
                self._by_keys(
                    unit,
                    plan,
                    keys,
                    ("close", unsure),
                    partial(self.close_statement, plan, unsure),
                )

    def close_statement(
        self, plan: TablePlan, unsure: bool, key: Callable[[FromClause], ColumnElement[bool]]
    ) -> Executable:
        """End the open versions of the rows that ``key`` names; if ``unsure``, where they differ."""
        v = plan.version
        statement = update(v).where(key(v), plan.strategy.is_open(plan, v)).values({plan.end: TX})
        return statement.where(self._changed_since(plan, v)) if unsure else statement

    def _used_before(
        self, unit: ConnectionUnit, plan: TablePlan, keys: Sequence[Key], others: bool
    ) -> Sequence[Key]:
        """Those of the inserted ``keys`` that may have versions: they were somebody's before.

        The closing of ``others``, if there are any, takes all of them along without a question.
        """
        if not keys:
            return ()
        if others and not self._locks_gaps:
            return keys
        v = plan.version
        if len(keys) > 1 and len(plan.keys) == 1 and isinstance(plan.keys[0][0].type, Integer):
            found = self._run(
                unit,
                ("used between", plan),
                lambda: (
                    select(literal_column("1"))
                    .select_from(v)
                    .where(
                        plan.keys_of(v)[0].between(
                            bindparam("history__low"), bindparam("history__high")
                        ),
                        plan.end_of(v).is_(None) if plan.strategy.has_end else true(),
                    )
                    .limit(1)
                ),
                {"history__low": min(keys), "history__high": max(keys)},
            )
            return keys if found.row is not None else ()
        if not self._locks_gaps:
            return keys
        statement = self.built(
            ("used", plan),
            lambda: select(*plan.keys_of(v)).where(self.key_clause(plan, v)).distinct(),
        )
        return [
            as_key(row)
            for parameters in self.portions(plan, keys)
            for row in unit.connection.execute(statement, parameters)
        ]

    # -- 3. open

    def _open(self, unit: ConnectionUnit, plan: TablePlan, changes: Changes) -> bool:
        groups = {
            "inserted": changes.inserted,
            "updated": changes.updated,
            "unsure": changes.unsure,
            "deleted": changes.deleted,
        }
        groups = {name: keys for name, keys in groups.items() if keys}
        expected = sum(map(len, groups.values()))
        if len(groups) > 1 and self.format(plan).fits(expected):
            written = self._open_together(unit, plan, groups)
        else:
            written = sum(self._open_group(unit, plan, *group) for group in groups.items())
        return self.after_open(unit, plan, changes, written == expected)

    def _open_group(
        self, unit: ConnectionUnit, plan: TablePlan, name: str, keys: Sequence[Key]
    ) -> int:
        return self._by_keys(
            unit, plan, keys, ("open", name), lambda key: self._open_statement(plan, {name: key})
        )

    def _open_together(
        self, unit: ConnectionUnit, plan: TablePlan, groups: Mapping[str, Sequence[Key]]
    ) -> int:
        parameters: dict[str, Any] = {"history__tx": unit.tx}
        for name, keys in groups.items():
            parameters |= self.key_parameters(plan, keys, name)
        clauses = {name: partial(self.key_clause, plan, name=name) for name in groups}
        opened = self._run(
            unit,
            ("open", plan, tuple(groups)),
            lambda: self._open_statement(plan, clauses),
            parameters,
        )
        return opened.rowcount

    def after_open(
        self, unit: ConnectionUnit, plan: TablePlan, changes: Changes, complete: bool
    ) -> bool:
        """Remember what was written; see to deleted rows that had no version to copy.

        Returns whether some of these had been deleted by somebody else.
        """
        deleted: Sequence[Key] = changes.deleted
        gone: Collection[Key] = ()
        if not complete and deleted:
            gone = self._write_lost(unit, plan, changes)
            deleted = [key for key in deleted if key not in gone] if gone else deleted
        unit.record(plan, Operation.INSERT, changes.inserted)
        unit.record(plan, Operation.UPDATE, changes.updated)
        unit.record(plan, Operation.UPDATE if complete else MAYBE, changes.unsure)
        unit.record(plan, Operation.DELETE, deleted)
        unit.record(plan, None, list(gone))
        return bool(gone)

    def _open_statement(
        self, plan: TablePlan, keys: Mapping[str, Callable[[FromClause], ColumnElement[bool]]]
    ) -> Executable:
        selects = []
        for name, key in keys.items():
            if name == "deleted":
                old = plan.version.alias("old")
                was_open = (
                    plan.end_of(old) == TX
                    if plan.strategy.has_end
                    else plan.strategy.is_open(plan, old)
                )
                selects.append(
                    self.copy_of_version(plan, old, TX).where(
                        key(old), was_open, *self.is_gone(plan, old)
                    )
                )
            else:
                operation = Operation.INSERT if name == "inserted" else Operation.UPDATE
                copy = self.copy_of_live(plan, operation, TX).where(key(plan.parent))
                if name == "unsure":
                    copy = copy.where(self.nothing_open(plan))
                selects.append(copy)
        return insert(plan.version).from_select(
            version_columns(plan), selects[0] if len(selects) == 1 else union_all(*selects)
        )

    def copy_of_live(self, plan: TablePlan, operation: int, tx: ColumnElement[Any]) -> Select[Any]:
        """The live rows as versions."""
        copy = select(*(live for live, _ in plan.columns), tx, number(operation))
        return copy.distinct() if plan.association and not plan.parent.primary_key.columns else copy

    def copy_of_version(
        self, plan: TablePlan, old: FromClause, tx: ColumnElement[Any]
    ) -> Select[Any]:
        """The last versions of rows as the versions that say that they were deleted."""
        columns = (old.c[version.key] for _, version in plan.columns)
        copy = select(*columns, tx, number(Operation.DELETE))
        # SQLAlchemy-Continuum leaves several open versions of one association row
        return copy.distinct() if plan.association else copy

    def is_gone(self, plan: TablePlan, v: FromClause) -> tuple[ColumnElement[bool], ...]:
        """``v``, an open version, is one of a row that was live and is not any more.

        A DELETE that found no row was told to us, too; somebody else may have put a new row there.
        """
        root = plan.hierarchy[0]
        live = root.parent.alias("live")
        same = same_object(root, live, plan, v)
        if self._locks_gaps:
            # looked up row by row, where EXISTS might read, and lock, the whole table
            count: Select[Any] = select(func.count()).where(same).correlate(v)
            missing = count.scalar_subquery() == literal_column("0")
        else:
            missing = ~exists().where(same).correlate(v)
        return plan.op_of(v) != number(Operation.DELETE), missing

    def nothing_open(self, plan: TablePlan) -> ColumnElement[bool]:
        """The live row has no open version: of rows that may have changed, those that did.

        The closing has decided it already.
        """
        if not plan.strategy.has_end:
            return self.changed(plan)
        v = plan.version.alias("still_open")
        return ~exists().where(plan.same_key(v, plan.parent), plan.strategy.is_open(plan, v))

    def _write_lost(
        self, unit: ConnectionUnit, plan: TablePlan, changes: Changes
    ) -> Collection[Key]:
        """DELETE versions of rows without history, from what the session knew of them.

        Not of those that have an open version: they are returned. The session's DELETE found no
        row, since somebody else had deleted it; and somebody may have put a new row there.
        """
        if changes.last_values is None:
            return ()
        last = self._last_versions(unit, plan, changes.deleted)
        lost = [key for key in changes.deleted if last.get(key, (0, 0))[0] != unit.tx]
        gone = {key for key in lost if key in last and last[key][1] in (None, unit.tx)}
        if gone and plan.strategy.has_end:
            self._reopen(unit, plan, list(gone))
        names = [version.key for _, version in plan.keys]
        own = {plan.tx.key: unit.tx, plan.op.key: Operation.DELETE}
        for key in lost:
            if key not in gone:
                keys = dict(zip(names, key_values(key, len(names)), strict=True))
                values = {**changes.last_values(key), **keys, **own}
                unit.connection.execute(insert(plan.version).values(values))
        return gone

    def _last_versions(
        self, unit: ConnectionUnit, plan: TablePlan, keys: Sequence[Key]
    ) -> dict[Key, tuple[int, int | None]]:
        """The start and the end of the last version of each of ``keys``; ours is it."""
        v = plan.version
        end = plan.end_of(v) if plan.strategy.has_end else null()
        columns = plan.tx_of(v), end, *plan.keys_of(v)
        which = self.key_clause(plan, v)
        # ours may be about to move behind the others
        order = case((plan.tx_of(v) == TX, 1), else_=0), plan.tx_of(v)
        statement = self.current(select(*columns).where(which).order_by(*order))
        found: dict[Key, tuple[int, int | None]] = {}
        for parameters in self.portions(plan, keys):
            rows: Any = unit.connection.execute(statement, parameters | {"history__tx": unit.tx})
            for tx, ended, *key in rows:
                found[as_key(key)] = tx, ended
        return found

    # -- 4. amend

    def _recorded_operations(
        self, unit: ConnectionUnit, plan: TablePlan, changes: Changes
    ) -> dict[Key, int]:
        """What this transaction has already recorded for the rows of ``changes``."""
        keys = [*changes.inserted, *changes.updated, *changes.unsure, *changes.deleted]
        known = unit.operations(plan, keys)
        doubtful = [key for key, operation in known.items() if operation == MAYBE]
        if doubtful:
            v = plan.version
            statement = self.built(
                ("recorded", plan),
                lambda: select(plan.op_of(v), *plan.keys_of(v)).where(
                    plan.tx_of(v) == TX, self.key_clause(plan, v)
                ),
            )
            found: dict[Key, int] = {}
            for parameters in self.portions(plan, doubtful):
                rows = unit.connection.execute(statement, parameters | {"history__tx": unit.tx})
                found.update((as_key(key), operation) for operation, *key in rows)
            for key in doubtful:
                if key in found:
                    known[key] = found[key]
                else:
                    del known[key]
        return known

    def _amend(self, unit: ConnectionUnit, plan: TablePlan, amendment: Amendment) -> None:
        v = plan.version
        if amendment.refresh:
            self._by_keys(
                unit,
                plan,
                amendment.refresh,
                ("refresh",),
                lambda key: self.refresh_statement(plan, key),
            )
        if amendment.mark_deleted:
            self._by_keys(
                unit,
                plan,
                amendment.mark_deleted,
                ("mark_deleted",),
                lambda key: (
                    update(v)
                    .where(key(v), plan.tx_of(v) == TX)
                    .values({plan.op: number(Operation.DELETE)})
                ),
            )
        if amendment.void:
            self._take_back(unit, plan, amendment.void)
        unit.record(plan, Operation.UPDATE, amendment.settle)
        unit.record(plan, Operation.DELETE, amendment.mark_deleted)

    def refresh_statement(
        self, plan: TablePlan, key: Callable[[FromClause], ColumnElement[bool]]
    ) -> Executable:
        """This transaction's versions of the rows that ``key`` names take the live values.

        A DELETE becomes an UPDATE: its row came back.
        """
        v, live = plan.version, plan.parent
        same_row = plan.same_key(live, v)
        operation = case(
            (plan.op_of(v) == number(Operation.DELETE), number(Operation.UPDATE)),
            else_=plan.op_of(v),
        )
        keys = {version for _, version in plan.keys}
        values: dict[Any, Any] = {
            version: column for column, version in plan.columns if version not in keys
        }
        statement = update(v).where(plan.tx_of(v) == TX)
        if not values:
            return statement.where(key(v)).values({plan.op: operation})
        if self.dialect.name == "oracle":
            values = {
                version: select(column).where(same_row).scalar_subquery()
                for version, column in values.items()
            }
        statement = statement.where(*self.joined(key(v), same_row))
        return statement.values({**values, plan.op: operation})

    def joined(self, *conditions: ColumnElement[bool]) -> Sequence[ColumnElement[bool]]:
        """Conditions of an UPDATE that look at another table, which Oracle's cannot join."""
        return [exists().where(*conditions)] if self.dialect.name == "oracle" else conditions

    def settle(self, unit: ConnectionUnit, amend: Mapping[TablePlan, Amendment]) -> bool:
        """Take back the versions of rows that are again as they were before the transaction.

        Returns whether there was one; see ``forget_empty_transaction()`` then.
        """
        any_equal = False
        for plan, amendment in amend.items():
            if plan is not plan.hierarchy[0]:
                continue
            equal: list[Key] = []
            statement = self.built(("settle", plan), partial(self._settle_statement, plan))
            for parameters in self.portions(plan, amendment.settle):
                rows = unit.connection.execute(statement, parameters | {"history__tx": unit.tx})
                equal.extend(as_key(row) for row in rows)
            if equal:
                any_equal = True
                for part in plan.hierarchy:
                    self._take_back(unit, part, equal)
        return any_equal

    def _settle_statement(self, plan: TablePlan) -> Executable:
        own = plan.version.alias("own")
        which = self.key_clause(plan, own)
        return select(*plan.keys_of(own)).where(which, self.is_settled(plan, own))

    def is_settled(self, plan: TablePlan, own: FromClause) -> ColumnElement[bool]:
        """``own``, a version of this transaction in a root table, says nothing new.

        Nor do those that this transaction wrote for it in the other tables of the hierarchy.
        """
        conditions = [
            plan.op_of(own) == number(Operation.UPDATE),
            self._equals_previous(plan, own),
        ]
        for other in plan.hierarchy[1:]:
            part = other.version.alias()
            news = ~self._equals_previous(other, part)
            same = same_object(other, part, plan, own)
            conditions.append(~exists().where(same, other.tx_of(part) == TX, news))
        return and_(*conditions)

    def _equals_previous(self, plan: TablePlan, own: FromClause) -> ColumnElement[bool]:
        """``own`` is this transaction's version and says what the one before it said."""
        before = plan.version.alias()
        if plan.strategy.has_end:
            is_previous = plan.end_of(before) == TX
        else:
            other = plan.version.alias()
            latest = select(func.max(plan.tx_of(other))).where(
                plan.same_key(other, own), plan.tx_of(other) < TX
            )
            is_previous = (
                plan.tx_of(before) == self.current(latest).correlate(own).scalar_subquery()
            )
        same: Select[Any] = select(literal_column("1")).where(
            plan.same_key(before, own),
            is_previous,
            plan.op_of(before) != number(Operation.DELETE),
            self.same_values(plan, own, before),
        )
        return and_(plan.tx_of(own) == TX, self.current(same).correlate(own).exists())

    def _take_back(self, unit: ConnectionUnit, plan: TablePlan, keys: Sequence[Key]) -> None:
        """Remove this transaction's versions of ``keys`` and open the ones before them again."""
        v = plan.version
        self._by_keys(
            unit,
            plan,
            keys,
            ("take back",),
            lambda key: delete(v).where(key(v), plan.tx_of(v) == TX),
        )
        if plan.strategy.has_end:
            self._reopen(unit, plan, keys)
        unit.record(plan, None, keys)

    def _reopen(self, unit: ConnectionUnit, plan: TablePlan, keys: Sequence[Key]) -> None:
        """Open the versions of ``keys`` again that this transaction has ended."""
        v = plan.version
        self._by_keys(
            unit,
            plan,
            keys,
            ("reopen",),
            lambda key: update(v).where(key(v), plan.end_of(v) == TX).values({plan.end: null()}),
        )

    def forget_empty_transaction(self, unit: ConnectionUnit) -> None:
        """Take the transaction row back if none of its versions is left."""
        if unit.keep_transaction:
            return
        plans = [*unit.recorded_plans, *unit.native_plans]
        table = plans[0].transaction
        statement = delete(table).where(
            table.c.id == TX,
            *(~exists().where(plan.tx_of(plan.version) == TX) for plan in plans),
        )
        if unit.connection.execute(statement, {"history__tx": unit.tx}).rowcount:
            unit.set_tx(None)

    # -- order: a version that we end was written by a transaction before ours

    def lock(
        self, unit: ConnectionUnit, plan: TablePlan, keys: Sequence[Key], *, keeps_keys: bool = True
    ) -> None:
        """Wait for whoever is changing the live rows with ``keys``, and keep others from it.

        :param keeps_keys: who inserts a reference to them need not wait, as with an UPDATE.
        """
        live = plan.parent

        def build() -> Select[Any]:
            rows: Select[Any] = select(literal_column("1"))
            rows = rows.where(self.key_clause(plan, live))
            # what SQLAlchemy calls key_share is NO KEY UPDATE, which only PostgreSQL has
            locked = rows.with_for_update(key_share=keeps_keys).subquery()
            return select(func.count()).select_from(locked)

        for parameters in self.portions(plan, keys) if self.locks else ():
            unit.connection.execute(self.built(("lock", plan, keeps_keys), build), parameters)

    def current(self, statement: Select[Any]) -> Select[Any]:
        """``statement`` as a read of what is committed now, not when the transaction began."""
        return statement.with_for_update(read=True) if self._locks_gaps else statement

    def _stay_behind(self, unit: ConnectionUnit, plan: TablePlan, keys: Sequence[Key]) -> None:
        """Move behind whoever wrote the versions of ``keys`` that ours follow."""
        v = plan.version

        def build() -> Select[Any]:
            newest = select(func.max(plan.tx_of(v))).where(self.key_clause(plan, v))
            if plan.strategy.has_end:
                return newest.where(plan.end_of(v) == TX)
            return self.current(newest)

        newest = 0
        for parameters in self.portions(plan, keys):
            statement = self.built(("newest", plan), build)
            found = unit.connection.scalar(statement, parameters | {"history__tx": unit.tx})
            newest = max(newest, found or 0)
        assert unit.tx is not None
        if newest > unit.tx:
            self.move_behind(unit, newest, {plan})

    def stay_behind_past(self, unit: ConnectionUnit, plans: Iterable[TablePlan]) -> None:
        """The states before the first change are older than all that this transaction does."""
        past = None if unit.past is None else unit.past.tx
        if unit.tx is not None and past is not None and past > unit.tx:
            self.move_behind(unit, past, plans)

    def move_behind(self, unit: ConnectionUnit, newest: int, plans: Iterable[TablePlan]) -> None:
        """Give this transaction an id above ``newest``, which was committed after ours began.

        All rows that carry the old id are this transaction's own, and uncommitted.
        """
        old = unit.tx
        assert old is not None
        connection = unit.connection
        plans = dict.fromkeys([*unit.recorded_plans, *unit.native_plans, *plans])
        table = next(iter(plans)).transaction
        columns = [c for c in table.c if c is not table.c.id]
        row = connection.execute(select(*columns).where(table.c.id == old)).mappings().one()
        values = {c.key: row[c] for c in columns} | self._id_above(connection, table, newest)
        new = 0
        while new <= newest:
            if new:
                connection.execute(delete(table).where(table.c.id == new))
            result = connection.execute(insert(table), values)
            assert result.inserted_primary_key is not None
            new = result.inserted_primary_key[0]
        for plan in plans:
            v = plan.version
            rows = connection.execute(select(*plan.keys_of(v)).where(plan.tx_of(v) == old))
            keys = [as_key(row) for row in rows]
            if not keys:
                continue
            connection.execute(update(v).where(plan.tx_of(v) == old).values({plan.tx: new}))
            if plan.strategy.has_end:
                # not by a subquery: MariaDB would go through the whole table, and lock it
                ends = update(v).where(self.key_clause(plan, v), plan.end_of(v) == old)
                for parameters in self.portions(plan, keys):
                    connection.execute(ends.values({plan.end: new}), parameters)
        unit.work.manager.transaction_moved(unit, old, new)
        connection.execute(delete(table).where(table.c.id == old))
        unit.set_tx(new)
        unit.work.transaction_moved(old, new)

    def _id_above(self, connection: Connection, table: Table, newest: int) -> dict[str, Any]:
        """An id above ``newest`` for a row of ``table``; empty where ids come with the rows.

        A sequence with CACHE gives each connection ids of its own, and there may be thousands until
        one is high enough: they are drawn by one statement, of which MariaDB has each draw 1,000.
        """
        sequence = table.c.id.default
        if not isinstance(sequence, DatabaseSequence) or not self._draws_many:
            return {}
        drawn = select(sequence.next_value().label("id")).cte("drawn", recursive=True)
        drawn = drawn.union_all(select(sequence.next_value()).where(drawn.c.id <= newest))
        highest, new = select(func.max(drawn.c.id)), 0
        while new <= newest:
            new = connection.execute(highest).scalar_one()
        return {table.c.id.key: new}

    # -- what all steps are made of

    def changed(self, plan: TablePlan) -> ColumnElement[bool]:
        """The live row differs from its open version, or has none.

        The root table of a joined hierarchy speaks for all its tables: an object of which any part
        changed gets a version in each. The other tables follow what was written for the root.
        """
        if plan is not plan.hierarchy[0]:
            root = plan.hierarchy[0]
            return exists().where(
                same_object(root, root.version, plan, plan.parent),
                root.tx_of(root.version) == TX,
            )
        differs = [self._differs(plan, plan.parent)]
        for part in plan.hierarchy[1:]:
            live = part.parent
            differs.append(
                exists().where(
                    same_object(part, live, plan, plan.parent), self._differs(part, live)
                )
            )
        return or_(*differs)

    def _differs(self, plan: TablePlan, live: FromClause) -> ColumnElement[bool]:
        """``live`` has no open version that says the same."""
        v = plan.version.alias()
        return ~exists().where(
            plan.same_key(v, live),
            plan.strategy.is_open(plan, v),
            plan.op_of(v) != number(Operation.DELETE),
            self.same_values(plan, live, v),
        )

    def _changed_since(self, plan: TablePlan, v: FromClause) -> ColumnElement[bool]:
        """The live row differs from ``v``, its open version."""
        live = plan.parent
        if plan.hierarchy[1:]:
            return exists().where(plan.same_key(live, v), self.changed(plan))
        return exists().where(
            plan.same_key(live, v),
            or_(plan.op_of(v) == number(Operation.DELETE), not_(self.same_values(plan, live, v))),
        )

    def same_values(
        self, plan: TablePlan, one: FromClause, other: FromClause
    ) -> ColumnElement[bool]:
        """``one`` and ``other``, live rows or versions, hold the same, keys apart."""
        keys = {column for column, _ in plan.keys}
        return and_(
            true(),
            *(
                identical(one.c[column.key], other.c[column.key], self.dialect)
                for column, _ in plan.columns
                if column not in keys
            ),
        )

    def format(self, plan: TablePlan) -> KeyFormat:
        """How keys of ``plan`` go into a statement."""
        format_ = self._formats.get(plan)
        if format_ is None:
            format_ = KeyFormat(self.dialect, [version for _, version in plan.keys])
            self._formats[plan] = format_
        return format_

    def key_clause(
        self, plan: TablePlan, from_: FromClause, name: str = "keys", one: bool = False
    ) -> ColumnElement[bool]:
        """The row of ``from_`` is one of the keys in the parameters ``name``."""
        format_ = self.format(plan)
        return (format_.one if one else format_.many)(plan.keys_of(from_), name)

    def key_parameters(
        self, plan: TablePlan, keys: Sequence[Key], name: str = "keys", one: bool = False
    ) -> dict[str, Any]:
        """The parameters of ``key_clause()``."""
        format_ = self.format(plan)
        if one:
            return format_.one_parameters(keys[0], name)
        return format_.many_parameters(keys, name)

    def portions(self, plan: TablePlan, keys: Sequence[Key]) -> Iterator[dict[str, Any]]:
        """Parameters of ``key_clause(plan, ...)``, of as many of ``keys`` at once as a statement takes."""
        return (self.key_parameters(plan, some) for some in self.format(plan).portions(keys))

    def _by_keys(
        self,
        unit: ConnectionUnit,
        plan: TablePlan,
        keys: Sequence[Key],
        name: tuple[Hashable, ...],
        build: Callable[[Callable[[FromClause], ColumnElement[bool]]], Executable],
    ) -> int:
        """Run the statement ``name`` of ``plan`` for ``keys``; the number of rows it matched."""
        one, rows = len(keys) == 1, 0
        for portion in (keys,) if one else self.format(plan).portions(keys):
            parameters = self.key_parameters(plan, portion, "keys", one)
            parameters["history__tx"] = unit.tx
            rows += self._run(
                unit,
                (name, plan, one),
                lambda: build(lambda from_: self.key_clause(plan, from_, "keys", one)),
                parameters,
            ).rowcount
        return rows

    def _run(
        self,
        unit: ConnectionUnit,
        name: Hashable,
        build: Callable[[], Any],
        parameters: Mapping[str, Any],
    ) -> Outcome:
        """Run the statement ``name``, of which only numbers are read back."""
        prepared = self._prepared.get(name)
        if prepared is None:
            prepared = self._prepared[name] = Prepared(build(), self.dialect)
        return prepared.execute(unit.connection, parameters, quietly=unit.is_quiet)

    def built(self, name: Hashable, build: Callable[[], Any]) -> Any:
        """The statement ``name``; ``build`` makes it when it is first asked for."""
        statement = self._statements.get(name)
        if statement is None:
            statement = self._statements[name] = build()
        return statement


def version_columns(plan: TablePlan) -> list[str]:
    """The columns of the version table in the order in which versions are selected."""
    return [*(version.key for _, version in plan.columns), plan.tx.key, plan.op.key]


def number(operation: int) -> ColumnElement[int]:
    """An operation in SQL."""
    return literal_column(str(operation), SmallInteger)


def transaction_values(table: Table, row: TransactionRow) -> dict[str, Any]:
    """``row`` completed with the Python-side defaults of ``table``."""
    values = dict(row)
    for column in table.c:
        default: Any = column.default
        if default is not None and column.key not in values:
            if default.is_callable:
                values[column.key] = default.arg(None)
            elif default.is_scalar:
                values[column.key] = default.arg
    return values


def default_expressions(table: Table, names: Collection[str]) -> dict[str, ColumnElement[Any]]:
    """The defaults of ``table`` that are SQL, but for the columns ``names``, which have values."""
    defaults: dict[str, Any] = {column.key: column.default for column in table.c}
    return {
        name: default.arg
        for name, default in defaults.items()
        if default is not None and default.is_clause_element and name not in names
    }


def transaction_parameters(values: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of ``insert_transaction()``."""
    return {f"history__value_{name}": value for name, value in values.items()}


def insert_transaction(
    table: Table,
    columns: Iterable[str],
    dialect: Dialect,
    condition: ColumnElement[bool] | None,
) -> Any:
    """An INSERT of one transaction row that returns its id, if ``condition`` holds."""
    values: dict[str, ColumnElement[Any]] = {
        name: bindparam(f"history__value_{name}", type_=table.c[name].type) for name in columns
    }
    values |= default_expressions(table, values)
    sequence: Any = table.c.id.default
    if sequence is not None and sequence.is_sequence and dialect.supports_sequences:
        values["id"] = sequence.next_value()
    if condition is None:
        # of an INSERT ... SELECT that returns something SQLite keeps a journal
        statement = insert(table).values(values)
    else:
        row = select(*values.values()).where(condition)
        statement = insert(table).from_select(list(values), row, include_defaults=False)
    return statement.returning(table.c.id)
