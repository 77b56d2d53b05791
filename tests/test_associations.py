"""Rows of association tables, by relationships and by statements, are recorded as rows."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.associationproxy import association_proxy
from sqlalchemy.orm import backref, mapped_column, relationship

from chain import DELETE, EACH_ONCE, INSERT, UPDATE, count_transactions, history, laws
from sqlalchemy_history import TableNotVersioned, is_versioned, version_table

__all__ = ["laws"]

pytestmark = EACH_ONCE

sqlite_only = pytest.mark.backends("sqlite")


@pytest.fixture
def models(versioning: Any, Base: Any) -> Any:
    """Article with tags, a plain many-to-many."""
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20))
        tags = relationship(Tag, secondary=links, backref="articles", order_by=Tag.id)

    return Article, Tag, links


@pytest.fixture
def linked(models: Any, open_session: Any) -> Any:
    """A session; article 1 has the tags 1 and 2; tag 3 is there, too."""
    article, tag, _links = models
    session = open_session()
    tags = [tag(id=n, name=f"tag {n}") for n in (1, 2, 3)]
    session.add_all([article(id=1, name="a", tags=tags[:2]), *tags])
    session.commit()
    return session


CREATED = [(1, INSERT, 1, 1), (1, INSERT, 1, 2)]


def test_rows_of_a_collection(linked, models) -> None:
    """A link that is added is an INSERT, one that is removed a DELETE, of that row only."""
    article, tag, links = models
    one = linked.get(article, 1)
    one.tags.append(linked.get(tag, 3))
    linked.commit()
    one.tags.remove(linked.get(tag, 1))
    linked.commit()
    assert history(linked, links) == [*CREATED, (2, INSERT, 1, 3), (3, DELETE, 1, 1)]
    assert len(history(linked, article)) == 1
    assert len(history(linked, tag)) == 3


def test_the_other_side(linked, models) -> None:
    """A change of the backref is a change of the row."""
    article, tag, links = models
    three = linked.get(tag, 3)
    three.articles.append(linked.get(article, 1))
    linked.commit()
    assert history(linked, links) == [*CREATED, (2, INSERT, 1, 3)]


def test_a_deleted_object_takes_its_links_along(linked, models) -> None:
    """Deleting an article deletes its links, loaded or not."""
    article, _, links = models
    linked.delete(linked.get(article, 1))
    linked.commit()
    assert history(linked, links) == [*CREATED, (2, DELETE, 1, 1), (2, DELETE, 1, 2)]


@pytest.mark.parametrize("flush", [True, False])
def test_added_and_removed_in_one_transaction(linked, models, flush) -> None:
    """A link added and removed leaves nothing, not even a transaction."""
    article, tag, links = models
    one, three = linked.get(article, 1), linked.get(tag, 3)
    one.tags.append(three)
    if flush:
        linked.flush()
    one.tags.remove(three)
    linked.commit()
    assert history(linked, links) == CREATED
    assert count_transactions(linked, links) == 1


@pytest.mark.parametrize("flush", [True, False])
def test_removed_and_added_in_one_transaction(linked, models, flush) -> None:
    """A link removed and added again is as it was: nothing is recorded."""
    article, tag, links = models
    one, two = linked.get(article, 1), linked.get(tag, 2)
    one.tags.remove(two)
    if flush:
        linked.flush()
    one.tags.append(two)
    linked.commit()
    assert history(linked, links) == CREATED
    assert count_transactions(linked, links) == 1


def test_removed_added_and_removed(linked, models) -> None:
    """The net effect of three changes in three flushes is one DELETE; a later link is an INSERT."""
    article, tag, links = models
    one, two = linked.get(article, 1), linked.get(tag, 2)
    for _ in range(2):
        one.tags.remove(two)
        linked.flush()
        one.tags.append(two)
        linked.flush()
    one.tags.remove(two)
    linked.commit()
    one.tags.append(two)
    linked.commit()
    assert history(linked, links) == [*CREATED, (2, DELETE, 1, 2), (3, INSERT, 1, 2)]


def test_links_in_rolled_back_savepoints(linked, models) -> None:
    """Links of a rolled-back savepoint leave no trace; those around it stay."""
    article, tag, links = models
    one = linked.get(article, 1)
    savepoint = linked.begin_nested()
    one.tags = []
    linked.flush()
    savepoint.rollback()
    one.tags.append(linked.get(tag, 3))
    linked.flush()
    savepoint = linked.begin_nested()
    one.tags = []
    linked.flush()
    linked.execute(sa.insert(links).values(article_id=1, tag_id=1))
    savepoint.rollback()
    linked.commit()
    assert history(linked, links) == [*CREATED, (2, INSERT, 1, 3)]


# -- statements


@pytest.mark.parametrize("by", ["session", "connection"])
class TestStatements:
    """Core statements on the association table are recorded, and never raise."""

    @pytest.fixture
    def execute(self, linked: Any, by: str) -> Any:
        if by == "session":
            return linked.execute
        return lambda *arguments: linked.connection().execute(*arguments)

    def test_insert(self, linked, models, execute) -> None:
        """One row by values()."""
        _, _, links = models
        execute(sa.insert(links).values(article_id=1, tag_id=3))
        linked.commit()
        assert history(linked, links) == [*CREATED, (2, INSERT, 1, 3)]

    def test_insert_of_many(self, linked, models, execute) -> None:
        """Many rows, as parameters and as multiple values, with columns or names as keys."""
        article, _, links = models
        linked.add_all([article(id=2), article(id=3)])
        linked.flush()
        execute(
            sa.insert(links),
            [{"article_id": 2, "tag_id": 1}, {"article_id": 2, "tag_id": 2}],
        )
        execute(
            sa.insert(links).values(
                [
                    {links.c.article_id: 3, links.c.tag_id: 1},
                    {links.c.article_id: 3, links.c.tag_id: 2},
                ]
            )
        )
        linked.commit()
        assert history(linked, links)[2:] == [
            (2, INSERT, 2, 1),
            (2, INSERT, 2, 2),
            (2, INSERT, 3, 1),
            (2, INSERT, 3, 2),
        ]

    def test_insert_with_parameters_of_execute(self, linked, models, execute) -> None:
        """A statement without values() takes them from the parameters of execute()."""
        _, _, links = models
        execute(sa.insert(links), {"article_id": 1, "tag_id": 3})
        linked.commit()
        assert history(linked, links) == [*CREATED, (2, INSERT, 1, 3)]

    def test_insert_with_expressions(self, linked, models, execute) -> None:
        """Values that only the database knows."""
        article, _tag, links = models
        execute(
            sa.insert(links).values(
                article_id=sa.select(sa.func.max(article.id)).scalar_subquery(),
                tag_id=sa.literal(1) + 2,
            )
        )
        linked.commit()
        assert history(linked, links) == [*CREATED, (2, INSERT, 1, 3)]

    def test_insert_from_select(self, linked, models, execute) -> None:
        """INSERT ... SELECT."""
        article, tag, links = models
        execute(
            sa.insert(links).from_select(
                ["article_id", "tag_id"],
                sa.select(article.id, tag.id).join(tag, tag.id == article.id + 2),
            )
        )
        linked.commit()
        assert history(linked, links) == [*CREATED, (2, INSERT, 1, 3)]

    def test_delete_all(self, linked, models, execute) -> None:
        """DELETE without WHERE."""
        _, _, links = models
        execute(sa.delete(links))
        linked.commit()
        assert history(linked, links) == [*CREATED, (2, DELETE, 1, 1), (2, DELETE, 1, 2)]

    def test_delete_by_key(self, linked, models, execute) -> None:
        """DELETE of one row."""
        _, _, links = models
        execute(sa.delete(links).where(links.c.article_id == 1, links.c.tag_id == 2))
        linked.commit()
        assert history(linked, links) == [*CREATED, (2, DELETE, 1, 2)]

    def test_delete_by_anything(self, linked, models, execute) -> None:
        """DELETE with OR, IN, a range, a subquery, a comparison of columns."""
        _article, tag, links = models
        for n in (3, 4, 5, 6):
            if n > 3:
                linked.add(tag(id=n))
                linked.flush()
            execute(sa.insert(links).values(article_id=1, tag_id=n))
        linked.commit()
        execute(sa.delete(links).where(sa.or_(links.c.tag_id == 1, links.c.tag_id == 2)))
        execute(sa.delete(links).where(links.c.tag_id.in_([3, 77])))
        execute(sa.delete(links).where(links.c.tag_id.between(4, 4)))
        execute(sa.delete(links).where(links.c.tag_id.in_(sa.select(tag.id).where(tag.id == 5))))
        execute(sa.delete(links).where(links.c.article_id == links.c.tag_id))
        linked.commit()
        assert history(linked, links)[6:] == [(3, DELETE, 1, n) for n in (1, 2, 3, 4, 5)]

    def test_delete_of_nothing(self, linked, models, execute) -> None:
        """A DELETE that hits no row leaves nothing."""
        _, _, links = models
        execute(sa.delete(links).where(links.c.tag_id == 99))
        execute(sa.delete(links).where(links.c.article_id == 99, links.c.tag_id == 99))
        linked.commit()
        assert history(linked, links) == CREATED
        assert count_transactions(linked, links) == 1

    def test_mixed_with_collections(self, linked, models, execute) -> None:
        """Statements and collections change the same rows in one transaction."""
        article, tag, links = models
        one, three = linked.get(article, 1), linked.get(tag, 3)
        execute(sa.delete(links).where(links.c.tag_id == 1))
        linked.expire(one)
        one.tags.append(three)
        linked.flush()
        execute(sa.insert(links).values(article_id=1, tag_id=1))
        execute(sa.delete(links).where(links.c.tag_id == 3))
        linked.commit()
        assert history(linked, links) == CREATED
        assert count_transactions(linked, links) == 1

    def test_update_of_a_key(self, linked, models, execute) -> None:
        """A link that is moved to another tag ends; the new one begins."""
        _, _, links = models
        execute(sa.update(links).where(links.c.tag_id == 2).values(tag_id=3))
        linked.commit()
        assert history(linked, links) == [*CREATED, (2, DELETE, 1, 2), (2, INSERT, 1, 3)]


@pytest.mark.orm_capture(reason="triggers record what no session does, too")
def test_a_connection_of_nobody(models, open_session, engine) -> None:
    """A statement on a connection that is no watched session's is left alone, and never raises."""
    article, tag, links = models
    open_session().close()
    with engine.begin() as connection:
        connection.execute(sa.insert(article.__table__).values(id=1))
        connection.execute(sa.insert(tag.__table__).values(id=1))
        connection.execute(sa.insert(links).values(article_id=1, tag_id=1))
        connection.execute(sa.delete(links))
        connection.execute(sa.delete(article.__table__))
        connection.execute(sa.delete(tag.__table__))
    assert history(engine, links) == []


