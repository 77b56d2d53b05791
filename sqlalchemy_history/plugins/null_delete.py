"""DELETE versions without values: they say only which row is gone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import Column, ColumnElement, FromClause, null, update
from sqlalchemy.sql import visitors
from typing_extensions import override

from sqlalchemy_history.hooks import Plugin, Written
from sqlalchemy_history.operation import Operation
from sqlalchemy_history.plan import TablePlan


class NullDeletePlugin(Plugin):
    """Leaves the columns of DELETE versions NULL, where a DELETE version has the last values else.

    Keys stay, and so do discriminators, so that the version is still one of the right class, and
    what the parent says is NOT NULL.
    """

    @override
    def after_write(self, written: Written) -> None:
        if written.transaction_id is None:
            return
        for plan in written.tables:
            columns = _columns(written, plan)
            if columns:
                written.execute(plan, "null delete", partial(_emptied, plan, columns))


def _emptied(
    plan: TablePlan,
    columns: list[Column[Any]],
    is_written: Callable[[FromClause], ColumnElement[bool]],
) -> Any:
    return (
        update(plan.version)
        .where(is_written(plan.version), plan.op == Operation.DELETE)
        .values(dict.fromkeys(columns, null()))
    )


def _columns(written: Written, plan: TablePlan) -> list[Column[Any]]:
    kept = {column for column, _ in plan.keys}
    for class_plan in written.manager.class_plans():
        if plan in class_plan.tables and class_plan.mapper.polymorphic_on is not None:
            kept.update(
                part
                for part in visitors.iterate(class_plan.mapper.polymorphic_on)
                if isinstance(part, Column)
            )
    return [version for column, version in plan.columns if column not in kept and column.nullable]
