"""What is shown of differences: changes of attributes and relations, and the whole of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class AttributeChange:
    """One attribute with its value before and after."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.old!r} -> {self.new!r}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RelationChange:
    """One relation: what came, what went, and what is there still but differs."""

    name: str
    added: tuple[Any, ...] = ()
    removed: tuple[Any, ...] = ()
    changed: tuple[Diff, ...] = ()

    def __str__(self) -> str:
        lines = [
            *(f"{self.name}: - {obj!r}" for obj in self.removed),
            *(f"{self.name}: + {obj!r}" for obj in self.added),
        ]
        for change in self.changed:
            lines.append(f"{self.name}: {change.newer!r}")
            lines.extend(f"    {line}" for line in str(change).splitlines())
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Diff:
    """The differences between two states, in the order of the attributes.

    Iterate over it, look a change up by the name of its attribute or relation, print it, or ask
    whether there is any: an empty one is false.
    """

    older: Any
    newer: Any
    attributes: tuple[AttributeChange, ...]
    relations: tuple[RelationChange, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.attributes or self.relations)

    def __iter__(self) -> Iterator[AttributeChange | RelationChange]:
        yield from self.attributes
        yield from self.relations

    def __getitem__(self, name: str) -> AttributeChange | RelationChange:
        for change in self:
            if change.name == name:
                return change
        raise KeyError(name)

    def __contains__(self, name: object) -> bool:
        return any(change.name == name for change in self)

    def __str__(self) -> str:
        return "\n".join(str(change) for change in self)
