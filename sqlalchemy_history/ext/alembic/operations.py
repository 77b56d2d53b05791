"""The operations of ``op`` that migrate a history. They know tables, no models.

``version_table`` is by default the table's name and ``_version``, with its schema in front where that
is not the table's: ``"history.article_version"``. ``**names`` are those that options have changed:
``transaction_table``, ``transaction_schema``, ``transaction_column``, ``end_transaction_column``,
``operation_column``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa
from alembic.operations import MigrateOperation, Operations

from sqlalchemy_history.maintenance.backfill import MARK
from sqlalchemy_history.operation import Operation
from sqlalchemy_history.schema import update_end_tx_column
from sqlalchemy_history.transaction import utcnow

from .triggers import Name, Names, ReflectedNative

Tables = str | Sequence[str | tuple[str, str]]


def _operation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``op.<name of the function>()`` of a function."""
    name = function.__name__
    cls = type(name, (MigrateOperation,), {name: classmethod(function)})
    Operations.register_operation(name)(cls)
    return function


def _pairs(tables: Tables) -> list[tuple[str, str]]:
    """(table, version table) of each."""
    names = [tables] if isinstance(tables, str) else tables
    return [(name, f"{name}_version") if isinstance(name, str) else name for name in names]


def _needs_connection(what: str) -> NotImplementedError:
    return NotImplementedError(
        f"what becomes of {what} depends on what is in the database; run the migration without --sql"
    )


def _placed(name: str, schema: str | None) -> Name:
    """(schema, name) of a table that may have its schema in front."""
    *own, table = name.rsplit(".", 1)
    return own[0] if own else schema, table


def _reflected(operations: Operations, name: str, schema: str | None) -> sa.Table:
    if operations.get_context().as_sql:
        raise _needs_connection(f"the history in {name!r}")
    schema, name = _placed(name, schema)
    return sa.Table(name, sa.MetaData(), schema=schema, autoload_with=operations.get_bind())


def _keys(version: sa.Table, called: Names) -> list[str]:
    return [c.name for c in version.primary_key if c.name != called.transaction_column]


@_operation
def backfill_versions(
    cls: Any, operations: Operations, tables: Tables, *, schema: str | None = None, **names: Any
) -> None:
    """Give rows without history a first version, all under one transaction row.

    :param tables: a table or several, those of one joined hierarchy together; each a name, or a
        pair of it and the name of the version table.
    """
    connection, called = operations.get_bind(), Names(**names)
    transaction = _reflected(operations, called.transaction_table, called.transaction_schema)
    selects = []
    for name, version_name in _pairs(tables):
        live = _reflected(operations, name, schema)
        version = _reflected(operations, version_name, schema)
        known = sa.exists().where(*(version.c[k] == live.c[k] for k in _keys(version, called)))
        columns = [c.name for c in live.c if c.name in version.c]
        selects.append((version, columns, sa.select(*(live.c[n] for n in columns)).where(~known)))
    if not any(connection.execute(new.limit(1)).first() for _, _, new in selects):
        return
    row = {"issued_at": utcnow(), "remote_addr": MARK}
    row = {name: value for name, value in row.items() if name in transaction.c}
    sequence = sa.Sequence(f"{transaction.name}_id_seq", schema=transaction.schema)
    if connection.dialect.supports_sequences:
        row["id"] = connection.scalar(sequence.next_value())
    result = connection.execute(sa.insert(transaction).values(row))
    assert result.inserted_primary_key is not None
    tx = result.inserted_primary_key[0]
    for version, columns, new in selects:
        rows = new.add_columns(sa.literal(tx), sa.literal(Operation.INSERT))
        target = [*columns, called.transaction_column, called.operation_column]
        connection.execute(sa.insert(version).from_select(target, rows))


@_operation
def drop_versions(
    cls: Any, operations: Operations, tables: Tables, *, schema: str | None = None
) -> None:
    """Remove all versions of tables, and keep the version tables."""
    for _, version_name in _pairs(tables):
        placed, name = _placed(version_name, schema)
        operations.execute(sa.delete(sa.table(name, schema=placed)))


@_operation
def sync_versions(
    cls: Any,
    operations: Operations,
    table: str,
    columns: Sequence[str],
    *,
    version_table: str | None = None,
    schema: str | None = None,
    **names: Any,
) -> None:
    """Give the versions that are valid now the live rows' values of ``columns``.

    For columns that were added, with values in the rows that are there.
    """
    [(name, version_name)] = _pairs([(table, version_table)] if version_table else table)
    live = _reflected(operations, name, schema)
    version = _reflected(operations, version_name, schema)
    later = version.alias("later")
    called = Names(**names)
    keys = _keys(version, called)
    same_row = sa.and_(*(version.c[key] == live.c[key] for key in keys))
    newer = sa.exists().where(
        *(later.c[key] == version.c[key] for key in keys),
        later.c[called.transaction_column] > version.c[called.transaction_column],
    )
    values = {c: sa.select(live.c[c]).where(same_row).scalar_subquery() for c in columns}
    operations.get_bind().execute(
        sa.update(version)
        .where(version.c[called.operation_column] != Operation.DELETE, ~newer)
        .values(values)
    )


