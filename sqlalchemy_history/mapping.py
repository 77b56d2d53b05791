"""From a versioned model to its version class, for every mapping style and kind of inheritance.

The version class is mapped imperatively to the version table, so that no style of mapping the
model (declarative, dataclass, imperative) is imposed on it or run twice.
"""

from __future__ import annotations

import operator
import types
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from inspect import getattr_static, signature
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Boolean,
    Column,
    ColumnClause,
    ColumnElement,
    Computed,
    Date,
    Enum,
    Identity,
    Integer,
    MetaData,
    String,
    Table,
    Uuid,
    and_,
)
from sqlalchemy.orm import (
    ColumnProperty,
    Composite,
    DeclarativeBase,
    DeclarativeMeta,
    MappedAsDataclass,
    Mapper,
    Synonym,
    column_property,
    composite,
    foreign,
    relationship,
    synonym,
)
from sqlalchemy.sql import visitors

from .config import RECORDED_BY_PLUGIN, Options, nearest
from .exc import ImproperlyConfigured
from .plan import INFO_KEY, ClassPlan, TablePlan, values_of
from .relationships import NoHistory, expression_then
from .schema import (
    build_version_table,
    check_version_table,
    identity_columns,
    own_column_names,
)
from .strategy import STRATEGIES
from .transaction import copy_table
from .version import VersionBase
from .versions import Versions

if TYPE_CHECKING:
    from .manager import VersioningManager

#: attributes that a version class has and a model must not
RESERVED = (
    "previous",
    "next",
    "index",
    "changeset",
    "revert",
    "arevert",
    "aprevious",
    "anext",
    "aindex",
    "awaitable_attrs",
    "transaction",
    "version_parent",
    "version_at",
    "all_versions",
)

#: where ClassManager.info keeps the plan of a class that only its subclasses need
_UNRECORDED_KEY = f"{INFO_KEY}.unrecorded"

#: a value of these types differs in the database whenever it differs in Python
_EXACT_TYPES = (Integer, String, Boolean, Date, Uuid)


def column_properties(mapper: Mapper[Any]) -> Iterator[ColumnProperty[Any]]:
    """The column attributes of ``mapper``, without asking it to configure first."""
    return (p for p in mapper.iterate_properties if isinstance(p, ColumnProperty))


def check_names(mapper: Mapper[Any], options: Options) -> None:
    """Refuse names that versioning needs for itself, and options that name nothing.

    :raises ImproperlyConfigured: with what to rename.
    """
    cls = mapper.class_
    attributes = {p.key for p in mapper.iterate_properties} | set(mapper.all_orm_descriptors.keys())
    # what is inherited, from a mixin for example, may name attributes that others have
    own = cls.__dict__.get("__versioned__", {})
    if RECORDED_BY_PLUGIN in own:
        own = {}  # it was set up before, and this is what the plugin made of what is inherited
    for name in (*own.get("exclude", ()), *own.get("include", ())):
        if name not in attributes:
            raise ImproperlyConfigured(
                f"{cls.__name__}.__versioned__ excludes or includes {name!r}, which is no "
                f"attribute of the class; {nearest(name, attributes)}"
            )
    if not options.create_models:
        return
    if not isinstance(getattr_static(cls, "versions", Versions()), Versions):
        raise ImproperlyConfigured(
            f"{cls.__name__} has an attribute 'versions' of its own, the name that its history "
            f"needs; rename the attribute (a column may keep its name in the database: "
            f"mapped_column('versions', ...))"
        )
    needed = {*RESERVED, *own_column_names(options)}
    for name in sorted(needed & attributes - (options.exclude - options.include)):
        raise ImproperlyConfigured(
            f"{cls.__name__}.{name} has the name of something that {version_class_name(mapper)} "
            f"needs for itself; rename the attribute (a column may keep its name in the database: "
            f"mapped_column({name!r}, ...)), or exclude it: "
            f"__versioned__ = {{'exclude': [{name!r}]}}"
        )


def version_class_name(mapper: Mapper[Any]) -> str:
    """What the version class of ``mapper`` is called."""
    return f"{mapper.class_.__name__}Version"