@pytest.mark.orm_capture(reason="triggers record what no session does, too")
def test_the_connection_after_the_session(linked, models, engine) -> None:
    """A connection that went back to the pool, or out of the session, is not watched any more."""
    _, _, links = models
    with engine.connect() as connection:
        with linked.__class__(connection) as session:
            session.execute(sa.delete(links).where(links.c.tag_id == 1))
            session.commit()
        with connection.begin():
            connection.execute(sa.insert(links).values(article_id=1, tag_id=1))
            connection.execute(sa.delete(links).where(links.c.tag_id == 1))
    assert history(engine, links) == [*CREATED, (2, DELETE, 1, 1)]


# -- kinds of association tables


def test_extra_columns(versioning, Base, open_session) -> None:
    """Columns beside the keys have a history, too."""
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
        sa.Column("rank", sa.Integer, server_default="5"),
    )

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        tags = relationship(Tag, secondary=links)

    session = open_session()
    one = Article(id=1, tags=[Tag(id=1)])
    session.add(one)
    session.commit()
    session.execute(sa.update(links).where(links.c.tag_id == 1).values(rank=6))
    session.commit()
    session.execute(sa.update(links).values(rank=6))
    session.commit()
    session.execute(sa.update(links).values(rank=links.c.rank + 1))
    session.commit()
    one.tags.clear()
    session.commit()
    assert history(session, links, "rank") == [
        (1, INSERT, 5),
        (2, UPDATE, 6),
        (3, UPDATE, 7),
        (4, DELETE, 7),
    ]


