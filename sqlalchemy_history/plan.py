"""What set-up decided for one versioned table and one versioned class: frozen, read by everybody.

A ``TablePlan`` belongs to a table (kept in its ``Table.info`` and in that of the version table), a
``ClassPlan`` to a mapped class (kept in the ``info`` of its ``ClassManager``). A class of a joined
hierarchy has a table plan for each of its tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Column, ColumnElement, FromClause, Table, and_, inspect
from sqlalchemy.orm.attributes import manager_of_class
from sqlalchemy.orm.mapper import _CONFIGURE_MUTEX, _all_registries

from .config import Options
from .exc import VersioningError
from .schema import own_column_names
from .strategy import Strategy

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.orm import Mapper, registry

    from .manager import VersioningManager

#: a row's identity: the bare value of a single-column key, a tuple of the values of a composite one
Key = Any


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False, slots=True)
class TablePlan:
    """How the rows of ``parent`` are kept in ``version``.

    :ivar columns: (parent column, version column) of everything that has a history, keys included.
    :ivar keys: the same of the columns that identify a row.
    :ivar end: None with a strategy that stores only the start.
    :ivar transaction: the table of the transactions that wrote the versions.
    :ivar hierarchy: the plans of all tables that one object of a joined hierarchy may have rows in.
    :ivar association: whether ``parent`` is the ``secondary`` of a many-to-many relationship.
    """

    manager: VersioningManager
    parent: Table
    version: Table
    transaction: Table
    columns: tuple[tuple[Column[Any], Column[Any]], ...]
    keys: tuple[tuple[Column[Any], Column[Any]], ...]
    tx: Column[Any]
    end: Column[Any] | None
    op: Column[Any]
    options: Options
    strategy: Strategy
    hierarchy: list[TablePlan]
    association: bool = False

    def tx_of(self, v: FromClause) -> ColumnElement[int]:
        """The column of ``v``, the version table or an alias of it, that starts a version."""
        return v.c[self.tx.key]

    def end_of(self, v: FromClause) -> ColumnElement[int | None]:
        """The column of ``v`` that ends a version (validity strategy only)."""
        assert self.end is not None
        return v.c[self.end.key]

    def op_of(self, v: FromClause) -> ColumnElement[int]:
        """The column of ``v`` that tells the operation."""
        return v.c[self.op.key]

    def keys_of(self, v: FromClause) -> list[ColumnElement[Any]]:
        """The columns of ``v``, parent or version table or an alias, that identify a row."""
        return [v.c[column.key] for column, _ in self.keys]

    def same_key(self, one: FromClause, other: FromClause) -> ColumnElement[bool]:
        """``one`` and ``other`` are about the same row."""
        return same_object(self, one, self, other)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False, slots=True)
class ClassPlan:
    """How objects of one class are recorded.

    :ivar tables: the plans of the class's tables, the base table first.
    :ivar attributes: names of the column attributes that have a history.
    :ivar attribute_order: the same in the order of the mapping.
    :ivar writable: those of them that a revert may write: not computed, not the lock column.
    :ivar exact: those of them whose values differ in the database whenever they differ in Python.
    :ivar computed: whether the database or ``onupdate`` may change more than a flush says.
    :ivar key_attributes: names of the attributes of the primary key, in the order of a ``Key``.
    :ivar key_of: from an object's ``__dict__`` to its key.
    :ivar values_of: from an object's ``__dict__`` to its values, in the order of the mapping.
    """

    mapper: Mapper[Any]
    tables: tuple[TablePlan, ...]
    attributes: frozenset[str]
    attribute_order: tuple[str, ...]
    writable: frozenset[str]
    exact: frozenset[str]
    computed: bool
    key_attributes: tuple[str, ...]
    key_of: Callable[[dict[str, Any]], Key]
    values_of: Callable[[dict[str, Any]], Sequence[Any]]
    options: Options
    manager: VersioningManager
    #: the version class, once it is mapped
    mapped: list[type[Any]] = dataclasses.field(default_factory=list)

    @property
    def version_class(self) -> type[Any] | None:
        """Where versions are read; None with ``create_models=False``.

        Whoever asks first has the version classes of the manager's models mapped.
        """
        if self.mapped:
            return self.mapped[0]
        return self.manager.models.version_class(self) if self.options.create_models else None

    @property
    def root(self) -> TablePlan:
        """The plan of the table that every object of the class's hierarchy has a row in."""
        return self.tables[0]

    @property
    def transaction_id(self) -> Any:
        """The attribute of the version class that holds the transaction's id."""
        return self.tx_of(self.version_class)

    def tx_of(self, version: Any) -> Any:
        """The transaction's id of a version, or the attribute of a class or an alias that holds it."""
        return getattr(version, self.options.transaction_column_name)

    def operation_of(self, version: Any) -> Any:
        """The operation type of a version."""
        return getattr(version, self.options.operation_type_column_name)

    def key_of_object(self, obj: Any) -> Key:
        """The key of a live object or of a version."""
        try:
            return self.key_of(obj.__dict__)
        except KeyError:
            # expired
            return as_key(getattr(obj, name) for name in self.key_attributes)

    def on(self, entity: Any) -> EntityColumns:
        """The columns of the version class, or of an alias of it, for a strategy to ask about."""
        return EntityColumns(self, entity)


