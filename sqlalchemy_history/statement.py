"""What an INSERT, UPDATE or DELETE says: its table, its SET clause, its criteria, the keys it names.

Much of it SQLAlchemy only knows inside of its compiler, whose state is asked here. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    Alias,
    Column,
    ColumnElement,
    Dialect,
    FromClause,
    Insert,
    Select,
    Table,
    bindparam,
    select,
)
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, BindParameter
from sqlalchemy.util import EMPTY_DICT

from .latest import conjunction
from .plan import Key, as_key

Parameters = Sequence[Mapping[str, Any]]

#: functions that give the same result whenever they are asked, of which a SET may be made
_PURE: Final = frozenset(
    "abs char_length coalesce concat greatest json_merge_patch json_object json_patch "
    "jsonb_build_object jsonb_strip_nulls jsonb_typeof least length lower ltrim mod nullif replace "
    "round rtrim substr substring trim upper".split()
)
#: the same as long as a transaction lasts; elsewhere the clock may go on between two statements
_PURE_IN_TRANSACTION: Final = {
    "postgresql": frozenset(
        "now current_timestamp localtimestamp current_date transaction_timestamp".split()
    )
}
#: elements whose value depends on nothing but what they are made of
_HARMLESS: Final = frozenset(
    "bindparam binary unary grouping clauselist expression_clauselist case cast type_coerce null "
    "true false tuple typeclause collation".split()
)


def table_of(statement: Any) -> Any:
    """The table that it writes; of a joined class the ORM executes the user's statement for each table."""
    name = "_emit_insert_table" if statement.is_insert else "_emit_update_table"
    table = statement._annotations.get(name)
    return statement.table if table is None else table


def parent_table(table: Any) -> Table | None:
    """The table behind an alias or an annotation of it; None where there are several."""
    while isinstance(table, Alias):
        table = table.element
    if not isinstance(table, Table):
        return None
    plain_table: Table = table._deannotate()
    return plain_table


def is_of_flush(statement: Any, options: Mapping[str, Any]) -> bool:
    """Whether a flush executes ``statement`` by itself, and not a listener of the user inside of it.

    A flush brings the compiled cache of its mapper; so does an ORM bulk statement, which however
    carries its strategy.
    """
    return "compiled_cache" in options and "dml_strategy" not in statement._annotations


def resolved(statement: Any, dialect: Dialect) -> Any:
    """The compile state of ``statement``: its table, its SET and its criteria as Core has them."""
    statement = statement._clone()
    statement._returning = ()
    compiler = dialect.statement_compiler(dialect, None)
    return statement._compile_state_factory(statement, compiler)


def criteria(core: Any) -> tuple[ColumnElement[bool], ...]:
    """Which rows a statement is about; other tables that it names are in a subquery."""
    where: tuple[ColumnElement[bool], ...] = tuple(core.statement._where_criteria)
    if core._extra_froms:
        matching: Any = select(*(c for f in core._extra_froms for c in list(f.c)[:1]))
        matching = plain(matching.select_from(*core._extra_froms).where(*where))
        return (matching.correlate(core.statement.table).exists(),)
    return where


def equalities(
    where: Sequence[ColumnElement[bool]], rows: Parameters
) -> list[dict[str, Any]] | None:
    """``{column: value}`` for each of ``rows``; None if the WHERE is not ``column = value AND ...``."""
    found: dict[str, BindParameter[Any]] = {}
    for part in conjunction(where):
        if not (
            isinstance(part, BinaryExpression)
            and part.operator is operators.eq
            and isinstance(part.left, Column)
            and isinstance(part.right, BindParameter)
            and part.left.key not in found
        ):
            return None
        found[part.left.key] = part.right
    return [
        {name: row.get(bind.key, bind.effective_value) for name, bind in found.items()}
        for row in rows or [{}]
    ]


def given_keys(
    columns: Sequence[Column[Any]], where: Sequence[ColumnElement[bool]], rows: Parameters
) -> list[Key] | None:
    """The keys, if the WHERE does nothing but name them."""
    names = [column.key for column in columns]
    found = equalities(where, rows)
    if found is None or found[0].keys() != set(names):
        return None
    return list(dict.fromkeys(as_key(values[name] for name in names) for values in found))


