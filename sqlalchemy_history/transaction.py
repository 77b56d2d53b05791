"""The Transaction class: one row for each database transaction that versioned something."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from sqlalchemy import (
    BLANK_SCHEMA,
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    Sequence,
    String,
    Table,
    TypeDecorator,
    select,
)
from sqlalchemy.orm import (
    ColumnProperty,
    Mapped,
    Mapper,
    declared_attr,
    object_session,
    registry,
    relationship,
)
from sqlalchemy.sql.elements import conv
from sqlalchemy.types import TypeEngine

from .config import OptionsDict, nearest
from .exc import ImproperlyConfigured, NoChangesAttribute, VersioningError
from .query import AwaitableAttributes

if TYPE_CHECKING:
    from sqlalchemy import Dialect, MetaData

    from .manager import VersioningManager


def collect_values(
    transaction_cls: type[Any], sources: Iterable[tuple[str, Mapping[str, Any]]]
) -> dict[str, Any]:
    """Values for a transaction row by column key; the later source wins.

    :param sources: where values come from, for messages, and values by attribute name.
    :raises ImproperlyConfigured: for a name that is no column of ``transaction_cls``, and for
        ``id``, which the database gives.
    """
    found: dict[str, Any] = {}
    for where, values in sources:
        for name, value in values.items():
            prop = transaction_cls.__mapper__.attrs.get(name)
            if not isinstance(prop, ColumnProperty) or name == "id":
                columns = [p.key for p in transaction_cls.__mapper__.column_attrs if p.key != "id"]
                what = f"{name!r} to be set" if name == "id" else repr(name)
                raise ImproperlyConfigured(
                    f"{where} says {name}={value!r}, but {transaction_cls.__name__} has no column "
                    f"{what}; {nearest(name, columns)}"
                )
            found[prop.columns[0].key] = value() if callable(value) else value
    return found


def utcnow() -> datetime.datetime:
    """Now, in UTC, naive: as ``issued_at`` is stored."""
    return aware_utcnow().replace(tzinfo=None)


def aware_utcnow() -> datetime.datetime:
    """Now, in UTC, aware."""
    return datetime.datetime.now(datetime.timezone.utc)


class UTCDateTime(TypeDecorator[datetime.datetime]):
    """A UTC datetime, naive or aware, that keeps its microseconds on every database."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            from sqlalchemy.dialects.mysql import DATETIME  # noqa: PLC0415 - loads the dialect

            return dialect.type_descriptor(DATETIME(fsp=6))
        return dialect.type_descriptor(
            DateTime(timezone=getattr(self.impl_instance, "timezone", False))
        )


_NAIVE: Final = ("sqlite", "mysql", "mariadb")


class AwareDateTime(UTCDateTime):
    """The type of a column of aware datetimes in UTC, also on databases that store no timezone."""

    cache_ok = True

    def __init__(self) -> None:
        super().__init__(timezone=True)

    def process_bind_param(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        if value is None:
            return None
        utc = datetime.timezone.utc
        value = value.replace(tzinfo=utc) if value.tzinfo is None else value.astimezone(utc)
        # these store none, and a literal is no place for one
        return value.replace(tzinfo=None) if dialect.name in _NAIVE else value

    def process_result_value(
        self, value: datetime.datetime | None, dialect: Dialect
    ) -> datetime.datetime | None:
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=datetime.timezone.utc)


#: BIGINT, but a SQLite rowid where only INTEGER PRIMARY KEY is one
TransactionId: Final = BigInteger().with_variant(Integer(), "sqlite")


#: in the Table.info of what ``copy_table()`` made
COPY_KEY: Final = "sqlalchemy_history.copy"

#: where Table.info keeps the class that a factory made for it
_MADE_KEY: Final = "sqlalchemy_history.transaction"


def id_column(table_name: str, schema: str | None = None) -> Column[int]:
    """The key of a table of ours: from a sequence where the database has them."""
    sequence = Sequence(f"{table_name}_id_seq", schema=schema)
    return Column("id", TransactionId, sequence, primary_key=True, autoincrement=True)


class TransactionBase:
    """Mixin of Transaction classes: the columns ``id`` and ``issued_at``, and what is below.

    ``issued_at`` is the time when the transaction wrote its first version, as a naive UTC datetime.
    A Transaction class of your own adds columns::

        class Transaction(TransactionBase, Base):
            __tablename__ = "transaction"
            remote_addr = mapped_column(String(50))
            reason = mapped_column(String(200))

        versioning_manager.transaction_cls = Transaction

    It has the columns that you declare. If it is to have ``user_id``, ``user`` or ``remote_addr``,
    declare them, too: ``user_cls`` is about the class that is made for you.
    """

    __allow_unmapped__ = True
    __versioned__: ClassVar[OptionsDict] = {"versioning": False}
    __versioning_manager__: VersioningManager

    if TYPE_CHECKING:
        # what the factory and the plugins give it, if they are asked to
        remote_addr: Mapped[str | None]
        user_id: Mapped[Any]
        user: Mapped[Any]
        meta: Any
        changes: Mapped[list[Any]]

    @declared_attr
    def id(cls) -> Mapped[int]:  # noqa: N805
        column: Any = id_column(getattr(cls, "__tablename__", "transaction"))
        return column  # type: ignore[no-any-return]

    @declared_attr
    def issued_at(cls) -> Mapped[datetime.datetime]:  # noqa: N805
        column: Any = Column(UTCDateTime(), default=utcnow)
        return column  # type: ignore[no-any-return]

    @property
    def entity_names(self) -> list[str]:
        """Names of the classes that this transaction changed (``TransactionChangesPlugin``)."""
        if hasattr(self, "changes"):
            return [change.entity_name for change in self.changes]
        raise NoChangesAttribute(
            f"{type(self).__name__}.entity_names needs TransactionChangesPlugin; add it with "
            f"make_versioned(plugins=[TransactionChangesPlugin()])"
        )

    @property
    def changed_entities(self) -> dict[type[Any], list[Any]]:
        """The versions that this transaction wrote, by version class: one query for each class."""
        session = object_session(self)
        if session is None:
            raise VersioningError(
                f"a {type(self).__name__} that is in no session cannot look up what it changed; "
                f"session.add() it, or ask before the session is closed"
            )
        result = {}
        for plan in self.__versioning_manager__.root_plans(session):
            cls: Any = plan.version_class
            versions = session.scalars(
                select(cls).where(plan.transaction_id == self.id),
                # while the transaction runs, what is held may have been written again
                execution_options={"populate_existing": True},
            ).all()
            if versions:
                result[cls] = list(versions)
        return result

    @property
    def awaitable_attrs(self) -> AwaitableAttributes:
        """``await transaction.awaitable_attrs.changed_entities``: any attribute, in an async session."""
        return AwaitableAttributes(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} id={self.id!r}, issued_at={self.issued_at!r}>"


