"""``article.versions``: the history of one object, as a query; ``Article.versions`` in statements.

It is no attribute of the mapping: the model's mapper stays as its author wrote it, and nothing is
mapped until somebody reads history. A statement may use it as the relationship that it would be::

    article.versions[0]
    article.versions.filter_by(name="Draft").count()
    await session.scalars(article.versions.select())
    select(Article).where(Article.versions.any(name="Draft"))
"""

from __future__ import annotations

from functools import partial
from typing import Any

from sqlalchemy import Select, and_, bindparam
from sqlalchemy.engine.result import IteratorResult, SimpleResultMetaData
from sqlalchemy.orm import (
    InstanceState,
    Query,
    Session,
    class_mapper,
    foreign,
    object_session,
    relationship,
)
from sqlalchemy.orm.attributes import QueryableAttribute, instance_state
from sqlalchemy.orm.exc import DetachedInstanceError

from .plan import CONFIGURE_LOCK, ClassPlan, class_plan


class Versions:
    """The descriptor behind ``versions``."""

    def __init__(self) -> None:
        self._attributes: dict[ClassPlan, QueryableAttribute[Any]] = {}

    def __get__(self, obj: Any, owner: type[Any]) -> Any:
        line = (mapper.class_ for mapper in class_mapper(owner, configure=False).iterate_to_root())
        plan = next((plan for cls in line if (plan := class_plan(cls)) is not None), None)
        if plan is None:
            raise AttributeError(f"{owner.__name__} is not versioned any more")
        if obj is None:
            if plan not in self._attributes:
                with CONFIGURE_LOCK:
                    self._attributes[plan] = _as_relationship(plan)
            return self._attributes[plan]
        return (WriteOnlyVersions if plan.options.support_async else VersionQuery)(plan, obj)

    def __set__(self, obj: Any, value: Any) -> None:
        raise AttributeError(
            f"{type(obj).__name__}.versions is the history of the object and cannot be assigned; "
            f"to go back to a version call its revert()"
        )


class WriteOnlyVersions:
    """With ``support_async``: the versions of one object, to be had by a statement alone."""

    def __init__(self, plan: ClassPlan, obj: Any) -> None:
        self._query = VersionQuery(plan, obj)

    def select(self) -> Select[Any]:
        """The versions as a ``Select``, in the order of their transactions."""
        return self._query.select()


class VersionQuery(Query[Any]):
    """The versions of one object in the order of their transactions: a query, and a statement.

    An object that was never in a session has none.
    """

    def __init__(self, plan: ClassPlan, obj: Any) -> None:
        cls: Any = plan.version_class
        super().__init__(cls, object_session(obj))
        self._object_state: InstanceState[Any] = instance_state(obj)
        # asked for when the query runs, after the flush that may give the object its key
        key = partial(_key_part, self._object_state)
        self._where_criteria = tuple(
            getattr(cls, name)
            == bindparam(None, callable_=partial(key, i), type_=column.type, unique=True)
            for i, (name, (column, _)) in enumerate(
                zip(plan.key_attributes, plan.root.keys, strict=True)
            )
        )
        self._order_by_clauses = (plan.transaction_id,)

    def select(self) -> Select[Any]:
        """The versions as a ``Select``, for ``session.scalars()`` of either kind of session."""
        return self.statement.execution_options(populate_existing=True)  # type: ignore[return-value]

    def count(self) -> int:
        """How many they are."""
        return super().count() if self._is_in_session() else 0

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, int) and item < 0:
            return list(self)[item]
        return super().__getitem__(item)

    def _iter(self) -> Any:
        if self._is_in_session():
            return super()._iter()
        columns = SimpleResultMetaData(["version"])
        nothing: Any = IteratorResult(columns, iter(()), _source_supports_scalars=True)
        return nothing.scalars()

    def _is_in_session(self) -> bool:
        session: Session | None = self.session
        state = self._object_state
        if session is None and state.key is not None:
            raise DetachedInstanceError(
                f"{state.class_.__name__} with the key {state.key[1]} is in no session, so its "
                f"versions cannot be loaded; session.add() it, or execute versions.select()"
            )
        return session is not None


def _key_part(state: InstanceState[Any], i: int) -> Any:
    return None if state.key is None else state.key[1][i]


def _as_relationship(plan: ClassPlan) -> QueryableAttribute[Any]:
    """What ``Article.versions`` would be if it were mapped, without mapping it."""
    mapper, root = plan.mapper, plan.root
    prop: Any = relationship(
        plan.version_class,
        primaryjoin=and_(*(live == foreign(version) for live, version in root.keys)),
        order_by=root.tx,
        viewonly=True,
        uselist=True,
        lazy="write_only" if plan.options.support_async else "dynamic",
    )
    prop.set_parent(mapper, False)
    prop.key = "versions"
    prop.init()
    comparator = prop.comparator_factory(prop, mapper)
    return QueryableAttribute(mapper.class_, "versions", mapper, comparator)
