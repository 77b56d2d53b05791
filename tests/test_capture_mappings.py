"""What mappings make of a flush: keys that change, row switches, orphans, inheritance."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.declarative import DeferredReflection
from sqlalchemy.orm import Session, mapped_column, relationship

from chain import DELETE, EACH_ONCE, INSERT, UPDATE, count_transactions, history, laws

__all__ = ["laws"]

pytestmark = EACH_ONCE


def simple(base: Any, **arguments: Any) -> Any:
    class Thing(base):
        __tablename__ = "thing"
        __versioned__ = {}
        __mapper_args__ = arguments
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        name = mapped_column(sa.String(20))

    return Thing


# -- keys that change


def test_a_changed_key(versioning, Base, open_session) -> None:
    """The old identity ends with DELETE, the new one begins with INSERT; the old key is free."""
    cls = simple(Base)
    session = open_session()
    thing = cls(id=1, name="a")
    session.add(thing)
    session.commit()
    thing.id = 2
    session.commit()
    session.add(cls(id=1, name="b"))
    session.commit()
    thing.name = "c"
    session.commit()
    assert history(session, cls) == [
        (1, INSERT, 1, "a"),
        (2, DELETE, 1, "a"),
        (2, INSERT, 2, "a"),
        (3, INSERT, 1, "b"),
        (4, UPDATE, 2, "c"),
    ]


def test_a_key_changed_there_and_back(versioning, Base, open_session) -> None:
    """1 -> 2 -> 1 in one transaction is nothing; 1 -> 2 -> 3 is 1 -> 3."""
    cls = simple(Base)
    session = open_session()
    thing = cls(id=1, name="a")
    session.add(thing)
    session.commit()
    thing.id = 2
    session.flush()
    thing.id = 1
    session.commit()
    assert history(session, cls) == [(1, INSERT, 1, "a")]
    assert count_transactions(session, cls) == 1
    thing.id = 2
    session.flush()
    thing.id = 3
    thing.name = "b"
    session.commit()
    assert history(session, cls)[1:] == [(2, DELETE, 1, "a"), (2, INSERT, 3, "b")]


def test_keys_handed_on_in_one_transaction(versioning, Base, open_session) -> None:
    """2 -> 3, then 1 -> 2: key 2 has another object, which is an UPDATE of that row's history."""
    cls = simple(Base)
    session = open_session()
    one, two = cls(id=1, name="a"), cls(id=2, name="b")
    session.add_all([one, two])
    session.commit()
    two.id = 3
    session.flush()
    one.id = 2
    session.commit()
    assert history(session, cls)[2:] == [
        (2, DELETE, 1, "a"),
        (2, UPDATE, 2, "a"),
        (2, INSERT, 3, "b"),
    ]


@pytest.mark.backends("postgresql", "mariadb", "sqlite")
@pytest.mark.parametrize("passive", [True, False])
def test_a_changed_key_with_dependents(versioning, Base, open_session, passive) -> None:
    """Children that follow the key of their parent, by the session or by ON UPDATE CASCADE."""

    class Parent(Base):
        __tablename__ = "parent"
        __versioned__ = {}
        code = mapped_column(sa.String(10), primary_key=True)
        children = relationship("Child", passive_updates=passive)

    class Child(Base):
        __tablename__ = "child"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        code = mapped_column(
            sa.ForeignKey("parent.code", onupdate="CASCADE", deferrable=None, initially=None)
        )

    if not passive:
        # the session updates children after the parent, which a foreign key would not let it do
        Child.__table__.constraints = {
            c for c in Child.__table__.constraints if not isinstance(c, sa.ForeignKeyConstraint)
        }
    session = open_session()
    parent = Parent(code="a", children=[Child(id=1), Child(id=2)])
    session.add(parent)
    session.commit()
    assert len(parent.children) == 2
    parent.code = "b"
    session.commit()
    assert history(session, Parent)[1:] == [(2, DELETE, "a"), (2, INSERT, "b")]
    assert history(session, Child)[2:] == [(2, UPDATE, 1, "b"), (2, UPDATE, 2, "b")]


