"""Whole histories and comparisons, in one or two statements; each function takes the session first.

In an async session: ``await async_session.run_sync(timeline, article)``.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, overload

from sqlalchemy import inspect, select
from sqlalchemy.orm import Session, joinedload, object_session
from typing_extensions import TypeVar

from . import query
from .changeset import Changeset, changeset_of
from .difference import AttributeChange, Diff, RelationChange
from .exc import VersioningError, refuse_async
from .operation import Operation
from .plan import ClassPlan, class_plan, only_manager
from .query import plan_of
from .revert import Tree, as_it_was, relation_tree, targets_of
from .version import version_values

if TYPE_CHECKING:
    from .versions import Versioned

#: a version class, as in ``Versioned[V]``
V = TypeVar("V", default=Any)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TimelineEntry(Generic[V]):
    """One step of an object's history.

    :ivar version: the version.
    :ivar transaction: the Transaction that made it; None if its row is missing.
    :ivar operation_type: 0 INSERT, 1 UPDATE, 2 DELETE.
    :ivar changeset: ``{attribute: [value before, value now]}``; empty for a DELETE, which has the
        last values.
    """

    version: V
    transaction: Any
    operation_type: int
    changeset: Changeset


@overload
def timeline(session: Session, obj: Versioned[V]) -> list[TimelineEntry[V]]: ...
@overload
def timeline(session: Session, obj: Any) -> list[TimelineEntry[Any]]: ...
def timeline(session: Session, obj: Any) -> list[TimelineEntry[Any]]:
    """The versions of one object, the oldest first, with transaction and changeset: one statement.

    :param obj: a live object, or any version of the object.
    :raises ClassNotVersioned: if the class has no history.
    """
    refuse_async(session, "timeline")
    if isinstance(obj, type):
        raise TypeError(f"{obj.__name__} is a class; give one of its objects, or a version of one")
    plan = plan_of(obj)
    cls: Any = plan.version_class
    statement = query.versions_of(plan, plan.key_of_object(obj)).options(
        joinedload(cls.transaction)
    )
    entries = []
    before: dict[str, Any] | None = None
    for version in session.scalars(statement):
        values = version_values(version)
        operation = plan.operation_of(version)
        entries.append(
            TimelineEntry(
                version=version,
                transaction=version.transaction,
                operation_type=operation,
                changeset=changeset_of(before, values),
            )
        )
        before = None if operation == Operation.DELETE else values
    return entries


def transaction_at(session: Session, at: dt.datetime, model: Any = None) -> Any:
    """The last Transaction issued at or before ``at``, or None.

    :param at: an aware datetime.
    :param model: a versioned class whose manager is meant, needed where there is more than one.
    :raises TypeError: if ``at`` is naive, or no datetime.
    :raises VersioningError: if it is not clear whose transactions are meant.
    """
    refuse_async(session, "transaction_at")
    cls: Any = _transaction_class(model)
    issued_at = cls.__table__.c.issued_at
    statement = (
        select(cls).where(issued_at <= query.utc(at, issued_at)).order_by(cls.id.desc()).limit(1)
    )
    return session.scalars(statement).first()


def _transaction_class(model: Any) -> Any:
    if model is not None:
        return plan_of(model).manager.transaction_cls
    return only_manager("transaction_at(session, at, Article)").transaction_cls


def blame(session: Session, obj: Any) -> dict[str, Any]:
    """For each attribute the Transaction that gave it its present value: one statement.

    :param obj: a live object; or a version, for what was present then. What is not flushed yet
        has no transaction and does not count.
    :raises ClassNotVersioned: if the class has no history.
    """
    refuse_async(session, "blame")
    plan = plan_of(obj)
    blamed: dict[str, Any] = {}
    before: dict[str, Any] | None = None
    until = plan.tx_of(obj) if isinstance(obj, query.VersionEntity) else None
    for entry in timeline(session, obj):
        if until is not None and plan.tx_of(entry.version) > until:
            break
        values = version_values(entry.version)
        for name, value in values.items():
            if before is None or before[name] != value:
                blamed[name] = entry.transaction
        before = None if entry.operation_type == Operation.DELETE else values
    return blamed


def diff(older: Any, newer: Any, relations: Sequence[str] = ()) -> Diff:
    """What differs between two states of an object: two versions, or a version and the live object.

    The versions need not be neighbours, nor of the same object, only of the same class.

    :param relations: names of relationships (dotted paths) to compare as well: those of a version
        as they were at its transaction, or at the moment that it was loaded for.
    :raises ClassNotVersioned: if a class has no history.
    :raises VersioningError: if the two are of classes that have no history in common, or for a
        relationship that is not there.
    """
    plan, other = plan_of(older), plan_of(newer)
    if plan.root is not other.root:
        raise VersioningError(
            f"a {type(older).__name__} and a {type(newer).__name__} cannot be compared: they have "
            f"no history in common"
        )
    tree = relation_tree(plan, relations)
    return _diff(_then(plan, older, tree), _then(other, newer, tree), tree)


def _diff(older: Any, newer: Any, tree: Tree) -> Diff:
    plan, other = plan_of(older), plan_of(newer)
    names = [name for name in plan.attribute_order if name in other.attributes]
    before, after = _state(plan, older, names), _state(other, newer, names)
    compared = (_relation_change(name, older, newer, below) for name, below in tree.items())
    return Diff(
        older=older,
        newer=newer,
        attributes=tuple(
            AttributeChange(name=name, old=before.get(name), new=after.get(name))
            for name in names
            if before.get(name) != after.get(name)
        ),
        relations=tuple(change for change in compared if change is not None),
    )


def _relation_change(name: str, older: Any, newer: Any, below: Tree) -> RelationChange | None:
    before, after = _members(older, name), _members(newer, name)
    both = [(obj, after[key]) for key, obj in before.items() if key in after]
    # live objects without a history are the same now and then
    versioned = [pair for pair in both if pair[0] is not pair[1]]
    change = RelationChange(
        name=name,
        added=tuple(obj for key, obj in after.items() if key not in before),
        removed=tuple(obj for key, obj in before.items() if key not in after),
        changed=tuple(found for pair in versioned if (found := _diff(*pair, below))),
    )
    return change if change.added or change.removed or change.changed else None


def _members(obj: Any, name: str) -> dict[Any, Any]:
    """What a relationship of a live object or a version leads to, by identity."""
    session = object_session(obj)
    if session is None or name not in inspect(obj).mapper.relationships or not _is_there(obj):
        return {}
    found = {}
    for target in targets_of(session, obj, name):
        plan = class_plan(type(target))
        if plan is None or plan.version_class is None:
            found[inspect(target).mapper, inspect(target).identity] = target
        else:
            found[plan.root, plan.key_of_object(target)] = target
    return found


def _then(plan: ClassPlan, obj: Any, tree: Tree) -> Any:
    """``obj``, if it is a version with its relations as of one moment."""
    session = object_session(obj)
    if (
        not tree
        or session is None
        or not isinstance(obj, query.VersionEntity)
        or not _is_there(obj)
    ):
        return obj
    return as_it_was(session, obj, tree)


def _is_there(obj: Any) -> bool:
    """Neither a version that is a DELETE nor a live object that is gone."""
    if isinstance(obj, query.VersionEntity):
        return bool(obj.__version_plan__.operation_of(obj) != Operation.DELETE)
    return not inspect(obj).was_deleted


def _state(plan: ClassPlan, obj: Any, names: list[str]) -> dict[str, Any]:
    """The values of a live object or of a version; a DELETE, or a row that is gone, has none."""
    return {name: getattr(obj, name) for name in names} if _is_there(obj) else {}
