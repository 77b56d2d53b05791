"""One row for each changed row, in a table that any program can read: ``changelog``."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Integer,
    Select,
    Sequence,
    String,
    delete,
    insert,
    select,
)
from sqlalchemy.orm import Session, registry
from typing_extensions import override

from sqlalchemy_history.hooks import Plugin, Written
from sqlalchemy_history.operation import Operation
from sqlalchemy_history.plan import TablePlan, as_key
from sqlalchemy_history.transaction import AwareDateTime

from .rows import RowKey, new_class, new_table

_NAMES = {Operation.INSERT: "INSERT", Operation.UPDATE: "UPDATE", Operation.DELETE: "DELETE"}
_PORTION = 500


def _operations(
    plan: TablePlan, is_written: Callable[[FromClause], ColumnElement[bool]]
) -> Select[Any]:
    v = plan.version
    return select(plan.op, *plan.keys_of(v)).where(is_written(v))


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
                Column(
                    "id",
                    BigInteger().with_variant(Integer(), "sqlite"),
                    Sequence("changelog_id_seq"),
                    primary_key=True,
                ),
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
        transaction = written.manager.transaction_cls.__table__
        issued_at = written.connection.scalar(
            select(transaction.c.issued_at).where(transaction.c.id == written.transaction_id)
        )
        # the entries of a transaction are told by its time; see transaction_moved()
        written.session.info[self] = (written.transaction_id, issued_at)
        for plan in written.tables:
            if written.amended or written.keys(plan) is None:
                self._forget(written.connection, issued_at, plan, written.keys(plan))
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
                            "timestamp": issued_at,
                        }
                        for operation, key in ((row[0], row[1:]) for row in portion)
                    ],
                )

    @override
    def transaction_moved(
        self, session: Session, connection: Connection, old: int, new: int | None
    ) -> None:
        known, issued_at = session.info.get(self, (None, None))
        if known == old:
            session.info[self] = (new, issued_at)
            if new is None:
                self._forget(connection, issued_at, None, None)

    def _forget(
        self,
        connection: Connection,
        issued_at: datetime.datetime | None,
        plan: TablePlan | None,
        keys: Any,
    ) -> None:
        columns = self.model_class.__table__.c
        statement = delete(self.model_class.__table__).where(columns.timestamp == issued_at)
        if plan is None:
            connection.execute(statement)
            return
        statement = statement.where(columns.table_name == plan.parent.fullname)
        if keys is None:
            connection.execute(statement)
            return
        for start in range(0, len(keys), _PORTION):
            connection.execute(statement.where(columns.row_id.in_(keys[start : start + _PORTION])))
