"""A first version for rows that were there before versioning was."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, exists, select
from sqlalchemy.orm import Session

from sqlalchemy_history.plan import Key, TablePlan, as_key
from sqlalchemy_history.unit_of_work import Changes

from .upkeep import ProgressCallback, Upkeep

#: ``remote_addr`` of the transaction row under which such versions are written
MARK = "backfill"


def backfill(
    session: Session,
    model: Any,
    *,
    batch_size: int = 1000,
    commit: bool = False,
    progress: ProgressCallback | None = None,
) -> int:
    """Give every row of ``model`` that has no history a first version: INSERT, as it is now.

    All of them share one transaction row. Its columns come from
    :class:`~sqlalchemy_history.transaction_context`; where that says nothing else and the column is
    there, its ``remote_addr`` is ``"backfill"``. Rows that have a history are left alone, so it can
    be run again, and after a run that was stopped.

    :param batch_size: how many rows are copied by one statement.
    :param commit: commit after each batch.
    :param progress: called after each batch with a :class:`Progress`.
    :returns: how many rows got a version.
    :raises ClassNotVersioned: if the class has no history.
    """
    work = Upkeep(
        session, model, "backfill", batch_size=batch_size, commit=commit, progress=progress
    )
    for root in work.roots:
        for rows in work.batches(rows_without_history(work, root), root.keys_of(root.parent)):
            keys = list(dict.fromkeys(as_key(row) for row in rows))
            lock_rows(work, root, keys)
            work.write({part: Changes(inserted=keys) for part in root.hierarchy}, MARK)
            work.batch_done(root, len(keys))
    return work.finish()


def rows_without_history(work: Upkeep, root: TablePlan) -> Select[Any]:
    """The keys of the live rows of which no version says anything; the rows are locked."""
    live, v = root.parent, root.version
    return (
        select(*root.keys_of(live))
        .where(~exists().where(root.same_key(v, live)), work.recorded_rows(root))
        .with_for_update()
    )


def lock_rows(work: Upkeep, root: TablePlan, keys: list[Key]) -> None:
    """Lock the other rows of objects of a joined hierarchy, so that no flush comes in between."""
    if work.connection.dialect.name == "sqlite":
        return
    for part in root.hierarchy[1:]:
        which = work.writer.key_clause(part, part.parent)
        statement = select(*part.keys_of(part.parent)).where(which).with_for_update()
        for parameters in work.writer.portions(part, keys):
            work.connection.execute(statement, parameters).all()