class TransactionFactory:
    """Makes the Transaction class of a manager.

    Assign one to ``versioning_manager.transaction_cls`` before the models are used, to choose.

    :param remote_addr: whether it has the column ``remote_addr VARCHAR(50)``.
    :param timezone: ``True`` makes ``issued_at`` an aware UTC datetime; by default it is naive UTC.
    """

    model_name = "Transaction"

    def __init__(self, remote_addr: bool = True, timezone: bool = False) -> None:
        self.remote_addr = remote_addr
        self.timezone = timezone

    def __call__(self, manager: VersioningManager, in_registry: registry) -> type[Any]:
        """Build and map the class in ``in_registry``, or find it there if a manager left it.

        :raises ImproperlyConfigured: if there is another class or table of that name, or no
            ``user_cls``.
        """
        metadata = in_registry.metadata
        name, schema = "transaction", manager.options.schema
        user = manager.resolve_user_cls(in_registry)
        there = metadata.tables.get(_table_key(name, schema or metadata.schema))
        made: type[Any] | None = None if there is None else there.info.get(_MADE_KEY)
        if made is not None and hasattr(made, "user_id") == (user is not None):
            if made.__versioning_manager__.transaction_cls is made:
                raise ImproperlyConfigured(
                    f"another VersioningManager has its {self.model_name} class in this registry; "
                    f"give each manager a declarative base of its own, or one of them a Transaction "
                    f"class of your own with another __tablename__ (see TransactionBase)"
                )
            return made
        if self.model_name in in_registry._class_registry:
            raise ImproperlyConfigured(
                f"there is a class {self.model_name!r} already, a name that versioning needs for "
                f"its own; rename it, or set versioning_manager.transaction_cls to a Transaction "
                f"class of your own (see TransactionBase)"
            )
        if there is not None:
            raise ImproperlyConfigured(
                "there is a table 'transaction' already, a name that versioning needs for its own; "
                "rename it, or set versioning_manager.transaction_cls to a Transaction class of "
                "your own with another __tablename__ (see TransactionBase)"
            )
        columns: list[Column[Any] | Index] = [id_column(name, schema)]
        if self.timezone:
            columns.append(Column("issued_at", AwareDateTime, default=aware_utcnow))
        else:
            columns.append(Column("issued_at", UTCDateTime(), default=utcnow))
        if self.remote_addr:
            columns.append(Column("remote_addr", String(50)))
        properties: dict[str, Any] = {}
        if user is not None:
            key = _single_key(user)
            user_id = Column("user_id", key.type, ForeignKey(key))
            # under this name whatever the naming convention, which may know no table names
            columns += [user_id, Index(conv(f"ix_{name}_user_id"), user_id)]
            properties["user"] = relationship(user)
        table = Table(name, metadata, *columns, schema=schema)
        module = __name__ if user is None else user.class_.__module__
        cls = type(self.model_name, (TransactionBase,), {"__module__": module})
        in_registry.map_imperatively(cls, table, properties=properties)
        cls.__table__ = table  # type: ignore[attr-defined]
        cls.__tablename__ = name  # type: ignore[attr-defined]
        table.info[_MADE_KEY] = cls
        return cls


def _single_key(user: Mapper[Any]) -> Column[Any]:
    keys = user.primary_key
    if len(keys) != 1:
        raise ImproperlyConfigured(
            f"user_cls: {user.class_.__name__} has a primary key of {len(keys)} columns, and "
            f"Transaction.user_id can hold only one; set user_cls=None and keep the user in a "
            f"column of a Transaction class of your own"
        )
    key: Any = keys[0]
    return key  # type: ignore[no-any-return]


def copy_table(table: Table, metadata: MetaData) -> None:
    """Let ``create_all()`` of a second Base create ``table`` in its database too.

    Without foreign keys: what they refer to may not be there.
    """
    if _table_key(table.name, table.schema) not in metadata.tables:
        Table(
            table.name,
            metadata,
            *map(_copy_column, table.c),
            schema=table.schema or BLANK_SCHEMA,
            info={**table.info, COPY_KEY: True},
        )


def _copy_column(column: Column[Any]) -> Column[Any]:
    default, server_default = column.default, column.server_default
    return Column(
        column.name,
        column.type,
        *([Sequence(default.name, schema=default.schema)] if isinstance(default, Sequence) else []),
        key=column.key,
        primary_key=column.primary_key,
        autoincrement=column.autoincrement,
        nullable=column.nullable,
        index=column.index,
        server_default=getattr(server_default, "arg", None),
    )


def _table_key(name: str, schema: str | None) -> str:
    return f"{schema}.{name}" if schema else name
