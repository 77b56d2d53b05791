"""Mixins for models that know when they changed; with and without ``__versioned__``.

::

    class User(ChangeTrackingMixin, LastModifiedMixin, Base):
        __tablename__ = "user_account"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    user.get_updated_at("name")      # when the name last changed
    user.last_modified_at            # when anything last changed
    select(User).order_by(User.get_updated_at("name").desc())

Both are right whatever makes the change: a flush, ``session.execute(update(User)...)``, an update
by primary key, an upsert. Nothing else is needed, in particular no ``make_versioned()``.
"""

from __future__ import annotations

import datetime
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Dialect,
    String,
    TypeDecorator,
    bindparam,
    case,
    cast,
    event,
    func,
    inspect,
    or_,
    select,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.hybrid import hybrid_method
from sqlalchemy.orm import (
    InstanceState,
    LoaderCallableStatus,
    Mapped,
    Mapper,
    RelationshipDirection,
    RelationshipProperty,
    Session,
    declared_attr,
    mapped_column,
)
from sqlalchemy.sql.elements import ClauseElement
from typing_extensions import override

from .config import nearest
from .exc import ImproperlyConfigured
from .stamp import (
    before_flush_hooks,
    counted_attributes,
    inserted_attributes,
    now_of,
    now_of_insert,
    stamp,
)
from .transaction import AwareDateTime

if TYPE_CHECKING:
    from sqlalchemy.sql.elements import SQLCoreOperations


class _ISOTime(TypeDecorator[datetime.datetime]):
    """An aware time as text that sorts as the time does."""

    impl = String(40)
    cache_ok = True

    @override
    def process_bind_param(
        self, value: datetime.datetime | None, dialect: Dialect | None
    ) -> str | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} is naive; compare with an aware datetime")
        return _text(value)

    @override
    def process_result_value(
        self, value: str | None, dialect: Dialect | None
    ) -> datetime.datetime | None:
        return None if value is None else _time(value)


def _text(time: datetime.datetime) -> str:
    return time.astimezone(datetime.timezone.utc).isoformat(timespec="microseconds")


def _time(text: str) -> datetime.datetime:
    time = datetime.datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=datetime.timezone.utc)


class ChangeTrackingMixin:
    """Gives a model ``changes``: for each column attribute, the UTC time of its last change.

    All that one flush changes has the same time. To set an attribute to the value that it has is no
    change. What ``onupdate`` or a trigger changes along with an UPDATE does not count.

    ``user.get_updated_at("name")`` is the time of one attribute as an aware datetime in UTC, and None
    if it never had a value; ``User.get_updated_at("name")`` is the same in a statement, for
    ``where()`` and ``order_by()``. A name that is no column attribute raises AttributeError.
    """

    if TYPE_CHECKING:
        #: attribute name to time, as ISO text in UTC
        changes: Mapped[dict[str, Any]]
    else:
        # not annotated, for a model that is a dataclass takes it for a field then, and refuses it
        @declared_attr
        def changes(cls):  # noqa: ANN201, N805
            """Attribute name to time, as ISO text in UTC."""
            return mapped_column(JSON, default=_first_changes, nullable=True)

    @hybrid_method
    def get_updated_at(self, name: str) -> datetime.datetime | None:
        """When the attribute ``name`` last changed, aware, in UTC; None if it never had a value.

        On the class it is an expression for WHERE and ORDER BY.

        :raises AttributeError: if the model has no column attribute of that name.
        """
        _check_name(type(self), name)
        text = (self.changes or {}).get(name)
        return None if text is None else _time(text)

    @get_updated_at.inplace.expression  # type: ignore[attr-defined,untyped-decorator]
    @classmethod
    def _get_updated_at_expression(cls, name: str) -> SQLCoreOperations[datetime.datetime | None]:
        _check_name(cls, name)
        changes: Any = cls.changes
        return type_coerce(changes[name].as_string(), _ISOTime)


class LastModifiedMixin:
    """Gives a model ``last_modified_at``: when it was inserted or last changed, aware, in UTC.

    ``__last_modified_relations__`` is a tuple of names of collections: an element that is added or
    removed there counts as a change of the object, too.
    """

    __last_modified_relations__: tuple[str, ...] = ()

    if TYPE_CHECKING:
        #: the time of the INSERT or of the last change
        last_modified_at: Mapped[datetime.datetime]
    else:

        @declared_attr
        def last_modified_at(cls):  # noqa: ANN201, N805
            """The time of the INSERT or of the last change."""
            return mapped_column(AwareDateTime, default=now_of_insert, nullable=False)


