"""The composition root: the one object that holds the parts together.

``versioning_manager`` is the default instance, which ``make_versioned()`` configures and starts;
more of them can be made, and live side by side.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, MetaData, Table, event, select
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Mapper, Session, registry

from .config import Options, OptionsDict, nearest
from .context import CONTEXT_KEY, current_context
from .events import Events
from .exc import (
    ClassNotVersioned,
    ImproperlyConfigured,
    MissingContext,
    UntrackedWrite,
    UntrackedWriteWarning,
    refuse_async,
)
from .hooks import Plugin, PluginCollection, Written
from .listeners import Listeners
from .models import Models, all_mappers, wants_versions
from .native import Native
from .plan import ClassPlan, Key, TablePlan, class_plan, configure_mappers_of
from .tracking import Tracked, find_tracked, write_parents
from .transaction import TransactionFactory, collect_values
from .triggers import keeps_history
from .unit_of_work import ConnectionUnit, UnitOfWork
from .write import Writer
from .write_postgresql import PostgreSQLWriter


class VersioningManager:
    """One set of versioned models, with its options, its plugins and its Transaction class.

    ``make_versioned(manager=...)`` starts it, ``remove_versioning(manager=...)`` stops it.

    :param user_cls: class that ``Transaction.user`` refers to, or its name; None for none.
    :param transaction_cls: a :class:`TransactionFactory`, or a Transaction class of your own.
    :param options: see :class:`~sqlalchemy_history.config.Options`.
    :param plugins: see :mod:`sqlalchemy_history.plugins`.
    :ivar transaction_cls: the Transaction class, once mappers are configured; before that, what is
        to make it. Assign a class of your own before the models are used.
    :ivar user_cls: as given.
    :ivar activity_cls: the class that ``ActivityPlugin`` makes.
    :ivar changelog_cls: the class that ``ChangeLogPlugin`` makes.
    """

    def __init__(
        self,
        user_cls: type[Any] | str | None = None,
        transaction_cls: Any = None,
        options: OptionsDict | None = None,
        plugins: Iterable[Plugin] = (),
    ) -> None:
        self.user_cls = user_cls
        self.transaction_cls: Any = transaction_cls or TransactionFactory()
        self._factory = self.transaction_cls
        #: the Transaction class for which the plugins have made their classes, and which have
        self._plugins_built: type[Any] | None = None
        self._built: list[Plugin] = []
        self._plugins = PluginCollection(plugins, self._take_in)
        #: the classes that ActivityPlugin and ChangeLogPlugin make
        self.activity_cls: Any = None
        self.changelog_cls: Any = None
        self._options = Options().merged(options or {}, "VersioningManager(options=)")
        self.native: Native = Native(self)
        self.models: Models = Models(self)
        self._mappers = Listeners()
        self._metadata = Listeners()
        self._events = Events(self)
        self._writers: dict[tuple[object, ...], Writer] = {}
        #: what was said about untracked writes
        self._said: set[tuple[TablePlan, str]] = set()
        self._target: Any = None
        #: the collections that ``track_relations`` names
        self._tracked: list[Tracked] = []
        #: the tables of the Transaction class and of plugins, which each database needs
        self.shared_tables: list[Table] = []

    # -- options

    @property
    def options(self) -> Options:
        """What holds for all classes. Assign a dict of the options that differ from the defaults."""
        return self._options

    @options.setter
    def options(self, value: Options | OptionsDict) -> None:
        self._options = (
            value
            if isinstance(value, Options)
            else Options().merged(value, f"{type(self).__name__}.options")
        )

    @property
    def plugins(self) -> PluginCollection:
        """The plugins, as a list; assign another one to replace them all."""
        return self._plugins

    @plugins.setter
    def plugins(self, value: Iterable[Plugin]) -> None:
        self._plugins = PluginCollection(value, self._take_in)

    # -- start and stop

    def start(self, mapper: Any = Mapper, session: Any = Session) -> None:
        """Listen to ``mapper`` and ``session``; what is listened to already is left alone."""
        watched = self._events.watched()
        self.stop()
        self._target = mapper.class_ if isinstance(mapper, Mapper) else mapper
        below = {} if mapper is Mapper else {"propagate": True}
        self._mappers.add(mapper, {"instrument_class": self._class_instrumented}, **below)
        configure = {"before_configured": self.models.build, "after_configured": self._configured}
        self._mappers.add(Mapper, configure)
        self._events.listen(session)
        for engine in watched:
            self._events.watch(engine)
        self.models.started()

    def stop(self) -> None:
        """Remove every listener of this manager. What was recorded stays."""
        self.models.stopped()
        self._mappers.clear()
        self._events.stop()
        self._metadata.clear()

    def reset(self) -> None:
        """Forget all models, and the Transaction class that was made for them.

        For tests that declare the same models again and again.
        """
        self.models.forget()
        self._tracked = []
        self._writers.clear()
        self._events.forget()
        self._said.clear()
        self._plugins_built = None
        self._built = []
        self.shared_tables = []
        self.transaction_cls = self._factory

    def distance(self, cls: type[Any]) -> int | None:
        """How far ``cls`` is from what this manager listens to; None if that does not cover it."""
        if self._target is Mapper:
            return len(cls.__mro__)
        return cls.__mro__.index(self._target) if self._target in cls.__mro__ else None

    # -- set-up of classes

    def _class_instrumented(self, mapper: Mapper[Any], cls: type[Any]) -> None:
        """A class is being mapped: let ``create_all()`` of its metadata know about versions."""
        if wants_versions(cls):
            self.watch_metadata(getattr(mapper.local_table, "metadata", None))

    def watch_metadata(self, metadata: MetaData | None) -> None:
        """Let ``create_all()`` and ``drop_all()`` of ``metadata`` know about version tables."""
        if metadata is not None and metadata not in self._metadata:
            self._metadata.add(
                metadata,
                {
                    "before_create": self._before_create,
                    "after_create": self._after_create,
                    "before_drop": self._before_drop,
                },
            )

    @property
    def has_models(self) -> bool:
        """Whether any class that it listens to is to be versioned."""
        return bool(self._metadata)

    def _before_create(self, metadata: MetaData, connection: Connection, **kw: Any) -> None:
        """``create_all()`` before mappers configured: configure, and create what that adds."""
        added = _added_by_configuring(metadata, kw)
        if added:

            def create_added(target: MetaData, connection: Connection, **kw: Any) -> None:
                target.create_all(connection, tables=added, checkfirst=kw["checkfirst"])

            event.listen(metadata, "after_create", create_added, once=True)

    def _after_create(self, metadata: MetaData, connection: Connection, **kw: Any) -> None:
        self.native.tables_created(connection, kw.get("tables") or ())

    def _before_drop(self, metadata: MetaData, connection: Connection, **kw: Any) -> None:
        """``drop_all()`` before mappers configured: configure, and drop what that adds."""
        added = _added_by_configuring(metadata, kw)
        if added:
            metadata.drop_all(connection, tables=added, checkfirst=kw["checkfirst"])

    def make_transaction_cls(self, in_registry: registry) -> None:
        """Have a Transaction class, and what the plugins make of it."""
        if not isinstance(self.transaction_cls, type):
            self._factory = self.transaction_cls
            self.transaction_cls = self._factory(self, in_registry)
        made: Any = self.transaction_cls
        made.__versioning_manager__ = self
        if self._plugins_built is not made:
            self._plugins_built, self._built = made, []
            self.shared_tables = [made.__table__]
            for plugin in self.plugins:
                self._build(plugin)

    def _build(self, plugin: Plugin) -> None:
        in_registry = self.transaction_cls.__mapper__.registry
        known = set(in_registry.metadata.tables.values())
        plugin.build_classes(self, in_registry)
        self._built.append(plugin)
        self.shared_tables += (t for t in in_registry.metadata.tables.values() if t not in known)

    def _take_in(self, plugin: Plugin) -> None:
        """A plugin that comes when mappers have configured makes its classes now."""
        if self._plugins_built is None or any(known is plugin for known in self._built):
            return
        for name in ("class_versioned", "version_columns"):
            if self.models.plans and getattr(type(plugin), name) is not getattr(Plugin, name):
                raise ImproperlyConfigured(
                    f"{type(plugin).__name__} comes too late: it has to do with version tables, "
                    f"which are made; give it to make_versioned() before mappers configure"
                )
        self._build(plugin)

    def resolve_user_cls(self, in_registry: registry) -> Mapper[Any] | None:
        """The mapper of ``user_cls``.

        :raises ImproperlyConfigured: if there is no such class.
        """
        if self.user_cls is None:
            return None
        ours_last = sorted(all_mappers(), key=lambda m: m.registry is in_registry)
        candidates = {m.class_.__name__: m for m in ours_last}
        for mapper in candidates.values():
            if mapper.class_ is self.user_cls or mapper.class_.__name__ == self.user_cls:
                return mapper
        raise ImproperlyConfigured(
            f"make_versioned(user_cls={self.user_cls!r}): there is no mapped class of that name; "
            f"{nearest(str(self.user_cls), candidates)}. Give the class or its name, or "
            f"user_cls=None for transactions without a user"
        )

    def _configured(self) -> None:
        self.models.finish()
        self._tracked = find_tracked(p for p in self.class_plans() if p.mapper.configured)

    # -- what others ask

    def plan(self, cls: type[Any]) -> ClassPlan:
        """The plan of a versioned class.

        :raises ClassNotVersioned: if it is not versioned by this manager.
        """
        plan = class_plan(cls)
        if plan is None or plan.manager is not self:
            raise ClassNotVersioned(f"{cls.__name__} is not versioned by this manager")
        return plan

    def class_plans(self) -> Collection[ClassPlan]:
        """The plans of all versioned classes."""
        return self.models.plans.values()

    @property
    def version_class_map(self) -> dict[type[Any], type[Any]]:
        """The version class of each versioned class."""
        found = {cls: plan.version_class for cls, plan in list(self.models.plans.items())}
        return {cls: version_class for cls, version_class in found.items() if version_class}

    def root_plans(self, session: Session) -> list[ClassPlan]:
        """The plans of versioned classes that inherit from no other one.

        As far as ``session`` finds their histories: see :meth:`metadata_of`.
        """
        there = self.metadata_of(session)
        return [
            plan
            for plan in self.models.plans.values()
            if plan.options.create_models
            and plan.root.parent.metadata in there
            and (
                plan.mapper.concrete
                or not any(
                    m.class_ in self.models.plans for m in list(plan.mapper.iterate_to_root())[1:]
                )
            )
        ]

    def association_plans(self, session: Session) -> list[TablePlan]:
        """The plans of association tables, as far as ``session`` finds their histories."""
        there = self.metadata_of(session)
        return [p for p in self.models.associations.values() if p.parent.metadata in there]

    def metadata_of(self, session: Session) -> set[MetaData]:
        """What describes the models whose histories are in the databases that ``session`` uses.

        A manager may serve several declarative bases, and each may have a database of its own.
        """
        plans: dict[MetaData, list[ClassPlan]] = {}
        for plan in self.class_plans():
            plans.setdefault(plan.root.parent.metadata, []).append(plan)
        if len(plans) == 1:
            return set(plans)
        return {
            metadata
            for metadata, described in plans.items()
            if any(_keeps_history(session, plan) for plan in described)
        }

    def unit_of_work(self, session: Session) -> UnitOfWork:
        """What is known of the session's present transaction; see :class:`UnitOfWork`."""
        work: UnitOfWork | None = session.info.get(self)
        if work is None:
            work = session.info[self] = UnitOfWork(self, session)
        return work

    def create_transaction(self, session: Session) -> Any:
        """Make the transaction row of the session's present transaction now; returns its object.

        What is set on it is saved with the next flush. The row stays, also when nothing is
        versioned in this transaction.
        """
        refuse_async(session, "create_transaction")
        work = self.unit_of_work(session)
        unit = next((u for u in work.connections.values() if u.tx is not None), None)
        if unit is None:
            unit = work.connection_unit(session.connection())
        with session.no_autoflush:  # it may give the row another id
            return session.get(self.transaction_cls, self.keep_transaction(unit))

    def keep_transaction(self, unit: ConnectionUnit) -> int:
        """The id of the unit's transaction row, which stays even if nothing is versioned."""
        self.native.read_transaction(unit)
        before = unit.tx
        if unit.tx is None:
            self.writer(unit.connection).create_transaction(
                unit, self.transaction_cls.__table__, self.transaction_row(unit.work.session)
            )
        unit.keep_transaction = True
        self.native.say_transaction(unit, before)
        assert unit.tx is not None
        return unit.tx

    def writer(self, connection: Connection) -> Writer:
        """The writer for the connection's dialect."""
        dialect = connection.dialect
        kind = (dialect.name, dialect.driver, dialect.paramstyle, dialect.insert_returning)
        writer = self._writers.get(kind)
        if writer is None:
            cls = PostgreSQLWriter if dialect.name == "postgresql" else Writer
            writer = self._writers[kind] = cls(dialect)
        return writer

    def transaction_moved(self, unit: ConnectionUnit, old: int, new: int | None) -> None:
        """A transaction got another id, or none: what refers to it follows."""
        session = unit.work.session
        for moved in self.plugins.hooks("transaction_moved"):
            moved(session, unit.connection, old, new)

    def transaction_row(self, session: Session) -> dict[str, Any]:
        """What plugins, the session and the context around say of a transaction row, by column key."""
        return collect_values(
            self.transaction_cls,
            [
                *(
                    (f"{hook.__self__!r}", hook(session))
                    for hook in self.plugins.hooks("transaction_values")
                ),
                (f"session.info[{CONTEXT_KEY!r}]", session.info.get(CONTEXT_KEY, {})),
                ("transaction_context", current_context()),
            ],
        )

    def _require_context(self, unit: ConnectionUnit, plans: Iterable[TablePlan]) -> None:
        names = {name for plan in plans for name in plan.options.require_context}
        if not names or unit.tx is None:
            return
        collect_values(self.transaction_cls, [("require_context", dict.fromkeys(names))])
        table = self.transaction_cls.__table__
        attributes = self.transaction_cls.__mapper__.attrs
        columns = [attributes[name].columns[0].label(name) for name in sorted(names)]
        row = (
            unit.connection.execute(select(*columns).where(table.c.id == unit.tx)).mappings().one()
        )
        missing = [name for name, value in row.items() if value is None]
        if missing:
            tables = ", ".join(sorted({plan.parent.name for plan in plans}))
            raise MissingContext(
                f"a change of {tables} was flushed, and the option require_context wants "
                f"{', '.join(missing)} to be known; flush inside of "
                f"'with transaction_context({missing[0]}=...):', or set "
                f"session.info[{CONTEXT_KEY!r}]"
            )

    def after_write(
        self,
        unit: ConnectionUnit,
        tables: Mapping[TablePlan, Sequence[Key] | None],
        amended: bool,
        before: int | None,
    ) -> None:
        """Versions were written in ``tables``: check who did it, and tell the plugins.

        :param tables: keys that may have been written by plan; None where only the database knows.
        :param amended: whether versions of this transaction were changed or taken back.
        :param before: the transaction's id before.
        """
        session = unit.work.session
        if self._tracked:
            parents = write_parents(
                self.writer(unit.connection),
                unit,
                self._tracked,
                tables,
                amended,
                lambda: self.transaction_row(session),
            )
            tables = {**parents, **tables}
        self._require_context(unit, tables)
        self.tell_plugins(unit, tables, amended, before)

    def tell_plugins(
        self,
        unit: ConnectionUnit,
        tables: Mapping[TablePlan, Sequence[Key] | None],
        amended: bool,
        before: int | None,
        *,
        reconstructed: bool = False,
    ) -> None:
        """Versions were written in ``tables``: the parameters are those of ``after_write()``.

        :param reconstructed: see :class:`~sqlalchemy_history.hooks.Written`.
        """
        if before is not None and unit.tx is None:
            self.transaction_moved(unit, before, None)
        hooks = self.plugins.hooks("after_write")
        if hooks and (before is not None or unit.tx is not None):
            written = Written(
                manager=self,
                session=unit.work.session,
                connection=unit.connection,
                writer=self.writer(unit.connection),
                transaction_id=unit.tx,
                tables=tables,
                amended=amended,
                reconstructed=reconstructed,
            )
            for hook in hooks:
                hook(written)

    def watch(self, engine: Any) -> None:
        """Record the statements of all connections of ``engine``, also of those without a session.

        A transaction of such a connection is a transaction of the history. Nothing changes for
        sessions. It ends with ``remove_versioning()``.

        :param engine: an ``Engine`` or an ``AsyncEngine``.
        """
        self._events.watch(engine)

    def untracked(self, plan: TablePlan, what: str, way_out: str) -> None:
        """Say, as the option ``untracked`` wants it, that a write cannot be recorded.

        :raises UntrackedWrite: if it is to be refused.
        """
        policy = plan.options.untracked
        message = (
            f"table {plan.parent.fullname!r} has a history, and {what} is not recorded; {way_out}, "
            f"or set the option untracked='ignore'"
        )
        if policy == "raise":
            raise UntrackedWrite(message)
        if policy == "warn" and (plan, what) not in self._said:
            self._said.add((plan, what))
            warnings.warn(UntrackedWriteWarning(message), stacklevel=_level_of_user())


