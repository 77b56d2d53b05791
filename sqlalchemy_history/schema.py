"""From a parent table to its version table: columns, keys and indexes, nothing else.

A version column has the name, the key and the type of its parent column. Defaults, server
defaults, ``onupdate``, identities, computed expressions, constraints and foreign keys stay behind:
a version is a copy of what the database held, and must be storable whatever has become of the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    Connection,
    Enum,
    Index,
    MetaData,
    SmallInteger,
    Table,
    TypeDecorator,
    UniqueConstraint,
    case,
    func,
    select,
    update,
)
from sqlalchemy.sql.elements import conv
from sqlalchemy.sql.sqltypes import SchemaType
from sqlalchemy.types import TypeEngine

from .config import Options
from .exc import ImproperlyConfigured

#: the shortest limit of the supported databases (PostgreSQL) for a table's name
_NAME_LIMIT: Final = 63


def version_table_name(parent: Table, options: Options) -> str:
    """The version table's name, shortened with a digest where a database would refuse it."""
    name = options.table_name % parent.name
    if len(name) <= _NAME_LIMIT:
        return name
    digest = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()[:8]
    return f"{name[: _NAME_LIMIT - 9]}_{digest}"


def identity_columns(table: Table) -> tuple[Column[Any], ...]:
    """What tells two rows apart: the primary key; of a table without one, its foreign keys."""
    keys = tuple(table.primary_key.columns)
    return keys or tuple(c for c in table.c if c.foreign_keys) or tuple(table.c)


def unique_columns(table: Table) -> Iterator[Sequence[Column[Any]]]:
    """The columns of each unique key but the primary key, also those that an expression is made of."""
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield list(constraint.columns)
    for index in table.indexes:
        if index.unique and len(index.columns):
            yield list(index.columns)


def own_column_names(options: Options) -> list[str]:
    """The names of the columns that a version table has beside those of its parent, in order."""
    names = [options.transaction_column_name, options.operation_type_column_name]
    if options.strategy == "validity":
        names.insert(1, options.end_transaction_column_name)
    return names


def check_version_table(
    parent: Table,
    columns: Iterable[Column[Any]],
    options: Options,
    metadata: MetaData,
) -> None:
    """Refuse a name that is taken.

    :raises ImproperlyConfigured: when a column or a table of that name is there already.
    """
    # databases do not tell upper and lower case apart in names that are not quoted
    taken = {name.lower(): name for column in columns for name in (column.name, column.key)}
    for name in own_column_names(options):
        if name.lower() in taken:
            raise ImproperlyConfigured(
                f"table {parent.fullname!r} has a column {taken[name.lower()]!r} of its own, a "
                f"name that its version table needs; rename the column, exclude it, or choose "
                f"another name with the option that ends in 'column_name'"
            )
    name, schema = version_table_name(parent, options), options.schema or parent.schema
    if (f"{schema}.{name}" if schema else name) in metadata.tables:
        raise ImproperlyConfigured(
            f"there is a table {name!r} already, so table {parent.fullname!r} cannot have its "
            f"versions there; choose another name with the option 'table_name'"
        )


def build_version_table(
    parent: Table,
    columns: Iterable[Column[Any]],
    options: Options,
    metadata: MetaData,
    added: Iterable[Column[Any]] = (),
) -> Table:
    """The version table of ``parent`` with a copy of each of ``columns``.

    :param added: further columns, which those who write versions do not know.
    :raises ImproperlyConfigured: when a column or a table of that name is there already.
    """
    columns = list(columns)
    check_version_table(parent, columns, options, metadata)
    keys = identity_columns(parent)
    copies = [_copy_column(column, primary_key=column in keys) for column in columns]
    names = {column.name for column in copies}
    tx, *others = own_column_names(options)
    own = [
        Column(tx, BigInteger, primary_key=True, autoincrement=False),
        *(Column(name, BigInteger, nullable=True) for name in others[:-1]),
        Column(others[-1], SmallInteger, nullable=False),
    ]
    for column in added:
        if column.name in names or not (column.nullable or column.server_default is not None):
            raise ImproperlyConfigured(
                f"a plugin adds the column {column.name!r} to the version table of "
                f"{parent.fullname!r}; it needs a name that is free there, and to be nullable or "
                f"to have a server default"
            )
    name = version_table_name(parent, options)
    return Table(
        name,
        metadata,
        *copies,
        *own,
        *added,
        *_indexes(name, [c for c in copies if c.primary_key], own, options),
        schema=options.schema or parent.schema,
    )


def _indexes(
    table_name: str,
    keys: list[Column[Any]],
    own: list[Column[Any]],
    options: Options,
) -> Iterable[Index]:
    if options.indexes == "compatible":
        yield from (Index(conv(f"ix_{table_name}_{c.name}"), c) for c in own)
    else:
        yield Index(conv(f"ix_{table_name}_{own[0].name}"), own[0])
    if len(own) == 3 and options.unique_open:
        is_open = own[1].is_(None)
        yield Index(
            conv(f"uq_{table_name}_open"),
            *keys,
            unique=True,
            sqlite_where=is_open,
            postgresql_where=is_open,
        ).ddl_if(callable_=_has_partial_indexes)


