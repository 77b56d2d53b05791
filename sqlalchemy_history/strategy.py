"""The two ways to store when a version was valid; each object owns the write and the read of its way.

``ValidityStrategy`` stores both ends, ``[transaction_id, end_transaction_id)``; ``SubqueryStrategy``
stores the start alone and finds the end with a subquery. Both are asked the same questions about
``v``, the version table or an alias of it, so neither the writing nor the reading code tells them
apart by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import FromClause, and_, or_

from .latest import Latest, latest_of_row
from .operation import Operation

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from .plan import TablePlan


class Strategy:
    """Questions about the versions ``v`` of the rows that ``plan`` describes."""

    #: whether version tables have the column that says when a version ended
    has_end: bool

    def is_open(self, plan: TablePlan, v: FromClause) -> ColumnElement[bool]:
        """``v`` is the latest version of its row."""
        raise NotImplementedError

    def covers(self, plan: TablePlan, v: FromClause, at: Any) -> ColumnElement[bool]:
        """``v`` is the latest version of its row as transaction ``at`` left it."""
        raise NotImplementedError

    def was_live(self, plan: TablePlan, v: FromClause, at: Any) -> ColumnElement[bool]:
        """``v`` was the live row after transaction ``at``."""
        return and_(self.covers(plan, v, at), plan.op_of(v) != Operation.DELETE)

    def all_live(
        self, plan: TablePlan, v: FromClause, at: ColumnElement[Any]
    ) -> ColumnElement[bool]:
        """``was_live``, for a statement that the user may make into one about the whole table."""
        return self.was_live(plan, v, at)


class ValidityStrategy(Strategy):
    """Both ends of a version are stored."""

    has_end = True

    def is_open(self, plan: TablePlan, v: FromClause) -> ColumnElement[bool]:
        return plan.end_of(v).is_(None)

    def covers(self, plan: TablePlan, v: FromClause, at: Any) -> ColumnElement[bool]:
        if plan.association:
            # SQLAlchemy-Continuum never ends versions of association rows, and its databases are
            # to be read as they are
            return STRATEGIES["subquery"].covers(plan, v, at)
        end = plan.end_of(v)
        return and_(plan.tx_of(v) <= at, or_(end.is_(None), end > at))


class SubqueryStrategy(Strategy):
    """The start of a version is stored; it ends where the next one starts."""

    has_end = False

    def is_open(self, plan: TablePlan, v: FromClause) -> ColumnElement[bool]:
        return latest_of_row(plan, plan.keys_of(v), plan.tx_of(v))

    def covers(self, plan: TablePlan, v: FromClause, at: Any) -> ColumnElement[bool]:
        return latest_of_row(plan, plan.keys_of(v), plan.tx_of(v), at)

    def all_live(
        self, plan: TablePlan, v: FromClause, at: ColumnElement[Any]
    ) -> ColumnElement[bool]:
        return and_(Latest(plan, v, at), plan.op_of(v) != Operation.DELETE)


STRATEGIES: Final[dict[str, Strategy]] = {
    "validity": ValidityStrategy(),
    "subquery": SubqueryStrategy(),
}
