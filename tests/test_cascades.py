"""What the database does by itself to the rows that refer to others is recorded from the metadata."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import backref, mapped_column, relationship

from chain import DELETE, INSERT, UPDATE, history, laws

__all__ = ["laws"]


@pytest.fixture
def tree(versioning: Any, Base: Any) -> Any:
    """Shelf > book > page by CASCADE, a book's owner by SET NULL, links of books by CASCADE."""
    marks = sa.Table(
        "marks",
        Base.metadata,
        sa.Column("book_id", sa.ForeignKey("book.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id", ondelete="CASCADE"), primary_key=True),
    )

    class Shelf(Base):
        __tablename__ = "shelf"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        books = relationship("Book", passive_deletes=True, back_populates="shelf")

    class Owner(Base):
        __tablename__ = "owner"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        books = relationship("Book", passive_deletes="all", back_populates="owner")

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class Book(Base):
        __tablename__ = "book"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        shelf_id = mapped_column(sa.ForeignKey("shelf.id", ondelete="CASCADE"))
        owner_id = mapped_column(sa.ForeignKey("owner.id", ondelete="SET NULL"))
        title = mapped_column(sa.String(20))
        shelf = relationship(Shelf, back_populates="books")
        owner = relationship(Owner, back_populates="books")
        pages = relationship("Page", passive_deletes=True)
        tags = relationship(Tag, secondary=marks, passive_deletes=True)

    class Page(Base):
        __tablename__ = "page"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        book_id = mapped_column(sa.ForeignKey("book.id", ondelete="CASCADE"))

    return Shelf, Owner, Book, Page, Tag, marks


@pytest.fixture
def session(tree: Any, open_session: Any) -> Any:
    """Books 1 and 2 on shelf 1, book 3 on shelf 2, each with a page, an owner and a tag."""
    shelf, owner, book, page, tag, _ = tree
    session = open_session()
    session.add_all([shelf(id=1), shelf(id=2), owner(id=1), tag(id=1)])
    session.flush()
    for n in (1, 2, 3):
        session.add(
            book(
                id=n,
                title=f"b{n}",
                shelf_id=1 + n // 3,
                owner_id=1,
                pages=[page(id=n)],
                tags=[session.get(tag, 1)],
            )
        )
    session.commit()
    session.expunge_all()
    return session


def since(session: Any, entity: Any, *names: str) -> list[Any]:
    """What was recorded after the first transaction."""
    session.commit()
    return [row for row in history(session, entity, *names) if row[0] > 1]


def by_unit_of_work(session: Any, cls: Any, key: int) -> None:
    session.delete(session.get(cls, key))


def by_loaded_unit_of_work(session: Any, cls: Any, key: int) -> None:
    """With the children in the session, of which the unit of work deletes some by itself."""
    found = session.get(cls, key)
    for one in found.books:
        assert one.pages
    session.delete(found)


def by_statement(session: Any, cls: Any, key: int) -> None:
    session.execute(sa.delete(cls).where(cls.id.in_([key])))


def by_key(session: Any, cls: Any, key: int) -> None:
    session.connection().execute(
        sa.delete(cls.__table__).where(cls.id == sa.bindparam("x")), [{"x": key}, {"x": 99}]
    )


WAYS = pytest.mark.parametrize("delete", [by_unit_of_work, by_statement, by_key])


@WAYS
def test_delete_cascades_over_levels(session, tree, delete) -> None:
    """Everything below a deleted row gets a DELETE version with its last values."""
    shelf, _, book, page, _, marks = tree
    delete(session, shelf, 1)
    assert since(session, shelf) == [(2, DELETE, 1)]
    assert since(session, book, "id", "title") == [(2, DELETE, 1, "b1"), (2, DELETE, 2, "b2")]
    assert since(session, page, "id") == [(2, DELETE, 1), (2, DELETE, 2)]
    assert since(session, marks, "book_id") == [(2, DELETE, 1), (2, DELETE, 2)]


