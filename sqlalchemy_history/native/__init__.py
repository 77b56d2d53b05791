"""Versions that the database writes by itself: the option ``native_versioning=True``.

Triggers on the live tables record every write, wherever it comes from. ``create_all()`` and
``drop_all()`` create and drop them with the tables. Where tables are there already, and after their
columns have changed, call ``create_triggers()``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table

from sqlalchemy_history.exc import ClassNotVersioned, ImproperlyConfigured
from sqlalchemy_history.plan import TablePlan, class_plan, configure_mappers_of, table_plan

from .tables import Native

__all__ = ["Native", "create_triggers", "drop_triggers", "triggers_are_current"]


def create_triggers(connection: Connection, entity: type[Any] | Table) -> None:
    """Create the triggers of a class or table, in place of those that it has.

    Call it in a migration after columns were added, dropped or renamed. ``create_all()`` does it for
    new tables.

    :param entity: a versioned class or a table. A class of a joined hierarchy stands for all its
        tables.
    :raises ClassNotVersioned: if it has no history.
    :raises ImproperlyConfigured: if it does not have the option ``native_versioning``, or if there
        are no triggers for this kind of database.
    """
    plans = _plans(entity)
    for plan in plans:
        if not plan.options.native_versioning:
            raise ImproperlyConfigured(
                f"table {plan.parent.fullname!r} is recorded by sessions; set the option "
                f"native_versioning=True first, or every write would be recorded twice"
            )
    plans[0].manager.native.create(connection, plans)


def drop_triggers(connection: Connection, entity: type[Any] | Table) -> None:
    """Drop the triggers of a class or table; what was recorded stays.

    :raises ClassNotVersioned: if it has no history.
    """
    plans = _plans(entity)
    plans[0].manager.native.drop(connection, plans)


def triggers_are_current(connection: Connection, entity: type[Any] | Table) -> bool:
    """Whether the triggers of a class or table are those that ``create_triggers()`` would make now.

    ``False`` also where there are none.

    :raises ClassNotVersioned: if it has no history.
    :raises ImproperlyConfigured: if there are no triggers for this kind of database.
    """
    plans = _plans(entity)
    return plans[0].manager.native.are_current(connection, plans)


def _plans(entity: type[Any] | Table) -> list[TablePlan]:
    if isinstance(entity, Table):
        configure_mappers_of(entity.metadata)
        plan = table_plan(entity)
        found = [] if plan is None else [plan]
    else:
        mapped: Any = entity
        mapped.__mapper__.registry.configure(cascade=True)
        class_ = class_plan(entity)
        found = [] if class_ is None else list(class_.tables)
    if not found:
        raise ClassNotVersioned(f"{entity!r} has no history")
    return found