def test_surrogate_key(versioning, Base, open_session) -> None:
    """An association table with a primary key of its own that the database makes."""
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("article_id", sa.ForeignKey("article.id")),
        sa.Column("tag_id", sa.ForeignKey("tag.id")),
    )

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        tags = relationship(Tag, secondary=links, order_by=Tag.id)

    session = open_session()
    tags = [Tag(id=n) for n in (1, 2, 3)]
    one = Article(id=1, tags=tags[:2])
    session.add_all([one, *tags])
    session.commit()
    one.tags.append(tags[2])
    session.commit()
    one.tags.remove(tags[0])
    session.commit()
    one.tags.append(tags[0])
    session.flush()
    one.tags.remove(tags[0])
    session.commit()
    # the same link twice is two rows
    session.execute(sa.insert(links).values(article_id=1, tag_id=2))
    session.execute(
        sa.insert(links), [{"article_id": 1, "tag_id": 2}, {"article_id": 1, "tag_id": 3}]
    )
    session.commit()
    session.execute(sa.delete(links).where(links.c.tag_id == 2))
    session.commit()
    rows = history(session, links, "article_id", "tag_id")
    assert rows[:4] == [(1, INSERT, 1, 1), (1, INSERT, 1, 2), (2, INSERT, 1, 3), (3, DELETE, 1, 1)]
    assert sorted(rows[4:]) == sorted(
        [(4, INSERT, 1, 2), (4, INSERT, 1, 2), (4, INSERT, 1, 3)] + [(5, DELETE, 1, 2)] * 3
    )


