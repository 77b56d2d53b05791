"""Questions about classes, tables and objects: what is versioned, where to, and what has changed.

Nothing here runs SQL or flushes, but for :func:`version_obj`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy import Table, inspect
from sqlalchemy.orm import (
    ColumnProperty,
    InstrumentedAttribute,
    LoaderCallableStatus,
    Session,
    object_session,
)

from . import query
from .changeset import Changeset
from .exc import ClassNotVersioned, TableNotVersioned, refuse_async
from .plan import (
    INFO_KEY,
    ClassPlan,
    class_of,
    class_plan,
    configure_mappers_of,
    table_plan,
)
from .query import plan_of
from .relationships import association_proxies
from .versions import V, Versioned

if TYPE_CHECKING:
    from .manager import VersioningManager


@overload
def version_class(model: type[Versioned[V]] | Versioned[V]) -> type[V]: ...
@overload
def version_class(model: Any) -> type[Any]: ...
def version_class(model: Any) -> type[Any]:
    """The version class of a versioned class (or of an alias or an object of one).

    Mappers are configured if they are not yet.

    :raises ClassNotVersioned: if the class has no history.
    """
    _configured(model)
    cls = plan_of(model).version_class
    assert cls is not None
    return cls


def parent_class(version_cls: type[Any]) -> type[Any]:
    """The model whose versions ``version_cls`` holds.

    :raises ClassNotVersioned: if it is no version class.
    """
    plan: ClassPlan | None = getattr(version_cls, "__version_plan__", None)
    if plan is None:
        name = getattr(version_cls, "__name__", repr(version_cls))
        raise ClassNotVersioned(f"{name} is no version class")
    return plan.mapper.class_


def transaction_class(model: Any) -> type[Any]:
    """The Transaction class of a versioned class.

    :raises ClassNotVersioned: if the class has no history.
    """
    _configured(model)
    cls: type[Any] = plan_of(model).manager.transaction_cls
    return cls


def version_table(table: Table) -> Table:
    """The version table of a table of a versioned class, or of an association table.

    Mappers are configured if they are not yet.

    :raises TableNotVersioned: if the table has no history.
    """
    _check_table(table)
    if table_plan(table) is None:
        configure_mappers_of(table.metadata)
    plan = table_plan(table)
    if plan is None:
        raise TableNotVersioned(
            f"table {table.fullname!r} has no history; is it the table of a versioned class, and "
            f"was make_versioned() called?"
        )
    return plan.version


def parent_table(version_table: Table) -> Table:
    """The table whose versions ``version_table`` holds.

    :raises TableNotVersioned: if it is no version table.
    """
    _check_table(version_table)
    plan = table_plan(version_table)
    if plan is None or plan.version is not version_table:
        raise TableNotVersioned(f"table {version_table.fullname!r} is no version table")
    return plan.parent


def get_versioning_manager(obj: Any) -> VersioningManager:
    """The manager of a versioned class, an object or an alias of one, or of a table.

    :raises ClassNotVersioned: if the class has no history.
    :raises TableNotVersioned: if the table has no history.
    """
    if isinstance(obj, Table):
        version_table(obj)
        return obj.info[INFO_KEY].manager  # type: ignore[no-any-return]
    _configured(obj)
    return plan_of(obj).manager


def is_versioned(obj: Any) -> bool:
    """Whether a class, an object or an alias has a history. Version classes have none."""
    cls = class_of(obj)
    if cls is None or hasattr(cls, "__version_plan__"):
        return False
    _configured(cls)
    return class_plan(cls) is not None


def option(obj: Any, name: str) -> Any:
    """The value of the option ``name`` for a versioned class or object.

    :raises ClassNotVersioned: if it has no history.
    :raises AttributeError: if there is no such option.
    """
    _configured(obj)
    return getattr(plan_of(obj).options, name)


def tx_column_name(obj: Any) -> str:
    """The name of the column that holds the transaction's id in the versions of ``obj``."""
    return str(option(obj, "transaction_column_name"))


def end_tx_column_name(obj: Any) -> str:
    """The name of the column that holds the ending transaction's id in the versions of ``obj``."""
    return str(option(obj, "end_transaction_column_name"))