@_operation
def link_versions(
    cls: Any, operations: Operations, version_table: str, *, schema: str | None = None, **names: Any
) -> None:
    """Let every version end where the next one starts: the strategy is validity from now on."""
    version, called = _reflected(operations, version_table, schema), Names(**names)
    update_end_tx_column(
        version, called.end_transaction_column, called.transaction_column, operations.get_bind()
    )


@_operation
def alter_versioned_column(
    cls: Any,
    operations: Operations,
    table: str,
    column: str,
    *,
    version_table: str | None = None,
    schema: str | None = None,
    **kw: Any,
) -> None:
    """``op.alter_column()`` for a column and its copy in the version table.

    What a version column does not have stays with the parent: NOT NULL, defaults.
    """
    [names] = _pairs([(table, version_table)] if version_table else table)
    for name in names:
        found = _reflected(operations, name, schema).c[column]
        changes = dict(kw)
        if name == names[1]:
            for key in ("nullable", "server_default", "comment"):
                changes.pop(key, None)
        changes.setdefault("existing_type", found.type)
        changes.setdefault("existing_nullable", found.nullable)
        if found.server_default is not None:
            changes.setdefault("existing_server_default", found.server_default)
        with operations.batch_alter_table(found.table.name, schema=found.table.schema) as batch:
            batch.alter_column(column, **changes)


@_operation
def rename_versioned_column(
    cls: Any,
    operations: Operations,
    table: str,
    old: str,
    new: str,
    *,
    version_table: str | None = None,
    schema: str | None = None,
) -> None:
    """Rename a column, in the version table too."""
    alter_versioned_column(
        cls, operations, table, old, version_table=version_table, schema=schema, new_column_name=new
    )


@_operation
def rename_versioned_table(
    cls: Any,
    operations: Operations,
    old: str,
    new: str,
    *,
    old_version_table: str | None = None,
    new_version_table: str | None = None,
    schema: str | None = None,
) -> None:
    """Rename a table and its version table."""
    operations.rename_table(old, new, schema=schema)
    placed, name = _placed(old_version_table or f"{old}_version", schema)
    _, new_name = _placed(new_version_table or f"{new}_version", schema)
    operations.rename_table(name, new_name, schema=placed)


@_operation
def create_open_version_index(
    cls: Any,
    operations: Operations,
    name: str,
    version_table: str,
    columns: Sequence[str],
    *,
    schema: str | None = None,
    **names: Any,
) -> None:
    """Make two open versions of one row impossible, on databases that have partial indexes."""
    if operations.get_context().dialect.name in ("sqlite", "postgresql"):
        is_open = sa.column(Names(**names).end_transaction_column).is_(None)
        operations.create_index(
            name,
            version_table,
            list(columns),
            unique=True,
            schema=schema,
            sqlite_where=is_open,
            postgresql_where=is_open,
        )


@_operation
def drop_open_version_index(
    cls: Any,
    operations: Operations,
    name: str,
    version_table: str,
    columns: Sequence[str] = (),
    *,
    schema: str | None = None,
    **names: Any,
) -> None:
    """The reverse of ``create_open_version_index()``."""
    if operations.get_context().dialect.name in ("sqlite", "postgresql"):
        operations.drop_index(name, version_table, schema=schema)


@_operation
def create_transaction_sequence(
    cls: Any, operations: Operations, name: str, *, schema: str | None = None
) -> None:
    """The sequence that transactions get their ids from, on databases that have sequences."""
    if operations.get_context().dialect.supports_sequences:
        sequence = sa.Sequence(name, schema=schema)
        operations.execute(sa.schema.CreateSequence(sequence, if_not_exists=True))


@_operation
def drop_transaction_sequence(
    cls: Any, operations: Operations, name: str, *, schema: str | None = None
) -> None:
    """The reverse of ``create_transaction_sequence()``."""
    if operations.get_context().dialect.supports_sequences:
        operations.execute(sa.schema.DropSequence(sa.Sequence(name, schema=schema), if_exists=True))


@_operation
def create_history_triggers(
    cls: Any, operations: Operations, tables: Tables, *, schema: str | None = None, **names: Any
) -> None:
    """Make the triggers of ``native_versioning=True``, in place of those that there are.

    They fit the columns that the tables have now.

    :param tables: a table, or all those of one joined hierarchy together, its base table first;
        each a name, or a pair of it and the name of the version table.
    """
    _native(operations, tables, schema, names).create_all()


@_operation
def drop_history_triggers(
    cls: Any,
    operations: Operations,
    tables: Tables,
    *,
    shared: bool = False,
    schema: str | None = None,
    **names: Any,
) -> None:
    """The reverse of ``create_history_triggers()``.

    :param shared: no table has such triggers any more: what they share goes, too.
    """
    _native(operations, tables, schema, names).drop_all(shared=shared)


def _native(
    operations: Operations, tables: Tables, schema: str | None, names: dict[str, Any]
) -> ReflectedNative:
    if operations.get_context().as_sql:
        raise _needs_connection(f"triggers of {tables!r}")
    pairs = [((schema, name), _placed(version, schema)) for name, version in _pairs(tables)]
    return ReflectedNative(operations.get_bind(), pairs, Names(**names))
