"""The composition root: the one object that holds the parts together.

``versioning_manager`` is the default instance, which ``make_versioned()`` configures and starts;
more of them can be made, and live side by side.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from inspect import signature
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, Table, event, select
from sqlalchemy.orm import Mapper, ORMExecuteState, Session, SessionTransaction, registry

from . import bulk, capture, stamp
from .config import Options, OptionsDict, nearest
from .context import CONTEXT_KEY, current_context, is_disabled
from .exc import (
    ClassNotVersioned,
    ImproperlyConfigured,
    MissingContext,
    UntrackedWrite,
    UntrackedWriteWarning,
    refuse_async,
)
from .hooks import Plugin, PluginCollection, Written
from .models import Models, all_mappers, wants_versions
from .native import Native
from .plan import CHAINS_KEY, UNSEEN, ClassPlan, Key, TablePlan, class_plan, configure_mappers_of
from .query import show_moment
from .tracking import Tracked, find_tracked, write_parents
from .transaction import TransactionFactory, collect_values
from .unit_of_work import ConnectionUnit, UnitOfWork
from .untracked import hidden_writes, written_tables
from .watch import Watch
from .write import Writer
from .write_postgresql import PostgreSQLWriter


class VersioningManager:
    """Holds the options, the plans and the listeners of one set of versioned models.

    :param user_cls: class that ``Transaction.user`` refers to, or its name; None for none.
    :param transaction_cls: a :class:`TransactionFactory`, or a Transaction class of your own.
    :param options: see :class:`~sqlalchemy_history.config.Options`.
    :param plugins: see :mod:`sqlalchemy_history.plugins`.
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
        # the flush asks for them by class and by table
        self._plans = self.models.plans
        self._captured = self.models.captured
        self._listeners: list[tuple[Any, str, Callable[..., Any]]] = []
        self._metadata: weakref.WeakSet[MetaData] = weakref.WeakSet()
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._writers: dict[tuple[object, ...], Writer] = {}
        self._statements = bulk.Statements(self)
        self._watch = Watch(self)
        self._engine_listeners: dict[str, Callable[..., Any]] = {
            "before_execute": self._before_execute,
            "before_cursor_execute": self._before_cursor_execute,
            "after_execute": self._after_execute,
            "handle_error": self._handle_error,
            "commit": self._before_commit,
            "prepare_twophase": self._before_commit,
            "rollback": self._before_rollback,
            "rollback_twophase": self._before_rollback,
        }
        #: what was said about untracked writes
        self._said: set[tuple[TablePlan, str]] = set()
        self._target: Any = None
        #: the collections that ``track_relations`` names
        self._tracked: list[Tracked] = []
        #: the tables of the Transaction class and of plugins, which each database needs
        self.shared_tables: list[Table] = []
        #: from a connection to the unit of work of its session, which the session keeps
        self._works: weakref.WeakKeyDictionary[Connection, weakref.ref[UnitOfWork]] = (
            weakref.WeakKeyDictionary()
        )

    # -- options

    @property
    def options(self) -> Options:
        """What holds for all classes; assign a dict to change some of it."""
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
        self.stop()
        self._target = mapper.class_ if isinstance(mapper, Mapper) else mapper
        below = {} if mapper is Mapper else {"propagate": True}
        self._listen(mapper, "instrument_class", self._class_instrumented, **below)
        self._listen(Mapper, "before_configured", self.models.build)
        self._listen(Mapper, "after_configured", self.models.finish)
        self._listen(Mapper, "after_configured", self._find_tracked)
        self._listen(session, "after_begin", self._after_begin)
        self._listen(session, "do_orm_execute", self._show_moment)
        self._listen(session, "do_orm_execute", self._choose_bind)
        self._listen(session, "before_flush", self._before_flush)
        self._listen(session, "after_flush", self._after_flush)
        self._listen(session, "before_commit", self._follow_triggers)
        self._listen(session, "after_commit", self._after_commit)
        self._listen(session, "after_soft_rollback", self._after_soft_rollback)
        self._listen(session, "after_transaction_end", self._after_transaction_end)
        self.models.started()

    def stop(self) -> None:
        """Remove every listener of this manager. What was recorded stays."""
        self.models.stopped()
        for target, name, listener in self._listeners:
            if event.contains(target, name, listener):
                event.remove(target, name, listener)
        self._listeners.clear()
        for engine in self._engines:
            for name, listener in self._engine_listeners.items():
                event.remove(engine, name, listener)
        self._engines.clear()
        self._watch.stop()
        for metadata in self._metadata:
            event.remove(metadata, "before_create", self._before_create)
            event.remove(metadata, "after_create", self._after_create)
            event.remove(metadata, "before_drop", self._before_drop)
        self._metadata.clear()

    def reset(self) -> None:
        """Forget all models, and the Transaction class that was made for them."""
        self.models.forget()
        self._tracked = []
        self._writers.clear()
        self._statements.forget()
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

    def _listen(self, target: Any, name: str, listener: Callable[..., Any], **kw: Any) -> None:
        event.listen(target, name, listener, **kw)
        self._listeners.append((target, name, listener))

    # -- set-up of classes

    def _class_instrumented(self, mapper: Mapper[Any], cls: type[Any]) -> None:
        """A class is being mapped: let ``create_all()`` of its metadata know about versions."""
        if wants_versions(cls):
            self.watch_metadata(getattr(mapper.local_table, "metadata", None))

    def watch_metadata(self, metadata: MetaData | None) -> None:
        """Let ``create_all()`` and ``drop_all()`` of ``metadata`` know about version tables."""
        if metadata is not None and metadata not in self._metadata:
            self._metadata.add(metadata)
            event.listen(metadata, "before_create", self._before_create)
            event.listen(metadata, "after_create", self._after_create)
            event.listen(metadata, "before_drop", self._before_drop)

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
            if self._plans and getattr(type(plugin), name) is not getattr(Plugin, name):
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

    def _find_tracked(self) -> None:
        self._tracked = find_tracked(p for p in self._plans.values() if p.mapper.configured)

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
        return self._plans.values()

    @property
    def version_class_map(self) -> dict[type[Any], type[Any]]:
        """The version class of each versioned class."""
        found = {cls: plan.version_class for cls, plan in list(self._plans.items())}
        return {cls: version_class for cls, version_class in found.items() if version_class}

    def root_plans(self) -> list[ClassPlan]:
        """The plans of versioned classes that inherit from no other one."""
        return [
            plan
            for plan in self._plans.values()
            if plan.options.create_models
            and (
                plan.mapper.concrete
                or not any(m.class_ in self._plans for m in list(plan.mapper.iterate_to_root())[1:])
            )
        ]

    def unit_of_work(self, session: Session) -> UnitOfWork:
        """The unit of work of the session's present transaction."""
        work: UnitOfWork | None = session.info.get(self)
        if work is None:
            work = session.info[self] = UnitOfWork(self, session)
        return work

    def create_transaction(self, session: Session) -> Any:
        """Make the transaction row of the session's present transaction now."""
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

    # -- sessions

    def _show_moment(self, execute_state: ORMExecuteState) -> Any:
        return show_moment(execute_state)

    def _choose_bind(self, execute_state: ORMExecuteState) -> None:
        """History is where the live rows are, also in a session that has binds for classes alone."""
        session, mapper = execute_state.session, execute_state.bind_mapper
        get_bind = type(session).get_bind
        if "bind" in execute_state.bind_arguments or not _takes_bind(get_bind):
            return  # somebody else chooses
        plan: ClassPlan | None = getattr(getattr(mapper, "class_", None), "__version_plan__", None)
        if mapper is not None and mapper.class_ is self.transaction_cls:
            loaded_from = execute_state.lazy_loaded_from if execute_state.is_select else None
            if loaded_from is not None:
                plan = class_plan(loaded_from.class_)
            elif session.bind is None and get_bind is Session.get_bind:
                plan = next(iter(self._plans.values()), None)
        if plan is not None:
            execute_state.bind_arguments["bind"] = session.get_bind(plan.mapper)

    def _after_begin(
        self, session: Session, transaction: SessionTransaction, connection: Connection
    ) -> None:
        work = self.unit_of_work(session)
        if self._metadata:
            self._works[connection] = weakref.ref(work)
            self._listen_to_engine(connection.engine)
        work.connection_unit(connection)

    def _listen_to_engine(self, engine: Any) -> None:
        # an engine with execution options of its own passes on the events of the one it is made of
        engine = getattr(engine, "_proxied", engine)
        if engine not in self._engines:
            self._engines.add(engine)
            for name, listener in self._engine_listeners.items():
                event.listen(engine, name, listener, retval=name.startswith("before_"))

    def _before_flush(self, session: Session, flush_context: Any, instances: Any) -> None:
        self.unit_of_work(session).flush_context = flush_context

    def _after_flush(self, session: Session, flush_context: Any) -> None:
        work: UnitOfWork | None = session.info.get(self)
        if work is not None:
            work.flush_context = None
        if work is not None and not is_disabled(session):
            capture.note_flush(work, self._captured, flush_context)
            for unit in work.connections.values():
                if unit.has_news:
                    self._write(session, unit)
        self._follow_triggers(session)

    def _follow_triggers(self, session: Session) -> None:
        """What somebody holds or has said of a transaction goes where a trigger has moved it."""
        if not self.native.plans:
            return
        work: UnitOfWork | None = session.info.get(self)
        for unit in () if work is None else work.connections.values():
            if unit.keep_transaction:
                self.native.read_transaction(unit)

    def _write(self, session: Session, unit: ConnectionUnit) -> None:
        changes = capture.collect_changes(unit)
        unit.plugin_news = False
        if changes:
            self.native.read_transaction(unit)
        before = unit.tx
        amended = False
        if changes:
            amended = self.writer(unit.connection).write(
                unit, changes, lambda: self.transaction_row(session)
            )
            session.info.pop(CHAINS_KEY, None)
            self.native.say_transaction(unit, before)
        self.after_write(unit, {plan: c.keys for plan, c in changes.items()}, amended, before)

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

    # -- statements

    def watch(self, engine: Any) -> None:
        """Record the statements of all connections of ``engine``, also of those without a session.

        A transaction of the connection is a transaction of the history. What a session does with
        a connection of the engine is recorded as ever.

        :param engine: an ``Engine`` or an ``AsyncEngine``.
        """
        engine = getattr(engine, "sync_engine", engine)
        engine = getattr(engine, "_proxied", engine)
        self._listen_to_engine(engine)
        self._watch.add(engine)

    def _work_of(self, connection: Connection, options: Any) -> UnitOfWork | None:
        if UNSEEN in options:
            return None
        known = self._works.get(connection)
        work = known() if known is not None else self._watch.work_of(connection)
        return None if work is None or is_disabled(work.session) else work

    def _before_commit(self, connection: Connection, *_: Any) -> None:
        """The connection's transaction is about to be committed, or prepared to be."""
        unit = self._told_unit(connection)
        if unit is not None:
            self.native.finish(unit)

    def _before_rollback(self, connection: Connection, *_: Any) -> None:
        unit = self._told_unit(connection)
        if unit is not None:
            self.native.rolled_back(unit)

    def _told_unit(self, connection: Connection) -> ConnectionUnit | None:
        """What the triggers were told about, whether or not versioning is disabled by now."""
        if not self.native.plans:
            return None
        known = self._works.get(connection)
        work = self._watch.work_of(connection) if known is None else known()
        unit = None if work is None else work.connection_unit(connection)
        return None if unit is None or unit.told is None else unit

    def _before_execute(
        self, connection: Connection, statement: Any, multiparams: Any, params: Any, options: Any
    ) -> tuple[Any, Any, Any]:
        if getattr(statement, "is_dml", False):
            statement, multiparams, params = stamp.extend(
                connection, statement, multiparams, params, options
            )
            work = self._work_of(connection, options)
            if work is not None and not self._statements.is_left_to_flush(work, statement, options):
                rows = multiparams or ([params] if params else [])
                unit = work.connection_unit(connection)
                statement = self._statements.begin(unit, statement, rows, options)
        return statement, multiparams, params

    def _after_execute(
        self,
        connection: Connection,
        statement: Any,
        multiparams: Any,
        params: Any,
        options: Any,
        result: Any,
    ) -> None:
        if getattr(statement, "is_dml", False):
            work = self._work_of(connection, options)
            if work is not None:
                self._statements.end(work.connection_unit(connection), statement, result)

    def _before_cursor_execute(
        self,
        connection: Connection,
        cursor: Any,
        sql: str,
        parameters: Any,
        context: Any,
        executemany: bool,
    ) -> tuple[str, Any]:
        compiled = None if context.is_text else context.compiled
        if compiled is None or (not context.isddl and compiled.ctes):
            tables = written_tables(sql) if compiled is None else hidden_writes(compiled)
            work = self._work_of(connection, context.execution_options) if tables else None
            if work is not None:
                self._statements.warn_of(work.connection_unit(connection), tables, compiled is None)
        return sql, parameters

    def _handle_error(self, context: Any) -> None:
        connection = context.connection
        if connection is not None and not context.is_disconnect:
            work = self._work_of(connection, connection.get_execution_options())
            if work is not None:
                self._statements.failed(work.connection_unit(connection))

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

    def _after_commit(self, session: Session) -> None:
        """A savepoint was released; or, without one, the whole transaction was committed."""
        work: UnitOfWork | None = session.info.get(self)
        savepoint = session.get_nested_transaction()
        if work is not None and savepoint is not None:
            parent = savepoint.parent
            while parent is not None and not parent.nested and parent.parent is not None:
                parent = parent.parent
            assert parent is not None
            for unit in work.connections.values():
                unit.released(savepoint, parent)

    def _after_soft_rollback(
        self, session: Session, previous_transaction: SessionTransaction
    ) -> None:
        session.info.pop(CHAINS_KEY, None)
        work: UnitOfWork | None = session.info.get(self)
        if work is not None:
            work.flush_context = None
            for unit in work.connections.values():
                unit.forget_news()

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.nested:
            work: UnitOfWork | None = session.info.get(self)
            if work is not None:
                for unit in work.connections.values():
                    unit.ended(transaction)
        elif transaction.parent is None:
            session.info.pop(CHAINS_KEY, None)
            work = session.info.pop(self, None)
            if work is not None:
                for connection in work.connections:
                    self._works.pop(connection, None)