def test_no_key_at_all(versioning, Base, open_session) -> None:
    """An association table without a primary key is told apart by its foreign keys."""
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id")),
        sa.Column("tag_id", sa.ForeignKey("tag.id")),
    )

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        tags = relationship(Tag, secondary=links, order_by=Tag.id)

    session = open_session()
    tags = [Tag(id=1), Tag(id=2)]
    one = Article(id=1, tags=tags)
    session.add(one)
    session.commit()
    one.tags.remove(tags[0])
    session.commit()
    one.tags.append(tags[0])
    session.commit()
    assert history(session, links) == [
        (1, INSERT, 1, 1),
        (1, INSERT, 1, 2),
        (2, DELETE, 1, 1),
        (3, INSERT, 1, 1),
    ]


def test_two_collections_over_one_table(versioning, Base, open_session) -> None:
    """Two relationships, told apart by a column, write to the same association table."""
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        kind = mapped_column(sa.String(5))

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        topics = relationship(
            Tag,
            secondary=links,
            secondaryjoin=lambda: sa.and_(Tag.id == links.c.tag_id, Tag.kind == "topic"),
            overlaps="places",
        )
        places = relationship(
            Tag,
            secondary=links,
            secondaryjoin=lambda: sa.and_(Tag.id == links.c.tag_id, Tag.kind == "place"),
            overlaps="topics",
        )
        everything = relationship(Tag, secondary=links, viewonly=True)

    session = open_session()
    one = Article(id=1, topics=[Tag(id=1, kind="topic")], places=[Tag(id=2, kind="place")])
    session.add(one)
    session.commit()
    one.topics = []
    session.commit()
    one.places = []
    session.commit()
    assert history(session, links) == [*CREATED, (2, DELETE, 1, 1), (3, DELETE, 1, 2)]


