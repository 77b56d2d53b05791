"""Unique values that change hands among rows that one flush writes.

A flush writes one row after the other, so a value that a row is to get has to be free by then,
though the row that has it may be written later, or deleted last of all. Such rows are parked: they
get a value that nobody else has until the flush gives them theirs.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import Integer, String, Table, null, update
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import History
from sqlalchemy.orm.base import PASSIVE_NO_FETCH

from .plan import UNSEEN, table_plan
from .schema import unique_columns

#: by state the values that an object is to get; None if it is to be deleted
Expected = dict[Any, "dict[str, Any] | None"]


def in_the_way(
    session: Session, actions: dict[Any, str], expected: Expected
) -> Iterator[tuple[Any, list[str]]]:
    """Rows whose unique values others are to get, in the order that a flush works in.

    Neither a swap nor a deletion is done before the row that takes the value is written.
    """
    alive = [s for s in {**actions, **expected} if s is not None and s.session is session]
    for mapper in {state.mapper for state in alive}:
        group = [s for s in alive if s.mapper.base_mapper is mapper.base_mapper]
        for names in _unique_names(mapper):
            held: dict[Any, Any] = {}
            taken: dict[Any, Any] = {}
            for state in group:
                if not all(name in state.mapper.attrs for name in names):
                    continue
                old, new = _values(state, names, expected.get(state))
                gone = actions.get(state) == "deleted" or expected.get(state, {}) is None
                if state.persistent and (gone or old != new):
                    held[old] = state
                if not gone and (not state.persistent or old != new):
                    taken[new] = state
            for value, state in held.items():
                if None not in value and taken.get(value, state) is not state:
                    yield state, names


def _unique_names(mapper: Mapper[Any]) -> Iterator[list[str]]:
    for table in (table for table in mapper.tables if isinstance(table, Table)):
        for columns in unique_columns(table):
            if all(column in mapper._columntoproperty for column in columns):
                yield [mapper.get_property_by_column(column).key for column in columns]


def _values(
    state: Any, names: Iterable[str], expected: Mapping[str, Any] | None
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The values before and after what is not flushed yet, or not even set."""
    old, new = [], []
    for name in names:
        history: History = state.get_history(name, PASSIVE_NO_FETCH)
        before = history.deleted or history.unchanged or (None,)
        old.append(before[0])
        value = (history.added or history.unchanged or (None,))[0]
        new.append((expected or {}).get(name, value))
    return tuple(old), tuple(new)


def park(session: Session, actions: dict[Any, str], expected: Expected) -> None:
    """Free the unique values that change hands: the rows get others until the flush sets them."""
    for state, names in list(in_the_way(session, actions, expected)):
        for name in names:
            column = state.mapper.attrs[name].columns[0]
            plan = table_plan(column.table)
            value = _stand_in(column)
            if plan is not None and value is not None:
                keys = zip(plan.keys_of(column.table), state.key[1], strict=True)
                connection = session.connection(bind_arguments={"mapper": state.mapper})
                connection.execute(
                    update(column.table)
                    .where(*(key == value for key, value in keys))
                    .values({column: value}),
                    # triggers see it, and are to be told whose transaction it belongs to
                    execution_options={} if plan.options.native_versioning else {UNSEEN: True},
                )
                break


def _stand_in(column: Any) -> Any:
    """A value that no other row is likely to have; None if there is no telling."""
    if column.nullable:
        return null()
    if column.primary_key or column.foreign_keys:
        return None
    if isinstance(column.type, Integer):
        return -column - 1
    if isinstance(column.type, String):
        return uuid.uuid4().hex[: column.type.length]
    return None
