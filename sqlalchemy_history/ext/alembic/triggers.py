"""Triggers of ``native_versioning=True`` in migrations: made for the tables as they are then.

A migration may not look at the models, which are those of today. So the plans that triggers are made
from are built from the tables that the database has when the migration runs. A downgrade therefore
makes the triggers of the columns that were there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from sqlalchemy_history.config import Options
from sqlalchemy_history.native import Native
from sqlalchemy_history.plan import TablePlan
from sqlalchemy_history.strategy import STRATEGIES

Name = tuple[str | None, str]


class Names(NamedTuple):
    """What the tables and columns of a history are called; options can change it."""

    transaction_table: str = "transaction"
    transaction_schema: str | None = None
    transaction_column: str = "transaction_id"
    end_transaction_column: str = "end_transaction_id"
    operation_column: str = "operation_type"


def tables_with_triggers(connection: sa.Connection, schemas: Collection[str | None]) -> set[Name]:
    """(schema, table) of the tables that have triggers of ours; no schema is the default one.

    :param schemas: where to look. PostgreSQL and SQLite look everywhere in the database.
    """
    kind = connection.dialect.name
    asked: list[dict[str, Any]] = [{}]
    if kind == "sqlite":
        statement = "SELECT NULL, tbl_name FROM sqlite_master WHERE type = 'trigger' AND name "
    elif kind == "postgresql":
        statement = (
            "SELECT nullif(n.nspname, current_schema()), c.relname FROM pg_trigger AS t "
            "JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE t.tgname "
        )
    elif kind in ("mysql", "mariadb"):
        # another condition would have the server open every table of every database
        statement = (
            "SELECT nullif(trigger_schema, database()), event_object_table "
            "FROM information_schema.triggers WHERE event_object_schema = "
            "coalesce(:schema, database()) AND trigger_name "
        )
        asked = [{"schema": schema} for schema in schemas]
    else:
        return set()
    found = sa.text(f"{statement} LIKE 'history!_insert%' ESCAPE '!'")
    return {(schema, table) for one in asked for schema, table in connection.execute(found, one)}


class ReflectedNative(Native):
    """Makes and drops the triggers of one joined hierarchy, or of one table.

    :param pairs: table and version table of each of its tables, the base table first.
    """

    def __init__(
        self, connection: sa.Connection, pairs: Sequence[tuple[Name, Name]], names: Names
    ) -> None:
        manager: Any = None  # only tables are looked at
        super().__init__(manager)
        self._connection = connection
        self._names = names
        self._metadata = sa.MetaData()
        self._transaction = self._table(names.transaction_schema, names.transaction_table)
        sequence = sa.Sequence(f"{names.transaction_table}_id_seq", schema=names.transaction_schema)
        if connection.dialect.supports_sequences and sa.inspect(connection).has_sequence(
            sequence.name, schema=sequence.schema
        ):
            self._transaction.c.id.default = sequence
        hierarchy: list[TablePlan] = []
        for table, version_table in pairs:
            parent, version = self._table(*table), self._table(*version_table)
            hierarchy.append(self._plan(parent, version, hierarchy))
        self.hierarchy = hierarchy

    def create_all(self) -> None:
        """Make the triggers, in place of those that there are."""
        self.create(self._connection, self.hierarchy)

    def drop_all(self, *, shared: bool) -> None:
        """Drop the triggers, and with ``shared`` what they share with those of other tables."""
        self.drop(self._connection, self.hierarchy)
        if shared:
            self._transaction_dropped(self._transaction, self._connection)

    def table_plans(self) -> list[TablePlan]:
        """The plans of all tables that look like version tables, for what all triggers share."""
        inspector = sa.inspect(self._connection)
        schemas: list[str | None] = [None]
        if self._connection.dialect.name == "postgresql":
            default = inspector.default_schema_name
            others = inspector.get_schema_names()
            schemas += [s for s in others if s not in (default, "information_schema")]
        mine = {self._names.transaction_column, self._names.operation_column}
        found = []
        for schema in schemas:
            for (_, name), columns in inspector.get_multi_columns(schema).items():
                if mine <= {column["name"] for column in columns}:
                    version = self._table(schema, name)
                    found.append(self._plan(version, version, []))
        return found

    def _table(self, schema: str | None, name: str) -> sa.Table:
        return sa.Table(name, self._metadata, schema=schema, autoload_with=self._connection)

    def _plan(self, parent: sa.Table, version: sa.Table, hierarchy: list[TablePlan]) -> TablePlan:
        names = self._names
        keys = [c.key for c in version.primary_key if c.key != names.transaction_column]
        both = [c.key for c in parent.c if c.key in version.c]
        end = version.c.get(names.end_transaction_column)
        return TablePlan(
            manager=self._manager,
            parent=parent,
            version=version,
            transaction=self._transaction,
            columns=tuple((parent.c[key], version.c[key]) for key in both),
            keys=tuple((parent.c[key], version.c[key]) for key in keys),
            tx=version.c[names.transaction_column],
            end=end,
            op=version.c[names.operation_column],
            options=Options(
                transaction_column_name=names.transaction_column,
                end_transaction_column_name=names.end_transaction_column,
                operation_type_column_name=names.operation_column,
            ),
            strategy=STRATEGIES["subquery" if end is None else "validity"],
            hierarchy=hierarchy,
            association=not parent.primary_key.columns,
        )
