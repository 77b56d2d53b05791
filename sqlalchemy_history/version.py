"""What every version class can do: step through its history, say what changed, revert.

Walking is cheap: the first step from a version is one query for one row, the second loads the
whole chain of that object, and every further ``previous``, ``next``, ``index`` and ``changeset``
of any of its versions is answered from it. A loop over ``article.versions`` has loaded the chain;
where the session holds other versions of the object already, the first step does. It is kept in
``session.info`` and forgotten when the session's transaction ends or a new version is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from sqlalchemy import inspect
from sqlalchemy.orm import Session, object_session

from . import query
from .changeset import Changeset, changeset_of
from .config import OptionsDict
from .exc import VersioningError, refuse_async
from .operation import Operation
from .plan import CHAINS_KEY, ClassPlan, Key

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapped, SessionTransaction
    from typing_extensions import Self

    from .revert import RevertReport
    from .transaction import TransactionBase


class _Chain:
    """All versions of one object, in order."""

    __slots__ = ("_positions", "versions")

    def __init__(self, versions: Sequence[Any]) -> None:
        self.versions = versions
        self._positions = {version._tx: i for i, version in enumerate(versions)}

    def position(self, version: VersionBase) -> int | None:
        return self._positions.get(version._tx)

    def at(self, i: int) -> Any:
        return self.versions[i] if 0 <= i < len(self.versions) else None


class _Chains:
    """The chains of versions that a session has loaded in its present transaction."""

    __slots__ = ("asked", "loaded", "present", "transaction")

    def __init__(self, transaction: SessionTransaction | None) -> None:
        self.transaction = transaction
        self.asked: set[tuple[type[Any], Key]] = set()
        self.loaded: dict[tuple[type[Any], Key], _Chain] = {}
        #: by version class: how big the identity map was, and how many versions of each key it had
        self.present: dict[type[Any], tuple[int, Counter[Any]]] = {}

    def is_among_others(self, session: Session, version: VersionBase) -> bool:
        """Whether the session seems to hold other versions of the object, too.

        They are counted anew only when the identity map has doubled, so that asking for each of n
        objects takes n steps, not n squared.
        """
        state: Any = inspect(version)
        cls = state.mapper._identity_class
        tx = state.mapper.primary_key.index(version.__version_plan__.root.tx)
        size, counts = self.present.get(cls, (0, Counter()))
        if len(session.identity_map) > 2 * size:
            keys = (identity for c, identity, *_ in list(session.identity_map.keys()) if c is cls)
            counts = Counter(identity[:tx] + identity[tx + 1 :] for identity in keys)
            self.present[cls] = len(session.identity_map), counts
        identity = state.key[1]
        return counts[identity[:tx] + identity[tx + 1 :]] > 1

    @classmethod
    def of(cls, session: Session) -> _Chains:
        chains: _Chains | None = session.info.get(CHAINS_KEY)
        transaction = session.get_transaction()
        if chains is not None and chains.transaction is None:
            chains.transaction = transaction
        if chains is None or chains.transaction is not transaction:
            chains = session.info[CHAINS_KEY] = cls(transaction)
        return chains


def remember_chain(session: Session, key: Key, versions: Sequence[VersionBase]) -> None:
    """``versions`` are all those of the object with ``key``, in order."""
    classes = {type(version) for version in versions}
    if len(classes) == 1:
        _Chains.of(session).loaded[classes.pop(), key] = _Chain(versions)


class VersionBase(query.VersionEntity):
    """Base of all version classes.

    A type checker does not see the version classes that are made at run time; see
    :class:`~sqlalchemy_history.Versioned` for how to tell it of them.
    """

    __versioned__: ClassVar[OptionsDict] = {"versioning": False}
    __allow_unmapped__ = True

    if TYPE_CHECKING:
        # as the columns are called by default
        transaction_id: Mapped[int]
        end_transaction_id: Mapped[int | None]
        operation_type: Mapped[int]
        transaction: Mapped[TransactionBase]

    @property
    def previous(self) -> Self | None:
        """The version before this one, or None."""
        return self._step(-1)

    @property
    def next(self) -> Self | None:
        """The version after this one, or None."""
        return self._step(1)

    @property
    def index(self) -> int:
        """The position of this version among the versions of its object; the first has 0."""
        session, key = self._session_and_key()
        chain = self._chain(session, key)
        i = None if chain is None else chain.position(self)
        if i is not None:
            return i
        return session.scalar(query.position(self.__version_plan__, key, self._tx)) or 0

    @property
    def version_parent(self) -> Any:
        """The live object, or None if there is none (any more)."""
        session, key = self._session_and_key()
        return session.get(self.__version_plan__.mapper.class_, key)

    @property
    def changeset(self) -> Changeset:
        """``{attribute: [value before, value now]}`` of what this version changed."""
        previous = self.previous
        if previous is not None and previous._operation == Operation.DELETE:
            previous = None
        return changeset_of(
            None if previous is None else version_values(previous), version_values(self)
        )

    def revert(self, relations: Sequence[str] = (), only: Sequence[str] = ()) -> RevertReport:
        """Make the live object equal to this version; a deleted one comes back with its key.

        A version that is a DELETE deletes the live object. Nothing is flushed: commit it as any other
        change. What the session holds of live objects is loaded again first, but for what was set
        and not flushed.

        :param relations: names of relationships (dotted paths) to take back as well.
        :param only: the attributes to take back; all of them by default.
        :raises ReverterException: for a name that the class does not have, and for a version that is
            in no session.
        """
        from .revert import revert  # noqa: PLC0415 - a program may never revert

        return revert(self, relations=relations, only=only)

    @property
    def aprevious(self) -> Awaitable[Self | None]:
        """``await version.aprevious``: :attr:`previous` in an async session."""
        return self.awaitable_attrs.previous

    @property
    def anext(self) -> Awaitable[Self | None]:
        """``await version.anext``: :attr:`next` in an async session."""
        return self.awaitable_attrs.next

    @property
    def aindex(self) -> Awaitable[int]:
        """``await version.aindex``: :attr:`index` in an async session."""
        return self.awaitable_attrs.index

    async def arevert(
        self, relations: Sequence[str] = (), only: Sequence[str] = ()
    ) -> RevertReport:
        """``await version.arevert(...)``: :meth:`revert` in an async session."""
        from sqlalchemy.util.concurrency import greenlet_spawn  # noqa: PLC0415 - asyncio alone needs greenlet

        return await greenlet_spawn(self.revert, relations, only)

    @property
    def awaitable_attrs(self) -> query.AwaitableAttributes:
        """``await version.awaitable_attrs.changeset``: any attribute, in an async session."""
        return query.AwaitableAttributes(self)

    @classmethod
    def version_at(cls, session: Session, identity: Any, transaction_id: int) -> Self | None:
        """The latest version of one object after a transaction; None if there was none yet.

        A deleted object has one, too: the DELETE.

        :param identity: ``{"id": 5}``, the value of a single key, or a tuple of values.
        """
        refuse_async(session, f"{cls.__name__}.version_at")
        plan = cls.__version_plan__
        key = key_from(plan, identity)
        statement = query.versions_of(plan, key, descending=True)
        return session.scalars(statement.where(plan.tx_of(cls) <= transaction_id).limit(1)).first()

    @classmethod
    def all_versions(
        cls,
        session: Session,
        identity: Any,
        limit: int | None = None,
        offset: int = 0,
        desc: bool = True,
        link: bool = True,
    ) -> list[Self]:
        """The versions of one object, the latest first.

        :param identity: ``{"id": 5}``, the value of a single key, or a tuple of values.
        :param limit: at most so many versions.
        :param offset: leave out so many of the first.
        :param desc: ``False``: the oldest first.
        :param link: read ahead, so that ``previous``, ``next``, ``index`` and ``changeset`` of what
            is returned cost no query.
        """
        refuse_async(session, f"{cls.__name__}.all_versions")
        plan = cls.__version_plan__
        key = key_from(plan, identity)
        statement = query.versions_of(plan, key, descending=desc)
        if not link:
            return list(session.scalars(statement.limit(limit).offset(offset)))
        versions = list(session.scalars(query.versions_of(plan, key)))
        remember_chain(session, key, versions)
        chosen = versions[::-1] if desc else versions
        return chosen[offset : None if limit is None else offset + limit]

    def __repr__(self) -> str:
        plan = self.__version_plan__
        names = [
            *plan.key_attributes,
            plan.options.transaction_column_name,
            plan.options.operation_type_column_name,
        ]
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({values})"

    # -- what these are made of

    @property
    def _tx(self) -> int:
        return cast(int, self.__version_plan__.tx_of(self))

    @property
    def _operation(self) -> int:
        return cast(int, self.__version_plan__.operation_of(self))

    def _session_and_key(self) -> tuple[Session, Key]:
        session = object_session(self)
        if session is None:
            raise VersioningError(
                f"{self!r} is in no session, so its neighbours cannot be looked up; "
                f"session.add() it, or ask before the session is closed"
            )
        return session, self.__version_plan__.key_of_object(self)

    def _chain(self, session: Session, key: Key) -> _Chain | None:
        """All versions of this object; None when it is asked for the first time, on its own."""
        session._autoflush()
        chains = _Chains.of(session)
        name = (type(self), key)
        chain = chains.loaded.get(name)
        if chain is None:
            if name not in chains.asked:
                chains.asked.add(name)
                if not chains.is_among_others(session, self):
                    return None
            chain = _Chain(session.scalars(query.versions_of(self.__version_plan__, key)).all())
            # the query may have begun the transaction that the chain belongs to
            _Chains.of(session).loaded[name] = chain
        return chain

    def _step(self, step: int) -> Self | None:
        session, key = self._session_and_key()
        chain = self._chain(session, key)
        i = None if chain is None else chain.position(self)
        if chain is not None and i is not None:
            at: Self | None = chain.at(i + step)
            return at
        return session.scalars(query.neighbour(self.__version_plan__, key, self._tx, step)).first()


def version_values(version: VersionBase) -> dict[str, Any]:
    """The values of the attributes with a history that ``version`` holds."""
    plan = version.__version_plan__
    try:
        values = plan.values_of(version.__dict__)
    except KeyError:
        # expired, or deferred
        values = [getattr(version, name) for name in plan.attribute_order]
    return dict(zip(plan.attribute_order, values, strict=True))


def key_from(plan: ClassPlan, identity: Any) -> Key:
    """The key that ``identity`` means: a mapping by attribute, a value, or a tuple of values."""
    names = plan.key_attributes
    if isinstance(identity, Mapping):
        if set(identity) != set(names):
            raise VersioningError(
                f"{plan.mapper.class_.__name__} is identified by {', '.join(names)}; "
                f"got {', '.join(map(str, identity))}"
            )
        identity = tuple(identity[name] for name in names)
    elif not isinstance(identity, (tuple, list)):
        identity = (identity,)
    if len(identity) != len(names):
        raise VersioningError(
            f"{plan.mapper.class_.__name__} is identified by {', '.join(names)}; got {identity!r}"
        )
    return identity[0] if len(names) == 1 else tuple(identity)
