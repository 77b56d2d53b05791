"""What is recorded when: from the events of sessions and connections on to those who record it.

A session's flush goes to ``capture``, which says what changed, and on to the writer. Statements that
a connection executes outside of a flush go to ``execution``. The unit of work, in ``session.info``, begins
and ends with the session's transaction and its savepoints.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction

from . import capture, stamp
from .context import is_disabled
from .execution import Statements
from .listeners import Listeners
from .plan import CHAINS_KEY, UNSEEN, ClassPlan, class_plan
from .query import show_moment
from .unit_of_work import ConnectionUnit, UnitOfWork
from .untracked import hidden_writes, written_tables
from .watch import Watch

if TYPE_CHECKING:
    from .manager import VersioningManager


class Events:
    """Listens for ``manager`` to sessions and to the engines of their connections."""

    def __init__(self, manager: VersioningManager) -> None:
        self._manager = manager
        self._native = manager.native
        self._models = manager.models
        self._statements = Statements(manager)
        self._watch = Watch(manager)
        self._sessions = Listeners()
        #: what ``listen()`` was given: a ``sessionmaker`` is not kept by its sessions
        self._session: Any = None
        self._engines = Listeners()
        #: from a connection to the unit of work of its session, which the session keeps
        self._works: weakref.WeakKeyDictionary[Connection, weakref.ref[UnitOfWork]] = (
            weakref.WeakKeyDictionary()
        )

    def listen(self, session: Any) -> None:
        """Record what is done in ``session``: a class of sessions, a ``sessionmaker`` or one session."""
        self._session = session
        self._sessions.add(
            session,
            {
                "after_begin": self._after_begin,
                "before_flush": self._before_flush,
                "after_flush": self._after_flush,
                "before_commit": self._follow_triggers,
                "after_commit": self._after_commit,
                "after_soft_rollback": self._after_soft_rollback,
                "after_transaction_end": self._after_transaction_end,
            },
        )
        self._sessions.add(session, {"do_orm_execute": self._show_moment})
        self._sessions.add(session, {"do_orm_execute": self._choose_bind})

    def stop(self) -> None:
        """Record nothing any more."""
        self._sessions.clear()
        self._session = None
        self._engines.clear()
        self._watch.stop()

    def forget(self) -> None:
        """Forget the statements that were built for tables."""
        self._statements.forget()

    def watched(self) -> list[Engine]:
        """The engines that ``watch()`` was given."""
        return self._watch.engines()

    def watch(self, engine: Any) -> None:
        """See :meth:`.VersioningManager.watch`."""
        engine = getattr(engine, "sync_engine", engine)
        engine = getattr(engine, "_proxied", engine)
        self._listen_to_engine(engine)
        self._watch.add(engine)

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
        if mapper is not None and mapper.class_ is self._manager.transaction_cls:
            loaded_from = execute_state.lazy_loaded_from if execute_state.is_select else None
            if loaded_from is not None:
                plan = class_plan(loaded_from.class_)
            elif session.bind is None and get_bind is Session.get_bind:
                plan = next(iter(self._models.plans.values()), None)
        if plan is not None:
            execute_state.bind_arguments["bind"] = session.get_bind(plan.mapper)

    def _after_begin(
        self, session: Session, transaction: SessionTransaction, connection: Connection
    ) -> None:
        work = self._manager.unit_of_work(session)
        if self._manager.has_models:
            self._works[connection] = weakref.ref(work)
            self._listen_to_engine(connection.engine)
        work.connection_unit(connection)

    def _listen_to_engine(self, engine: Any) -> None:
        # an engine with execution options of its own passes on the events of the one it is made of
        engine = getattr(engine, "_proxied", engine)
        if engine not in self._engines:
            self._engines.add(
                engine,
                {
                    "before_execute": self._before_execute,
                    "before_cursor_execute": self._before_cursor_execute,
                },
                retval=True,
            )
            self._engines.add(
                engine,
                {
                    "after_execute": self._after_execute,
                    "handle_error": self._handle_error,
                    "commit": self._before_commit,
                    "prepare_twophase": self._before_commit,
                    "rollback": self._before_rollback,
                    "rollback_twophase": self._before_rollback,
                },
            )

    def _before_flush(self, session: Session, flush_context: Any, instances: Any) -> None:
        self._manager.unit_of_work(session).flush_context = flush_context

    def _after_flush(self, session: Session, flush_context: Any) -> None:
        work: UnitOfWork | None = session.info.get(self._manager)
        if work is not None:
            work.flush_context = None
        if work is not None and not is_disabled(session):
            capture.note_flush(work, self._models.captured, flush_context)
            for unit in work.connections.values():
                if unit.has_news:
                    self._write(session, unit)
        self._follow_triggers(session)

    def _follow_triggers(self, session: Session) -> None:
        """What somebody holds or has said of a transaction goes where a trigger has moved it."""
        if not self._native.plans:
            return
        work: UnitOfWork | None = session.info.get(self._manager)
        for unit in () if work is None else work.connections.values():
            if unit.keep_transaction:
                self._native.read_transaction(unit)

    def _write(self, session: Session, unit: ConnectionUnit) -> None:
        changes = capture.collect_changes(unit)
        unit.plugin_news = False
        if changes:
            self._native.read_transaction(unit)
        before = unit.tx
        amended = False
        if changes:
            amended = self._manager.writer(unit.connection).write(
                unit, changes, lambda: self._manager.transaction_row(session)
            )
            session.info.pop(CHAINS_KEY, None)
            self._native.say_transaction(unit, before)
        self._manager.after_write(
            unit, {plan: c.keys for plan, c in changes.items()}, amended, before
        )

    # -- statements

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
            self._native.finish(unit)

    def _before_rollback(self, connection: Connection, *_: Any) -> None:
        unit = self._told_unit(connection)
        if unit is not None:
            self._native.rolled_back(unit)

    def _told_unit(self, connection: Connection) -> ConnectionUnit | None:
        """What the triggers were told about, whether or not versioning is disabled by now."""
        if not self._native.plans:
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

    def _after_commit(self, session: Session) -> None:
        """A savepoint was released; or, without one, the whole transaction was committed."""
        work: UnitOfWork | None = session.info.get(self._manager)
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
        work: UnitOfWork | None = session.info.get(self._manager)
        if work is not None:
            work.flush_context = None
            for unit in work.connections.values():
                unit.forget_news()

    def _after_transaction_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.nested:
            work: UnitOfWork | None = session.info.get(self._manager)
            if work is not None:
                for unit in work.connections.values():
                    unit.ended(transaction)
        elif transaction.parent is None:
            session.info.pop(CHAINS_KEY, None)
            work = session.info.pop(self._manager, None)
            if work is not None:
                for connection in work.connections:
                    self._works.pop(connection, None)


@cache
def _takes_bind(get_bind: Callable[..., Any]) -> bool:
    """Whether ``get_bind()`` of a session class can be told what was chosen."""
    parameters = signature(get_bind).parameters
    return "bind" in parameters or any(
        parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()
    )
