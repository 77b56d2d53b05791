"""Questions about history as ``Select`` statements; nothing here needs a session.

>>> print(as_of(Article, 7))                                # doctest: +SKIP
SELECT ... FROM article_version WHERE article_version.transaction_id <= ... AND ...
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, cast, overload

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    GenerativeSelect,
    Select,
    SelectBase,
    and_,
    bindparam,
    func,
    inspect,
    literal,
    select,
    true,
)
from sqlalchemy import __version__ as sqlalchemy_version
from sqlalchemy.orm import (
    ORMExecuteState,
    QueryableAttribute,
    Session,
    UserDefinedOption,
    with_loader_criteria,
)
from sqlalchemy.sql import visitors

from .exc import ClassNotVersioned, VersioningError
from .plan import MOMENT, ClassPlan, Key, class_of, class_plan, key_values

if TYPE_CHECKING:
    from .transaction import TransactionBase

#: what a moment may be given as
Moment: TypeAlias = "TransactionBase | VersionEntity | int | dt.datetime"

#: a statement about versions, as SQLAlchemy types it: ``Select[V]``, or ``Select[tuple[V]]`` in 2.0
Statement = TypeVar("Statement", bound=Select[Any])
_Statement_co = TypeVar("_Statement_co", covariant=True)
_Select = TypeVar("_Select", bound=GenerativeSelect)

#: SQLAlchemy 2.0 applies ``with_loader_criteria()`` to what a SELECT lists, not to what it implies
_SEES_LISTED_ONLY: Final = sqlalchemy_version.startswith("2.0.")


class _Rows(Protocol[_Statement_co]):
    def select(self) -> _Statement_co: ...


class Selectable(Protocol[_Statement_co]):
    """What has versions, or is one; for type checkers, which see by it how they are selected."""

    @property
    def _version_rows(self) -> _Rows[_Statement_co]: ...


class AwaitableAttributes:
    """The attributes of an object that may have to ask the database, in an async session."""

    __slots__ = ("_obj",)

    def __init__(self, obj: object) -> None:
        self._obj = obj

    def __getattr__(self, name: str) -> Awaitable[Any]:
        from sqlalchemy.util.concurrency import greenlet_spawn  # noqa: PLC0415 - asyncio alone needs greenlet

        return greenlet_spawn(getattr, self._obj, name)


class VersionEntity:
    """A version class, as far as statements can tell."""

    __version_plan__: ClassPlan

    @classmethod
    def _was_live_then(cls) -> ColumnElement[bool]:
        """The class, or the alias that stands for it here, was live at ``AsOf``'s moment."""
        plan: ClassPlan | None = getattr(cls, "__version_plan__", None)
        if plan is None:
            return true()  # SQLAlchemy tries it on the base class
        inspected: Any = inspect(cls)
        if inspected.is_aliased_class and inspected._base_alias() is not inspected:
            return true()  # a part of with_polymorphic(), which is limited as a whole
        return _was_live(plan, cls, bindparam(MOMENT, type_=BigInteger))


def plan_of(entity: Any) -> ClassPlan:
    """The plan behind a versioned class, a version class, an alias or an object of either.

    :raises ClassNotVersioned: if it has no history.
    """
    cls = class_of(entity)
    if cls is None:
        raise ClassNotVersioned(f"{entity!r} is no mapped class, nor an object or an alias of one")
    plan = class_plan(cls)
    if plan is None:
        raise ClassNotVersioned(
            f"{cls.__name__} has no history; give the class a __versioned__ = {{}} and call "
            f"make_versioned() before mappers configure"
        )
    if plan.version_class is None:
        raise ClassNotVersioned(
            f"{cls.__name__} has no version class, as its option create_models=False says; read "
            f"version_table({cls.__name__}.__table__), or leave the option out"
        )
    return plan


def version_entity(entity: Any) -> tuple[ClassPlan, Any]:
    """The plan of ``entity`` and what to select: its version class, or the alias itself."""
    plan = plan_of(entity)
    inspected: Any = inspect(entity)
    if inspected.is_aliased_class and issubclass(inspected.mapper.class_, plan.version_class):  # type: ignore[arg-type]
        return plan, entity
    return plan, plan.version_class


def moment(plan: ClassPlan, at: Moment) -> Any:
    """``at`` as something to compare transaction ids with.

    :param at: a Transaction, its id, a version (its transaction is meant), or an aware datetime:
        the last transaction issued at or before it.
    :raises TypeError: for anything else, a naive datetime included.
    """
    if isinstance(at, dt.datetime):
        transaction = plan.root.transaction
        issued_at = transaction.c.issued_at
        return (
            select(func.coalesce(func.max(transaction.c.id), 0))
            .where(issued_at <= utc(at, issued_at))
            .scalar_subquery()
        )
    if isinstance(at, int) and not isinstance(at, bool):
        return at
    transaction_cls: type[TransactionBase] = plan.manager.transaction_cls
    if isinstance(at, transaction_cls):
        return at.id
    cls = class_of(at)
    version_plan = class_plan(cls) if cls is not None else None
    if version_plan is not None and isinstance(at, VersionEntity):
        return version_plan.tx_of(at)
    raise TypeError(
        f"{at!r} is no moment; give a Transaction, the id of one, or a datetime with a timezone"
    )