# -- row switches


@pytest.mark.parametrize(("name", "expected"), [("b", [(2, UPDATE, 1, "b")]), ("a", [])])
def test_a_row_switch(versioning, Base, open_session, name, expected) -> None:
    """A deleted object and a new one with its key, in one flush: an UPDATE, or nothing."""
    cls = simple(Base)
    session = open_session()
    session.add(cls(id=1, name="a"))
    session.commit()
    session.delete(session.get(cls, 1))
    session.add(cls(id=1, name=name))
    session.commit()
    assert history(session, cls)[1:] == expected


@pytest.mark.parametrize("kind", ["one", "many"])
def test_orphans(versioning, Base, open_session, kind) -> None:
    """Removed children are deleted; a replaced one with the same key is an UPDATE."""

    class Parent(Base):
        __tablename__ = "parent"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        child = relationship("Only", cascade="all, delete-orphan", uselist=False)
        children = relationship("Child", cascade="all, delete-orphan")

    class Only(Base):
        __tablename__ = "only"
        __versioned__ = {}
        id = mapped_column(sa.ForeignKey("parent.id"), primary_key=True)
        name = mapped_column(sa.String(10))

    class Child(Base):
        __tablename__ = "child"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        parent_id = mapped_column(sa.ForeignKey("parent.id"))
        toys = relationship("Toy", cascade="all, delete-orphan")

    class Toy(Base):
        __tablename__ = "toy"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        child_id = mapped_column(sa.ForeignKey("child.id"))

    session = open_session()
    parent = Parent(id=1)
    session.add(parent)
    if kind == "one":
        parent.child = Only(name="a")
        session.commit()
        parent.child = Only(name="b")
        session.commit()
        parent.child = None
        session.commit()
        assert history(session, Only, "name") == [
            (1, INSERT, "a"),
            (2, UPDATE, "b"),
            (3, DELETE, "b"),
        ]
    else:
        parent.children = [Child(id=1, toys=[Toy(id=1)]), Child(id=2)]
        session.commit()
        del parent.children[0]
        session.commit()
        assert history(session, Child)[2:] == [(2, DELETE, 1, 1)]
        assert history(session, Toy)[1:] == [(2, DELETE, 1, 1)]
        session.delete(parent)
        session.commit()
        assert history(session, Child)[3:] == [(3, DELETE, 2, 1)]
    if kind == "one":
        assert len(history(session, Parent)) == 1


def test_children_whose_key_is_nulled(versioning, Base, open_session) -> None:
    """Without a delete cascade, children of a deleted parent get an UPDATE."""

    class Parent(Base):
        __tablename__ = "parent"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        children = relationship("Child")

    class Child(Base):
        __tablename__ = "child"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        parent_id = mapped_column(sa.ForeignKey("parent.id"))

    session = open_session()
    parent = Parent(id=1, children=[Child(id=1)])
    session.add(parent)
    session.commit()
    session.delete(parent)
    session.commit()
    assert history(session, Child) == [(1, INSERT, 1, 1), (2, UPDATE, 1, None)]
    assert history(session, Parent) == [(1, INSERT, 1), (2, DELETE, 1)]


def test_an_unversioned_child(versioning, Base, open_session) -> None:
    """An unversioned child that is appended is no change of its parent."""

    class Parent(Base):
        __tablename__ = "parent"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        children = relationship("Child")

    class Child(Base):
        __tablename__ = "child"
        id = mapped_column(sa.Integer, primary_key=True)
        parent_id = mapped_column(sa.ForeignKey("parent.id"))

    session = open_session()
    parent = Parent(id=1)
    session.add(parent)
    session.commit()
    parent.children.append(Child())
    session.commit()
    assert history(session, Parent) == [(1, INSERT, 1)]
    assert count_transactions(session, Parent) == 1


