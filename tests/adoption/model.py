"""The models of an application that has used one of the peers, its history, and how it is read.

Imported by us and by the peers: nothing here may know whose versioning is at work.
"""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, backref, relationship


def declare(base: Any) -> SimpleNamespace:
    """An application's models: relationships of all kinds, a hierarchy, a composite key."""
    post_tag = sa.Table(
        "post_tag",
        base.metadata,
        sa.Column("post_id", sa.Integer, sa.ForeignKey("post.id"), primary_key=True),
        sa.Column("tag_id", sa.Integer, sa.ForeignKey("tag.id"), primary_key=True),
    )

    class User(base):
        __tablename__ = "user"
        id = sa.Column(sa.Integer, primary_key=True)
        name = sa.Column(sa.String(50))

    class Tag(base):
        __tablename__ = "tag"
        __versioned__: dict[str, Any] = {}
        id = sa.Column(sa.Integer, primary_key=True, autoincrement=False)
        name = sa.Column(sa.String(50))

    class Post(base):
        __tablename__ = "post"
        __versioned__ = {"exclude": ["hits"]}
        id = sa.Column(sa.Integer, primary_key=True, autoincrement=False)
        title = sa.Column("headline", sa.String(50))
        published = sa.Column(sa.Boolean)
        price = sa.Column(sa.Numeric(8, 2))
        written = sa.Column(sa.DateTime)
        hits = sa.Column(sa.Integer)
        tags = relationship(Tag, secondary=post_tag)

    class Comment(base):
        __tablename__ = "comment"
        __versioned__: dict[str, Any] = {}
        id = sa.Column(sa.Integer, primary_key=True, autoincrement=False)
        text = sa.Column(sa.String(50))
        post_id = sa.Column(sa.Integer, sa.ForeignKey("post.id"))
        post = relationship(Post, backref=backref("comments"))

    class Price(base):
        __tablename__ = "price"
        __versioned__: dict[str, Any] = {}
        country = sa.Column(sa.String(2), primary_key=True)
        size = sa.Column(sa.Integer, primary_key=True, autoincrement=False)
        amount = sa.Column(sa.Integer)

    class Document(base):
        __tablename__ = "document"
        __versioned__: dict[str, Any] = {}
        id = sa.Column(sa.Integer, primary_key=True, autoincrement=False)
        kind = sa.Column(sa.String(20))
        name = sa.Column(sa.String(50))
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "document"}

    class Letter(Document):
        __tablename__ = "letter"
        id = sa.Column(sa.Integer, sa.ForeignKey("document.id"), primary_key=True)
        receiver = sa.Column(sa.String(50))
        __mapper_args__ = {"polymorphic_identity": "letter"}

    return SimpleNamespace(
        User=User,
        Tag=Tag,
        Post=Post,
        Comment=Comment,
        Price=Price,
        Document=Document,
        Letter=Letter,
    )


def write(session: Session, m: SimpleNamespace) -> None:
    """A dozen transactions: inserts, updates, deletes, links made and cut, a key used again."""
    session.add(m.User(id=1, name="ann"))
    session.commit()
    red, blue = m.Tag(id=1, name="red"), m.Tag(id=2, name="blue")
    post = m.Post(
        id=1,
        title="first",
        published=False,
        price=1,
        hits=0,
        written=dt.datetime(2020, 1, 2, 3, 4, 5),
        tags=[red],
    )
    other = m.Post(id=2, title="other", published=True)
    letter = m.Letter(id=1, name="hello", receiver="ann")
    session.add_all([post, other, blue, letter, m.Document(id=2, name="plain")])
    session.commit()
    post.title = "second"
    letter.receiver = "bob"
    session.commit()
    post.comments.append(m.Comment(id=1, text="nice"))
    post.tags.append(blue)
    session.commit()
    post.price = None
    post.published = True
    post.tags.remove(red)
    session.commit()
    session.add_all(
        [m.Price(country="de", size=1, amount=1), m.Price(country="de", size=2, amount=2)]
    )
    letter.name = "bye"
    session.commit()
    session.get(m.Price, ("de", 1)).amount = 10
    session.get(m.Comment, 1).text = "very nice"
    session.commit()
    session.delete(session.get(m.Price, ("de", 1)))
    session.delete(session.get(m.Comment, 1))
    session.delete(other)
    session.commit()
    session.add(m.Price(country="de", size=1, amount=100))
    red.name = "crimson"
    session.commit()
    post.title = "third"
    session.commit()


def read(session: Session, m: SimpleNamespace, version_class: Any) -> dict[str, Any]:
    """All that the versions of the application's objects say."""
    found: dict[str, Any] = {}
    for name, columns in {
        "Tag": ["id", "name"],
        "Post": ["id", "title", "published", "price", "written"],
        "Comment": ["id", "text", "post_id"],
        "Price": ["country", "size", "amount"],
        "Document": ["id", "kind", "name"],
        "Letter": ["id", "kind", "name", "receiver"],
    }.items():
        cls = version_class(getattr(m, name))
        keys = [
            getattr(cls, column) for column in (["country", "size"] if name == "Price" else ["id"])
        ]
        found[name] = [
            {
                "type": type(version).__name__,
                "transaction": version.transaction_id,
                "operation": version.operation_type,
                "values": {column: str(getattr(version, column)) for column in columns},
                "changeset": {
                    k: [str(a), str(b)] for k, (a, b) in sorted(version.changeset.items())
                },
                "index": version.index,
                "previous": version.previous and version.previous.transaction_id,
                "next": version.next and version.next.transaction_id,
                "issued_at": str(version.transaction.issued_at),
                **_relations(name, version),
            }
            for version in session.scalars(sa.select(cls).order_by(*keys, cls.transaction_id))
        ]
    return found


def _relations(name: str, version: Any) -> dict[str, Any]:
    if name == "Post":
        return {
            "tags": sorted(tag.name for tag in version.tags),
            "comments": sorted(comment.text for comment in version.comments),
        }
    if name == "Comment":
        return {"post": version.post and version.post.title}
    return {}
