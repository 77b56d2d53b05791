"""Which versions were the latest of their rows at a moment, said in the way that suits a statement.

Without an end of each version there are two ways to say it. *For each row*, with a correlated
``max()``: the best where an index leads to a few rows. *For all rows at once*, with ``GROUP BY``:
five to ten times as fast where the whole table is read, and slow for one row, since SQLite and
PostgreSQL then group the table all the same. Which one is right depends on what the user adds to
the statement, so ``Latest`` decides when the statement is compiled. MariaDB, whose optimizer takes
equally long for both, and other databases get the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Boolean,
    ColumnClause,
    ColumnElement,
    FromClause,
    SelectBase,
    Table,
    and_,
    func,
    literal_column,
    select,
    tuple_,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList, Grouping
from sqlalchemy.sql.selectable import Join
from sqlalchemy.sql.visitors import InternalTraversal

if TYPE_CHECKING:
    from .plan import TablePlan

#: after all transactions
_NEVER: Final = literal_column(str(2**63 - 1), BigInteger)


def latest_of_row(
    plan: TablePlan, keys: Iterable[Any], tx: ColumnElement[Any], at: Any = None
) -> ColumnElement[bool]:
    """The version with these keys that begins at ``tx`` is its row's latest, up to ``at``."""
    other = plan.version.alias()
    others = select(func.max(plan.tx_of(other))).correlate_except(other)
    others = others.where(*(a == b for a, b in zip(plan.keys_of(other), keys, strict=True)))
    if at is None:
        return tx == others.scalar_subquery()
    # the first condition spares later versions the search
    if getattr(at, "_from_objects", ()):
        # The moment is another row's: with max() each pair of rows would be searched for; the next
        # version depends on one of them alone, and MariaDB keeps what it has found.
        after = others.with_only_columns(func.min(plan.tx_of(other))).where(plan.tx_of(other) > tx)
        return and_(tx <= at, at < func.coalesce(after.scalar_subquery(), _NEVER))
    return and_(tx <= at, tx == others.where(plan.tx_of(other) <= at).scalar_subquery())


def _latest_of_all(
    plan: TablePlan, keys: Iterable[Any], tx: ColumnElement[Any], at: Any
) -> ColumnElement[bool]:
    other = plan.version.alias()
    groups = plan.keys_of(other)
    latest = select(*groups, func.max(plan.tx_of(other))).where(plan.tx_of(other) <= at)
    return tuple_(*keys, tx).in_(latest.group_by(*groups).correlate(None))


class Latest(ColumnElement[bool]):
    """The version is the latest of its row up to ``at``; one of two SQL expressions."""

    type = Boolean()
    _traverse_internals = [
        ("keys", InternalTraversal.dp_clauseelement_tuple),
        ("tx", InternalTraversal.dp_clauseelement),
        ("at", InternalTraversal.dp_clauseelement),
        ("plan", InternalTraversal.dp_plain_obj),
    ]

    def __init__(self, plan: TablePlan, v: FromClause, at: ColumnElement[Any]) -> None:
        self.plan = plan
        self.keys: tuple[ColumnElement[Any], ...] = tuple(plan.keys_of(v))
        self.tx: ColumnElement[int] = plan.tx_of(v)
        self.at = at

    @property
    def _from_objects(self) -> list[FromClause]:
        parts: Any = (*self.keys, self.tx, self.at)
        return list(chain.from_iterable(part._from_objects for part in parts))

    def self_group(self, against: Any = None) -> ColumnElement[Any]:
        return self if against in (None, operators.and_) else Grouping(self)


@compiles(Latest)
def _by_row(element: Latest, compiler: Any, **kw: Any) -> str:
    expression = latest_of_row(element.plan, element.keys, element.tx, element.at)
    return str(compiler.process(expression, **kw))


@compiles(Latest, "sqlite")
@compiles(Latest, "postgresql")
def _by_row_or_all(element: Latest, compiler: Any, **kw: Any) -> str:
    if not _reads_all(element, [entry["selectable"] for entry in compiler.stack]):
        return _by_row(element, compiler, **kw)
    expression = _latest_of_all(element.plan, element.keys, element.tx, element.at)
    return str(compiler.process(expression, **kw))


def _reads_all(element: Latest, statements: list[Any]) -> bool:
    """Whether the innermost of ``statements`` is bound to read all that ``element`` is about.

    In the ``ON`` of a join it is about rows that another table has led to.
    """
    return any(one is element for one in _criteria(statements[-1:])) and not any(
        statement._limit_clause is not None
        or statement._fetch_clause is not None
        or any(_narrows(one) for one in _criteria([statement]))
        or any(_looks_up(one) for one in _on_clauses(statement))
        for statement in statements
    )


def _criteria(statements: list[Any]) -> Iterator[Any]:
    for statement in statements:
        yield from conjunction(getattr(statement, "_where_criteria", ()))


def _on_clauses(statement: Any) -> Iterator[Any]:
    for from_ in getattr(statement, "_from_obj", ()):
        joins = (part for part in visitors.iterate(from_) if isinstance(part, Join))
        yield from conjunction(join.onclause for join in joins)


def conjunction(criteria: Iterable[Any]) -> Iterator[Any]:
    """The conditions that all of ``criteria`` are made of with AND."""
    for one in criteria:
        if isinstance(one, BooleanClauseList) and one.operator is operators.and_:
            yield from conjunction(one.clauses)
        else:
            yield one


def _narrows(criterion: Any) -> bool:
    """Whether an index may lead to what ``criterion`` asks for: it has one, or a subquery."""
    if isinstance(criterion, Latest) or getattr(criterion, "operator", None) is operators.ne:
        return False
    return any(
        isinstance(part, SelectBase) or (isinstance(part, ColumnClause) and _is_indexed(part))
        for part in visitors.iterate(criterion)
    )


def _looks_up(criterion: Any) -> bool:
    """Whether a join asks for a value that an index leads to."""
    return (
        isinstance(criterion, BinaryExpression)
        and criterion.operator in (operators.eq, operators.in_op)
        and isinstance(criterion.right, BindParameter)
        and _narrows(criterion.left)
    )


def _is_indexed(column: ColumnClause[Any]) -> bool:
    table: Any = getattr(column.table, "element", column.table)
    if not isinstance(table, Table):
        return True  # of a subquery: there is no knowing
    leading = [next(iter(index.columns), None) for index in table.indexes]
    found = table.c.get(column.key)
    return found is not None and (
        found is next(iter(table.primary_key), None) or any(found is one for one in leading)
    )
