"""What a database says of a table: whether it is there, and whether the user has triggers on it."""

from __future__ import annotations

import weakref
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Dialect,
    Engine,
    Table,
    and_,
    column,
    false,
    func,
    literal_column,
    select,
)
from sqlalchemy import (
    table as a_table,
)

_there: weakref.WeakKeyDictionary[Engine, set[tuple[str | None, str]]] = weakref.WeakKeyDictionary()
_known: weakref.WeakKeyDictionary[Engine, dict[Table, bool]] = weakref.WeakKeyDictionary()


def table_exists(connection: Connection, table: Table) -> bool:
    """The connection's database has ``table``."""
    translate = connection.get_execution_options().get("schema_translate_map") or {}
    schema = translate.get(table.schema, table.schema)
    return connection.dialect.has_table(connection, table.name, schema)


def keeps_history(connection: Connection, version: Table) -> bool:
    """The connection's database is one that has the table ``version``.

    Another database may have a live table of the same name. It is asked until it says yes.
    """
    known = _there.setdefault(connection.engine, set())
    name = version.schema, version.name
    if name not in known and table_exists(connection, version):
        known.add(name)
    return name in known


def trigger_exists(table: Table, dialect: Dialect) -> ColumnElement[bool]:
    """The database has a trigger on ``table``; false where we do not know how to ask."""
    if dialect.name == "sqlite":
        listed: Any = a_table(
            "sqlite_master", column("type"), column("tbl_name"), schema=table.schema
        )
        found: Any = select(literal_column("1")).where(
            listed.c.type == literal_column("'trigger'"),
            func.lower(listed.c.tbl_name) == table.name.lower(),
        )
    elif dialect.name == "postgresql":
        listed = a_table(
            "pg_trigger", column("tgrelid"), column("tgisinternal"), schema="pg_catalog"
        )
        name = dialect.identifier_preparer.format_table(table)
        found = select(literal_column("1")).where(
            listed.c.tgrelid == func.to_regclass(name), ~listed.c.tgisinternal
        )
    elif dialect.name in ("mysql", "mariadb"):
        names = "event_object_schema", "event_object_table"
        listed = a_table("triggers", *map(column, names), schema="information_schema")
        found = select(literal_column("1")).where(
            listed.c.event_object_schema == (table.schema or func.database()),
            listed.c.event_object_table == table.name,
        )
    else:
        return false()
    return and_(found.exists())


def has_triggers(connection: Connection, table: Table) -> bool:
    """``table`` has triggers; the database is asked once for each engine."""
    known = _known.setdefault(connection.engine, {})
    if table not in known:
        known[table] = bool(connection.scalar(select(trigger_exists(table, connection.dialect))))
    return known[table]
