"""Relationships between version classes are real relationships that know the time."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.associationproxy import association_proxy
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    Mapped,
    aliased,
    attribute_keyed_dict,
    column_keyed_dict,
    column_property,
    composite,
    joinedload,
    mapped_column,
    raiseload,
    relationship,
    selectinload,
    subqueryload,
)

from sqlalchemy_history import as_of, version_class

sqlite_only = pytest.mark.backends("sqlite")


def declare(base: Any) -> SimpleNamespace:
    """Articles with an author, tags, comments and a cover; countries have no history."""
    article_tag = sa.Table(
        "article_tag",
        base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )
    article_country = sa.Table(
        "article_country",
        base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("country_id", sa.ForeignKey("country.id"), primary_key=True),
    )

    class Country(base):
        __tablename__ = "country"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50))

    class Author(base):
        __tablename__ = "author"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50))
        country_id: Mapped[int | None] = mapped_column(sa.ForeignKey("country.id"))
        country: Mapped[Any] = relationship(Country)

    class Article(base):
        __tablename__ = "article"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50))
        author_id: Mapped[int | None] = mapped_column(sa.ForeignKey("author.id"))
        author: Mapped[Any] = relationship(Author, backref="articles")
        tags: Mapped[list[Any]] = relationship(
            "Tag", secondary=article_tag, backref="articles", order_by="Tag.name.desc()"
        )
        countries: Mapped[list[Any]] = relationship(Country, secondary=article_country)
        comments: Mapped[list[Any]] = relationship(
            "Comment", back_populates="article", cascade="all, delete-orphan"
        )
        cover: Mapped[Any] = relationship("Cover", back_populates="article", uselist=False)
        tag_names = association_proxy("tags", "name")

    class Tag(base):
        __tablename__ = "tag"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(sa.String(50))

    class Comment(base):
        __tablename__ = "comment"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str] = mapped_column(sa.String(50))
        article_id: Mapped[int | None] = mapped_column(sa.ForeignKey("article.id"))
        article: Mapped[Any] = relationship(Article, back_populates="comments")

    class Cover(base):
        __tablename__ = "cover"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        file: Mapped[str] = mapped_column(sa.String(50))
        article_id: Mapped[int | None] = mapped_column(sa.ForeignKey("article.id"))
        article: Mapped[Any] = relationship(Article, back_populates="cover")

    return SimpleNamespace(
        Article=Article, Author=Author, Tag=Tag, Comment=Comment, Cover=Cover, Country=Country
    )


@pytest.fixture
def models(versioning: Any, Base: Any) -> SimpleNamespace:
    return declare(Base)


@pytest.fixture
def session(models: SimpleNamespace, open_session: Callable[..., Any]) -> Any:
    return open_session()


def tell(session: Any, m: SimpleNamespace) -> Any:
    """A history of three transactions; returns the article.

    1. two comments, tags red and blue, author Ada, a cover, linked to France
    2. a comment goes, another one changes; red goes; Ada is called Eve; linked to Spain
    3. a comment comes, the article and tag blue are renamed, author and cover are taken away
    """
    france, spain = m.Country(id=1, name="France"), m.Country(id=2, name="Spain")
    red, blue = m.Tag(id=1, name="red"), m.Tag(id=2, name="blue")
    ada = m.Author(id=1, name="Ada", country=france)
    article = m.Article(id=1, name="one", tags=[red, blue], author=ada, countries=[france])
    article.comments = [m.Comment(id=1, text="first"), m.Comment(id=2, text="second")]
    article.cover = m.Cover(id=1, file="a.png")
    session.add(article)
    session.commit()
    article.name = "two"
    del article.comments[0]
    article.comments[0].text = "changed"
    article.tags.remove(red)
    ada.name = "Eve"
    article.countries = [spain]
    session.commit()
    article.name = "three"
    article.comments.append(m.Comment(id=3, text="third"))
    blue.name = "navy"
    article.author = None
    article.cover.file = "b.png"
    session.commit()
    return article


def names(objects: Any, name: str = "name") -> list[Any]:
    return [getattr(obj, name) for obj in objects]


class TestKinds:
    def test_each_version_shows_its_relations_as_they_were(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """Collections, many-to-one, one-to-one and many-to-many show the version's transaction."""
        article = tell(session, models)
        one, two, three = article.versions
        assert [names(v.comments, "text") for v in (one, two, three)] == [
            ["first", "second"],
            ["changed"],
            ["changed", "third"],
        ]
        assert [names(v.tags) for v in (one, two, three)] == [["red", "blue"], ["blue"], ["navy"]]
        assert [v.author and v.author.name for v in (one, two, three)] == ["Ada", "Eve", None]
        assert [v.cover.file for v in (one, two, three)] == ["a.png", "a.png", "b.png"]
        assert [names(v.countries) for v in (one, two, three)] == [["France"], ["Spain"], ["Spain"]]
        assert [list(v.tag_names) for v in (one, two, three)] == [
            ["red", "blue"],
            ["blue"],
            ["navy"],
        ]
        version = version_class(models.Comment)
        assert all(type(c) is version for c in one.comments)

    def test_an_unversioned_target_gives_the_live_object(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """A relationship to a class without history leads to its live object."""
        article = tell(session, models)
        first = article.versions[0]
        assert first.author.country is session.get(models.Country, 1)
        assert first.countries == [session.get(models.Country, 1)]

    def test_a_backref_is_there(self, session: Any, models: SimpleNamespace) -> None:
        """A relationship that another model's `backref` made is on the version class."""
        tell(session, models)
        tag = version_class(models.Tag)
        author = version_class(models.Author)
        red = session.scalars(sa.select(tag).where(tag.name == "red")).one()
        assert names(red.articles) == ["one"]
        eve = session.scalars(sa.select(author).where(author.name == "Eve")).one()
        assert names(eve.articles) == ["two"]

    @pytest.mark.parametrize("load", [selectinload, joinedload, subqueryload])
    def test_eager_loading(
        self,
        session: Any,
        models: SimpleNamespace,
        engine: Any,
        statements: Any,
        load: Any,
    ) -> None:
        """Every kind of eager loading brings what lazy loading brings, a statement a relation."""
        tell(session, models)
        cls = version_class(models.Article)
        session.expunge_all()
        paths = (cls.comments, cls.tags, cls.author, cls.cover, cls.countries)
        with statements(engine) as log:
            versions = session.scalars(
                sa.select(cls).options(*map(load, paths)).order_by(cls.transaction_id)
            ).unique()
            found = [
                (
                    sorted(names(v.comments, "text")),
                    names(v.tags),
                    v.author and v.author.name,
                    v.cover.file,
                    names(v.countries),
                )
                for v in versions
            ]
        assert len(log) == (1 if load is joinedload else 6)
        assert found == [
            (["first", "second"], ["red", "blue"], "Ada", "a.png", ["France"]),
            (["changed"], ["blue"], "Eve", "a.png", ["Spain"]),
            (["changed", "third"], ["navy"], None, "b.png", ["Spain"]),
        ]

    @sqlite_only
    def test_raiseload(self, session: Any, models: SimpleNamespace) -> None:
        """`raiseload` holds."""
        tell(session, models)
        cls = version_class(models.Article)
        version = session.scalars(sa.select(cls).options(raiseload("*"))).first()
        with pytest.raises(sa.exc.InvalidRequestError, match="raise"):
            version.comments

    def test_any_has_and_joins(self, session: Any, models: SimpleNamespace) -> None:
        """Version relationships can be asked and joined in SQL."""
        tell(session, models)
        cls, tag = version_class(models.Article), version_class(models.Tag)
        author, comment = version_class(models.Author), version_class(models.Comment)
        ask = lambda *where: names(  # noqa: E731
            session.scalars(sa.select(cls).where(*where).order_by(cls.transaction_id))
        )
        assert ask(cls.tags.any(tag.name == "blue")) == ["one", "two"]
        assert ask(cls.comments.any(comment.text == "changed")) == ["two", "three"]
        assert ask(cls.author.has(author.name == "Eve")) == ["two"]
        assert ask(~cls.author.has()) == ["three"]
        rows = session.execute(
            sa.select(cls.name, tag.name).join(cls.tags).order_by(cls.transaction_id, tag.name)
        ).all()
        assert rows == [("one", "blue"), ("one", "red"), ("two", "blue"), ("three", "navy")]
        other = sa.orm.aliased(comment)
        rows = session.execute(
            sa.select(cls.name, other.text)
            .join(cls.comments.of_type(other))
            .where(other.text != "second")
            .order_by(cls.transaction_id, other.id)
        ).all()
        assert rows == [
            ("one", "first"),
            ("two", "changed"),
            ("three", "changed"),
            ("three", "third"),
        ]

    def test_collections_of_a_whole_history_take_two_statements(
        self, session: Any, models: SimpleNamespace, engine: Any, statements: Any
    ) -> None:
        """A collection of each of 1,000 versions comes with the second statement."""
        session.add(models.Article(id=1, name="x"))
        session.commit()
        cls, comment = version_class(models.Article), version_class(models.Comment)
        tx = session.scalar(sa.select(cls.transaction_id))
        rows: dict[Any, list[Any]] = {cls: [], comment: []}
        for i in range(1, 1000):
            rows[cls].append({"id": 1, "name": "x", "transaction_id": tx + i, "operation_type": 1})
            if i % 100 == 0:
                row = {"id": i, "article_id": 1, "text": f"t{i}", "transaction_id": tx + i}
                rows[comment].append({**row, "operation_type": 0})
        if hasattr(cls, "end_transaction_id"):
            session.execute(sa.update(cls.__table__).values(end_transaction_id=tx + 1))
            for row in rows[cls]:
                row["end_transaction_id"] = row["transaction_id"] + 1
            rows[cls][-1]["end_transaction_id"] = None
        for target, values in rows.items():
            session.execute(sa.insert(target.__table__), values)
        session.commit()
        with statements(engine) as log:
            versions = session.scalars(
                sa.select(cls).options(selectinload(cls.comments)).order_by(cls.transaction_id)
            ).all()
            texts = [names(v.comments, "text") for v in versions]
        # selectinload asks for 500 parents at a time
        assert len(log) <= 3
        assert texts == [[f"t{i}" for i in range(100, n + 1, 100)] for n in range(1000)]
        session.expunge_all()
        with statements(engine) as log:
            versions = session.scalars(
                sa.select(cls).options(subqueryload(cls.comments)).order_by(cls.transaction_id)
            ).all()
            assert [names(v.comments, "text") for v in versions] == texts
        assert len(log) == 2


class TestShapes:
    def test_self_referential(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """Trees and graphs of one class, by foreign key and by association, keep their history."""
        friendship = sa.Table(
            "friendship",
            Base.metadata,
            sa.Column("a", sa.ForeignKey("node.id"), primary_key=True),
            sa.Column("b", sa.ForeignKey("node.id"), primary_key=True),
        )

        class Node(Base):
            __tablename__ = "node"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            up_id: Mapped[int | None] = mapped_column(sa.ForeignKey("node.id"))
            up: Mapped[Any] = relationship("Node", remote_side=[id], back_populates="below")
            below: Mapped[list[Any]] = relationship("Node", back_populates="up")
            friends: Mapped[list[Any]] = relationship(
                "Node",
                secondary=friendship,
                primaryjoin=id == friendship.c.a,
                secondaryjoin=id == friendship.c.b,
                backref="friend_of",
            )

        session = open_session()
        top = Node(id=1, name="top")
        left, right = Node(id=2, name="left", up=top), Node(id=3, name="right", up=top)
        top.friends = [left]
        session.add_all([top, left, right])
        session.commit()
        top.name = "head"
        right.up = left
        top.friends = [right]
        session.commit()
        one, two = top.versions
        assert (names(one.below), names(two.below)) == (["left", "right"], ["left"])
        assert (names(one.friends), names(two.friends)) == (["left"], ["right"])
        first, second = right.versions
        assert (first.up.name, second.up.name) == ("top", "left")
        assert (names(first.friend_of), names(second.friend_of)) == ([], ["head"])
        cls = version_class(Node)
        deep = (
            sa.select(cls)
            .where(cls.id == 1)
            .options(selectinload(cls.below).selectinload(cls.below), joinedload(cls.friends))
        )
        session.expunge_all()
        found = session.scalars(deep.order_by(cls.transaction_id)).unique().all()
        assert [names(v.below) for v in found] == [["left", "right"], ["left"]]

    @sqlite_only
    def test_composite_keys_and_custom_joins(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """Composite foreign keys, own join conditions, orders and collection classes hold."""

        class House(Base):
            __tablename__ = "house"
            __versioned__: dict[str, Any] = {}
            street: Mapped[str] = mapped_column(sa.String(9), primary_key=True)
            number: Mapped[int] = mapped_column(primary_key=True)
            rooms: Mapped[list[Any]] = relationship("Room", order_by="Room.size.desc()")
            big: Mapped[list[Any]] = relationship(
                "Room",
                primaryjoin="and_(House.street == Room.street, House.number == Room.number, "
                "Room.size > 10)",
                viewonly=True,
            )
            by_name: Mapped[dict[str, Any]] = relationship(
                "Room", collection_class=attribute_keyed_dict("name"), viewonly=True
            )
            color: Mapped[str | None] = mapped_column(sa.String(9))

        class Room(Base):
            __tablename__ = "room"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            size: Mapped[int]
            street: Mapped[str] = mapped_column(sa.String(9))
            number: Mapped[int]
            __table_args__ = (
                sa.ForeignKeyConstraint(["street", "number"], ["house.street", "house.number"]),
            )

        session = open_session()
        house = House(street="Elm", number=1)
        house.rooms = [Room(name="bath", size=5), Room(name="hall", size=30)]
        session.add_all([house, House(street="Elm", number=2, rooms=[Room(name="x", size=99)])])
        session.commit()
        house.color = "red"
        house.rooms.append(Room(name="attic", size=20))
        session.commit()
        one, two = house.versions
        assert names(one.rooms) == ["hall", "bath"]
        assert names(two.rooms) == ["hall", "attic", "bath"]
        assert (names(one.big), sorted(names(two.big))) == (["hall"], ["attic", "hall"])
        assert sorted(one.by_name) == ["bath", "hall"]
        assert two.by_name["attic"].size == 20

    @sqlite_only
    def test_dynamic_and_write_only(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """A `dynamic` or `write_only` relationship of the model is one of its versions, too."""

        class Shop(Base):
            __tablename__ = "shop"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            sales: sa.orm.DynamicMapped[Any] = relationship("Sale", lazy="dynamic")
            log: sa.orm.WriteOnlyMapped[Any] = relationship("Sale", viewonly=True)

        class Sale(Base):
            __tablename__ = "sale"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            shop_id: Mapped[int] = mapped_column(sa.ForeignKey("shop.id"))

        session = open_session()
        shop = Shop(id=1, name="a")
        session.add(shop)
        shop.sales.append(Sale(name="s1"))
        session.commit()
        shop.name = "b"
        shop.sales.append(Sale(name="s2"))
        session.commit()
        one, two = shop.versions
        assert names(one.sales) == ["s1"]
        assert names(two.sales.filter_by(name="s2")) == ["s2"]
        assert names(session.scalars(one.log.select())) == ["s1"]

    @sqlite_only
    def test_inheritance_on_either_side(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """Relationships from and to subclasses, of joined and single tables, keep their history."""
        watch = sa.Table(
            "watch",
            Base.metadata,
            sa.Column("person_id", sa.ForeignKey("person.id"), primary_key=True),
            sa.Column("film_id", sa.ForeignKey("film.id"), primary_key=True),
        )

        class Work(Base):
            __tablename__ = "work"
            __versioned__: dict[str, Any] = {}
            __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "work"}
            id: Mapped[int] = mapped_column(primary_key=True)
            kind: Mapped[str] = mapped_column(sa.String(9))
            name: Mapped[str] = mapped_column(sa.String(9))
            maker_id: Mapped[int | None] = mapped_column(sa.ForeignKey("person.id"))

        class Film(Work):
            __tablename__ = "film"
            __mapper_args__ = {"polymorphic_identity": "film"}
            id: Mapped[int] = mapped_column(sa.ForeignKey("work.id"), primary_key=True)
            minutes: Mapped[int | None]
            star_id: Mapped[int | None] = mapped_column(sa.ForeignKey("person.id"))
            star: Mapped[Any] = relationship("Person", foreign_keys=star_id)

        class Book(Work):
            __mapper_args__ = {"polymorphic_identity": "book"}
            pages: Mapped[int | None]

        class Person(Base):
            __tablename__ = "person"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            works: Mapped[list[Any]] = relationship(Work, foreign_keys=Work.maker_id)
            books: Mapped[list[Any]] = relationship(Book, foreign_keys=Work.maker_id, viewonly=True)
            stars_in: Mapped[list[Any]] = relationship(
                Film, foreign_keys=Film.star_id, viewonly=True
            )
            watched: Mapped[list[Any]] = relationship(Film, secondary=watch)

        session = open_session()
        film = Film(id=1, name="F", minutes=90)
        book = Book(id=2, name="B", pages=300)
        person = Person(id=1, name="p", works=[film, book], watched=[film])
        film.star = person
        session.add(person)
        session.commit()
        person.name = "q"
        film.minutes = 100
        person.works = [film]
        session.commit()
        person.name = "r"
        film.star = None
        person.watched = []
        session.commit()
        one, two, three = person.versions
        filmv, bookv = version_class(Film), version_class(Book)
        assert [type(w) for w in one.works] == [filmv, bookv]
        assert [w.minutes for w in two.works] == [100]
        assert (names(one.books), names(two.books)) == (["B"], [])
        assert [f.minutes for f in one.stars_in + two.stars_in + three.stars_in] == [90, 100]
        assert [f.minutes for f in one.watched + two.watched + three.watched] == [90, 100]
        assert [v.star and v.star.name for v in film.versions] == ["p", "q", None]
        cls = version_class(Person)
        session.expunge_all()
        for load in (selectinload, joinedload, subqueryload):
            found = session.scalars(
                sa.select(cls)
                .options(load(cls.works), load(cls.stars_in), load(cls.watched))
                .order_by(cls.transaction_id)
            ).unique()
            shown = [(names(v.works), names(v.stars_in), names(v.watched)) for v in found]
            assert shown == [(["F", "B"], ["F"], ["F"]), (["F"], ["F"], ["F"]), (["F"], [], [])]
            session.expunge_all()

    @sqlite_only
    def test_association_objects_proxies_hybrids_and_composites(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """What a model computes of its columns and relations, its versions compute of theirs."""

        class Point:
            def __init__(self, x: int, y: int) -> None:
                self.x, self.y = x, y

            def __composite_values__(self) -> tuple[int, int]:
                return self.x, self.y

            def __eq__(self, other: object) -> bool:
                return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

            def __hash__(self) -> int:
                return hash((self.x, self.y))

        class Link(Base):
            __tablename__ = "link"
            __versioned__: dict[str, Any] = {}
            user_id: Mapped[int] = mapped_column(sa.ForeignKey("user.id"), primary_key=True)
            word_id: Mapped[int] = mapped_column(sa.ForeignKey("word.id"), primary_key=True)
            note: Mapped[str | None] = mapped_column(sa.String(9))
            word: Mapped[Any] = relationship("Word")

        class Word(Base):
            __tablename__ = "word"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))

        class User(Base):
            __tablename__ = "user"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            first: Mapped[str] = mapped_column(sa.String(9))
            last: Mapped[str] = mapped_column(sa.String(9))
            x: Mapped[int] = mapped_column(default=1)
            y: Mapped[int] = mapped_column(default=2)
            place: Mapped[Point] = composite(Point, "x", "y")
            links: Mapped[list[Any]] = relationship(
                Link, cascade="all, delete-orphan", order_by=Link.word_id
            )
            words = association_proxy("links", "word")
            full = column_property(first + " " + last)

            @hybrid_property
            def initials(self) -> Any:
                return self.first + self.last

        session = open_session()
        a, b = Word(id=1, name="a"), Word(id=2, name="b")
        user = User(id=1, first="Ada", last="L", links=[Link(word=a), Link(word=b, note="n")])
        session.add(user)
        session.commit()
        user.last = "M"
        user.place = Point(7, 8)
        del user.links[0]
        b.name = "c"
        session.commit()
        one, two = user.versions
        assert names(one.words) == ["a", "b"]
        # the link is as old as it was, and shows its word of then; seen as of `two` it is new
        assert names(two.words) == ["b"]
        assert names(session.scalars(as_of(User, two)).one().words) == ["c"]
        assert [link.note for link in one.links] == [None, "n"]
        assert (one.full, two.full) == ("Ada L", "Ada M")
        assert (one.place, two.place) == (Point(1, 2), Point(7, 8))
        assert (one.initials, two.initials) == ("AdaL", "AdaM")
        cls = version_class(User)
        assert session.scalars(sa.select(cls).where(cls.initials == "AdaM")).one() is two

    def test_order_and_keys_of_collections(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """What orders a collection, or is its key, may be of any table; if it has a history."""
        stay = sa.Table(
            "stay",
            Base.metadata,
            sa.Column("guest_id", sa.ForeignKey("guest.id"), primary_key=True),
            sa.Column("city_id", sa.ForeignKey("city.id"), primary_key=True),
            sa.Column("place", sa.Integer),
        )

        class City(Base):
            __tablename__ = "city"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))

        class Note(Base):
            __tablename__ = "note"
            __versioned__ = {"exclude": ["rank"]}
            id: Mapped[int] = mapped_column(primary_key=True)
            word: Mapped[str] = mapped_column(sa.String(9))
            rank: Mapped[int | None]
            guest_id: Mapped[int] = mapped_column(sa.ForeignKey("guest.id"))

        class Guest(Base):
            __tablename__ = "guest"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            cities: Mapped[list[Any]] = relationship(
                City, secondary=stay, order_by=City.name.desc()
            )
            by_place: Mapped[list[Any]] = relationship(
                City, secondary=stay, order_by=stay.c.place, viewonly=True
            )
            notes: Mapped[dict[str, Any]] = relationship(
                Note, collection_class=column_keyed_dict(Note.__table__.c.word)
            )
            ranked: Mapped[list[Any]] = relationship(
                Note, order_by=[Note.rank, Note.word], viewonly=True
            )

        session = open_session()
        a, b = City(id=1, name="a"), City(id=2, name="b")
        guest = Guest(id=1, cities=[a, b])
        guest.notes = {"y": Note(id=1, word="y", rank=1), "x": Note(id=2, word="x", rank=2)}
        session.add(guest)
        session.flush()
        session.execute(stay.update().values(place=stay.c.city_id))
        session.commit()
        guest.cities = [b]
        session.commit()
        (version,) = session.scalars(as_of(Guest, guest.versions[0]))
        cls = version_class(Guest)
        for load in (None, selectinload, joinedload, subqueryload):
            loads = [load(cls.cities), load(cls.by_place), load(cls.notes)] if load else []
            (version,) = session.scalars(as_of(Guest, 1).options(*loads)).unique()
            assert (names(version.cities), names(version.by_place)) == (["b", "a"], ["a", "b"])
            assert {word: note.id for word, note in version.notes.items()} == {"x": 2, "y": 1}
            assert names(version.ranked, "word") == ["x", "y"]
            session.expunge_all()

    def test_expressions_about_other_tables(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """A `column_property` with a subquery shows what it was, at the version or the moment."""
        tagged = sa.Table(
            "tagged",
            Base.metadata,
            sa.Column("post_id", sa.ForeignKey("post.id"), primary_key=True),
            sa.Column("tag", sa.String(9), primary_key=True),
        )

        class Reply(Base):
            __tablename__ = "reply"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            post_id: Mapped[int] = mapped_column(sa.ForeignKey("post.id"))

        class Post(Base):
            __tablename__ = "post"
            __versioned__ = {"exclude": ["views"]}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            views: Mapped[int] = mapped_column(default=0)
            parent_id: Mapped[int | None] = mapped_column(sa.ForeignKey("post.id"))
            replies = column_property(
                sa.select(sa.func.count(Reply.id))
                .where(Reply.post_id == id)
                .correlate_except(Reply)
                .scalar_subquery()
            )
            is_tagged = column_property(sa.exists().where(tagged.c.post_id == id))
            twice_views = column_property(views * 2)

        other = aliased(Post)
        Post.children = column_property(
            sa.select(sa.func.count(other.id))
            .join(Reply, Reply.post_id == other.id)
            .where(other.parent_id == Post.id)
            .correlate(Post.__table__)
            .scalar_subquery()
        )
        session = open_session()
        post = Post(id=1, name="a")
        session.add_all([post, Post(id=2, name="c", parent_id=1)])
        session.flush()
        session.add_all([Reply(id=1, post_id=1), Reply(id=2, post_id=2)])
        session.commit()
        post.name = "b"
        session.add_all([Reply(id=3, post_id=1), Reply(id=4, post_id=1)])
        session.commit()
        session.delete(session.get(Reply, 1))
        session.delete(session.get(Reply, 2))
        session.commit()
        one, two = post.versions
        assert [(v.replies, v.children, v.is_tagged) for v in (one, two)] == [
            (1, 1, False),
            (3, 1, False),
        ]
        last = session.scalars(as_of(Post, two.transaction_id + 1).where(two.__class__.id == 1))
        assert [(v.replies, v.children) for v in last] == [(2, 0)]
        assert (post.replies, post.children) == (2, 0)
        # the live table has no part in it
        assert not hasattr(two, "twice_views")

    @sqlite_only
    def test_a_custom_secondaryjoin(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """Conditions on the association table and on the target are part of the history."""
        member = sa.Table(
            "member",
            Base.metadata,
            sa.Column("team_id", sa.ForeignKey("team.id"), primary_key=True),
            sa.Column("player_id", sa.ForeignKey("player.id"), primary_key=True),
            sa.Column("role", sa.String(9)),
        )

        class Player(Base):
            __tablename__ = "player"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))

        class Team(Base):
            __tablename__ = "team"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            players: Mapped[list[Any]] = relationship(Player, secondary=member)
            captains: Mapped[list[Any]] = relationship(
                Player,
                secondary=member,
                primaryjoin=sa.and_(id == member.c.team_id, member.c.role == "captain"),
                secondaryjoin=sa.and_(Player.id == member.c.player_id, Player.name != "nobody"),
                viewonly=True,
            )

        session = open_session()
        team = Team(id=1, name="a", players=[Player(id=1, name="x"), Player(id=2, name="y")])
        session.add(team)
        session.flush()
        session.execute(member.update().where(member.c.player_id == 1).values(role="captain"))
        session.commit()
        team.name = "b"
        session.execute(member.update().where(member.c.player_id == 2).values(role="captain"))
        session.get(Player, 1).name = "nobody"
        session.commit()
        one, two = team.versions
        assert (names(one.captains), names(two.captains)) == (["x"], ["y"])
        assert (names(one.players), names(two.players)) == (["x", "y"], ["nobody", "y"])


class TestAsync:
    def test_relationships_are_awaited_or_loaded_eagerly(
        self, versioning: Any, Base: Any, open_async_session: Any, run_async: Any
    ) -> None:
        """In an async session, `awaitable_attrs` and eager loads bring the relations."""
        models = declare(Base)

        async def main() -> None:
            session = await open_async_session()
            await session.run_sync(tell, models)
            cls = version_class(models.Article)
            versions = await session.scalars(sa.select(cls).order_by(cls.transaction_id))
            first = versions.first()
            assert names(await first.awaitable_attrs.comments, "text") == ["first", "second"]
            assert names(await first.awaitable_attrs.tags) == ["red", "blue"]
            moment = as_of(models.Article, first).options(
                selectinload(cls.comments),
                joinedload(cls.author).selectinload(version_class(models.Author).country),
            )
            (then,) = await session.scalars(moment)
            assert names(then.comments, "text") == ["first", "second"]
            assert (then.author.name, then.author.country.name) == ("Ada", "France")

        run_async(main)
