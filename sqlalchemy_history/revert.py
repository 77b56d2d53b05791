"""Make a live object, and the objects around it, equal to one of its versions.

Only attributes change, through the session like any other change: nothing is flushed on the way,
and the outcome is a change that is versioned in its turn.

What relations were is what the version relationships say for the version's transaction, or for the
moment that the version was loaded for. One-to-many and one-to-one targets are taken back with their
columns, and so is a many-to-one target: it is named for that. Of a many-to-many relationship only
the links are: its targets belong to others as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, inspect
from sqlalchemy.orm import Mapper, RelationshipProperty, Session, object_session, selectinload
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.base import RelationshipDirection
from sqlalchemy.orm.collections import collection_adapter
from sqlalchemy.orm.exc import ObjectDeletedError

from . import query
from .config import nearest
from .difference import AttributeChange, Told, shown
from .exc import ReverterException
from .handover import Expected, in_the_way, park
from .operation import Operation
from .plan import class_plan, key_values
from .relationships import association_proxies

if TYPE_CHECKING:
    from .plan import ClassPlan

#: relations to take back, by name, each with those of its targets
Tree = dict[str, "Tree"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Reverted(Told):
    """What a revert did to one object.

    :ivar object: the live object.
    :ivar action: ``"created"``, ``"changed"``, ``"deleted"`` or ``"unchanged"``.
    :ivar changes: the attributes that were set; an old value that was not loaded shows as None.
        A relationship that changed shows as tuples of live objects.
    """

    object: Any
    action: str
    changes: tuple[AttributeChange, ...] = ()

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.action} {shown(self.object)}", *(f"    {c}" for c in self.changes)]
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class RevertReport(Told):
    """What a revert did, object by object. Print it to read it.

    :ivar objects: a :class:`Reverted` for each object. The first one is about the object of the
        version itself; others are there only if something was done to them.
    """

    objects: tuple[Reverted, ...]

    @property
    def object(self) -> Any:
        """The live object that the version is about; None if the version says it was deleted."""
        first = self.objects[0]
        return None if first.action == "deleted" else first.object

    def __str__(self) -> str:
        return "\n".join(map(str, self.objects))


def revert(
    version: Any, *, relations: Sequence[str] = (), only: Sequence[str] = ()
) -> RevertReport:
    """See :meth:`sqlalchemy_history.VersionBase.revert`."""
    session = object_session(version)
    if session is None:
        raise ReverterException(f"{version!r} is in no session; session.add() it before the revert")
    plan: ClassPlan = version.__version_plan__
    names = chosen_names(plan, only)
    tree = relation_tree(plan, relations)
    with session.no_autoflush:
        reversal = Reversal(session)
        if plan.operation_of(version) == Operation.DELETE:
            reversal.delete(reversal.find(plan, version))
        else:
            reversal.revert(as_it_was(session, version, tree), tree, names)
        return reversal.report()


class Reversal:
    """One revert: what was done so far, and to which objects. Only ``flush()`` flushes.

    :param is_loaded_anew: all live objects were, and nothing of them is older than their rows.
    """

    def __init__(self, session: Session, *, is_loaded_anew: bool = False) -> None:
        self.session = session
        self._is_loaded_anew = is_loaded_anew
        self._live: dict[Any, Any] = {}
        self._actions: dict[Any, str] = {}
        self._changes: dict[Any, dict[str, AttributeChange]] = {}
        self._expected: Expected = {}

    def expect(self, live: Any, values: dict[str, Any] | None) -> None:
        """``live`` is to get these values after a flush, or (None) to be deleted.

        Until then its unique values give way to those who are to have them.
        """
        self._expected[inspect(live)] = values

    def report(self) -> RevertReport:
        """What was done; makes sure that the next flush can do it."""
        session, actions = self.session, self._actions
        if any(in_the_way(session, actions, {})):
            # bound to the flush: parked values must never be all that a transaction writes
            event.listen(session, "before_flush", lambda *_: park(session, actions, {}), once=True)
        done = [
            Reverted(
                object=None if state is None else state.obj(),
                action=action,
                changes=tuple(self._changes.get(state, {}).values()),
            )
            for state, action in self._actions.items()
        ]
        others = (one for one in done[1:] if one.action != "unchanged")
        return RevertReport(objects=(*done[:1], *others))

    def flush(self) -> None:
        """Write what was done so far; what is reported afterwards is the whole nevertheless."""
        park(self.session, self._actions, self._expected)
        self.session.flush()

    def find(self, plan: ClassPlan, version: Any) -> Any:
        """The live object of a version, None if there is none."""
        key = plan.key_of_object(version)
        name = (plan.root, key)
        if name not in self._live:
            cls = plan.mapper.class_
            identity = plan.mapper.identity_key_from_primary_key(
                key_values(key, len(plan.key_attributes))
            )
            held = self.session.identity_map.get(identity)
            if held is not None and not self._is_loaded_anew:
                try:
                    _load_anew(self.session, held, plan.writable)
                except ObjectDeletedError:
                    self.session.expire(held)  # so that get() lets go of it
            live = self.session.get(cls, key)
            if live is None:
                for obj in self.session.new:
                    if isinstance(obj, cls) and plan.key_of_object(obj) == key:
                        live = obj
            self._live[name] = live
        return self._live[name]

    def delete(self, live: Any) -> None:
        """Delete ``live``, or throw it away if it was not flushed yet; None is gone already."""
        if live is None:
            self._actions[None] = "unchanged"
            return
        state: Any = inspect(live)
        self._actions[state] = "deleted"
        if state.pending:
            self.session.expunge(live)
        else:
            self.session.delete(live)

    def revert(self, version: Any, tree: Tree, names: Sequence[str]) -> Any:
        """Make the live object of ``version`` equal to it in ``names`` and in what ``tree`` says.

        One that is gone comes back with its key, and with all that its version knows.
        """
        plan: ClassPlan = version.__version_plan__
        live = self.find(plan, version)
        if live is None:
            # not by calling the class: its __init__ may want arguments
            live = plan.mapper.class_manager.new_instance()
            for name in plan.key_attributes:
                setattr(live, name, getattr(version, name))
            names = chosen_names(plan)
            self._live[plan.root, plan.key_of_object(version)] = live
            self._actions[inspect(live)] = "created"
            self.session.add(live)
        elif live in self.session.deleted:
            self.session.add(live)
            self._actions[inspect(live)] = "changed"
        self.set(live, version, names)
        for name, subtree in tree.items():
            if name in plan.mapper.relationships:
                self._revert_relation(live, version, plan.mapper.relationships[name], subtree)
        return live

    def set(self, live: Any, version: Any, names: Iterable[str]) -> None:
        """Give ``live`` the values that ``version`` has in ``names``."""
        state: Any = inspect(live)
        for name in names:
            value = getattr(version, name)
            if name not in state.dict or state.dict[name] != value:
                old = state.dict.get(name)
                if old is not value or state.has_identity:  # a new object has None as it is
                    self._note(state, name, old, value)
                setattr(live, name, value)
                _forget_targets(self.session, state, name)
        for composite in state.mapper.composites:
            state.dict.pop(composite.key, None)  # made anew of its columns when it is asked for
        self._actions.setdefault(state, "unchanged")

    def _note(self, state: Any, name: str, old: Any, new: Any) -> None:
        changes = self._changes.setdefault(state, {})
        before = changes[name].old if name in changes else old
        changes[name] = AttributeChange(name=name, old=before, new=new)
        if self._actions.get(state, "unchanged") == "unchanged":
            self._actions[state] = "changed"

    # -- relations

    def _revert_relation(
        self, live: Any, version: Any, prop: RelationshipProperty[Any], subtree: Tree
    ) -> None:
        targets = targets_of(self.session, version, prop.key)
        wanted = [self._wanted(target, prop, subtree) for target in targets]
        if not str(prop.lazy).startswith("raise"):
            _load_anew(self.session, live, (prop.key,))
        if prop.direction is RelationshipDirection.MANYTOONE:
            self._revert_reference(live, version, prop, wanted)
            return
        self.relate(live, prop, targets_of(self.session, live, prop.key), wanted)
        if prop.secondary is None:
            # a collection may number or label what comes and goes
            for target, obj in zip(targets, wanted, strict=True):
                if target is not obj:
                    self.set(obj, target, chosen_names(target.__version_plan__))

    def relate(
        self, live: Any, prop: RelationshipProperty[Any], present: list[Any], wanted: list[Any]
    ) -> None:
        """Let the relationship ``prop`` of ``live`` lead to ``wanted`` instead of ``present``."""
        gone = [obj for obj in present if obj not in wanted]
        new = [obj for obj in wanted if obj not in present]
        if not gone and not new:
            return
        self._note(inspect(live), prop.key, tuple(present), tuple(wanted))
        for obj in gone:
            self._remove(live, prop, obj)
        for obj in new:
            _attribute(live, prop).append(inspect(live), live.__dict__, obj, None)

    def _wanted(self, target: Any, prop: RelationshipProperty[Any], subtree: Tree) -> Any:
        """The live object for a version that a relation shows, itself reverted."""
        if not isinstance(target, query.VersionEntity):
            return target
        plan = target.__version_plan__
        return self.revert(
            target, subtree, () if prop.secondary is not None else chosen_names(plan)
        )

    def _revert_reference(
        self, live: Any, version: Any, prop: RelationshipProperty[Any], wanted: list[Any]
    ) -> None:
        """Many-to-one: what no version is known of may be there nevertheless."""
        target = wanted[0] if wanted else None
        if target is None:
            names = _local_names(prop)
            values = [getattr(version, name, None) for name in names]
            key = _identity(prop, values)
            if None in key and None not in values:
                return  # joined by something else than its key: the columns say all there is
            if None not in key:
                target = self.session.get(prop.mapper.class_, key)
                if target is None:
                    # the row is gone, and there is nothing to bring it back from
                    for name in names:
                        setattr(live, name, None)
        old = getattr(live, prop.key)
        if old is not target:
            self._note(inspect(live), prop.key, old, target)
            setattr(live, prop.key, target)

    def _remove(self, live: Any, prop: RelationshipProperty[Any], obj: Any) -> None:
        """Take a target out that was not there then, as the cascade and the foreign key say."""
        to_null = prop.secondary is None and not prop.cascade.delete_orphan
        if to_null and not all(column.nullable for column in prop.remote_side):
            self.delete(obj)
            # in silence: there is nothing to be set to NULL
            if not prop.uselist:
                set_committed_value(live, prop.key, None)
            elif prop.lazy not in ("dynamic", "write_only"):
                collection_adapter(getattr(live, prop.key)).remove_without_event(obj)
            return
        _attribute(live, prop).remove(inspect(live), live.__dict__, obj, None)
        if prop.cascade.delete_orphan:
            self._actions[inspect(obj)] = "deleted"
        elif to_null:
            for name in _remote_names(prop):
                self._note(inspect(obj), name, getattr(obj, name), None)
                setattr(obj, name, None)


# -- what to take back


def chosen_names(plan: ClassPlan, only: Iterable[str] = ()) -> tuple[str, ...]:
    """The attributes to write back: those in ``only``, by default all that can be written."""
    if isinstance(only, str):
        raise ReverterException(f"only={only!r}: give a list of names")
    chosen = set(only)
    for name in sorted(chosen - plan.attributes):
        raise ReverterException(
            f"{plan.mapper.class_.__name__} has no versioned attribute {name!r}; "
            f"{nearest(name, plan.attributes)}"
        )
    return tuple(
        name
        for name in plan.attribute_order
        if name in plan.writable and (not chosen or name in chosen)
    )


def relation_tree(plan: ClassPlan, relations: Iterable[str]) -> Tree:
    """Dotted paths of relationships and association proxies, as a tree of relationships.

    :raises ReverterException: for a name that is not there, or has no history.
    """
    if isinstance(relations, str):
        raise ReverterException(f"relations={relations!r}: give a list of names")
    tree: Tree = {}
    for path in relations:
        mapper, below = plan.mapper, tree
        for name in path.split("."):
            for step in _steps(mapper, name):
                prop = _relation(mapper, step, path)
                below = below.setdefault(step, {})
                mapper = prop.mapper
    return tree


def _steps(mapper: Mapper[Any], name: str) -> Iterator[str]:
    """The relationships that ``name``, a relationship or an association proxy, goes along."""
    proxy = association_proxies(mapper).get(name)
    if proxy is None:
        yield name
        return
    yield proxy.target_collection
    target = mapper.relationships.get(proxy.target_collection)
    if target is not None and proxy.value_attr in target.mapper.relationships:
        yield proxy.value_attr


def _relation(mapper: Mapper[Any], name: str, path: str) -> RelationshipProperty[Any]:
    found: dict[str, RelationshipProperty[Any]] = {}
    for each in reversed(list(mapper.self_and_descendants)):
        plan = class_plan(each.class_)
        if plan is not None and plan.version_class is not None:
            shown = inspect(plan.version_class).relationships
            found.update(
                {p.key: p for p in each.relationships if p.key in shown and not p.viewonly}
            )
    if name not in found:
        raise ReverterException(
            f"relations={path!r}: {mapper.class_.__name__} has no relationship {name!r} that has a "
            f"history; {nearest(name, found) if found else 'it has none at all'}"
        )
    return found[name]


def as_it_was(session: Session, version: Any, tree: Tree) -> Any:
    """``version`` with the relations in ``tree`` loaded, all of them as of one moment."""
    if not tree:
        return version
    plan: ClassPlan = version.__version_plan__
    token = inspect(version).identity_token
    at = token[1] if token else plan.tx_of(version)
    cls: Any = plan.version_class
    statement = query.as_of(cls, at).where(query.has_key(plan, plan.key_of_object(version)))
    found = session.scalars(statement.options(*_loads(inspect(cls), tree))).one_or_none()
    if found is None:
        raise ReverterException(
            f"{version!r} was not live at transaction {at}; nothing to revert to"
        )
    return found


def _loads(mapper: Mapper[Any], tree: Tree) -> Iterator[Any]:
    for name, subtree in tree.items():
        prop = mapper.relationships.get(name)
        if prop is not None and prop.lazy not in ("dynamic", "write_only"):
            attribute = getattr(mapper.class_, name)
            yield selectinload(attribute).options(*_loads(prop.mapper, subtree))


# -- relationships of objects, of whatever kind


def targets_of(session: Session, obj: Any, name: str) -> list[Any]:
    """The objects that a relationship leads to, as a list."""
    prop = inspect(obj).mapper.relationships[name]
    value = getattr(obj, name)
    if not prop.uselist:
        return [] if value is None else [value]
    if prop.lazy == "write_only":
        return list(session.scalars(value.select()))
    return list(value) if prop.lazy == "dynamic" else list(collection_adapter(value))


def _load_anew(session: Session, live: Any, names: Iterable[str]) -> None:
    """What was loaded of ``names`` may be older than what others, or bulk statements, have written.

    What was set and is not flushed stays, and so does a lock column: it tells whether a change is
    made in ignorance of another one.
    """
    state: Any = inspect(live)
    old = [name for name in names if name in state.dict and name not in state.committed_state]
    if state.persistent and old:
        session.expire(live, old)
        getattr(live, old[0])  # loads them all


def _attribute(live: Any, prop: RelationshipProperty[Any]) -> Any:
    """What backrefs append to and remove from: alike for a scalar and for collections of any kind."""
    return inspect(live).manager[prop.key].impl


def _local_names(prop: RelationshipProperty[Any]) -> list[str]:
    pairs = prop.local_remote_pairs or ()
    return [prop.parent.get_property_by_column(local).key for local, _ in pairs]


def _remote_names(prop: RelationshipProperty[Any]) -> list[str]:
    return [prop.mapper.get_property_by_column(column).key for column in prop.remote_side]


def _identity(prop: RelationshipProperty[Any], values: Sequence[Any]) -> Any:
    """The primary key of a many-to-one target from the values that refer to it."""
    remotes = [remote for _, remote in prop.local_remote_pairs or ()]
    by_column = dict(zip(remotes, values, strict=True))
    return tuple(by_column.get(column) for column in prop.mapper.primary_key)


def _forget_targets(session: Session, state: Any, name: str) -> None:
    """A foreign key was set: a many-to-one that was loaded, or set, for the old one goes."""
    if not state.persistent:
        return
    for prop in state.mapper.relationships:
        refers = prop.direction is RelationshipDirection.MANYTOONE and prop.key in state.dict
        if refers and name in _local_names(prop):
            session.expire(state.obj(), [prop.key])


class Reverter:
    """Reverts to ``obj``, a version, when it is called.

    :param relations: names of relationships to take back as well, dotted paths included.
    """

    def __init__(
        self, obj: Any, visited_objects: Any = None, relations: Sequence[str] = ()
    ) -> None:
        self.obj = obj
        self.relations: tuple[str, ...] = tuple(relations)

    def __call__(self) -> Any:
        """The live object; None if the version says that it was deleted."""
        return revert(self.obj, relations=self.relations).object