def test_self_referential(versioning, Base, open_session) -> None:
    """Articles that refer to articles, both ways, to themselves too."""
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("source_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("target_id", sa.ForeignKey("article.id"), primary_key=True),
    )

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        references = relationship(
            "Article",
            secondary=links,
            primaryjoin=lambda: Article.id == links.c.source_id,
            secondaryjoin=lambda: Article.id == links.c.target_id,
            backref=backref("referenced_by"),
        )

    session = open_session()
    one, two = Article(id=1), Article(id=2)
    one.references = [two, one]
    two.references = [one]
    session.add_all([one, two])
    session.commit()
    two.referenced_by = []
    session.commit()
    assert history(session, links) == [
        (1, INSERT, 1, 1),
        (1, INSERT, 1, 2),
        (1, INSERT, 2, 1),
        (2, DELETE, 1, 2),
    ]


def test_viewonly_secondary(versioning, Base, open_session) -> None:
    """A relationship that only views its `secondary` makes it no association table of ours."""

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        tags = relationship(Tag, secondary="link", viewonly=True)

    class Link(Base):
        __tablename__ = "link"
        article_id = mapped_column(sa.ForeignKey("article.id"), primary_key=True)
        tag_id = mapped_column(sa.ForeignKey("tag.id"), primary_key=True)

    session = open_session()
    session.add_all([Article(id=1), Tag(id=1)])
    session.flush()
    session.add(Link(article_id=1, tag_id=1))
    session.execute(sa.delete(Link.__table__))
    session.commit()
    with pytest.raises(TableNotVersioned):
        version_table(Link.__table__)
    assert not is_versioned(Link)


def test_a_versioned_class_as_secondary(versioning, Base, open_session) -> None:
    """The secondary of a many-to-many may be a versioned class's table: one history of each row."""

    class Link(Base):
        __tablename__ = "link"
        __versioned__ = {}
        article_id = mapped_column(sa.ForeignKey("article.id"), primary_key=True)
        tag_id = mapped_column(sa.ForeignKey("tag.id"), primary_key=True)
        rank = mapped_column(sa.Integer)

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        tags = relationship(Tag, secondary="link", order_by=Tag.id, overlaps="links")
        links = relationship(Link, overlaps="tags")

    session = open_session()
    one = Article(id=1, tags=[Tag(id=1)])
    session.add(one)
    session.commit()
    session.add(Tag(id=2))
    session.flush()
    one.links.append(Link(tag_id=2, rank=3))
    session.commit()
    one.links[1].rank = 4
    session.commit()
    one.tags.remove(one.tags[0])
    session.commit()
    assert history(session, Link) == [
        (1, INSERT, 1, 1, None),
        (2, INSERT, 1, 2, 3),
        (3, UPDATE, 1, 2, 4),
        (4, DELETE, 1, 1, None),
    ]