@WAYS
def test_set_null(session, tree, delete) -> None:
    """A reference that the database empties is an UPDATE."""
    _, owner, book, page, _, _ = tree
    delete(session, owner, 1)
    assert since(session, owner) == [(2, DELETE, 1)]
    assert since(session, book, "id", "owner_id", "title") == [
        (2, UPDATE, n, None, f"b{n}") for n in (1, 2, 3)
    ]
    assert since(session, page) == []


@pytest.mark.backends("sqlite", "postgresql")
def test_children_that_the_session_knows(session, tree) -> None:
    """Children that the unit of work has changed or deleted itself are recorded once."""
    shelf, _, book, page, _, _ = tree
    session.get(book, 1).title = "changed"
    session.delete(session.get(page, 2))
    by_loaded_unit_of_work(session, shelf, 2)
    session.flush()
    by_statement(session, shelf, 1)
    assert since(session, book, "id", "title") == [
        (2, DELETE, 1, "changed"),
        (2, DELETE, 2, "b2"),
        *[(2, UPDATE, 3, "b3")],
    ]
    assert since(session, page, "id") == [(2, DELETE, 1), (2, DELETE, 2)]


def test_children_inserted_in_the_same_transaction(session, tree) -> None:
    """A child that is inserted and deleted by a cascade in one transaction leaves nothing."""
    shelf, _, book, page, _, _ = tree
    session.add(book(id=9, shelf_id=2, title="b9", pages=[page(id=9)]))
    session.flush()
    by_statement(session, shelf, 2)
    assert since(session, book, "id") == [(2, DELETE, 3)]
    assert since(session, page, "id") == [(2, DELETE, 3)]


@pytest.mark.backends("sqlite")
def test_foreign_keys_that_are_off(session, tree, laws) -> None:
    """Where the database does not enforce foreign keys nothing is recorded of them."""
    shelf, _, book, _, _, _ = tree
    session.connection().connection.dbapi_connection.rollback()
    session.connection().exec_driver_sql("PRAGMA foreign_keys = OFF")
    by_statement(session, shelf, 1)
    assert since(session, book) == []
    session.connection().connection.dbapi_connection.rollback()
    session.connection().exec_driver_sql("PRAGMA foreign_keys = ON")


def test_a_parent_without_history(versioning, Base, open_session) -> None:
    """Parents, and tables in between, need no history of their own."""

    class Site(Base):
        __tablename__ = "site"
        id = mapped_column(sa.Integer, primary_key=True)

    class Section(Base):
        __tablename__ = "section"
        id = mapped_column(sa.Integer, primary_key=True)
        site_id = mapped_column(sa.ForeignKey("site.id", ondelete="CASCADE"))

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        section_id = mapped_column(sa.ForeignKey("section.id", ondelete="CASCADE"))

    session = open_session()
    session.add_all([Site(id=1), Site(id=2)])
    session.flush()
    session.add_all([Section(id=1, site_id=1), Section(id=2, site_id=2), Section(id=3, site_id=2)])
    session.flush()
    session.add_all([Article(id=n, section_id=n) for n in (1, 2, 3)])
    session.commit()
    session.delete(session.get(Site, 1))
    session.commit()
    session.execute(sa.delete(Site).where(Site.id > 1))
    assert since(session, Article, "id") == [(2, DELETE, 1), (3, DELETE, 2), (3, DELETE, 3)]


def test_a_child_that_is_declared_later(versioning, Base, make_base, engine, open_session) -> None:
    """What a flush has learnt of a table does not hold when another one refers to it."""

    class Parent(Base):
        __tablename__ = "parent"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))

    session = open_session()
    session.add(Parent(id=1, name="a"))
    session.commit()

    class Child(Base):
        __tablename__ = "child"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        parent_id = mapped_column(sa.ForeignKey("parent.id", ondelete="CASCADE"))

    sa.orm.configure_mappers()
    make_base.create_all(engine)
    session.add(Child(id=2, parent_id=1))
    session.commit()
    session.delete(session.get_one(Parent, 1))
    session.commit()
    assert history(session, Child)[-1][1] == DELETE