def key_columns(owner: Mapper[Any], mapper: Mapper[Any]) -> list[Column[Any]]:
    """The key columns of ``owner``'s table in the order of the primary key of ``mapper``."""
    keys: list[Any] = []
    for column in mapper.primary_key:
        same = [column, *owner._equivalent_columns.get(column, ())]
        keys += [c for c in same if c.table is owner.local_table][:1]
    if len(keys) < len(mapper.primary_key):
        table: Any = owner.local_table
        keys = list(table.primary_key.columns)
    return keys


def hierarchy_tables(mapper: Mapper[Any]) -> list[tuple[Mapper[Any], Table]]:
    """The tables that an object of ``mapper`` has a row in, the base first, with their owners."""
    line: list[tuple[Mapper[Any], Table]] = []
    for m in mapper.iterate_to_root():
        if not isinstance(m.local_table, Table):
            raise ImproperlyConfigured(
                f"{m.class_.__name__} is mapped to {type(m.local_table).__name__}, not to a table; "
                f"only tables can be versioned"
            )
        if not line or line[-1][1] is not m.local_table:
            line.append((m, m.local_table))
        else:
            line[-1] = (m, m.local_table)
        if m.concrete:
            break
    return line[::-1]


def check_table(table: Table, options: Options, excluded: frozenset[Column[Any]]) -> None:
    """Refuse a table that can have no version table.

    :raises ImproperlyConfigured: with what to rename or to leave.
    """
    for column in identity_columns(table):
        if column in excluded:
            raise ImproperlyConfigured(
                f"{table.name}.{column.name} is part of the primary key and cannot be excluded"
            )
    columns = [c for c in table.c if c not in excluded]
    metadata = table.metadata if options.create_tables else MetaData()
    check_version_table(table, columns, options, metadata)


def build_table_plan(
    manager: VersioningManager,
    table: Table,
    options: Options,
    excluded: frozenset[Column[Any]],
    *,
    keys: Iterable[Column[Any]] | None = None,
    hierarchy: list[TablePlan] | None = None,
    association: bool = False,
) -> TablePlan:
    """Build the version table of ``table`` and remember the plan on both."""
    strategy = STRATEGIES[options.strategy]
    transaction: Table = manager.transaction_cls.__table__
    for shared in manager.shared_tables:
        copy_table(shared, table.metadata)
    parent_keys = tuple(keys or identity_columns(table))
    columns = [c for c in table.c if c not in excluded]
    metadata = table.metadata if options.create_tables else MetaData()
    added = [c for hook in manager.plugins.hooks("version_columns") for c in hook(table, columns)]
    version = build_version_table(table, columns, options, metadata, added)
    plan = TablePlan(
        manager=manager,
        parent=table,
        version=version,
        transaction=transaction,
        columns=tuple((c, version.c[c.key]) for c in columns),
        keys=tuple((c, version.c[c.key]) for c in parent_keys),
        tx=version.c[options.transaction_column_name],
        end=version.c[options.end_transaction_column_name] if strategy.has_end else None,
        op=version.c[options.operation_type_column_name],
        options=options,
        strategy=strategy,
        hierarchy=[] if hierarchy is None else hierarchy,
        association=association,
    )
    plan.hierarchy.append(plan)
    table.info[INFO_KEY] = plan
    version.info[INFO_KEY] = plan
    return plan


def build_class_plan(
    manager: VersioningManager,
    mapper: Mapper[Any],
    tables: tuple[TablePlan, ...],
    options: Options,
) -> ClassPlan:
    """Put the plan of a class together."""
    columns = _versioned_columns(mapper, version_parts(tables))
    key_names = tuple(mapper.get_property_by_column(column).key for column in mapper.primary_key)
    lock = mapper.version_id_col
    writable = frozenset(
        name
        for name, cols in columns.items()
        if name not in key_names
        and not any(c is lock or isinstance(c.server_default, (Computed, Identity)) for c in cols)
    )
    getter: Any = operator.itemgetter(*key_names)
    return ClassPlan(
        mapper=mapper,
        tables=tables,
        attributes=frozenset(columns),
        attribute_order=tuple(columns),
        writable=writable,
        exact=frozenset(name for name, cols in columns.items() if _is_exact(cols[0])),
        computed=any(
            c.onupdate is not None or c.server_onupdate is not None or c.computed is not None
            for cols in columns.values()
            for c in cols
        ),
        key_attributes=key_names,
        key_of=getter,
        values_of=values_of(tuple(columns)),
        options=options,
        manager=manager,
    )