class EntityColumns:
    """Stands for a version table where the columns of a mapped class are meant."""

    def __init__(self, plan: ClassPlan, entity: Any) -> None:
        root, options = plan.root, plan.options
        names = own_column_names(options)
        self.c: dict[str, Any] = {name: getattr(entity, name) for name in names}
        for (column, _), name in zip(root.keys, plan.key_attributes, strict=True):
            self.c[column.key] = getattr(entity, name)


def same_object(
    plan: TablePlan, one: FromClause, other_plan: TablePlan, other: FromClause
) -> ColumnElement[bool]:
    """``one`` and ``other``, of two tables of a joined hierarchy, are about the same object."""
    keys = zip(plan.keys_of(one), other_plan.keys_of(other), strict=True)
    return and_(*(a == b for a, b in keys))


def as_key(values: Iterable[Any]) -> Key:
    """The key of a row from the values of its key columns."""
    key = tuple(values)
    return key[0] if len(key) == 1 else key


def values_of(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """A function from a mapping to its values of ``names``; a KeyError if one is missing."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda values: [values[name] for name in names]


def key_values(key: Key, width: int) -> tuple[Any, ...]:
    """The values of ``width`` key columns from a key."""
    return (key,) if width == 1 else key


#: where Table.info keeps its TablePlan and ClassManager.info its ClassPlan
INFO_KEY: Final = "sqlalchemy_history"

#: where Table.info keeps the plugin that has made the table
PLUGIN_KEY: Final = "sqlalchemy_history.plugin"


#: the parameter of version relationships that holds the moment an ``as_of()`` asks for
MOMENT: Final = "as_of_moment"

#: the execution option of statements of which no version is made
UNSEEN: Final = "sqlalchemy_history_unseen"

#: where ``session.info`` keeps the chains of versions that were loaded; writing one forgets them
CHAINS_KEY: Final = "sqlalchemy_history.chains"


def class_plan(cls: type[Any]) -> ClassPlan | None:
    """The plan of a versioned class or of a version class, None of any other."""
    plan: ClassPlan | None = getattr(cls, "__version_plan__", None)
    if plan is not None:
        return plan
    class_manager: Any = manager_of_class(cls)
    return None if class_manager is None else class_manager.info.get(INFO_KEY)


def table_plan(table: Table) -> TablePlan | None:
    """The plan of a versioned table or of a version table, None of any other."""
    return table.info.get(INFO_KEY)


def class_of(entity: Any) -> type[Any] | None:
    """The class of a mapped class, an alias of one, or an object of one; else None."""
    inspected: Any = inspect(entity, raiseerr=False)
    mapper = getattr(inspected, "mapper", None)
    return None if mapper is None else mapper.class_


def all_registries() -> list[registry]:
    """Every registry of mappers that there is."""
    return list(_all_registries())


def only_manager(otherwise: str) -> VersioningManager:
    """The manager of all classes that are versioned.

    :param otherwise: how to say which one is meant.
    :raises VersioningError: if there are several of them, or none.
    """
    managers = {
        plan.manager
        for reg in all_registries()
        for mapper in reg.mappers
        if (plan := class_plan(mapper.class_)) is not None
    }
    if len(managers) != 1:
        raise VersioningError(
            f"there are {len(managers)} managers with versioned classes; say which is meant: "
            f"{otherwise}"
        )
    return managers.pop()


def configure_mappers_of(metadata: MetaData) -> None:
    """Configure the mappers whose tables are in ``metadata``."""
    for reg in all_registries():
        if reg.metadata is metadata:
            reg.configure(cascade=True)


#: held while mappers are made or configured, by SQLAlchemy and by us
CONFIGURE_LOCK: Final = _CONFIGURE_MUTEX


def configure_again(mapper: Mapper[Any]) -> None:
    """Have the registry of ``mapper`` configured when it is next used."""
    mapper.registry._flag_new_mapper(mapper)
