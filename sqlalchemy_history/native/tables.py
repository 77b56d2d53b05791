"""When triggers are made and dropped, and what a session tells them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Table, event, select

from sqlalchemy_history.context import CONTEXT_KEY, current_context
from sqlalchemy_history.exc import ImproperlyConfigured
from sqlalchemy_history.plan import CHAINS_KEY, TablePlan, table_plan
from sqlalchemy_history.triggers import table_exists
from sqlalchemy_history.unit_of_work import ConnectionUnit
from sqlalchemy_history.write import default_expressions, transaction_values

from .render import Renderer, TriggerDDL

if TYPE_CHECKING:
    from sqlalchemy_history.manager import VersioningManager

#: by dialect, the module that knows its triggers; it is loaded when there is need for it
_BACKENDS: Final = {
    "postgresql": ".postgresql",
    "sqlite": ".sqlite",
    "mysql": ".mysql",
    "mariadb": ".mysql",
}


class Native:
    """The tables of one manager whose versions are written by triggers.

    :ivar plans: of those tables.
    """

    def __init__(self, manager: VersioningManager) -> None:
        self._manager = manager
        self.plans: dict[TablePlan, None] = {}
        self._listeners: list[tuple[Table, str, Callable[..., Any]]] = []

    def watch(self, plan: TablePlan) -> None:
        """A table was made versioned; if by triggers, they come and go with it."""
        if not plan.options.native_versioning or plan in self.plans:
            return
        _check(plan)
        self.plans[plan] = None
        self._manager.watch_metadata(plan.parent.metadata)
        for table in (plan.parent, plan.version):
            self._listen(table, "after_create", self._table_created)
            self._listen(table, "before_drop", self._table_dropped)
        self._listen(plan.transaction, "before_drop", self._transaction_dropped)

    def forget(self) -> None:
        """Let go of all tables."""
        for table, name, listener in self._listeners:
            event.remove(table, name, listener)
        self._listeners.clear()
        self.plans.clear()

    def _listen(self, table: Table, name: str, listener: Callable[..., Any]) -> None:
        if not event.contains(table, name, listener):
            event.listen(table, name, listener)
            self._listeners.append((table, name, listener))

    # -- DDL

    def tables_created(self, connection: Any, tables: Iterable[Table]) -> None:
        """``create_all()`` has made ``tables``."""
        made = set(tables)
        there = [plan for plan in self.plans if _is_complete(connection, plan, made)]
        if there:
            self.create(connection, there)

    def _table_created(self, table: Table, connection: Any, **kw: Any) -> None:
        if not kw.get("_is_metadata_operation"):
            self.tables_created(connection, [table])

    def _table_dropped(self, table: Table, connection: Any, **kw: Any) -> None:
        plan = table_plan(table)
        if plan is not None:
            self.drop(connection, [plan])

    def _transaction_dropped(self, table: Table, connection: Any, **kw: Any) -> None:
        for statement in backend_of(connection, None).drop_shared(table):
            connection.execute(statement)

    def create(self, connection: Any, plans: Sequence[TablePlan]) -> None:
        """Create the triggers of ``plans``, in place of those that there are."""
        for statement in self._creating(connection, plans):
            connection.execute(statement)

    def _creating(self, connection: Any, plans: Sequence[TablePlan]) -> list[Any]:
        backend, shared = backend_of(connection, plans[0]), plans[0].transaction
        statements = [*backend.create_shared(connection, shared, self.table_plans())]
        for plan in plans:
            statements += backend.create(connection, plan)
        return statements

    def table_plans(self) -> Sequence[TablePlan]:
        """All tables that have a history, for what the triggers of all of them share."""
        return self._manager.models.table_plans

    def are_current(self, connection: Connection, plans: Sequence[TablePlan]) -> bool:
        """The database has the triggers of ``plans``, as ``create()`` would make them."""
        backend, r = backend_of(connection, plans[0]), Renderer.of(connection)
        for plan in plans:
            statements = self._creating(connection, [plan])
            texts = [one.build(r) for one in statements if isinstance(one, TriggerDDL)]
            found = backend.installed(connection, plan)
            if not found or not all(any(one in text for text in texts) for one in found):
                return False
        return True

    def drop(self, connection: Any, plans: Sequence[TablePlan]) -> None:
        """Drop the triggers of ``plans``."""
        for plan in plans:
            for statement in backend_of(connection, plan).drop(plan):
                connection.execute(statement)

    # -- sessions

    def about_to_write(self, unit: ConnectionUnit) -> None:
        """A statement of the unit's session is going to write a table that has triggers."""
        session = unit.work.session
        session.info.pop(CHAINS_KEY, None)
        told = (current_context(), dict(session.info.get(CONTEXT_KEY, {})))
        if unit.told and unit.told[0] is told[0] and unit.told[1] == told[1]:
            return
        table = self._manager.transaction_cls.__table__
        row = transaction_values(table, self._manager.transaction_row(session))
        defaults = default_expressions(table, row)
        if defaults:
            found = unit.connection.execute(select(*(d.label(n) for n, d in defaults.items())))
            row |= found.mappings().one()
        backend = backend_of(unit.connection, next(iter(self.plans)))
        backend.tell(unit.connection, table, row, anew=unit.told is None and unit.tx is None)
        unit.told = told

    def read_transaction(self, unit: ConnectionUnit) -> None:
        """Take over the transaction row that a trigger has made, moved or taken back."""
        if self.plans and unit.told is not None:
            table = self._manager.transaction_cls.__table__
            backend = backend_of(unit.connection, None)
            tx, before = backend.known(unit.connection, table), unit.tx
            if tx != before:
                if not backend.MOVES:
                    unit.forget_recorded()
                unit.set_tx(tx)
                if before is not None and (backend.MOVES or tx is None):
                    self._manager.transaction_moved(unit, before, tx)
                    if tx is not None:
                        unit.work.transaction_moved(before, tx)

    def finish(self, unit: ConnectionUnit) -> None:
        """The unit's transaction is about to be committed."""
        table = self._manager.transaction_cls.__table__
        tx = backend_of(unit.connection, None).finish(unit.connection, table)
        if tx is not None:
            unit.set_tx(tx)
            self._manager.writer(unit.connection).forget_empty_transaction(unit)
        unit.told = None

    def rolled_back(self, unit: ConnectionUnit) -> None:
        """The unit's transaction is about to be rolled back."""
        backend_of(unit.connection, None).forget(
            unit.connection, self._manager.transaction_cls.__table__
        )
        unit.told = None

    def tables_of(self, unit: ConnectionUnit) -> list[TablePlan]:
        """Tables of the unit's database in which triggers may have written versions."""
        if unit.told is None:
            return []
        return [plan for plan in self.plans if _exists(unit.connection, plan.version)]

    def say_transaction(self, unit: ConnectionUnit, before: int | None) -> None:
        """Let the triggers use the transaction row that the unit has."""
        if self.plans and (unit.tx != before or unit.keep_transaction):
            self.about_to_write(unit)
            table = self._manager.transaction_cls.__table__
            backend_of(unit.connection, None).adopt(
                unit.connection, table, unit.tx, keep=unit.keep_transaction
            )


