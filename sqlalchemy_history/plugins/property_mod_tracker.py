"""Which columns a version changed, as columns: ``article_version.name_mod``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Boolean, Column, FromClause, Table, case, false, true, update
from typing_extensions import override

from sqlalchemy_history.compare import identical
from sqlalchemy_history.hooks import Plugin, Written
from sqlalchemy_history.operation import Operation
from sqlalchemy_history.plan import TablePlan
from sqlalchemy_history.tracking import is_previous

_Written = Callable[[FromClause], Any]


class PropertyModTrackerPlugin(Plugin):
    """Adds to each column of a version table, keys apart, a boolean ``<column>_mod``.

    An UPDATE changed what differs from the version before; the first version of a row changed
    whatever is not NULL; a DELETE changed everything. To versions that are there already, a
    migration gives theirs with ``sqlalchemy_history.schema.update_property_mod_flags()``.
    """

    def __init__(self, column_suffix: str = "_mod") -> None:
        self.column_suffix = column_suffix

    @override
    def version_columns(
        self, parent: Table, columns: Sequence[Column[Any]]
    ) -> Iterable[Column[Any]]:
        return [
            Column(
                f"{column.name}{self.column_suffix}",
                Boolean,
                key=f"{column.key}{self.column_suffix}",
                nullable=False,
                server_default=false(),
            )
            for column in columns
            if not column.primary_key
        ]

    @override
    def after_write(self, written: Written) -> None:
        if written.transaction_id is None:
            return
        for plan in written.tables:
            flags = {
                version: plan.version.c[version.key + self.column_suffix]
                for _, version in plan.columns
                if version.key + self.column_suffix in plan.version.c
            }
            if flags:
                self._write(written, plan, flags)

    def _write(
        self, written: Written, plan: TablePlan, flags: dict[Column[Any], Column[Any]]
    ) -> None:
        v = plan.version
        dialect = written.connection.dialect

        def alone(is_written: _Written) -> Any:
            is_delete = plan.op == Operation.DELETE
            return (
                update(v)
                .where(is_written(v))
                .values(
                    {
                        flag: case((is_delete, true()), (column.is_(None), false()), else_=true())
                        for column, flag in flags.items()
                    }
                )
            )

        def compared(is_written: _Written) -> Any:
            before = v.alias("version_before")
            return (
                update(v)
                .where(
                    is_written(v),
                    plan.op == Operation.UPDATE,
                    plan.same_key(before, v),
                    is_previous(plan, before),
                )
                .values(
                    {
                        flag: case(
                            (identical(column, before.c[column.key], dialect), false()),
                            else_=true(),
                        )
                        for column, flag in flags.items()
                    }
                )
            )

        written.execute(plan, ("mod", self.column_suffix), alone)
        written.execute(plan, ("mod compared", self.column_suffix), compared)
