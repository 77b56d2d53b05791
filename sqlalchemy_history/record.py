"""Versions of rows that only the database can name: what bulk statements and cascades are written with.

A :class:`Target` says which rows a statement is about to change, and to what. Its rows are recorded
before the statement, so the version table itself is the list of them: no key passes through Python.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from sqlalchemy import (
    ColumnElement,
    Dialect,
    FromClause,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    literal_column,
    not_,
    null,
    or_,
    select,
    tuple_,
    union_all,
    update,
)

from .operation import Operation
from .plan import Key, TablePlan
from .statement import plain
from .unit_of_work import ConnectionUnit
from .write import (
    TX,
    TransactionRow,
    Writer,
    insert_transaction,
    number,
    transaction_parameters,
    transaction_values,
    version_columns,
)

#: the operation of a version that is going to be taken back; it never outlives its statement
_VOID: Final = 3

#: inside of which a statement can fail and leave nothing behind; PostgreSQL gives up the transaction
_SAVEPOINT: Final = "sqlalchemy_history"

#: ``remote_addr`` of the transaction row of the states before the first change
BASELINE: Final = "baseline"

NewRow = Callable[[], TransactionRow]
R = TypeVar("R", bound="Rows")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of a table that a statement is about to change.

    :ivar live: the table, or an alias of it.
    :ivar where: which rows; all conditions hold.
    :ivar values: the new value of each column that changes, by its key.
    :ivar parameters: values of the parameters that the conditions and the values leave open.
    :ivar keeps_keys: nothing changes in them that another table may refer to, so on PostgreSQL who
        inserts such a reference needs not wait, as with an UPDATE.
    """

    live: FromClause
    where: tuple[ColumnElement[bool], ...]
    values: Mapping[str, ColumnElement[Any]] = dataclasses.field(default_factory=dict)
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keeps_keys: bool = False

    def only(self: R, *conditions: ColumnElement[bool]) -> R:
        """Those of the rows of which ``conditions`` hold too."""
        return dataclasses.replace(self, where=(*self.where, *conditions))

    def value(self, key: str) -> ColumnElement[Any]:
        """What a column is going to hold."""
        return self.values.get(key, self.live.c[key])

    def select(self, *columns: Any) -> Select[Any]:
        """``columns`` of the rows."""
        rows: Any = select(*columns)
        return plain(rows.select_from(self.live).where(*self.where))

    def any(self) -> Select[Any]:
        """A one for each row."""
        return self.select(literal_column("1"))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Target(Rows):
    """Rows of a versioned table."""

    plan: TablePlan

    def keys(self) -> Select[Any]:
        """Keys that the rows are going to have."""
        return self.select(*(self.value(column.key) for column, _ in self.plan.keys))

    def old_keys(self) -> Select[Any]:
        """Keys that the rows have."""
        return self.select(*self.plan.keys_of(self.live))

    def rows(self, tx: ColumnElement[Any], operation: ColumnElement[int]) -> Select[Any]:
        """The rows as versions, their columns named as those of the version table."""
        plan = self.plan
        columns = [self.value(column.key).label(version.key) for column, version in plan.columns]
        rows = self.select(*columns, tx.label(plan.tx.key), operation.label(plan.op.key))
        return rows.distinct() if plan.association and not plan.parent.primary_key.columns else rows


def _without_history(target: Target) -> Target:
    """Those of the rows of which no version says anything."""
    known = target.plan.version.alias()
    return target.only(~exists().where(target.plan.same_key(known, target.live)))


class Begun(NamedTuple):
    """What is known when the transaction row was made.

    :ivar answer: to the question that was asked with it.
    :ivar is_newest: no version of the rows is, or will be, of a transaction with a larger id.
    """

    answer: bool
    is_newest: bool

    @classmethod
    def said(cls, row: Any) -> Begun:
        return cls(*(bool(row._mapping.get(name)) for name in cls._fields))


