"""What one database transaction has versioned so far, layered by savepoint.

A session has a ``UnitOfWork`` for each manager from the moment its transaction begins until it
ends (in ``session.info``), and in it a ``ConnectionUnit`` for each connection, since each database
has a transaction row of its own. Nothing here runs SQL, and nothing outlives the transaction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import make_transient, make_transient_to_detached
from sqlalchemy.orm.util import identity_key

from .exc import refuse_async
from .operation import Operation, merge
from .plan import ClassPlan, Key, TablePlan

if TYPE_CHECKING:
    from sqlalchemy import Column, Connection
    from sqlalchemy.orm import InstanceState, Mapper, Session, SessionTransaction

    from .manager import VersioningManager


_LastValues = Callable[[Key], Mapping[str, Any]]


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Changes:
    """Rows of one table that a flush changed, by what is known about them.

    :ivar unsure: updated, but only the database can tell whether a value really differs.
    :ivar last_values: for a deleted row, its last values as far as the session knew them: what is
        left to record when the row had no version.
    """

    inserted: list[Key] = dataclasses.field(default_factory=list)
    updated: list[Key] = dataclasses.field(default_factory=list)
    unsure: list[Key] = dataclasses.field(default_factory=list)
    deleted: list[Key] = dataclasses.field(default_factory=list)
    last_values: _LastValues | None = None

    def __bool__(self) -> bool:
        return bool(self.inserted or self.updated or self.unsure or self.deleted)

    @property
    def keys(self) -> list[Key]:
        """All rows, however they changed."""
        return [*self.inserted, *self.updated, *self.unsure, *self.deleted]

    @property
    def certain(self) -> bool:
        """Some row has changed for sure, so the transaction row will be needed."""
        return bool(self.inserted or self.updated or self.deleted)

    def joined(self, other: Changes) -> Changes:
        """These changes and ``other``, of another class with rows in the same table."""
        both = [one for one in (self.last_values, other.last_values) if one is not None]
        return Changes(
            inserted=self.inserted + other.inserted,
            updated=self.updated + other.updated,
            unsure=self.unsure + other.unsure,
            deleted=self.deleted + other.deleted,
            last_values=lambda key: next((found for one in both if (found := one(key))), {}),
        )

    def combine_repeated(self) -> None:
        """Make a key that was both deleted and inserted a row whose values may have changed."""
        if self.deleted and self.inserted:
            both = set(self.deleted).intersection(self.inserted)
            if both:
                self.deleted = [key for key in self.deleted if key not in both]
                self.inserted = [key for key in self.inserted if key not in both]
                self.unsure.extend(both)


@dataclasses.dataclass(eq=False, repr=False, slots=True)
class Amendment:
    """Rows that this transaction versioned before and that a flush changed once more.

    :ivar refresh: the version takes the live row's values; a DELETE becomes an UPDATE.
    :ivar settle: those of them that may now be equal to what they were before the transaction.
    :ivar mark_deleted: the version becomes a DELETE.
    :ivar void: the version goes away: inserted and deleted in one transaction.
    """

    refresh: list[Key] = dataclasses.field(default_factory=list)
    settle: list[Key] = dataclasses.field(default_factory=list)
    mark_deleted: list[Key] = dataclasses.field(default_factory=list)
    void: list[Key] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.refresh or self.mark_deleted or self.void)


class _Recorded:
    """Operations recorded for one table: as they came in, indexed when first asked for."""

    __slots__ = ("batches", "index", "unknown")

    def __init__(self) -> None:
        self.batches: list[tuple[int | None, Sequence[Key]]] = []
        self.index: dict[Key, int | None] = {}
        #: there are more, which only the database knows
        self.unknown = False

    def indexed(self) -> dict[Key, int | None]:
        for operation, keys in self.batches:
            self.index.update(dict.fromkeys(keys, operation))
        self.batches.clear()
        return self.index


class _Layer:
    """What was recorded since the begin of a transaction or of a savepoint in it."""

    __slots__ = ("recorded", "transaction", "tx")

    def __init__(self, transaction: SessionTransaction) -> None:
        self.transaction = transaction
        #: this database transaction's id; False where it was taken back
        self.tx: int | None = None
        self.recorded: dict[TablePlan, _Recorded] = {}

    def absorb(self, upper: _Layer) -> None:
        if upper.tx is not None:
            self.tx = upper.tx
        for plan, recorded in upper.recorded.items():
            mine = self.recorded.setdefault(plan, _Recorded())
            mine.batches.extend((op, (key,)) for key, op in recorded.index.items())
            mine.batches.extend(recorded.batches)
            mine.unknown |= recorded.unknown


#: recorded as an update of which only the database knows whether it wrote a version
MAYBE = -1
#: the id of a transaction whose row was taken back since nothing was left of it
_NO_TX = 0


class ConnectionUnit:
    """One connection's part of a session's transaction."""

    __slots__ = (
        "_layers",
        "associations",
        "connection",
        "is_quiet",
        "keep_transaction",
        "located",
        "past",
        "plugin_news",
        "saved",
        "told",
        "under_way",
        "work",
    )

    def __init__(self, connection: Connection, work: UnitOfWork) -> None:
        self.connection: Connection = connection
        self.work: UnitOfWork = work
        self.saved: dict[ClassPlan, Saved] = {}
        self.associations: dict[TablePlan, dict[Key, int | None]] = {}
        #: inserted association rows whose keys the database makes, by the values of some columns
        self.located: dict[tuple[TablePlan, tuple[Column[Any], ...]], list[Key]] = {}
        #: somebody holds the Transaction object: its row stays even if nothing is versioned
        self.keep_transaction: bool = False
        #: nobody watches the connection's cursors, as of the last flush
        self.is_quiet: bool = False
        #: a plugin waits for its ``after_write`` although nothing may be versioned
        self.plugin_news: bool = False
        #: a statement outside of a flush, from before its execution until after it
        self.under_way: Any = None
        #: what the triggers of native versioning were told about who and why
        self.told: Any = None
        #: with the option ``baseline``, the transaction of the states before the first change
        self.past: ConnectionUnit | None = None
        self._layers: list[_Layer] = []

    @property
    def has_news(self) -> bool:
        """Something was noted that is not written yet."""
        return bool(self.saved or self.associations or self.located or self.plugin_news)

    def saved_of(self, plan: ClassPlan) -> Saved:
        """The notes about objects of one class."""
        saved = self.saved.get(plan)
        if saved is None:
            saved = self.saved[plan] = Saved(plan)
        return saved

    # -- the transaction's id

    @property
    def tx(self) -> int | None:
        """The id of the transaction row, None while there is none."""
        for layer in reversed(self._layers):
            if layer.tx is not None:
                return layer.tx or None
        return None

    def set_tx(self, tx: int | None) -> None:
        self._top().tx = _NO_TX if tx is None else tx

    # -- what was recorded

    def record(self, plan: TablePlan, operation: int | None, keys: Sequence[Key]) -> None:
        """Remember that ``keys`` have a version of this transaction (None: no longer)."""
        if keys:
            recorded = self._top().recorded.setdefault(plan, _Recorded())
            recorded.batches.append((operation, keys))

    def record_unknown(self, plan: TablePlan) -> None:
        """Remember that rows have a version of this transaction, which ones only the database knows."""
        self._top().recorded.setdefault(plan, _Recorded()).unknown = True

    def forget_recorded(self) -> None:
        """From now on versions get another id: those that there are belong to the past."""
        for layer in self._layers:
            layer.recorded.clear()

    @property
    def recorded_plans(self) -> list[TablePlan]:
        """Tables that this transaction has written versions in."""
        return list(dict.fromkeys(plan for layer in self._layers for plan in layer.recorded))

    @property
    def native_plans(self) -> list[TablePlan]:
        """Tables in which triggers may have written versions of this transaction."""
        return self.work.manager.native.tables_of(self)

    def operations(self, plan: TablePlan, keys: Iterable[Key]) -> dict[Key, int]:
        """What this transaction has recorded for those of ``keys`` that it has versioned."""
        found: dict[Key, int] = {}
        recorded = [
            layer.recorded[plan] for layer in reversed(self._layers) if plan in layer.recorded
        ]
        if any(layer.unknown for layer in recorded):
            return dict.fromkeys(keys, MAYBE)
        layers = [layer.indexed() for layer in recorded]
        if layers:
            for key in keys:
                for index in layers:
                    if key in index:
                        operation = index[key]
                        if operation is not None:
                            found[key] = operation
                        break
        return found

    # -- savepoints

    def _top(self) -> _Layer:
        current = self.work.current_transaction_of_session()
        if not self._layers or self._layers[-1].transaction is not current:
            self._layers.append(_Layer(current))
        return self._layers[-1]

    def released(self, transaction: SessionTransaction, parent: SessionTransaction) -> None:
        """A savepoint ended well: what it recorded now belongs to its parent."""
        if self.past is not None:
            self.past.released(transaction, parent)
        if self._layers and self._layers[-1].transaction is transaction:
            layer = self._layers.pop()
            if self._layers and self._layers[-1].transaction is parent:
                self._layers[-1].absorb(layer)
            else:
                layer.transaction = parent
                self._layers.append(layer)

    def ended(self, transaction: SessionTransaction) -> None:
        """A savepoint is over: unless it was released before, what it recorded is gone."""
        if self.past is not None:
            self.past.ended(transaction)
        self.told = None if self.told is None else ()
        if self._layers and self._layers[-1].transaction is transaction:
            self._layers.pop()

    def forget_news(self) -> None:
        """What was noted will not be written: the flush failed."""
        self.plugin_news = False
        self.saved.clear()
        self.associations.clear()
        self.located.clear()


class Saved:
    """Objects of one class that a flush saved or deleted.

    :ivar switched: keys of deleted objects whose rows went to new objects.
    :ivar loads: whether a flush loads what it has inserted, which gives new objects their identity
        before the flush is over.
    """

    __slots__ = ("deleted", "inserted", "key_of", "loads", "switched", "updated")

    def __init__(self, plan: ClassPlan) -> None:
        self.key_of: Callable[[dict[str, Any]], Key] = plan.key_of
        self.loads: bool = (
            plan.mapper.eager_defaults is True or not plan.mapper.version_id_generator
        )
        self.inserted: list[Key] = []
        self.updated: list[InstanceState[Any]] = []
        self.deleted: dict[Key, InstanceState[Any]] = {}
        self.switched: set[Key] = set()


class UnitOfWork:
    """What a manager knows of the transaction that a session is in.

    ``versioning_manager.unit_of_work(session)`` gives it; it ends with the transaction.
    """

    __slots__ = ("__weakref__", "connections", "flush_context", "manager", "session")

    def __init__(self, manager: VersioningManager, session: Session) -> None:
        refuse_async(session, "unit_of_work")
        self.manager: VersioningManager = manager
        #: of the flush that is running
        self.flush_context: Any = None
        self.connections: dict[Connection, ConnectionUnit] = {}
        self.session: Session = session

    def connection_unit(self, connection: Connection) -> ConnectionUnit:
        """The part of this unit of work that belongs to ``connection``."""
        unit = self.connections.get(connection)
        if unit is None:
            unit = self.connections[connection] = ConnectionUnit(connection, self)
        return unit

    @property
    def is_sharded(self) -> bool:
        """Each object has a connection of its own choice (horizontal sharding)."""
        return self.session.connection_callable is not None

    def unit_for(self, mapper: Mapper[Any], state: InstanceState[Any]) -> ConnectionUnit:
        """The unit of the connection that the session uses for an object of ``mapper``."""
        if len(self.connections) == 1:
            [unit] = self.connections.values()
            return unit
        choose = self.session.connection_callable
        connection = (
            self.session.connection(bind_arguments={"mapper": mapper})
            if choose is None
            else choose(mapper, state.obj())
        )
        return self.connection_unit(connection)

    @property
    def is_flushing(self) -> bool:
        """The unit of work of the session is writing; a bulk operation of the session is not."""
        flush = self.flush_context
        return flush is not None and flush.has_work and self.session._flushing

    def current_transaction_of_session(self) -> SessionTransaction:
        session = self.session
        transaction = session.get_nested_transaction() or session.get_transaction()
        assert transaction is not None
        return transaction

    def transaction_moved(self, old: int, new: int) -> None:
        """The transaction row got another id: so does its object, if the session has one."""
        cls = self.manager.transaction_cls
        transaction = self.session.identity_map.get(identity_key(cls, old))
        if transaction is not None:
            with self.session.no_autoflush:
                make_transient(transaction)
                transaction.id = new
                make_transient_to_detached(transaction)
                self.session.add(transaction)

    # -- what users of the peers call

    @property
    def current_transaction(self) -> Any:
        """The Transaction object of this database transaction; None as long as there is none."""
        for unit in self.connections.values():
            self.manager.native.read_transaction(unit)
            if unit.tx is not None:
                self.manager.keep_transaction(unit)
                with self.session.no_autoflush:  # it may give the row another id
                    return self.session.get(self.manager.transaction_cls, unit.tx)
        return None

    def create_transaction(self, session: Session) -> Any:
        """Make the transaction row now, before anything is flushed, and return its object.

        What is set on it is saved with the next flush. The row stays, also when nothing is
        versioned in this transaction.
        """
        return self.manager.create_transaction(session)


def merge_into(operations: Mapping[Key, int], changes: Changes) -> tuple[Changes, Amendment]:
    """Part the rows that this transaction versioned before (``operations``) from the fresh ones."""
    fresh = Changes(last_values=changes.last_values)
    amend = Amendment()
    for operation, source, target in (
        (Operation.INSERT, changes.inserted, fresh.inserted),
        (Operation.UPDATE, changes.updated, fresh.updated),
        (Operation.UPDATE, changes.unsure, fresh.unsure),
        (Operation.DELETE, changes.deleted, fresh.deleted),
    ):
        for key in source:
            if key not in operations:
                target.append(key)
                continue
            net = merge(operations[key], operation)
            if net is None:
                amend.void.append(key)
            elif net == Operation.DELETE:
                amend.mark_deleted.append(key)
            else:
                amend.refresh.append(key)
                if net == Operation.UPDATE:
                    amend.settle.append(key)
    return fresh, amend
