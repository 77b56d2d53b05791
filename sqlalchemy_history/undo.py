"""Undo all that one transaction did, as far as nothing has been built upon it since.

::

    report = revert_transaction(session, tx, dry_run=True)
    print(report)                    # what would be done, and what is in the way
    revert_transaction(session, tx)  # a RevertConflict if something is in the way
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Table, and_, inspect, select
from sqlalchemy.orm import Session, aliased
from sqlalchemy.orm.base import RelationshipDirection
from sqlalchemy.schema import sort_tables_and_constraints

from .difference import AttributeChange, shown
from .exc import ReverterException, refuse_async
from .operation import Operation
from .plan import ClassPlan, Key, TablePlan, as_key, class_plan, table_plan
from .query import VersionEntity
from .revert import Reversal, Reverted, RevertReport, chosen_names, targets_of

#: a row, of whichever of the tables of a hierarchy
_Place = tuple[TablePlan, Key]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """Something that was changed after the transaction that is to be undone.

    :ivar version: the version that the transaction wrote; of a link, its row as a mapping.
    :ivar attribute: the attribute that was changed later; None if it is about the whole object.
    :ivar reason: what was done later, for people.
    """

    version: Any
    attribute: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.version!r}: {self.reason}"


class RevertConflict(ReverterException):
    """Later changes are in the way of an undo; ``conflicts`` is a tuple of :class:`Conflict`."""

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        lines = "\n".join(f"  {conflict}" for conflict in conflicts)
        super().__init__(
            f"what was done since is in the way:\n{lines}\n"
            f"revert_transaction(..., overwrite=True) undoes them, too"
        )
        self.conflicts: tuple[Conflict, ...] = tuple(conflicts)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class UndoReport(RevertReport):
    """What :func:`revert_transaction` did, or with ``dry_run=True`` would do. Print it to read it.

    :ivar objects: a :class:`~sqlalchemy_history.Reverted` for each object.
    :ivar conflicts: a :class:`Conflict` for each later change that is in the way; with
        ``overwrite=True`` they were undone, too.
    """

    conflicts: tuple[Conflict, ...] = ()

    def __str__(self) -> str:
        return "\n".join([*map(str, self.objects), *(f"conflict: {c}" for c in self.conflicts)])


@dataclasses.dataclass(slots=True)
class _Step:
    """What is to be done about one version: set, make or delete the live object.

    :ivar state: the version that has the values to go back to; None for a deletion.
    :ivar names: the attributes to set.
    """

    plan: ClassPlan
    version: Any
    state: Any
    live: Any
    names: Sequence[str]

    @property
    def place(self) -> _Place:
        """The row that it is about."""
        return self.plan.root, self.plan.key_of_object(self.version)

    @property
    def action(self) -> str:
        if self.state is None:
            return "deleted"
        return "created" if self.live is None else "changed"

    def planned(self) -> Reverted:
        changes = [
            AttributeChange(
                name=name,
                old=None if self.live is None else getattr(self.live, name),
                new=getattr(self.state, name),
            )
            for name in self.names
            if self.live is not None or getattr(self.state, name) is not None
        ]
        return Reverted(
            object=self.version if self.live is None else self.live,
            action=self.action,
            changes=tuple(changes),
        )


#: a step, and the attributes that, in a ring, refer to a row that comes later
_Ordered = tuple[_Step, list[str]]


@dataclasses.dataclass(slots=True)
class _Link:
    """An association row that is to be removed, or made again.

    :ivar ends: objects that it linked, held so that they are not loaded twice.
    """

    plan: TablePlan
    row: Mapping[Any, Any]
    values: dict[str, Any]
    remove: bool
    ends: list[Any] = dataclasses.field(default_factory=list)


def revert_transaction(
    session: Session, tx: Any, *, dry_run: bool = False, overwrite: bool = False
) -> UndoReport:
    """Undo all that a transaction did. The undo is a transaction of its own, and can be undone, too.

    What the transaction made is deleted, what it deleted is made again with its keys, and the columns
    that it changed get back the values from before. The same goes for links of many-to-many
    relationships. The session is flushed, before it and in an order that foreign keys allow, and not
    committed. What it holds of the rows in question is read again: they count as the database has
    them.

    :param tx: a Transaction.
    :param dry_run: undo nothing, and report what would be done, conflicts included. Objects that
        would be made again are shown as their versions.
    :param overwrite: undo later changes of the same columns as well; and of objects that the
        transaction made, delete also what was added to them later.
    :raises RevertConflict: if there are such later changes, and ``overwrite`` is not set. Nothing is
        done then.
    :raises ReverterException: if ``tx`` is no Transaction.
    """
    refuse_async(session, "revert_transaction")
    manager = getattr(tx, "__versioning_manager__", None)
    if manager is None:
        raise ReverterException(
            f"revert_transaction() needs a Transaction, not {tx!r}; "
            f"session.get(transaction_class(Article), id) loads one"
        )
    session.flush()
    plans: list[ClassPlan] = manager.root_plans(session)
    conflicts: list[Conflict] = []
    steps = [step for plan in plans for step in _steps(session, plan, tx.id, conflicts)]
    links = [
        link for plan in manager.association_plans(session) for link in _links(session, plan, tx)
    ]
    conflicts += _built_upon(session, steps, links)
    conflicts += _without_ends(session, steps, links, plans)
    if dry_run:
        return UndoReport(
            objects=tuple(_planned(session, steps, links, plans)), conflicts=tuple(conflicts)
        )
    if conflicts and not overwrite:
        raise RevertConflict(conflicts)
    with session.no_autoflush:
        reversal = Reversal(session, is_loaded_anew=True)
        _carry_out(session, reversal, steps, links, plans)
        done = (one for one in reversal.report().objects if one.action != "unchanged")
    return UndoReport(objects=tuple(done), conflicts=tuple(conflicts))


def _planned(
    session: Session, steps: list[_Step], links: list[_Link], plans: list[ClassPlan]
) -> Iterable[Reverted]:
    """What would be done to each object."""
    planned = {id(one.object): one for one in (step.planned() for step in steps)}
    for owner, prop, before, after in _relinked(session, links, plans, _made(steps)):
        one = planned.get(id(owner)) or Reverted(object=owner, action="changed")
        change = AttributeChange(name=prop.key, old=tuple(before), new=tuple(after))
        planned[id(owner)] = dataclasses.replace(one, changes=(*one.changes, change))
    return planned.values()


def _carry_out(
    session: Session,
    reversal: Reversal,
    steps: list[_Step],
    links: list[_Link],
    plans: list[ClassPlan],
) -> None:
    """Make first, then change, then delete; what others refer to is made first and deleted last.

    Where rows refer to each other in a ring, one of them does so only between the two.
    """
    made = _referred_first([step for step in steps if step.action == "created"])
    gone = _referred_first([step for step in steps if step.action == "deleted"])[::-1]
    for step in steps:
        if step.live is not None:
            values = step.state and {name: getattr(step.state, name) for name in step.names}
            reversal.expect(step.live, values)
    for step, ring in _flushing(reversal, made):
        live = reversal.revert(step.state, {}, ())
        for name in ring:
            setattr(live, name, None)
    reversal.flush()
    changed = [(step, step.names) for step in steps if step.action == "changed"]
    for step, names in [*((step, ring) for step, ring in made if ring), *changed]:
        reversal.revert(step.state, {}, names)
    for owner, prop, before, after in _relinked(session, links, plans, {}):
        reversal.relate(owner, prop, before, after)
    for step, ring in gone:
        for name in ring:
            setattr(step.live, name, None)
    for step, _ in _flushing(reversal, gone):
        if inspect(step.live).persistent:
            # its collections may still hold what the flush has deleted
            session.expire(step.live, step.plan.mapper.relationships.keys())
            reversal.delete(step.live)


def _flushing(reversal: Reversal, ordered: list[_Ordered]) -> Iterator[_Ordered]:
    """The steps, with a flush wherever it would not know the order.

    It knows that of tables not at all, and that of rows only as far as relationships tell it.
    """
    root: TablePlan | None = None
    referred: set[_Place] = set()
    for step, ring in ordered:
        if step.plan.root is not root or step.place in referred:
            reversal.flush()
            root, referred = step.plan.root, set()
        referred.update(place for place, *_ in _references(step))
        yield step, ring


def _steps(
    session: Session, plan: ClassPlan, tx: int, conflicts: list[Conflict]
) -> Iterator[_Step]:
    """What undoing the versions of one class takes: two statements find it."""
    cls: Any = plan.version_class
    live_class: Any = plan.mapper.class_
    before = aliased(cls)
    same = [getattr(cls, name) == getattr(live_class, name) for name in plan.key_attributes]
    at_tx = plan.transaction_id == tx
    # what the session holds may be older than what was written since, by itself or by others
    anew = {"populate_existing": True}
    living = session.scalars(
        select(live_class).join(cls, and_(*same)).where(at_tx), execution_options=anew
    )
    by_key = {plan.key_of_object(obj): obj for obj in living.unique()}
    columns: Any = plan.on(cls)
    columns_before: Any = plan.on(before)
    root = plan.root
    pairs = session.execute(
        select(cls, before)
        .outerjoin(
            before,
            and_(
                root.same_key(columns, columns_before),
                root.strategy.covers(root, columns_before, tx - 1),
            ),
        )
        .where(at_tx),
        execution_options=anew,
    ).all()
    for version, previous in pairs:
        step = _step(
            version.__version_plan__,
            version,
            None
            if previous is None or plan.operation_of(previous) == Operation.DELETE
            else previous,
            by_key.get(plan.key_of_object(version)),
            conflicts,
        )
        if step is not None:
            yield step


def _step(
    plan: ClassPlan, version: Any, before: Any, live: Any, conflicts: list[Conflict]
) -> _Step | None:
    def conflict(attribute: str | None, reason: str) -> None:
        conflicts.append(Conflict(version=version, attribute=attribute, reason=reason))

    operation = plan.operation_of(version)
    if operation == Operation.INSERT:
        if live is None:
            return None
        for name in _differing(plan, version, live):
            conflict(name, f"{name} has become {shown(getattr(live, name))} since it was made")
        return _Step(plan, version, None, live, [])
    state = before or (version if operation == Operation.DELETE else None)
    if state is None:
        conflict(None, "what it was before is not known, so it stays")
        return None
    if live is None:
        if operation == Operation.UPDATE:
            conflict(None, "it was deleted since")
        return _Step(plan, version, state, None, chosen_names(plan))
    if operation == Operation.DELETE:
        names = _differing(plan, state, live)
        if names:
            conflict(None, "there is another one with its key since it was deleted")
    else:
        changed, present = _differing(plan, state, version), _differing(plan, state, live)
        names = [name for name in changed if name in present]
        for name in names:
            then, now = getattr(version, name), getattr(live, name)
            if then != now:
                conflict(name, f"{name} was set to {then!r} and is {now!r} since")
    return _Step(plan, version, state, live, names) if names else None


def _built_upon(session: Session, steps: list[_Step], links: list[_Link]) -> Iterator[Conflict]:
    """What refers by now to objects that are to be deleted, and would go or change with them."""
    undone = {id(step.live) for step in steps}
    for step in steps:
        for prop in step.plan.mapper.relationships if step.action == "deleted" else ():
            if prop.viewonly or prop.direction is RelationshipDirection.MANYTOONE:
                continue
            for target in targets_of(session, step.live, prop.key):
                if prop.secondary is None:
                    plan = class_plan(type(target))
                    known = plan is None or plan.version_class is None or id(target) in undone
                else:
                    made = _link_values(prop, step.live, target).items()
                    known = any(
                        made <= link.values.items() and link.plan.parent is prop.secondary
                        for link in links
                    )
                if not known:
                    reason = f"{prop.key} has got {shown(target)} since it was made"
                    yield Conflict(version=step.version, attribute=prop.key, reason=reason)


def _without_ends(
    session: Session, steps: list[_Step], links: list[_Link], plans: list[ClassPlan]
) -> Iterator[Conflict]:
    """Links that cannot be made again, since an object that they linked is gone."""
    made = _made(steps)
    for link in links:
        prop = _relationship_of(link, plans)
        if link.remove or prop is None:
            continue
        for pairs, mapper in _ends(prop):
            link.ends.append(_end(session, link, pairs, mapper, made))
            if link.ends[-1] is None:
                reason = f"{mapper.class_.__name__}, which it linked, is gone"
                yield Conflict(version=dict(link.row), attribute=prop.key, reason=reason)


def _made(steps: list[_Step]) -> dict[_Place, Any]:
    """The versions that stand for what is to be made."""
    return {step.place: step.version for step in steps if step.action == "created"}


def _link_values(prop: Any, owner: Any, target: Any) -> dict[str, Any]:
    """What the association row of the two holds."""
    ends = (prop.parent, owner, prop.synchronize_pairs)
    others = (prop.mapper, target, prop.secondary_synchronize_pairs)
    return {
        there.key: getattr(obj, mapper.get_property_by_column(here).key)
        for mapper, obj, pairs in (ends, others)
        for here, there in pairs
    }


def _differing(plan: ClassPlan, one: Any, other: Any) -> list[str]:
    return [name for name in chosen_names(plan) if getattr(one, name) != getattr(other, name)]


def _referred_first(steps: list[_Step]) -> list[_Ordered]:
    """The steps so that each comes after those whose rows its own row refers to."""
    by_table = {step.plan.root.parent: step.plan.root for step in steps}
    tables = sort_tables_and_constraints(list(by_table))  # type: ignore[no-untyped-call]
    rank = {table: i for i, (table, _) in enumerate(tables)}
    waiting = {
        step.place: (step, list(_references(step)))
        for step in sorted(steps, key=lambda step: rank[step.plan.root.parent])
    }
    ordered: list[_Ordered] = []
    while waiting:
        left = {
            place: [reference for reference in references if reference[0] in waiting]
            for place, (_, references) in waiting.items()
        }
        free = [place for place, references in left.items() if not references]
        if not free:
            # a ring, which is opened where it can be
            open_ = (p for p, found in left.items() if all(nullable for *_, nullable in found))
            free = [next(open_, next(iter(left)))]
        for place in free:
            ring = [name for _, names, nullable in left[place] if nullable for name in names]
            ordered.append((waiting.pop(place)[0], ring))
    return ordered


def _references(step: _Step) -> Iterator[tuple[_Place, list[str], bool]]:
    """The rows that the step's row refers to: by which attributes, and whether with NULL."""
    obj = step.live if step.state is None else step.state
    mapper = step.plan.mapper
    for pairs in _foreign_keys(step.plan):
        table = next(iter(pairs)).table
        other = table_plan(table) if isinstance(table, Table) else None
        columns: list[Any] = [pairs.get(column) for column, _ in other.keys] if other else []
        if other is None or any(column is None for column in columns):
            continue
        names = [mapper.get_property_by_column(column).key for column in columns]
        # a version knows nothing of excluded columns, and what comes back has none of their values
        values = tuple(getattr(obj, name, None) for name in names)
        place = other.hierarchy[0], as_key(values)
        nullable = all(column.nullable for column in columns)
        # a row that refers to itself can be made at once, but not be deleted by SQLAlchemy
        in_the_way = place != step.place or (nullable and step.action == "deleted")
        if None not in values and in_the_way:
            yield place, names, nullable


