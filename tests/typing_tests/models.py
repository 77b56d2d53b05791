"""Models as users write them: with the mixin and a version class for type checkers, and without."""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column, relationship

from sqlalchemy_history import OptionsDict, VersionBase, Versioned


class Base(DeclarativeBase):
    """The base of all."""


class Article(Versioned["ArticleVersion"], Base):
    """Tells what its versions are."""

    __tablename__ = "article"
    __versioned__ = {"exclude": ["draft"]}

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    draft: Mapped[str | None]
    tags: Mapped[list[Tag]] = relationship("Tag")


class Tag(Versioned["TagVersion"], MappedAsDataclass, Base):
    """A dataclass."""

    __tablename__ = "tag"

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    label: Mapped[str]
    article_id: Mapped[int] = mapped_column(ForeignKey("article.id"))


class Note(Versioned, Base):
    """Does not tell what its versions are."""

    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)


class Page(Base):
    """Without the mixin, as in programs that were written for the peers."""

    __tablename__ = "page"
    __versioned__: ClassVar[OptionsDict] = {"strategy": "subquery"}

    id: Mapped[int] = mapped_column(primary_key=True)


class Misspelled(Versioned, Base):
    """A misspelled option is found in a class that has the mixin."""

    __tablename__ = "misspelled"
    __versioned__ = {"exlude": ["x"]}  # type: ignore[typeddict-unknown-key]  # the law itself

    id: Mapped[int] = mapped_column(primary_key=True)


class WrongValue(Versioned, Base):
    """So is a value that makes no sense."""

    __tablename__ = "wrong_value"
    __versioned__ = {"strategy": "both"}  # type: ignore[typeddict-item]  # the law itself

    id: Mapped[int] = mapped_column(primary_key=True)


if TYPE_CHECKING:

    class ArticleVersion(VersionBase, Article):
        """What a version of an article has."""

    class TagVersion(VersionBase, Tag):
        """What a version of a tag has."""
