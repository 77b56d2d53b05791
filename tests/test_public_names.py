"""The names that users import: those of the peers, where the peers have them, and our own."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.ext.associationproxy import association_proxy
from sqlalchemy.orm import Mapped, mapped_column, relationship

import sqlalchemy_history
from sqlalchemy_history import (
    ClassNotVersioned,
    TableNotVersioned,
    changeset,
    count_versions,
    end_tx_attr,
    end_tx_column_name,
    get_association_proxies,
    get_versioning_manager,
    is_modified,
    is_modified_or_deleted,
    is_session_modified,
    is_versioned,
    option,
    parent_class,
    parent_table,
    transaction_class,
    tx_column_name,
    version_class,
    version_obj,
    version_table,
    versioned_column_properties,
    versioned_objects,
)

PEERS = {
    "sqlalchemy_history": """
        make_versioned remove_versioning versioning_manager VersioningManager UnitOfWork Operation
        TransactionFactory ClassNotVersioned TableNotVersioned ImproperlyConfigured VersioningError
        NoChangesAttribute
    """,
    "sqlalchemy_history.utils": """
        version_class parent_class transaction_class version_table parent_table
        get_versioning_manager is_versioned is_modified is_modified_or_deleted is_session_modified
        versioned_objects versioned_column_properties changeset count_versions vacuum tx_column_name
        end_tx_column_name end_tx_attr option version_obj get_association_proxies
    """,
    "sqlalchemy_history.schema": "update_end_tx_column update_property_mod_flags",
    "sqlalchemy_history.reverter": "Reverter ReverterException",
    "sqlalchemy_history.operation": "Operation",
    "sqlalchemy_history.transaction": "TransactionFactory TransactionBase",
    "sqlalchemy_history.plugins": """
        Plugin PluginCollection TransactionMetaPlugin TransactionChangesPlugin
        PropertyModTrackerPlugin NullDeletePlugin ActivityPlugin ChangeLogPlugin
    """,
    "sqlalchemy_history.exc": """
        VersioningError ClassNotVersioned TableNotVersioned ImproperlyConfigured NoChangesAttribute
    """,
}


@pytest.mark.parametrize("module", PEERS)
def test_the_import_paths_of_the_peers(module: str) -> None:
    """A program written for a peer finds what it imports."""
    found = importlib.import_module(module)
    assert [name for name in PEERS[module].split() if not hasattr(found, name)] == []


def test_functions_are_importable_from_both_places() -> None:
    """Each function of `utils` is the one that the package exports."""
    utils = importlib.import_module("sqlalchemy_history.utils")
    for name in PEERS["sqlalchemy_history.utils"].split():
        assert getattr(sqlalchemy_history, name) is getattr(utils, name)
        assert name in sqlalchemy_history.__all__


@pytest.mark.parametrize("name", sqlalchemy_history.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    """What `__all__` names has a docstring of its own, from which the reference is made."""
    found = getattr(sqlalchemy_history, name)
    if inspect.isclass(found) or callable(found):
        assert inspect.getdoc(found)
        assert "__doc__" not in vars(found) or found.__doc__ is not None


def test_the_reference_has_each_public_name() -> None:
    """What `__all__` names is in the reference, once."""
    page = Path(__file__).parent.parent / "docs" / "reference.rst"
    directives = re.findall(
        r"^\.\. (?!currentmodule)\w+:: (\w+)(?:\(\))?$", page.read_text(), re.MULTILINE
    )
    assert sorted(directives) == sorted(sqlalchemy_history.__all__)


def test_operations_are_numbers() -> None:
    """Operation.INSERT, UPDATE and DELETE are 0, 1 and 2."""
    operation = sqlalchemy_history.Operation
    assert (operation.INSERT, operation.UPDATE, operation.DELETE) == (0, 1, 2)


def test_one_tree_of_errors() -> None:
    """Every error of ours is a VersioningError; a warning is a warning."""
    module = importlib.import_module("sqlalchemy_history.exc")
    errors = [v for v in vars(module).values() if inspect.isclass(v) and issubclass(v, Exception)]
    assert all(issubclass(error, (module.VersioningError, Warning)) for error in errors)


@pytest.fixture
def backend() -> str:
    return "sqlite"


@pytest.fixture
def strategy() -> str:
    return "validity"


@pytest.fixture
def Article(versioning: Any, Base: Any) -> Any:  # noqa: N802
    class Plain(Base):
        __tablename__ = "plain"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Comment(Base):
        __tablename__ = "comment"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str] = mapped_column(sa.String(20))
        article_id: Mapped[int] = mapped_column(sa.ForeignKey("article.id"))

    class Article(Base):
        __tablename__ = "article"
        __versioned__: dict[str, Any] = {"exclude": ["secret"]}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(20))
        size: Mapped[int | None] = mapped_column()
        secret: Mapped[str | None] = mapped_column(sa.String(20))
        comments: Mapped[list[Comment]] = relationship(Comment)
        texts = association_proxy("comments", "text")
        plain = Plain
        comment = Comment

    return Article


class TestClasses:
    def test_what_a_function_may_be_asked_about(self, Article: Any) -> None:
        """A class, an object, an alias; mappers configure if they have not yet."""
        manager = sqlalchemy_history.versioning_manager
        for entity in (Article, Article(), orm.aliased(Article)):
            assert get_versioning_manager(entity) is manager
            assert is_versioned(entity)
            assert version_class(entity).__name__ == "ArticleVersion"
            assert transaction_class(entity) is manager.transaction_cls
            assert option(entity, "strategy") == "validity"
            assert tx_column_name(entity) == "transaction_id"
            assert end_tx_column_name(entity) == "end_transaction_id"
            assert [p.key for p in versioned_column_properties(entity)] == ["id", "name", "size"]
        assert get_versioning_manager(Article.__table__) is manager
        assert end_tx_attr(Article) is version_class(Article).end_transaction_id

    def test_there_and_back(self, Article: Any) -> None:
        """parent_class() is the inverse of version_class(), parent_table() of version_table()."""
        assert parent_class(version_class(Article)) is Article
        assert parent_table(version_table(Article.__table__)) is Article.__table__

    def test_tables_before_configure(self, Article: Any) -> None:
        """version_table() and get_versioning_manager() of a table configure mappers too."""
        assert version_table(Article.__table__).name == "article_version"

    def test_not_versioned(self, Article: Any) -> None:
        """Of a class or a table without history the error names it."""
        Plain = Article.plain
        assert not is_versioned(Plain)
        assert not is_versioned(version_class(Article))
        assert not is_versioned(object())
        for function in (
            version_class,
            transaction_class,
            get_versioning_manager,
            tx_column_name,
            versioned_column_properties,
            changeset,
        ):
            with pytest.raises(ClassNotVersioned, match="Plain"):
                function(Plain() if function is changeset else Plain)
        with pytest.raises(ClassNotVersioned, match="Plain is no version class"):
            parent_class(Plain)
        for thing in ("Article", 1, None):
            with pytest.raises(ClassNotVersioned, match="is no mapped class"):
                version_class(thing)
            with pytest.raises(ClassNotVersioned, match="is no version class"):
                parent_class(thing)
        for function in (version_table, parent_table):
            with pytest.raises(TableNotVersioned, match="is no table"):
                function(Article)
        for function in (version_table, parent_table, get_versioning_manager):
            with pytest.raises(TableNotVersioned, match="'plain'"):
                function(Plain.__table__)

    def test_association_proxies(self, Article: Any) -> None:
        """get_association_proxies() names the association proxies of a class."""
        assert get_association_proxies(Article) == ["texts"]


class TestObjects:
    def test_changeset(self, Article: Any, open_session: Any, engine: Any, statements: Any) -> None:
        """`{name: [old, new]}` of what is not flushed; falsy values stay; nothing is loaded."""
        session = open_session()
        article = Article(name="a", size=0)
        assert changeset(article) == {"name": [None, "a"], "size": [None, 0]}
        session.add(article)
        session.commit()
        assert (article.name, article.size) == ("a", 0)
        article.name, article.size, article.secret = "", None, "x"
        with statements(engine) as log:
            assert changeset(article) == {"name": ["a", ""], "size": [0, None]}
            assert is_modified(article)
        assert log == []
        session.commit()
        assert changeset(article) == {}
        session.expire(article)
        article.name = "b"
        with statements(engine) as log:
            assert changeset(article) == {"name": [None, "b"]}
        assert log == []

    def test_is_modified(self, Article: Any, open_session: Any) -> None:
        """Only a change of an attribute that has a history counts; back is no change."""
        session = open_session()
        article = Article(name="a")
        session.add(article)
        session.commit()
        assert article.name == "a"
        article.secret = "x"
        assert not is_modified(article)
        article.name = "b"
        assert is_modified(article)
        article.name = "a"
        assert not is_modified(article)
        session.delete(article)
        assert is_modified_or_deleted(article)

    def test_session(self, Article: Any, open_session: Any) -> None:
        """is_session_modified() and versioned_objects() look at versioned objects only."""
        session = open_session()
        plain, article = Article.plain(), Article(name="a")
        session.add(plain)
        assert not is_session_modified(session)
        session.add(article)
        assert is_session_modified(session)
        assert list(versioned_objects(session)) == [article]
        session.commit()
        assert not is_session_modified(session)
        session.delete(article)
        assert is_session_modified(session)

    def test_version_obj(self, Article: Any, open_session: Any) -> None:
        """version_obj() is the version that this transaction has made of an object, or None."""
        session = open_session()
        article, other = Article(name="a"), Article(name="o")
        session.add_all([article, other])
        session.commit()
        assert version_obj(session, article) is None
        article.name = "b"
        version = version_obj(session, article)
        assert (version.name, version.operation_type) == ("b", 1)
        assert version_obj(session, other) is None

    def test_count_versions(self, Article: Any, open_session: Any) -> None:
        """count_versions() counts the versions of one object."""
        session = open_session()
        article = Article(name="a")
        session.add_all([article, Article(name="o")])
        session.commit()
        article.name = "b"
        session.commit()
        assert count_versions(article) == 2
