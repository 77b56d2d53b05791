"""Less history: versions that say nothing new, and versions that nobody needs any more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    Subquery,
    Table,
    and_,
    exists,
    false,
    func,
    or_,
    select,
)
from sqlalchemy.orm import Session

from sqlalchemy_history.compare import identical
from sqlalchemy_history.operation import Operation
from sqlalchemy_history.plan import TablePlan, as_key
from sqlalchemy_history.query import moment

from .transactions import UnusedTransactions
from .upkeep import ProgressCallback, Upkeep


def vacuum(
    session: Session,
    model: Any,
    yield_per: int = 1000,
    *,
    commit: bool = False,
    progress: ProgressCallback | None = None,
) -> int:
    """Remove the versions of ``model`` that say the same as the version before them.

    The version before is made valid until the next one that stays. Of versions A, B, A all stay. Of
    a class with ``track_relations`` all versions stay.

    :param yield_per: how many versions are removed by one statement.
    :param commit: commit after each batch.
    :param progress: called after each batch with a :class:`Progress`.
    :returns: how many versions were removed.
    :raises ClassNotVersioned: if the class has no history.
    """
    work = Upkeep(session, model, "vacuum", batch_size=yield_per, commit=commit, progress=progress)
    for root in work.roots:
        remove_equal_versions(work, root)
    return work.finish()


def remove_equal_versions(work: Upkeep, root: TablePlan) -> None:
    """Remove what :func:`equal_versions` finds."""
    unused = UnusedTransactions(work)
    for rows in work.batches(*equal_versions(work, root)):
        # what is equal to a version that goes too is equal to the one that stays
        for part in reversed(root.hierarchy):
            work.remove(part, rows)
        keys = list(dict.fromkeys(as_key(row[:-1]) for row in rows))
        for part in root.hierarchy:
            work.relink(part, keys)
        unused.remove(row[-1] for row in rows)
        work.batch_done(root, len(rows))


def equal_versions(
    work: Upkeep, root: TablePlan
) -> tuple[Select[Any], Sequence[ColumnElement[Any]]]:
    """(keys, transaction) of versions that are equal, in all tables, to the one before.

    None of a class with ``track_relations``: its versions may be there for a collection.
    """
    own, same = _and_before(work, root)
    columns = [*root.keys_of(own), root.tx_of(own)]
    statement: Any = select(*columns)
    statement = statement.where(root.op_of(own) != Operation.DELETE, same)
    if any(part.options.track_relations for part in root.hierarchy):
        return statement.where(false()), columns
    for part in root.hierarchy[1:]:
        mine, same = _and_before(work, part)
        here = and_(
            *(a == b for a, b in zip(part.keys_of(mine), root.keys_of(own), strict=True)),
            part.tx_of(mine) == root.tx_of(own),
        )
        statement = statement.where(~exists().where(here, ~same))
    return statement, columns


def _and_before(work: Upkeep, plan: TablePlan) -> tuple[Subquery, ColumnElement[bool]]:
    """The versions, each with what the one before it says; the condition that they say the same.

    PostgreSQL looks back in one pass over the table in the order of its key. The others look each
    version's neighbour up, and need not make all of them for each batch.
    """
    v, before = plan.version, plan.version.alias("before")
    keys = {version for _, version in plan.keys}
    compared = [plan.op, *(version for _, version in plan.columns if version not in keys)]
    if work.connection.dialect.name == "postgresql":
        keys_of, tx = plan.keys_of(v), plan.tx_of(v)
        former: list[ColumnElement[Any]] = [
            func.lag(v.c[c.key]).over(partition_by=keys_of, order_by=tx) for c in compared
        ]
        source: FromClause = v
    else:
        former = [before.c[c.key] for c in compared]
        previous = work.neighbour(plan, v, later=False)
        on = and_(plan.same_key(before, v), plan.tx_of(before) == previous)
        source = v.outerjoin(before, on)
    labelled = [one.label(f"history_before_{i}") for i, one in enumerate(former)]
    both = select(*v.c, *labelled).select_from(source).subquery()
    operation, *values = (both.c[label.name] for label in labelled)
    same = and_(
        operation.is_not(None),  # there is one before
        operation != Operation.DELETE,
        *(
            identical(both.c[column.key], value, work.connection.dialect)
            for column, value in zip(compared[1:], values, strict=True)
        ),
    )
    return both, same


def prune(
    session: Session,
    model: Any,
    *,
    before: Any = None,
    keep_last: int | None = None,
    batch_size: int = 1000,
    commit: bool = False,
    progress: ProgressCallback | None = None,
) -> int:
    """Remove old versions of ``model``.

    A version that was still valid at ``before`` stays, whenever it was made: from that moment on,
    ``as_of()`` shows the same as it did. Of an object that was deleted by then nothing stays.
    Transaction rows that no version and no other table refers to any more are removed as well; with
    ``before``, all of that time that nothing refers to.

    :param before: the moment from which on history is kept: a Transaction, its id or an aware
        datetime.
    :param keep_last: keep this many versions of each object, however old they are. Without
        ``before``, all others go. Since kept versions may be of any age, the history of association
        tables is left alone then.
    :param batch_size: how many versions are removed by one statement.
    :param commit: commit after each batch.
    :param progress: called after each batch with a :class:`Progress`.
    :returns: how many versions were removed, association rows included.
    :raises ClassNotVersioned: if the class has no history.
    :raises TypeError: if neither ``before`` nor ``keep_last`` is given, or ``before`` is naive.
    """
    if before is None and keep_last is None:
        raise TypeError("prune() needs before=, a moment, or keep_last=, a number of versions")
    if keep_last is not None and keep_last < 1:
        raise ValueError(f"keep_last={keep_last}; the last version is always kept, so at least 1")
    work = Upkeep(session, model, "prune", batch_size=batch_size, commit=commit, progress=progress)
    at = None if before is None else moment(work.plan, before)
    if at is not None and not isinstance(at, int):
        at = work.connection.scalar(select(at)) or 0
    unused = UnusedTransactions(work)
    for root in work.roots if keep_last is None else work.roots[:1]:
        v = root.version
        columns = [*root.keys_of(v), root.tx_of(v)]
        statement: Any = select(*columns)
        statement = statement.where(*_removable(root, v, at, keep_last))
        for rows in work.batches(statement, columns):
            for part in reversed(root.hierarchy):
                work.remove(part, rows)
            unused.remove(row[-1] for row in rows)
            work.batch_done(root, len(rows))
    if at is not None:
        id_ = work.plan.root.transaction.c.id
        for rows in work.batches(unused.ids().where(id_ <= at), [id_]):
            unused.remove(row[0] for row in rows)
            work.batch_done(work.plan.root, 0)
    return work.finish()


def _removable(
    root: TablePlan, v: Table, at: int | None, keep_last: int | None
) -> Iterable[ColumnElement[bool]]:
    later = root.version.alias("later")
    if at is not None:
        ended = exists().where(
            root.same_key(later, v), root.tx_of(later) > root.tx_of(v), root.tx_of(later) <= at
        )
        # by itself, so that the index alone tells which versions are too young
        yield root.tx_of(v) <= at
        yield or_(root.op_of(v) == Operation.DELETE, ended)
    if keep_last is not None:
        newest = (
            select(root.tx_of(later))
            .where(root.same_key(later, v))
            .order_by(root.tx_of(later).desc())
            .limit(1)
            .offset(keep_last - 1)
            .correlate(v)
            .scalar_subquery()
        )
        yield root.tx_of(v) < newest
