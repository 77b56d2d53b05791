"""The models that all contenders work on, with or without ``__versioned__``.

``Item`` has no relationships, so that what is measured is rows; ``Article`` with ``Comment`` and
``Tag`` is a small graph; ``Wide`` has 40 columns. :func:`declare_many` makes a big application.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sqlalchemy import Column, ForeignKey, Integer, String, Table, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

WIDE_COLUMNS = 40


@dataclass(frozen=True)
class Models:
    """What :func:`declare` made; ``article_tag`` is the association table."""

    base: type[DeclarativeBase]
    Item: Any
    Article: Any
    Comment: Any
    Tag: Any
    Wide: Any
    article_tag: Table


def declare(Base: Any, versioned: bool) -> Models:
    """Declare the models on *Base*, which is theirs alone."""

    class Item(Base):
        __tablename__ = "item"
        if versioned:
            __versioned__: ClassVar[dict[str, Any]] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str] = mapped_column(String(100))
        body: Mapped[str | None] = mapped_column(Text)
        score: Mapped[int]
        price: Mapped[float]

    article_tag = Table(
        "article_tag",
        Base.metadata,
        Column("article_id", ForeignKey("article.id"), primary_key=True),
        Column("tag_id", ForeignKey("tag.id"), primary_key=True),
    )

    class Article(Base):
        __tablename__ = "article"
        if versioned:
            __versioned__: ClassVar[dict[str, Any]] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str] = mapped_column(String(100))
        comments: Mapped[list[Any]] = relationship("Comment", back_populates="article")
        tags: Mapped[list[Any]] = relationship("Tag", secondary=article_tag)

    class Comment(Base):
        __tablename__ = "comment"
        if versioned:
            __versioned__: ClassVar[dict[str, Any]] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str] = mapped_column(Text)
        article_id: Mapped[int] = mapped_column(ForeignKey("article.id"), index=True)
        article: Mapped[Any] = relationship("Article", back_populates="comments")

    class Tag(Base):
        __tablename__ = "tag"
        if versioned:
            __versioned__: ClassVar[dict[str, Any]] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(50))

    columns: dict[str, Any] = {
        f"c{number:02}": mapped_column(Integer) if number % 2 else mapped_column(String(50))
        for number in range(1, WIDE_COLUMNS)
    }
    wide = _declare(Base, "Wide", columns, versioned)
    return Models(Base, Item, Article, Comment, Tag, wide, article_tag)


def declare_many(Base: Any, count: int, versioned: bool) -> list[Any]:
    """Declare *count* classes of eight columns, each with a foreign key to the one before."""
    classes = []
    for number in range(count):
        columns: dict[str, Any] = {f"c{c}": mapped_column(String(50)) for c in range(6)}
        if number:
            before = f"Model{number - 1}"
            columns["before_id"] = mapped_column(ForeignKey(f"{before.lower()}.id"))
            columns["before"] = relationship(before, remote_side=f"{before}.id")
        classes.append(_declare(Base, f"Model{number}", columns, versioned))
    return classes


def _declare(
    base: type[DeclarativeBase], name: str, columns: dict[str, Any], versioned: bool
) -> Any:
    key = {"id": mapped_column(Integer, primary_key=True)}
    extra: dict[str, Any] = {"__versioned__": {}} if versioned else {}
    return type(name, (base,), {"__tablename__": name.lower(), **extra, **key, **columns})