def is_limited(statement: Any) -> bool:
    """Whether it writes only some of the rows that match, as ``UPDATE ... LIMIT`` of MySQL does."""
    return any(name.endswith("_limit") for name in statement.dialect_kwargs)


def set_clause(core: Any, live: FromClause, row: Mapping[str, Any]) -> dict[str, Any]:
    """The SET clause by column key; what the execution's parameters add is a parameter."""
    sets = {_name(column): value for column, value in (core._dict_parameters or {}).items()}
    for name in row:
        if name in live.c and name not in sets:
            sets[name] = bindparam(name, required=True)
    return sets


def is_ordered(statement: Any) -> bool:
    """Whether the SET clause stands in the order in which it was given (``ordered_values()``)."""
    return bool(
        getattr(statement, "_ordered_values", None)
        or getattr(statement, "_maintain_values_ordering", False)
    )


def columns_used(
    expression: ColumnElement[Any], live: FromClause, dialect: Dialect
) -> set[str] | None:
    """Keys of the columns of ``live`` that ``expression`` is a pure function of, if it is one."""
    pure = _PURE | _PURE_IN_TRANSACTION.get(dialect.name, frozenset())
    used = set()
    for element in visitors.iterate(expression):
        kind, found = element.__visit_name__, element
        if isinstance(found, Column):
            if found.table not in {live}:
                return None
            used.add(found.key)
        elif kind == "function" or "function" in kind:
            if str(getattr(found, "name", "")).lower() not in pure:
                return None
        elif kind not in _HARMLESS:
            return None
    return used


def bound(clause: ColumnElement[Any], row: Mapping[str, Any]) -> ColumnElement[Any]:
    """``clause`` with the parameters of one execution, under names that nothing else has."""

    def bind(parameter: Any) -> None:
        if parameter.key in row:
            parameter.value, parameter.required = row[parameter.key], False
        parameter._convert_to_unique()

    found = (e for e in visitors.iterate(clause) if isinstance(e, BindParameter))
    if all(parameter.unique for parameter in found):
        return clause
    options = {"maintain_key": True, "detect_subquery_cols": True}
    return visitors.cloned_traverse(clause, options, {"bindparam": bind})


def inserted_values(statement: Insert, rows: Parameters) -> Iterable[Mapping[str, Any]]:
    """The values of each row that ``statement`` inserts, as far as it names them."""
    if statement._multi_values:
        for portion in statement._multi_values:
            for values in portion:
                yield {_name(c): _literal(v) for c, v in _pairs(values, statement.table)}
        return
    fixed = {_name(c): _literal(v) for c, v in (statement._values or {}).items()}
    for row in rows or [{}]:
        yield {**fixed, **row}


def _pairs(values: Any, table: Any) -> Iterable[tuple[Any, Any]]:
    return values.items() if isinstance(values, Mapping) else zip(table.c, values, strict=False)


def _literal(value: Any) -> Any:
    return value.effective_value if isinstance(value, BindParameter) else value


def _name(column: Any) -> str:
    return column if isinstance(column, str) else column.key


def are_given(statement: Any, row: Mapping[str, Any], keys: Sequence[Column[Any]]) -> bool:
    """Whether an INSERT names ``keys``, or SQLAlchemy makes them before it is executed."""
    named = {
        _name(column)
        for column, value in (statement._values or {}).items()
        if not isinstance(value, ColumnElement) or isinstance(value, BindParameter)
    }
    return all(
        c.key in row
        or c.key in named
        or (c.default is not None and (c.default.is_callable or c.default.is_scalar))
        for c in keys
    )


def returns(statement: Any, columns: Sequence[Column[Any]]) -> bool:
    """Whether the user has asked for the keys."""
    selected = (c for c in statement._all_selected_columns if isinstance(c, Column))
    return {c._deannotate() for c in selected}.issuperset(columns)


def plain(statement: Select[Any]) -> Select[Any]:
    """A Core statement, also if its conditions come from an ORM one, whose criteria they hold."""
    statement._propagate_attrs = EMPTY_DICT
    return statement
