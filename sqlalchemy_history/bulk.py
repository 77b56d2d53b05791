"""Statements outside of the unit of work: ORM and Core UPDATE, DELETE and INSERT of versioned tables.

``execution`` decides that a statement is recorded; here is how. Which way the rows become versions
depends on when it is known which rows they are:

*Before*, where only the database can tell: UPDATE and DELETE with any WHERE. The versions are
written first, by one ``INSERT ... SELECT`` from the live table with the statement's own WHERE, the
new values being the SET expressions (they refer to the old row there as they do here), only of rows
that really change, and with the rows locked. The new versions are then the list of the rows, in the
database: the user's statement is limited to them, so what is changed is what was recorded, also if
another transaction commits in between. Nothing of it passes through Python. Where the SET does not
tell all (``onupdate``, a trigger, a function that may return something else the next time, another
table) all rows that match are recorded, take the values of the live rows afterwards, and those that
turn out equal to the version before are taken back.

*After*, where the statement or its result names the keys: INSERT of all kinds, with ``RETURNING`` of
the keys where the database makes them, and UPDATE by primary key. The rows are locked by the
statement itself by then, and hold exactly what they are going to hold: the keys go the way of a flush.

A transaction that had versioned some of the rows before amends those versions; which rows that were
is from then on asked of the database (``ConnectionUnit.record_unknown``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Table,
    bindparam,
    cast,
    not_,
    or_,
)
from sqlalchemy.sql.elements import BindParameter, ClauseElement

from .cascades import Cascade
from .compare import identical
from .keys import KeyFormat
from .operation import Operation
from .plan import Key, TablePlan, as_key
from .record import Rows, Target
from .schema import unique_columns
from .statement import (
    Parameters,
    are_given,
    bound,
    columns_used,
    criteria,
    given_keys,
    inserted_values,
    is_limited,
    is_ordered,
    parent_table,
    resolved,
    returns,
    set_clause,
)
from .triggers import has_triggers, trigger_exists
from .unit_of_work import Changes, ConnectionUnit
from .write import TX, number

if TYPE_CHECKING:
    from sqlalchemy import CursorResult

    from .execution import Statements

#: labels of keys that a statement is made to return
_RETURNED: Final = "history__key_"


class UnderWay:
    """A statement, which changes rows of the table of ``plan``.

    :ivar plan: None if its own rows have no history, or a flush sees to that.
    :ivar written: tables in which versions were written, with the keys if they are known.
    :ivar known: tables in which this transaction had written versions before.
    :ivar fresh: tables of which all versions of this transaction are the statement's.
    :ivar guarded: a savepoint was set before the first version of another one.
    :ivar sets_off_triggers: the database cascades from it to tables that triggers record.
    """

    statement: Any = None
    guarded = False
    sets_off_triggers = False
    #: the ids of this transaction and of the one of old states when that was set
    ids: tuple[int | None, int | None] = (None, None)

    def __init__(
        self, statements: Statements, unit: ConnectionUnit, plan: TablePlan | None
    ) -> None:
        self.statements = statements
        self.recorder = statements.recorder(unit.connection)
        self.unit = unit
        self.plan = plan
        self.new_row = statements.new_row(unit)
        self.transaction_before = unit.tx
        self.known = set(unit.recorded_plans) if unit.tx is not None else set()
        self.fresh: set[TablePlan] = set()
        self.written: dict[TablePlan, Sequence[Key] | None] = {}
        #: versions that this transaction had written before were changed
        self.amended = False
        #: a listener executes the statement in a flush, which has rows that have no version yet
        self.in_flush = unit.work.is_flushing

    def begin(self, statement: Any, rows: Parameters) -> Any:
        raise NotImplementedError

    def end(self, result: CursorResult[Any]) -> None:
        raise NotImplementedError

    def write_keys(self, changes: Mapping[TablePlan, Changes]) -> None:
        """Go the way of a flush."""
        self.amended = self.recorder.writer.write(self.unit, changes, self.new_row)
        self.written = {plan: found.keys for plan, found in changes.items()}


class _Insert(UnderWay):
    """Inserted rows are known afterwards, by their keys."""

    plan: TablePlan

    def begin(self, statement: Any, rows: Parameters) -> Any:
        columns = [column for column, _ in self.plan.keys]
        dialect = self.recorder.dialect
        many = len(rows) > 1
        self._changes_others = statement._post_values_clause is not None
        self._changes_others |= bool(statement._prefixes)
        if self._changes_others and self.plan.options.baseline:
            for target in self._in_conflict(statement, rows):
                self.recorder.keep_old(self.unit, target)
        self._keys_of = self._of_parameters
        plain_values = statement.select is None and not statement._multi_values
        if plain_values and not self._changes_others and are_given(statement, rows[0], columns):
            return statement
        if statement._return_defaults:
            self._keys_of = self._of_defaults
            return statement
        if returns(statement, columns):
            self._keys_of = self._of_result
            return statement
        is_primary = set(columns) == set(self.plan.parent.primary_key.columns)
        if plain_values and not self._changes_others and is_primary and not statement._returning:
            if not many:
                self._keys_of = self._of_lastrowid
                return statement
            if dialect.insert_executemany_returning:
                self._keys_of = self._of_defaults
                return statement.return_defaults(*columns)
        if dialect.insert_executemany_returning if many else dialect.insert_returning:
            self._keys_of = self._of_added if statement._returning else self._of_hidden
            labelled = (c.label(f"{_RETURNED}{i}") for i, c in enumerate(columns))
            return statement.returning(*labelled)
        if not (plain_values and are_given(statement, rows[0], columns)):
            self._keys_of = self._unknown
            self.statements.untracked(
                self.plan,
                f"an INSERT whose keys {dialect.name} does not tell",
                "give the keys, insert the rows one by one, or add objects to the session",
            )
        return statement

    def _in_conflict(self, statement: Any, rows: Parameters) -> Iterator[Target]:
        """The rows that have the primary key, or other unique values, of a row to be inserted."""
        live = self.plan.parent
        if statement.select is not None:
            return
        values = list(inserted_values(statement, rows))
        for columns in (list(live.primary_key.columns), *unique_columns(live)):
            given = [[row.get(c.key) for c in columns] for row in values]
            keys = [as_key(key) for key in given if not any(map(_is_unknown, key))]
            if keys:
                format_ = KeyFormat(self.recorder.dialect, columns)
                for portion in format_.portions(list(dict.fromkeys(keys))):
                    yield Target(
                        plan=self.plan,
                        live=live,
                        where=(format_.many(columns, "unique"),),
                        parameters=format_.many_parameters(portion, "unique"),
                    )

    def end(self, result: CursorResult[Any]) -> None:
        keys = list(dict.fromkeys(self._keys_of(result)))
        if not keys:
            return
        if not self._changes_others:
            self.write_keys({self.plan: Changes(inserted=keys)})
            return
        plan, writer, unit = self.plan, self.recorder.writer, self.unit
        live = plan.parent
        for parameters in writer.portions(plan, keys):
            target = Target(
                plan=plan,
                live=live,
                where=(writer.key_clause(plan, live), writer.changed(plan)),
                parameters=parameters,
            )
            operation = self.recorder.inserted_or_updated(target)
            if self.recorder.record(unit, target, operation, self.new_row, is_ours=True):
                self.written[plan] = keys
        if plan in self.known:
            self.written[plan], self.amended = keys, True
            self.recorder.refresh(unit, plan)
            self.recorder.settle(unit, plan)

    # -- where the keys are

    def _unknown(self, result: CursorResult[Any]) -> Iterable[Key]:
        return ()

    def _of_parameters(self, result: CursorResult[Any]) -> Iterable[Key]:
        names = [column.key for column, _ in self.plan.keys]
        parameters = _context(result).compiled_parameters
        return (as_key(row[name] for name in names) for row in parameters)

    def _of_lastrowid(self, result: CursorResult[Any]) -> Iterable[Key]:
        order = [list(self.plan.parent.primary_key.columns).index(c) for c, _ in self.plan.keys]
        row = result.inserted_primary_key
        return [] if row is None or None in tuple(row) else [as_key(row[i] for i in order)]

    def _of_defaults(self, result: CursorResult[Any]) -> Iterable[Key]:
        context = _context(result)
        if context.returned_default_rows:
            return self._of_rows(context.returned_default_rows)
        return self._of_lastrowid(result)

    def _of_result(self, result: CursorResult[Any]) -> Iterable[Key]:
        rows = result.all()
        result._rewind(rows)
        return self._of_rows(rows)

    def _of_rows(self, rows: Iterable[Any]) -> Iterable[Key]:
        columns = [column for column, _ in self.plan.keys]
        return (as_key(row._mapping[column] for column in columns) for row in rows)

    def _of_hidden(self, result: CursorResult[Any]) -> Iterable[Key]:
        """The statement was made to return the keys: it returns nothing, as the user has it."""
        rows = result.all()
        result._soft_close()
        result._metadata = result._no_result_metadata
        # SQLAlchemy may have put columns of its own before ours
        return (as_key(row[-len(self.plan.keys) :]) for row in rows)

    def _of_added(self, result: CursorResult[Any]) -> Iterable[Key]:
        """The keys were added to what the user wants to be returned: they go again."""
        rows = result.all()
        width = len(self.plan.keys)
        result._rewind(rows)
        orm = getattr(_context(result).compiled.compile_state, "from_statement_ctx", None)
        if orm is None:
            result._column_slices(list(range(len(result.keys()) - width)))
        else:
            # the ORM makes its rows of these; the compiled statement may be used again
            entities = orm._entities
            orm._entities = [e for e in entities if not _name_of(e).startswith(_RETURNED)]
        return (as_key(row[-width:]) for row in rows)


class _Change(UnderWay):
    """Rows that match are recorded first, and what the database does to others with them."""

    def __init__(
        self, statements: Statements, unit: ConnectionUnit, plan: TablePlan | None
    ) -> None:
        super().__init__(statements, unit, plan)
        self.cascade = Cascade(statements.cascades, self.recorder, unit, self.new_row)
        #: rows recorded on suspicion: take the live values, and take back what is as it was
        self.doubt = False
        #: recorded rows take the live values
        self.refresh = False
        self.found = 0

    def lock_root(self, matching: Rows) -> None:
        """The rows belong to objects of several tables: see ``execution``."""
        plan = self.plan
        if plan is None or not self.recorder.locks or self.in_flush:
            return
        root = plan.hierarchy[0]
        if plan is not root:
            keys = matching.select(*plan.keys_of(matching.live))
            where = (self.recorder.one_of(root.keys_of(root.parent), keys),)
            self.recorder.lock(
                self.unit, dataclasses.replace(matching, live=root.parent, where=where)
            )

    def rows_of(self, core: Any, rows: Parameters) -> list[Rows]:
        """The rows that match, by parameters."""
        live = core.statement.table
        where = criteria(core)
        if len(rows) > 1 and isinstance(live, Table):
            columns = (
                [c for c, _ in self.plan.keys] if self.plan else list(live.primary_key.columns)
            )
            keys = given_keys(columns, core.statement._where_criteria, rows)
            if keys is not None:
                format_ = KeyFormat(self.recorder.dialect, columns)
                clause = format_.many([live.c[c.key] for c in columns], "keys")
                return [
                    Rows(
                        live=live,
                        where=(clause,),
                        parameters=format_.many_parameters(portion, "keys"),
                    )
                    for portion in format_.portions(keys)
                ]
        return [Rows(live=live, where=tuple(bound(c, row) for c in where)) for row in rows]

    def end(self, result: CursorResult[Any]) -> None:
        recorder, unit, cascade = self.recorder, self.unit, self.cascade
        if unit.tx is None:
            return
        recorded = cascade.recorded
        if self.plan is not None and self.plan in self.known:
            recorded[self.plan] = None
        self.written = dict.fromkeys(recorded)
        self.amended = not self.known.isdisjoint(recorded)
        for plan in list(recorded):
            own = plan is self.plan
            changed = plan in cascade.set or (own and isinstance(self, _Update))
            if plan in cascade.moved and plan in cascade.marked:
                recorder.revive(unit, plan)
            if plan in self.known or plan in cascade.set or (own and (self.refresh or self.doubt)):
                if changed:
                    recorder.refresh(unit, plan)
            if plan.hierarchy[1:]:
                self.written.update(dict.fromkeys(recorder.follow(unit, plan, self.new_row)))
            if changed and (plan in self.known or plan in cascade.set or (own and self.doubt)):
                self.amended |= recorder.settle(unit, plan)
            if plan in cascade.marked:
                recorder.take_back(unit, plan)


class _Delete(_Change):
    def begin(self, statement: Any, rows: Parameters) -> Any:
        plan, recorder = self.plan, self.recorder
        core = resolved(statement, recorder.dialect)
        table = parent_table(core.statement.table)
        target: Target | None = None
        for matching in self.rows_of(core, rows):
            if plan is None:
                recorder.lock(self.unit, matching)
                without = self._hierarchy(table) if self.in_flush else ()
                self.cascade.delete(table, matching, without=without)
                continue
            self.lock_root(matching)
            target = _as_target(plan, matching)
            if self.in_flush:
                target = target.only(recorder.had_version(target))
            self.found += self.cascade.record_deleted(target)
        if plan is None:
            return statement
        if self.found:
            self.cascade.delete(table, self.cascade.recorded_rows(plan))
        if target is None or recorder.serial:
            return statement
        limit = recorder.limit(self.unit, target)
        if self.in_flush:
            tx = bindparam("history__limit", self.unit.tx, type_=TX.type)
            limit = or_(limit, ~recorder.had_version(target, tx))
        return statement.where(limit)

    def _hierarchy(self, table: Any) -> list[Any]:
        """Tables that a flush deletes from with ``table``: those of a joined hierarchy."""
        plan = self.statements.plan_of(table)
        if plan is None:
            return []
        return [part.parent for part in plan.hierarchy if part.parent is not table]


class _Update(_Change):
    """Rows named by their keys are recorded afterwards, others first."""

    _keys: list[Key] | None = None
    _is_locked = False
    _is_newest = False

    def begin(self, statement: Any, rows: Parameters) -> Any:
        plan, recorder = self.plan, self.recorder
        core = resolved(statement, recorder.dialect)
        live = core.statement.table
        table = parent_table(live)
        sets = set_clause(core, live, rows[0])
        referred = {
            parent.key
            for reference in self.statements.cascades.of(table, "on_update")
            for _, parent in reference.pairs
        }
        changing = referred & sets.keys()
        if plan is None:
            if changing:
                for row in rows:
                    [matching] = self.rows_of(core, [row])
                    recorder.lock(self.unit, matching)
                    values = self._new_values(statement, live, sets, changing, row)
                    changed = dataclasses.replace(matching, values=values)
                    self.cascade.update(table, changed, changing)
            return statement
        versioned = {column.key: column for column, _ in plan.columns}
        new_keys = [column.key for column, _ in plan.keys if column.key in sets]
        unset = [
            c
            for c in versioned.values()
            if c.key not in sets and (c.onupdate is not None or c.server_onupdate is not None)
        ]
        if not unset and not sets.keys() & (versioned.keys() | changing):
            if not has_triggers(self.unit.connection, plan.parent):
                return statement
        if not new_keys and not changing and not core._extra_froms and not self.in_flush:
            columns = [column for column, _ in plan.keys]
            self._keys = given_keys(columns, core.statement._where_criteria, rows)
            if self._keys is not None:
                if plan is not plan.hierarchy[0]:
                    recorder.writer.lock(self.unit, plan.hierarchy[0], self._keys)
                if plan.options.baseline:
                    recorder.keep_old_of(self.unit, plan, self._keys)
                return statement
        return self._record_first(statement, core, rows, sets, versioned, new_keys, changing, unset)

    def _record_first(
        self,
        statement: Any,
        core: Any,
        rows: Parameters,
        sets: Mapping[str, Any],
        versioned: Mapping[str, Column[Any]],
        new_keys: Sequence[str],
        changing: set[str],
        unset: Sequence[Column[Any]],
    ) -> Any:
        plan, recorder, unit = self.plan, self.recorder, self.unit
        assert plan is not None
        live = core.statement.table
        wanted: set[str] = set()
        if not (core._extra_froms or is_limited(statement)):
            wanted = sets.keys() & (versioned.keys() | changing)
        targets: list[Target] = []
        values: Mapping[str, Any] = {}
        for row in rows:
            [matching] = self.rows_of(core, [row])
            matching = dataclasses.replace(matching, keeps_keys=not (new_keys or changing))
            self.lock_root(matching)
            values = self._new_values(statement, live, sets, wanted, row)
            targets.append(dataclasses.replace(_as_target(plan, matching), values=values))
        foreseen = bool(values) and not unset and not self._has_triggers(targets)
        self.doubt = not foreseen
        self.refresh = len(rows) > 1 or any(c.computed is not None for c in versioned.values())
        if new_keys and not values:
            self.statements.untracked(
                plan,
                "an UPDATE that computes new primary keys in a way that cannot be foreseen",
                "set the key to values or to an expression of the row's own columns",
            )
        for target in targets:
            touched = target.only(self._changed(target)) if foreseen else target
            if new_keys and values:
                self.found += self.cascade.record_moved(touched)
            else:
                operation = number(Operation.UPDATE)
                if self.in_flush:
                    operation = recorder.inserted_or_updated(touched)
                written = recorder.record(
                    unit,
                    touched,
                    operation,
                    self.new_row,
                    is_locked=self._is_locked,
                    is_newest=self._is_newest,
                )
                if written:
                    self.cascade.recorded[plan] = None
                self.found += written
            if changing:
                self.cascade.update(plan.parent, touched, changing)
        if recorder.serial:
            return statement
        last = targets[-1]
        limit = recorder.limit(unit, last)
        if foreseen and len(rows) == 1:
            limit = or_(limit, not_(self._changed(last)))
        return statement.where(limit)

    def _changed(self, target: Target) -> ColumnElement[bool]:
        """Something that has a history changes in the row."""
        versioned = {column.key for column, _ in target.plan.columns}
        return or_(
            *(
                not_(identical(target.live.c[key], value, self.recorder.dialect))
                for key, value in target.values.items()
                if key in versioned
            )
        )

    def _has_triggers(self, targets: Sequence[Target]) -> bool:
        """Whether triggers may change more; where it costs nothing, asked with the transaction row."""
        unit, recorder, target = self.unit, self.recorder, targets[0]
        table = target.plan.parent
        if unit.tx is not None or len(targets) > 1 or recorder.takes_one_statement(target.plan):
            return has_triggers(unit.connection, table)
        exists = trigger_exists(table, recorder.dialect)
        target = target.only(or_(self._changed(target), exists))
        begun = recorder.begin(unit, target, self.new_row(), exists)
        self._is_locked = begun is not None and recorder.locks
        self._is_newest = begun is not None and begun.is_newest
        return begun is not None and begun.answer

    def _new_values(
        self,
        statement: Any,
        live: FromClause,
        sets: Mapping[str, Any],
        wanted: Container[str],
        row: Mapping[str, Any],
    ) -> dict[str, ColumnElement[Any]]:
        """The new values as expressions about the old row; nothing if they cannot be foreseen."""
        dialect = self.recorder.dialect
        # MySQL assigns from left to right, and what is assigned later sees what was assigned before
        in_turn = dialect.name in ("mysql", "mariadb")
        found: dict[str, ColumnElement[Any]] = {}
        earlier = set() if is_ordered(statement) else set(sets)
        for key, value in sets.items():
            if key not in wanted:
                earlier.add(key)
                continue
            type_ = live.c[key].type
            expression: ColumnElement[Any]
            if isinstance(value, ColumnElement) and not isinstance(value, BindParameter):
                used = columns_used(value, live, dialect)
                if used is None or (in_turn and not (used - {key}).isdisjoint(earlier)):
                    return {}
                expression = bound(value, row)
            else:
                # a parameter of a SET clause is none of a SELECT: made anew, with the column's type
                if isinstance(value, BindParameter):
                    value = row[value.key] if value.key in row else value.effective_value
                expression = bindparam("history__set", value, type_=type_, unique=True)
            found[key] = cast(expression, type_) if dialect.name == "postgresql" else expression
            earlier.add(key)
        return found

    def end(self, result: CursorResult[Any]) -> None:
        if self._keys is None:
            super().end(result)
        elif self._keys and self.plan is not None:
            changes = Changes(unsure=self._keys)
            self.write_keys(dict.fromkeys(self.plan.hierarchy, changes))


def kind_of(statement: Any) -> type[UnderWay]:
    """How ``statement`` is recorded."""
    if statement.is_insert:
        return _Insert
    return _Delete if statement.is_delete else _Update


def _as_target(plan: TablePlan, rows: Rows) -> Target:
    return Target(
        plan=plan,
        live=rows.live,
        where=rows.where,
        parameters=rows.parameters,
        keeps_keys=rows.keeps_keys,
    )


def _name_of(entity: Any) -> str:
    return str(getattr(entity, "_label_name", None) or "")


def _context(result: CursorResult[Any]) -> Any:
    return result.context


def _is_unknown(value: Any) -> bool:
    """NULL is equal to nothing; what an expression gives only the database knows."""
    return value is None or isinstance(value, ClauseElement)