def _added_by_configuring(metadata: MetaData, event_arguments: dict[str, Any]) -> list[Table]:
    """Configure; the tables that this adds to ``metadata`` if all of them are meant."""
    known = set(metadata.tables.values())
    configure_mappers_of(metadata)
    if getattr(event_arguments.get("_ddl_runner"), "tables", None) is not None:
        return []
    return [table for table in metadata.tables.values() if table not in known]


@cache
def _takes_bind(get_bind: Callable[..., Any]) -> bool:
    """Whether ``get_bind()`` of a session class can be told what was chosen."""
    parameters = signature(get_bind).parameters
    return "bind" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )


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

    Call it before the models are used, best before they are declared. Calling it again changes
    the settings and records nothing twice.

    :param mapper: whose subclasses are meant: all mapped classes, or a declarative base.
    :param session: which sessions are watched: all, a subclass of ``Session``, a ``sessionmaker``
        or a session.
    :param manager: the manager to start; a :class:`VersioningManager` of your own keeps its models,
        options and Transaction class apart.
    :param plugins: see :mod:`sqlalchemy_history.plugins`; None leaves those of the manager.
    :param options: see :class:`~sqlalchemy_history.config.Options`.
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

    :param mapper: accepted from the peers; what was listened to is known.
    :param session: likewise.
    """
    manager.stop()
