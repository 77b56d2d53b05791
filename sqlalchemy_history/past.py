"""A session in which the live classes, and raw SQL, show the past.

::

    with time_machine(engine, transaction) as past:
        past.scalars(select(Article).join(Article.tags)).all()    # as it was
        past.execute(text("SELECT count(*) FROM article"))        # as it was, too

On its connection, and on no other, views of the versions that were live at that moment take the
names of the live tables: temporary views on PostgreSQL and SQLite. MariaDB has none; temporary
tables take their place, filled on entry. Nothing about the application's code has to change, and
nothing it does can change anything.

What has no history shows its present state: tables without versions (the transaction table and the
version tables among them), and columns that are excluded. What is without a version, because it
was there before versioning, is not shown at all: see ``backfill()``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    Connection,
    Engine,
    Select,
    and_,
    column,
    event,
    inspect,
    literal_column,
    select,
    table,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, configure_mappers
from sqlalchemy.schema import ExecutableDDLElement

from .difference import shown
from .exc import VersioningError
from .plan import TablePlan, class_of, class_plan, only_manager
from .query import Moment, moment

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

    from .manager import VersioningManager

#: what a statement may begin with
_READS: Final = re.compile(
    r"\s*\(*\s*(select|with|values|explain|show|pragma|describe|table)\b"
    r"|\s*(savepoint|release|rollback to)\b",
    re.IGNORECASE,
)
#: a WITH that writes
_WRITES: Final = re.compile(
    r"\b(insert\s+into|delete\s+from|merge\s+into|replace\s+into"
    r"|update\s+[^\s(]+\s+(as\s+\S+\s+)?set)\b",
    re.IGNORECASE,
)
_QUOTED: Final = re.compile(r"'(?:[^']|'')*'|--[^\n]*|/\*.*?\*/", re.DOTALL)


class ReadOnlyError(VersioningError):
    """Something was to be written in a :func:`time_machine`."""


def time_machine(
    bind: Engine | Connection | AsyncEngine | AsyncConnection,
    at: Moment,
    *,
    manager: VersioningManager | None = None,
) -> TimeMachine:
    """A context manager that gives a read-only session on the past.

    :param bind: an ``Engine`` or ``Connection``, for ``with`` and a ``Session``; or an
        ``AsyncEngine`` or ``AsyncConnection``, for ``async with`` and an ``AsyncSession``. The
        connection goes back to the pool as it came.
    :param at: a Transaction (the state that it left), its id, a version, or an aware datetime.
    :param manager: whose models are meant, where there is more than one manager.
    :raises TypeError: if ``at`` is none of these, or a naive datetime; for a session as ``bind``.
    :raises VersioningError: on entry, if the database or a table does not allow it.

    Writing raises :class:`ReadOnlyError`. A SQLite database in memory has one connection for all:
    there, others see the past as well until the session is closed.
    """
    return TimeMachine(bind, at, manager)


class TimeMachine:
    """What :func:`time_machine` returns, for one ``with`` or ``async with``."""

    def __init__(self, bind: Any, at: Moment, manager: VersioningManager | None) -> None:
        if not isinstance(bind, (Engine, Connection)) and not hasattr(bind, "sync_engine"):
            raise TypeError(
                f"time_machine() takes an engine or a connection, not a {type(bind).__name__}; "
                f"that of a session is session.bind"
            )
        configure_mappers()
        self._manager = manager or _manager_of(at)
        self._plans = self._manager.models.table_plans
        if not self._plans:
            raise VersioningError("time_machine(): the manager has no versioned classes")
        self._at = moment(next(iter(self._manager.models.plans.values())), at)
        self._bind: Any = bind

    def __enter__(self) -> Session:
        if hasattr(self._bind, "sync_engine"):
            raise VersioningError("an async engine needs `async with time_machine(...)`")
        with ExitStack() as stack:
            connection: Any = self._bind
            if not isinstance(connection, Connection):
                connection = stack.enter_context(connection.connect())
            past = _Past(connection, self._plans)
            stack.callback(past.leave)
            past.enter(self._at)
            session = Session(connection, join_transaction_mode="create_savepoint")
            stack.enter_context(session)
            _refuse_flushes(session)
            self._exit = stack.pop_all()
        return session

    def __exit__(self, *error: object) -> None:
        self._exit.__exit__(*error)  # type: ignore[arg-type]

    async def __aenter__(self) -> AsyncSession:
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession  # noqa: PLC0415 - asyncio alone needs it

        async with AsyncExitStack() as stack:
            connection: Any = self._bind
            if not isinstance(connection, AsyncConnection):
                connection = await stack.enter_async_context(connection.connect())
            assert connection.sync_connection is not None
            past = _Past(connection.sync_connection, self._plans)
            stack.push_async_callback(connection.run_sync, lambda _: past.leave())
            await connection.run_sync(lambda _: past.enter(self._at))
            session = AsyncSession(connection, join_transaction_mode="create_savepoint")
            await stack.enter_async_context(session)
            _refuse_flushes(session.sync_session)
            self._aexit = stack.pop_all()
        return session

    async def __aexit__(self, *error: object) -> None:
        await self._aexit.__aexit__(*error)  # type: ignore[arg-type]


class _Past:
    """The views on one connection, from :meth:`enter` to :meth:`leave`."""

    def __init__(self, connection: Connection, plans: list[TablePlan]) -> None:
        self.connection = connection
        self.plans = plans
        self._made: list[_View] = []
        self._entered = False

    def enter(self, at: Any) -> None:
        connection, dialect = self.connection, self.connection.dialect
        if connection.in_transaction():
            raise VersioningError(
                "time_machine() needs a connection that is in no transaction; commit first, or "
                "give the engine"
            )
        kind = _KINDS.get("mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name)
        if kind is None:
            raise VersioningError(
                f"time_machine() works on PostgreSQL, SQLite and MariaDB, not on {dialect.name}; "
                f"as_of() of the version classes shows the same there"
            )
        self._entered = True
        if dialect.name == "postgresql" and connection.get_isolation_level() == "AUTOCOMMIT":
            raise VersioningError(
                "time_machine() needs a transaction, and the connection is in AUTOCOMMIT; give "
                "engine.execution_options(isolation_level='REPEATABLE READ')"
            )
        if not isinstance(at, int):
            at = connection.scalar(select(at)) or 0
        for view in list(self._views(kind, at)):
            connection.execute(view)
            self._made.append(view)
        if dialect.name == "postgresql":
            # statements that the driver has prepared refer to the live tables
            connection.exec_driver_sql("DISCARD PLANS")
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
        elif dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = ON")
        else:
            connection.commit()
            connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
            connection.commit()
        event.listen(connection, "before_cursor_execute", _refuse_writes, retval=True)

    def leave(self) -> None:
        if not self._entered:
            return
        connection = self.connection
        try:
            if event.contains(connection, "before_cursor_execute", _refuse_writes):
                event.remove(connection, "before_cursor_execute", _refuse_writes)
            lost = connection.invalidated
            connection.rollback()
            if not lost:
                self._drop_views()
        except BaseException:
            connection.invalidate()  # nobody else shall see the past
            raise

    def _drop_views(self) -> None:
        connection, dialect = self.connection, self.connection.dialect.name
        if dialect == "postgresql":
            return  # the views went with the transaction
        if dialect == "sqlite":
            connection.exec_driver_sql("PRAGMA query_only = OFF")
        else:
            connection.exec_driver_sql("SET SESSION TRANSACTION READ WRITE")
            connection.commit()
        for view in self._made:
            connection.execute(_DropView(view))
        connection.commit()

    def _views(self, kind: str, at: int) -> Iterator[_View]:
        tables_in = cache(inspect(self.connection).get_table_names)
        translated = self.connection.get_execution_options().get("schema_translate_map") or {}
        dialect = self.connection.dialect
        default = "main" if dialect.name == "sqlite" else dialect.default_schema_name
        for plan in self.plans:
            live, name = plan.parent, plan.parent.name
            schema = translated.get(live.schema, live.schema)
            if schema not in (None, default) or live.schema is not None:
                raise VersioningError(
                    f"time_machine() cannot shadow table {name!r}: statements name its schema "
                    f"{schema or live.schema!r}. Let the search path of the connection find it, or "
                    f"use as_of() of the version classes"
                )
            if name not in tables_in(None):
                continue  # a table of another database
            history = plan.version.schema
            if plan.version.name not in tables_in(translated.get(history, history)):
                raise VersioningError(
                    f"table {name!r} is here, and {plan.version.name!r}, which its history is in, "
                    f"is not: create it first"
                )
            yield _View(kind, name, _rows_at(plan, at, default), [c.name for c, _ in plan.keys])


#: what stands for the past, by dialect
_KINDS: Final = {
    "postgresql": "TEMPORARY VIEW",
    "sqlite": "TEMPORARY VIEW",
    "mariadb": "TEMPORARY TABLE",
}


class _View(ExecutableDDLElement):
    """``name`` on this connection: the rows of ``rows``."""

    def __init__(self, kind: str, name: str, rows: Select[Any], keys: list[str]) -> None:
        self.kind, self.name, self.rows, self.keys = kind, name, rows, keys


class _DropView(ExecutableDDLElement):
    def __init__(self, view: _View) -> None:
        self.view = view


@compiles(_View)
def _create(element: _View, compiler: Any, **kw: Any) -> str:
    quote = compiler.preparer.quote
    keys = ", ".join(map(quote, element.keys))
    index = f" (PRIMARY KEY ({keys}))" if element.kind.endswith("TABLE") else ""
    rows = compiler.sql_compiler.process(element.rows, literal_binds=True)
    return f"CREATE {element.kind} {quote(element.name)}{index} AS {rows}"


@compiles(_DropView)
def _drop(element: _DropView, compiler: Any, **kw: Any) -> str:
    view = element.view
    # where a view is dropped by name, the live table must not be what is found
    name = compiler.preparer.quote(view.name)
    if view.kind.endswith("VIEW"):
        return f"DROP VIEW IF EXISTS temp.{name}"
    return f"DROP TEMPORARY TABLE IF EXISTS {name}"


def _rows_at(plan: TablePlan, at: int, default_schema: str | None) -> Select[Any]:
    """The rows of the live table as they were; what has no history is as it is now."""
    version_of = dict(plan.columns)
    parent = plan.parent
    live = table(parent.name, *(column(c.name) for c in parent.c), schema=default_schema)
    columns = [
        (live.c[c.name] if c not in version_of else version_of[c]).label(c.name) for c in parent.c
    ]
    rows: Select[Any] = select(*columns).where(
        plan.strategy.was_live(plan, plan.version, literal_column(str(at)))
    )
    if len(version_of) == len(columns):
        return rows
    same = and_(*(live.c[c.name] == version for c, version in plan.keys))
    return rows.select_from(plan.version.outerjoin(live, same))


def _manager_of(at: Any) -> VersioningManager:
    manager: VersioningManager | None = getattr(at, "__versioning_manager__", None)
    cls = class_of(at)
    plan = None if cls is None else class_plan(cls)
    if manager is not None or plan is not None:
        return manager or plan.manager  # type: ignore[union-attr]
    return only_manager("time_machine(bind, at, manager=...)")


def _refuse_flushes(session: Session) -> None:
    @event.listens_for(session, "before_flush")
    def refuse(session: Session, context: Any, instances: Any) -> None:
        for obj in (*session.new, *session.deleted, *filter(session.is_modified, session.dirty)):
            raise ReadOnlyError(
                f"{shown(obj)} cannot be written: this session shows the past; change the object in a "
                f"session of the present, or revert to a version"
            )


def _refuse_writes(
    connection: Connection, cursor: Any, sql: str, parameters: Any, context: Any, many: bool
) -> tuple[str, Any]:
    bare = _QUOTED.sub("", sql)
    if not _READS.match(bare) or (
        bare.lstrip().lower().startswith("with") and _WRITES.search(bare)
    ):
        raise ReadOnlyError(
            f"{' '.join(sql.split())[:60]!r} cannot be run: this session shows the past; use a "
            f"session of the present"
        )
    return sql, parameters