def _check_name(entity: Any, name: str) -> None:
    mapper: Mapper[Any] = inspect(entity).mapper
    names = counted_attributes(mapper)
    if name not in names:
        raise AttributeError(
            f"{mapper.class_.__name__}.get_updated_at({name!r}): there is no such column "
            f"attribute; {nearest(name, names)}"
        )


# -- INSERT


def _first_changes(context: Any) -> dict[str, str]:
    return dict.fromkeys(inserted_attributes(context), _text(now_of_insert(context)))


# -- UPDATE by a flush, as far as Python knows what changed


def _known_changes(
    state: InstanceState[Any], mapper: Mapper[Any], names: Iterable[str]
) -> list[str] | None:
    """Those of ``names`` that a flush is about to change; None if only the database can tell."""
    changed = []
    for name in names:
        old = state.committed_state[name]
        new = state.dict.get(name, LoaderCallableStatus.NO_VALUE)
        known = not isinstance(old, LoaderCallableStatus) and not isinstance(
            new, (LoaderCallableStatus, ClauseElement)
        )
        if not known or hasattr(new, "__clause_element__"):
            return None
        if not mapper.columns[name].type.compare_values(old, new):
            changed.append(name)
    return changed


def _before_update(mapper: Mapper[Any], connection: Connection, obj: Any) -> None:
    state = inspect(obj)
    names = [name for name in counted_attributes(mapper) if name in state.committed_state]
    changed = _known_changes(state, mapper, names)
    if changed is None and len(mapper.tables) > 1:
        # the columns of a joined hierarchy are in several tables, and no UPDATE sees all of them
        changed = names
    if not changed:
        return
    now = now_of(connection)
    if (
        isinstance(obj, ChangeTrackingMixin)
        and "changes" not in state.committed_state
        and ("changes" in state.dict or len(mapper.tables) > 1)
    ):
        obj.changes = {**(obj.changes or {}), **dict.fromkeys(changed, _text(now))}
    if isinstance(obj, LastModifiedMixin) and "last_modified_at" not in state.committed_state:
        obj.last_modified_at = now


def _before_insert(mapper: Mapper[Any], connection: Connection, obj: Any) -> None:
    if isinstance(obj, ChangeTrackingMixin) and len(mapper.tables) > 1 and not obj.changes:
        state: Any = inspect(obj)
        values = state.dict
        names = [n for n in counted_attributes(mapper) if values.get(n) is not None]
        obj.changes = dict.fromkeys(names, _text(now_of(connection)))


# -- any other UPDATE


def _merged_changes(
    column: ColumnElement[Any],
    changed: Mapping[str, ColumnElement[bool]],
    now: datetime.datetime,
    dialect: Dialect,
) -> Any:
    """The JSON object ``column`` with the time of what changed, merged by the database."""
    time = bindparam("stamped_at", _text(now), type_=String(40), unique=True)
    if dialect.name == "postgresql":
        old = cast(column, JSONB)
        known = case((func.jsonb_typeof(old) == "object", old), else_=cast({}, JSONB))
        parts = [
            part
            for name, condition in changed.items()
            for part in (_literal(name), case((condition, time)))
        ]
        new = func.jsonb_strip_nulls(func.jsonb_build_object(*parts), type_=JSONB)
        merged: Any = cast(known.op("||", return_type=JSONB())(new), column.type)
    else:
        # a merge patch: what is null is left out of the object
        parts = []
        for name, condition in changed.items():
            before = type_coerce(column, JSON())[name].as_string()
            parts += [_literal(name), case((condition, time), else_=before)]
        patch = "json_patch" if dialect.name == "sqlite" else "json_merge_patch"
        before_all = func.coalesce(type_coerce(column, String), _literal("{}"))
        merged = getattr(func, patch)(before_all, func.json_object(*parts))
    return case((or_(*changed.values()), merged), else_=column)


def _literal(text: str) -> Any:
    return bindparam(None, text, type_=String(255), unique=True)