def _foreign_keys(plan: ClassPlan) -> list[dict[Any, Any]]:
    """By the column that is referred to, the one that refers: of constraints and of relationships."""
    found: list[dict[Any, Any]] = [
        {element.column: element.parent for element in constraint.elements}
        for table in plan.tables
        for constraint in table.parent.foreign_key_constraints
    ]
    for prop in plan.mapper.relationships:
        pairs = {remote: local for local, remote in prop.local_remote_pairs or ()}
        is_reference = prop.direction is RelationshipDirection.MANYTOONE and not prop.viewonly
        if is_reference and pairs and pairs not in found:
            found.append(pairs)
    return found


def _links(session: Session, plan: TablePlan, tx: Any) -> Iterator[_Link]:
    statement = select(plan.version).where(plan.tx == tx.id)
    # a session may have binds for classes alone
    owners = (
        owner.mapper
        for owner in plan.manager.class_plans()
        if any(prop.secondary is plan.parent for prop in owner.mapper.relationships)
    )
    where: Any = {"mapper": next(owners, None)}
    for row in session.execute(statement, bind_arguments=where).mappings():
        operation = row[plan.op]
        if operation != Operation.UPDATE:
            values = {live.key: row[version] for live, version in plan.columns}
            yield _Link(plan, row, values, remove=operation == Operation.INSERT)