def utc(at: dt.datetime, column: ColumnElement[Any]) -> dt.datetime:
    """``at`` as ``column``, an ``issued_at``, stores it.

    :raises TypeError: for a naive datetime, which could mean any timezone.
    """
    if not isinstance(at, dt.datetime):
        raise TypeError(f"{at!r} is no datetime; give one with a timezone")
    if at.tzinfo is None:
        raise TypeError(
            f"{at!r} is naive, so it may mean any timezone; give it one: datetime.now(timezone.utc), "
            f"or transaction.issued_at.replace(tzinfo=timezone.utc), which is stored as UTC"
        )
    at = at.astimezone(dt.timezone.utc)
    type_: Any = column.type
    aware = getattr(type_, "impl_instance", type_).timezone
    return at if aware else at.replace(tzinfo=None)


class AsOf(UserDefinedOption):
    """Tells a statement, and what its objects load later, which moment they are about."""

    propagate_to_loaders = True

    def __init__(self, plan: ClassPlan, at: Any) -> None:
        super().__init__(at)
        self.plan = plan

    def at(self, session: Session) -> int:
        """The moment as a transaction's id."""
        if not isinstance(self.payload, int):
            payload: Any = self.payload
            self.payload = session.scalar(select(payload)) or 0
        return self.payload


def show_moment(execute_state: ORMExecuteState) -> Any:
    """Listener for ``do_orm_execute``: a statement with an ``AsOf`` sees its moment.

    The identity token keeps a version that was loaded for one moment apart from the same version
    loaded for another, since their relationships differ. Live objects have none, unless a join
    loads them with versions: a statement has one token for all that it loads.
    """
    if execute_state.is_select:
        for option in execute_state.user_defined_options:
            if isinstance(option, AsOf):
                at = option.at(execute_state.session)
                mapper: Any = execute_state.bind_mapper
                if execute_state.is_relationship_load:
                    mapper = execute_state.loader_strategy_path[-1].mapper  # type: ignore[index,union-attr]
                seen = mapper is not None and issubclass(mapper.class_, VersionEntity)
                token = ("as of", at) if seen else None
                parameters: Any = execute_state.parameters or {}
                known = execute_state.execution_options.get("identity_token")
                if parameters.get(MOMENT) == at and known == token:
                    return None  # the listener of another manager has done it
                execute_state.parameters = parameters
                return execute_state.invoke_statement(
                    params={MOMENT: at}, execution_options={"identity_token": token}
                )
    return None


@overload
def as_of(entity: _Select, at: Moment) -> _Select: ...
@overload
def as_of(entity: type[Selectable[Statement]], at: Moment) -> Statement: ...
@overload
def as_of(entity: type[object], at: Moment) -> Select[Any]: ...
def as_of(entity: Any, at: Moment) -> Any:
    """A ``Select`` of the versions that were the live rows at ``at``.

    Relationships of what it loads, eager or lazy, however deep, show the same moment.

    :param entity: a versioned class, its version class, an alias of that, or a ``select()`` about
        version classes: each of them in it, joined, aliased, in a subquery or a CTE, stands for
        what was live at ``at``.
    :param at: a Transaction (the state that it left), its id, a version, or an aware datetime.
    :raises ClassNotVersioned: if the class has no history, or no version class is in the statement.
    :raises TypeError: if ``at`` is none of these, or a naive datetime.

    ::

        session.scalars(as_of(Article, transaction).order_by(version_class(Article).name))
        session.execute(as_of(select(ArticleVersion.name, TagVersion).join(ArticleVersion.tags), 7))
    """
    if isinstance(entity, Select):
        plan = _plan_in(entity)
        _check_froms(entity)
        return entity.options(AsOf(plan, moment(plan, at)), _only_live())
    if isinstance(entity, Executable):
        raise TypeError(f"as_of() takes a class or a select(), not a {type(entity).__name__}")
    plan, target = version_entity(entity)
    when = moment(plan, at)
    statement: Select[Any] = select(target)
    return statement.where(_was_live(plan, target, when)).options(AsOf(plan, when))


def _was_live(plan: ClassPlan, entity: Any, when: Any) -> ColumnElement[bool]:
    # a plan's columns answer to the same names as those of its version table
    columns: Any = plan.on(entity)
    when = literal(when, BigInteger) if isinstance(when, int) else when
    return plan.root.strategy.all_live(plan.root, columns, when)


def _only_live() -> Any:
    """The option that limits every version class in a statement to ``AsOf``'s moment."""
    # SQLAlchemy looks into the lambda for what may vary; what is behind a method it leaves alone
    return with_loader_criteria(
        VersionEntity,
        lambda cls: cls._was_live_then(),
        include_aliases=True,
        propagate_to_loaders=False,
    )


