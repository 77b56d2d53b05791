"""The mapped classes that the machine works on, once plain and once versioned.

The schema is data for the rest: :data:`ENTITIES` and :data:`EXCLUDED` tell the model what a row is,
:data:`KINDS` tell the machine what it can create and set. A new class needs its declaration in
:func:`build_models`, its tables in :data:`ENTITIES` and, to be created and changed by the general
rules, a :class:`Kind`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import (
    DeclarativeBase,
    configure_mappers,
    deferred,
    foreign,
    relationship,
    remote,
)

from .graph import Relation
from .model import Key, Row, State

__all__ = [
    "ENTITIES",
    "EXCLUDED",
    "KINDS",
    "NUMBERS",
    "RELATIONS",
    "TEXTS",
    "TRIGGERED",
    "Kind",
    "Models",
    "build_models",
]

#: What the model calls an entity: the tables that make its rows, base table first.
#: A note goes with its article, so it is deleted before.
ENTITIES: tuple[tuple[str, ...], ...] = (
    ("note",),
    ("article",),
    ("comment",),
    ("category",),
    ("tag",),
    ("article_tag",),
    ("article_link",),
    ("category_tag",),
    ("item", "book", "novel", "film"),
    ("animal",),
    ("shape",),
    ("circle",),
    ("cell",),
    ("term",),
    ("entry",),
)

#: Columns that are not versioned.
EXCLUDED: Mapping[str, frozenset[str]] = {
    "article": frozenset({"views"}),
    "cell": frozenset({"memo"}),
}

#: Classes, with their subclasses, that triggers record where both triggers and sessions do.
TRIGGERED = frozenset({"Article", "Item", "Circle", "Cell", "Note"})

# The first two are those that a run begins with.
TEXTS = ("a", "", None, "A", "a ", "o'k", "é %s :x")
NUMBERS = (1, 0, None, -1, 7)
DOCUMENTS = ({"a": 1}, {}, None, {"a": None}, [1, "b"], "")
AMOUNTS = (Decimal("1.5"), Decimal("0"), None, Decimal("1.50"), Decimal("1.499"))
MOMENTS = (datetime(2026, 1, 2, 3, 4, 5), None, datetime(2026, 1, 2, 3, 4, 5, 600000))
COLOURS = ("red", None, "blue")
FLAGS = (False, None, True)


class Rounded(sa.types.TypeDecorator[Decimal]):
    """Numbers that are rounded when they are written, as servers do it and SQLite does not."""

    impl = sa.Numeric
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: sa.Dialect) -> Decimal | None:
        return None if value is None else value.quantize(Decimal("0.01"))


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the machine knows about a class: its key, which keys it may give, what it may set."""

    name: str
    table: str
    key: tuple[str, ...] = ("id",)
    made: bool = True
    """The database makes the key when none is given."""
    given: tuple[Key, ...] = ((1_000_001,), (1_000_002,), (1_000_003,))
    values: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    number: str | None = None
    """A column for SQL expressions."""
    identity: tuple[str, str] | None = None
    """Discriminator: column and value."""
    joined: bool = False

    def __str__(self) -> str:
        return self.name

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """How hypothesis prints it."""
        printer.text(self.name)

    def owns(self, row: Row) -> bool:
        """Whether a row of the (base) table is of this very class."""
        return self.identity is None or row[self.identity[0]] == self.identity[1]

    def keys(self, state: State) -> list[Key]:
        """The keys of the objects of this very class, sorted."""
        return sorted(key for key, row in state[self.table].items() if self.owns(row))


