"""What several plugins need: tables of their own beside the Transaction class, and keys as text."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    String,
    Table,
    TypeDecorator,
    delete,
    update,
)
from sqlalchemy.orm import Session, foreign, registry, relationship
from sqlalchemy.orm.attributes import instance_state, set_committed_value
from typing_extensions import override

from sqlalchemy_history.exc import ImproperlyConfigured
from sqlalchemy_history.hooks import Plugin
from sqlalchemy_history.plan import PLUGIN_KEY


class RowKey(TypeDecorator[Any]):
    """A row's primary key as JSON text: ``7``, ``"abc"``, or ``[7, "abc"]`` of a composite key.

    >>> RowKey().process_bind_param((7, "abc"), None)
    '[7, "abc"]'
    """

    impl = String(255)
    cache_ok = True

    @override
    def process_bind_param(self, value: Any, dialect: Dialect | None) -> str | None:
        return None if value is None else json.dumps(value, default=_plain, ensure_ascii=False)

    @override
    def process_result_value(self, value: str | None, dialect: Dialect | None) -> Any:
        return None if value is None else json.loads(value)


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, (bytes, bytearray)):
        return value.hex()
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return str(value)


def parse_key(stored: Any, columns: Sequence[ColumnElement[Any]]) -> tuple[Any, ...]:
    """The values of the key ``columns`` from what a :class:`RowKey` gave."""
    values = stored if len(columns) > 1 else [stored]
    return tuple(_parsed(value, c) for value, c in zip(values, columns, strict=True))


def _parsed(value: Any, column: ColumnElement[Any]) -> Any:
    try:
        type_ = column.type.python_type
    except NotImplementedError:
        return value
    if isinstance(value, type_):
        return value
    if issubclass(type_, enum.Enum):
        return type_[value]
    if issubclass(type_, (datetime.date, datetime.time)):
        return type_.fromisoformat(value)
    if issubclass(type_, (bytes, bytearray)):
        return type_.fromhex(value)
    if issubclass(type_, (uuid.UUID, decimal.Decimal)):
        return type_(value)
    return value


class PluginRow:
    """Base of the classes that plugins map."""

    __versioned__ = {"versioning": False}

    def __init__(self, **values: Any) -> None:
        for name, value in values.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no attribute {name!r}")
            setattr(self, name, value)


def new_table(
    in_registry: registry, plugin: Plugin, name: str, columns: Iterable[Column[Any]]
) -> Table:
    """A table of ``plugin``.

    :raises ImproperlyConfigured: if there is one of that name.
    """
    there = in_registry.metadata.tables.get(name)
    if there is not None and type(there.info.get(PLUGIN_KEY)) is type(plugin):
        raise ImproperlyConfigured(
            f"the table {name!r} was made for another {type(plugin).__name__}; give the same object "
            f"again, or begin anew with versioning_manager.reset()"
        )
    if there is not None:
        raise ImproperlyConfigured(
            f"there is a table {name!r} already, a name that {type(plugin).__name__} needs for its "
            f"own; rename the table, or leave the plugin out"
        )
    return Table(name, in_registry.metadata, *columns, info={PLUGIN_KEY: plugin})


def new_class(name: str, module: str, in_registry: registry, table: Table, **kw: Any) -> type[Any]:
    """A class mapped to ``table``; ``kw`` as for ``map_imperatively()``."""
    cls = type(name, (kw.pop("base", PluginRow),), {"__module__": module, "__table__": table})
    in_registry.map_imperatively(cls, table, **kw)
    return cls


class DetailsPlugin(Plugin):
    """Base of plugins with a table that says more about each transaction, and goes where it goes.

    :ivar model_class: the class of the rows.
    """

    model_class: Any = None

    def _build(
        self,
        transaction: type[Any],
        in_registry: registry,
        attribute: str,
        name: str,
        table_name: str,
        *columns: Column[Any],
        **kw: Any,
    ) -> Any:
        """The class of the rows, which ``transaction`` has as ``attribute``.

        :param kw: as for ``relationship()``.
        """
        tx = Column("transaction_id", BigInteger, primary_key=True, autoincrement=False)
        table = new_table(in_registry, self, table_name, (tx, *columns))
        self.model_class = new_class(name, type(self).__module__, in_registry, table)
        transaction.__mapper__.add_property(
            attribute,
            relationship(
                self.model_class,
                primaryjoin=lambda: transaction.id == foreign(tx),
                cascade="all, delete-orphan",
                backref="transaction",
                **kw,
            ),
        )
        return self.model_class

    @override
    def transaction_moved(
        self, session: Session, connection: Connection, old: int, new: int | None
    ) -> None:
        move_rows(session, connection, self.model_class, old, new)


def move_rows(
    session: Session, connection: Connection, cls: type[Any], old: int, new: int | None
) -> None:
    """Let rows of ``cls``, in the database and in the session, follow their transaction."""
    table: Table = cls.__table__
    own = table.c.transaction_id == old
    if new is None:
        connection.execute(delete(table).where(own))
        return
    connection.execute(update(table).where(own).values(transaction_id=new))
    for obj in list(session):
        if isinstance(obj, cls) and obj.__dict__.get("transaction_id") == old:
            state = instance_state(obj)
            session.identity_map.safe_discard(state)
            set_committed_value(obj, "transaction_id", new)
            if state.key is not None:
                state.key = state.mapper.identity_key_from_instance(obj)
                session.identity_map.replace(state)