def map_version_class(plan: ClassPlan, made: dict[ClassPlan, type[Any]]) -> None:
    """Map the version class of a plan, without relationships but ``transaction``, into ``made``."""
    base = _base_plan(plan, made)
    inherits = None if base is None else base.version_class
    version_class = _new_class(plan.mapper, plan.options, inherits)
    version_class.__version_plan__ = plan
    made[plan] = version_class
    try:
        _map(version_class, plan, base)
    except BaseException:
        del made[plan]
        raise


def _base_plan(plan: ClassPlan, made: dict[ClassPlan, type[Any]]) -> ClassPlan | None:
    """The plan of the class that the plan's class inherits from.

    Where that is not versioned itself, its version class is there to be inherited from alone: it
    holds the columns that versions of the subclass have too.
    """
    mapper = plan.mapper.inherits
    if mapper is None or plan.mapper.concrete:
        return None
    info = mapper.class_manager.info
    base: ClassPlan | None = info.get(INFO_KEY)
    if base is None or not base.options.create_models:
        base = info.get(_UNRECORDED_KEY)
    if base is None:
        tables = tuple(table.info[INFO_KEY] for _, table in hierarchy_tables(mapper))
        base = build_class_plan(plan.manager, mapper, tables, plan.options)
        info[_UNRECORDED_KEY] = base
        map_version_class(base, made)
    return base


def version_parts(tables: Iterable[TablePlan]) -> dict[Any, Any]:
    """From parent tables and their columns to version tables and their columns."""
    found: dict[Any, Any] = {}
    for plan in tables:
        found[plan.parent] = plan.version
        found.update(plan.columns)
    return found


def _versioned_columns(
    mapper: Mapper[Any], to_version: Mapping[Any, Any]
) -> dict[str, list[Column[Any]]]:
    """The columns with a history behind each attribute that has any."""
    found = {p.key: [c for c in p.columns if c in to_version] for p in column_properties(mapper)}
    return {name: columns for name, columns in found.items() if columns}  # type: ignore[misc]


def _is_exact(column: Column[Any]) -> bool:
    type_ = column.type
    if type(type_) is not type_.__class__ or isinstance(type_, Enum):
        return False
    return isinstance(type_, _EXACT_TYPES) and type_.__visit_name__ not in ("CHAR", "NCHAR")


def _bases(cls: type[Any], options: Options) -> tuple[type[Any], ...]:
    if options.base_classes:
        return options.base_classes
    for base in cls.__mro__[1:]:
        if "_sa_registry" in base.__dict__:
            plain = type(base) in (type(DeclarativeBase), DeclarativeMeta)
            if plain and not issubclass(base, MappedAsDataclass) and not _wants_arguments(base):
                return (base,)
    return ()


def _wants_arguments(base: type[Any]) -> bool:
    """Whether the class statement of a subclass has to say more than that it is one."""
    function = getattr(base.__init_subclass__, "__func__", None)
    return function is not None and any(
        parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
        for parameter in signature(function).parameters.values()
    )


def _new_class(mapper: Mapper[Any], options: Options, inherits: type[Any] | None) -> type[Any]:
    cls = mapper.class_
    if inherits is not None:
        bases: tuple[type[Any], ...] = (inherits,)
    else:
        bases = (VersionBase, *(b for b in _bases(cls, options) if not issubclass(b, VersionBase)))
    name = version_class_name(mapper)
    namespace: dict[str, Any] = {
        "__module__": cls.__module__,
        "__qualname__": f"{cls.__qualname__.removesuffix(cls.__name__)}{name}",
        "__doc__": f"A version of {cls.__name__}.",
        "__versioned__": {"versioning": False},
        # keeps declarative bases from mapping the class: that is done imperatively
        "__abstract__": True,
    }
    namespace |= {
        key: descriptor
        for key, descriptor in mapper.all_orm_descriptors.items()
        if descriptor.extension_type.name in ("HYBRID_PROPERTY", "HYBRID_METHOD")
    }
    version_class = types.new_class(name, bases, {}, lambda ns: ns.update(namespace))
    type.__delattr__(version_class, "__abstract__")
    return version_class