def test_a_table_that_refers_to_itself(versioning, Base, open_session) -> None:
    """A tree, down to its leaves."""

    class Node(Base):
        __tablename__ = "node"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        parent_id = mapped_column(sa.ForeignKey("node.id", ondelete="CASCADE"))
        children = relationship(
            "Node", passive_deletes=True, backref=backref("parent", remote_side=[id])
        )

    session = open_session()
    for n, parent in ((1, None), (2, 1), (3, 2), (4, 3), (5, None), (6, 5)):
        session.add(Node(id=n, parent_id=parent))
        session.flush()
    session.commit()
    session.execute(sa.delete(Node).where(Node.id == 1))
    session.commit()
    session.expunge_all()
    session.delete(session.get(Node, 5))
    assert since(session, Node, "id") == [
        *((2, DELETE, n) for n in (1, 2, 3, 4)),
        (3, DELETE, 5),
        (3, DELETE, 6),
    ]


@pytest.mark.backends("sqlite", "postgresql")
def test_set_default(versioning, Base, open_session) -> None:
    """The default is the database's: the version shows what the row got."""

    class Group(Base):
        __tablename__ = "team"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class Person(Base):
        __tablename__ = "person"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        team_id = mapped_column(
            sa.ForeignKey("team.id", ondelete="SET DEFAULT"), server_default=sa.text("1")
        )

    session = open_session()
    session.add_all([Group(id=n) for n in (1, 2)])
    session.flush()
    session.add_all([Person(id=1, team_id=2), Person(id=2, team_id=1)])
    session.commit()
    session.execute(sa.delete(Group).where(Group.id > 1))
    assert since(session, Person) == [(2, UPDATE, 1, 1)]


@pytest.fixture
def codes(versioning: Any, Base: Any) -> Any:
    """Country > city by ON UPDATE CASCADE; the keys of visits are the codes themselves."""

    class Country(Base):
        __tablename__ = "country"
        __versioned__ = {}
        code = mapped_column(sa.String(5), primary_key=True)

    class City(Base):
        __tablename__ = "city"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        country = mapped_column(sa.ForeignKey("country.code", onupdate="CASCADE"))

    class Visit(Base):
        __tablename__ = "visit"
        __versioned__ = {}
        country = mapped_column(sa.ForeignKey("country.code", onupdate="CASCADE"), primary_key=True)
        year = mapped_column(sa.Integer, primary_key=True)
        notes = relationship("Note", passive_updates=True)

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        country = mapped_column(sa.String(5))
        year = mapped_column(sa.Integer)
        __table_args__ = (
            sa.ForeignKeyConstraint(
                [country, year], ["visit.country", "visit.year"], onupdate="CASCADE"
            ),
        )

    return Country, City, Visit, Note


@pytest.mark.parametrize("how", ["statement", "expression", "flush"])
def test_on_update_cascade(codes, open_session, how) -> None:
    """A key that changes takes along what refers to it, over levels, keys of others included."""
    country, city, visit, note = codes
    session = open_session()
    session.add_all([country(code="de"), country(code="fr")])
    session.flush()
    session.add_all(
        [city(id=1, country="de"), city(id=2, country="fr"), visit(country="de", year=1)]
    )
    session.flush()
    session.add(note(id=1, country="de", year=1))
    session.commit()
    if how == "flush":
        session.get(country, "de").code = "xde"
    else:
        new = "xde" if how == "statement" else sa.literal("x").concat(country.code)
        session.execute(
            sa.update(country).where(country.code.like("d%")).values(code=new),
            execution_options={"synchronize_session": False},
        )
    assert sorted(since(session, country)) == [(2, INSERT, "xde"), (2, DELETE, "de")]
    assert since(session, city) == [(2, UPDATE, 1, "xde")]
    assert sorted(since(session, visit)) == [(2, INSERT, "xde", 1), (2, DELETE, "de", 1)]
    assert since(session, note) == [(2, UPDATE, 1, "xde", 1)]


def test_nothing_refers_to_it(session, tree, engine, statements) -> None:
    """A DELETE that reaches nobody costs no version."""
    _, _, book, page, _, _ = tree
    session.execute(sa.delete(page).where(page.id == 1))
    assert since(session, book) == []
    with statements(engine) as log:
        session.execute(sa.delete(book).where(book.title == "nothing"))
    assert not log.containing("page")
    session.commit()
