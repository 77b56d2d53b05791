"""The models of one manager: from mapped classes to plans, version tables and version classes.

Plans and version tables are made when mappers configure: that is all that recording needs. Version
classes are mapped when history is first asked for, and from then on together with their tables; a
process that only writes never pays for them.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from inspect import getattr_static
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table
from sqlalchemy.orm import Mapper, RelationshipProperty

from .config import Options
from .exc import ImproperlyConfigured
from .mapping import (
    build_class_plan,
    build_table_plan,
    check_names,
    check_table,
    column_properties,
    hierarchy_tables,
    key_columns,
    map_version_class,
    version_class_name,
)
from .plan import (
    CONFIGURE_LOCK,
    INFO_KEY,
    ClassPlan,
    TablePlan,
    all_registries,
    configure_again,
    table_plan,
)
from .relationships import add_relationships
from .transaction import TransactionBase
from .version import VersionBase
from .versions import Versions

if TYPE_CHECKING:
    from .manager import VersioningManager

#: the managers that listen: a class belongs to the one whose target is nearest to it
_running: weakref.WeakKeyDictionary[VersioningManager, None] = weakref.WeakKeyDictionary()


class Models:
    """The versioned classes and association tables of ``manager``.

    :ivar plans: by class, of all that is recorded.
    :ivar associations: by association table.
    """

    def __init__(self, manager: VersioningManager) -> None:
        self.manager = manager
        self.plans: dict[type[Any], ClassPlan] = {}
        #: those of ``plans`` whose objects are recorded by flushes, not by triggers
        self.captured: dict[type[Any], ClassPlan] = {}
        self.associations: dict[Table, TablePlan] = {}
        #: somebody has asked for history
        self._wanted = False
        #: version classes that have no relationships yet
        self._unfinished: dict[ClassPlan, type[Any]] = {}
        self._finishing = False

    @property
    def table_plans(self) -> list[TablePlan]:
        """The plans of all versioned tables, association tables included."""
        tables = [table for plan in self.plans.values() for table in plan.tables]
        return list(dict.fromkeys([*tables, *self.associations.values()]))

    # -- which classes

    def started(self) -> None:
        """The manager listens; what is configured already is looked at when it is next used."""
        _running[self.manager] = None
        for mapper in all_mappers():
            if wants_versions(mapper.class_):
                self.manager.watch_metadata(getattr(mapper.local_table, "metadata", None))
                if mapper.configured and self.is_new(mapper):
                    configure_again(mapper)

    def stopped(self) -> None:
        """The manager listens no longer."""
        _running.pop(self.manager, None)

    def is_new(self, mapper: Mapper[Any]) -> bool:
        """Whether ``mapper`` is to be versioned by this manager, and is not yet."""
        if INFO_KEY in mapper.class_manager.info or not wants_versions(mapper.class_):
            return False
        if mapper.inherits is not None:
            base = mapper.inherits.class_manager.info.get(INFO_KEY)
            if base is not None:
                return base.manager is self.manager
        chosen = getattr(mapper.class_, "__versioning_manager__", None)
        if chosen is None:
            near = [manager for manager in _running if manager.distance(mapper.class_) is not None]
            chosen = min(near, key=lambda m: m.distance(mapper.class_) or 0, default=None)
        return chosen is self.manager

    def find(self) -> list[Mapper[Any]]:
        """The mappers that are to be versioned and are not yet, bases first."""
        found = [mapper for mapper in all_mappers() if self.is_new(mapper)]
        return sorted(found, key=_order)

    # -- before mappers configure: plans and tables

    def build(self) -> None:
        """Make plans and version tables of the classes that have none yet.

        :raises ImproperlyConfigured: for what cannot be versioned; nothing is made then.
        """
        options = {mapper: self._options_of(mapper) for mapper in self.find()}
        mappers = [mapper for mapper, found in options.items() if found.versioning]
        if not mappers:
            return
        hidden = _hidden_columns({mapper: options[mapper] for mapper in mappers})
        lines = {mapper: hierarchy_tables(mapper) for mapper in mappers}
        for mapper in mappers:
            for owner, table in lines[mapper]:
                if table_plan(table) is None:
                    check_table(table, options.get(owner, options[mapper]), hidden)
            check_names(mapper, options[mapper])
        self.manager.make_transaction_cls(mappers[0].registry)
        with ExitStack() as undo:
            for mapper in mappers:
                tables: list[TablePlan] = []
                for owner, table in lines[mapper]:
                    known = table_plan(table)
                    if known is None:
                        known = build_table_plan(
                            self.manager,
                            table,
                            options.get(owner, options[mapper]),
                            hidden,
                            keys=key_columns(owner, mapper),
                            hierarchy=tables[0].hierarchy if tables else None,
                        )
                        undo.callback(_remove_table, known)
                    tables.append(known)
                plan = build_class_plan(self.manager, mapper, tuple(tables), options[mapper])
                undo.callback(self._remove_class, plan)
                self._add_class(plan)
            undo.pop_all()
        self._wanted = self._wanted or _are_named(self.plans.values())
        if self._wanted:
            self._map_classes()

    def _options_of(self, mapper: Mapper[Any]) -> Options:
        cls = mapper.class_
        return self.manager.options.merged(cls.__versioned__, f"{cls.__name__}.__versioned__")

    def _add_class(self, plan: ClassPlan) -> None:
        cls = plan.mapper.class_
        plan.mapper.class_manager.info[INFO_KEY] = plan
        self.plans[cls] = plan
        if not plan.root.options.native_versioning:
            self.captured[cls] = plan
        for table in plan.tables:
            self.manager.native.watch(table)
        if getattr(cls, "__versioning_manager__", None) is not self.manager:
            type.__setattr__(cls, "__versioning_manager__", self.manager)
        inherited = isinstance(getattr_static(cls, "versions", None), Versions)
        if plan.options.create_models and not inherited:
            type.__setattr__(cls, "versions", Versions())
        for class_versioned in self.manager.plugins.hooks("class_versioned"):
            class_versioned(plan)

    def _remove_class(self, plan: ClassPlan) -> None:
        cls = plan.mapper.class_
        plan.mapper.class_manager.info.pop(INFO_KEY, None)
        self.plans.pop(cls, None)
        self.captured.pop(cls, None)
        for table in plan.tables:
            self.manager.native.plans.pop(table, None)
        for name, value in (("versions", Versions), ("__versioning_manager__", type(self.manager))):
            if isinstance(cls.__dict__.get(name), value):
                type.__delattr__(cls, name)

    # -- after mappers configured: association tables and relationships

    def finish(self) -> None:
        """Relationships know their tables and targets now."""
        plans = [plan for plan in self._live_plans() if plan.mapper.configured]
        for plan in plans:
            for prop in plan.mapper.relationships:
                self._watch_association(plan, prop)
        if self._wanted:
            self._finish_classes()
            for plan in plans:
                if plan.mapped:
                    add_relationships(plan)

    def _watch_association(self, plan: ClassPlan, prop: RelationshipProperty[Any]) -> None:
        table = prop.secondary
        hidden = plan.options.exclude - plan.options.include
        if not isinstance(table, Table) or prop.viewonly or prop.key in hidden:
            return
        if table_plan(table) is None:
            self.associations[table] = build_table_plan(
                self.manager, table, plan.options, frozenset(), association=True
            )
            self.manager.native.watch(self.associations[table])

    # -- when history is first asked for: version classes

    def version_class(self, plan: ClassPlan) -> type[Any] | None:
        """The version class of ``plan``; all are mapped at once, for they refer to each other."""
        with CONFIGURE_LOCK:
            self._wanted = True
            if plan not in self._unfinished:
                self._map_classes()
                self._finish_classes()
            return plan.mapped[0] if plan.mapped else self._unfinished.get(plan)

    def _map_classes(self) -> None:
        for plan in self._live_plans():
            if plan.options.create_models and not plan.mapped and plan not in self._unfinished:
                map_version_class(plan, self._unfinished)

    def _finish_classes(self) -> None:
        """Configure version classes and add their relationships.

        In the middle of a configuration they are left; ``finish()`` will come back to them.
        """
        with CONFIGURE_LOCK:
            if self._finishing:
                return
            self._finishing = True
            try:
                for plan, cls in list(self._unfinished.items()):
                    mapper: Mapper[Any] = cls.__mapper__
                    if plan.mapper.configured and not mapper.configured:
                        configure_again(mapper)
                        mapper.registry.configure(cascade=True)
                    if mapper.configured:
                        add_relationships(plan)
                        plan.mapped.append(self._unfinished.pop(plan))
            finally:
                self._finishing = False

    def _live_plans(self) -> list[ClassPlan]:
        """The plans of classes whose mappers were not disposed of."""
        for cls, plan in list(self.plans.items()):
            if plan.mapper.class_manager.mapper is not plan.mapper:
                del self.plans[cls]
                self.captured.pop(cls, None)
                self._unfinished.pop(plan, None)
        return list(self.plans.values())

    # -- the end

    def forget(self) -> None:
        """Forget all classes and tables. A class that was versioned once is not taken up again."""
        for plan in self.plans.values():
            plan.mapper.class_manager.info[INFO_KEY] = None
            if plan.mapper.class_.__dict__.get("__versioning_manager__") is self.manager:
                type.__delattr__(plan.mapper.class_, "__versioning_manager__")
            for table in plan.tables:
                table.parent.info.pop(INFO_KEY, None)
        for association in self.associations:
            association.info.pop(INFO_KEY, None)
        self.plans.clear()
        self.captured.clear()
        self.manager.native.forget()
        self.associations.clear()
        self._unfinished.clear()
        self._wanted = False


def wants_versions(cls: type[Any]) -> bool:
    """Whether ``cls`` says that it is to be versioned.

    :raises ImproperlyConfigured: if its ``__versioned__`` is no dict.
    """
    wanted = getattr(cls, "__versioned__", None)
    if wanted is None or issubclass(cls, (VersionBase, TransactionBase)):
        return False
    if not isinstance(wanted, Mapping):
        raise ImproperlyConfigured(
            f"{cls.__name__}.__versioned__ = {wanted!r}; it is a dict of options, such as {{}}"
        )
    return bool(wanted.get("versioning", True))


def all_mappers() -> list[Mapper[Any]]:
    """All mappers there are; a class whose mapping is deferred has none yet."""
    return [
        class_manager.mapper
        for reg in all_registries()
        for class_manager in reg._managers
        if class_manager.is_mapped
    ]


def _order(mapper: Mapper[Any]) -> tuple[int, str, str]:
    """Bases first, and the same in every process."""
    depth = sum(1 for _ in mapper.iterate_to_root())
    return depth, mapper.class_.__module__, mapper.class_.__qualname__


def _hidden_columns(options: Mapping[Mapper[Any], Options]) -> frozenset[Any]:
    """The columns that have no history."""
    excluded: set[Any] = set()
    included: set[Any] = set()
    for mapper, chosen in options.items():
        if chosen.exclude:
            for prop in column_properties(mapper):
                if prop.key in chosen.include:
                    included.update(prop.columns)
                elif prop.key in chosen.exclude:
                    excluded.update(prop.columns)
    return frozenset(excluded - included)


def _remove_table(plan: TablePlan) -> None:
    plan.parent.info.pop(INFO_KEY, None)
    plan.version.metadata.remove(plan.version)


def _are_named(plans: Iterable[ClassPlan]) -> bool:
    """Whether a relationship of some model names a version class, as in ``"ArticleVersion"``."""
    names = {version_class_name(plan.mapper) for plan in plans}
    words: Callable[[str], list[str]] = re.compile(r"\w+").findall
    return any(
        isinstance(prop.argument, str) and not names.isdisjoint(words(prop.argument))
        for mapper in all_mappers()
        for prop in mapper.iterate_properties
        if isinstance(prop, RelationshipProperty)
    )
