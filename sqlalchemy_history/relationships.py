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

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, cast

from sqlalchemy import (
    Alias,
    BigInteger,
    Column,
    ColumnElement,
    Select,
    Table,
    and_,
    bindparam,
    func,
    join,
)
from sqlalchemy.orm import (
    Mapper,
    RelationshipProperty,
    column_keyed_dict,
    foreign,
    relationship,
    remote,
)
from sqlalchemy.sql import visitors
from sqlalchemy.sql.selectable import Join

from .plan import MOMENT, ClassPlan, TablePlan, class_plan, table_plan

#: what stands in a clause about versions for a column of the model: given the annotated one as well
Replace = Callable[[Any, Column[Any]], Any]


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
        with suppress(NoHistory):
            cls.__mapper__.add_property(prop.key, _relationship(plan, prop))
    for name, proxy in association_proxies(plan.mapper).items():
        if name not in cls.__dict__ and cls.__mapper__.has_property(proxy.target_collection):
            setattr(cls, name, proxy)


def association_proxies(mapper: Mapper[Any]) -> dict[str, Any]:
    """The association proxies of a class by name."""
    # told by name: SQLAlchemy's extension is not imported for those who have none
    return {
        name: descriptor
        for name, descriptor in mapper.all_orm_descriptors.items()
        if descriptor.extension_type.name == "ASSOCIATION_PROXY"
    }


def _relationship(plan: ClassPlan, prop: RelationshipProperty[Any]) -> Any:
    target = class_plan(prop.mapper.class_)
    versioned = target is not None and target.version_class is not None
    goal: Any = target.version_class if versioned else prop.mapper.class_  # type: ignore[union-attr]
    join_by = _direct if prop.secondary is None else _by_association
    joins = join_by(plan, prop, target if versioned else None)
    lazy = prop.lazy if prop.lazy in ("dynamic", "write_only") else "select"
    options: dict[str, Any] = {"lazy": lazy}
    if prop.order_by:
        options["order_by"] = list(_order(prop, versioned))
    elif prop.uselist and versioned:
        # versions lie in the order in which they were made; rows are commonly read by their keys
        options["order_by"] = [version for _, version in target.root.keys]  # type: ignore[union-attr]
    if prop.collection_class is not None and lazy == "select":
        options["collection_class"] = _collection_class(prop)
    return relationship(goal, viewonly=True, uselist=prop.uselist, **joins, **options)


def _collection_class(prop: RelationshipProperty[Any]) -> Any:
    """The collection class of the model; a dictionary with a column for its key needs another."""
    factory: Any = prop.collection_class
    columns = getattr(getattr(factory(), "keyfunc", None), "cols", None)
    keys: Any = [_version_of(column) for column in columns or ()]
    return column_keyed_dict(keys) if keys else factory


class NoHistory(Exception):
    """A column that a relationship or an expression needs has no history."""


def _version_of(column: Column[Any]) -> Column[Any]:
    """The version column of a live column."""
    table: Any = column.table
    plan = table_plan(table) if isinstance(table, Table) else None
    if plan is not None:
        for live, version in plan.columns:
            if live is column:
                return version
    raise NoHistory(column)


def _moment(plan: ClassPlan) -> ColumnElement[Any]:
    return func.coalesce(bindparam(MOMENT, None, type_=BigInteger), plan.root.tx)


def _plain(element: Any) -> Column[Any]:
    column: Any = element._deannotate() if element._annotations else element
    plain: Column[Any] = column.table.c[column.key] if isinstance(column.table, Table) else column
    return plain


def _translate(clause: Any, replace: Replace) -> Any:
    """``clause`` with what ``replace`` gives for each column of a table."""

    def of_table(element: Any, **kw: Any) -> Any:
        if not isinstance(getattr(element, "table", None), Table):
            return None
        return replace(element, _plain(element))

    return visitors.replacement_traverse(clause, {}, of_table)


def _order(prop: RelationshipProperty[Any], versioned: bool) -> Iterator[Any]:
    """How the relationship is ordered, as far as that has a history."""

    def then(element: Any, column: Column[Any]) -> Any:
        is_live = not versioned and column.table is not prop.secondary
        return column if is_live else _version_of(column)

    for clause in prop.order_by or ():
        with suppress(NoHistory):
            yield _translate(clause, then)


