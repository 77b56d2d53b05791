"""What somebody did, in words: a verb, the object it was done to, and a target.

::

    Activity = versioning_manager.activity_cls
    session.add(Activity(verb="publish", object=article, target=category, data={"by": "mail"}))

The object and the target may be of any mapped class, versioned or not, and need no flush before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Integer,
    String,
    Unicode,
    and_,
    bindparam,
    event,
    false,
    func,
    inspect,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Mapper, Session, foreign, object_session, registry, relationship
from sqlalchemy.orm.attributes import set_committed_value
from typing_extensions import override

from sqlalchemy_history.config import nearest
from sqlalchemy_history.exc import ImproperlyConfigured, VersioningError
from sqlalchemy_history.hooks import Plugin, Written
from sqlalchemy_history.plan import ClassPlan, Key, all_registries, as_key, class_plan
from sqlalchemy_history.transaction import id_column

from .rows import PluginRow, RowKey, move_rows, new_class, new_table, parse_key

_ROLES = ("object", "target")


class ActivityPlugin(Plugin):
    """Makes ``versioning_manager.activity_cls`` with the table ``activity``.

    An activity has ``verb``, ``data``, ``object``, ``target``, ``object_version`` and
    ``target_version`` (the versions that were current when it was flushed), ``transaction`` and
    ``actor``, the transaction's user. An activity alone is reason enough for a transaction row.
    One about an object that is in no session, and so has no key, raises
    :class:`~sqlalchemy_history.VersioningError`.

    :param any_key: whether the table has the columns ``object_key`` and ``target_key``, which hold
        keys that are composite or not integers; by default, if a versioned class has such a key.
    """

    activity_cls: Any = None

    def __init__(self, any_key: bool | None = None) -> None:
        self.any_key = any_key

    @override
    def build_classes(self, manager: Any, in_registry: registry) -> None:
        any_key = self.any_key
        if any_key is None:
            any_key = any(
                not _has_integer_key(mapper)
                for mapper in in_registry.mappers
                if getattr(mapper.class_, "__versioned__", {}).get("versioning", True)
                and hasattr(mapper.class_, "__versioned__")
            )
        columns: list[Column[Any]] = [
            id_column("activity"),
            Column("verb", Unicode(255)),
            Column("transaction_id", BigInteger, index=True, nullable=False),
            Column("data", JSON),
        ]
        for role in _ROLES:
            columns += [
                Column(f"{role}_type", String(255)),
                Column(f"{role}_id", BigInteger),
                *([Column(f"{role}_key", RowKey)] if any_key else []),
                Column(f"{role}_tx_id", BigInteger),
            ]
        table = new_table(in_registry, self, "activity", columns)
        transaction = manager.transaction_cls
        self.activity_cls = new_class(
            "Activity",
            __name__,
            in_registry,
            table,
            base=ActivityBase,
            properties={
                "transaction": relationship(
                    transaction,
                    primaryjoin=lambda: transaction.id == foreign(table.c.transaction_id),
                    viewonly=True,
                )
            },
        )
        manager.activity_cls = self.activity_cls

        def before_insert(mapper: Any, connection: Connection, activity: Any) -> None:
            session = object_session(activity)
            assert session is not None
            unit = manager.unit_of_work(session).connection_unit(connection)
            activity.transaction_id = manager.keep_transaction(unit)
            unit.plugin_news = True
            session.info.setdefault(self, []).append((connection, activity))

        event.listen(self.activity_cls, "before_insert", before_insert)

    @override
    def after_write(self, written: Written) -> None:
        pending = written.session.info.pop(self, ())
        # ids of transactions in two databases may be equal
        elsewhere = [(c, a) for c, a in pending if c is not written.connection and not c.closed]
        if elsewhere:
            written.session.info[self] = elsewhere
        fresh = [
            activity
            for connection, activity in pending
            if connection is written.connection
            and activity.__dict__.get("transaction_id") == written.transaction_id
            and activity in written.session
        ]
        for activity in fresh:
            activity.resolve()
            for role in _ROLES:
                obj = activity.__dict__.pop(f"_{role}", None)
                if obj is not None and getattr(activity, f"{role}_type") is None:
                    raise VersioningError(
                        f"the {role} of activity {activity.verb!r} is a {type(obj).__name__} "
                        f"that has no key: add it to the session, with the activity or before"
                    )
        self._find_versions(written, {activity.id: activity for activity in fresh})
        if written.amended and written.transaction_id is not None:
            # a version that was taken back is nobody's object_version any more
            table = self.activity_cls.__table__
            known = {activity.id for activity in fresh}
            rows = written.connection.execute(
                select(table).where(table.c.transaction_id == written.transaction_id)
            )
            others = {row.id: row for row in rows if row.id not in known}
            self._find_versions(written, others)

    def _find_versions(self, written: Written, activities: Mapping[int, Any]) -> None:
        """Store which version of its object each activity is about."""
        wanted: dict[ClassPlan, set[Key]] = {}
        about: dict[tuple[int, str], tuple[ClassPlan, Key]] = {}
        for id_, activity in activities.items():
            for role in _ROLES:
                name = getattr(activity, f"{role}_type")
                plan = None if name is None else class_plan(_class_named(self.activity_cls, name))
                if plan is not None:
                    key = as_key(_stored_key(activity, role, plan.mapper))
                    wanted.setdefault(plan, set()).add(key)
                    about[id_, role] = plan, key
        latest = {plan: _latest(written, plan, list(keys)) for plan, keys in wanted.items()}
        table = self.activity_cls.__table__
        names = [c.key for c in table.c if c.key.startswith(("object_", "target_"))]
        rows = []
        for id_, activity in activities.items():
            values = {name: getattr(activity, name) for name in names}
            for role in _ROLES:
                plan, key = about.get((id_, role), (None, None))
                if plan is not None:
                    values[f"{role}_tx_id"] = latest[plan].get(key)
            if isinstance(activity, self.activity_cls):
                for name, value in values.items():
                    set_committed_value(activity, name, value)
            rows.append({f"new_{name}": value for name, value in values.items()} | {"row": id_})
        if rows:
            written.connection.execute(
                update(table)
                .where(table.c.id == bindparam("row"))
                .values({table.c[name]: bindparam(f"new_{name}") for name in names}),
                rows,
            )

    @override
    def transaction_moved(
        self, session: Session, connection: Connection, old: int, new: int | None
    ) -> None:
        move_rows(session, connection, self.activity_cls, old, new)
        table = self.activity_cls.__table__
        for role in _ROLES if new is not None else ():
            column = table.c[f"{role}_tx_id"]
            connection.execute(update(table).where(column == old).values({column: new}))
            for obj in session:
                if isinstance(obj, self.activity_cls) and obj.__dict__.get(column.key) == old:
                    set_committed_value(obj, column.key, new)

    @override
    def redacted(
        self, session: Session, plan: ClassPlan, key: Key, columns: Sequence[Column[Any]]
    ) -> None:
        # nobody but its author knows what `data` says of the object
        about = [
            and_(
                getattr(self.activity_cls, role).is_type(plan.mapper.class_),
                _has_key(self.activity_cls, role, plan.mapper, key),
            )
            for role in _ROLES
        ]
        statement = update(self.activity_cls).where(or_(*about)).values(data=null())
        session.execute(statement, execution_options={"synchronize_session": "fetch"})


def _has_key(owner: type[Any], role: str, mapper: Mapper[Any], key: Key) -> ColumnElement[bool]:
    if _has_integer_key(mapper):
        return getattr(owner, f"{role}_id") == key  # type: ignore[no-any-return]
    column = getattr(owner, f"{role}_key", None)
    return false() if column is None else column == key


def _latest(written: Written, plan: ClassPlan, keys: Sequence[Key]) -> dict[Key, int]:
    root, writer = plan.root, written.writer
    v = root.version
    found: dict[Key, int] = {}
    for parameters in writer.portions(root, keys):
        rows = written.run(
            ("latest", root),
            lambda: (
                select(func.max(root.tx), *root.keys_of(v))
                .where(writer.key_clause(root, v))
                .group_by(*root.keys_of(v))
            ),
            **parameters,
        )
        found.update((as_key(row[1:]), row[0]) for row in rows)
    return found


def _has_integer_key(mapper: Mapper[Any]) -> bool:
    return len(mapper.primary_key) == 1 and isinstance(mapper.primary_key[0].type, Integer)


def _class_named(near: type[Any], name: str) -> type[Any]:
    """The mapped class of that name, the one of the same registry as ``near`` first."""
    own = inspect(near).registry
    classes: dict[str, type[Any]] = {}
    for reg in sorted(all_registries(), key=lambda reg: reg is own):
        classes |= {m.class_.__name__: m.class_ for m in reg.mappers}
    if name not in classes:
        raise ImproperlyConfigured(
            f"an activity is about an object of class {name!r}, and there is no such mapped class; "
            f"{nearest(name, classes)}"
        )
    return classes[name]


def _stored_key(activity: Any, role: str, mapper: Mapper[Any]) -> tuple[Any, ...]:
    if _has_integer_key(mapper):
        return (getattr(activity, f"{role}_id"),)
    return parse_key(getattr(activity, f"{role}_key", None), mapper.primary_key)


class _Role:
    """``activity.object`` and ``activity.target``; on the class, something to compare with."""

    def __init__(self, role: str) -> None:
        self.role = role

    def __get__(self, activity: Any, owner: type[Any]) -> Any:
        if activity is None:
            return _RoleOf(owner, self.role)
        held = activity.__dict__.get(f"_{self.role}")
        return activity.load(self.role) if held is None else held

    def __set__(self, activity: Any, obj: Any) -> None:
        activity.__dict__[f"_{self.role}"] = obj
        for name in ("type", "id", "key", "tx_id"):
            if hasattr(type(activity), f"{self.role}_{name}"):
                setattr(activity, f"{self.role}_{name}", None)
        if obj is not None:
            activity.resolve(self.role)


class _RoleOf:
    """``Activity.object``: ``Activity.object == article``, ``Activity.object.is_type(Article)``."""

    def __init__(self, owner: type[Any], role: str) -> None:
        self._owner, self._role = owner, role

    def __eq__(self, obj: object) -> ColumnElement[bool]:  # type: ignore[override]
        column = getattr(self._owner, f"{self._role}_type")
        if obj is None:
            return column.is_(None)  # type: ignore[no-any-return]
        mapper: Any = inspect(type(obj))
        key = as_key(mapper.primary_key_from_instance(obj))
        same = _has_key(self._owner, self._role, mapper, key)
        return and_(column == type(obj).__name__, same)

    __hash__ = None  # type: ignore[assignment]

    def is_type(self, cls: type[Any]) -> ColumnElement[bool]:
        """The object is of ``cls`` or of a subclass of it."""
        names = [mapper.class_.__name__ for mapper in inspect(cls).self_and_descendants]
        return getattr(self._owner, f"{self._role}_type").in_(names)  # type: ignore[no-any-return]


class ActivityBase(PluginRow):
    """What an activity can do."""

    object = _Role("object")
    target = _Role("target")

    @property
    def object_version(self) -> Any:
        """The version of the object when the activity was flushed; None if it is not versioned."""
        return self.load_version("object")

    @property
    def target_version(self) -> Any:
        """The same of the target."""
        return self.load_version("target")

    @property
    def actor(self) -> Any:
        """The user of the transaction; None without ``user_cls``."""
        return getattr(self.transaction, "user", None)  # type: ignore[attr-defined]

    def resolve(self, *roles: str) -> None:
        """Store class and key of the objects that were set, as far as these have a key by now."""
        for role in roles or _ROLES:
            obj = self.__dict__.get(f"_{role}")
            if obj is None:
                continue
            mapper: Mapper[Any] = inspect(type(obj))
            state = inspect(obj)
            loaded = [mapper.get_property_by_column(c).key for c in mapper.primary_key]
            if all(state.dict.get(name) is not None for name in loaded):
                values = tuple(state.dict[name] for name in loaded)
            elif state.key is not None:
                values = tuple(state.key[1])
            else:
                continue
            setattr(self, f"{role}_type", type(obj).__name__)
            if _has_integer_key(mapper):
                setattr(self, f"{role}_id", values[0])
            elif hasattr(type(self), f"{role}_key"):
                setattr(self, f"{role}_key", as_key(values))
            else:
                raise ImproperlyConfigured(
                    f"{type(obj).__name__} has a key that is composite or no integer, and the "
                    f"table 'activity' has no column {role}_key for it; add object_key and "
                    f"target_key, VARCHAR(255), and use ActivityPlugin(any_key=True)"
                )

    def load(self, role: str) -> Any:
        """The object or the target, None if it is gone."""
        session = object_session(self)
        name = getattr(self, f"{role}_type")
        if session is None or name is None:
            return None
        cls = _class_named(type(self), name)
        return session.get(cls, _stored_key(self, role, inspect(cls)))

    def load_version(self, role: str) -> Any:
        """The version that the object or the target had."""
        session = object_session(self)
        name, tx = getattr(self, f"{role}_type"), getattr(self, f"{role}_tx_id")
        if session is None or name is None or tx is None:
            return None
        plan = class_plan(_class_named(type(self), name))
        if plan is None or plan.version_class is None:
            return None
        key = _stored_key(self, role, plan.mapper)
        names = dict(zip(plan.key_attributes, key, strict=True))
        return session.get(plan.version_class, {**names, plan.options.transaction_column_name: tx})
