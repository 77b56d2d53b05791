"""Mends what ``verify()`` finds."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any, Final

from sqlalchemy import (
    Table,
    column,
    func,
    insert,
    literal,
    literal_column,
    select,
    table,
)
from sqlalchemy.orm import Session

from sqlalchemy_history.plan import TablePlan, as_key
from sqlalchemy_history.unit_of_work import Changes
from sqlalchemy_history.write import transaction_values

from .backfill import lock_rows
from .findings import broken_chain, dangling, findings, gone, stray, wrong_now
from .prune import remove_equal_versions
from .upkeep import ProgressCallback, Upkeep

#: ``remote_addr`` of transaction rows that ``repair()`` makes
MARK: Final = "repair"

#: kind of finding -> what is done about it
ACTIONS: Final = {
    "dangling transaction": "make the missing transaction row, dated like the one before it",
    "stray part": "remove the version",
    "two open versions": "end it where the next version starts",
    "never closed": "end it where the next version starts",
    "wrong end": "end it where the next version starts",
    "no open version": "open it",
    "equal versions": "remove the version",
    "differs from live row": "write an UPDATE version of the live row",
    "lives after DELETE": "write an INSERT version of the live row",
    "gone without DELETE": "write a DELETE version",
    "no history": "write an INSERT version of the live row",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """One kind of damage in one table, and what mends it.

    :ivar kind: as in :class:`Finding`.
    :ivar table: the table with the damage.
    :ivar action: what is done.
    :ivar count: how many findings it mends.
    """

    kind: str
    table: str
    action: str
    count: int


def repair(
    session: Session,
    model: Any,
    *,
    dry_run: bool = False,
    batch_size: int = 1000,
    commit: bool = False,
    progress: ProgressCallback | None = None,
) -> list[Repair]:
    """Mend the history of ``model``, so that ``verify()`` finds no error and no warning any more.

    No version that says something is removed, and no live row is touched: where history and the
    live row disagree, a new version says from now on what the live row says. Such versions, and
    transaction rows that were missing, are marked as those of :func:`backfill` are: ``"repair"``.
    Unused transactions stay: somebody may have made them on purpose.

    :param dry_run: change nothing, only return the plan.
    :param batch_size: how many rows are mended at once.
    :param commit: commit after each batch.
    :param progress: called after each batch with a :class:`Progress`.
    :returns: what there is to mend; with ``dry_run=False`` it is mended now.
    :raises ClassNotVersioned: if the class has no history.
    """
    work = Upkeep(session, model, "repair", batch_size=batch_size, commit=commit, progress=progress)
    damage = collections.Counter((found.kind, found.table) for found in findings(work))
    plan = [
        Repair(kind=kind, table=table, action=ACTIONS[kind], count=count)
        for (kind, table), count in damage.items()
        if kind in ACTIONS
    ]
    if dry_run or not plan:
        return plan
    kinds = {step.kind for step in plan}
    for root in work.roots:
        for part in root.hierarchy:
            if "dangling transaction" in kinds:
                _make_transactions(work, part)
            if part is not root and "stray part" in kinds:
                _remove_stray(work, root, part)
            if part.end is not None:
                _link(work, part)
        if "equal versions" in kinds:
            remove_equal_versions(work, root)
        _say_what_is(work, root)
    work.finish()
    return plan


def _make_transactions(work: Upkeep, plan: TablePlan) -> None:
    transaction = plan.transaction
    missing = dangling(plan).subquery("missing")
    ids = select(plan.tx_of(missing).label("id")).distinct().subquery("ids")
    earlier = transaction.alias("earlier")
    issued_at = (
        select(func.max(earlier.c.issued_at)).where(earlier.c.id < ids.c.id).scalar_subquery()
    )
    row = transaction_values(transaction, work.transaction_row(MARK))
    row = {name: value for name, value in row.items() if name not in ("id", "issued_at")}
    given = (literal(value, transaction.c[name].type) for name, value in row.items())
    copy = select(ids.c.id, issued_at, *given)
    count = work.execute(insert(transaction).from_select(["id", "issued_at", *row], copy))
    if count:
        _move_sequence(work, transaction)
    work.batch_done(plan, count)


def _move_sequence(work: Upkeep, transaction: Table) -> None:
    """Ids that were given by hand must not be handed out once more."""
    dialect = work.connection.dialect
    sequence: Any = transaction.c.id.default
    if sequence is None or not sequence.is_sequence or not dialect.supports_sequences:
        return
    newest = select(func.max(transaction.c.id)).scalar_subquery()
    name = dialect.identifier_preparer.format_sequence(sequence)
    if dialect.name == "postgresql":
        state = table(name, column("last_value"))
        reached = select(state.c.last_value).scalar_subquery()
        work.connection.execute(select(func.setval(name, func.greatest(newest, reached))))
    elif dialect.name in ("mysql", "mariadb"):
        number = work.connection.scalar(select(newest))
        work.connection.execute(select(func.setval(literal_column(name), number)))


def _remove_stray(work: Upkeep, root: TablePlan, part: TablePlan) -> None:
    v = part.version
    for rows in work.batches(stray(root, part), [*part.keys_of(v), part.tx_of(v)]):
        work.remove(part, rows)
        work.batch_done(part, len(rows))


def _link(work: Upkeep, plan: TablePlan) -> None:
    broken = broken_chain(work, plan)
    columns = list(broken.selected_columns)[: len(plan.keys) + 1]
    for rows in work.batches(broken, columns):
        keys = list(dict.fromkeys(as_key(row[:-2]) for row in rows))
        work.batch_done(plan, work.relink(plan, keys))


def _say_what_is(work: Upkeep, root: TablePlan) -> None:
    """Write new versions where the last one does not agree with the live row."""
    live, v = root.parent, root.version
    for rows in work.batches(wrong_now(work, root), root.keys_of(live)):
        lock_rows(work, root, list(dict.fromkeys(as_key(row[:-2]) for row in rows)))
        differs = [as_key(row[:-2]) for row in rows if row[-1] == "differs from live row"]
        new = [as_key(row[:-2]) for row in rows if row[-1] != "differs from live row"]
        _write(work, root, Changes(updated=differs, inserted=new))
    for rows in work.batches(gone(work, root), root.keys_of(v)):
        _write(work, root, Changes(deleted=[as_key(row[:-1]) for row in rows]))


def _write(work: Upkeep, root: TablePlan, changes: Changes) -> None:
    if work.commit:
        work.new_transaction()
    work.write({part: dataclasses.replace(changes) for part in root.hierarchy}, MARK)
    count = len(changes.inserted) + len(changes.updated) + len(changes.deleted)
    work.batch_done(root, count)