def _map(version_class: type[Any], plan: ClassPlan, inherited: ClassPlan | None) -> None:
    mapper = plan.mapper
    copies_of = version_parts(plan.tables)
    columns = _versioned_columns(mapper, copies_of)
    root, local = plan.tables[0], plan.tables[-1]
    own_table = inherited is None or local is not inherited.tables[-1]
    properties: dict[str, Any] = {}
    for name, parent_columns in columns.items():
        copies = [copies_of[c] for c in parent_columns]
        if inherited is None or any(c.table is local.version for c in copies):
            properties[name] = copies if len(copies) > 1 else copies[0]
    if own_table:
        tables = plan.tables if inherited is None else [local, *inherited.tables[::-1]]
        for attribute in ("tx", "end", "op"):
            same = [getattr(t, attribute) for t in tables]
            if same[0] is not None:
                properties[same[0].key] = same if len(same) > 1 else same[0]
    for prop in mapper.iterate_properties:
        if prop.key in properties or (inherited is not None and prop.parent is not mapper):
            continue
        copy = _copy_property(prop, plan)
        if copy is not None:
            properties[prop.key] = copy
    table = local.version if own_table else None
    if inherited is None:
        properties["transaction"] = relationship(
            plan.manager.transaction_cls,
            primaryjoin=plan.manager.transaction_cls.id == foreign(root.tx),
            viewonly=True,
            uselist=False,
        )
    arguments = _inheritance(version_class, plan, inherited, copies_of)
    for prop in column_properties(mapper):
        # it must be the very attribute, where there is one
        if "polymorphic_on" in arguments and prop.columns[0] is mapper.polymorphic_on:
            arguments["polymorphic_on"] = prop.key
    mapper.registry.map_imperatively(version_class, table, properties=properties, **arguments)
    type.__setattr__(version_class, "__table__", local.version)


def _inheritance(
    version_class: type[Any],
    plan: ClassPlan,
    inherited: ClassPlan | None,
    to_version: Mapping[Any, Any],
) -> dict[str, Any]:
    """The arguments of the mapper that say what it inherits from, and how to tell classes apart."""
    mapper, local = plan.mapper, plan.tables[-1]
    arguments: dict[str, Any] = {}
    polymorphic_on = mapper.polymorphic_on
    if polymorphic_on is not None and not _is_about(polymorphic_on, to_version):
        # that of a concrete hierarchy is a column of the union of its tables
        polymorphic_on = None
    if polymorphic_on is not None and mapper.polymorphic_identity is not None:
        arguments["polymorphic_identity"] = mapper.polymorphic_identity
    if inherited is None:
        if polymorphic_on is not None:
            arguments["polymorphic_on"] = adapt(polymorphic_on, to_version)
        return arguments
    arguments["inherits"] = version_class.__base__
    upper = inherited.tables[-1]
    if local is not upper:
        same = zip(local.keys, upper.keys, strict=True)
        arguments["inherit_condition"] = and_(
            *(mine == theirs for (_, mine), (_, theirs) in same), local.tx == upper.tx
        )
        arguments["inherit_foreign_keys"] = [*(v for _, v in local.keys), local.tx]
    return arguments


def _copy_property(prop: Any, plan: ClassPlan) -> Any:
    if isinstance(prop, ColumnProperty):
        # a column that is left has no history, or belongs to the union of a concrete hierarchy
        if isinstance(prop.columns[0], ColumnClause):
            return None
        with suppress(NoHistory):
            return column_property(expression_then(plan, prop.columns[0]))
        return None
    if isinstance(prop, Composite):
        names: list[Any] = [
            p if isinstance(p, str) else getattr(p, "key", None) for p in prop.attrs
        ]
        if all(name in plan.attributes for name in names):
            made: Any = prop.composite_class
            return composite(made, *names)
    if isinstance(prop, Synonym) and prop.name in plan.attributes:
        return synonym(prop.name)
    return None


def adapt(expression: ColumnElement[Any], to_version: Mapping[Any, Any]) -> Any:
    """``expression`` about the live tables as one about their version tables.

    :param to_version: as from :func:`version_parts`.
    """
    return visitors.replacement_traverse(
        expression, {}, lambda element, **kw: to_version.get(element)
    )


def _is_about(expression: ColumnElement[Any], to_version: Mapping[Any, Any]) -> bool:
    """All columns of ``expression`` have a history."""
    return all(
        element in to_version
        for element in visitors.iterate(expression)
        if isinstance(element, ColumnClause) and element.table is not None
    )