KINDS: tuple[Kind, ...] = (
    Kind(
        name="Article",
        table="article",
        values={"name": TEXTS, "n": NUMBERS, "body": TEXTS, "state": TEXTS, "views": NUMBERS},
        number="n",
    ),
    Kind(
        name="Category",
        table="category",
        made=False,
        given=((1,), (2,), (3,)),
        values={
            "label": TEXTS,
            "data": DOCUMENTS,
            "price": AMOUNTS,
            "made_at": MOMENTS,
            "colour": COLOURS,
            "flag": FLAGS,
        },
    ),
    Kind(
        name="Tag", table="tag", made=False, given=((1,), (2,), (3,), (4,)), values={"label": TEXTS}
    ),
    Kind(
        name="Item", table="item", values={"title": TEXTS}, identity=("kind", "item"), joined=True
    ),
    Kind(
        name="Book",
        table="item",
        values={"title": TEXTS, "pages": NUMBERS},
        number="pages",
        identity=("kind", "book"),
        joined=True,
    ),
    Kind(
        name="Novel",
        table="item",
        values={"title": TEXTS, "pages": NUMBERS, "plot": TEXTS},
        number="pages",
        identity=("kind", "novel"),
        joined=True,
    ),
    Kind(
        name="Film",
        table="item",
        values={"title": TEXTS, "minutes": NUMBERS},
        number="minutes",
        identity=("kind", "film"),
        joined=True,
    ),
    Kind(name="Animal", table="animal", values={"name": TEXTS}, identity=("type", "animal")),
    Kind(
        name="Cat",
        table="animal",
        values={"name": TEXTS, "lives": NUMBERS},
        number="lives",
        identity=("type", "cat"),
    ),
    Kind(
        name="Dog",
        table="animal",
        values={"name": TEXTS, "tricks": TEXTS},
        identity=("type", "dog"),
    ),
    Kind(name="Shape", table="shape", values={"name": TEXTS}),
    Kind(name="Circle", table="circle", values={"name": TEXTS, "radius": NUMBERS}, number="radius"),
    Kind(
        name="Cell",
        table="cell",
        key=("x", "y"),
        made=False,
        given=((0, 0), (0, 1), (1, 0), (1, 1)),
        values={"value": NUMBERS, "memo": TEXTS},
        number="value",
    ),
    Kind(
        name="Term",
        table="term",
        key=("word",),
        made=False,
        given=(("",), ("a",), ("o'k",), ("%s",)),
        values={"meaning": TEXTS},
    ),
    Kind(name="Entry", table="entry", values={"text": TEXTS}),
    Kind(name="Note", table="note", values={"text": TEXTS}),
)


#: base table of the owner -> name of the relationship -> what it is
RELATIONS: Mapping[str, Mapping[str, Relation]] = {
    "article": {
        "comments": Relation("comment", "many", "comment", "article_id", "id", orphans_go=True),
        "category": Relation("category", "one", "article", "id", "category_id"),
        "tags": Relation("tag", "links", "article_tag", "article_id", "tag_id"),
        "targets": Relation("article", "links", "article_link", "source_id", "target_id"),
        "sources": Relation("article", "links", "article_link", "target_id", "source_id"),
    },
    "comment": {
        "article": Relation("article", "one", "comment", "id", "article_id"),
        "reply_to": Relation("comment", "one", "comment", "id", "reply_to_id"),
        "replies": Relation("comment", "many", "comment", "reply_to_id", "id"),
    },
    "category": {
        "articles": Relation("article", "many", "article", "category_id", "id"),
        "lead": Relation("article", "one", "category", "id", "lead_id"),
        "items": Relation("item", "many", "item", "category_id", "id"),
        "tags": Relation("tag", "links", "category_tag", "category_id", "tag_id"),
    },
    "tag": {
        "articles": Relation("article", "links", "article_tag", "tag_id", "article_id"),
        "categories": Relation("category", "links", "category_tag", "tag_id", "category_id"),
    },
    "item": {"category": Relation("category", "one", "item", "id", "category_id")},
    "term": {"entries": Relation("entry", "many", "entry", "word", "id", key="word")},
    "entry": {"term": Relation("term", "one", "entry", "id", "word")},
}


@dataclass(frozen=True, kw_only=True)
class Models:
    """The classes of one world."""

    base: type[DeclarativeBase]
    classes: Mapping[str, type]
    live: Mapping[str, sa.Table]

    reads: Mapping[str, tuple[sa.Select[Any], list[str], list[int]]] = field(init=False)
    """Live table -> how to read its versioned columns: statement, names, and places of the key."""

    def __post_init__(self) -> None:
        reads = {}
        for table in self.live:
            columns = self.versioned_columns(table)
            names = [column.name for column in columns]
            places = [names.index(column.name) for column in self.key_columns(table)]
            reads[table] = (sa.select(*columns), names, places)
        object.__setattr__(self, "reads", reads)

    def __getitem__(self, name: str) -> Any:
        return self.classes[name]

    def versioned_columns(self, table: str) -> list[sa.Column[Any]]:
        """The columns of a live table that have a history."""
        excluded = EXCLUDED.get(table, frozenset())
        return [column for column in self.live[table].columns if column.name not in excluded]

    def key_columns(self, table: str) -> list[sa.Column[Any]]:
        """The key of a live table; a table without a primary key is all key."""
        return list(self.live[table].primary_key.columns) or list(self.live[table].columns)


