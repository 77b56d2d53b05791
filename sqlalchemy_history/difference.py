"""What is shown of differences: changes of attributes and relations, and the whole of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState


def shown(value: Any) -> str:
    """``repr()``; of a live object, whose own may ask the database, the class and the key."""
    if type(value) is tuple:
        return f"({', '.join(map(shown, value))}{',' * (len(value) == 1)})"
    state: Any = inspect(value, raiseerr=False)
    if not isinstance(state, InstanceState) or hasattr(value, "__version_plan__"):
        return repr(value)
    mapper = state.mapper
    names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    known = dict(zip(names, state.identity or (None,) * len(names), strict=True)) | state.dict
    return f"{type(value).__name__}({', '.join(f'{name}={known[name]!r}' for name in names)})"


class Told:
    """A dataclass whose ``repr()`` shows live objects by class and key."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __repr__(self) -> str:
        names = (field.name for field in dataclasses.fields(self))
        values = (f"{name}={shown(getattr(self, name))}" for name in names)
        return f"{type(self).__name__}({', '.join(values)})"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class AttributeChange(Told):
    """One attribute with its value before and after.

    :ivar name: the name of the attribute.
    :ivar old: the value before.
    :ivar new: the value now.
    """

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {shown(self.old)} -> {shown(self.new)}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class RelationChange(Told):
    """One relation: what came, what went, and what is still there but differs.

    :ivar name: the name of the relationship.
    :ivar added: what is related now and was not before.
    :ivar removed: what was related before and is not now.
    :ivar changed: a :class:`Diff` for each object that is related in both states, and differs.
    """

    name: str
    added: tuple[Any, ...] = ()
    removed: tuple[Any, ...] = ()
    changed: tuple[Diff, ...] = ()

    def __str__(self) -> str:
        lines = [
            *(f"{self.name}: - {shown(obj)}" for obj in self.removed),
            *(f"{self.name}: + {shown(obj)}" for obj in self.added),
        ]
        for change in self.changed:
            lines.append(f"{self.name}: {shown(change.newer)}")
            lines.extend(f"    {line}" for line in str(change).splitlines())
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Diff(Told):
    """The differences between two states, in the order of the attributes.

    It can be printed and iterated over. ``diff["name"]`` is the change of one attribute or relation,
    and a KeyError if that has none; ``"name" in diff`` asks. A diff without changes is false.

    :ivar older: the first state: a version or a live object.
    :ivar newer: the second one.
    :ivar attributes: the attributes that differ.
    :ivar relations: the relations that differ, of those that were asked for.
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
