"""What is wrong with a history: each law as one query that finds what breaks it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, Literal

from sqlalchemy import (
    ColumnElement,
    FromClause,
    Select,
    and_,
    case,
    exists,
    func,
    literal,
    or_,
    select,
    true,
)
from sqlalchemy.orm import Session

from sqlalchemy_history.compare import identical
from sqlalchemy_history.latest import latest_of_row
from sqlalchemy_history.operation import Operation
from sqlalchemy_history.plan import Key, TablePlan, as_key, same_object

from .prune import equal_versions
from .transactions import UnusedTransactions
from .upkeep import Upkeep

Severity = Literal["error", "warning", "note"]

#: kind -> (how bad, what it means)
KINDS: Final[dict[str, tuple[Severity, str]]] = {
    "dangling transaction": ("error", "its transaction is not in the transaction table"),
    "stray part": ("error", "the base table of the hierarchy has no version for it"),
    "two open versions": ("error", "it is open, and so is another version of the row"),
    "never closed": ("error", "it is open, although it is not the last version"),
    "wrong end": ("error", "it does not end where the next version starts"),
    "no open version": ("error", "it has an end, although it is the last version"),
    "differs from live row": ("error", "it is the last version, and the live row says otherwise"),
    "lives after DELETE": ("error", "it says that the row was deleted, and the row is there"),
    "gone without DELETE": ("error", "it is the last version, and the row is not there any more"),
    "no history": ("warning", "the live row has no version; backfill() gives it one"),
    "equal versions": ("warning", "it says the same as the version before; vacuum() removes it"),
    "unused transaction": ("note", "no version belongs to it, and no other table refers to it"),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that is wrong with a history.

    :ivar kind: what is wrong; the how-to on upkeep has the list.
    :ivar severity: ``"error"``: the history shows something wrong; ``"warning"``: it shows too little
        or too much; ``"note"``: it does no harm.
    :ivar table: the table that the version, the live row or the transaction is in.
    :ivar key: the key of the row that it is about; None for a transaction.
    :ivar transaction_id: of the version; None where it is about a live row.
    :ivar message: what is wrong, for people.
    """

    kind: str
    severity: Severity
    table: str
    key: Key
    transaction_id: int | None
    message: str


def verify(session: Session, model: Any, *, limit: int | None = None) -> list[Finding]:
    """What is wrong with the history of ``model``; nothing is changed.

    Each kind of damage is looked for by one query for each table. The database returns only what is
    wrong, so the memory that it takes does not grow with the history.

    :param limit: stop after so many findings.
    :raises ClassNotVersioned: if the class has no history.
    """
    return list(islice(findings(Upkeep(session, model, "verify")), limit))


def findings(work: Upkeep) -> Iterator[Finding]:
    """What is wrong, one by one."""
    for root in work.roots:
        for part in root.hierarchy:
            yield from _found(work, part, dangling(part), "dangling transaction")
            if part is not root:
                yield from _found(work, part, stray(root, part), "stray part")
            if part.end is not None:
                yield from _found(work, part, broken_chain(work, part))
        yield from _found(work, root, wrong_now(work, root))
        yield from _found(work, root, gone(work, root), "gone without DELETE")
        yield from _found(work, root, equal_versions(work, root)[0], "equal versions")
    yield from _found(work, work.plan.root, UnusedTransactions(work).ids(), "unused transaction")


def _found(
    work: Upkeep, plan: TablePlan, statement: Select[Any], kind: str | None = None
) -> Iterator[Finding]:
    """What ``statement`` finds: rows of (keys, transaction); each says its kind if not all are of one."""
    with work.connection.execute(statement, execution_options={"yield_per": 1000}) as result:
        for row in result:
            *values, tx, found = [*row] if kind is None else [*row, kind]
            key = as_key(values) if values else None
            severity, meaning = KINDS[found]
            if found == "no history":
                table, name = plan.parent.fullname, "live row"
            elif key is None:
                table, name = plan.transaction.fullname, f"transaction {tx}"
            else:
                table, name = plan.version.fullname, f"version {tx}"
            of = "" if key is None else f" of {key!r}"
            yield Finding(
                kind=found,
                severity=severity,
                table=table,
                key=key,
                transaction_id=tx,
                message=f"{table}, {name}{of}: {found}: {meaning}",
            )


