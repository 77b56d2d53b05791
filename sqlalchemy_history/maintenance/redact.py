"""Values that must not be known any more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Column, exists, select, update
from sqlalchemy.orm import Session

from sqlalchemy_history.config import nearest
from sqlalchemy_history.exc import VersioningError
from sqlalchemy_history.plan import ClassPlan, Key, key_values
from sqlalchemy_history.version import key_from

from .transactions import REDACT_MARK
from .upkeep import Upkeep


def redact(
    session: Session,
    model: Any,
    ident: Any,
    columns: Iterable[Any] | Mapping[Any, Any] | None = None,
) -> int:
    """Erase values of one object from all of its versions, and from the live row if there is one.

    Both, since the last version says what the live row says. Plugins erase what they keep of the
    values (:meth:`Plugin.redacted <sqlalchemy_history.plugins.Plugin.redacted>`). The versions stay,
    so it can still be seen that the object was changed, and by whom. The key stays, too, in versions
    and in the tables of plugins.

    A transaction row says who erased, and when. Its columns come from
    :class:`~sqlalchemy_history.transaction_context`. Its ``remote_addr`` is a text of at most 50
    characters: ``"redact "``, the context's ``remote_addr`` if there is one, table, key and columns.

    :param ident: the object's primary key as for ``Session.get()``.
    :param columns: attributes or their names, whose values become NULL; or a mapping from attributes
        to what shall stand there instead. By default all attributes but the primary key, the
        discriminator of a hierarchy and the counter of an optimistic lock (``version_id_col``).
    :returns: how many versions the object has.
    :raises ClassNotVersioned: if the class has no history.
    :raises VersioningError: for what is no column with a history, for a part of the primary key,
        and for a column of the live row that cannot be NULL and has no replacement.
    """
    work = Upkeep(session, model, "redact")
    plan = work.plan
    key = key_from(plan, ident)
    values = _replacements(plan, columns)
    _check_live_row(work, key, values)
    text = ", ".join(column.name for column in values)
    work.mark(REDACT_MARK, f"{plan.root.parent.name} {key!r}: {text}")
    versions = 0
    for part in plan.tables:
        parameters = work.writer.key_parameters(part, [key], "keys", True)
        for live in (True, False):
            table = part.parent if live else part.version
            new = {
                mine if live else theirs: values[mine]
                for mine, theirs in part.columns
                if mine in values
            }
            if new:
                which = work.writer.key_clause(part, table, "keys", True)
                changed = work.execute(update(table).where(which).values(new), parameters)
                versions = versions if live else max(versions, changed)
    for hook in plan.manager.plugins.hooks("redacted"):
        hook(session, plan, key, tuple(values))
    identity = key_values(key, len(plan.key_attributes))
    obj = session.identity_map.get(session.identity_key(plan.mapper.class_, ident=identity))
    if obj is not None:
        session.expire(obj)
    work.finish()
    return versions


def _replacements(
    plan: ClassPlan, columns: Iterable[Any] | Mapping[Any, Any] | None
) -> dict[Column[Any], Any]:
    """What is erased, as columns of the live tables, and what takes its place."""
    mapper, name = plan.mapper, plan.mapper.class_.__name__
    kept = {mapper.polymorphic_on, mapper.version_id_col}
    history = {column for part in plan.tables for column, _ in part.columns}
    of: dict[str, list[Any]] = {
        attribute: [c for c in mapper.column_attrs[attribute].columns if c in history]
        for attribute in plan.attribute_order
    }
    if columns is None:
        columns = [a for a, found in of.items() if a in plan.writable and kept.isdisjoint(found)]
    if isinstance(columns, str):
        columns = [columns]
    chosen = columns if isinstance(columns, Mapping) else dict.fromkeys(columns)
    values: dict[Column[Any], Any] = {}
    for attribute, value in chosen.items():
        key = attribute if isinstance(attribute, str) else attribute.key
        if key not in of:
            raise VersioningError(f"{name}.{key} has no history; {nearest(key, of)}")
        if key not in plan.writable:
            raise VersioningError(
                f"{name}.{key} cannot be erased: it is computed, or tells which row it is"
            )
        values |= dict.fromkeys(of[key], value)
    return values


def _check_live_row(work: Upkeep, key: Key, values: Mapping[Column[Any], Any]) -> None:
    required = [c for c, value in values.items() if value is None and not c.nullable]
    root = work.plan.root
    lives = exists().where(work.writer.key_clause(root, root.parent, "keys", True))
    parameters = work.writer.key_parameters(root, [key], "keys", True)
    if required and work.connection.scalar(select(lives), parameters):
        names = ", ".join(f"{c.table.name}.{c.name}" for c in required)
        raise VersioningError(
            f"{names} of the live row {key!r} cannot be NULL; say what shall stand there instead, "
            f"columns={{{required[0].name!r}: '...'}}, or delete the object first"
        )
