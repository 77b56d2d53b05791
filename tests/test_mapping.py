"""Every style of mapping and kind of inheritance has a history, and a version class like itself."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.ext.automap import automap_base
from sqlalchemy.ext.declarative import ConcreteBase
from sqlalchemy.ext.hybrid import hybrid_method, hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    declared_attr,
    mapped_column,
    registry,
    relationship,
    synonym,
)

from sqlalchemy_history import (
    ClassNotVersioned,
    Versioned,
    get_versioning_manager,
    is_versioned,
    parent_class,
    version_class,
    version_table,
    versioned_column_properties,
)


def names(versions: Any) -> list[Any]:
    return [version.name for version in versions]


# -- styles of mapping: each function makes a versioned class Article(id, name)


def declarative(reg: registry) -> Any:
    class Base(DeclarativeBase):
        registry = reg

    class Article(Base):
        __tablename__ = "article"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))

    return Article


def declarative_without_metaclass(reg: registry) -> Any:
    class Base(orm.DeclarativeBaseNoMeta):
        registry = reg

    class Article(Base):
        __tablename__ = "article"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))

    return Article


def declarative_with_table(reg: registry) -> Any:
    class Base(DeclarativeBase):
        registry = reg

    class Article(Base):
        __versioned__: dict[str, Any] = {}
        __table__ = sa.Table(
            "article",
            reg.metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("name", sa.String(50)),
        )

    return Article


def async_attrs(reg: registry) -> Any:
    class Base(AsyncAttrs, DeclarativeBase):
        registry = reg

    class Article(Base):
        __tablename__ = "article"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))

    return Article


def automap(reg: registry) -> Any:
    sa.Table(
        "article",
        reg.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(50)),
    )

    class Base(DeclarativeBase):
        registry = reg
        __versioned__: dict[str, Any] = {}

    auto: Any = automap_base(declarative_base=Base)
    auto.prepare(classname_for_table=lambda *_: "Article")
    return auto.classes.Article


def old_declarative_base(reg: registry) -> Any:
    base: Any = reg.generate_base()

    class Article(base):
        __tablename__ = "article"
        __versioned__: dict[str, Any] = {}
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50))

    return Article


def decorated(reg: registry) -> Any:
    @reg.mapped
    class Article:
        __tablename__ = "article"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))

        def __init__(self, **kw: Any) -> None:
            vars(self).update({})
            for key, value in kw.items():
                setattr(self, key, value)

    return Article


def imperative(reg: registry) -> Any:
    class Article:
        __versioned__: dict[str, Any] = {}

        def __init__(self, name: str) -> None:
            self.name = name

    table = sa.Table(
        "article",
        reg.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(50)),
    )
    reg.map_imperatively(Article, table)
    return Article


def imperative_dataclass(reg: registry) -> Any:
    @dataclasses.dataclass
    class Article:
        __versioned__ = {}
        name: str
        id: int | None = None

    table = sa.Table(
        "article",
        reg.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(50)),
    )
    reg.map_imperatively(Article, table)
    return Article


def dataclass_base(reg: registry) -> Any:
    class Base(MappedAsDataclass, DeclarativeBase):
        registry = reg

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        name: Mapped[str] = mapped_column(sa.String(50))

    return Article


def dataclass_class(reg: registry) -> Any:
    class Base(DeclarativeBase):
        registry = reg

    class Article(MappedAsDataclass, Base, kw_only=True):
        __tablename__ = "article"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        name: Mapped[str] = mapped_column(sa.String(50))

    return Article


def dataclass_decorated(reg: registry) -> Any:
    @reg.mapped_as_dataclass
    class Article:
        __tablename__ = "article"
        __versioned__ = {}
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        name: Mapped[str] = mapped_column(sa.String(50))

    return Article


def base_with_init(reg: registry) -> Any:
    class Base(DeclarativeBase):
        registry = reg

        def __init__(self, name: str) -> None:
            self.name = name

    class Article(Base):
        __tablename__ = "article"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))

    return Article


def base_with_init_subclass(reg: registry) -> Any:
    class Base(DeclarativeBase):
        registry = reg

        def __init_subclass__(cls, *, plural: bool = False, **kw: Any) -> None:
            if "__tablename__" not in cls.__dict__:
                cls.__tablename__ = cls.__name__.lower() + "s" * plural
            super().__init_subclass__(**kw)

    class Article(Base):
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))

    return Article


def base_with_required_argument(reg: registry) -> Any:
    class Base(DeclarativeBase):
        registry = reg

        def __init_subclass__(cls, *, table: str, **kw: Any) -> None:
            cls.__tablename__ = table
            super().__init_subclass__(**kw)

    class Article(Base, table="article"):
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))

    return Article


def base_with_metaclass(reg: registry) -> Any:
    class Meta(type(DeclarativeBase)):  # type: ignore[misc]
        def __new__(mcs, name: str, bases: Any, namespace: Any, **kw: Any) -> Any:
            if any(hasattr(base, "registry") for base in bases):
                namespace.setdefault("__tablename__", name.lower())
            return super().__new__(mcs, name, bases, namespace, **kw)

    class Base(DeclarativeBase, metaclass=Meta):
        registry = reg

    class Article(Base):
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))

    return Article


def mixins(reg: registry) -> Any:
    class Base(DeclarativeBase):
        registry = reg

    class Named:
        name: Mapped[str | None] = mapped_column(sa.String(50))

        @declared_attr.directive
        def __tablename__(cls) -> str:  # noqa: N805
            return cls.__name__.lower()  # type: ignore[attr-defined, no-any-return]

    class Versioned:
        __versioned__: dict[str, Any] = {"exclude": ["only_some_have_it"]}

        @declared_attr
        def id(cls) -> Mapped[int]:  # noqa: N805
            return mapped_column(primary_key=True)

    class Article(Named, Versioned, Base):
        pass

    return Article


def abstract_base(reg: registry) -> Any:
    class Base(DeclarativeBase):
        registry = reg
        __versioned__: dict[str, Any] = {}

    class Numbered(Base):
        __abstract__ = True
        id: Mapped[int] = mapped_column(primary_key=True)

    class Article(Numbered):
        __tablename__ = "article"
        name: Mapped[str | None] = mapped_column(sa.String(50))

    return Article


def annotated(reg: registry) -> Any:
    key = Annotated[int, mapped_column(primary_key=True)]
    short = Annotated[str, 50]

    class Base(DeclarativeBase):
        registry = reg

    # the names are local, which deferred annotations cannot see
    namespace: dict[str, Any] = {
        "__tablename__": "article",
        "__versioned__": {},
        "__annotations__": {"id": Mapped[key], "name": Mapped[short]},  # type: ignore[valid-type]
        "__module__": __name__,
    }
    reg.update_type_annotation_map({short: sa.String(50)})
    return type("Article", (Base,), namespace)


def sql_model(reg: registry, *mixins: type[Any]) -> Any:
    sqlmodel = pytest.importorskip("sqlmodel")

    class Base(sqlmodel.SQLModel, registry=reg):  # type: ignore[misc, name-defined, call-arg]
        pass

    namespace: dict[str, Any] = {
        "__tablename__": "article",
        "__versioned__": {},
        "__annotations__": {"id": int | None, "name": str},
        "__module__": __name__,
        "__qualname__": "Article",
        "id": sqlmodel.Field(default=None, primary_key=True),
    }
    return type(Base)("Article", (Base, *mixins), namespace, table=True)


def versioned_mixin(reg: registry) -> Any:
    class Base(DeclarativeBase):
        registry = reg

    class Article(Versioned["ArticleVersion"], Base):  # type: ignore[name-defined]
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))

    return Article


def versioned_base(reg: registry) -> Any:
    class Base(Versioned, DeclarativeBase):
        registry = reg

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(50))

    return Article


def versioned_mixin_of_dataclass(reg: registry) -> Any:
    class Base(MappedAsDataclass, DeclarativeBase):
        registry = reg

    class Article(Versioned, Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        name: Mapped[str] = mapped_column(sa.String(50))

    return Article


def versioned_mixin_of_sql_model(reg: registry) -> Any:
    return sql_model(reg, Versioned)


STYLES = [
    declarative,
    declarative_without_metaclass,
    declarative_with_table,
    async_attrs,
    automap,
    old_declarative_base,
    decorated,
    imperative,
    imperative_dataclass,
    dataclass_base,
    dataclass_class,
    dataclass_decorated,
    base_with_init,
    base_with_init_subclass,
    base_with_required_argument,
    base_with_metaclass,
    mixins,
    abstract_base,
    annotated,
    sql_model,
    versioned_mixin,
    versioned_base,
    versioned_mixin_of_dataclass,
    versioned_mixin_of_sql_model,
]


@pytest.fixture
def new_registry() -> Iterator[registry]:
    """A registry that is disposed of at the end."""
    reg = registry()
    yield reg
    reg.dispose(cascade=True)


class TestStyles:
    @pytest.fixture
    def backend(self) -> str:
        return "sqlite"

    @pytest.fixture
    def strategy(self) -> str:
        return "validity"

    @pytest.mark.parametrize("style", STYLES, ids=lambda style: style.__name__)
    def test_history(
        self,
        versioning: Any,
        new_registry: registry,
        engine: sa.Engine,
        style: Callable[[registry], Any],
    ) -> None:
        """A class mapped in any style is recorded, read and reverted."""
        Article = style(new_registry)
        metadata = Article.__table__.metadata
        metadata.create_all(engine)
        assert "article_version" in metadata.tables
        with Session(engine) as session:
            article = Article(name="a")
            session.add(article)
            session.commit()
            article.name = "b"
            session.commit()
            one, two = article.versions
            assert names([one, two]) == ["a", "b"]
            assert two.changeset == {"name": ["a", "b"]}
            assert repr(two) == "ArticleVersion(id=1, transaction_id=2, operation_type=1)"
            assert (two.previous, one.next, two.index) == (one, two, 1)
            assert two.version_parent is article
            assert parent_class(type(two)) is Article
            one.revert()
            session.commit()
            assert article.name == "a"
            session.delete(article)
            session.commit()
            one.revert()
            session.commit()
            assert session.get(Article, 1).name == "a"
            where = Article.versions.any(version_class(Article).name == "b")
            assert session.scalars(sa.select(Article.id).where(where)).all() == [1]

    def test_methods_of_the_base(self, versioning: Any, make_base: Any) -> None:
        """A version class inherits from the declarative base, whose methods it has."""
        base = make_base(shout=lambda self: self.name.upper())

        class Article(base):  # type: ignore[misc, valid-type]
            __tablename__ = "article"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column()

        cls = version_class(Article)
        assert issubclass(cls, base)
        assert cls(name="a").shout() == "A"

    def test_base_classes(self, versioning: Any, Base: Any) -> None:
        """`base_classes` are the bases of the version class instead."""

        class Mine:
            def __repr__(self) -> str:
                return "mine"

        class Article(Base):
            __tablename__ = "article"
            __versioned__: dict[str, Any] = {"base_classes": (Mine,)}
            id: Mapped[int] = mapped_column(primary_key=True)

        cls = version_class(Article)
        assert issubclass(cls, Mine)
        assert not issubclass(cls, Base)

    def test_names_of_the_class(self, versioning: Any, Base: Any) -> None:
        """The version class is called after its model and lives in the same module."""

        class Article(Base):
            __tablename__ = "article"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)

        cls = version_class(Article)
        assert cls.__name__ == "ArticleVersion"
        assert cls.__module__ == __name__
        assert cls.__qualname__ == Article.__qualname__ + "Version"
        assert cls.__table__ is version_table(Article.__table__)  # type: ignore[attr-defined]


class TestWhenMapped:
    """Version classes are mapped when history is first asked for."""

    @pytest.fixture
    def backend(self) -> str:
        return "sqlite"

    @pytest.fixture
    def strategy(self) -> str:
        return "validity"

    @pytest.fixture
    def Article(self, versioning: Any, Base: Any) -> Any:  # noqa: N802
        class Article(Base):
            __tablename__ = "article"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(50))
            tags: Mapped[list[Any]] = relationship("Tag")

        class Tag(Base):
            __tablename__ = "tag"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            article_id: Mapped[int] = mapped_column(sa.ForeignKey("article.id"))

        Base.metadata.info["classes"] = [Tag]
        return Article

    def test_writing_maps_none(self, Article: Any, open_session: Any, Base: Any) -> None:
        """A process that only writes has no version class."""
        session = open_session()
        session.add(Article(name="a"))
        session.commit()
        mapped = {mapper.class_.__name__ for mapper in Base.registry.mappers}
        assert mapped == {"Article", "Tag", "Transaction"}

    @pytest.mark.parametrize(
        "ask",
        [
            lambda cls: version_class(cls),
            lambda cls: cls.versions,
            lambda cls: cls(id=1).versions,
            lambda cls: get_versioning_manager(cls).version_class_map,
            lambda cls: orm.aliased(cls).versions,
        ],
        ids=["version_class", "class.versions", "object.versions", "map", "alias.versions"],
    )
    def test_who_asks(self, Article: Any, ask: Any, Base: Any) -> None:
        """Whoever asks finds version classes mapped, with their relationships."""
        orm.configure_mappers()
        ask(Article)
        mapped = {mapper.class_.__name__ for mapper in Base.registry.mappers}
        assert mapped == {"Article", "Tag", "Transaction", "ArticleVersion", "TagVersion"}
        assert "tags" in sa.inspect(version_class(Article)).relationships

    def test_the_mapping_of_the_model_is_untouched(self, Article: Any, Base: Any) -> None:
        """`versions` is no attribute of the model's mapping, before and after it was used."""
        for _ in range(2):
            assert sa.inspect(Article).attrs.keys() == ["tags", "id", "name"]
            Article.versions

    def test_a_relationship_by_name(self, Article: Any, Base: Any, open_session: Any) -> None:
        """A relationship of the user's may name a version class."""

        class Report(Base):
            __tablename__ = "report"
            id: Mapped[int] = mapped_column(primary_key=True)
            article_id: Mapped[int] = mapped_column()
            version: Mapped[Any] = relationship(
                "ArticleVersion",
                primaryjoin="foreign(Report.article_id) == ArticleVersion.id",
                viewonly=True,
            )

        with open_session() as session:
            session.add_all([Article(id=1, name="a"), Report(id=1, article_id=1)])
            session.commit()
            assert session.get(Report, 1).version.name == "a"

    def test_a_relationship_by_function(self, Article: Any, Base: Any, open_session: Any) -> None:
        """Or ask for it while mappers configure."""

        class Report(Base):
            __tablename__ = "report"
            id: Mapped[int] = mapped_column(primary_key=True)
            article_id: Mapped[int] = mapped_column()
            version: Mapped[Any] = relationship(
                lambda: version_class(Article),
                primaryjoin=lambda: orm.foreign(Report.article_id) == version_class(Article).id,
                viewonly=True,
            )

        with open_session() as session:
            session.add_all([Article(id=1, name="a"), Report(id=1, article_id=1)])
            session.commit()
            assert session.get(Report, 1).version.name == "a"
            assert session.get(Report, 1).version.tags == []

    def test_threads(self, Article: Any, open_session: Any) -> None:
        """Threads that ask at once get one class, complete."""
        import threading

        open_session()
        found: list[Any] = []
        start = threading.Barrier(8)

        def ask() -> None:
            start.wait()
            cls = version_class(Article)
            found.append((cls, "tags" in cls.__mapper__._props))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [(version_class(Article), True)] * 8


