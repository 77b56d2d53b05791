"""When two stored values are the same value: exactly, byte by byte, and NULL equal to NULL.

``=`` is not enough for that. It knows no NULL, on MySQL and SQL Server it takes ``'a'`` and ``'A'``
for the same text, and some types have no ``=`` at all.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Dialect,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
    Uuid,
    and_,
    cast,
    collate,
    func,
    or_,
    type_coerce,
)
from sqlalchemy.types import TypeEngine


def identical(
    one: ColumnElement[Any], other: ColumnElement[Any], dialect: Dialect
) -> ColumnElement[bool]:
    """``one`` and ``other``, a live column and its version column, hold the same value."""
    type_ = _storage_type(one.type, dialect)
    name = dialect.name
    if name == "oracle" and isinstance(type_, (Text, LargeBinary, JSON)):
        return or_(and_(one.is_(None), other.is_(None)), func.dbms_lob.compare(one, other) == 0)
    if name in ("mysql", "mariadb"):
        # MariaDB keeps JSON as text, and an Uuid where it has no type for it
        if isinstance(type_, (String, JSON)) or _is_text_of_uuid(type_, dialect):
            one, other = cast(one, LargeBinary), cast(other, LargeBinary)
    elif name == "mssql":
        if isinstance(type_, String):
            binary = "Latin1_General_BIN2"
            one, other = collate(one, binary), collate(other, binary)
    elif name == "sqlite":
        # whatever the type: that of a reflected column does not tell its collation
        one = collate(type_coerce(one, String), "BINARY")
    elif name == "postgresql" and (_has_no_equality(type_) or type_.__visit_name__ == "CITEXT"):
        one, other = cast(one, Text), cast(other, Text)
    return one.is_not_distinct_from(other)


def _storage_type(type_: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    type_ = type_.dialect_impl(dialect)
    return (
        _storage_type(type_.impl_instance, dialect) if isinstance(type_, TypeDecorator) else type_
    )


def _is_text_of_uuid(type_: TypeEngine[Any], dialect: Dialect) -> bool:
    is_native = dialect.supports_native_uuid
    return isinstance(type_, Uuid) and not (type_.native_uuid and is_native)


def _has_no_equality(type_: TypeEngine[Any]) -> bool:
    """PostgreSQL's ``json`` has no ``=``; ``jsonb``, a subclass in SQLAlchemy, has one."""
    return isinstance(type_, JSON) and type_.__visit_name__ != "JSONB"
