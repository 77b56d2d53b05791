"""Which foreign keys change other tables when rows go or change their keys, from the metadata."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Column, Table

from .plan import TablePlan

_ACTIONS = ("CASCADE", "SET NULL", "SET DEFAULT")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A foreign key: ``pairs`` of (column of ``child``, column that it refers to)."""

    child: Table
    pairs: tuple[tuple[Column[Any], Column[Any]], ...]
    on_delete: str
    on_update: str


class Cascades:
    """The foreign keys by which a change of one table changes a versioned one.

    :param plan_of: the plan of a table, None of one that has no history.
    """

    def __init__(self, plan_of: Callable[[Any], TablePlan | None]) -> None:
        self.plan_of = plan_of
        self._found: dict[tuple[Table, str], tuple[int, list[Reference]]] = {}

    def of(self, table: Any, what: str) -> list[Reference]:
        """The references to ``table`` by which a change of its rows reaches history.

        :param what: ``"on_delete"`` or ``"on_update"``.
        """
        if not isinstance(table, Table):
            return []
        count = len(table.metadata.tables)
        known = self._found.get((table, what))
        if known is None or known[0] != count:
            found = [r for r in references(table, what) if self._reaches(r, what, {table})]
            known = self._found[table, what] = count, found
        return known[1]

    def _reaches(self, reference: Reference, what: str, seen: set[Table]) -> bool:
        child = reference.child
        if self.plan_of(child) is not None:
            return True
        if getattr(reference, what) != "CASCADE" or child in seen:
            return False
        return any(self._reaches(r, what, seen | {child}) for r in references(child, what))

    def forget(self) -> None:
        """Tables have changed."""
        self._found.clear()


def references(table: Table, what: str) -> Iterable[Reference]:
    """The foreign keys to ``table`` that do something ``what``: ``"on_delete"`` or ``"on_update"``."""
    # in an order that the names alone tell: what triggers do is compared with what they should do
    for _, child in sorted(table.metadata.tables.items()):
        for constraint in sorted(child.foreign_key_constraints, key=lambda one: [*one.column_keys]):
            actions = {
                "on_delete": (constraint.ondelete or "").upper(),
                "on_update": (constraint.onupdate or "").upper(),
            }
            if actions[what] in _ACTIONS and constraint.referred_table is table:
                pairs = tuple((fk.parent, fk.column) for fk in constraint.elements)
                yield Reference(child=child, pairs=pairs, **actions)