class TestVersions:
    """`article.versions` and `Article.versions`."""

    @pytest.fixture
    def backend(self) -> str:
        return "sqlite"

    @pytest.fixture
    def Article(self, versioning: Any, Base: Any) -> Any:  # noqa: N802
        class Article(Base):
            __tablename__ = "article"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(50))

        return Article

    def test_a_query(self, Article: Any, open_session: Any) -> None:
        """It indexes, slices, iterates, counts, filters and orders."""
        session = open_session()
        article = Article(id=1, name="a")
        session.add_all([article, Article(id=2, name="z")])
        session.commit()
        for name in "bcd":
            article.name = name
            session.commit()
        versions = article.versions
        assert names(versions) == names(versions.all()) == ["a", "b", "c", "d"]
        assert (versions[0].name, versions[-1].name) == ("a", "d")
        assert names(versions[1:3]) == ["b", "c"]
        assert versions.count() == 4
        assert versions.filter_by(name="c").one().index == 2
        assert names(versions.order_by(None).order_by(sa.desc("transaction_id"))) == list("dcba")
        assert names(session.scalars(versions.select())) == list("abcd")
        assert names(
            session.scalars(versions.select().where(version_class(Article).name > "b"))
        ) == [
            "c",
            "d",
        ]

    def test_pending_object_is_flushed(self, Article: Any, open_session: Any) -> None:
        """Asked of a pending object, the flush comes first, as with any query."""
        session = open_session()
        article = Article(name="a")
        session.add(article)
        assert names(article.versions) == ["a"]

    def test_object_without_session(self, Article: Any, open_session: Any) -> None:
        """A new object has no history; of a detached one it cannot be told."""
        session = open_session()
        new = Article(name="a")
        assert (new.versions.all(), new.versions.count()) == ([], 0)
        session.add(new)
        session.commit()
        session.close()
        with pytest.raises(orm.exc.DetachedInstanceError, match=r"key \(1,\) is in no session"):
            new.versions.all()
        assert names(session.scalars(new.versions.select())) == ["a"]

    def test_expired_object(
        self, Article: Any, open_session: Any, engine: Any, statements: Any
    ) -> None:
        """Asking an expired object for its history does not load it."""
        session = open_session()
        article = Article(name="a")
        session.add(article)
        session.commit()
        article.versions.all()
        session.commit()
        with statements(engine) as log:
            assert len(article.versions.all()) == 1
        assert len(log) == 1

    def test_in_statements(self, Article: Any, open_session: Any) -> None:
        """The class attribute joins and filters like a relationship, of aliases too."""
        session = open_session()
        session.add_all([Article(id=1, name="a"), Article(id=2, name="z")])
        session.commit()
        session.get(Article, 1).name = "b"
        session.commit()
        Version = version_class(Article)
        alias, other = orm.aliased(Article), orm.aliased(Version)
        ask = session.execute
        assert ask(
            sa.select(Article.id, Version.name).join(Article.versions).order_by(Version.name)
        ).all() == [(1, "a"), (1, "b"), (2, "z")]
        assert ask(
            sa.select(alias.id, other.name)
            .join(alias.versions.of_type(other))
            .where(other.operation_type == 1)
        ).all() == [(1, "b")]
        assert ask(sa.select(Article.id).where(Article.versions.any(name="a"))).all() == [(1,)]
        assert ask(sa.select(Article.id).where(~Article.versions.any(operation_type=1))).all() == [
            (2,)
        ]

    def test_not_assignable(self, Article: Any) -> None:
        """It cannot be assigned; the error says what to do."""
        with pytest.raises(AttributeError, match=r"Article\.versions .* revert\(\)"):
            Article(id=1).versions = []

    @pytest.mark.options(support_async=True)
    def test_write_only(self, Article: Any, open_session: Any) -> None:
        """With support_async it is a statement only, which no lazy load can happen to."""
        session = open_session()
        article = Article(name="a")
        session.add(article)
        session.commit()
        assert names(session.scalars(article.versions.select())) == ["a"]
        assert not hasattr(article.versions, "__iter__")