#: an object, its relationship, and what that leads to before and after
_Relinked = tuple[Any, Any, list[Any], list[Any]]


def _relinked(
    session: Session,
    links: list[_Link],
    plans: Iterable[ClassPlan],
    made: Mapping[_Place, Any],
) -> list[_Relinked]:
    """Links as changes of relationships, so that loaded collections follow.

    :param made: what stands for objects that would be made.
    """
    found: dict[tuple[int, str], _Relinked] = {}
    for link in links:
        prop = _relationship_of(link, plans)
        if prop is None:
            continue
        owner, target = (_end(session, link, *end, made) for end in _ends(prop))
        if owner is not None and target is not None:
            name = (id(owner), prop.key)
            if name not in found:
                present: list[Any] = []
                if not isinstance(owner, VersionEntity):
                    session.expire(owner, [prop.key])  # as in ``_steps``
                    present = targets_of(session, owner, prop.key)
                found[name] = (owner, prop, present, list(present))
            after = found[name][-1]
            if (target in after) is link.remove:
                (after.remove if link.remove else after.append)(target)
    return list(found.values())


def _relationship_of(link: _Link, plans: Iterable[ClassPlan]) -> Any:
    for plan in plans:
        for mapper in plan.mapper.self_and_descendants:
            for prop in mapper.relationships:
                if prop.secondary is link.plan.parent and not prop.viewonly:
                    return prop
    return None


def _ends(prop: Any) -> tuple[tuple[Sequence[tuple[Any, Any]], Any], ...]:
    """Of a relationship along links: what both sides are found by, and their mappers."""
    return (
        (prop.synchronize_pairs, prop.parent),
        (prop.secondary_synchronize_pairs or (), prop.mapper),
    )


def _end(
    session: Session,
    link: _Link,
    pairs: Sequence[tuple[Any, Any]],
    mapper: Any,
    made: Mapping[_Place, Any],
) -> Any:
    """The live object that one side of an association row refers to, or what stands for it."""
    values = {column: link.values.get(secondary.key) for column, secondary in pairs}
    if all(column in values for column in mapper.primary_key):
        key = tuple(values[column] for column in mapper.primary_key)
        plan = class_plan(mapper.class_)
        stand_in = plan and made.get((plan.root, as_key(key)))
        return session.get(mapper.class_, key) or stand_in
    where = [mapper.get_property_by_column(c).class_attribute == v for c, v in values.items()]
    return session.scalars(select(mapper.class_).where(*where)).unique().first()
