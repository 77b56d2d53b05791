"""Undo all that one transaction did, as far as nothing has been built upon it since.

::

    report = revert_transaction(session, tx, dry_run=True)
    print(report)                    # what would be done, and what is in the way
    revert_transaction(session, tx)  # a RevertConflict if something is in the way
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import and_, inspect, select
from sqlalchemy.orm import Session, aliased
from sqlalchemy.schema import sort_tables_and_constraints

from .changeset import AttributeChange
from .exc import ReverterException
from .operation import Operation
from .plan import ClassPlan, TablePlan
from .revert import Reversal, Reverted, RevertReport, targets_of


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """Something that was changed after the transaction that is to be undone.

    :ivar version: what the transaction wrote.
    :ivar attribute: None if it is about the object as a whole.
    """

    version: Any
    attribute: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.version!r}: {self.reason}"


class RevertConflict(ReverterException):
    """Later changes are in the way of an undo; ``conflicts`` lists them."""

    def __init__(self, conflicts: Sequence[Conflict]) -> None:
        lines = "\n".join(f"  {conflict}" for conflict in conflicts)
        super().__init__(
            f"{len(conflicts)} later changes are in the way:\n{lines}\n"
            f"revert_transaction(..., overwrite=True) undoes them, too"
        )
        self.conflicts = tuple(conflicts)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class UndoReport(RevertReport):
    """What :func:`revert_transaction` did, or would do, and what was in the way of it."""

    conflicts: tuple[Conflict, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{one.action} {one.object!r}\n" + "".join(f"    {c}\n" for c in one.changes)
            for one in self.objects
        ]
        lines.extend(f"conflict: {conflict}\n" for conflict in self.conflicts)
        return "".join(lines)


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
    names: list[str]

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
        ]
        return Reverted(
            object=self.version if self.live is None else self.live,
            action=self.action,
            changes=tuple(changes),
        )


@dataclasses.dataclass(slots=True)
class _Link:
    """An association row that is to be removed, or made again."""

    plan: TablePlan
    values: dict[str, Any]
    remove: bool


def revert_transaction(
    session: Session, tx: Any, *, dry_run: bool = False, overwrite: bool = False
) -> UndoReport:
    """Undo all that a transaction did: a transaction of its own, which can be undone in its turn.

    What it made is deleted, what it deleted is made again with its keys, and the columns that it
    changed get back what they had; links of many-to-many relationships likewise. The session is
    flushed as foreign keys want it, and not committed.

    :param tx: a Transaction.
    :param dry_run: change nothing, and report what would be done, conflicts included. Objects that
        would be made show as their versions.
    :param overwrite: undo also what was changed in the same columns after the transaction.
    :raises RevertConflict: if something was, and ``overwrite`` is not set. Nothing is done then.
    :raises ReverterException: if ``tx`` is no Transaction.
    """
    manager = getattr(tx, "__versioning_manager__", None)
    if manager is None:
        raise ReverterException(
            f"revert_transaction() needs a Transaction, not {tx!r}; "
            f"session.get(transaction_class(Article), id) loads one"
        )
    plans: list[ClassPlan] = manager.root_plans()
    conflicts: list[Conflict] = []
    steps = [step for plan in plans for step in _steps(session, plan, tx.id, conflicts)]
    links = [
        link for plan in manager.models.associations.values() for link in _links(session, plan, tx)
    ]
    if dry_run:
        return UndoReport(objects=tuple(s.planned() for s in steps), conflicts=tuple(conflicts))
    if conflicts and not overwrite:
        raise RevertConflict(conflicts)
    with session.no_autoflush:
        reversal = Reversal(session)
        _carry_out(session, reversal, steps, links, plans)
        done = reversal.report().objects if steps or links else ()
    return UndoReport(objects=tuple(done), conflicts=tuple(conflicts))


def _carry_out(
    session: Session,
    reversal: Reversal,
    steps: list[_Step],
    links: list[_Link],
    plans: list[ClassPlan],
) -> None:
    """Make first, then change, then delete: a flush after each table that others may refer to."""
    order = _table_order(step.plan.root for step in steps)
    rank = {step_plan: i for i, step_plan in enumerate(order)}
    made = [step for step in steps if step.action == "created"]
    for table in order:
        group = [step for step in made if step.plan.root is table]
        for step in _parents_first(group):
            reversal.revert(step.state, {}, ())
        if group:
            session.flush()
    for step in steps:
        if step.action == "changed":
            reversal.revert(step.state, {}, step.names)
    for link in links:
        _relink(session, reversal, link, plans)
    gone = [step for step in steps if step.action == "deleted"]
    gone.sort(key=lambda step: rank[step.plan.root], reverse=True)
    for i, step in enumerate(gone):
        if i == 0 or gone[i - 1].plan.root is not step.plan.root:
            session.flush()
        if inspect(step.live).persistent:
            # its collections may still hold what the flush has deleted
            session.expire(step.live)
            reversal.delete(step.live)


def _steps(
    session: Session, plan: ClassPlan, tx: int, conflicts: list[Conflict]
) -> Iterator[_Step]:
    """What undoing the versions of one class takes: two statements find it."""
    cls: Any = plan.version_class
    live_class: Any = plan.mapper.class_
    before = aliased(cls)
    same = [getattr(cls, name) == getattr(live_class, name) for name in plan.key_attributes]
    at_tx = plan.transaction_id == tx
    living = {
        plan.key_of_object(obj): obj
        for obj in session.scalars(select(live_class).join(cls, and_(*same)).where(at_tx))
    }
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
        .where(at_tx)
    ).all()
    for version, previous in pairs:
        step = _step(
            version.__version_plan__,
            version,
            None if previous is None or _operation(previous) == Operation.DELETE else previous,
            living.get(plan.key_of_object(version)),
            conflicts,
        )
        if step is not None:
            yield step


def _step(
    plan: ClassPlan, version: Any, before: Any, live: Any, conflicts: list[Conflict]
) -> _Step | None:
    def conflict(attribute: str | None, reason: str) -> None:
        conflicts.append(Conflict(version=version, attribute=attribute, reason=reason))

    operation = _operation(version)
    if operation == Operation.INSERT:
        if live is None:
            return None
        for name in _differing(plan, version, live):
            conflict(name, f"{name} has become {getattr(live, name)!r} since it was made")
        return _Step(plan, version, None, live, [])
    state = before or (version if operation == Operation.DELETE else None)
    if state is None:
        conflict(None, "what it was before is not known, so it stays")
        return None
    if live is None:
        if operation == Operation.UPDATE:
            conflict(None, "it was deleted since")
        return _Step(plan, version, state, None, _all_names(plan))
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


def _differing(plan: ClassPlan, one: Any, other: Any) -> list[str]:
    return [name for name in _all_names(plan) if getattr(one, name) != getattr(other, name)]


def _all_names(plan: ClassPlan) -> list[str]:
    """All that a new object gets."""
    return [name for name in plan.attribute_order if name in plan.writable]


def _operation(version: Any) -> int:
    plan: ClassPlan = version.__version_plan__
    operation: int = getattr(version, plan.options.operation_type_column_name)
    return operation


def _table_order(plans: Iterable[TablePlan]) -> list[TablePlan]:
    """The plans of tables, those first that others refer to."""
    by_table = {plan.parent: plan for plan in plans}
    ordered = sort_tables_and_constraints(list(by_table))  # type: ignore[no-untyped-call]
    return [by_table[table] for table, _ in ordered if table in by_table]


def _parents_first(steps: list[_Step]) -> Iterator[_Step]:
    """New objects of one table, those first that others of them refer to."""
    waiting = {step.plan.key_of_object(step.version): step for step in steps}
    while waiting:
        free = [
            key for key, step in waiting.items() if not waiting.keys() & {*_referred(step)} - {key}
        ]
        # objects that refer to each other cannot be made one after the other: the database decides
        for key in free or list(waiting):
            yield waiting.pop(key)


def _referred(step: _Step) -> Iterator[Any]:
    """Keys of rows of the same table that the object refers to."""
    root = step.plan.root
    for constraint in root.parent.foreign_key_constraints:
        if constraint.referred_table is root.parent:
            pairs = {element.column: element.parent for element in constraint.elements}
            columns = [pairs.get(column) for column, _ in root.keys]
            if all(column is not None for column in columns):
                prop = step.plan.mapper.get_property_by_column
                values = tuple(getattr(step.state, prop(c).key) for c in columns if c is not None)
                yield values[0] if len(values) == 1 else values


def _links(session: Session, plan: TablePlan, tx: Any) -> Iterator[_Link]:
    statement = select(plan.version).where(plan.tx == tx.id)
    for row in session.execute(statement, bind_arguments={"clause": plan.parent}).mappings():
        operation = row[plan.op]
        if operation != Operation.UPDATE:
            values = {live.key: row[version] for live, version in plan.columns}
            yield _Link(plan, values, remove=operation == Operation.INSERT)


def _relink(session: Session, reversal: Reversal, link: _Link, plans: Iterable[ClassPlan]) -> None:
    """Remove or make a link through a relationship, so that loaded collections follow."""
    for plan in plans:
        for mapper in plan.mapper.self_and_descendants:
            for prop in mapper.relationships:
                if prop.secondary is link.plan.parent and not prop.viewonly:
                    owner = _end(session, link, prop.synchronize_pairs, prop.parent)
                    target = _end(session, link, prop.secondary_synchronize_pairs, prop.mapper)
                    if owner is not None and target is not None:
                        present = targets_of(session, owner, prop.key)
                        if (target in present) is link.remove:
                            wanted = [obj for obj in present if obj is not target]
                            reversal.relate(
                                owner, prop, present, wanted if link.remove else [*present, target]
                            )
                    return


def _end(
    session: Session, link: _Link, pairs: Sequence[tuple[Any, Any]] | None, mapper: Any
) -> Any:
    """The live object that one side of an association row refers to."""
    values = {column: link.values.get(secondary.key) for column, secondary in pairs or ()}
    if all(column in values for column in mapper.primary_key):
        return session.get(mapper.class_, tuple(values[c] for c in mapper.primary_key))
    where = [mapper.get_property_by_column(c).class_attribute == v for c, v in values.items()]
    return session.scalars(select(mapper.class_).where(*where)).first()