class TestInheritance:
    """Single, joined and concrete, several levels, and who of a hierarchy is versioned."""

    @staticmethod
    def hierarchy(Base: Any, kind: str, versioned: tuple[bool, bool, bool, bool]) -> Any:
        """Item <- Article <- Review, and Item <- Note."""

        def flag(i: int) -> dict[str, Any]:
            return {"__versioned__": {} if versioned[i] else {"versioning": False}}

        def local(name: str, parent: str) -> dict[str, Any]:
            found: dict[str, Any] = {"__mapper_args__": {"polymorphic_identity": name}}
            if kind == "joined":
                found |= {
                    "__tablename__": name,
                    "id": mapped_column(sa.ForeignKey(f"{parent}.id"), primary_key=True),
                }
            return found

        column = mapped_column
        Item = type(
            "Item",
            (Base,),
            {
                "__tablename__": "item",
                "id": column(sa.Integer, primary_key=True),
                "kind": column(sa.String(20)),
                "name": column(sa.String(20)),
                "__mapper_args__": {"polymorphic_on": "kind", "polymorphic_identity": "item"},
                **flag(0),
            },
        )
        Article = type(
            "Article",
            (Item,),
            {"text": column(sa.String(20)), **local("article", "item"), **flag(1)},
        )
        Review = type(
            "Review",
            (Article,),
            {"stars": column(sa.Integer), **local("review", "article"), **flag(2)},
        )
        Note = type(
            "Note", (Item,), {"color": column(sa.String(20)), **local("note", "item"), **flag(3)}
        )
        return Item, Article, Review, Note

    @pytest.mark.backends("sqlite")
    @pytest.mark.parametrize("kind", ["single", "joined"])
    @pytest.mark.parametrize(
        "versioned",
        [
            (True, True, True, True),
            (True, True, True, False),
            (True, False, True, True),
            (False, True, True, False),
            (False, False, True, True),
            (False, False, False, True),
        ],
        ids=str,
    )
    def test_who_is_versioned(
        self,
        versioning: Any,
        Base: Any,
        open_session: Any,
        kind: str,
        versioned: tuple[bool, bool, bool, bool],
    ) -> None:
        """Of a hierarchy any part may be versioned; versions have the inherited columns."""
        classes = self.hierarchy(Base, kind, versioned)
        Item, Article, Review, Note = classes
        session = open_session()
        objects = [
            Item(id=1, name="i"),
            Article(id=2, name="a", text="t"),
            Review(id=3, name="r", text="t", stars=1),
            Note(id=4, name="n", color="red"),
        ]
        session.add_all(objects)
        session.commit()
        for obj in objects:
            obj.name += "2"
        objects[2].stars = 5
        session.commit()
        for cls, obj, is_recorded in zip(classes, objects, versioned, strict=True):
            assert is_versioned(cls) is is_recorded
            if not is_recorded:
                with pytest.raises(ClassNotVersioned):
                    version_class(cls)
                continue
            one, two = obj.versions
            assert type(one) is type(two) is version_class(cls)
            assert [one.name + "2", two.kind] == [obj.name, obj.kind]
            assert two.changeset["name"] == [one.name, obj.name]
            assert [two.previous, one.next, two.index] == [one, two, 1]
            for key in sa.inspect(cls).column_attrs.keys():
                assert getattr(two, key) == getattr(obj, key)
            below = [
                o
                for c, o, v in zip(classes, objects, versioned, strict=True)
                if v and issubclass(c, cls)
            ]
            found = session.scalars(
                sa.select(version_class(cls)).where(version_class(cls).operation_type == 1)
            )
            assert sorted(v.id for v in found) == [o.id for o in below]
        recorded = sum(versioned)
        last = session.scalars(
            sa.select(versioning.transaction_cls).order_by(versioning.transaction_cls.id.desc())
        ).first()
        assert sum(map(len, last.changed_entities.values())) == recorded

    @pytest.mark.parametrize("kind", ["single", "joined"])
    def test_polymorphic_reading(
        self, versioning: Any, Base: Any, open_session: Any, kind: str
    ) -> None:
        """A query for versions of the base gives each version in its own class; reverts work."""
        Item, Article, Review, Note = self.hierarchy(Base, kind, (True,) * 4)
        session = open_session()
        session.add_all([Item(id=1, name="i"), Review(id=2, name="r", stars=1)])
        session.commit()
        session.get(Review, 2).stars = 2
        session.commit()
        versions = session.scalars(
            sa.select(version_class(Item)).order_by("id", "transaction_id")
        ).all()
        assert [type(v) for v in versions] == [version_class(c) for c in (Item, Review, Review)]
        assert issubclass(version_class(Review), version_class(Article))
        session.delete(session.get(Review, 2))
        session.commit()
        versions[1].revert()
        session.commit()
        review = session.get(Item, 2)
        assert (type(review), review.stars, review.name) == (Review, 1, "r")

    def test_joined_version_tables(self, versioning: Any, Base: Any, strategy: str) -> None:
        """Every table of a joined hierarchy has the columns of a version table."""
        Item, Article, Review, _ = self.hierarchy(Base, "joined", (True,) * 4)
        orm.configure_mappers()
        own = ["transaction_id", "end_transaction_id", "operation_type"]
        if strategy == "subquery":
            own.remove("end_transaction_id")
        for cls in (Item, Article, Review):
            table = cls.__table__
            assert version_table(table).c.keys() == [*table.c.keys(), *own]
            assert [c.name for c in version_table(table).primary_key] == ["id", "transaction_id"]

    def test_joined_with_a_key_of_another_name(
        self, versioning: Any, Base: Any, open_session: Any
    ) -> None:
        """The key of a joined table may have another name, and a composite one another order."""

        class Item(Base):
            __tablename__ = "item"
            __versioned__: dict[str, Any] = {}
            a: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
            b: Mapped[int] = mapped_column(primary_key=True)
            kind: Mapped[str] = mapped_column(sa.String(9))
            __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}

        class Article(Item):
            __tablename__ = "article"
            item_b: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
            item_a: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            __table_args__ = (sa.ForeignKeyConstraint([item_a, item_b], [Item.a, Item.b]),)
            __mapper_args__ = {"polymorphic_identity": "article"}

        session = open_session()
        article = Article(a=1, b=2, name="x")
        session.add_all([article, Article(a=2, b=1, name="y")])
        session.commit()
        article.name = "z"
        session.commit()
        assert names(article.versions) == ["x", "z"]
        assert [(v.item_a, v.item_b) for v in article.versions] == [(1, 2)] * 2

    def test_concrete(self, versioning: Any, Base: Any, open_session: Any) -> None:
        """Classes of a concrete hierarchy have version tables of their own."""

        class Item(Base):
            __tablename__ = "item"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))

        class Article(Item):
            __tablename__ = "article"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            text: Mapped[str] = mapped_column(sa.String(9))
            __mapper_args__ = {"concrete": True}

        session = open_session()
        item, article = Item(id=1, name="i"), Article(id=1, name="a", text="t")
        session.add_all([item, article])
        session.commit()
        article.text = "u"
        session.commit()
        assert names(item.versions) == ["i"]
        assert [(v.name, v.text) for v in article.versions] == [("a", "t"), ("a", "u")]
        assert not issubclass(version_class(Article), version_class(Item))

    def test_concrete_base(self, versioning: Any, make_base: Any, engine: sa.Engine) -> None:
        """So do those under ConcreteBase, which adds a union for reading."""
        base = make_base()

        class Item(ConcreteBase, base):  # type: ignore[misc, valid-type]
            __tablename__ = "item"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            __mapper_args__ = {"polymorphic_identity": "item", "concrete": True}

        class Article(Item):
            __tablename__ = "article"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            __mapper_args__ = {"polymorphic_identity": "article", "concrete": True}

        base.metadata.create_all(engine)
        with Session(engine) as session:
            session.add_all([Item(id=1, name="i"), Article(id=1, name="a")])
            session.commit()
            session.get(Article, 1).name = "b"
            session.commit()
            assert names(session.get(Article, 1).versions) == ["a", "b"]
            assert names(session.scalars(sa.select(version_class(Item)))) == ["i"]
        # SQLAlchemy 2.0 calls it whenever mappers configure, also when the class is gone
        Item.__declare_first__ = classmethod(lambda cls: None)

    def test_polymorphic_on_an_expression(
        self, versioning: Any, Base: Any, open_session: Any
    ) -> None:
        """polymorphic_on may be an expression; version classes have it about version columns."""

        class Item(Base):
            __tablename__ = "item"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            stars: Mapped[int | None] = mapped_column()
            __mapper_args__ = {
                "polymorphic_on": sa.case((sa.column("stars") > 0, "review"), else_="item"),
                "polymorphic_identity": "item",
            }

        class Review(Item):
            __mapper_args__ = {"polymorphic_identity": "review"}

        session = open_session()
        session.add_all([Item(id=1, name="i"), Review(id=2, name="r", stars=3)])
        session.commit()
        versions = session.scalars(sa.select(version_class(Item)).order_by("id")).all()
        assert [type(v) for v in versions] == [version_class(Item), version_class(Review)]

    def test_polymorphic_on_an_expression_of_columns(
        self, versioning: Any, Base: Any, open_session: Any
    ) -> None:
        """The same with real columns, as a column_property."""

        class Item(Base):
            __tablename__ = "item"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            stars: Mapped[int | None] = mapped_column()
            kind = orm.column_property(sa.case((stars > 0, "review"), else_="item"))
            __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "item"}

        class Review(Item):
            __mapper_args__ = {"polymorphic_identity": "review"}

        session = open_session()
        session.add_all([Item(id=1, name="i"), Review(id=2, name="r", stars=3)])
        session.commit()
        versions = session.scalars(sa.select(version_class(Item)).order_by("id")).all()
        assert [type(v) for v in versions] == [version_class(Item), version_class(Review)]
        assert [v.kind for v in versions] == ["item", "review"]
        # a row that changes its class: the version knows what it was
        session.get(Item, 2).stars = 0
        session.commit()
        session.expire_all()
        kinds = session.scalars(
            sa.select(version_class(Item).kind).where(version_class(Item).id == 2)
        ).all()
        assert sorted(kinds) == ["item", "review"]


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Color(enum.Enum):
    red = 1
    blue = 2


