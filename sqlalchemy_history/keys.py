"""How a list of row identities goes into one statement, on each database.

One key is compared column by column. Many keys travel as a single parameter where the database can
unpack one (SQLite: JSON, PostgreSQL: arrays), so that the statement's text, its cached form and its
plan are the same for any number of rows; elsewhere as an ``IN`` list, in portions where the
database limits the number of parameters, or takes too long for a long list.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Dialect,
    LargeBinary,
    TypeDecorator,
    and_,
    any_,
    bindparam,
    cast,
    column,
    exists,
    func,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy.types import TypeEngine

from .plan import Key, key_values

#: how many keys one statement takes where every value is a parameter of its own
_PORTIONS: Final = {"mssql": 900, "oracle": 900, "expanding": 900}


class KeyFormat:
    """The format of keys made of ``columns`` for ``dialect``."""

    def __init__(self, dialect: Dialect, columns: Sequence[Column[Any]]) -> None:
        self._types: list[TypeEngine[Any]] = [c.type for c in columns]
        self._processors = [t.dialect_impl(dialect).bind_processor(dialect) for t in self._types]
        self._width = len(self._types)
        self._kind = dialect.name
        if dialect.name == "sqlite" and any(map(_is_binary, self._types)):
            self._kind = "expanding"
        if dialect.name == "mssql" and self._width > 1:
            self._kind = "openjson"  # it has no row values to look for in a list
        self._portion = _PORTIONS.get(self._kind, 1_000_000) // self._width
        if dialect.name in ("mysql", "mariadb") and self._width > 1 and _have_index(columns):
            # where it may choose between the primary key and another index, its optimizer takes time
            # that grows with the square of a list of row values
            self._portion = 100

    def one(self, columns: Sequence[ColumnElement[Any]], name: str) -> ColumnElement[bool]:
        """``columns`` are those of the single key in parameters ``name``."""
        name = _parameter(name)
        return and_(
            *(
                c == bindparam(f"{name}_{i}", type_=t)
                for i, (c, t) in enumerate(zip(columns, self._types, strict=True))
            )
        )

    def many(self, columns: Sequence[ColumnElement[Any]], name: str) -> ColumnElement[bool]:
        """``columns`` are those of one of the keys in parameters ``name``."""
        name = _parameter(name)
        left: Any = columns[0] if self._width == 1 else tuple_(*columns)
        if self._kind == "sqlite":
            each = func.json_each(bindparam(name)).table_valued(
                column("value"), name=f"{name}_each"
            )
            if self._width == 1:
                values: list[ColumnElement[Any]] = [each.c.value]
            else:
                values = [
                    func.json_extract(each.c.value, literal_column(f"'$[{i}]'"))
                    for i in range(self._width)
                ]
            return and_(left.in_(select(*values)))
        if self._kind == "postgresql":
            arrays = [bindparam(f"{name}_{i}", type_=ARRAY(t)) for i, t in enumerate(self._types)]
            if self._width == 1:
                return and_(columns[0] == any_(arrays[0]))
            parts: list[Any] = [column(f"k{i}", t) for i, t in enumerate(self._types)]
            rows = func.unnest(*arrays).table_valued(*parts, name=f"{name}_rows").render_derived()
            return and_(left.in_(select(*rows.c)))
        if self._kind == "openjson":
            row = func.openjson(bindparam(name)).table_valued(column("value"), name=f"{name}_rows")
            parts = [
                cast(func.json_value(row.c.value, literal_column(f"'$[{i}]'")), t)
                for i, t in enumerate(self._types)
            ]
            return exists().where(*(c == part for c, part in zip(columns, parts, strict=True)))
        type_ = self._types[0] if self._width == 1 else None
        return and_(left.in_(bindparam(name, expanding=True, type_=type_)))

    def one_parameters(self, key: Key, name: str) -> dict[str, Any]:
        """Parameters for ``one()``."""
        name = _parameter(name)
        return {f"{name}_{i}": value for i, value in enumerate(key_values(key, self._width))}

    def many_parameters(self, keys: Sequence[Key], name: str) -> dict[str, Any]:
        """Parameters for ``many()``."""
        name = _parameter(name)
        if self._kind == "sqlite":
            return {name: json.dumps(self._plain(keys))}
        if self._kind == "openjson":
            return {name: json.dumps(self._plain(keys), default=str)}
        if self._kind == "postgresql":
            if self._width == 1:
                return {f"{name}_0": list(keys)}
            return {f"{name}_{i}": list(values) for i, values in enumerate(zip(*keys, strict=True))}
        return {name: list(keys)}

    def fits(self, count: int) -> bool:
        """Whether one statement takes so many keys."""
        return self._kind in ("sqlite", "postgresql") or count <= self._portion

    def portions(self, keys: Sequence[Key]) -> Iterator[Sequence[Key]]:
        """``keys`` in as many parts as the database needs."""
        if not self.fits(len(keys)):
            for start in range(0, len(keys), self._portion):
                yield keys[start : start + self._portion]
        elif keys:
            yield keys

    def _plain(self, keys: Sequence[Key]) -> Sequence[Any]:
        """Keys as the driver would be given them: numbers and strings."""
        if not any(self._processors):
            return keys if isinstance(keys, list) else list(keys)
        if self._width == 1:
            process = self._processors[0]
            assert process is not None
            return [process(key) for key in keys]
        return [
            [
                value if process is None else process(value)
                for process, value in zip(self._processors, key, strict=True)
            ]
            for key in keys
        ]


def _have_index(columns: Sequence[Column[Any]]) -> bool:
    """An index starts with one of ``columns`` that is not the first, as the primary key is."""
    others = {column.key for column in columns[1:]}
    indexes = columns[0].table.indexes
    return any(index.columns[0].key in others for index in indexes if len(index.columns))


def _parameter(name: str) -> str:
    """A parameter's name that is no column's: SQLAlchemy would put its value into that column."""
    return f"history__{name}"


def _is_binary(type_: TypeEngine[Any]) -> bool:
    if isinstance(type_, TypeDecorator):
        return _is_binary(type_.impl_instance)
    return isinstance(type_, LargeBinary) or type_.__class__.__name__ in (
        "BINARY",
        "VARBINARY",
        "BLOB",
    )
