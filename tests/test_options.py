"""Options: of the manager, of a class, and what is said of those that make no sense."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from sqlalchemy_history import (
    ClassNotVersioned,
    ImproperlyConfigured,
    Options,
    OptionsDict,
    VersioningManager,
    is_versioned,
    make_versioned,
    option,
    version_class,
    version_table,
    versioning_manager,
)


@pytest.fixture
def backend() -> str:
    """What options do to tables is the same on every database."""
    return "sqlite"


@pytest.fixture
def strategy() -> str:
    return "validity"


def declare(base: Any, versioned: Any, name: str = "Article", **columns: Any) -> Any:
    """A class with an id, a name and a text."""
    namespace = {
        "__tablename__": name.lower(),
        "__versioned__": versioned,
        "id": mapped_column(sa.Integer, primary_key=True),
        "name": mapped_column(sa.String(20)),
        "text": mapped_column(sa.String(20)),
        **columns,
    }
    cls = type(name, (base,), namespace)
    base.metadata.info.setdefault("classes", []).append(cls)
    return cls


def columns_of(cls: Any) -> list[str]:
    """The columns of the version table."""
    orm.configure_mappers()
    return list(version_table(cls.__table__).c.keys())


class TestLevels:
    @pytest.mark.options(table_name="%s_log", exclude=["text"])
    def test_the_class_wins(self, versioning: Any, Base: Any) -> None:
        """A class has the manager's options but for those that it sets itself."""
        Article = declare(Base, {})
        Tag = declare(Base, {"table_name": "%s_story", "exclude": []}, "Tag")
        assert columns_of(Article)[:3] == ["id", "name", "transaction_id"]
        assert columns_of(Tag)[:3] == ["id", "name", "text"]
        assert version_table(Article.__table__).name == "article_log"
        assert version_table(Tag.__table__).name == "tag_story"
        assert (option(Article, "table_name"), option(Tag(), "table_name")) == (
            "%s_log",
            "%s_story",
        )

    @pytest.mark.options(exclude=["text"])
    def test_include_wins(self, versioning: Any, Base: Any) -> None:
        """`include` wins over `exclude`, also over that of the manager."""
        assert "text" in columns_of(declare(Base, {"include": ["text"]}))
        assert "name" in columns_of(
            declare(Base, {"exclude": ["name", "text"], "include": ["name"]}, "Tag")
        )

    @pytest.mark.options(exclude=["only_some_have_it"])
    def test_names_of_the_manager_need_not_exist(self, versioning: Any, Base: Any) -> None:
        """What the manager excludes, not every class has."""
        assert "text" in columns_of(declare(Base, {}))

    @pytest.mark.options(versioning=False)
    def test_versioning_off(self, versioning: Any, Base: Any) -> None:
        """`versioning=False` of the manager leaves out what does not say True itself."""
        Article, Tag = declare(Base, {}), declare(Base, {"versioning": True}, "Tag")
        orm.configure_mappers()
        assert not is_versioned(Article)
        assert is_versioned(Tag)

    def test_versioning_off_for_a_class(self, versioning: Any, Base: Any) -> None:
        """`{"versioning": False}` leaves a class out."""
        Article = declare(Base, {"versioning": False})
        orm.configure_mappers()
        assert not is_versioned(Article)
        with pytest.raises(ClassNotVersioned, match="Article has no history"):
            version_class(Article)
        assert not hasattr(Article, "versions")


class TestAdvice:
    @pytest.mark.parametrize(
        ("versioned", "message"),
        [
            (
                {"excludes": ["text"]},
                r"Article\.__versioned__: unknown option 'excludes'; did you mean 'exclude'",
            ),
            ({"colour": 1}, r"unknown option 'colour'; there are: base_classes, baseline, create_"),
            ({"strategy": "validty"}, "strategy='validty'; it is one of 'validity', 'subquery'"),
            ({"indexes": "none"}, "indexes='none'; it is one of 'default', 'compatible'"),
            ({"exclude": "text"}, "exclude='text'; give a list"),
            ({"exclude": ["txt"]}, "Article.*'txt'.*did you mean 'text'"),
            ({"include": ["nmae"]}, "Article.*'nmae'.*did you mean 'name'"),
            ({"exclude": ["id"]}, r"article\.id is part of the primary key and cannot be excluded"),
            ({"table_name": "history"}, "table_name='history'; it is a pattern with one '%s'"),
            ({"table_name": "%s_%s"}, "pattern with one '%s'"),
        ],
    )
    def test_of_a_class(self, versioning: Any, Base: Any, versioned: Any, message: str) -> None:
        """What makes no sense fails at configure, names the class, and leaves nothing behind."""
        declare(Base, versioned)
        with pytest.raises(ImproperlyConfigured, match=message):
            orm.configure_mappers()
        assert sorted(Base.metadata.tables) == ["article"]

    def test_it_can_be_put_right(self, versioning: Any, Base: Any, open_session: Any) -> None:
        """After the error, the class can be put right and everything works."""
        Article = declare(Base, {"exclude": ["txt"]})
        with pytest.raises(ImproperlyConfigured):
            orm.configure_mappers()
        Article.__versioned__ = {"exclude": ["text"]}
        with open_session() as session:
            session.add(Article(id=1, name="a"))
            session.commit()
            assert session.get(Article, 1).versions.count() == 1

    @pytest.mark.parametrize(
        "give",
        [
            lambda options: make_versioned(options=options, user_cls=None),
            lambda options: VersioningManager(options=options),
            lambda options: setattr(versioning_manager, "options", options),
        ],
        ids=["make_versioned", "VersioningManager", "assigned"],
    )
    def test_of_the_manager(self, give: Any) -> None:
        """An unknown option of the manager is refused at once, and nothing is started."""
        with pytest.raises(ImproperlyConfigured, match="'stratgy'; did you mean 'strategy'"):
            give({"stratgy": "validity"})

    def test_unknown_option_asked_for(self, versioning: Any, Base: Any) -> None:
        """option() of an unknown name is an AttributeError."""
        with pytest.raises(AttributeError):
            option(declare(Base, {}), "stratgy")


