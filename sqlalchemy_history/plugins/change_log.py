"""One row for each changed row, in a table that any program can read: ``changelog``."""

from __future__ import annotations

import datetime
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    String,
    delete,
    func,
    insert,
    select,
)
from sqlalchemy.orm import Session, registry
from typing_extensions import override

from sqlalchemy_history.hooks import Plugin, Written
from sqlalchemy_history.operation import Operation
from sqlalchemy_history.plan import TablePlan, as_key
from sqlalchemy_history.transaction import AwareDateTime, id_column

from .rows import RowKey, new_class, new_table

_NAMES = {Operation.INSERT: "INSERT", Operation.UPDATE: "UPDATE", Operation.DELETE: "DELETE"}
_PORTION = 500


def _operations(
    plan: TablePlan, is_written: Callable[[FromClause], ColumnElement[bool]]
) -> Select[Any]:
    v = plan.version
    return select(plan.op, *plan.keys_of(v)).where(is_written(v))


class _Entries(NamedTuple):
    """The entries of a transaction: those with its time, which came after the last one before."""

    transaction_id: int
    timestamp: datetime.datetime | None
    before: int


class ChangeLogPlugin(Plugin):
    """Keeps ``changelog(id, table_name, row_id, event_type, timestamp)``.

    A row that a transaction changed has one entry of that transaction, ``INSERT``, ``UPDATE`` or
    ``DELETE``, whatever the number of flushes; ``row_id`` is its primary key, a list of values if
    that is composite, stored as JSON text; ``timestamp`` is that of the transaction, aware, UTC.
    What ``backfill()`` and ``repair()`` write down is no change, and has no entry.

    :ivar model_class: the class of the entries, also ``versioning_manager.changelog_cls``.
    """

    model_class: Any = None

    @override
    def build_classes(self, manager: Any, in_registry: registry) -> None:
        table = new_table(
            in_registry,
            self,
            "changelog",
            (
                id_column("changelog"),
                Column("table_name", String(255), nullable=False),
                Column("row_id", RowKey, nullable=False),
                Column("event_type", String(6), nullable=False),
                Column("timestamp", AwareDateTime, nullable=False, index=True),
            ),
        )
        self.model_class = new_class("ChangeLog", __name__, in_registry, table)
        manager.changelog_cls = self.model_class

    @override
    def after_write(self, written: Written) -> None:
        if written.transaction_id is None or written.reconstructed:
            return
        own = self._entries_of(written)
        for plan in written.tables:
            if written.amended or written.keys(plan) is None:
                self._forget(written.connection, own, plan, written.keys(plan))
            rows = written.execute(
                plan,
                "log",
                partial(_operations, plan),
            )
            for portion in rows.partitions(_PORTION):
                written.connection.execute(
                    insert(self.model_class.__table__),
                    [
                        {
                            "table_name": plan.parent.fullname,
                            "row_id": as_key(key),
                            "event_type": _NAMES[operation],
                            "timestamp": own.timestamp,
                        }
                        for operation, key in ((row[0], row[1:]) for row in portion)
                    ],
                )

    def _entries_of(self, written: Written) -> _Entries:
        """What tells the entries of the transaction, which have no column for its id."""
        known = written.session.info.setdefault(self, weakref.WeakKeyDictionary())
        transaction = written.manager.transaction_cls.__table__
        before = func.coalesce(func.max(self.model_class.__table__.c.id), 0)
        statement = select(
            transaction.c.id, transaction.c.issued_at, select(before).scalar_subquery()
        ).where(transaction.c.id == written.transaction_id)
        found = _Entries(*written.connection.execute(statement).one())
        own: _Entries | None = known.get(written.connection)
        # an id may be used again after a savepoint was rolled back
        if own is None or own[:2] != found[:2]:
            own = known[written.connection] = found
        return own

    @override
    def transaction_moved(
        self, session: Session, connection: Connection, old: int, new: int | None
    ) -> None:
        known = session.info.get(self, {})
        own: _Entries | None = known.get(connection)
        if own is not None and own.transaction_id == old:
            if new is None:
                self._forget(connection, own, None, None)
                del known[connection]
            else:
                known[connection] = own._replace(transaction_id=new)

    def _forget(
        self, connection: Connection, own: _Entries, plan: TablePlan | None, keys: Any
    ) -> None:
        columns = self.model_class.__table__.c
        statement = delete(self.model_class.__table__).where(
            columns.timestamp == own.timestamp, columns.id > own.before
        )
        if plan is None:
            connection.execute(statement)
            return
        statement = statement.where(columns.table_name == plan.parent.fullname)
        if keys is None:
            connection.execute(statement)
            return
        for start in range(0, len(keys), _PORTION):
            connection.execute(statement.where(columns.row_id.in_(keys[start : start + _PORTION])))