def _has_partial_indexes(
    ddl: Any, target: Any, bind: Any, tables: Any = None, state: Any = None, **kw: Any
) -> bool:
    return kw["dialect"].name in ("sqlite", "postgresql")


def _copy_column(column: Column[Any], *, primary_key: bool) -> Column[Any]:
    return Column(
        column.name,
        plain_type(column.type),
        key=column.key,
        primary_key=primary_key,
        nullable=not primary_key,
        autoincrement=False,
    )


def plain_type(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """``type_`` without what it would add to a table's DDL: a CHECK constraint, a CREATE TYPE.

    PostgreSQL's enum type of the parent is shared, so that a label that is added to it is known
    here too; where an enum lies inside of its column it becomes text that has room for new labels.
    """
    plain: Any = type_
    if type(type_) is Enum:
        plain = plain.adapt(
            Enum, _create_events=False, native_enum=False, create_constraint=False, length=255
        )
        if type_.native_enum:
            # with_variant() would copy the type, and the copy would take part in create_all()
            native = {"postgresql": _without_ddl(type_)}
            plain._variant_mapping = plain._variant_mapping.union(native)
    elif isinstance(type_, SchemaType):
        plain = _without_ddl(type_)
    elif isinstance(type_, TypeDecorator) and isinstance(type_.impl_instance, (SchemaType, ARRAY)):
        plain = type_.copy()
        plain.impl = plain.impl_instance = plain_type(type_.impl_instance)
    elif isinstance(type_, ARRAY) and isinstance(type_.item_type, SchemaType):
        plain = type_.copy()
        plain.item_type = _without_ddl(type_.item_type)
    variants = {
        name: _without_ddl(variant)
        if name == "postgresql" and isinstance(variant, SchemaType)
        else plain_type(variant)
        for name, variant in type_._variant_mapping.items()
    }
    if any(variant is not type_._variant_mapping[name] for name, variant in variants.items()):
        plain = plain.copy() if plain is type_ else plain
        plain._variant_mapping = plain._variant_mapping.union(variants)
    return plain  # type: ignore[no-any-return]


def _without_ddl(type_: SchemaType) -> Any:
    silent: Any = type_.adapt(type(type_), _create_events=False)
    if hasattr(silent, "create_constraint"):
        silent.create_constraint = False
    return silent


def update_end_tx_column(
    table: Table,
    end_tx_column_name: str = "end_transaction_id",
    tx_column_name: str = "transaction_id",
    conn: Connection | None = None,
) -> None:
    """Set the end of every version in the version table ``table`` to the start of the next one.

    For migrations, for example after the strategy changed to validity. One statement.

    :param conn: the connection to use; inside an Alembic migration ``op.get_bind()``.
    :raises ValueError: without a connection.
    """
    start = table.c[tx_column_name]
    keys = [c for c in table.primary_key.columns if c is not start]
    following = func.lead(start).over(partition_by=keys, order_by=start)
    chain = select(*keys, start, following.label("following")).subquery("chain")
    same = [column == chain.c[column.key] for column in (*keys, start)]
    statement = update(table).where(*same).values({table.c[end_tx_column_name]: chain.c.following})
    _given(conn).execute(statement)


def update_property_mod_flags(
    table: Table,
    tracked_columns: Iterable[str],
    mod_suffix: str = "_mod",
    end_tx_column_name: str = "end_transaction_id",
    tx_column_name: str = "transaction_id",
    conn: Connection | None = None,
) -> None:
    """Set ``<column>_mod`` of every version in ``table``: whether it changed that column.

    For migrations that add ``PropertyModTrackerPlugin``. The first version of a row changed all of
    its columns. One statement.

    :param conn: the connection to use; inside an Alembic migration ``op.get_bind()``.
    :raises ValueError: without a connection.
    """
    names = list(tracked_columns)
    start = table.c[tx_column_name]
    keys = [c for c in table.primary_key.columns if c is not start]

    def before(column: Any) -> Any:
        return func.lag(column).over(partition_by=keys, order_by=start)

    flags = [
        case(
            (before(start).is_(None), 1),
            (table.c[name].is_distinct_from(before(table.c[name])), 1),
            else_=0,
        ).label(f"flag_{i}")
        for i, name in enumerate(names)
    ]
    chain = select(*keys, start, *flags).subquery("chain")
    same = [column == chain.c[column.key] for column in (*keys, start)]
    values = {
        table.c[f"{name}{mod_suffix}"]: chain.c[f"flag_{i}"] == 1 for i, name in enumerate(names)
    }
    _given(conn).execute(update(table).where(*same).values(values))


def _given(conn: Connection | None) -> Connection:
    if conn is None:
        raise ValueError("conn=None; give a connection, in an Alembic migration op.get_bind()")
    return conn