def _new_time(
    column: ColumnElement[Any],
    changed: Mapping[str, ColumnElement[bool]],
    now: datetime.datetime,
    dialect: Dialect,
) -> Any:
    time = bindparam("stamped_at", now, type_=column.type, unique=True)
    return case((or_(*changed.values()), time), else_=column)


# -- set-up


_BUILDERS = {"changes": _merged_changes, "last_modified_at": _new_time}


def _mapped(mapper: Mapper[Any], cls: type[Any]) -> None:
    for mixin, name in ((ChangeTrackingMixin, "changes"), (LastModifiedMixin, "last_modified_at")):
        if issubclass(cls, mixin):
            if name not in mapper.columns:
                raise ImproperlyConfigured(
                    f"{cls.__name__} has {mixin.__name__}, but no column attribute {name!r}; what "
                    f"has that name in {cls.__name__} must be renamed"
                )
            stamp(mapper, mapper.columns[name], _BUILDERS[name])
    if getattr(cls, "__last_modified_relations__", ()):
        _touching.add(cls)


#: classes with ``__last_modified_relations__``
_touching: weakref.WeakSet[type[Any]] = weakref.WeakSet()


def _touch(session: Session, now: datetime.datetime) -> None:
    """Set the time of objects of which a named collection is about to change."""
    if not _touching:
        return
    for obj in session.identity_map.values():
        state: Any = inspect(obj)
        if state.modified and isinstance(obj, LastModifiedMixin) and type(obj) in _touching:
            for name in obj.__last_modified_relations__:
                if name not in state.committed_state:
                    continue
                # of a collection that is not loaded, it is only known that something was added
                if name not in state.dict or state.attrs[name].history.has_changes():
                    obj.last_modified_at = now
                    break
    for parent in _parents_by_key(session):
        parent.last_modified_at = now


def _parents_by_key(session: Session) -> Iterable[Any]:
    """Objects of which an element is deleted, or gets or loses the foreign key by hand."""
    mappers = (inspect(cls, raiseerr=False) for cls in _touching)
    named: list[RelationshipProperty[Any]] = [
        mapper.relationships[name]
        for mapper in mappers
        if mapper is not None
        for name in mapper.class_.__last_modified_relations__
    ]
    named = [prop for prop in named if prop.direction is RelationshipDirection.ONETOMANY]
    deleted = session.deleted
    keys: dict[tuple[RelationshipProperty[Any], tuple[Any, ...]], None] = {}
    for obj in (*session.new, *session.dirty, *deleted) if named else ():
        state: InstanceState[Any] = inspect(obj)
        for prop in named:
            if state.mapper.isa(prop.mapper):
                columns: Any = [column for _, column in prop.local_remote_pairs or []]
                names = [state.mapper.get_property_by_column(c).key for c in columns]
                if obj in deleted:
                    keys[prop, tuple(getattr(obj, name) for name in names)] = None
                elif not state.committed_state.keys().isdisjoint(names):
                    new = state.dict
                    old = {**new, **state.committed_state}
                    for values in (new, old):
                        keys[prop, tuple(values.get(name) for name in names)] = None
    for prop, key in keys:
        if not any(value is None or isinstance(value, LoaderCallableStatus) for value in key):
            pairs = zip(prop.local_remote_pairs or [], key, strict=True)
            parents = select(prop.parent.class_).where(*(c == value for (c, _), value in pairs))
            yield from (
                parent for parent in session.scalars(parents).unique() if parent not in deleted
            )


def _synchronized(obj: Any, context: Any, attributes: Any) -> None:
    """A bulk statement's values were given to ``obj``: what was stamped has to be loaded again."""
    if context is not None:
        return
    state = inspect(obj)
    names = [name for name in _BUILDERS if name in state.dict and name not in state.committed_state]
    if names and state.session is not None:
        state.session.expire(obj, names)


before_flush_hooks.append(_touch)
for _mixin in (ChangeTrackingMixin, LastModifiedMixin):
    event.listen(_mixin, "after_mapper_constructed", _mapped, propagate=True)
    event.listen(_mixin, "before_update", _before_update, propagate=True)
    event.listen(_mixin, "before_insert", _before_insert, propagate=True)
    event.listen(_mixin, "refresh", _synchronized, propagate=True)