def build_models(*, versioned: bool, native: Collection[str] = ()) -> Models:
    """Declare and configure the classes on a base of their own.

    :param native: classes that triggers record, with their subclasses.
    """

    class Base(DeclarativeBase):
        pass

    class Tracked(Base):
        __abstract__ = True

        def __init_subclass__(cls, **arguments: Any) -> None:
            if versioned:
                cls.__versioned__ = {"exclude": sorted(EXCLUDED.get(cls.__tablename__, ()))}
                if any(one.__name__ in native for one in cls.__mro__):
                    cls.__versioned__["native_versioning"] = True
            super().__init_subclass__(**arguments)

    article_tag = sa.Table(
        "article_tag",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )
    article_link = sa.Table(
        "article_link",
        Base.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("source_id", sa.ForeignKey("article.id"), nullable=False),
        sa.Column("target_id", sa.ForeignKey("article.id"), nullable=False),
        sqlite_autoincrement=True,
    )
    category_tag = sa.Table(
        "category_tag",
        Base.metadata,
        sa.Column("category_id", sa.ForeignKey("category.id"), nullable=False),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), nullable=False),
    )

    class Article(Tracked):
        __tablename__ = "article"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50))
        n = sa.Column(sa.Integer)
        twice = sa.Column(sa.Integer, sa.Computed("n + n", persisted=True))
        body = deferred(sa.Column(sa.Text))
        state = sa.Column(sa.String(20), server_default="draft")
        views = sa.Column(sa.Integer)
        category_id = sa.Column(sa.ForeignKey("category.id"))

        category = relationship("Category", back_populates="articles")
        comments = relationship(
            "Comment", back_populates="article", cascade="all, delete-orphan", order_by="Comment.id"
        )
        tags = relationship("Tag", secondary=article_tag, back_populates="articles")
        targets = relationship(
            "Article",
            secondary=article_link,
            primaryjoin=id == article_link.c.source_id,
            secondaryjoin=id == article_link.c.target_id,
            back_populates="sources",
        )
        sources = relationship(
            "Article",
            secondary=article_link,
            primaryjoin=id == article_link.c.target_id,
            secondaryjoin=id == article_link.c.source_id,
            back_populates="targets",
        )

    class Comment(Tracked):
        __tablename__ = "comment"
        __table_args__ = {"sqlite_autoincrement": True}
        id = sa.Column(sa.Integer, primary_key=True)
        text = sa.Column(sa.String(50))
        article_id = sa.Column(sa.ForeignKey("article.id"), nullable=False)
        reply_to_id = sa.Column(sa.ForeignKey("comment.id"))
        article = relationship("Article", back_populates="comments")
        reply_to = relationship("Comment", remote_side=id, back_populates="replies")
        replies = relationship("Comment", back_populates="reply_to", order_by="Comment.id")

    class Category(Tracked):
        __tablename__ = "category"
        id = sa.Column(sa.Integer, primary_key=True, autoincrement=False)
        label = sa.Column("title", sa.String(50))
        data = sa.Column(sa.JSON(none_as_null=True))
        price = sa.Column(sa.Numeric(10, 2).with_variant(Rounded(10, 2), "sqlite"))
        made_at = sa.Column(sa.DateTime)
        colour = sa.Column(sa.Enum("red", "blue", name="colour"))
        flag = sa.Column(sa.Boolean)
        lead_id = sa.Column(sa.Integer)

        articles = relationship("Article", back_populates="category")
        lead = relationship(
            "Article",
            primaryjoin=lambda: foreign(Category.lead_id) == remote(Article.id),
            post_update=True,
        )
        items = relationship("Item", back_populates="category")
        tags = relationship("Tag", secondary=category_tag, back_populates="categories")

    class Tag(Tracked):
        __tablename__ = "tag"
        id = sa.Column(sa.Integer, primary_key=True, autoincrement=False)
        label = sa.Column(sa.String(50))
        articles = relationship("Article", secondary=article_tag, back_populates="tags")
        categories = relationship("Category", secondary=category_tag, back_populates="tags")

    class Item(Tracked):
        __tablename__ = "item"
        __table_args__ = {"sqlite_autoincrement": True}
        id = sa.Column(sa.Integer, primary_key=True)
        kind = sa.Column(sa.String(20))
        title = sa.Column(sa.String(50))
        category_id = sa.Column(sa.ForeignKey("category.id"))
        category = relationship("Category", back_populates="items")
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "item"}

    class Book(Item):
        __tablename__ = "book"
        id = sa.Column(sa.ForeignKey("item.id"), primary_key=True)
        pages = sa.Column(sa.Integer)
        __mapper_args__ = {"polymorphic_identity": "book"}

    class Novel(Book):
        __tablename__ = "novel"
        id = sa.Column(sa.ForeignKey("book.id"), primary_key=True)
        plot = sa.Column(sa.String(50))
        __mapper_args__ = {"polymorphic_identity": "novel"}

    class Film(Item):
        __tablename__ = "film"
        id = sa.Column(sa.ForeignKey("item.id"), primary_key=True)
        minutes = sa.Column(sa.Integer)
        __mapper_args__ = {"polymorphic_identity": "film"}

    class Animal(Tracked):
        __tablename__ = "animal"
        id = sa.Column(sa.Integer, primary_key=True)
        type = sa.Column(sa.String(20))
        name = sa.Column(sa.String(50))
        __mapper_args__ = {"polymorphic_on": type, "polymorphic_identity": "animal"}

    class Cat(Animal):
        lives = sa.Column(sa.Integer)
        __mapper_args__ = {"polymorphic_identity": "cat"}

    class Dog(Animal):
        tricks = sa.Column(sa.String(50))
        __mapper_args__ = {"polymorphic_identity": "dog"}

    class Shape(Tracked):
        __tablename__ = "shape"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50))

    class Circle(Shape):
        __tablename__ = "circle"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50))
        radius = sa.Column(sa.Integer)
        __mapper_args__ = {"concrete": True}

    class Cell(Tracked):
        __tablename__ = "cell"
        x = sa.Column(sa.Integer, primary_key=True, autoincrement=False)
        y = sa.Column(sa.Integer, primary_key=True, autoincrement=False)
        value = sa.Column(sa.Integer)
        memo = sa.Column(sa.String(50))
        writes = sa.Column(sa.Integer, server_default="0", onupdate=sa.text("writes + 1"))

    class Term(Tracked):
        __tablename__ = "term"
        word = sa.Column(sa.String(20), primary_key=True)
        meaning = sa.Column(sa.String(50))
        entries = relationship(
            "Entry",
            primaryjoin=lambda: Term.word == foreign(Entry.word),
            back_populates="term",
            passive_updates=False,
        )

    class Entry(Tracked):
        __tablename__ = "entry"
        id = sa.Column(sa.Integer, primary_key=True)
        text = sa.Column(sa.String(50))
        word = sa.Column(sa.String(20))
        term = relationship(
            "Term",
            primaryjoin=lambda: Term.word == foreign(Entry.word),
            back_populates="entries",
            passive_updates=False,
        )

    class Note(Tracked):
        """What the database deletes and changes along with others."""

        __tablename__ = "note"
        __table_args__ = {"sqlite_autoincrement": True}
        id = sa.Column(sa.Integer, primary_key=True)
        text = sa.Column(sa.String(50))
        article_id = sa.Column(sa.ForeignKey("article.id", ondelete="CASCADE"))
        category_id = sa.Column(sa.ForeignKey("category.id", ondelete="SET NULL"))
        article = relationship("Article")
        category = relationship("Category")

    live = dict(Base.metadata.tables)
    try:
        configure_mappers()
    except BaseException:
        Base.registry.dispose(cascade=True)
        raise
    names = {"Comment", *(kind.name for kind in KINDS)}
    classes = {
        mapper.class_.__name__: mapper.class_
        for mapper in Base.registry.mappers
        if mapper.class_.__name__ in names
    }
    return Models(
        base=Base,
        classes=classes,
        live={table: live[table] for entity in ENTITIES for table in entity},
    )
