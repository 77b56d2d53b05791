"""What relations were, and what taking them back leads to: plain Python on states of tables.

Knows neither SQLAlchemy nor the library that it judges. :func:`revert` says what becomes of the
rows when an object, with relations around it, goes back to an earlier state; :func:`undo` says it
for all that a transaction did.

>>> comments = Relation("comment", "many", "comment", "article_id", "id", orphans_go=True)
>>> then = {"article": {(1,): {"id": 1}}, "comment": {(1,): {"id": 1, "article_id": 1}}}
>>> now = {"article": {(1,): {"id": 1}}, "comment": {(2,): {"id": 2, "article_id": 1}}}
>>> schema = Schema([("article",), ("comment",)], {"article": {"comments": comments}})
>>> outcome = revert(schema, then, now, "article", (1,), {"comments": {}})
>>> outcome.rows["comment", (1,)], outcome.deleted
({'id': 1, 'article_id': 1}, [('comment', (2,))])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .model import Key, Row, State

__all__ = ["Outcome", "Relation", "Schema", "Tree", "revert", "undo"]

#: names of relations to take back, each with those of its targets
Tree = Mapping[str, "Tree"]


@dataclass(frozen=True)
class Relation:
    """Rows of ``table`` lead from the owner's key in ``own`` to the target's in ``other``.

    ``how``: ``"one"`` (the owner's row refers), ``"many"`` (the targets' rows do) or ``"links"``.
    """

    target: str
    how: str
    table: str
    own: str
    other: str
    orphans_go: bool = False
    """A target that is taken out is deleted."""
    key: str = "id"
    """The owner's column that ``own`` refers to."""

    def keys(self, row: Row, state: State) -> list[Key]:
        """The keys of the targets of the owner with this row, which itself may be gone."""
        rows = state[self.table].values()
        values = {one[self.other] for one in rows if one[self.own] == row[self.key]}
        if self.how == "one":
            values = {row[self.other]}
        return sorted((value,) for value in values if (value,) in state[self.target])


class Schema:
    """Entities as the model has them, and relations by base table of the owner and by name."""

    def __init__(
        self,
        entities: Iterable[tuple[str, ...]],
        relations: Mapping[str, Mapping[str, Relation]],
    ) -> None:
        self.parts = {entity[0]: entity for entity in entities}
        self.relations = relations
        found = [one for those in relations.values() for one in those.values()]
        #: table of links -> the relations that it makes
        self.links = {
            table: [one for one in found if one.table == table]
            for table in {one.table for one in found if one.how == "links"}
        }

    def row(self, state: State, table: str, key: Key) -> dict[tuple[str, str], Any] | None:
        """An object's row, of all of its tables; ``None`` if there is none."""
        if key not in state[table]:
            return None
        return {
            (part, name): value
            for part in self.parts[table]
            for name, value in state[part].get(key, {}).items()
        }

    def uses(self, now: State, outcome: Outcome, table: str, key: Key, relation: Relation) -> bool:
        """Whether rows that the outcome leaves alone refer to an object."""
        for (other,) in relation.keys(now[table][key], now):
            link = {relation.own: key[0], relation.other: other}
            target = relation.target, (other,)
            done = (relation.table, link) in outcome.unlinked
            if relation.how == "many":
                done = target in outcome.deleted or target in outcome.rows
            if relation.how != "one" and not done:
                return True
        return False


@dataclass
class Outcome:
    """What must be done to the rows that there are now."""

    rows: dict[tuple[str, Key], dict[str, Any]] = field(default_factory=dict)
    """Values to be set; rows that are not there are to be made."""
    deleted: list[tuple[str, Key]] = field(default_factory=list)
    """Objects, by base table."""
    linked: list[tuple[str, Row]] = field(default_factory=list)
    unlinked: list[tuple[str, Row]] = field(default_factory=list)
    conflict: bool = False
    """Something was changed since."""


