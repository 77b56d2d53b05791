"""Models that several test modules share: articles with tags, a composite key, a joined hierarchy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import mapped_column, relationship


def declare_articles(base: Any, **more: Any) -> SimpleNamespace:
    """Articles and tags, many to many; `more` are further attributes of `Article`."""
    article_tag = sa.Table(
        "article_tag",
        base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(50))

    class Article(base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(50))
        tags = relationship(Tag, secondary=article_tag)

    for name, attribute in more.items():
        setattr(Article, name, attribute)
    return SimpleNamespace(Tag=Tag, Article=Article, article_tag=article_tag)


def declare_shapes(base: Any) -> SimpleNamespace:
    """A joined hierarchy."""

    class Shape(base):
        __tablename__ = "shape"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(50))
        kind = mapped_column(sa.String(10))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "shape"}

    class Circle(Shape):
        __tablename__ = "circle"
        id = mapped_column(sa.ForeignKey("shape.id"), primary_key=True)
        radius = mapped_column(sa.Integer)
        __mapper_args__ = {"polymorphic_identity": "circle"}

    return SimpleNamespace(Shape=Shape, Circle=Circle)


@pytest.fixture
def models(versioning: Any, Base: Any, laws: Any) -> SimpleNamespace:
    """A plain class, one with a composite key, a joined hierarchy, a many-to-many relationship."""
    laws.whole, laws.repeats = False, True

    class Line(Base):
        __tablename__ = "line"
        __versioned__ = {}
        order = mapped_column(sa.String(10), primary_key=True)
        number = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        name = mapped_column(sa.String(50))

    articles = declare_articles(Base, body=mapped_column(sa.String(50)))
    return SimpleNamespace(Line=Line, **vars(articles), **vars(declare_shapes(Base)))
