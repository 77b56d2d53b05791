"""``article.versions``: the history of one object, as a query; ``Article.versions`` in statements.

It is no attribute of the mapping: the model's mapper stays as its author wrote it, and nothing is
mapped until somebody reads history. A statement may use it as the relationship that it would be::

    article.versions[0]
    article.versions.filter_by(name="Draft").count()
    await session.scalars(article.versions.select())
    select(Article).where(Article.versions.any(name="Draft"))
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, SupportsIndex, overload

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
from typing_extensions import TypeVar

from .config import OptionsDict
from .plan import CONFIGURE_LOCK, ClassPlan, as_key, class_plan
from .query import Selectable, Statement
from .version import remember_chain

if TYPE_CHECKING:
    from sqlalchemy.orm import WriteOnlyCollection
    from typing_extensions import Self

#: a version class, as type checkers know it; Any if they are told of none
V = TypeVar("V", default=Any)


class Versions(Generic[V]):
    """The descriptor behind ``versions``."""

    def __init__(self, _declared: Callable[[Any], V] | None = None) -> None:
        self._attributes: dict[ClassPlan, QueryableAttribute[Any]] = {}

    @overload
    def __get__(self, obj: None, owner: type[Any]) -> QueryableAttribute[V]: ...
    @overload
    def __get__(self, obj: object, owner: type[Any]) -> VersionQuery[V]: ...
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


class VersionQuery(Query[V]):
    """The versions of one object in the order of their transactions.

    An object that was never in a session has none.
    """

    if TYPE_CHECKING:
        _version_rows: WriteOnlyCollection[V]

    #: no other query made of it: the whole chain of the object
    _is_whole = True

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
        # versions that the session holds may have been closed, or written again, since
        self._execution_options = self._execution_options.union({"populate_existing": True})

    def select(self: Selectable[Statement]) -> Statement:
        """The versions as a ``Select``, for ``session.scalars()`` of any session, async ones included."""
        query: Any = self
        statement: Statement = query.statement
        return statement

    def count(self) -> int:
        """How many versions there are."""
        return super().count() if self._is_in_session() else 0

    @overload
    def __getitem__(self, item: slice) -> list[V]: ...
    @overload
    def __getitem__(self, item: SupportsIndex) -> V: ...
    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, int) and item < 0:
            return list(self)[item]
        return super().__getitem__(item)

    def _generate(self) -> Self:
        changed = super()._generate()
        changed._is_whole = False
        return changed

    def _iter(self) -> Any:
        versions: Any = ()
        if self._is_in_session():
            result = super()._iter()
            if not self._is_whole:
                return result
            versions = result.all()
            if versions:
                state: Any = self._object_state
                remember_chain(self.session, as_key(state.key[1]), versions)
        columns = SimpleResultMetaData(["version"])
        loaded: Any = IteratorResult(columns, iter(versions), _source_supports_scalars=True)
        return loaded.scalars()

    def _is_in_session(self) -> bool:
        session: Session | None = self.session
        state = self._object_state
        if session is None and state.key is not None:
            raise DetachedInstanceError(
                f"{state.class_.__name__} with the key {state.key[1]} is in no session, so its "
                f"versions cannot be loaded; session.add() it, or execute versions.select()"
            )
        return session is not None


class Versioned(Generic[V]):
    """A mixin of models: they have a history, and type checkers know what it is made of.

    The mixin alone makes a model versioned, as ``__versioned__ = {}`` does; options are given in a
    ``__versioned__`` of the model's own, in which type checkers find misspelled keys.

    Version classes are made at run time, so a type checker has to be told of them: by a class that
    exists for it alone, with the attributes of the model and those of a version, which is the
    mixin's parameter::

        class Article(Versioned["ArticleVersion"], Base):
            __tablename__ = "article"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str]

        if TYPE_CHECKING:
            class ArticleVersion(VersionBase, Article): ...

        article.versions[0].name                         # str
        article.versions[0].previous                     # ArticleVersion | None
        version_class(Article)                           # type[ArticleVersion]
        session.scalars(as_of(Article, at)).all()        # Sequence[ArticleVersion]

    Without a parameter versions are ``Any``. With SQLModel the mixin comes after ``SQLModel``.
    """

    __versioned__: ClassVar[OptionsDict] = {}

    if TYPE_CHECKING:
        _version_rows: WriteOnlyCollection[V]

        @Versions
        def versions(self) -> V:
            """The versions of this object in the order of their transactions."""
            ...


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
