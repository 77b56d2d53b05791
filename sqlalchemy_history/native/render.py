"""SQL text for triggers: every name through the dialect's preparer, every value as a literal."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from typing import Any

from sqlalchemy import Column, Connection, Dialect, Sequence, Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement

_Build = Callable[["Renderer"], str]


class TriggerDDL(ExecutableDDLElement):
    """One DDL statement, made for the dialect that executes it."""

    inherit_cache = False

    def __init__(self, build: _Build) -> None:
        self.build = build


@compiles(TriggerDDL)
def _compile(element: TriggerDDL, compiler: Any, **_: Any) -> str:
    return element.build(
        Renderer(compiler.dialect, compiler.preparer, compiler.schema_translate_map)
    )


class _WithoutSchemas:
    """Leaves tables as they are called.

    SQLAlchemy renames one without a schema that is called like one with a schema; to it a table whose
    schema is only not said is such a namesake of itself.
    """

    def visit_column(self, *arguments: Any, **options: Any) -> Any:
        options.pop("ambiguous_table_name_map", None)
        return super().visit_column(*arguments, **options)  # type: ignore[misc]  # of the compiler

    def visit_table(self, *arguments: Any, **options: Any) -> Any:
        options.pop("ambiguous_table_name_map", None)
        return super().visit_table(*arguments, **options)  # type: ignore[misc]  # of the compiler


class Renderer:
    """Renders parts of a statement for one dialect."""

    def __init__(self, dialect: Dialect, preparer: Any, schema_translate_map: Any) -> None:
        self.dialect = dialect
        self._preparer = preparer
        self._translate = schema_translate_map

    @classmethod
    def of(cls, connection: Connection) -> Renderer:
        """One that gives what the connection's database stores, not what a driver is given."""
        translate = connection.get_execution_options().get("schema_translate_map") or {}
        r = cls(connection.dialect, connection.dialect.identifier_preparer, translate)
        plain = r._with_schemas(lambda schema: translate.get(schema, schema))
        plain._preparer._double_percents = False
        return plain

    def without_schemas(self) -> Renderer:
        """One that leaves the schemas of tables out."""
        plain = self._with_schemas(lambda schema: None)
        compiler: Any = plain.dialect.statement_compiler
        plain.dialect.statement_compiler = type("WithoutSchemas", (_WithoutSchemas, compiler), {})
        return plain

    def qualified(self) -> Renderer:
        """One that also says the connection's own schema."""
        translate, own = self._translate or {}, self.dialect.default_schema_name
        return self._with_schemas(lambda schema: translate.get(schema, schema) or own)

    def _with_schemas(self, schema_of: Callable[[str | None], str | None]) -> Renderer:
        dialect = copy.copy(self.dialect)
        preparer = dialect.identifier_preparer = copy.copy(dialect.identifier_preparer)
        preparer._strings = {}

        def schema_for_object(one: Any) -> Any:
            return schema_of(one.schema) if isinstance(one, (Table, Sequence)) else None

        preparer.schema_for_object = schema_for_object
        return Renderer(dialect, preparer, None)

    def schema(self, table: Table) -> str | None:
        """The schema that ``table`` is in, None of the connection's own."""
        return (self._translate or {}).get(table.schema, table.schema)

    def table(self, table: Table) -> str:
        """The table's name, with its schema."""
        return self._preparer.format_table(table)  # type: ignore[no-any-return]

    def name(self, name: str, schema_of: Table | None = None) -> str:
        """``name``, in the schema of ``schema_of``."""
        quoted: str = self._preparer.quote(name)
        schema = None if schema_of is None else self._preparer.schema_for_object(schema_of)
        return f"{self._preparer.quote_schema(schema)}.{quoted}" if schema else quoted

    def column(self, name: str) -> str:
        """A column's name."""
        return self._preparer.quote(name)  # type: ignore[no-any-return]

    def text(self, rendered: str) -> str:
        """SQL that is rendered already, as a text literal."""
        escaped = rendered.replace("'", "''")
        if self.dialect.name in ("mysql", "mariadb"):
            escaped = escaped.replace("\\", "\\\\")
        return f"'{escaped}'"

    def sql(self, statement: Any) -> str:
        """A statement or an expression."""
        compiled = statement.compile(
            dialect=self.dialect,
            schema_translate_map=self._translate,
            compile_kwargs={"literal_binds": True},
        )
        return str(compiled)


def given_columns(transaction: Table) -> tuple[list[Column[Any]], list[Column[Any]]]:
    """Columns of a new transaction row: those to be said, and those that have a server default."""
    columns = [c for c in transaction.c if c is not transaction.c.id]
    given = [c for c in columns if c.server_default is not None]
    return [c for c in columns if c not in set(given)], given


def short_name(name: str, limit: int) -> str:
    """``name``, with a digest in place of its end where it has more than ``limit`` bytes."""
    encoded = name.encode()
    if len(encoded) <= limit:
        return name
    digest = hashlib.md5(encoded, usedforsecurity=False).hexdigest()[:8]
    return f"{encoded[: limit - 9].decode(errors='ignore')}_{digest}"