def test_post_update(versioning, Base, open_session) -> None:
    """Two rows that refer to each other: the key set by `post_update` is in the INSERT version."""

    class Group(Base):
        __tablename__ = "grp"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        favourite_id = mapped_column(
            sa.ForeignKey("member.id", use_alter=True, name="fk_favourite")
        )
        members = relationship("Member", foreign_keys="Member.group_id")
        favourite = relationship("Member", foreign_keys=favourite_id, post_update=True)

    class Member(Base):
        __tablename__ = "member"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        group_id = mapped_column(sa.ForeignKey("grp.id"))

    session = open_session()
    members = [Member(id=1), Member(id=2)]
    group = Group(id=1, members=members, favourite=members[0])
    session.add(group)
    session.commit()
    group.favourite = members[1]
    session.commit()
    session.delete(group)
    session.commit()
    rows = history(session, Group)
    assert rows[:2] == [(1, INSERT, 1, 1), (2, UPDATE, 1, 2)]
    assert rows[2][:3] == (3, DELETE, 1)
    assert history(session, Member)[2:] == [(3, UPDATE, 1, None), (3, UPDATE, 2, None)]


@pytest.mark.parametrize("generator", ["count", "own", "server"])
@pytest.mark.orm_capture(reason="triggers record what is written past the session, too")
def test_optimistic_locks(versioning, Base, open_session, generator) -> None:
    """The lock column is recorded like any other; a stale row fails, and the retry is recorded."""
    how: dict[str, Any] = {
        "count": {},
        "own": {"version_id_generator": lambda version: (version or 0) + 10},
        "server": {"version_id_generator": False},
    }[generator]

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))
        lock = mapped_column(
            sa.Integer,
            nullable=False,
            **(
                {"server_default": "1", "onupdate": sa.text("lock_no + 1")}
                if generator == "server"
                else {}
            ),
            name="lock_no",
        )
        __mapper_args__ = {"version_id_col": lock, **how}

    session = open_session()
    thing = Thing(id=1, name="a")
    session.add(thing)
    session.commit()
    thing.name = "b"
    session.commit()
    with session.get_bind().begin() as connection:
        connection.execute(sa.update(Thing.__table__).values(lock_no=99))
    thing.name = "c"
    sa.orm.attributes.set_committed_value(thing, "lock", 2)
    with pytest.raises(sa.orm.exc.StaleDataError):
        session.flush()
    session.rollback()
    with session.get_bind().begin() as connection:
        table = Thing.__table__
        stored = {"count": 2, "own": 20, "server": 2}[generator]
        connection.execute(sa.update(table).values(lock_no=stored))
    session.delete(thing)
    session.commit()
    step = 10 if generator == "own" else 1
    assert history(session, Thing, "name", "lock_no") == [
        (1, INSERT, "a", step),
        (2, UPDATE, "b", 2 * step),
        (3, DELETE, "b", 2 * step),
    ]


# -- inheritance


def test_single_table_inheritance(versioning, Base, open_session) -> None:
    """Objects of base and subclasses, in one table, in one flush."""

    class Animal(Base):
        __tablename__ = "animal"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        kind = mapped_column(sa.String(10))
        name = mapped_column(sa.String(10))
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "animal"}

    class Dog(Animal):
        breed = mapped_column(sa.String(10))
        __mapper_args__ = {"polymorphic_identity": "dog"}

    class Cat(Animal):
        lives = mapped_column(sa.Integer)
        __mapper_args__ = {"polymorphic_identity": "cat"}

    session = open_session()
    animals = [Animal(id=1, name="x"), Dog(id=2, breed="pug"), Cat(id=3, lives=9)]
    session.add_all(animals)
    session.commit()
    animals[0].name = "y"
    animals[1].breed = "poodle"
    session.delete(animals[2])
    session.commit()
    session.delete(animals[1])
    session.add(Cat(id=2, lives=7))
    session.commit()
    assert history(session, Animal, "id", "kind", "name", "breed", "lives") == [
        (1, INSERT, 1, "animal", "x", None, None),
        (1, INSERT, 2, "dog", None, "pug", None),
        (1, INSERT, 3, "cat", None, None, 9),
        (2, UPDATE, 1, "animal", "y", None, None),
        (2, UPDATE, 2, "dog", None, "poodle", None),
        (2, DELETE, 3, "cat", None, None, 9),
        # SQLAlchemy leaves the columns of the other class as they were
        (3, UPDATE, 2, "cat", None, "poodle", 7),
    ]


