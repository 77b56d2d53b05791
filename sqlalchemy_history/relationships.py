"""Relationships between version classes: real ``relationship(viewonly=True)``s that know the time.

The join of a version relationship is the model's own join, told about version tables, and the
condition that the target was live at a moment: by default the version's own transaction, within
an ``as_of()`` statement the moment that it asks for (the parameter ``as_of_moment``). As they are
real relationships, they can be loaded lazily or eagerly, joined, and asked ``any()`` and ``has()``.

For a many-to-many relationship the condition holds for the association version and for the target.
That of the target stands on an alias inside ``secondary``: a condition on the target itself could
not be loaded by ``joinedload()``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import BigInteger, Column, ColumnElement, Table, and_, bindparam, func, join
from sqlalchemy.ext.associationproxy import AssociationProxyExtensionType, association_proxy
from sqlalchemy.orm import RelationshipProperty, foreign, relationship, remote
from sqlalchemy.sql import visitors

from .plan import MOMENT, ClassPlan, TablePlan, class_plan, table_plan

Replace = Callable[[Column[Any]], Any]


class _MarkedColumns:
    def __init__(self, table: Any, mark: Callable[[Any], Any]) -> None:
        self.c = {column.key: mark(column) for column in table.c}


def _marked(table: Any, mark: Callable[[Any], Any]) -> Any:
    """What stands for a version table where marked columns are meant."""
    return _MarkedColumns(table, mark)


def add_relationships(plan: ClassPlan) -> None:
    """Give the version class of ``plan`` what relationships the model has and it has not yet."""
    cls: Any = plan.version_class
    hidden = plan.options.exclude - plan.options.include
    for prop in plan.mapper.relationships:
        if prop.key in hidden or prop.key == "versions" or cls.__mapper__.has_property(prop.key):
            continue
        made = _relationship(plan, prop)
        if made is not None:
            cls.__mapper__.add_property(prop.key, made)
    for name, descriptor in plan.mapper.all_orm_descriptors.items():
        proxy: Any = descriptor
        is_proxy = descriptor.extension_type is AssociationProxyExtensionType.ASSOCIATION_PROXY
        if (
            is_proxy
            and name not in cls.__dict__
            and cls.__mapper__.has_property(proxy.target_collection)
        ):
            setattr(cls, name, association_proxy(proxy.target_collection, proxy.value_attr))


def _relationship(plan: ClassPlan, prop: RelationshipProperty[Any]) -> Any:
    target = class_plan(prop.mapper.class_)
    versioned = target is not None and target.version_class is not None
    goal: Any = target.version_class if versioned else prop.mapper.class_  # type: ignore[union-attr]
    try:
        if prop.secondary is None:
            joins = _direct(plan, prop, target if versioned else None)
        else:
            joins = _by_association(plan, prop, target if versioned else None)
    except _NoHistory:
        return None
    lazy = prop.lazy if prop.lazy in ("dynamic", "write_only") else "select"
    options: dict[str, Any] = {"lazy": lazy}
    to_version = joins.pop("to_version")
    if prop.order_by:
        options["order_by"] = [_adapt(clause, to_version) for clause in prop.order_by]
    elif prop.uselist and versioned:
        # versions lie in the order in which they were made; rows are commonly read by their keys
        options["order_by"] = [version for _, version in target.root.keys]  # type: ignore[union-attr]
    if prop.collection_class is not None and lazy == "select":
        options["collection_class"] = prop.collection_class
    return relationship(goal, viewonly=True, uselist=prop.uselist, **joins, **options)


class _NoHistory(Exception):
    """A column that the relationship joins by has no history."""


def _version_of(column: Column[Any]) -> Column[Any]:
    """The version column of a live column."""
    table: Any = column.table
    plan = table_plan(table) if isinstance(table, Table) else None
    if plan is not None:
        for live, version in plan.columns:
            if live is column:
                return version
    raise _NoHistory(column)


def _moment(plan: ClassPlan) -> ColumnElement[Any]:
    return func.coalesce(bindparam(MOMENT, None, type_=BigInteger), plan.root.tx)


def _is(element: Any, mark: str) -> bool:
    return mark in element._annotations


def _plain(element: Any) -> Column[Any]:
    column: Any = element._deannotate() if element._annotations else element
    plain: Column[Any] = column.table.c[column.key] if isinstance(column.table, Table) else column
    return plain


def _direct(
    plan: ClassPlan, prop: RelationshipProperty[Any], target: ClassPlan | None
) -> dict[str, Any]:
    def replace(element: Any, **kw: Any) -> Any:
        if not isinstance(element, Column) and not hasattr(element, "table"):
            return None
        if getattr(element, "table", None) is None or not isinstance(element.table, Table):
            return None
        column = _plain(element)
        if _is(element, "remote"):
            return foreign(remote(column if target is None else _version_of(column)))
        return _version_of(column)

    primaryjoin = visitors.replacement_traverse(prop.primaryjoin, {}, replace)
    if target is None:
        return {"primaryjoin": primaryjoin, "to_version": _identity}
    at = _marked(target.root.version, remote)
    live = target.root.strategy.was_live(target.root, at, _moment(plan))
    return {"primaryjoin": and_(primaryjoin, live), "to_version": _to_version}


def _by_association(plan: ClassPlan, prop: Any, target: ClassPlan | None) -> dict[str, Any]:
    association = table_plan(prop.secondary) if isinstance(prop.secondary, Table) else None
    if association is None:
        raise _NoHistory(prop.secondary)
    links = association.version
    moment = _moment(plan)
    linked = association.strategy.was_live(association, _marked(links, foreign), moment)

    def link_or_local(element: Any, **kw: Any) -> Any:
        if not isinstance(getattr(element, "table", None), Table):
            return None
        column = _plain(element)
        if column.table is prop.secondary:
            return foreign(_version_of(column))
        return _version_of(column)

    primaryjoin = and_(visitors.replacement_traverse(prop.primaryjoin, {}, link_or_local), linked)
    if target is None:

        def link_or_target(element: Any, **kw: Any) -> Any:
            if not isinstance(getattr(element, "table", None), Table):
                return None
            column = _plain(element)
            return foreign(_version_of(column)) if column.table is prop.secondary else column

        return {
            "secondary": links,
            "primaryjoin": primaryjoin,
            "secondaryjoin": visitors.replacement_traverse(prop.secondaryjoin, {}, link_or_target),
            "to_version": _to_version,
        }
    part = _part_joined(prop, target)
    then = part.version.alias()

    def on_alias(element: Any, **kw: Any) -> Any:
        if not isinstance(getattr(element, "table", None), Table):
            return None
        column = _plain(element)
        version = _version_of(column)
        return version if column.table is prop.secondary else then.c[version.key]

    on = visitors.replacement_traverse(prop.secondaryjoin, {}, on_alias)
    was_live = part.strategy.was_live(part, _marked(then, foreign), moment)
    same = [
        foreign(a) == b for a, b in zip(part.keys_of(then), part.keys_of(part.version), strict=True)
    ]
    return {
        "secondary": join(links, then, on),
        "primaryjoin": and_(primaryjoin, was_live),
        "secondaryjoin": and_(*same, foreign(part.tx_of(then)) == part.tx),
        "to_version": _to_version,
    }


def _part_joined(prop: Any, target: ClassPlan) -> TablePlan:
    """The plan of the target's table that the association table refers to."""
    for element in visitors.iterate(prop.secondaryjoin):
        table = getattr(element, "table", None)
        if isinstance(table, Table):
            for plan in target.tables:
                if plan.parent is _plain(element).table:
                    return plan
    return target.root


def _to_version(element: Any, **kw: Any) -> Any:
    if not isinstance(getattr(element, "table", None), Table):
        return None
    return _version_of(_plain(element))


def _identity(element: Any, **kw: Any) -> Any:
    return None


def _adapt(clause: Any, replace: Any) -> Any:
    return visitors.replacement_traverse(clause, {}, replace)