class TestAttributes:
    """What a version class has of its model's attributes."""

    def test_kinds_of_attributes(self, versioning: Any, Base: Any, open_session: Any) -> None:
        """Synonyms, hybrids, composites, column properties and deferred columns are mirrored."""

        class Article(Base):
            __tablename__ = "article"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            first: Mapped[str] = mapped_column("first_name", sa.String(20))
            last: Mapped[str] = mapped_column(sa.String(20), deferred=True)
            x: Mapped[int] = mapped_column()
            y: Mapped[int] = mapped_column()
            title = synonym("first")
            place: Mapped[Point] = orm.composite(Point, "x", "y")
            full = orm.column_property(first + " " + last)

            @hybrid_property
            def initial(self) -> Any:
                return self.first + "."

            @hybrid_property
            def area(self) -> int:
                return self.x * self.y

            @area.inplace.expression
            @classmethod
            def _area(cls) -> Any:
                return cls.x * cls.y

            @hybrid_method
            def is_beyond(self, x: int) -> Any:
                return self.x > x

        session = open_session()
        article = Article(first="A", last="B", x=1, y=2)
        session.add(article)
        session.commit()
        article.place = Point(3, 4)
        article.title = "C"
        session.commit()
        one, two = article.versions
        assert [(v.title, v.initial, v.full, v.place) for v in (one, two)] == [
            ("A", "A.", "A B", Point(1, 2)),
            ("C", "C.", "C B", Point(3, 4)),
        ]
        assert (one.area, two.area, two.is_beyond(2)) == (2, 12, True)
        assert set(two.changeset) == {"first", "x", "y"}
        Version = version_class(Article)
        for criterion in (
            Version.title == "C",
            Version.area == 12,
            Version.full == "C B",
            Version.place == Point(3, 4),
            Version.is_beyond(2),
        ):
            assert session.scalars(sa.select(Version).where(criterion)).all() == [two]
        assert [p.key for p in versioned_column_properties(Article)] == [
            "id",
            "first",
            "last",
            "x",
            "y",
        ]
        one.revert()
        assert (article.place, article.title) == (Point(1, 2), "A")

    def test_correlated_column_property(
        self, versioning: Any, Base: Any, open_session: Any
    ) -> None:
        """A column property may be a correlated subquery: about versions where there are any."""

        class Tag(Base):
            __tablename__ = "tag"
            id: Mapped[int] = mapped_column(primary_key=True)
            article_id: Mapped[int] = mapped_column(sa.ForeignKey("article.id"))

        class Article(Base):
            __tablename__ = "article"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(20))

        Article.tag_count = orm.column_property(
            sa.select(sa.func.count(Tag.id))
            .where(Tag.article_id == Article.id)
            .correlate_except(Tag)
            .scalar_subquery()
        )
        session = open_session()
        article = Article(id=1, name="a")
        session.add_all([article, Article(id=2, name="b")])
        session.flush()
        session.add_all([Tag(article_id=1), Tag(article_id=1)])
        session.commit()
        article.name = "c"
        session.commit()
        assert [(v.name, v.tag_count) for v in article.versions] == [("a", 2), ("c", 2)]
        assert session.get(Article, 2).versions[0].tag_count == 0

    def test_names_that_collections_have(
        self, versioning: Any, Base: Any, open_session: Any
    ) -> None:
        """Columns may be called values, keys, items, get, c, metadata_ or registry_."""
        odd = ["values", "keys", "items", "get", "c", "count", "columns", "key", "select"]
        namespace: dict[str, Any] = {name: mapped_column(sa.String(9)) for name in odd}
        namespace["metadata_"] = mapped_column("metadata", sa.String(9))
        Article = type(
            "Article",
            (Base,),
            {
                "__tablename__": "article",
                "__versioned__": {},
                "id": mapped_column(sa.Integer, primary_key=True),
                **namespace,
            },
        )
        session = open_session()
        article: Any = Article(**dict.fromkeys(namespace, "a"))
        session.add(article)
        session.commit()
        for name in namespace:
            setattr(article, name, "b")
        session.commit()
        one, two = article.versions
        assert one.values == "a"
        assert two.changeset == {name: ["a", "b"] for name in namespace}
        one.revert()
        session.commit()
        assert {getattr(article, name) for name in namespace} == {"a"}

    def test_column_keys(self, versioning: Any, make_base: Any, engine: sa.Engine) -> None:
        """A column's key may differ from its name, and the attribute from both."""
        base = make_base()
        table = sa.Table(
            "article",
            base.metadata,
            sa.Column("article_id", sa.Integer, key="ident", primary_key=True),
            sa.Column("article_name", sa.String(9), key="label"),
        )
        Article: Any = type(
            "Article",
            (base,),
            {"__table__": table, "__versioned__": {}, "id": table.c.ident, "name": table.c.label},
        )
        base.metadata.create_all(engine)
        assert [c.name for c in version_table(table).c][:2] == ["article_id", "article_name"]
        with Session(engine) as session:
            article = Article(id=1, name="a")
            session.add(article)
            session.commit()
            article.name = "b"
            session.commit()
            assert names(article.versions) == ["a", "b"]
            session.delete(article)
            session.commit()
            assert session.scalars(sa.select(version_class(Article).id)).all() == [1, 1, 1]

    def test_one_column_two_attributes(self, versioning: Any, Base: Any, open_session: Any) -> None:
        """An excluded attribute is neither in the version table nor on the version class."""

        class Article(Base):
            __tablename__ = "article"
            __versioned__: dict[str, Any] = {"exclude": ["secret"]}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            secret: Mapped[str] = mapped_column(sa.String(9))

        session = open_session()
        article = Article(name="a", secret="x")
        session.add(article)
        session.commit()
        article.secret = "y"
        session.commit()
        assert article.versions.count() == 1
        assert not hasattr(article.versions[0], "secret")
        assert "secret" not in version_table(Article.__table__).c


@pytest.mark.backends("mariadb")
def test_a_key_in_other_letters(versioning, Base, open_session) -> None:
    """Where "a" and "A" are equal, it is the same row, which goes on with the new spelling."""

    class Code(Base):
        __tablename__ = "code"
        __versioned__ = {}
        id = mapped_column(sa.String(20), primary_key=True)

    session = open_session()
    session.add(Code(id="a"))
    session.commit()
    session.get_one(Code, "a").id = "A"
    session.commit()
    version = version_class(Code)
    found = session.scalars(sa.select(version).order_by(version.transaction_id)).all()
    assert [(one.id, one.operation_type) for one in found] == [("a", 0), ("A", 0)]