def backend_of(connection: Any, plan: TablePlan | None) -> ModuleType:
    """What makes triggers on the connection's database.

    :raises ImproperlyConfigured: if there is none.
    """
    name = connection.dialect.name
    if name not in _BACKENDS:
        what = "" if plan is None else f"table {plan.parent.fullname!r}: "
        raise ImproperlyConfigured(
            f"{what}native_versioning=True: there are no triggers for {name}; there are for "
            f"{', '.join(sorted(_BACKENDS))}. Leave the option out, and sessions record"
        )
    return import_module(_BACKENDS[name], __package__)


def _check(plan: TablePlan) -> None:
    """Refuse what has to be told by those who write.

    :raises ImproperlyConfigured: for an option or a plugin that needs to know what was written.
    """
    hooks = plan.manager.plugins.hooks("after_write")
    if hooks:
        raise ImproperlyConfigured(
            f"table {plan.parent.fullname!r}: native_versioning=True writes versions in the "
            f"database, so {type(hooks[0].__self__).__name__} is not told of them; leave out one of "
            f"the two"
        )
    if plan.options.require_context:
        raise ImproperlyConfigured(
            f"table {plan.parent.fullname!r}: require_context is asked of sessions, and with "
            f"native_versioning=True others write too; make the columns of the transaction table "
            f"NOT NULL instead"
        )
    if plan.options.track_relations:
        raise ImproperlyConfigured(
            f"table {plan.parent.fullname!r}: track_relations is about what sessions do, which "
            f"native_versioning=True does not see; leave out one of the two"
        )
    if plan.options.baseline:
        raise ImproperlyConfigured(
            f"table {plan.parent.fullname!r}: baseline=True is about what sessions are going to change, "
            f"and triggers with native_versioning=True run afterwards; leave out one of the two, and "
            f"give rows that are there a first version with backfill()"
        )


def _is_complete(connection: Any, plan: TablePlan, made: set[Table]) -> bool:
    """One of the plan's two tables was made just now, and the other one is there."""
    pair = {plan.parent, plan.version}
    return bool(pair & made) and all(_exists(connection, table) for table in pair - made)


def _exists(connection: Any, table: Table) -> bool:
    # a mock connection, which only shows the DDL, has no catalog
    return not isinstance(connection, Connection) or table_exists(connection, table)
