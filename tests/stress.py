"""What each process of the stress test does: write a few hot rows in every way for some seconds.

``HISTORY_HYPOTHESIS=nightly`` makes it a minute. Who fails with a deadlock, a serialization failure
or SQLite's "locked" rolls back and goes on, as an application does. It is a module of its own, which
a new process can import by its name.
"""

from __future__ import annotations

import collections
import json
import os
import random
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.orm import DeclarativeBase, Session, configure_mappers, mapped_column, relationship
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError

import sqlalchemy_history as h
import support

NIGHTLY = os.environ.get("HISTORY_HYPOTHESIS", "ci") != "ci"
SECONDS = 60 if NIGHTLY else 5
HOT = 4

#: what an application tries again
TEMPORARY = {"40001", "40P01", 1213, 1205, 1020, "database is locked"}


def declare(base: Any) -> dict[str, Any]:
    """The models: rows with a session's history, with links, in two tables, and with triggers."""
    links = sa.Table(
        "links",
        base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(base):
        __tablename__ = "tag"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        n = mapped_column(sa.Integer)

    class Article(base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        n = mapped_column(sa.Integer)
        other = mapped_column(sa.Integer)
        tags = relationship(Tag, secondary=links)

    class Item(base):
        __tablename__ = "item"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        kind = mapped_column(sa.String(10))
        n = mapped_column(sa.Integer)
        __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "item"}

    class Book(Item):
        __tablename__ = "book"
        id = mapped_column(sa.ForeignKey("item.id"), primary_key=True)
        pages = mapped_column(sa.Integer)
        __mapper_args__ = {"polymorphic_identity": "book"}

    class Note(base):
        __tablename__ = "note"
        __versioned__ = {"native_versioning": True}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        n = mapped_column(sa.Integer)

    configure_mappers()
    return {
        "Tag": Tag,
        "Article": Article,
        "Item": Item,
        "Book": Book,
        "Note": Note,
        "links": links,
    }


# -- the ways to write


def new_number(chance: random.Random) -> int:
    """One that no other process writes: to set what another has just set is a version, too."""
    return chance.randrange(2**31)


def by_objects(session: Session, m: Any, chance: random.Random) -> None:
    for key in chance.sample(range(HOT), 2):
        found = session.get(m["Article"], key)
        found.n = new_number(chance)
        session.flush()


def one_column(session: Session, m: Any, chance: random.Random) -> None:
    session.get(m["Article"], chance.randrange(HOT)).other = new_number(chance)


def in_bulk(session: Session, m: Any, chance: random.Random) -> None:
    model = m[chance.choice(["Article", "Tag", "Note"])]
    session.execute(sa.update(model).where(model.id < 3).values(n=model.n + 1))


def by_core(session: Session, m: Any, chance: random.Random) -> None:
    table = m["Article"].__table__
    key = chance.randrange(HOT)
    session.execute(sa.update(table).where(table.c.id == key).values(other=table.c.other + 1))


def come_and_go(session: Session, m: Any, chance: random.Random) -> None:
    model, key = m[chance.choice(["Tag", "Note"])], 100 + chance.randrange(3)
    found = session.get(model, key)
    if found is None:
        session.add(model(id=key, n=new_number(chance)))
    else:
        session.delete(found)


def linking(session: Session, m: Any, chance: random.Random) -> None:
    links, key = m["links"], chance.randrange(HOT)
    if chance.random() < 0.5:
        article = session.get(m["Article"], key)
        article.tags = [session.get(m["Tag"], n) for n in chance.sample(range(HOT), 2)]
    else:
        session.execute(sa.delete(links).where(links.c.article_id == key))


def by_parts(session: Session, m: Any, chance: random.Random) -> None:
    book = session.get(m["Book"], chance.randrange(2))
    setattr(book, chance.choice(["n", "pages"]), new_number(chance))


def parts_in_bulk(session: Session, m: Any, chance: random.Random) -> None:
    session.execute(sa.update(m["Book"]).values(pages=m["Book"].pages + 1))


def by_text(session: Session, m: Any, chance: random.Random) -> None:
    """Another program; triggers record it."""
    key = chance.randrange(HOT)
    session.connection().exec_driver_sql(f"UPDATE note SET n = n + 1 WHERE id = {key}")


WAYS = [
    by_objects,
    one_column,
    in_bulk,
    by_core,
    come_and_go,
    linking,
    by_parts,
    parts_in_bulk,
    by_text,
]


def code(error: Any) -> Any:
    return getattr(error.orig, "sqlstate", None) or error.orig.args[0]


def attempt(session: Session, m: Any, chance: random.Random) -> str:
    """One transaction; what came of it."""
    try:
        for way in chance.sample(WAYS, chance.randrange(1, 4)):
            way(session, m, chance)
        session.commit()
    except (StaleDataError, ObjectDeletedError):
        session.rollback()
        return "stale"
    except sa.exc.DBAPIError as error:
        session.rollback()
        refused = isinstance(error, sa.exc.IntegrityError) and "_version" not in str(error.orig)
        return "again" if refused or code(error) in TEMPORARY else f"failed: {error}"
    return "commits"


def write(url: str, level: str, strategy: str, seed: int, seconds: float, told: Any) -> None:
    """One process: write until the time is over, and tell what came of it."""
    h.make_versioned(user_cls=None, options={"strategy": strategy})
    m = declare(type("Base", (DeclarativeBase,), {}))
    engine = _engine(url)
    chance = random.Random(seed)
    outcome: collections.Counter[str] = collections.Counter()
    until = time.monotonic() + seconds
    with Session(engine.execution_options(isolation_level=level)) as session:
        while time.monotonic() < until:
            outcome[attempt(session, m, chance)] += 1
    told.put(json.dumps(outcome))


def _engine(url: str) -> Engine:
    found = make_url(url)
    if found.get_backend_name() == "postgresql":
        options = "-c deadlock_timeout=50ms -c synchronous_commit=off"
        return sa.create_engine(found, connect_args={"options": options})
    if found.get_backend_name() != "sqlite":
        return sa.create_engine(found)
    engine = support.sqlite_engine(found)

    @sa.event.listens_for(engine, "connect")
    def wait(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.execute("PRAGMA journal_mode = WAL").close()
        dbapi_connection.execute("PRAGMA synchronous = OFF").close()
        dbapi_connection.execute("PRAGMA busy_timeout = 200").close()

    return engine
