"""Reverting: a live object, and the graph around it, becomes what it was."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.associationproxy import association_proxy
from sqlalchemy.orm import (
    Mapped,
    MappedAsDataclass,
    attribute_keyed_dict,
    mapped_column,
    relationship,
)

from sqlalchemy_history import (
    RevertConflict,
    ReverterException,
    as_of,
    revert_transaction,
    transaction_class,
    version_class,
)
from tests.test_relationships import declare, models, names, session, tell

__all__ = ["models", "session"]

sqlite_only = pytest.mark.backends("sqlite")
ALL = ["comments", "tags", "author", "cover", "countries"]


def graph(article: Any) -> dict[str, Any]:
    """The state of an article and of what is around it."""
    return {
        "name": article.name,
        "comments": sorted((c.id, c.text) for c in article.comments),
        "tags": sorted(t.id for t in article.tags),
        "author": article.author and (article.author.id, article.author.name),
        "cover": article.cover and (article.cover.id, article.cover.file),
        "countries": names(article.countries),
    }


class TestColumns:
    def test_the_live_object_gets_the_values_of_the_version(
        self, session: Any, models: SimpleNamespace, engine: Any, statements: Any
    ) -> None:
        """A revert sets the columns, leaves relations alone, and is a change like any other."""
        article = tell(session, models)
        report = article.versions[0].revert()
        assert (article.name, names(article.comments, "text")) == ("one", ["changed", "third"])
        assert report.object is article
        changed = {c.name: (c.old, c.new) for c in report.objects[0].changes}
        assert changed == {"name": ("three", "one"), "author_id": (None, 1)}
        assert report.objects[0].action == "changed"
        session.commit()
        assert names(article.versions) == ["one", "two", "three", "one"]
        assert article.author.name == "Eve"

    @sqlite_only
    def test_the_report_prints_as_lines(
        self, session: Any, models: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A report says of each object what was done to it, and the old and the new values.

        It calls no ``__repr__`` of a model: that of a dataclass loads what it refers to.
        """
        article = tell(session, models)
        report = article.versions[0].revert()
        monkeypatch.setattr(models.Article, "__repr__", lambda _: 1 / 0, raising=False)
        assert str(report).splitlines() == [
            "changed Article(id=1)",
            "    name: 'three' -> 'one'",
            "    author_id: None -> 1",
        ]
        assert "Reverted(object=Article(id=1), action='changed', " in repr(report)

    @sqlite_only
    def test_nothing_to_do(self, session: Any, models: SimpleNamespace) -> None:
        """Reverting to what is there changes nothing and leaves no version."""
        article = tell(session, models)
        report = article.versions[2].revert(relations=ALL)
        assert [(one.object, one.action) for one in report.objects] == [(article, "unchanged")]
        session.commit()
        assert article.versions.count() == 3

    def test_a_deleted_object_comes_back_with_its_key(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """Reverting to a version of a deleted object makes it anew; to a DELETE, deletes it."""
        author = models.Author(id=7, name="Ada")
        session.add(author)
        session.commit()
        session.delete(author)
        session.commit()
        cls = version_class(models.Author)
        first, deletion = session.scalars(sa.select(cls).order_by(cls.transaction_id)).all()
        report = first.revert()
        assert (report.objects[0].action, report.object.id) == ("created", 7)
        session.commit()
        assert session.get(models.Author, 7).name == "Ada"
        report = deletion.revert()
        assert (report.objects[0].action, report.object) == ("deleted", None)
        session.commit()
        assert session.get(models.Author, 7) is None
        assert deletion.revert().objects[0].action == "unchanged"
        assert [v.operation_type for v in deletion.all_versions(session, 7, desc=False)] == [
            0,
            2,
            0,
            2,
        ]

    @sqlite_only
    def test_twice_before_a_flush(self, session: Any, models: SimpleNamespace) -> None:
        """Reverts before the flush act on the same object: made, changed, thrown away."""
        author = models.Author(id=7, name="Ada")
        session.add(author)
        session.commit()
        author.name = "Eve"
        session.commit()
        session.delete(author)
        session.commit()
        cls = version_class(models.Author)
        versions = session.scalars(sa.select(cls).order_by(cls.transaction_id)).all()
        one = versions[0].revert().object
        two = versions[1].revert().object
        assert one is two
        assert two.name == "Eve"
        versions[2].revert()
        session.commit()
        assert session.get(models.Author, 7) is None

    @sqlite_only
    def test_only(self, session: Any, models: SimpleNamespace) -> None:
        """`only` names the attributes to take back."""
        article = tell(session, models)
        article.versions[0].revert(only=["author_id"])
        session.commit()
        assert (article.name, article.author.name) == ("three", "Eve")

    @sqlite_only
    @pytest.mark.parametrize(
        ("wrong", "says"),
        [
            ({"only": ["nam"]}, "Article has no versioned attribute 'nam'; did you mean 'name'"),
            ({"relations": ["tag"]}, "no relationship 'tag' .*did you mean 'tags'"),
            ({"relations": ["xyzzy"]}, "there are: author, comments, countries, cover, tags"),
            ({"relations": ["author.countri"]}, "Author has no .*did you mean 'country'"),
            ({"relations": ["author.country.x"]}, "Country has no relationship 'x'"),
            ({"relations": "tags"}, "give a list"),
            ({"only": "name"}, "only='name': give a list"),
        ],
    )
    def test_unknown_names(
        self, session: Any, models: SimpleNamespace, wrong: dict[str, Any], says: str
    ) -> None:
        """A name that is not there is refused before anything changes, with what there is."""
        article = tell(session, models)
        with pytest.raises(ReverterException, match=says):
            article.versions[0].revert(**wrong)
        assert not session.dirty

    @sqlite_only
    def test_a_pending_reference_gives_way(self, session: Any, models: SimpleNamespace) -> None:
        """A many-to-one that was set but not flushed does not win over the reverted key."""
        article = tell(session, models)
        article.author = models.Author(name="new")
        article.versions[0].revert()
        assert article.author.name == "Eve"
        session.commit()
        assert article.author_id == 1

    @sqlite_only
    def test_what_is_not_written_back(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """The lock column, computed and excluded columns stay; __init__ is not called."""

        class Thing(Base):
            __tablename__ = "thing"
            __versioned__ = {"exclude": ["secret"]}
            id: Mapped[int] = mapped_column(primary_key=True)
            n: Mapped[int]
            twice: Mapped[int] = mapped_column(sa.Computed("n * 2"))
            lock: Mapped[int] = mapped_column()
            secret: Mapped[str | None] = mapped_column(sa.String(9))
            __mapper_args__ = {"version_id_col": lock}

            def __init__(self, n: int) -> None:
                self.n = n

        session = open_session()
        thing = Thing(1)
        thing.secret = "a"
        session.add(thing)
        session.commit()
        thing.n, thing.secret = 2, "b"
        session.commit()
        first = thing.versions[0]
        first.revert()
        session.commit()
        assert (thing.n, thing.twice, thing.lock, thing.secret) == (1, 2, 3, "b")
        session.delete(thing)
        session.commit()
        thing = first.revert().object
        session.commit()
        assert (thing.n, thing.twice, thing.lock, thing.secret) == (1, 2, 1, None)


class TestGraph:
    @pytest.mark.parametrize("to", [0, 1, 2])
    def test_all_kinds_at_once(
        self, session: Any, models: SimpleNamespace, engine: Any, statements: Any, to: int
    ) -> None:
        """Several relations go back together, without a flush, and one flush brings it about."""
        article = tell(session, models)
        version = article.versions[to]
        with statements(engine) as log:
            version.revert(relations=ALL)
        assert not log.starting("insert", "update", "delete", "with")
        expected = [
            {
                "name": "one",
                "comments": [(1, "first"), (2, "second")],
                "tags": [1, 2],
                "author": (1, "Ada"),
                "cover": (1, "a.png"),
                "countries": ["France"],
            },
            {
                "name": "two",
                "comments": [(2, "changed")],
                "tags": [2],
                "author": (1, "Eve"),
                "cover": (1, "a.png"),
                "countries": ["Spain"],
            },
            {
                "name": "three",
                "comments": [(2, "changed"), (3, "third")],
                "tags": [2],
                "author": None,
                "cover": (1, "b.png"),
                "countries": ["Spain"],
            },
        ][to]
        assert graph(article) == expected
        session.commit()
        session.expire_all()
        assert graph(article) == expected
        # of many-to-many targets, which are others' as well, only the links are taken back
        assert session.get(models.Tag, 2).name == "navy"
        if to < 2:
            # a child that came later is deleted, as its cascade says
            assert session.get(models.Comment, 3) is None

    def test_it_comes_back_as_a_whole(self, session: Any, models: SimpleNamespace) -> None:
        """An article that was deleted with all that was around it comes back with all of it."""
        article = tell(session, models)
        first = article.versions[0]
        session.delete(article.cover)
        session.delete(article)
        session.flush()
        for cls in (models.Tag, models.Author):
            for obj in session.scalars(sa.select(cls)):
                session.delete(obj)
        session.commit()
        report = first.revert(relations=[*ALL, "tags.articles"])
        assert {one.action for one in report.objects} == {"created"}
        session.commit()
        article = session.get(models.Article, 1)
        assert graph(article) == {
            "name": "one",
            "comments": [(1, "first"), (2, "second")],
            "tags": [1, 2],
            "author": (1, "Ada"),
            "cover": (1, "a.png"),
            "countries": ["France"],
        }
        # what is made anew is made as it was, a many-to-many target too
        assert sorted(names(article.tags)) == ["blue", "red"]
        assert article.author.country.name == "France"

    @sqlite_only
    def test_deep_paths_go_to_one_moment(
        self, session: Any, models: SimpleNamespace, engine: Any, statements: Any
    ) -> None:
        """Every step of a path goes back to the moment of the version that is reverted to."""
        article = tell(session, models)
        author = session.get(models.Author, 1)
        other = models.Article(id=2, name="other", author=author)
        session.add(other)
        session.commit()
        other.name = "renamed"
        author.name = "Ivy"
        session.commit()
        moment = version_class(models.Article).version_at(session, 2, 10**9).previous
        other.name, other.author = "again", None
        session.commit()
        moment.revert(relations=["author.articles.comments"])
        session.commit()
        assert (other.name, other.author.name, article.name) == ("other", "Eve", "three")
        assert names(author.articles) == ["other"]

    @sqlite_only
    def test_to_another_moment(self, session: Any, models: SimpleNamespace) -> None:
        """A version loaded as of a moment takes its relations back to that moment."""
        article = tell(session, models)
        article.comments[0].text = "later"
        session.commit()
        moment = session.scalar(
            sa.select(sa.func.max(version_class(models.Comment).transaction_id))
        )
        article.comments.clear()
        session.commit()
        assert article.versions[2].transaction_id < moment
        (then,) = session.scalars(as_of(models.Article, moment))
        then.revert(relations=["comments"])
        session.commit()
        assert sorted(names(article.comments, "text")) == ["later", "third"]

    @sqlite_only
    def test_association_proxies_by_name(self, session: Any, models: SimpleNamespace) -> None:
        """The name of an association proxy stands for the relationship behind it."""
        article = tell(session, models)
        article.versions[0].revert(relations=["tag_names"])
        session.commit()
        assert sorted(t.id for t in article.tags) == [1, 2]

    @sqlite_only
    def test_a_reference_that_was_null(self, session: Any, models: SimpleNamespace) -> None:
        """A many-to-one and a one-to-one that were empty are empty again."""
        article = models.Article(id=1, name="a")
        session.add(article)
        session.commit()
        article.author = models.Author(name="x", country=models.Country(name="c"))
        article.cover = models.Cover(file="f")
        session.commit()
        article.versions[0].revert(relations=["author", "cover"])
        assert (article.author, article.cover) == (None, None)
        session.commit()
        assert (article.author, article.cover, article.author_id) == (None, None, None)
        # nothing says that a cover without an article must go
        assert session.scalars(sa.select(models.Cover)).one().article_id is None

    @sqlite_only
    def test_references_without_history(self, session: Any, models: SimpleNamespace) -> None:
        """An unversioned target is linked again; if its row is gone, nothing is linked."""
        author = models.Author(id=1, name="a", country=models.Country(id=1, name="x"))
        session.add_all([author, models.Country(id=2, name="y")])
        session.commit()
        author.country_id = 2
        session.commit()
        first = author.versions[0]
        first.revert(relations=["country"])
        session.commit()
        assert author.country.name == "x"
        author.country_id = None
        session.flush()
        session.delete(session.get(models.Country, 1))
        session.commit()
        first.revert(relations=["country"])
        session.commit()
        assert (author.country, author.country_id) == (None, None)

    @sqlite_only
    def test_targets_from_before_versioning(self, session: Any, models: SimpleNamespace) -> None:
        """A target whose row is there but has no version yet is linked as it is."""
        session.execute(sa.insert(models.Author.__table__).values(id=5, name="old"))
        table = version_class(models.Author).__table__
        session.commit()
        session.execute(sa.delete(table))
        article = models.Article(id=1, name="a", author_id=5)
        session.add(article)
        session.commit()
        article.author = None
        session.commit()
        article.versions[0].revert(relations=["author"])
        session.commit()
        assert article.author.name == "old"

    @sqlite_only
    def test_dynamic_keyed_and_required_children(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """Any kind of collection goes back; a child that cannot be without a parent is deleted."""

        class Shop(Base):
            __tablename__ = "shop"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            sales: sa.orm.DynamicMapped[Any] = relationship("Sale", lazy="dynamic")
            log: sa.orm.WriteOnlyMapped[Any] = relationship("Entry", passive_deletes=True)
            doors: Mapped[dict[str, Any]] = relationship(
                "Door", collection_class=attribute_keyed_dict("name")
            )

        def child(table: str, **more: Any) -> Any:
            return type(
                table.title(),
                (Base,),
                {
                    "__tablename__": table,
                    "__versioned__": {},
                    "id": mapped_column(sa.Integer, primary_key=True),
                    "name": mapped_column(sa.String(9)),
                    "shop_id": mapped_column(sa.ForeignKey("shop.id"), **more),
                },
            )

        Sale, Entry = child("sale"), child("entry")
        Door = child("door", nullable=False)
        session = open_session()
        shop = Shop(
            id=1, name="a", doors={"in": Door(id=1, name="in"), "out": Door(id=2, name="out")}
        )
        session.add(shop)
        shop.sales.append(Sale(id=1, name="s1"))
        shop.log.add(Entry(id=1, name="e1"))
        session.commit()
        shop.name = "b"
        shop.sales.remove(session.get(Sale, 1))
        shop.sales.append(Sale(id=2, name="s2"))
        session.delete(session.get(Entry, 1))
        shop.log.add(Entry(id=2, name="e2"))
        session.delete(shop.doors["out"])
        shop.doors["side"] = Door(id=3, name="side")
        session.commit()
        report = shop.versions[0].revert(relations=["sales", "log", "doors"])
        assert sorted(shop.doors) == ["in", "out"]
        session.commit()
        assert names(shop.sales) == ["s1"]
        assert names(session.scalars(shop.log.select())) == ["e1"]
        assert sorted(shop.doors) == ["in", "out"]
        assert session.get(Sale, 2).shop_id is None
        assert session.get(Door, 3) is None
        actions = {(type(o.object).__name__, o.object.id): o.action for o in report.objects}
        assert actions == {
            ("Shop", 1): "changed",
            ("Sale", 1): "changed",
            ("Sale", 2): "changed",
            ("Entry", 1): "created",
            ("Entry", 2): "changed",
            ("Door", 2): "created",
            ("Door", 3): "deleted",
        }

    @sqlite_only
    def test_trees_and_subclasses(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """A tree of objects of several classes goes back to its shape, level by level."""

        class Node(Base):
            __tablename__ = "node"
            __versioned__: dict[str, Any] = {}
            __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "node"}
            id: Mapped[int] = mapped_column(primary_key=True)
            kind: Mapped[str] = mapped_column(sa.String(9))
            name: Mapped[str] = mapped_column(sa.String(9))
            up_id: Mapped[int | None] = mapped_column(sa.ForeignKey("node.id"))
            up: Mapped[Any] = relationship("Node", remote_side=[id], back_populates="below")
            below: Mapped[list[Any]] = relationship("Node", back_populates="up")

        class Leaf(Node):
            __tablename__ = "leaf"
            __mapper_args__ = {"polymorphic_identity": "leaf"}
            id: Mapped[int] = mapped_column(sa.ForeignKey("node.id"), primary_key=True)
            color: Mapped[str] = mapped_column(sa.String(9))
            twin_id: Mapped[int | None] = mapped_column(sa.ForeignKey("node.id"))
            twin: Mapped[Any] = relationship(
                Node, foreign_keys=twin_id, primaryjoin=lambda: Leaf.twin_id == Node.__table__.c.id
            )
            __mapper_args__["inherit_condition"] = id == Node.id

        def shape(node: Any) -> Any:
            return (node.name, getattr(node, "color", None), [shape(n) for n in node.below])

        session = open_session()
        leaf = Leaf(id=3, name="leaf", color="green")
        top = Node(id=1, name="top", below=[Node(id=2, name="mid", below=[leaf])])
        leaf.twin = top
        session.add(top)
        session.commit()
        before = shape(top)
        top.name = "new"
        leaf.up, leaf.color, leaf.twin = None, "red", None
        session.flush()
        session.delete(session.get(Node, 2))
        session.add(Leaf(id=4, name="x", color="blue", up=top))
        session.commit()
        session.delete(leaf)
        session.commit()
        top.versions[0].revert(relations=["below.below.twin"])
        session.commit()
        assert shape(top) == before
        assert session.get(Leaf, 3).twin is top

    def test_unique_values_that_were_swapped(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """Children that swapped unique values, or took those of a deleted one, go back."""

        class Team(Base):
            __tablename__ = "team"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            players: Mapped[list[Any]] = relationship("Player", cascade="all, delete-orphan")

        class Player(Base):
            __tablename__ = "player"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            number: Mapped[int] = mapped_column(unique=True)
            name: Mapped[str] = mapped_column(sa.String(9), unique=True)
            rank: Mapped[int | None]
            team_id: Mapped[int] = mapped_column(sa.ForeignKey("team.id"))
            __table_args__ = (sa.UniqueConstraint("team_id", "rank"),)

        session = open_session()
        team = Team(id=1, name="a")
        team.players = [
            Player(id=i, number=i, name=name, rank=i) for i, name in enumerate("xyz", 1)
        ]
        session.add(team)
        session.commit()
        before = [(p.id, p.number, p.name, p.rank) for p in team.players]
        x, y, z = team.players
        team.name = "b"
        x.number, x.name, x.rank = 91, "q", None
        y.number, y.name, y.rank = 92, "r", None
        session.delete(z)
        session.flush()
        x.number, x.name, x.rank = 2, "y", 2
        y.number, y.name, y.rank = 1, "x", 1
        session.expire(team)
        team.players.append(Player(id=4, number=3, name="z", rank=3))
        session.commit()
        team.versions[0].revert(relations=["players"])
        session.commit()
        assert [(p.id, p.number, p.name, p.rank) for p in team.players] == before
        last = x.versions[-1]
        assert (last.number, last.name, last.rank) == (1, "x", 1)
        assert x.versions.count() == 3

    @sqlite_only
    def test_association_objects_and_required_arguments(
        self, versioning: Any, make_base: Any, engine: Any, open_session: Callable[..., Any]
    ) -> None:
        """Association objects come and go with their keys; dataclasses need no arguments."""
        base = make_base()

        class Link(MappedAsDataclass, base):
            __tablename__ = "link"
            __versioned__: ClassVar[dict[str, Any]] = {}
            user_id: Mapped[int] = mapped_column(
                sa.ForeignKey("user.id"), primary_key=True, init=False
            )
            word_id: Mapped[int] = mapped_column(
                sa.ForeignKey("word.id"), primary_key=True, init=False
            )
            note: Mapped[str] = mapped_column(sa.String(9))
            word: Mapped[Any] = relationship("Word")

        class Word(MappedAsDataclass, base):
            __tablename__ = "word"
            __versioned__: ClassVar[dict[str, Any]] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))

        class User(base):
            __tablename__ = "user"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))
            links: Mapped[list[Any]] = relationship(Link, order_by=Link.word_id)
            words = association_proxy("links", "word")

        session = open_session()
        a, b, c = (Word(id=i, name=name) for i, name in enumerate("abc", 1))
        user = User(id=1, name="u", links=[Link("n1", a), Link("n2", b)])
        session.add_all([user, c])
        session.commit()
        user.name = "v"
        session.delete(user.links[0])
        user.links[1].note = "new"
        user.links.append(Link("n3", c))
        session.flush()
        session.delete(a)
        b.name = "B"
        session.commit()
        user.versions[0].revert(relations=["words"])
        session.commit()
        assert [(x.note, x.word.name) for x in user.links] == [("n1", "a"), ("n2", "b")]
        assert names(user.words) == ["a", "b"]


