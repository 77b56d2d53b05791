"""Transaction rows that nothing needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    MetaData,
    Select,
    Table,
    and_,
    delete,
    exists,
    inspect,
    or_,
    select,
)
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Mapper

from sqlalchemy_history.plan import all_registries

from .upkeep import Upkeep

#: how ``remote_addr`` of the transaction row begins that says who erased values, and when
REDACT_MARK: Final = "redact "


class UnusedTransactions:
    """Transactions that no version belongs to, and no other table refers to.

    Looked for are versions in the database of the model; tables of plugins and of users that have
    a foreign key to the transaction table, or whose class has a relationship to the Transaction
    class. Tables that only say more about a transaction, such as ``transaction_meta``, do not keep
    it: the Transaction class has a relationship to them, and their primary key holds its id.

    :ivar condition: about a row of the transaction table: it is unused.
    """

    def __init__(self, work: Upkeep) -> None:
        self._work = work
        self._transaction = work.plan.root.transaction
        self._id: Any = self._transaction.c.id
        metadata = _metadata_of_database(work)
        plans = [p for p in work.plan.manager.models.table_plans if p.parent.metadata in metadata]
        self._details: set[Any] = {
            remote
            for prop in inspect(work.plan.manager.transaction_cls).relationships
            for local, remote in prop.local_remote_pairs
            if local is self._id and isinstance(remote.table, Table) and remote.primary_key
        }
        columns: set[Any] = {plan.tx for plan in plans}
        columns |= _references(work, metadata, {plan.version for plan in plans}) - self._details
        ordered = sorted(columns, key=str)
        self.condition: ColumnElement[bool] = and_(
            *(~exists().where(column == self._id) for column in ordered)
        )

    def ids(self) -> Select[Any]:
        """All unused transactions, but for the marks that upkeep has left."""
        statement = select(self._id).where(self.condition)
        if "remote_addr" in self._transaction.c:
            note = self._transaction.c.remote_addr
            statement = statement.where(or_(note.is_(None), ~note.startswith(REDACT_MARK)))
        return statement

    def remove(self, ids: Iterable[int]) -> None:
        """Remove those of the transactions ``ids`` that are unused, and what says more of them."""
        which = self._id.in_(sorted(set(ids)))
        gone = self._work.connection.scalars(select(self._id).where(which, self.condition)).all()
        if gone:
            for column in self._details:
                self._work.execute(delete(column.table).where(column.in_(gone)))
            self._work.execute(delete(self._transaction).where(self._id.in_(gone)))


def _metadata_of_database(work: Upkeep) -> set[MetaData]:
    """Where the tables are described that are in the same database as the model."""
    bind = work.session.get_bind(work.plan.mapper)

    def is_there(mapper: Mapper[Any]) -> bool:
        try:
            return work.session.get_bind(mapper) is bind
        except UnboundExecutionError:
            return False

    found = {
        plan.root.parent.metadata
        for plan in work.plan.manager.class_plans()
        if is_there(plan.mapper)
    }
    own = work.plan.root.parent.metadata
    return {own} | (found & work.plan.manager.metadata_of(work.session))


def _references(work: Upkeep, metadata: set[MetaData], versions: set[Table]) -> set[Any]:
    transaction = work.plan.root.transaction
    found: set[Any] = {
        column
        for part in metadata
        for table in part.tables.values()
        for column in table.c
        if column.references(transaction.c.id)
    }
    for reg in all_registries():
        for mapper in reg.mappers:
            for prop in mapper.relationships:
                if prop.mapper.class_ is work.plan.manager.transaction_cls:
                    pairs = prop.local_remote_pairs or ()
                    found |= {a for a, b in pairs if b is transaction.c.id}
    return {
        column
        for column in found
        if column.table.metadata in metadata and column.table not in versions
    }