# -- the laws


def dangling(plan: TablePlan) -> Select[Any]:
    """(keys, transaction) of versions whose transaction is not there."""
    v, transaction = plan.version, plan.transaction
    return select(*plan.keys_of(v), plan.tx_of(v)).where(
        ~exists().where(transaction.c.id == plan.tx_of(v))
    )


def stray(root: TablePlan, part: TablePlan) -> Select[Any]:
    """(keys, transaction) of versions in a table of a hierarchy that the base table lacks."""
    v, base = part.version, root.version
    return select(*part.keys_of(v), part.tx_of(v)).where(
        ~exists().where(same_object(part, v, root, base), root.tx_of(base) == part.tx_of(v))
    )


def broken_chain(work: Upkeep, plan: TablePlan) -> Select[Any]:
    """(keys, transaction, kind) of versions that do not end where the next one starts."""
    v, other = plan.version, plan.version.alias("other")
    next_one = work.neighbour(plan, v, later=True).label("history_next")
    chain = select(*plan.keys_of(v), plan.tx_of(v), plan.end_of(v), next_one).subquery("chain")
    end, following = plan.end_of(chain), chain.c.history_next
    another_is_open = exists().where(
        plan.same_key(other, chain),
        plan.end_of(other).is_(None),
        plan.tx_of(other) != plan.tx_of(chain),
    )
    kind = case(
        (following.is_(None), literal("no open version")),
        (end.is_not(None), literal("wrong end")),
        (another_is_open, literal("two open versions")),
        else_=literal("never closed"),
    )
    return select(*plan.keys_of(chain), plan.tx_of(chain), kind).where(
        end.is_distinct_from(following)
    )


def wrong_now(work: Upkeep, root: TablePlan) -> Select[Any]:
    """(keys, transaction, kind) of live rows that the last version does not agree with."""
    live = root.parent
    any_version, last = root.version.alias(), root.version.alias("last")
    latest = (
        select(func.max(root.tx_of(any_version)))
        .where(root.same_key(any_version, live))
        .correlate(live)
        .scalar_subquery()
    )
    deleted = exists().where(
        root.same_key(last, live),
        latest_of_row(root, root.keys_of(live), root.tx_of(last)),
        root.op_of(last) == Operation.DELETE,
    )
    kind = case(
        (latest.is_(None), literal("no history")),
        (deleted, literal("lives after DELETE")),
        else_=literal("differs from live row"),
    )
    differs = [_differs(work, root, live)]
    for part in root.hierarchy[1:]:
        other = part.parent
        differs.append(
            exists().where(same_object(part, other, root, live), _differs(work, part, other))
        )
    statement = select(*root.keys_of(live), latest, kind).where(
        or_(*differs), work.recorded_rows(root)
    )
    return statement.distinct() if root.association else statement


def gone(work: Upkeep, root: TablePlan) -> Select[Any]:
    """(keys, transaction) of last versions that are no DELETE, and whose row is not there."""
    v, live, later = root.version, root.parent, root.version.alias("later")
    return select(*root.keys_of(v), root.tx_of(v)).where(
        root.op_of(v) != Operation.DELETE,
        ~exists().where(root.same_key(live, v), work.recorded_rows(root)),
        ~exists().where(root.same_key(later, v), root.tx_of(later) > root.tx_of(v)),
    )


def _differs(work: Upkeep, plan: TablePlan, live: FromClause) -> ColumnElement[bool]:
    v = plan.version.alias()
    keys = {column for column, _ in plan.keys}
    dialect = work.connection.dialect
    same = (
        identical(live.c[column.key], v.c[version.key], dialect)
        for column, version in plan.columns
        if column not in keys
    )
    return ~exists().where(
        plan.same_key(v, live),
        latest_of_row(plan, plan.keys_of(live), plan.tx_of(v)),
        plan.op_of(v) != Operation.DELETE,
        and_(true(), *same),
    )
