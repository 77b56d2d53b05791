"""``article.versions``, ``version_class()`` and what a version has."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session
from typing_extensions import assert_type

from sqlalchemy_history import (
    RevertReport,
    TimelineEntry,
    TransactionBase,
    timeline,
    version_class,
    version_obj,
)

from .models import Article, Note, Page, Tag

if TYPE_CHECKING:
    from .models import ArticleVersion, TagVersion


def version_class_of_a_model() -> None:
    """version_class() gives the class that the model tells, asked with a class or an object."""
    assert_type(version_class(Article), type[ArticleVersion])
    assert_type(version_class(Article(name="a")), type[ArticleVersion])
    assert_type(version_class(Tag), type[TagVersion])


def version_class_of_others(page: Page) -> None:
    """Of a model that does not tell, it may be anything, and is in no way."""
    version_class(Note).anything
    version_class(Page).anything
    assert_type(version_class(page), type[Any])


def versions_of_an_object(article: Article, tag: Tag) -> None:
    """The collection gives versions by index, slice and iteration, and as a query."""
    assert_type(article.versions[0], ArticleVersion)
    assert_type(article.versions[1:], list[ArticleVersion])
    assert_type(article.versions.all(), list[ArticleVersion])
    assert_type(article.versions.count(), int)
    assert_type(article.versions.filter_by(name="a").first(), ArticleVersion | None)
    assert_type(tag.versions[0], TagVersion)
    for version in article.versions:
        assert_type(version, ArticleVersion)


def versions_as_a_statement(session: Session, article: Article) -> None:
    """`select()` gives the statement that SQLAlchemy's `select()` would."""
    statement = article.versions.select().where(version_class(Article).name == "a")
    assert_type(session.scalars(statement).first(), ArticleVersion | None)
    assert_type(session.execute(statement).scalar_one(), ArticleVersion)


def versions_of_a_class(session: Session) -> None:
    """`Article.versions` is an attribute for statements."""
    assert_type(Article.versions.any(name="a"), ColumnElement[bool])
    assert_type(session.scalars(select(Article).join(Article.versions)).one(), Article)


def attributes_of_a_version(version: ArticleVersion) -> None:
    """A version has the attributes of its model, and its own."""
    assert_type(version.name, str)
    assert_type(version.draft, str | None)
    assert_type(version.tags, list[Tag])
    assert_type(version.transaction_id, int)
    assert_type(version.end_transaction_id, int | None)
    assert_type(version.operation_type, int)
    assert_type(version.index, int)
    assert_type(version.changeset, dict[str, list[Any]])
    assert_type(version.previous, ArticleVersion | None)
    assert_type(version.next, ArticleVersion | None)
    assert_type(version.revert(relations=["tags"]), RevertReport)
    version.nmae  # type: ignore[attr-defined]  # a version has no more than that


def transaction_of_a_version(version: ArticleVersion) -> None:
    """Its transaction is one, with what the factory gives it."""
    assert_type(version.transaction, TransactionBase)
    assert_type(version.transaction.id, int)
    assert_type(version.transaction.issued_at, dt.datetime)
    assert_type(version.transaction.remote_addr, str | None)


async def async_forms(version: ArticleVersion) -> None:
    """The awaitable forms give what the others do."""
    assert_type(await version.aprevious, ArticleVersion | None)
    assert_type(await version.aindex, int)
    assert_type(await version.arevert(), RevertReport)


def versions_by_key(session: Session) -> None:
    """So do the class methods."""
    cls = version_class(Article)
    assert_type(cls.version_at(session, {"id": 1}, 7), ArticleVersion | None)
    assert_type(cls.all_versions(session, 1), list[ArticleVersion])


def attributes_of_a_version_class() -> None:
    """Columns of the version class are expressions."""
    assert_type(version_class(Article).name == "a", ColumnElement[bool])
    assert_type(version_class(Article).transaction_id > 1, ColumnElement[bool])


def histories(session: Session, article: Article, page: Page) -> None:
    """timeline() and version_obj() know the version class, too."""
    assert_type(timeline(session, article), list[TimelineEntry[ArticleVersion]])
    assert_type(timeline(session, article)[0].version.name, str)
    assert_type(timeline(session, page), list[TimelineEntry[Any]])
    assert_type(version_obj(session, article), ArticleVersion | None)
