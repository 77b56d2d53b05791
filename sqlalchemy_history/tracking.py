"""Versions of a parent because one of its collections changed: the option ``track_relations``.

What counts is the collection as a set: an element more or less. It is told from the versions that
were just written, of the elements or of the association rows, so it does not matter whether a
collection, a foreign key, a bulk statement or a cascade made the change.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    FromClause,
    Select,
    Table,
    and_,
    exists,
    func,
    or_,
    select,
)
from sqlalchemy.orm import Mapper, RelationshipDirection, RelationshipProperty

from .config import nearest
from .exc import ImproperlyConfigured
from .operation import Operation
from .plan import ClassPlan, Key, TablePlan, as_key, table_plan
from .unit_of_work import Amendment, Changes, ConnectionUnit
from .write import TX, TransactionRow, Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    Tables = Mapping[TablePlan, Sequence[Key] | None]


class Tracked(NamedTuple):
    """One collection: rows of ``child`` belong to the row of ``parent`` that ``pairs`` name.

    :ivar pairs: (column of the parent's table, version column of the child's).
    """

    parent: TablePlan
    child: TablePlan
    pairs: tuple[tuple[Column[Any], Column[Any]], ...]


def find_tracked(plans: Iterable[ClassPlan]) -> list[Tracked]:
    """The collections that ``track_relations`` names.

    :raises ImproperlyConfigured: for a name that is no collection of versioned elements.
    """
    return [
        _tracked(plan, name)
        for plan in plans
        for name in sorted(plan.options.track_relations)
        if not _is_inherited(plan, name)
    ]


def _is_inherited(plan: ClassPlan, name: str) -> bool:
    upper = plan.mapper.inherits
    return upper is not None and not plan.mapper.concrete and upper.has_property(name)


def _tracked(plan: ClassPlan, name: str) -> Tracked:
    cls = plan.mapper.class_.__name__
    relations = plan.mapper.relationships
    if name not in relations:
        raise ImproperlyConfigured(
            f"{cls}.__versioned__: track_relations names {name!r}, which is no relationship of the "
            f"class; {nearest(name, relations.keys())}"
        )
    prop: RelationshipProperty[Any] = relations[name]
    if not prop.uselist:
        raise ImproperlyConfigured(
            f"{cls}.__versioned__: track_relations names {name!r}, which is no collection; a "
            f"many-to-one is a column of {cls} and needs no tracking"
        )
    if prop.direction is RelationshipDirection.MANYTOMANY:
        table, pairs = prop.secondary, prop.synchronize_pairs
    else:
        target: Mapper[Any] = prop.mapper
        table, pairs = pairs_table(prop, target), prop.local_remote_pairs or []
    child = table_plan(table) if isinstance(table, Table) else None
    if child is None:
        raise ImproperlyConfigured(
            f"{cls}.__versioned__: track_relations names {name!r}, whose elements have no history; "
            f"give {prop.mapper.class_.__name__} a __versioned__ = {{}}"
        )
    versions: dict[Any, Column[Any]] = dict(child.columns)
    owner = next(t for t in plan.tables if all(local.table is t.parent for local, _ in pairs))
    return Tracked(
        parent=owner,
        child=child,
        pairs=tuple((local, versions[remote]) for local, remote in pairs),  # type: ignore[misc]
    )


def pairs_table(prop: RelationshipProperty[Any], target: Mapper[Any]) -> Any:
    """The table of ``target`` that holds the foreign key of a one-to-many relationship."""
    pairs = prop.local_remote_pairs or []
    return pairs[0][1].table if pairs else target.local_table


def is_previous(plan: TablePlan, before: FromClause) -> ColumnElement[bool]:
    """``before`` is the version that this transaction's version of the same row follows."""
    if plan.strategy.has_end:
        return plan.end_of(before) == TX
    latest = plan.version.alias("versions_before")
    newest = (
        select(*plan.keys_of(latest), func.max(plan.tx_of(latest)).label("newest"))
        .where(plan.tx_of(latest) < TX)
        .group_by(*plan.keys_of(latest))
        .subquery("newest_before")
    )
    same = plan.same_key(newest, before)
    return exists().where(same, plan.tx_of(before) == newest.c.newest)


def write_parents(
    writer: Writer,
    unit: ConnectionUnit,
    tracked: Iterable[Tracked],
    tables: Tables,
    amended: bool,
    new_row: Callable[[], TransactionRow],
) -> dict[TablePlan, Sequence[Key]]:
    """Give the parents of collections that changed a version, where they have none yet.

    Returns what was written, or taken back, by table.
    """
    written: dict[TablePlan, Sequence[Key]] = {}
    if unit.tx is None:
        return written
    for one in tracked:
        of_child, of_parent = one.child in tables, one.parent in tables and amended
        if not (of_child or of_parent):
            continue
        statement = writer.built(("tracked", one), functools.partial(_changed_parents, one))
        rows = unit.connection.execute(statement, {"history__tx": unit.tx}).all()
        keep = {as_key(row[:-1]) for row in rows}
        changed = [as_key(row[:-1]) for row in rows if not row[-1]]
        hierarchy = one.parent.hierarchy
        if changed:
            # their rows do not change, so nobody waits for us there
            writer.lock(unit, hierarchy[0], changed)
            changes = Changes(updated=changed)
            writer.write(unit, dict.fromkeys(hierarchy, changes), new_row)
        elif of_child and amended:
            own = select(*one.parent.keys_of(one.parent.version)).where(
                one.parent.tx == unit.tx, one.parent.op == Operation.UPDATE
            )
            settle = [k for row in unit.connection.execute(own) if (k := as_key(row)) not in keep]
            if settle and writer.settle(unit, {one.parent: Amendment(settle=settle)}):
                writer.forget_empty_transaction(unit)
                changed = settle
        if changed:
            written.update(dict.fromkeys(hierarchy, changed))
    return written


def _changed_parents(one: Tracked) -> Select[Any]:
    """Keys of live parents whose collection changed, and whether they have a version by now."""
    plan, child = one.parent, one.child
    live = plan.parent
    own, before = child.version.alias("own"), child.version.alias("before")

    def belongs(v: FromClause) -> ColumnElement[bool]:
        return and_(*(local == v.c[remote.key] for local, remote in one.pairs))

    def same_parent(a: FromClause, b: FromClause) -> ColumnElement[bool]:
        return and_(*(a.c[r.key].is_not_distinct_from(b.c[r.key]) for _, r in one.pairs))

    is_own = child.tx_of(own) == TX
    stayed = exists().where(
        child.same_key(before, own),
        is_previous(child, before),
        child.op_of(before) != Operation.DELETE,
        same_parent(before, own),
    )
    came_or_went = exists().where(
        belongs(own), is_own, or_(child.op_of(own) != Operation.UPDATE, ~stayed)
    )
    left = exists().where(
        belongs(before),
        is_previous(child, before),
        child.op_of(before) != Operation.DELETE,
        child.same_key(own, before),
        is_own,
        ~same_parent(own, before),
    )
    mine = plan.version.alias("mine")
    has_version = exists().where(plan.same_key(mine, live), plan.tx_of(mine) == TX)
    return select(*plan.keys_of(live), has_version.label("has_version")).where(
        or_(came_or_went, left)
    )