def end_tx_attr(obj: Any) -> InstrumentedAttribute[int | None]:
    """The attribute of the version class of ``obj`` that holds the ending transaction's id."""
    attribute: InstrumentedAttribute[int | None] = getattr(
        version_class(obj), end_tx_column_name(obj)
    )
    return attribute


def versioned_column_properties(obj: Any) -> list[ColumnProperty[Any]]:
    """The column properties of a versioned class or object that have a history."""
    _configured(obj)
    plan = plan_of(obj)
    return [prop for prop in plan.mapper.column_attrs if prop.key in plan.attributes]


def get_association_proxies(cls: type[Any]) -> list[str]:
    """The names of the association proxies of a mapped class."""
    return list(association_proxies(inspect(cls)))


def changeset(obj: Any) -> Changeset:
    """``{attribute: [old, new]}`` of the changes of a live object that are not flushed yet.

    For an object that is marked for deletion every new value is None. An old value that is not
    loaded is given as None: nothing is loaded by asking. Falsy values count like any other.

    :raises ClassNotVersioned: if the class has no history.
    """
    plan = plan_of(obj)
    state = inspect(obj)
    session = object_session(obj)
    if session is not None and obj in session.deleted:
        return {name: [state.dict.get(name), None] for name in _loaded(plan, state.dict)}
    if not state.has_identity:
        return {
            name: [None, state.dict[name]]
            for name in _loaded(plan, state.dict)
            if state.dict[name] is not None
        }
    changes: Changeset = {}
    for name, old in state.committed_state.items():
        if name in plan.attributes and name in state.dict:
            before = None if isinstance(old, LoaderCallableStatus) else old
            known = not isinstance(old, LoaderCallableStatus)
            if not known or before is not state.dict[name] and not _equal(before, state.dict[name]):
                changes[name] = [before, state.dict[name]]
    return {name: changes[name] for name in plan.attribute_order if name in changes}


def is_modified(obj: Any) -> bool:
    """Whether an attribute with a history has a change that is not flushed yet.

    :raises ClassNotVersioned: if the class has no history.
    """
    return bool(changeset(obj))


def is_modified_or_deleted(obj: Any) -> bool:
    """:func:`is_modified`, or the object is marked for deletion."""
    session = object_session(obj)
    return (session is not None and obj in session.deleted) or is_modified(obj)


def versioned_objects(session: Session) -> Iterator[Any]:
    """The objects in ``session`` whose classes have a history."""
    return (obj for obj in session if is_versioned(obj))


def is_session_modified(session: Session) -> bool:
    """Whether ``session`` has a versioned object that is changed, new or marked for deletion."""
    return any(is_versioned(obj) for obj in session.deleted) or any(
        is_modified(obj)
        for objects in (session.new, session.dirty)
        for obj in objects
        if is_versioned(obj)
    )


@overload
def version_obj(session: Session, parent: Versioned[V]) -> V | None: ...
@overload
def version_obj(session: Session, parent: Any) -> Any: ...
def version_obj(session: Session, parent: Any) -> Any:
    """The version that the session's present transaction has made of ``parent``, or None.

    One query; pending changes are flushed first if the session does so.
    """
    refuse_async(session, "version_obj")
    plan = plan_of(parent)
    if session.autoflush:
        session.flush()
    for unit in plan.manager.unit_of_work(session).connections.values():
        if unit.tx is not None:
            key = plan.key_of_object(parent)
            statement = query.versions_of(plan, key).where(plan.transaction_id == unit.tx)
            return session.scalars(statement).first()
    return None


def _loaded(plan: ClassPlan, values: dict[str, Any]) -> list[str]:
    return [name for name in plan.attribute_order if name in values]


def _equal(one: Any, other: Any) -> bool:
    equal = one == other
    # a SQL expression compares to an expression, an array to an array: neither is "equal"
    return equal if isinstance(equal, bool) else False


def _check_table(table: Any) -> None:
    if not isinstance(table, Table):
        raise TableNotVersioned(f"{table!r} is no table; that of a class is its __table__")


def _configured(obj: Any) -> None:
    """Configure the mappers of a class that declares ``__versioned__`` and is not set up yet."""
    cls = class_of(obj)
    if (
        cls is not None
        and class_plan(cls) is None
        and getattr(cls, "__versioned__", None) is not None
    ):
        inspect(cls).registry.configure(cascade=True)
