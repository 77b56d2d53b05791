"""What a trigger does, as statements that every database understands.

A trigger is told which rows a statement wrote: on PostgreSQL all of them, in a transition table,
elsewhere one by one. It takes only their keys from there and looks at the live rows, so it is right
in whatever order the triggers of a table run, and however often. ``writing()`` brings the versions
of rows that are there up to date, ``leaving()`` those of rows that are gone. Where a statement needs
the transaction's id it says ``TX``, which ``with_tx()`` replaces by what the database has.

The steps are those of ``write``: amend what this transaction has written before, close, open, and
take back what is as it was before the transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Dialect,
    FromClause,
    and_,
    case,
    column,
    delete,
    exists,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    table,
    true,
    tuple_,
    update,
)
from sqlalchemy.sql import visitors

from sqlalchemy_history.operation import Operation
from sqlalchemy_history.plan import TablePlan, same_object
from sqlalchemy_history.write import TX, Writer, number, version_columns

#: what a step does, for those who have to put something between the steps
AMEND: Final = "amend"
CLOSE: Final = "close"
OPEN: Final = "open"
TAKE_BACK: Final = "take back"
REOPEN: Final = "reopen"


class Step(NamedTuple):
    """One statement about one table.

    :ivar kind: ``AMEND``, ``TAKE_BACK`` and ``REOPEN`` find something only where this transaction
        has written versions before; what ``TAKE_BACK`` removes may have been its last version.
    """

    kind: str
    statement: Any


class TransitionRows:
    """The rows that a statement wrote, all of them in one table: ``source``."""

    def __init__(self, source: FromClause, plan: TablePlan) -> None:
        self.source = source
        self._columns = dict(zip(plan.parent.c, source.c, strict=True))
        self._keys = [self.value(c) for c, _ in plan.keys]

    @classmethod
    def named(cls, name: str, plan: TablePlan) -> TransitionRows:
        """Those in the transition table ``name``."""
        return cls(table(name, *(column(c.name, c.type) for c in plan.parent.c)), plan)

    def value(self, column: Column[Any]) -> ColumnElement[Any]:
        """What a row holds in ``column`` of the live table."""
        return self._columns[column]

    def holds(self, columns: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
        """``columns`` are the key of one of the rows."""
        left: Any = columns[0] if len(columns) == 1 else tuple_(*columns)
        return and_(left.in_(select(*self._keys)))


class TriggerRow:
    """The row that a trigger was called for: ``NEW`` or ``OLD``."""

    #: what to select it from
    source = None

    def __init__(self, name: str, plan: TablePlan, dialect: Dialect) -> None:
        self._name, self._quote = name, dialect.identifier_preparer.quote
        self._keys = [self.value(c) for c, _ in plan.keys]

    def value(self, column: Column[Any]) -> ColumnElement[Any]:
        """What the row holds in ``column`` of the live table."""
        return literal_column(f"{self._name}.{self._quote(column.name)}", column.type)

    def holds(self, columns: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
        """``columns`` are the key of the row."""
        return and_(*(c == key for c, key in zip(columns, self._keys, strict=True)))


Rows = TransitionRows | TriggerRow


class Program:
    """The steps for the table of ``plan``, and for the others of its joined hierarchy."""

    def __init__(self, plan: TablePlan, writer: Writer) -> None:
        self.plan = plan
        self.writer = writer

    # -- rows that are there

    def is_news(self, new: Rows) -> ColumnElement[bool]:
        """One of the rows ``new`` differs from its open version."""
        root = self.plan.hierarchy[0]
        live = root.parent
        return exists().where(new.holds(root.keys_of(live)), self.writer.changed(root))

    def writing(self, new: Rows, old: Rows | None) -> Iterator[Step]:
        """The rows ``new`` were written; ``old`` are those that an UPDATE found."""
        writer = self.writer
        for plan in self.plan.hierarchy:
            yield Step(AMEND, writer.refresh_statement(plan, partial(_are_of, new, plan)))
        for plan in self.plan.hierarchy:
            v, live = plan.version, plan.parent
            if plan.strategy.has_end:
                are_touched = partial(_are_of, new, plan)
                yield Step(CLOSE, writer.close_statement(plan, True, are_touched))
            known = self._was_live(plan)
            if old is not None:
                known = or_(old.holds(plan.keys_of(live)), known)
            operation = case((known, number(Operation.UPDATE)), else_=number(Operation.INSERT))
            copy = select(*(c for c, _ in plan.columns), TX, operation).where(
                new.holds(plan.keys_of(live)), writer.nothing_open(plan)
            )
            if self.plan.hierarchy[1:]:
                # the others of the hierarchy may be the reason why the row counts as changed
                own = v.alias("own")
                copy = copy.where(~exists().where(plan.same_key(own, live), plan.tx_of(own) == TX))
            if plan.association and not live.primary_key.columns:
                copy = copy.distinct()
            yield Step(OPEN, insert(v).from_select(version_columns(plan), copy))
        yield from self._settling(new)

    def _was_live(self, plan: TablePlan) -> ColumnElement[bool]:
        """The row that is now there was there before, as the version that was just ended says."""
        before = plan.version.alias("before")
        ended = (
            plan.end_of(before) == TX
            if plan.strategy.has_end
            else plan.strategy.is_open(plan, before)
        )
        not_deleted = plan.op_of(before) != number(Operation.DELETE)
        return exists().where(plan.same_key(before, plan.parent), ended, not_deleted)

    def _settling(self, new: Rows) -> Iterator[Step]:
        """Objects that are as they were before the transaction lose their versions again."""
        root = self.plan.hierarchy[0]
        if any(plan.options.track_relations for plan in root.hierarchy):
            return
        # the root's version says whether, so it goes last
        for plan in reversed(self.plan.hierarchy):
            v = plan.version
            own = v if plan is root else root.version.alias("own")
            settled = [
                plan.tx_of(v) == TX,
                new.holds(plan.keys_of(v)),
                self.writer.is_settled(root, own),
            ]
            if plan is not root:
                same = same_object(root, own, plan, v)
                settled = [*settled[:2], exists().where(same, *settled[2:])]
            yield Step(TAKE_BACK, delete(v).where(*settled))
        for plan in self.plan.hierarchy:
            yield from self._reopening(plan, new)

    def _reopening(self, plan: TablePlan, rows: Rows) -> Iterator[Step]:
        if plan.strategy.has_end:
            v, own = plan.version, plan.version.alias("own")
            yield Step(
                REOPEN,
                update(v)
                .where(
                    rows.holds(plan.keys_of(v)),
                    plan.end_of(v) == TX,
                    ~exists().where(plan.same_key(own, v), plan.tx_of(own) == TX),
                )
                .values({plan.end: null()}),
            )

    # -- rows that are gone

    def are_gone(self, old: Rows) -> ColumnElement[bool]:
        """One of the rows ``old`` is not there any more."""
        keys = [old.value(c) for c, _ in self.plan.keys]
        gone: Any = select(literal_column("1")).where(self._is_gone(keys))
        found: ColumnElement[bool] = (
            gone if old.source is None else gone.select_from(old.source)
        ).exists()
        return found

    def _is_gone(self, keys: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
        there = self.plan.parent.alias("there")
        same = (a == b for a, b in zip(self.plan.keys_of(there), keys, strict=True))
        return ~exists().where(*same)

    def leaving(self, old: Rows, *, all_of_them: bool = False) -> Iterator[Step]:
        """Those of the rows ``old`` that are gone were deleted, or their keys were changed.

        :param all_of_them: they are about to be deleted, so none is to be looked for.
        """
        plan = self.plan
        v, is_own = plan.version, plan.tx_of(plan.version) == TX
        keys = plan.keys_of(v)
        of_version = [old.holds(keys), true() if all_of_them else self._is_gone(keys)]
        deleted = number(Operation.DELETE)
        updated = plan.op_of(v) == number(Operation.UPDATE)
        yield Step(AMEND, update(v).where(*of_version, is_own, updated).values({plan.op: deleted}))
        if plan.end is not None:
            closing = [plan.strategy.is_open(plan, v), ~is_own, plan.op_of(v) != deleted]
            yield Step(CLOSE, update(v).where(*of_version, *closing).values({plan.end: TX}))
        old_keys = [old.value(c) for c, _ in plan.keys]
        last = plan.version.alias("last")
        recorded = exists().where(
            *(a == b for a, b in zip(plan.keys_of(last), old_keys, strict=True)),
            plan.strategy.is_open(plan, last),
            or_(plan.op_of(last) == deleted, plan.tx_of(last) == TX),
        )
        copy = select(*(old.value(c) for c, _ in plan.columns), TX, deleted).where(~recorded)
        if not all_of_them:
            copy = copy.where(self._is_gone(old_keys))
        if plan.association and not plan.parent.primary_key.columns:
            copy = copy.distinct()
        yield Step(OPEN, insert(v).from_select(version_columns(plan), copy))
        inserted = plan.op_of(v) == number(Operation.INSERT)
        yield Step(TAKE_BACK, delete(v).where(*of_version, is_own, inserted))
        yield from self._reopening(plan, old)

    # -- order

    def newest(self, rows: Rows) -> ColumnElement[int]:
        """The highest id that an open version of one of the rows has."""
        found = [
            select(func.max(plan.tx_of(plan.version)))
            .where(
                rows.holds(plan.keys_of(plan.version)), plan.strategy.is_open(plan, plan.version)
            )
            .scalar_subquery()
            for plan in self.plan.hierarchy
        ]
        return func.greatest(*found) if len(found) > 1 else found[0]


def _are_of(rows: Rows, plan: TablePlan, from_: FromClause) -> ColumnElement[bool]:
    """The rows of ``from_``, a table of ``plan``, are among ``rows``."""
    return rows.holds(plan.keys_of(from_))


def with_tx(statement: Any, tx: ColumnElement[Any]) -> Any:
    """``statement`` with ``tx`` where it says ``TX``."""

    def replace(element: Any, **_: Any) -> Any:
        return tx if element is TX or getattr(element, "key", None) == TX.key else None

    return visitors.replacement_traverse(statement, {}, replace)