def _keeps_history(session: Session, plan: ClassPlan) -> bool:
    try:
        connection = session.connection(bind_arguments={"mapper": plan.mapper})
    except UnboundExecutionError:
        return False
    return keeps_history(connection, plan.root.version)


def _added_by_configuring(metadata: MetaData, event_arguments: dict[str, Any]) -> list[Table]:
    """Configure; the tables that this adds to ``metadata`` if all of them are meant."""
    known = set(metadata.tables.values())
    configure_mappers_of(metadata)
    if getattr(event_arguments.get("_ddl_runner"), "tables", None) is not None:
        return []
    return [table for table in metadata.tables.values() if table not in known]


def _level_of_user() -> int:
    """How many frames up the code is that is neither ours nor SQLAlchemy's."""
    level, frame = 1, sys._getframe(1)
    ours = ("sqlalchemy", "sqlalchemy_history")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ours:
        level, frame = level + 1, frame.f_back
    return level


#: the default manager: what ``make_versioned()`` starts
versioning_manager: VersioningManager = VersioningManager(user_cls="User")


def make_versioned(
    mapper: Any = Mapper,
    session: Any = Session,
    manager: VersioningManager = versioning_manager,
    plugins: Iterable[Plugin] | None = None,
    options: OptionsDict | None = None,
    user_cls: type[Any] | str | None = "User",
) -> None:
    """Record the history of every model that has a ``__versioned__``.

    Call it before the models are used, best before they are declared. It may be called again: the
    settings change, and nothing is recorded twice.

    :param mapper: whose subclasses are meant: all mapped classes, or a declarative base.
    :param session: which sessions are watched: all, a subclass of ``Session``, a ``sessionmaker``
        or a session.
    :param manager: the manager to start. One of your own has models, options and a Transaction class
        of its own.
    :param plugins: see :mod:`sqlalchemy_history.plugins`; None leaves those of the manager.
    :param options: see :class:`~sqlalchemy_history.config.Options`. Those that it does not name have
        their defaults; None leaves the manager's options as they are.
    :param user_cls: the class that ``Transaction.user`` refers to, or its name; None for none.
    :raises ImproperlyConfigured: for an unknown option. A missing ``user_cls`` is found when mappers
        configure.

    >>> make_versioned(user_cls=None, options={"strategy": "validity"})
    >>> remove_versioning()
    """
    manager.user_cls = user_cls
    if options is not None:
        manager.options = options
    if plugins is not None:
        manager.plugins = plugins
    manager.start(mapper, session)


def remove_versioning(
    mapper: Any = Mapper, session: Any = Session, manager: VersioningManager = versioning_manager
) -> None:
    """Stop recording and remove every listener. What was recorded stays, and can be read.

    :param mapper: not needed; sqlalchemy-history and SQLAlchemy-Continuum have it.
    :param session: likewise.
    :param manager: the manager to stop.
    """
    manager.stop()