def test_association_object_by_proxy(versioning, Base, open_session) -> None:
    """An association object, reached through an association proxy, with delete-orphan."""

    class Link(Base):
        __tablename__ = "link"
        __versioned__ = {}
        article_id = mapped_column(sa.ForeignKey("article.id"), primary_key=True)
        tag_id = mapped_column(sa.ForeignKey("tag.id"), primary_key=True)
        tag = relationship("Tag")

        def __init__(self, tag: Any = None, **kw: Any) -> None:
            super().__init__(tag=tag, **kw)

    class Tag(Base):
        __tablename__ = "tag"
        id = mapped_column(sa.Integer, primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        links = relationship(Link, cascade="all, delete-orphan")
        tags = association_proxy("links", "tag")

    session = open_session()
    tags = [Tag(id=1), Tag(id=2)]
    one = Article(id=1)
    session.add_all([*tags, one])
    one.tags.extend(tags)
    session.commit()
    one.tags.remove(tags[0])
    session.commit()
    one.tags.append(tags[0])
    session.flush()
    one.tags.remove(tags[1])
    one.tags.append(tags[1])
    session.commit()
    assert history(session, Link) == [*CREATED, (2, DELETE, 1, 1), (3, INSERT, 1, 1)]


def test_an_unversioned_target(versioning, Base, open_session) -> None:
    """Links to a class without history have one."""
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):
        __tablename__ = "tag"
        id = mapped_column(sa.Integer, primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        tags = relationship(Tag, secondary=links)

    session = open_session()
    one = Article(id=1, tags=[Tag(id=1), Tag(id=2)])
    session.add(one)
    session.commit()
    one.tags.clear()
    session.commit()
    assert history(session, links) == [*CREATED, (2, DELETE, 1, 1), (2, DELETE, 1, 2)]


@sqlite_only
def test_association_rows_between_unversioned_classes(versioning, Base, open_session) -> None:
    """An association table of unversioned classes has no history."""
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):
        __tablename__ = "tag"
        id = mapped_column(sa.Integer, primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        id = mapped_column(sa.Integer, primary_key=True)
        tags = relationship(Tag, secondary=links)

    class Versioned(Base):
        __tablename__ = "versioned"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    session = open_session()
    session.add(Article(id=1, tags=[Tag(id=1)]))
    session.commit()
    assert count_transactions(session, Versioned) == 0
    with pytest.raises(TableNotVersioned):
        version_table(links)


def test_an_excluded_relationship(versioning, Base, open_session) -> None:
    """`exclude` of a many-to-many leaves its association table without a history."""
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):
        __tablename__ = "tag"
        id = mapped_column(sa.Integer, primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {"exclude": ["tags"]}
        id = mapped_column(sa.Integer, primary_key=True)
        tags = relationship(Tag, secondary=links)

    session = open_session()
    one = Article(id=1, tags=[Tag(id=1)])
    session.add(one)
    session.commit()
    one.tags.clear()
    session.commit()
    assert count_transactions(session, Article) == 1
    with pytest.raises(TableNotVersioned):
        version_table(links)


@pytest.mark.parametrize("type_", ["string", "uuid", "datetime"])
def test_keys_of_other_types(versioning, Base, open_session, type_) -> None:
    """Links between rows whose keys are no integers."""
    import datetime as dt
    import uuid

    column_type, values = {
        "string": (sa.String(30), ["a key", "ünï-kö'de"]),
        "uuid": (sa.Uuid(), [uuid.UUID(int=1), uuid.UUID(int=2**100)]),
        "datetime": (
            sa.DateTime(),
            [dt.datetime(2026, 1, 1, 12, 30), dt.datetime(1999, 12, 31, 23, 59, 59)],
        ),
    }[type_]
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(column_type, primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(column_type, primary_key=True)
        tags = relationship(Tag, secondary=links)

    session = open_session()
    tags = [Tag(id=value) for value in values]
    one = Article(id=values[0], tags=tags)
    session.add(one)
    session.commit()
    one.tags.remove(tags[1])
    session.commit()
    session.execute(sa.delete(links).where(links.c.tag_id == values[0]))
    session.commit()
    rows = history(session, links, "tag_id")
    assert sorted(rows) == sorted(
        [
            (1, INSERT, values[0]),
            (1, INSERT, values[1]),
            (2, DELETE, values[1]),
            (3, DELETE, values[0]),
        ]
    )


@sqlite_only
def test_a_dict_of_defaults(versioning, Base, open_session) -> None:
    """Keys that Python-side or server-side defaults fill in."""
    links = sa.Table(
        "links",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
        sa.Column("place", sa.Integer, primary_key=True, default=lambda: 4),
        sa.Column("kind", sa.String(5), primary_key=True, server_default="x"),
    )

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        tags = relationship(Tag, secondary=links)

    session = open_session()
    one = Article(id=1, tags=[Tag(id=1)])
    session.add(one)
    session.commit()
    one.tags.clear()
    session.commit()
    assert history(session, links) == [(1, INSERT, 1, 1, 4, "x"), (2, DELETE, 1, 1, 4, "x")]