def test_joined_inheritance_of_several_levels(versioning, Base, open_session, laws) -> None:
    """A change of any table's part gives each of the object's tables a version; others none."""
    laws.repeats = True

    class Item(Base):
        __tablename__ = "item"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        kind = mapped_column(sa.String(10))
        name = mapped_column(sa.String(10))
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "item"}

    class Book(Item):
        __tablename__ = "book"
        book_id = mapped_column(sa.ForeignKey("item.id"), primary_key=True)
        pages = mapped_column(sa.Integer)
        __mapper_args__ = {"polymorphic_identity": "book"}

    class Novel(Book):
        __tablename__ = "novel"
        novel_id = mapped_column(sa.ForeignKey("book.book_id"), primary_key=True)
        plot = mapped_column(sa.String(10))
        __mapper_args__ = {"polymorphic_identity": "novel"}

    class Comic(Book):
        """No table of its own."""

        __mapper_args__ = {"polymorphic_identity": "comic"}

    session = open_session()
    objects = [
        Item(id=1, name="i"),
        Book(id=2, name="b", pages=1),
        Novel(id=3, name="n", pages=2, plot="p"),
        Comic(id=4, name="c", pages=3),
    ]
    session.add_all(objects)
    session.commit()
    objects[2].plot = "q"
    session.commit()
    objects[2].name = sa.func.upper("m")
    objects[3].pages = Book.pages + 1
    session.commit()
    objects[2].plot = "r"
    session.flush()
    objects[2].plot = "q"
    objects[2].pages = 2
    session.commit()
    session.expire_all()
    for one in objects[1:]:
        session.delete(one)
    session.commit()
    assert [row[:3] for row in history(session, Item, "id")] == [
        *((1, INSERT, n) for n in (1, 2, 3, 4)),
        (2, UPDATE, 3),
        (3, UPDATE, 3),
        (3, UPDATE, 4),
        *((4, DELETE, n) for n in (2, 3, 4)),
    ]
    assert history(session, Book, "book_id", "pages") == [
        *((1, INSERT, n, n - 1) for n in (2, 3, 4)),
        (2, UPDATE, 3, 2),
        (3, UPDATE, 3, 2),
        (3, UPDATE, 4, 4),
        (4, DELETE, 2, 1),
        (4, DELETE, 3, 2),
        (4, DELETE, 4, 4),
    ]
    assert [(row[0], row[1], row[3]) for row in history(session, Novel)] == [
        (1, INSERT, "p"),
        (2, UPDATE, "q"),
        (3, UPDATE, "q"),
        (4, DELETE, "q"),
    ]


def test_concrete_inheritance(versioning, Base, open_session) -> None:
    """Each class's table has its own history; equal keys in two tables are two rows."""

    class Item(Base):
        __tablename__ = "item"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(10))

    class Book(Item):
        __tablename__ = "book"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(10))
        pages = mapped_column(sa.Integer)
        __mapper_args__ = {"concrete": True}

    session = open_session()
    item, book = Item(id=1, name="a"), Book(id=1, name="b", pages=1)
    session.add_all([item, book])
    session.commit()
    item.name = "c"
    session.commit()
    session.delete(book)
    session.commit()
    assert history(session, Item) == [(1, INSERT, 1, "a"), (2, UPDATE, 1, "c")]
    assert history(session, Book) == [(1, INSERT, 1, "b", 1), (3, DELETE, 1, "b", 1)]


def test_polymorphic_on_an_expression(versioning, Base, open_session) -> None:
    """The discriminator is computed from a column."""

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        size = mapped_column(sa.Integer)
        __mapper_args__ = {
            "polymorphic_on": sa.case((size > 10, "big"), else_="small"),
            "polymorphic_identity": "small",
        }

    class Big(Thing):
        __mapper_args__ = {"polymorphic_identity": "big"}

    session = open_session()
    small, big = Thing(id=1, size=1), Big(id=2, size=20)
    session.add_all([small, big])
    session.commit()
    small.size, big.size = 2, 30
    session.commit()
    assert history(session, Thing)[2:] == [(2, UPDATE, 1, 2), (2, UPDATE, 2, 30)]