class TestHeldObjects:
    def test_what_the_session_holds_may_be_stale(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """A revert goes back from what the row is, not from what the session thinks that it is."""
        m = models
        article = tell(session, m)
        first = article.versions[0]
        first.revert(relations=["comments"])
        session.commit()
        then = graph(article)
        assert (then["name"], len(then["comments"])) == ("one", 2)
        for statement in (
            sa.update(m.Article).values(name="bulk"),
            sa.update(m.Comment).values(text="bulk"),
            sa.delete(m.Comment).where(m.Comment.id == then["comments"][0][0]),
        ):
            session.execute(statement, execution_options={"synchronize_session": False})
        assert graph(article) == then
        report = first.revert(relations=["comments"])
        changed = {change.name: (change.old, change.new) for change in report.objects[0].changes}
        assert changed["name"] == ("bulk", "one")
        session.commit()
        assert graph(article) == then

    @sqlite_only
    def test_what_was_set_and_not_flushed_stays(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """Other attributes than those to revert keep what they were set to."""
        author = models.Author(id=1, name="a")
        session.add(author)
        session.commit()
        author.name = "b"
        session.commit()
        assert author.name == "b"
        author.country_id = None
        with session.no_autoflush:
            author.country = country = models.Country(id=1, name="c")
            author.versions[0].revert(only=["name"])
        assert (author.name, author.country) == ("a", country)
        session.commit()
        assert (author.name, author.country_id) == ("a", 1)


class TestTransaction:
    @staticmethod
    def tx(obj: Any, position: int) -> Any:
        return obj.versions[position].transaction

    def test_all_that_it_did_is_undone(self, session: Any, models: SimpleNamespace) -> None:
        """Undoing the last transaction restores columns, rows and links as they were before it."""
        article = tell(session, models)
        before = graph(article)
        article.name = "four"
        article.author = models.Author(id=9, name="New")
        article.comments = [models.Comment(id=9, text="new", article=article)]
        article.tags = [models.Tag(id=9, name="t", articles=[])]
        session.delete(article.cover)
        session.commit()
        report = revert_transaction(session, self.tx(article, 3))
        assert not report.conflicts
        session.commit()
        assert graph(article) == before
        for cls in (models.Author, models.Comment, models.Tag):
            assert session.get(cls, 9) is None
        # an undo is a transaction like any other
        revert_transaction(session, self.tx(article, 4))
        session.commit()
        assert (article.name, article.author.name, article.cover) == ("four", "New", None)
        assert names(article.tags) == ["t"]

    @sqlite_only
    def test_a_dry_run_tells_what_would_be_done(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """Links, rows that come back and rows that go are in the report of a dry run and after."""

        def told(report: Any) -> dict[tuple[str, int, str], set[str]]:
            return {
                (type(one.object).__name__.removesuffix("Version"), one.object.id, one.action): {
                    change.name for change in one.changes
                }
                for one in report.objects
            }

        article = tell(session, models)
        article.name, article.tags = "four", [models.Tag(id=9, name="new")]
        session.delete(article.cover)
        session.commit()
        last = self.tx(article, -1)
        planned = told(revert_transaction(session, last, dry_run=True))
        done = revert_transaction(session, last)
        assert planned == told(done)
        assert planned["Article", 1, "changed"] == {"name", "tags"}
        session.commit()
        redone = self.tx(article, -1)
        planned = told(revert_transaction(session, redone, dry_run=True))
        assert planned == told(revert_transaction(session, redone))

    def test_the_first_and_a_whole_deletion(self, session: Any, models: SimpleNamespace) -> None:
        """Undoing what made everything deletes it; undoing the deletion brings it all back."""
        article = tell(session, models)
        state = graph(article)
        tags = sorted(names(article.tags))
        # no constraint refers from one to the other now, so each can go
        session.delete(article.cover)
        session.delete(article)
        session.flush()
        for cls in (models.Author, models.Tag):
            for obj in session.scalars(sa.select(cls)):
                session.delete(obj)
        session.commit()
        cls = version_class(models.Article)
        last = session.scalars(sa.select(cls).where(cls.operation_type == 2)).one()
        report = revert_transaction(session, last.transaction)
        assert {one.action for one in report.objects} <= {"created", "changed"}
        session.commit()
        article = session.get(models.Article, 1)
        assert graph(article) == state
        assert sorted(names(article.tags)) == tags
        assert len(session.scalars(sa.select(models.Tag)).all()) == 2
        back = self.tx(article, -1)
        revert_transaction(session, back)
        session.commit()
        for model in (models.Article, models.Author, models.Tag, models.Comment, models.Cover):
            assert session.scalars(sa.select(model)).all() == []

    @sqlite_only
    def test_later_changes_elsewhere_stay(self, session: Any, models: SimpleNamespace) -> None:
        """What was changed later in other columns and rows is not touched."""
        author = models.Author(id=1, name="a")
        session.add(author)
        session.commit()
        author.name = "b"
        session.commit()
        author.country = models.Country(id=1, name="x")
        session.commit()
        report = revert_transaction(session, self.tx(author, 1))
        session.commit()
        assert (author.name, author.country_id) == ("a", 1)
        assert [str(c) for c in report.objects[0].changes] == ["name: 'b' -> 'a'"]
        assert revert_transaction(session, self.tx(author, 1)).objects == ()
        made = self.tx(author, 0)
        assert revert_transaction(session, made, overwrite=True).objects[0].action == "deleted"
        assert revert_transaction(session, made).objects == ()

    @sqlite_only
    def test_conflicts(self, session: Any, models: SimpleNamespace) -> None:
        """Later changes to the same columns are listed, and nothing is done unless told to."""
        author = models.Author(id=1, name="a")
        other = models.Author(id=2, name="x")
        session.add_all([author, other])
        session.commit()
        author.name, other.name = "b", "y"
        session.commit()
        changed = self.tx(author, 1)
        author.name = "c"
        session.commit()
        with pytest.raises(RevertConflict, match="name was set to 'b' and is 'c' since") as error:
            revert_transaction(session, changed)
        assert [c.attribute for c in error.value.conflicts] == ["name"]
        assert not session.dirty
        report = revert_transaction(session, changed, dry_run=True)
        assert len(report.conflicts) == 1
        lines = str(report).splitlines()
        assert [line for line in lines if line.startswith("changed")] == [
            f"changed Author(id={one.object.id})" for one in report.objects
        ]
        assert lines[-1].startswith("conflict: AuthorVersion(id=1")
        assert {one.object for one in report.objects} == {author, other}
        assert not session.dirty
        revert_transaction(session, changed, overwrite=True)
        session.commit()
        assert (author.name, other.name) == ("a", "x")
        session.delete(author)
        session.commit()
        with pytest.raises(RevertConflict, match="it was deleted since"):
            revert_transaction(session, changed)
        revert_transaction(session, changed, overwrite=True)
        session.commit()
        assert session.get(models.Author, 1).name == "a"
        with pytest.raises(ReverterException, match="needs a Transaction"):
            revert_transaction(session, 5)

    @sqlite_only
    def test_conflicts_of_rows(self, session: Any, models: SimpleNamespace) -> None:
        """A row that changed since it was made, or that is there again, is a conflict."""
        author = models.Author(id=1, name="a")
        session.add(author)
        session.commit()
        made = self.tx(author, 0)
        author.name = "b"
        session.commit()
        with pytest.raises(RevertConflict, match="name has become 'b' since it was made"):
            revert_transaction(session, made)
        session.delete(author)
        session.commit()
        cls = version_class(models.Author)
        gone = session.scalars(sa.select(cls).where(cls.operation_type == 2)).one().transaction
        session.add(models.Author(id=1, name="other"))
        session.commit()
        with pytest.raises(RevertConflict, match="another one with its key"):
            revert_transaction(session, gone)
        revert_transaction(session, gone, overwrite=True)
        session.commit()
        assert session.get(models.Author, 1).name == "b"

    def test_foreign_keys_without_relationships(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """Rows are made and deleted in an order that foreign keys allow, within a table, too."""

        class A(Base):
            __tablename__ = "z_first"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            up_id: Mapped[int | None] = mapped_column(sa.ForeignKey("z_first.id"))

        class B(Base):
            __tablename__ = "a_second"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            a_id: Mapped[int] = mapped_column(sa.ForeignKey("z_first.id"))

        session = open_session()
        for obj in (A(id=3), A(id=2, up_id=3), A(id=1, up_id=2), B(id=1, a_id=1)):
            session.add(obj)
            session.flush()
        session.commit()
        for cls, ident in ((B, 1), (A, 1), (A, 2), (A, 3)):
            session.delete(session.get(cls, ident))
            session.flush()
        session.commit()
        gone = session.scalars(
            sa.select(version_class(B)).where(version_class(B).operation_type == 2)
        ).one()
        revert_transaction(session, gone.transaction)
        session.commit()
        assert [(a.id, a.up_id) for a in session.scalars(sa.select(A).order_by(A.id))] == [
            (1, 2),
            (2, 3),
            (3, None),
        ]
        assert session.get(B, 1).a_id == 1

    def test_rows_that_refer_to_each_other(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """Rings of foreign keys, within a table and over several, are undone and made again."""

        class Member(Base):
            __tablename__ = "member"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            next_id: Mapped[int | None] = mapped_column(sa.ForeignKey("member.id"))
            team_id: Mapped[int] = mapped_column(sa.ForeignKey("team.id"))

        class Team(Base):
            __tablename__ = "team"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            captain_id: Mapped[int | None] = mapped_column(
                sa.ForeignKey("member.id", use_alter=True, name="fk_captain")
            )
            members: Mapped[list[Any]] = relationship(
                Member, foreign_keys=Member.team_id, cascade="all, delete-orphan"
            )

        def state() -> list[Any]:
            return [
                sorted((obj.id, getattr(obj, name)) for obj in session.scalars(sa.select(cls)))
                for cls, name in ((Team, "captain_id"), (Member, "next_id"))
            ]

        session = open_session()
        team = Team(id=1, members=[Member(id=1), Member(id=2), Member(id=3)])
        session.add(team)
        session.flush()
        for member in team.members:
            member.next_id = member.id % 3 + 1
        team.captain_id = 1
        session.commit()
        made = state()
        for _ in range(2):
            last = sa.select(versioning.transaction_cls).order_by(
                versioning.transaction_cls.id.desc()
            )
            revert_transaction(session, session.scalars(last.limit(1)).one())
            session.commit()
            assert state() == [[], []]
            revert_transaction(session, session.scalars(last.limit(1)).one())
            session.commit()
            assert state() == made

    def test_a_row_that_refers_to_itself(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """It is deleted, which SQLAlchemy by itself refuses, and comes back as it was."""

        class Node(Base):
            __tablename__ = "node"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
            up_id: Mapped[int | None] = mapped_column(sa.ForeignKey("node.id"))
            up: Mapped[Any] = relationship("Node", remote_side=id)

        session = open_session()
        node = Node(id=1)
        session.add(node)
        session.flush()
        node.up_id = 1
        session.commit()
        revert_transaction(session, node.versions[0].transaction)
        session.commit()
        assert session.get(Node, 1) is None
        last = session.scalars(
            sa.select(version_class(Node)).where(version_class(Node).operation_type == 2)
        ).one()
        revert_transaction(session, last.transaction)
        session.commit()
        assert session.get(Node, 1).up_id == 1

    @sqlite_only
    def test_what_refers_without_a_constraint_goes_first(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """An order that relationships alone tell: a row is not emptied before it is deleted."""

        class Entry(Base):
            __tablename__ = "entry"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            word: Mapped[str | None] = mapped_column(sa.String(9))
            term: Mapped[Any] = relationship(
                "Term", primaryjoin="foreign(Entry.word) == Term.word", backref="entries"
            )

        class Term(Base):
            __tablename__ = "term"
            __versioned__: dict[str, Any] = {}
            word: Mapped[str] = mapped_column(sa.String(9), primary_key=True)

        session = open_session()
        entry = Entry(id=1, term=Term(word="a"))
        session.add(entry)
        session.commit()
        made = self.tx(entry, 0)
        revert_transaction(session, made)
        session.commit()
        cls = version_class(Entry)
        assert [v.word for v in session.scalars(sa.select(cls))] == ["a", "a"]
        revert_transaction(session, session.get(type(made), made.id + 1))
        session.commit()
        assert session.get(Entry, 1).term.word == "a"

    @sqlite_only
    def test_an_excluded_foreign_key_is_no_reference(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """What has no history comes back without; it tells nothing of the order."""

        class Shelf(Base):
            __tablename__ = "shelf"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)

        class Book(Base):
            __tablename__ = "book"
            __versioned__: ClassVar[dict[str, Any]] = {"exclude": ["shelf_id"]}
            id: Mapped[int] = mapped_column(primary_key=True)
            shelf_id: Mapped[int | None] = mapped_column(sa.ForeignKey("shelf.id"))
            shelf: Mapped[Shelf | None] = relationship()

        session = open_session()
        book = Book(id=1, shelf=Shelf(id=1))
        session.add(book)
        session.commit()
        made = self.tx(book, 0)
        for obj in (book.shelf, book):
            session.delete(obj)
        session.commit()
        revert_transaction(session, session.get(type(made), made.id + 1))
        session.commit()
        book = session.get(Book, 1)
        assert (book.shelf, session.get(Shelf, 1).id) == (None, 1)
        revert_transaction(session, made, overwrite=True)
        session.commit()
        assert session.get(Book, 1) is session.get(Shelf, 1) is None

    @sqlite_only
    def test_what_was_built_upon_it(self, session: Any, models: SimpleNamespace) -> None:
        """What refers to an object since, and would go or change with it, is a conflict."""
        m = models
        article = m.Article(id=1, name="a", comments=[m.Comment(id=1, text="x")])
        article.tags, article.countries = [m.Tag(id=1, name="t")], [m.Country(id=1, name="c")]
        session.add(article)
        session.commit()
        made = self.tx(article, 0)
        assert not revert_transaction(session, made, dry_run=True).conflicts
        article.comments.append(m.Comment(id=2, text="y"))
        article.tags.append(m.Tag(id=2, name="u"))
        session.commit()
        with pytest.raises(RevertConflict) as error:
            revert_transaction(session, made)
        found = sorted((str(c.attribute), str(c)) for c in error.value.conflicts)
        assert [name for name, _ in found] == ["comments", "tags"]
        assert "comments has got Comment(id=2)" in found[0][1]
        revert_transaction(session, made, overwrite=True)
        session.commit()
        assert session.scalars(sa.select(m.Comment)).all() == []
        assert names(session.scalars(sa.select(m.Tag))) == ["u"]

    @sqlite_only
    def test_relationships_that_are_loaded_with_their_objects(
        self, versioning: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """Collections that are loaded by a join, and links that refer to no primary key."""
        link = sa.Table(
            "link",
            Base.metadata,
            sa.Column("shop", sa.ForeignKey("shop.code"), primary_key=True),
            sa.Column("good", sa.ForeignKey("good.id"), primary_key=True),
        )

        class Good(Base):
            __tablename__ = "good"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(9))

        class Shop(Base):
            __tablename__ = "shop"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            code: Mapped[str] = mapped_column(sa.String(9), unique=True)
            open: Mapped[bool]
            goods: Mapped[list[Good]] = relationship(
                secondary=link, lazy="joined", order_by=Good.name
            )

        session = open_session()
        shop = Shop(code="s", open=False, goods=[Good(name="a"), Good(name="b")])
        session.add(shop)
        session.commit()
        shop.open = True
        shop.goods.pop()
        session.commit()
        revert_transaction(session, self.tx(shop, -1))
        session.commit()
        assert (shop.open, names(shop.goods)) == (False, ["a", "b"])

    @pytest.mark.parametrize("dry_run", [False, True])
    def test_rows_count_as_the_database_has_them(
        self, session: Any, models: SimpleNamespace, dry_run: bool
    ) -> None:
        """What the session holds may be stale, and what it has not flushed counts as well."""
        author, other = models.Author(id=1, name="a"), models.Author(id=2, name="x")
        session.add_all([author, other])
        session.commit()
        made = self.tx(author, 0)
        assert (author.name, other.name) == ("a", "x")
        change = sa.update(models.Author).where(models.Author.id == 1).values(name="b")
        session.execute(change, execution_options={"synchronize_session": False})
        with session.no_autoflush:
            other.name = "y"
            assert author.name == "a"
            if dry_run:
                conflicts = revert_transaction(session, made, dry_run=True).conflicts
            else:
                with pytest.raises(RevertConflict) as error:
                    revert_transaction(session, made)
                conflicts = error.value.conflicts
            assert (author.name, other.name) == ("b", "y")
        assert sorted(conflict.reason for conflict in conflicts) == [
            "name has become 'b' since it was made",
            "name has become 'y' since it was made",
        ]

    @sqlite_only
    def test_the_running_transaction_can_be_undone(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """Its versions count as they are by now, not as they were loaded."""
        author = models.Author(id=1, name="a")
        session.add(author)
        session.flush()
        assert author.versions[0].name == "a"
        version = author.versions[0]
        author.name = "b"
        session.flush()
        report = revert_transaction(session, version.transaction)
        assert [one.action for one in report.objects] == ["deleted"]
        session.commit()
        assert session.get(models.Author, 1) is None

    @pytest.mark.parametrize("gone", [False, True])
    def test_links_count_as_the_database_has_them(
        self, session: Any, models: SimpleNamespace, gone: bool
    ) -> None:
        """A link that was removed, or made again, behind a loaded collection is known as that."""
        m = models
        article, tag = m.Article(id=1, name="a"), m.Tag(id=1, name="t")
        session.add_all([article, tag])
        session.commit()
        article.tags.append(tag)
        session.commit()
        if not gone:
            article.tags.remove(tag)
            session.commit()
        table = sa.inspect(m.Article).relationships.tags.secondary
        last = session.scalars(
            sa.select(transaction_class(m.Article)).order_by(sa.desc("id")).limit(1)
        ).one()
        assert names(article.tags) == (["t"] if gone else [])
        if gone:
            session.execute(sa.delete(table))
        else:
            session.execute(sa.insert(table), {"article_id": 1, "tag_id": 1})
        assert names(article.tags) == (["t"] if gone else [])
        revert_transaction(session, last)
        session.commit()
        assert names(article.tags) == ([] if gone else ["t"])

    @sqlite_only
    def test_a_link_to_what_is_gone_is_a_conflict(
        self, session: Any, models: SimpleNamespace
    ) -> None:
        """A link that cannot be made again is told of; the rest can be undone nevertheless."""
        m = models
        article, tag = m.Article(id=1, name="a"), m.Tag(id=1, name="t")
        article.tags = [tag, m.Tag(id=2, name="u")]
        session.add(article)
        session.commit()
        article.tags, article.name = [], "b"
        session.commit()
        last = self.tx(article, -1)
        session.delete(tag)
        session.commit()
        with pytest.raises(RevertConflict, match="Tag, which it linked, is gone") as error:
            revert_transaction(session, last)
        (conflict,) = error.value.conflicts
        assert (conflict.attribute, conflict.version["tag_id"]) == ("tags", 1)
        report = revert_transaction(session, last, overwrite=True)
        session.commit()
        assert (article.name, names(article.tags)) == ("a", ["u"])
        assert len(report.conflicts) == 1

    @sqlite_only
    def test_unique_values_that_changed_hands(
        self, versioning: Any, options: Any, Base: Any, open_session: Callable[..., Any]
    ) -> None:
        """Unique values go back, also to a row that is made and from one that is deleted."""

        class Seat(Base):
            __tablename__ = "seat"
            __versioned__: dict[str, Any] = {}
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str] = mapped_column(sa.String(40), unique=True)

        def state() -> dict[int, str]:
            return {seat.id: seat.name for seat in session.scalars(sa.select(Seat))}

        session = open_session()
        one, two, three = (Seat(id=i, name=str(i)) for i in (1, 2, 3))
        session.add_all([one, two, three])
        session.commit()
        session.delete(three)
        for seat, name in ((one, "x"), (two, "1"), (one, "2")):
            seat.name = name
            session.flush()
        session.add(Seat(id=4, name="3"))
        session.commit()
        assert state() == {1: "2", 2: "1", 4: "3"}
        for expected in ({1: "1", 2: "2", 3: "3"}, {1: "2", 2: "1", 4: "3"}):
            revert_transaction(session, one.versions[-1].transaction)
            session.commit()
            assert state() == expected
        cls = version_class(Seat)
        deleted = session.scalars(sa.select(cls).where(cls.operation_type == 2)).all()
        assert sorted(seat.id for seat in deleted) == [3, 3, 4]
        if not options.get("native_versioning"):
            assert {seat.name for seat in deleted} == {"3"}
        assert session.query(transaction_class(Seat)).count() == 4


class TestAsync:
    def test_in_a_fresh_session(
        self, versioning: Any, Base: Any, open_async_session: Any, run_async: Any
    ) -> None:
        """`await version.arevert()` loads what it needs, in a session that has nothing loaded."""
        models = declare(Base)

        async def main() -> None:
            session = await open_async_session()
            await session.run_sync(tell, models)
            fresh = await open_async_session()
            cls = version_class(models.Article)
            versions = (await fresh.scalars(sa.select(cls).order_by(cls.transaction_id))).all()
            report = await versions[0].arevert(relations=ALL)
            assert report.object.id == 1
            await fresh.commit()
            last = await open_async_session()
            article = await last.get(models.Article, 1)
            assert (await last.run_sync(lambda s: graph(article)))["comments"] == [
                (1, "first"),
                (2, "second"),
            ]

        run_async(main)