class Recorder:
    """Writes versions of the rows of targets, on one dialect."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.dialect: Dialect = writer.dialect
        #: nobody else writes between two of our statements
        self.serial: bool = writer.dialect.name == "sqlite"
        self._postgresql = writer.dialect.name == "postgresql"
        self.locks: bool = writer.locks
        #: no row joins those that are locked, and who draws an id later draws a larger one
        self._in_order: ColumnElement[bool] | None = None
        if writer.dialect.name in ("mysql", "mariadb"):
            level = (
                "tx_isolation"
                if getattr(writer.dialect, "is_mariadb", False)
                else "transaction_isolation"
            )
            self._in_order = literal_column(
                f"@@{level} IN ('REPEATABLE-READ', 'SERIALIZABLE') AND NOT @@autocommit "
                f"AND @@auto_increment_increment = 1"
            )

    # -- a statement that fails

    def _guard(self, unit: ConnectionUnit, plan: TablePlan) -> None:
        """What is recorded of ``plan`` from here on can be undone, should the statement fail.

        A table in which this transaction had no versions needs nothing: all are the statement's.
        """
        under_way = unit.under_way
        if under_way is None:
            return
        if plan not in under_way.known:
            under_way.fresh.add(plan)
        elif not under_way.guarded and not self._gives_up(unit):
            self.dialect.do_savepoint(unit.connection, _SAVEPOINT)
            under_way.guarded = True
            under_way.ids = unit.tx, None if unit.past is None else unit.past.tx

    def _gives_up(self, unit: ConnectionUnit) -> bool:
        """A failure ends the transaction anyway, or there is none to have a savepoint in."""
        return self._postgresql or unit.connection._is_autocommit_isolation()

    def succeeded(self, unit: ConnectionUnit) -> None:
        """The statement was executed."""
        self.dialect.do_release_savepoint(unit.connection, _SAVEPOINT)

    def failed(self, unit: ConnectionUnit, under_way: Any) -> None:
        """The statement was not executed: what was recorded for it goes away."""
        if self._postgresql and not unit.connection._is_autocommit_isolation():
            return
        if under_way.guarded:
            self.dialect.do_rollback_to_savepoint(unit.connection, _SAVEPOINT)
            self.dialect.do_release_savepoint(unit.connection, _SAVEPOINT)
            (before, past), moved = under_way.ids, unit.tx
            if unit.past is not None:
                unit.past.set_tx(past)
            if moved is not None and moved != before:
                unit.set_tx(before)
                unit.work.transaction_moved(moved, before)
        for plan in under_way.fresh if unit.tx is not None else ():
            own = update(plan.version).where(plan.tx_of(plan.version) == TX)
            unit.connection.execute(own.values(self._void(plan)), {"history__tx": unit.tx})
            self.take_back(unit, plan)

    # -- before the statement

    def record(
        self,
        unit: ConnectionUnit,
        target: Target,
        operation: ColumnElement[int],
        new_row: NewRow,
        *,
        is_locked: bool = False,
        is_ours: bool = False,
        is_newest: bool = False,
    ) -> int:
        """Write versions of the rows of ``target``, and make the transaction row if there is none.

        Rows that this transaction has versioned before are left out. Returns how many were written.

        :param is_locked: the transaction got its id after the rows were locked; at READ COMMITTED
            others may have joined them since.
        :param is_ours: the rows were changed by this transaction: nobody else can be in between.
        :param is_newest: no version that this one ends can be of a later transaction.
        """
        plan = target.plan
        if not is_ours:
            self.keep_old(unit, target)
        self._guard(unit, plan)
        if unit.tx is not None and plan in unit.recorded_plans:
            target = target.only(~self.is_own(plan, target))
        if self.takes_one_statement(plan):
            return self._record_at_once(unit, target, operation, new_row, is_ours)
        return self._record_in_steps(
            unit, target, operation, new_row, is_locked, is_ours, is_newest
        )

    def takes_one_statement(self, plan: TablePlan) -> bool:
        """Transaction row and versions are written at once; else nothing comes before ``begin()``."""
        return self._postgresql and plan.strategy.has_end and not plan.association

    # -- the option baseline

    def keep_old_of(self, unit: ConnectionUnit, plan: TablePlan, keys: Sequence[Key]) -> None:
        """``keep_old()`` of the rows with ``keys``."""
        live, writer = plan.parent, self.writer
        for parameters in writer.portions(plan, keys):
            which = writer.key_clause(plan, live)
            target = Target(plan=plan, live=live, where=(which,), parameters=parameters)
            self.keep_old(unit, target)

    def keep_old(self, unit: ConnectionUnit, target: Target) -> None:
        """Rows of ``target`` that have no version at all get one that says what they hold.

        These belong to a transaction row of their own, one for each database transaction. The one
        of the changes moves behind it: in a flush when that is over, since it may have loaded the
        Transaction object.
        """
        plan, writer, connection = target.plan, self.writer, unit.connection
        under_way = unit.under_way
        if not plan.options.baseline:
            return
        if under_way is not None and under_way.in_flush and under_way.plan is plan:
            return  # rows that the flush has inserted have no version yet
        parameters = {**target.parameters, "history__tx": unit.tx}
        rows = dataclasses.replace(target, values={}, parameters=parameters)
        missing = _without_history(rows)
        one: Any = select(literal_column("1"))
        if connection.scalar(one.where(exists(missing.any())), parameters):
            self.lock(unit, rows)
            if unit.past is None:
                unit.past = ConnectionUnit(connection, unit.work)
            past, manager = unit.past, unit.work.manager
            if past.tx is None:
                row = manager.transaction_row(unit.work.session)
                if "remote_addr" in plan.transaction.c:
                    row["remote_addr"] = BASELINE
                writer.create_transaction(past, plan.transaction, row)
            kept = dict.fromkeys(part for part in plan.hierarchy if part is not plan)
            if self._insert_old(past, missing):
                first = select(*plan.keys_of(plan.version)).where(plan.tx == past.tx)
                for part in kept:
                    of_these = self.one_of(part.keys_of(part.parent), first)
                    others = Target(plan=part, live=part.parent, where=(of_these,))
                    self._insert_old(past, _without_history(others))
                manager.tell_plugins(past, {plan: None, **kept}, False, None, reconstructed=True)
            else:
                # somebody else was first, and committed while we waited
                writer.forget_empty_transaction(past)
        if not unit.work.is_flushing:
            writer.stay_behind_past(unit, [plan])

    def _insert_old(self, past: ConnectionUnit, target: Target) -> int:
        plan, tx = target.plan, bindparam("history__past", past.tx, type_=TX.type)
        statement = insert(plan.version).from_select(
            version_columns(plan), target.rows(tx, number(Operation.INSERT)), include_defaults=False
        )
        past.record_unknown(plan)
        keep = {"preserve_rowcount": True}
        return past.connection.execute(
            statement, dict(target.parameters), execution_options=keep
        ).rowcount

    def is_own(self, plan: TablePlan, target: Target, *, old: bool = False) -> ColumnElement[bool]:
        """This transaction has a version of the row, under its new key or under its old one."""
        own = plan.version.alias("own")
        keys = plan.keys_of(target.live)
        if not old:
            keys = [target.value(column.key) for column, _ in plan.keys]
        return self.one_of(keys, select(*plan.keys_of(own)).where(plan.tx_of(own) == TX))

    def _record_in_steps(
        self,
        unit: ConnectionUnit,
        target: Target,
        operation: ColumnElement[int],
        new_row: NewRow,
        is_locked: bool,
        is_ours: bool = False,
        is_newest: bool = False,
    ) -> int:
        plan, v = target.plan, target.plan.version
        if unit.tx is None:
            begun = self.begin(unit, target, new_row())
            if begun is None:
                return 0
            is_locked = self.locks
            is_newest = is_ours or begun.is_newest
        parameters = {**target.parameters, "history__tx": unit.tx}
        has_end = plan.strategy.has_end
        if self.serial and has_end:
            # the unique index allows no second open version: close before, nobody is in between
            is_open = plan.strategy.is_open(plan, v)
            closing = update(v).where(is_open, self.one_of(plan.keys_of(v), target.keys()))
            unit.connection.execute(closing.values({plan.end: TX}), parameters)
        rows, names = target.rows(TX, operation), version_columns(plan)
        # PostgreSQL has the unique index too, and others in between: open when all is closed
        opens_last = has_end and self._postgresql
        if opens_last:
            rows = rows.add_columns(TX)
            names.append(plan.end.key)  # type: ignore[union-attr]
        opening = insert(v).from_select(names, self._locked(rows, target), include_defaults=False)
        # psycopg counts inserted rows only as long as the cursor is open
        keep = {"preserve_rowcount": True}
        written = unit.connection.execute(opening, parameters, execution_options=keep).rowcount
        if written:
            unit.record_unknown(plan)
        if not self.serial and written:
            if has_end:
                self._close_behind_own(unit, plan)
            if opens_last:
                unit.connection.execute(
                    update(v)
                    .where(plan.tx_of(v) == TX, plan.end_of(v) == TX)
                    .values({plan.end: null()}),
                    {"history__tx": unit.tx},
                )
            if not is_newest:
                self._stay_behind(unit, plan, is_locked)
        return written

    def begin(
        self,
        unit: ConnectionUnit,
        target: Target,
        row: TransactionRow,
        question: ColumnElement[bool] | None = None,
    ) -> Begun | None:
        """Insert the transaction row if there is a row to record; None if there is none.

        All rows are locked before the id is drawn: who changed them before us has a smaller one.
        """
        questions = zip(Begun._fields, (question, self._in_order), strict=True)
        asked = [what.label(name) for name, what in questions if what is not None]
        table = target.plan.transaction
        something: ColumnElement[bool] = exists(target.any())
        if self.locks:
            found = self._locked(target.any(), target).subquery()
            count = select(func.count()).select_from(found).scalar_subquery()
            something = count > literal_column("0")
        if not self.writer.selects_and_returns:
            one: Any = select(literal_column("1")).where(something)
            one = one.add_columns(*asked)
            parameters = {"history__tx": None, **target.parameters}
            first = unit.connection.execute(one, parameters).first()
            if first is not None:
                self.writer.create_transaction(unit, table, row)
            return None if first is None else Begun.said(first)
        values = transaction_values(table, row)
        statement = insert_transaction(table, values, self.dialect, something)
        parameters = {"history__tx": None, **target.parameters, **transaction_parameters(values)}
        made = unit.connection.execute(statement.returning(*asked), parameters).first()
        if made is None:
            return None
        unit.set_tx(made[0])
        return Begun.said(made)

    def _locked(self, rows: Select[Any], target: Rows) -> Select[Any]:
        if not self.locks or rows._distinct:
            return rows
        if not self._postgresql:
            return rows.with_for_update()
        return rows.with_for_update(of=target.live, key_share=target.keeps_keys)

    def lock(self, unit: ConnectionUnit, rows: Rows) -> None:
        """Wait for whoever is changing the rows, or is about to refer to them."""
        if self.locks:
            locked = self._locked(rows.any(), rows).subquery()
            counted = select(func.count()).select_from(locked)
            unit.connection.execute(counted, dict(rows.parameters))

    def _close_behind_own(self, unit: ConnectionUnit, plan: TablePlan) -> None:
        v, own = plan.version, plan.version.alias("own")
        unit.connection.execute(
            update(v)
            .where(
                *self.writer.joined(plan.same_key(own, v), plan.tx_of(own) == TX),
                plan.strategy.is_open(plan, v),
                plan.tx_of(v) != TX,
            )
            .values({plan.end: TX}),
            {"history__tx": unit.tx},
        )

    def _stay_behind(self, unit: ConnectionUnit, plan: TablePlan, is_locked: bool) -> None:
        """Move behind what was committed after our transaction got its id.

        What our transaction has ended is its own, which a plain read shows as it is.

        :param is_locked: the rows were locked before: what a plain read does not show, since it
            was committed after our transaction began, can then be no version of them.
        """
        own, other = plan.version.alias("own"), plan.version.alias("other")
        newer = select(func.max(plan.tx_of(other))).where(
            plan.tx_of(own) == TX, plan.same_key(own, other), plan.tx_of(other) > TX
        )
        if plan.strategy.has_end:
            newer = newer.where(plan.end_of(other) == TX)
        elif not is_locked:
            newer = self.writer.current(newer)
        newest = unit.connection.scalar(newer, {"history__tx": unit.tx})
        if newest is not None:
            self.writer.move_behind(unit, newest, [plan])

    def _record_at_once(
        self,
        unit: ConnectionUnit,
        target: Target,
        operation: ColumnElement[int],
        new_row: NewRow,
        is_ours: bool,
    ) -> int:
        """Lock, begin, close and open in one statement; PostgreSQL.

        Such a statement sees the database as it was when it began. A version that another
        transaction opened while we waited for its lock on the live row is not among that, and the
        one before is found to be closed already. So only rows of which a version was closed are
        recorded here; those that are left, now locked, are recorded in steps.
        """
        plan, v = target.plan, target.plan.version
        touched = self._locked(target.rows(null(), operation), target).cte("touched")
        found_rows = select(func.count()).select_from(touched).scalar_subquery()
        parameters = {**target.parameters, "history__tx": unit.tx}
        ctes: list[Any] = []
        old_tx = unit.tx is not None
        tx: ColumnElement[Any] = TX
        if not old_tx:
            values = transaction_values(plan.transaction, new_row())
            parameters |= transaction_parameters(values)
            # counting reads all of it: every row is locked before the id is drawn
            something = found_rows > literal_column("0")
            begun = insert_transaction(plan.transaction, values, self.dialect, something)
            ctes.append(begun.cte("begun"))
            tx = select(ctes[0].c.id).scalar_subquery()
        columns = [touched.c[version.key] for _, version in plan.columns]
        closed = (
            update(v)
            .where(plan.end_of(v).is_(None), plan.same_key(v, touched))
            .values({plan.end: tx})
            .returning(*columns, touched.c[plan.op.key], plan.tx_of(v).label("history__closed"))
            .cte("closed")
        )
        copies = (closed.c[version.key] for _, version in plan.columns)
        rows: Any = select(*copies, tx, closed.c[plan.op.key])
        if is_ours:
            was_open = exists().where(plan.same_key(v, touched), plan.end_of(v).is_(None))
            new = select(*columns, tx, touched.c[plan.op.key]).where(~was_open.correlate(touched))
            rows = union_all(rows, new)
        opened = insert(v).from_select(version_columns(plan), rows, include_defaults=False)
        ctes += [closed, opened.returning(plan.tx_of(v)).cte("opened")]
        written = select(func.count()).select_from(closed).scalar_subquery()
        newest = select(func.max(closed.c.history__closed)).scalar_subquery()
        statement = select(tx, newest, found_rows, written).add_cte(*ctes)
        found = unit.connection.execute(statement, parameters).one()
        new_tx, latest, touched_rows, closed_rows = found
        if not touched_rows:
            return 0
        if not old_tx:
            unit.set_tx(new_tx)
        unit.record_unknown(plan)
        if latest is not None and latest > new_tx:
            self.writer.move_behind(unit, latest, [plan])
        if is_ours:
            return int(touched_rows)
        if closed_rows < touched_rows:
            rest = target.only(~self.is_own(plan, target))
            closed_rows += self._record_in_steps(unit, rest, operation, new_row, False)
        return int(closed_rows)

    def mark_deleted(self, unit: ConnectionUnit, target: Target) -> int:
        """Versions that this transaction has of the rows say that they are deleted.

        Those of rows that this transaction inserted are going to be taken back.
        """
        plan, v = target.plan, target.plan.version
        if plan not in unit.recorded_plans or unit.tx is None:
            return 0
        self._guard(unit, plan)
        inserted = plan.op_of(v) == number(Operation.INSERT)
        values: dict[Any, Any] = {
            plan.op: case((inserted, number(_VOID)), else_=number(Operation.DELETE))
        }
        if plan.end is not None:
            values[plan.end] = case((inserted, TX), else_=plan.end_of(v))
        marking = update(v).where(
            plan.tx_of(v) == TX,
            plan.op_of(v) < number(Operation.DELETE),
            self.one_of(plan.keys_of(v), target.old_keys()),
        )
        parameters = {**target.parameters, "history__tx": unit.tx}
        return unit.connection.execute(marking.values(values), parameters).rowcount

    def is_marked(self, plan: TablePlan, live: FromClause) -> ColumnElement[bool]:
        """The row is recorded as one that is deleted."""
        own = plan.version.alias("own")
        deleted = plan.op_of(own) >= number(Operation.DELETE)
        marked = select(*plan.keys_of(own)).where(plan.tx_of(own) == TX, deleted)
        return self.one_of(plan.keys_of(live), marked)

    def one_of(
        self, columns: Sequence[ColumnElement[Any]], rows: Select[Any]
    ) -> ColumnElement[bool]:
        """``columns`` hold what one of ``rows`` holds."""
        if len(columns) == 1:
            return and_(columns[0].in_(rows))
        if self.dialect.name == "mssql":
            found = rows.subquery()
            return exists().where(*(a == b for a, b in zip(columns, found.c, strict=True)))
        return and_(tuple_(*columns).in_(rows))

    def limit(self, unit: ConnectionUnit, target: Target) -> ColumnElement[bool]:
        """The row of ``target`` was recorded: a condition for the user's statement."""
        plan = target.plan
        if unit.tx is None:
            return false()
        own = plan.version.alias("own")
        tx = bindparam("history__limit", unit.tx, type_=TX.type)
        if self._postgresql:
            # it hashes these once, where for EXISTS it would weigh a look at the index for each row
            recorded = select(*plan.keys_of(own)).where(plan.tx_of(own) == tx)
            return self.one_of(plan.keys_of(target.live), recorded)
        return exists().where(plan.same_key(own, target.live), plan.tx_of(own) == tx)

    def had_version(self, target: Target, tx: ColumnElement[Any] = TX) -> ColumnElement[bool]:
        """The row had a version before this transaction that was no DELETE.

        True also when this transaction has ended that version.
        """
        plan = target.plan
        old = plan.version.alias("old")
        was_open = plan.strategy.is_open(plan, old)
        if plan.strategy.has_end:
            was_open = or_(was_open, plan.end_of(old) == tx)
        same = [target.value(column.key) == old.c[version.key] for column, version in plan.keys]
        return exists().where(*same, was_open, plan.op_of(old) != number(Operation.DELETE))

    def inserted_or_updated(self, target: Target) -> ColumnElement[int]:
        """The operation of rows of which only the history tells whether they are new."""
        updated, inserted = number(Operation.UPDATE), number(Operation.INSERT)
        return case((self.had_version(target), updated), else_=inserted)

    # -- after the statement

    def refresh(self, unit: ConnectionUnit, plan: TablePlan) -> None:
        """This transaction's versions take the values of the live rows, where they differ.

        A row that is there after all, although its version says that it was deleted, came back.
        """
        live = plan.parent

        def differs(v: FromClause) -> ColumnElement[bool]:
            deleted = plan.op_of(v) == number(Operation.DELETE)
            if len(plan.columns) == len(plan.keys):
                there = plan.parent.alias()
                return deleted & self.one_of(plan.keys_of(v), select(*plan.keys_of(there)))
            return or_(deleted, not_(self.writer.same_values(plan, live, v)))

        statement = self.writer.refresh_statement(plan, differs)
        unit.connection.execute(statement, {"history__tx": unit.tx})

    def revive(self, unit: ConnectionUnit, plan: TablePlan) -> None:
        """Rows that are there after all, since another row took the key, are not taken back."""
        v, live = plan.version, plan.parent.alias()
        values: dict[Any, Any] = {plan.op: number(Operation.INSERT)}
        if plan.end is not None:
            values[plan.end] = null()
        there = self.one_of(plan.keys_of(v), select(*plan.keys_of(live)))
        reviving = update(v).where(plan.tx_of(v) == TX, plan.op_of(v) == number(_VOID), there)
        unit.connection.execute(reviving.values(values), {"history__tx": unit.tx})

    def follow(self, unit: ConnectionUnit, plan: TablePlan, new_row: NewRow) -> list[TablePlan]:
        """The other tables of a joined hierarchy get a version where ``plan``'s table got one."""
        followed = []
        for part in plan.hierarchy if unit.tx is not None else ():
            if part is not plan:
                own = plan.version.alias("changed")
                changed = select(*plan.keys_of(own)).where(plan.tx_of(own) == TX)
                target = Target(
                    plan=part,
                    live=part.parent,
                    where=(self.one_of(part.keys_of(part.parent), changed),),
                    parameters={"history__tx": unit.tx},
                )
                if self.record(unit, target, number(Operation.UPDATE), new_row):
                    followed.append(part)
        return followed

    def settle(self, unit: ConnectionUnit, plan: TablePlan) -> bool:
        """Take back the versions of rows that are as they were before the transaction."""
        root = plan.hierarchy[0]
        v, parameters = root.version, {"history__tx": unit.tx}
        if any(part.options.track_relations for part in root.hierarchy):
            return False  # a version may be there for a collection
        marking = update(v).where(self.writer.is_settled(root, v)).values(self._void(root))
        if not unit.connection.execute(marking, parameters).rowcount:
            return False
        for part in root.hierarchy[1:]:
            own = root.version.alias("own")
            void = select(*root.keys_of(own)).where(
                root.tx_of(own) == TX, root.op_of(own) == number(_VOID)
            )
            v = part.version
            marking = update(v).where(part.tx_of(v) == TX, self.one_of(part.keys_of(v), void))
            unit.connection.execute(marking.values(self._void(part)), parameters)
        for part in root.hierarchy:
            self.take_back(unit, part)
        return True

    def _void(self, plan: TablePlan) -> dict[Any, Any]:
        values: dict[Any, Any] = {plan.op: number(_VOID)}
        if plan.end is not None:
            values[plan.end] = TX
        return values

    def take_back(self, unit: ConnectionUnit, plan: TablePlan) -> None:
        """Remove the versions that are marked, and open those before them again."""
        v, own = plan.version, plan.version.alias("own")
        parameters = {"history__tx": unit.tx}
        void = plan.tx_of(own) == TX, plan.op_of(own) == number(_VOID)
        if plan.strategy.has_end:
            unit.connection.execute(
                update(v)
                .where(
                    *self.writer.joined(plan.same_key(own, v), *void),
                    plan.end_of(v) == TX,
                    plan.tx_of(v) != TX,
                )
                .values({plan.end: null()}),
                parameters,
            )
        unit.connection.execute(
            delete(v).where(plan.tx_of(v) == TX, plan.op_of(v) == number(_VOID)), parameters
        )
        if unit.tx is not None and unit.recorded_plans:
            self.writer.forget_empty_transaction(unit)