@pytest.mark.orm_capture(reason="triggers record all rows of a table")
def test_a_subclass_that_opts_out(versioning, Base, open_session, laws) -> None:
    """`__versioned__ = {"versioning": False}` of a subclass leaves its objects out."""
    laws.whole = False

    class Item(Base):
        __tablename__ = "item"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        kind = mapped_column(sa.String(10))
        name = mapped_column(sa.String(10))
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "item"}

    class Draft(Item):
        __versioned__ = {"versioning": False}
        __mapper_args__ = {"polymorphic_identity": "draft"}

    session = open_session()
    draft = Draft(id=1, name="a")
    session.add_all([draft, Item(id=2, name="a")])
    session.commit()
    draft.name = "b"
    session.commit()
    session.delete(draft)
    session.commit()
    assert history(session, Item, "id") == [(1, INSERT, 2)]


@pytest.mark.orm_capture(reason="triggers record all rows of a table")
def test_only_a_subclass_versioned(versioning, Base, open_session, laws) -> None:
    """A versioned subclass of an unversioned base: its state, not the base's objects."""
    laws.whole = False
    laws.repeats = True

    class Item(Base):
        __tablename__ = "item"
        id = mapped_column(sa.Integer, primary_key=True)
        kind = mapped_column(sa.String(10))
        name = mapped_column(sa.String(10))
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "item"}

    class Book(Item):
        __tablename__ = "book"
        __versioned__ = {}
        id = mapped_column(sa.ForeignKey("item.id"), primary_key=True)
        pages = mapped_column(sa.Integer)
        __mapper_args__ = {"polymorphic_identity": "book"}

    session = open_session()
    item, book = Item(id=1, name="a"), Book(id=2, name="b", pages=1)
    session.add_all([item, book])
    session.commit()
    item.name = "c"
    session.commit()
    book.name = "d"
    session.commit()
    assert history(session, Item, "id", "name") == [(1, INSERT, 2, "b"), (2, UPDATE, 2, "d")]
    assert count_transactions(session, Item) == 2


def test_excluded_columns(versioning, Base, open_session) -> None:
    """A change of an excluded column is none."""

    class Thing(Base):
        __tablename__ = "thing"
        __versioned__ = {"exclude": ["views"]}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(10))
        views = mapped_column(sa.Integer)

    session = open_session()
    thing = Thing(id=1, name="a", views=0)
    session.add(thing)
    session.commit()
    thing.views = 1
    session.commit()
    thing.views = Thing.views + 1
    session.commit()
    session.expire(thing)
    thing.views = 5
    thing.name = "a"
    session.commit()
    assert history(session, Thing) == [(1, INSERT, 1, "a")]
    assert count_transactions(session, Thing) == 1


def test_beside_a_class_that_is_not_mapped_yet(versioning, Base, open_session) -> None:
    """A class whose mapping is deferred, here until tables are reflected, is no obstacle."""

    class Later(DeferredReflection, Base):
        __tablename__ = "later"
        id = mapped_column(sa.Integer, primary_key=True)

    cls = simple(Base)
    session = open_session()
    session.add(cls(id=1, name="a"))
    session.commit()
    assert history(session, cls) == [(1, INSERT, 1, "a")]
    assert not hasattr(Later, "__mapper__")


def test_nothing_happens_in_a_session_that_only_reads(
    versioning, Base, open_session, engine, statements
) -> None:
    """Loading, refreshing and expiring versioned objects emits no statement of ours."""
    cls = simple(Base)
    session: Session = open_session()
    session.add(cls(id=1, name="a"))
    session.commit()
    with statements(engine) as log:
        thing = session.get(cls, 1)
        session.refresh(thing)
        session.flush()
        session.commit()
    assert not log.containing("_version")
    assert not log.containing("transaction")
