"""Who notices: what a flush and the rows of association tables change. Nothing is written here.

* ``after_flush`` is given every object that the flush saved or deleted, cascades, orphans and row
  switches included. All attributes (those of ``post_update`` too) have their values by then, and
  nothing has forgotten yet what they were before.
* ``before_execute`` of a watched session's engine sees the rows of association tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import Delete, Insert, Update, exists, select
from sqlalchemy.orm import InstanceState, LoaderCallableStatus

from .keys import KeyFormat
from .operation import Operation
from .plan import ClassPlan, Key, TablePlan, as_key, key_values
from .statement import equalities, inserted_values
from .unit_of_work import Changes, ConnectionUnit, Saved, UnitOfWork


def note_flush(work: UnitOfWork, plans: Mapping[type[Any], ClassPlan], flush_context: Any) -> None:
    """Sort the objects that a flush saved or deleted by connection and class.

    ``flush_context.states`` holds for each object whether it was deleted, and whether it was looked
    at only for its collections. A deleted object that is looked at only so gave its row to a new
    object with the same key: that was an UPDATE.
    """
    found: dict[type[Any], Saved | None] = {}
    in_identity_map = work.session.identity_map.contains_state
    for state, (is_delete, list_only) in flush_context.states.items():
        cls = state.class_
        if cls in found:
            saved = found[cls]
        else:
            plan = plans.get(cls)
            saved = None if plan is None else work.unit_for(plan.mapper, state).saved_of(plan)
            if saved is None or not work.is_sharded:
                found[cls] = saved
        if saved is None:
            continue
        key = state.key
        if list_only:
            if is_delete and key is not None:
                saved.switched.add(as_key(key[1]))
        elif is_delete:
            if key is not None:
                saved.deleted[as_key(key[1])] = state
        elif key is None or (saved.loads and not in_identity_map(state)):
            saved.inserted.append(saved.key_of(state.dict))
        else:
            saved.updated.append(state)


def flushed_keys(
    work: UnitOfWork, plans: Mapping[type[Any], ClassPlan], root: TablePlan
) -> list[Key]:
    """The keys that rows of ``root`` have which the flush under way changes or deletes."""
    in_identity_map = work.session.identity_map.contains_state
    keys: dict[Key, None] = {}
    for state, (is_delete, list_only) in work.flush_context.states.items():
        plan = plans.get(state.class_)
        if plan is not None and plan.root is root and (is_delete or not list_only):
            if state.key is not None and in_identity_map(state):
                keys[as_key(state.key[1])] = None
    return list(keys)


def collect_changes(unit: ConnectionUnit) -> dict[TablePlan, Changes]:
    """What was noted of ``unit``, by table. Empties its notes."""
    changes: dict[TablePlan, Changes] = {}
    returns = unit.connection.dialect.update_returning
    # by table: the new object may be of another class than the deleted one
    switched: dict[TablePlan, set[Key]] = {}
    for plan, saved in unit.saved.items():
        if saved.switched:
            switched.setdefault(plan.root, set()).update(saved.switched)
    for plan, saved in unit.saved.items():
        found = _class_changes(
            plan, saved, switched.get(plan.root, ()), forgets=saved.loads and not returns
        )
        for table in plan.tables if found else ():
            own = found
            if saved.deleted:
                own = dataclasses.replace(
                    found, last_values=_last_values(plan, table, saved.deleted)
                )
            known = changes.get(table)
            changes[table] = own if known is None else known.joined(own)
    unit.saved.clear()
    if unit.located:
        _locate(unit)
    for table, rows in unit.associations.items():
        changes[table] = _association_changes(table, rows)
    unit.associations.clear()
    return {table: found for table, found in changes.items() if found}


def _class_changes(
    plan: ClassPlan, saved: Saved, switched: Collection[Key], *, forgets: bool
) -> Changes:
    """The changes that ``saved`` tells of.

    :param switched: keys of deleted objects whose rows went to new objects.
    :param forgets: values set to SQL expressions were loaded after the UPDATE, and left no trace.
    """
    changes = Changes(inserted=saved.inserted)
    if switched:
        changes.inserted = [key for key in saved.inserted if key not in switched]
        changes.unsure = [key for key in saved.inserted if key in switched]
    for state in saved.updated:
        sure = _is_changed(plan, state)
        if sure is None and not forgets:
            continue
        key = as_key(state.key[1])  # type: ignore[index]
        new = _new_key(plan, state)
        if new is not None and new != key:
            changes.deleted.append(key)
            changes.inserted.append(new)
        elif sure:
            changes.updated.append(key)
        else:
            changes.unsure.append(key)
    changes.deleted += saved.deleted
    changes.combine_repeated()
    return changes


def _is_changed(plan: ClassPlan, state: InstanceState[Any]) -> bool | None:
    """Whether an UPDATE changed something that has a history.

    True: surely; False: the database has to tell, since the old or the new value is not known
    here; None: no.
    """
    committed, values = state.committed_state, state.dict
    unsure = False
    for name, old in committed.items():
        if name in plan.exact and name in values:
            new = values[name]
            if type(old) is type(new):
                if old != new:
                    return True
                continue
            if old is None or (new is None and not isinstance(old, LoaderCallableStatus)):
                return True
        unsure = unsure or name in plan.attributes
    if unsure or (plan.computed and committed):
        return False
    # a value that was set to a SQL expression is expired by now, and its history gone
    if not plan.attributes.isdisjoint(state.expired_attributes):
        return False
    return None


def _new_key(plan: ClassPlan, state: InstanceState[Any]) -> Key | None:
    names = plan.key_attributes
    if state.committed_state.keys().isdisjoint(names) or not state.dict.keys() >= set(names):
        return None
    return plan.key_of(state.dict)


def _last_values(
    plan: ClassPlan, table: TablePlan, gone: Mapping[Key, InstanceState[Any]]
) -> Callable[[Key], Mapping[str, Any]]:
    def last_values(key: Key) -> Mapping[str, Any]:
        state = gone.get(key)
        if state is None:
            return {}
        values = {**state.dict}
        for name, old in state.committed_state.items():
            if not isinstance(old, LoaderCallableStatus):
                values[name] = old
        found = {}
        for column, version in table.columns:
            name = plan.mapper.get_property_by_column(column).key
            if name in values:
                found[version.key] = values[name]
        return found

    return last_values


def _association_changes(plan: TablePlan, rows: Mapping[Key, int | None]) -> Changes:
    changes = Changes()
    groups = {
        Operation.INSERT: changes.inserted,
        Operation.UPDATE: changes.unsure,
        Operation.DELETE: changes.deleted,
    }
    for key, operation in rows.items():
        if operation is not None:
            groups[operation].append(key)
    names = [version.key for _, version in plan.keys]
    changes.last_values = lambda key: dict(zip(names, key_values(key, len(names)), strict=True))
    return changes


# -- association rows


def note_association(
    unit: ConnectionUnit,
    plan: TablePlan,
    statement: Insert | Update | Delete,
    rows: Sequence[Mapping[str, Any]],
) -> bool:
    """Note the rows of an association table that ``statement`` of a flush is about to write.

    False if the statement does not name them.
    """
    if isinstance(statement, Insert):
        if statement.select is not None or statement._post_values_clause is not None:
            return False
        _note_rows(unit, plan, Operation.INSERT, inserted_values(statement, rows))
        return True
    if not isinstance(statement, Delete):
        return False
    found = equalities(statement._where_criteria, rows)
    if found is None or not all(c.key in found[0] for c, _ in plan.keys):
        return False
    _note_rows(unit, plan, Operation.DELETE, found)
    return True


def _note_rows(
    unit: ConnectionUnit, plan: TablePlan, operation: int, rows: Iterable[Mapping[str, Any]]
) -> None:
    key_of = itemgetter(*(column.key for column, _ in plan.keys))
    noted = unit.associations.setdefault(plan, {})
    for values in rows:
        try:
            key = key_of(values)
        except KeyError:
            # a surrogate key, which the database makes: the row is found by its other values
            columns = tuple(c for c in plan.parent.c if c.key in values and c.foreign_keys)
            located = unit.located.setdefault((plan, columns), [])
            located.append(as_key(values[c.key] for c in columns))
            continue
        before = noted.get(key)
        if before is None:
            noted[key] = operation
        elif operation == Operation.DELETE:
            noted[key] = None if before == Operation.INSERT else Operation.DELETE
        elif before != Operation.INSERT:
            noted[key] = Operation.UPDATE


def _locate(unit: ConnectionUnit) -> None:
    """Find the keys of association rows that the database made."""
    for (plan, columns), wanted in unit.located.items():
        noted = unit.associations.setdefault(plan, {})
        v = plan.version
        format_ = KeyFormat(unit.connection.dialect, columns)
        statement = select(*(column for column, _ in plan.keys)).where(
            format_.many(columns, "wanted"),
            ~exists().where(
                plan.same_key(v, plan.parent),
                plan.strategy.is_open(plan, v),
                plan.op_of(v) != Operation.DELETE,
            ),
        )
        for portion in format_.portions(list(dict.fromkeys(wanted))):
            found = unit.connection.execute(statement, format_.many_parameters(portion, "wanted"))
            for key in found:
                noted[as_key(key)] = Operation.INSERT
    unit.located.clear()