def _direct(
    plan: ClassPlan, prop: RelationshipProperty[Any], target: ClassPlan | None
) -> dict[str, Any]:
    def then(element: Any, column: Column[Any]) -> Any:
        if "remote" in element._annotations:
            return foreign(remote(column if target is None else _version_of(column)))
        return _version_of(column)

    primaryjoin = _translate(prop.primaryjoin, then)
    if target is None:
        return {"primaryjoin": primaryjoin}
    at = _marked(target.root.version, remote)
    live = target.root.strategy.was_live(target.root, at, _moment(plan))
    return {"primaryjoin": and_(primaryjoin, live)}


def _by_association(plan: ClassPlan, prop: Any, target: ClassPlan | None) -> dict[str, Any]:
    association = table_plan(prop.secondary) if isinstance(prop.secondary, Table) else None
    if association is None:
        raise NoHistory(prop.secondary)
    links = association.version
    moment = _moment(plan)

    def link_or(version: Callable[[Column[Any]], Any], mark: Any = foreign) -> Replace:
        def replace(element: Any, column: Column[Any]) -> Any:
            if column.table is prop.secondary:
                return mark(_version_of(column))
            return version(column)

        return replace

    primaryjoin = and_(
        _translate(prop.primaryjoin, link_or(_version_of)),
        association.strategy.was_live(association, _marked(links, foreign), moment),
    )
    if target is None:
        secondaryjoin = _translate(prop.secondaryjoin, link_or(lambda column: column))
        return {"secondary": links, "primaryjoin": primaryjoin, "secondaryjoin": secondaryjoin}
    part = _part_joined(prop, target)
    then = part.version.alias()
    on_then = link_or(lambda column: then.c[_version_of(column).key], lambda column: column)
    was_live = part.strategy.was_live(part, _marked(then, foreign), moment)
    same = [
        foreign(a) == b for a, b in zip(part.keys_of(then), part.keys_of(part.version), strict=True)
    ]
    return {
        "secondary": join(links, then, _translate(prop.secondaryjoin, on_then)),
        "primaryjoin": and_(primaryjoin, was_live),
        "secondaryjoin": and_(*same, foreign(part.tx_of(then)) == part.tx),
    }


def expression_then(plan: ClassPlan, expression: Any) -> Any:
    """A SQL expression of the model, about its versions: what was live, as of the moment.

    :raises NoHistory: if a column of the model that it needs has none, or for an outer join, which
        a condition on the moment would end.
    """
    own = {table.parent for table in plan.tables}
    limited: dict[Any, TablePlan] = {}
    versions: dict[Any, Any] = {}

    def version_of(from_: Any) -> Any:
        """What stands for a table, or for an alias of one, if it has a history."""
        from_ = from_._deannotate()
        table = from_.element if isinstance(from_, Alias) else from_
        found = table_plan(table) if isinstance(table, Table) else None
        if found is not None and from_ not in versions:
            versions[from_] = found.version if from_ is table else found.version.alias()
            if from_ not in own:
                limited[versions[from_]] = found
        return versions.get(from_)

    def replace(element: Any, **kw: Any) -> Any:
        if isinstance(element, (Table, Alias)):
            return version_of(element)
        table = getattr(element, "table", None)
        version = version_of(table) if isinstance(table, (Table, Alias)) else None
        if version is None:
            return None
        live: Any = getattr(table, "element", table)
        return version.c[_version_of(live.c[element.key]).key]

    adapted = visitors.replacement_traverse(expression, {}, replace)
    for part in cast("Iterable[Any]", visitors.iterate(adapted)):
        for from_ in _listed(part.get_final_froms()) if isinstance(part, Select) else ():
            found = limited.pop(from_, None)
            if found is not None:
                live = found.strategy.was_live(found, from_, _moment(plan))
                part._where_criteria += (live,)  # it is a copy of ours
    return adapted


def _listed(froms: Iterable[Any]) -> Iterator[Any]:
    for from_ in froms:
        if not isinstance(from_, Join):
            yield from_
        elif from_.isouter or from_.full:
            raise NoHistory(from_)
        else:
            yield from _listed((from_.left, from_.right))


def _part_joined(prop: Any, target: ClassPlan) -> TablePlan:
    """The plan of the target's table that the association table refers to."""
    for element in visitors.iterate(prop.secondaryjoin):
        table = getattr(element, "table", None)
        if isinstance(table, Table):
            for plan in target.tables:
                if plan.parent is _plain(element).table:
                    return plan
    return target.root