def revert(schema: Schema, then: State, now: State, table: str, key: Key, tree: Tree) -> Outcome:
    """An object goes back to what it was ``then``, with its targets in the relations of ``tree``.

    Targets of links get their values only if they are gone; others with their owner. What no
    target ``then`` was, is taken out; and what is gone now cannot be referred to.
    """
    outcome = Outcome()
    cleared: dict[tuple[str, Key], dict[str, Any]] = {}
    references: dict[tuple[str, Key], dict[str, Any]] = {}

    def restore(table: str, key: Key, tree: Tree, values: bool) -> None:
        if values or key not in now[table]:
            for part in schema.parts[table]:
                if key in then[part]:
                    outcome.rows[part, key] = dict(then[part][key])
        row, present = then[table][key], now[table].get(key)
        for name, below in tree.items():
            relation = schema.relations[table][name]
            wanted = relation.keys(row, then)
            there = [] if present is None else relation.keys(present, now)
            for target in wanted:
                restore(relation.target, target, below, relation.how != "links")
            for target in sorted({*wanted} ^ {*there}):
                link = {relation.own: key[0], relation.other: target[0]}
                if relation.how == "links":
                    changed = outcome.linked if target in wanted else outcome.unlinked
                    changed.append((relation.table, link))
                elif relation.how == "many" and target not in wanted and relation.orphans_go:
                    outcome.deleted.append((relation.target, target))
                elif relation.how == "many" and target not in wanted:
                    cleared.setdefault((relation.table, target), {})[relation.own] = None
            if relation.how == "one":
                value = row[relation.other]
                lost = not wanted and (value,) not in now[relation.target]
                references.setdefault((table, key), {})[relation.other] = None if lost else value

    restore(table, key, tree, True)
    for place, values in references.items():
        outcome.rows.setdefault(place, {}).update(values)
    for place, values in cleared.items():
        outcome.rows[place] = {**values, **outcome.rows.get(place, {})}
    outcome.deleted = [place for place in outcome.deleted if place not in outcome.rows]
    return outcome


def undo(schema: Schema, before: State, after: State, now: State) -> Outcome:
    """What a transaction did between ``before`` and ``after`` is undone."""
    outcome = Outcome()
    for table, parts in schema.parts.items():
        if table in schema.links:
            continue
        for key in sorted({*before[table]} | {*after[table]}):
            old, new, present = (schema.row(state, table, key) for state in (before, after, now))
            if old == new or (old is None and present is None):
                continue
            if old is None:
                outcome.conflict |= present != new
                outcome.deleted.append((table, key))
                continue
            changed = set(old)
            if present is None:
                outcome.conflict |= new is not None
            elif new is None:
                outcome.conflict |= present != old
            else:
                changed = {name for name in old if new[name] != old[name] != present[name]}
                outcome.conflict |= any(present[name] != new[name] for name in changed)
            for part in parts:
                values = {name: old[part, name] for of, name in changed if of == part}
                if values:
                    outcome.rows[part, key] = values
    for table, (relation, *others) in schema.links.items():
        ends = {one.other: one.target for one in (relation, *others)}
        pairs = [_pairs(relation, state[table].values()) for state in (before, after, now)]
        for pair in sorted(pairs[0] ^ pairs[1]):
            made = pair in pairs[1]
            link = dict(zip((relation.own, relation.other), pair, strict=True))
            cut_off = not made and not all(
                (value,) in now[ends[name]] or (ends[name], (value,)) in outcome.rows
                for name, value in link.items()
            )
            outcome.conflict |= cut_off
            if made == (pair in pairs[2]) and not cut_off:
                (outcome.unlinked if made else outcome.linked).append((table, link))
    outcome.conflict |= any(
        schema.uses(now, outcome, table, key, relation)
        for table, key in outcome.deleted
        for relation in schema.relations.get(table, {}).values()
    )
    return outcome


def _pairs(relation: Relation, rows: Iterable[Row]) -> set[tuple[Any, Any]]:
    return {(row[relation.own], row[relation.other]) for row in rows}