def _plan_in(statement: Select[Any]) -> ClassPlan:
    """The plan of the first version class in ``statement``."""
    live = set()
    for element in visitors.iterate(statement):
        cls = class_of(element._annotations.get("parententity"))
        if cls is not None and issubclass(cls, VersionEntity):
            return plan_of(cls)
        live |= {cls.__name__} if cls is not None else set()
    found = f"only {', '.join(sorted(live))}" if live else "no class"
    raise ClassNotVersioned(
        f"as_of() needs a select() about version classes, see version_class(); this one is about "
        f"{found}. A statement about live classes can be run in a time_machine()"
    )


def _check_froms(statement: Select[Any]) -> None:
    """SQLAlchemy 2.0 limits no entity that only a WHERE names: refuse what would show all of it."""
    if not _SEES_LISTED_ONLY:
        return
    named: dict[Any, None] = {}
    listed: set[Any] = set()
    for part in visitors.iterate(statement):
        if isinstance(part, Select):
            joined = (join[0] for join in part._setup_joins)
            for element in (*part._raw_columns, *part._from_obj, *joined):
                listed.update(_entities(element))
            # any() and has() list the table, and bring the condition themselves
            for element in part._from_obj:
                parts = cast("Iterable[Any]", visitors.iterate(element))
                listed.update(found._deannotate() for found in parts)
            for element in part._where_criteria:
                named.update(dict.fromkeys(_entities(element)))
    for entity in named:
        if entity not in listed and entity.selectable not in listed:
            raise VersioningError(
                f"as_of(): SQLAlchemy 2.0 does not find {entity.class_.__name__} where only a "
                f"WHERE names it; say exists().select_from({entity.class_.__name__}), or likewise"
            )


def _entities(element: Any) -> Iterator[Any]:
    """The version classes, and aliases of them, in an element, but for selects within it."""
    if isinstance(element, QueryableAttribute):  # of a relationship, which is joined
        yield element.parent
        yield element._of_type or element.property.entity
    elif not isinstance(element, SelectBase):
        entity = element._annotations.get("parententity")
        cls = class_of(entity)
        if cls is not None and issubclass(cls, VersionEntity):
            yield entity
        for child in element.get_children():
            yield from _entities(child)


@overload
def versions_between(
    entity: type[Selectable[Statement]], since: Moment, until: Moment
) -> Statement: ...
@overload
def versions_between(entity: type[object], since: Moment, until: Moment) -> Select[Any]: ...
def versions_between(entity: Any, since: Moment, until: Moment) -> Any:
    """A ``Select`` of the versions made in ``[since, until)``, in the order they were made.

    :param since: as for :func:`as_of`; versions of that transaction are included.
    :param until: versions of that transaction are not included. With datetimes, what was issued
        at ``since`` is included and what was issued at ``until`` is not.
    """
    plan, target = version_entity(entity)
    tx = plan.tx_of(target)
    bounds = []
    for at, is_start in ((since, True), (until, False)):
        if isinstance(at, dt.datetime):
            transaction = plan.root.transaction
            issued_at = transaction.c.issued_at
            when = utc(at, issued_at)
            issued = select(transaction.c.id).where(
                issued_at >= when if is_start else issued_at < when
            )
            bounds.append(tx.in_(issued))
        else:
            bounds.append(tx >= moment(plan, at) if is_start else tx < moment(plan, at))
    return select(target).where(*bounds).order_by(tx)


def has_key(plan: ClassPlan, key: Key) -> ColumnElement[bool]:
    """The version is about the row with ``key``."""
    cls, names = plan.version_class, plan.key_attributes
    values = key_values(key, len(names))
    return and_(*(getattr(cls, n) == v for n, v in zip(names, values, strict=True)))


def versions_of(plan: ClassPlan, key: Key, *, descending: bool = False) -> Select[Any]:
    """All versions of the row with ``key``, in the order of their transactions.

    Those that the session holds are loaded anew: they may have been closed, or written again, since.
    """
    cls: Any = plan.version_class
    tx = plan.transaction_id
    statement = select(cls).where(has_key(plan, key)).order_by(tx.desc() if descending else tx)
    return statement.execution_options(populate_existing=True)


def neighbour(plan: ClassPlan, key: Key, tx: int, step: int) -> Select[Any]:
    """The version of the row with ``key`` right before (``step`` -1) or after (1) ``tx``."""
    cls: Any = plan.version_class
    column = plan.transaction_id
    return (
        select(cls)
        .where(has_key(plan, key), column < tx if step < 0 else column > tx)
        .order_by(column.desc() if step < 0 else column)
        .limit(1)
    )


def position(plan: ClassPlan, key: Key, tx: int) -> Select[Any]:
    """How many versions of the row with ``key`` come before ``tx``."""
    cls: Any = plan.version_class
    column = plan.transaction_id
    return select(func.count()).select_from(cls).where(has_key(plan, key), column < tx)