class TestEffects:
    def test_column_names(self, versioning: Any, Base: Any, open_session: Any) -> None:
        """The own columns may have other names; attributes and reading follow."""
        Article = declare(
            Base,
            {
                "transaction_column_name": "tx",
                "end_transaction_column_name": "end_tx",
                "operation_type_column_name": "op",
            },
        )
        session = open_session()
        article = Article(id=1, name="a")
        session.add(article)
        session.commit()
        article.name = "b"
        session.commit()
        assert columns_of(Article)[3:] == ["tx", "end_tx", "op"]
        one, two = article.versions
        assert (one.op, two.op, one.end_tx, two.end_tx) == (0, 1, two.tx, None)
        assert (one.next, two.previous, two.changeset) == (two, one, {"name": ["a", "b"]})
        assert repr(one) == "ArticleVersion(id=1, tx=1, op=0)"
        assert two.transaction.changed_entities == {version_class(Article): [two]}

    def test_create_models(
        self, versioning: Any, Base: Any, open_session: Any, engine: sa.Engine
    ) -> None:
        """`create_models=False`: versions are recorded, and read by their table."""
        Article = declare(Base, {"create_models": False}, index=mapped_column(sa.Integer))
        session = open_session()
        article = Article(id=1, name="a", index=1)
        session.add(article)
        session.commit()
        article.name = "b"
        session.commit()
        table = version_table(Article.__table__)
        assert session.scalars(sa.select(table.c.name).order_by(table.c.transaction_id)).all() == [
            "a",
            "b",
        ]
        assert is_versioned(Article)
        assert not hasattr(Article, "versions")
        assert Article not in versioning.version_class_map
        with pytest.raises(ClassNotVersioned, match="Article has no version class"):
            version_class(Article)

    def test_create_tables(self, versioning: Any, Base: Any, engine: sa.Engine) -> None:
        """`create_tables=False`: create_all() leaves the version table to somebody else."""
        Article = declare(Base, {"create_tables": False})
        Base.metadata.create_all(engine)
        assert sorted(sa.inspect(engine).get_table_names()) == ["article", "transaction"]
        version_table(Article.__table__).create(engine)
        with Session(engine) as session:
            session.add(Article(id=1, name="a"))
            session.commit()
            assert session.get(Article, 1).versions.count() == 1
        Base.metadata.drop_all(engine)
        assert sa.inspect(engine).get_table_names() == ["article_version"]

    def test_create_tables_elsewhere(self, versioning: Any, Base: Any, engine: sa.Engine) -> None:
        """That table may be one of the same metadata, which is not taken for ours."""
        sa.Table("article_version", Base.metadata, sa.Column("id", sa.Integer))
        declare(Base, {"create_tables": False})
        orm.configure_mappers()
        assert list(Base.metadata.tables["article_version"].c.keys()) == ["id"]

    def test_exclude_a_relationship(self, versioning: Any, Base: Any, open_session: Any) -> None:
        """An excluded relationship is not on the version class, and its links have no history."""
        tags = sa.Table(
            "article_tag",
            Base.metadata,
            sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
            sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
        )
        Tag = declare(Base, {}, "Tag")
        Article = declare(Base, {"exclude": ["tags"]}, tags=relationship(Tag, secondary=tags))
        session = open_session()
        session.add(Article(id=1, name="a", tags=[Tag(id=1, name="t")]))
        session.commit()
        assert not hasattr(version_class(Article), "tags")
        assert "article_tag_version" not in Base.metadata.tables

    def test_accepted_from_the_peers(self, versioning: Any, Base: Any) -> None:
        """Options that mean nothing here are accepted, so that a change of the import is enough."""
        Article = declare(Base, {"use_module_name": False, "create_composite_index": True})
        assert version_class(Article).__name__ == "ArticleVersion"

    def test_strategies_side_by_side(self, versioning: Any, Base: Any, open_session: Any) -> None:
        """Classes of both strategies live together, relationships between them included."""

        class Author(Base):
            __tablename__ = "author"
            __versioned__: dict[str, Any] = {"strategy": "subquery"}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(20))
            articles: Mapped[list[Any]] = relationship("Article", backref="author")

        Article = declare(Base, {}, author_id=mapped_column(sa.ForeignKey("author.id")))
        session = open_session()
        author = Author(id=1, name="x", articles=[Article(id=1, name="a")])
        session.add(author)
        session.commit()
        author.name = "y"
        session.commit()
        author.articles[0].name = "b"
        session.commit()
        [one, two] = session.get(Article, 1).versions
        assert [one.author.name, two.author.name] == ["x", "y"]
        assert [[a.name for a in v.articles] for v in author.versions] == [["a"], ["a"]]  # type: ignore[attr-defined]


def test_every_option_is_documented_and_typed() -> None:
    """Options, OptionsDict and the docstring name the same options."""
    names = Options._fields
    assert set(OptionsDict.__annotations__) == set(names)
    for name in names:
        assert f":ivar {name}:" in (Options.__doc__ or "")


def test_options_are_frozen() -> None:
    """What set-up decided does not change."""
    with pytest.raises(AttributeError):
        Options().strategy = "subquery"  # type: ignore[misc]
