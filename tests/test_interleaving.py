"""Law 4 under every order in which sessions can do their steps, at every isolation level.

Two sessions are stepped through all orders of their statements, three through a sample of them.
After each, ``verify()`` finds nothing and every live row is what its open version says. What fails
with a deadlock, a serialization failure or SQLite's "locked" is done again, as an application does
it; there is a deadlock only where models without history have one, in some order of their steps.

``HISTORY_HYPOTHESIS=nightly`` goes through all orders where a short run draws some.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.orm import Session, configure_mappers, mapped_column, relationship

import sqlalchemy_history as h
from chain import EACH_ONCE, Laws, check_histories
from interleaving import CONNECT_ARGS, LEVELS, Play, gates, orders, play, samples, together

NIGHTLY = os.environ.get("HISTORY_HYPOTHESIS", "ci") != "ci"

Scene = Callable[[Any, Session], None]


def declare(base: Any, versioned: bool) -> Any:
    """The models, with a history or without one."""

    def options(**values: Any) -> dict[str, Any]:
        return {"__versioned__": values} if versioned else {}

    def model(cls: str, /, *bases: Any, **members: Any) -> Any:
        return type(cls, bases or (base,), {"__module__": __name__, **members})

    def number() -> Any:
        return mapped_column(sa.Integer, primary_key=True, autoincrement=False)

    def text() -> Any:
        return mapped_column(sa.String(20))

    prefix = "" if versioned else "plain_"
    links = sa.Table(
        f"{prefix}links",
        base.metadata,
        sa.Column("article_id", sa.ForeignKey(f"{prefix}article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey(f"{prefix}tag.id"), primary_key=True),
    )
    tag = model("Tag", __tablename__=f"{prefix}tag", id=number(), name=text(), **options())
    article = model(
        "Article",
        __tablename__=f"{prefix}article",
        id=number(),
        name=text(),
        other=text(),
        tags=relationship(tag, secondary=links, order_by=tag.id),
        **options(),
    )
    item = model(
        "Item",
        __tablename__=f"{prefix}item",
        id=number(),
        kind=mapped_column(sa.String(10)),
        name=text(),
        __mapper_args__={"polymorphic_on": "kind", "polymorphic_identity": "item"},
        **options(),
    )
    book = model(
        "Book",
        item,
        __tablename__=f"{prefix}book",
        id=mapped_column(sa.ForeignKey(f"{prefix}item.id"), primary_key=True),
        pages=mapped_column(sa.Integer),
        __mapper_args__={"polymorphic_identity": "book"},
    )
    shelf = model(
        "Shelf",
        __tablename__=f"{prefix}shelf",
        id=number(),
        name=text(),
        boxes=relationship("Box"),
        **options(track_relations=["boxes"]),
    )
    box = model(
        "Box",
        __tablename__=f"{prefix}box",
        id=number(),
        name=text(),
        shelf_id=mapped_column(sa.ForeignKey(f"{prefix}shelf.id")),
        **options(),
    )
    note = model(
        "Note",
        __tablename__=f"{prefix}note",
        id=number(),
        name=text(),
        other=text(),
        **options(native_versioning=True),
    )
    paper = model(
        "Paper",
        __tablename__=f"{prefix}paper",
        id=number(),
        kind=mapped_column(sa.String(10)),
        name=text(),
        __mapper_args__={"polymorphic_on": "kind", "polymorphic_identity": "paper"},
        **options(native_versioning=True),
    )
    letter = model(
        "Letter",
        paper,
        __tablename__=f"{prefix}letter",
        id=mapped_column(sa.ForeignKey(f"{prefix}paper.id"), primary_key=True),
        pages=mapped_column(sa.Integer),
        __mapper_args__={"polymorphic_identity": "letter"},
    )
    return SimpleNamespace(
        Tag=tag,
        Article=article,
        Item=item,
        Book=book,
        Note=note,
        Shelf=shelf,
        Box=box,
        Paper=paper,
        Letter=letter,
        links=links,
        base=base,
    )


# -- what sessions do


def early(m: Any, session: Session) -> None:
    """The transaction gets its id, and its snapshot, before the others change anything."""
    with together():
        session.add(m.Tag(id=1000, name="early"))
        session.flush()


def update(m: Any, session: Session, *, name: str, cls: str = "Article", **values: Any) -> None:
    found = session.get(getattr(m, cls), 10)
    if found is not None:
        for key, value in {"name": name, **values}.items():
            setattr(found, key, value)
    session.commit()


def update_other(m: Any, session: Session, *, name: str, cls: str = "Article") -> None:
    session.get(getattr(m, cls), 10).other = name
    session.commit()


def early_update(m: Any, session: Session, *, name: str) -> None:
    early(m, session)
    update(m, session, name=name)


def update_tags(m: Any, session: Session, *, ids: tuple[int, ...], name: str) -> None:
    with together():
        tags = [session.get(m.Tag, n) for n in ids]
    for tag in tags:
        tag.name = name
    session.commit()


def remove(m: Any, session: Session, *, cls: str = "Tag") -> None:
    found = session.get(getattr(m, cls), 10)
    if found is not None:
        session.delete(found)
    session.commit()


def insert(m: Any, session: Session, *, cls: str = "Tag", is_early: bool = False) -> None:
    if is_early:
        early(m, session)
    session.add(getattr(m, cls)(id=10, name="again"))
    session.commit()


def replace(m: Any, session: Session, *, cls: str = "Tag") -> None:
    """A key is given up and used again while others want to delete its row."""
    remove(m, session, cls=cls)
    with together():
        session.add(getattr(m, cls)(id=10, name="again", **({"pages": 3} if cls == "Book" else {})))
        session.commit()


def come_and_go(m: Any, session: Session, *, cls: str = "Tag") -> None:
    """A key is used and given up while others have a snapshot from before."""
    model = getattr(m, cls)
    with together():
        session.add(model(id=11, name="short"))
        session.commit()
    with together():
        session.delete(session.get(model, 11))
        session.commit()


def late_comer(m: Any, session: Session, *, cls: str = "Tag") -> None:
    with together():
        session.execute(sa.select(getattr(m, cls).name).where(getattr(m, cls).id == 10))
    session.add(getattr(m, cls)(id=11, name="late"))
    session.commit()


def early_late_comer(m: Any, session: Session) -> None:
    early(m, session)
    late_comer(m, session)


def link(m: Any, session: Session, *, tags: tuple[int, ...]) -> None:
    with together():
        article = session.get(m.Article, 10)
        found = [session.get(m.Tag, n) for n in tags]
        list(article.tags)
    article.tags = [tag for tag in found if tag is not None]
    session.commit()


def unlink(m: Any, session: Session) -> None:
    session.execute(sa.delete(m.links).where(m.links.c.article_id == 10))
    session.commit()


def add_link(m: Any, session: Session, *, is_early: bool = False) -> None:
    if is_early:
        early(m, session)
    session.execute(sa.insert(m.links).values(article_id=10, tag_id=12))
    session.commit()


def bulk(m: Any, session: Session, *, cls: str = "Article", is_early: bool = False) -> None:
    if is_early:
        early(m, session)
    model = getattr(m, cls)
    session.execute(sa.update(model).where(model.id < 20).values(name=model.name + "+"))
    session.commit()


def put(m: Any, session: Session, *, n: int) -> None:
    """A collection changes, of which its owner has versions."""
    session.add(m.Box(id=n, shelf_id=10))
    session.commit()


def link_and_bulk(m: Any, session: Session) -> None:
    session.execute(sa.insert(m.links).values(article_id=10, tag_id=13))
    bulk(m, session)


def bulk_pages(m: Any, session: Session) -> None:
    session.execute(sa.update(m.Book).values(pages=m.Book.pages + 1))
    session.commit()


def both_parts(m: Any, session: Session) -> None:
    update(m, session, name="both", cls="Book", pages=5)


def bulk_delete(m: Any, session: Session, *, cls: str = "Tag") -> None:
    model = getattr(m, cls)
    session.execute(sa.delete(model).where(model.id < 12, model.name != "x"))
    session.commit()


def by_text(m: Any, session: Session) -> None:
    """Another program."""
    table = m.Note.__tablename__
    session.connection().exec_driver_sql(f"UPDATE {table} SET name = 'text' WHERE id = 10")
    session.commit()


def letter_by_text(m: Any, session: Session) -> None:
    table = m.Letter.__tablename__
    session.connection().exec_driver_sql(f"UPDATE {table} SET pages = 7 WHERE id = 10")
    session.commit()


def early_note(m: Any, session: Session, *, name: str) -> None:
    with together():
        session.add(m.Note(id=1000, name="early"))
        session.flush()
    update(m, session, name=name, cls="Note")


#: name -> the class that it is about, and what each session does
TWO: dict[str, tuple[str, Scene, Scene]] = {
    "update, update": (
        "Article",
        partial(early_update, name="first"),
        partial(update, name="second", other="second"),
    ),
    "update, update of another column": (
        "Article",
        partial(early_update, name="first"),
        partial(update_other, name="second"),
    ),
    "neighbours": (
        "Tag",
        partial(update_tags, ids=(10, 13), name="first"),
        partial(update_tags, ids=(12,), name="second"),
    ),
    "update, delete": ("Tag", partial(update, name="first", cls="Tag"), remove),
    "delete, delete": ("Tag", remove, remove),
    "trigger: delete, delete": ("Note", partial(remove, cls="Note"), partial(remove, cls="Note")),
    "two tables of one object, delete, delete": (
        "Item",
        partial(remove, cls="Book"),
        partial(remove, cls="Book"),
    ),
    "delete, insert again": ("Tag", remove, partial(insert, is_early=True)),
    "delete, replace": ("Tag", remove, replace),
    "delete, replace, two tables": (
        "Item",
        partial(remove, cls="Book"),
        partial(replace, cls="Book"),
    ),
    "trigger: delete, replace": ("Note", partial(remove, cls="Note"), partial(replace, cls="Note")),
    "use and give up a key, insert": ("Tag", come_and_go, late_comer),
    "use and give up a key, insert early": ("Tag", come_and_go, early_late_comer),
    "two tables of one object": (
        "Item",
        partial(update, name="first", cls="Book"),
        partial(update, name="before", cls="Book", pages=2),
    ),
    "two tables of one object, in bulk": (
        "Item",
        both_parts,
        bulk_pages,
    ),
    "two tables of one object, one of them deleted": (
        "Item",
        partial(update, name="before", cls="Book", pages=2),
        partial(remove, cls="Book"),
    ),
    "tracked collection, twice": ("Shelf", partial(put, n=10), partial(put, n=20)),
    "tracked collection, owner": (
        "Shelf",
        partial(put, n=10),
        partial(update, name="b", cls="Shelf"),
    ),
    "link and bulk, bulk": ("Article", link_and_bulk, bulk),
    "link, unlink": ("Article", partial(link, tags=(12, 13)), unlink),
    "unlink, link again": ("Article", unlink, partial(add_link, is_early=True)),
    "bulk, update": ("Article", bulk, partial(early_update, name="second")),
    "bulk, bulk": ("Article", partial(bulk, is_early=True), bulk),
    "bulk delete, update": ("Tag", bulk_delete, partial(update, name="x", cls="Tag")),
    "trigger: text, update": ("Note", by_text, partial(early_note, name="second")),
    "trigger: delete, insert again": (
        "Note",
        partial(remove, cls="Note"),
        partial(insert, cls="Note"),
    ),
    "trigger: two tables of one object": (
        "Paper",
        partial(update, name="first", cls="Letter"),
        partial(update, name="before", cls="Letter", pages=2),
    ),
    "trigger: two tables of one object, text": (
        "Paper",
        partial(update, name="first", cls="Letter"),
        letter_by_text,
    ),
    "trigger: bulk, bulk delete": (
        "Note",
        partial(bulk, cls="Note"),
        partial(bulk_delete, cls="Note"),
    ),
}


THREE: dict[str, tuple[str, Scene, Scene, Scene]] = {
    "update, bulk, delete": (
        "Tag",
        partial(update, name="x", cls="Tag"),
        partial(bulk, cls="Tag"),
        remove,
    ),
    "update, update, update": (
        "Article",
        partial(early_update, name="first"),
        partial(update, name="second"),
        partial(update_other, name="third"),
    ),
    "delete, insert again, delete": ("Tag", remove, partial(insert, is_early=True), remove),
    "link, unlink, link again": (
        "Article",
        partial(link, tags=(12, 13)),
        unlink,
        partial(add_link, is_early=True),
    ),
    "trigger: update, text, delete": (
        "Note",
        partial(update, name="x", cls="Note"),
        by_text,
        partial(remove, cls="Note"),
    ),
}


class Theatre:
    """A database with the models in it, which is as it was before each play."""

    def __init__(self, engine: Engine, models: Any, plain: Any) -> None:
        self.engine = engine
        self.models = models
        self.plain = plain
        with Session(engine) as session:
            for m in (models, plain):
                tags = [m.Tag(id=n, name="a") for n in (10, 12, 13)]
                session.add_all([m.Article(id=10, name="a", tags=[tags[1]]), *tags])
                session.add_all(cls(id=10, name="before", pages=1) for cls in (m.Book, m.Letter))
                session.add_all([m.Note(id=10, name="a"), m.Shelf(id=10, name="a")])
                session.commit()
        self.tables = [*models.base.metadata.sorted_tables, *plain.base.metadata.sorted_tables]
        own = [*h.transaction_class(models.Tag).__table__.metadata.sorted_tables]
        self.tables += [table for table in own if table not in self.tables]
        with engine.connect() as connection:
            self.rows = {
                table: [dict(row) for row in connection.execute(sa.select(table)).mappings()]
                for table in self.tables
            }

    def prepare(self) -> None:
        """Make the database as it was; what triggers write on the way is overwritten."""
        live = [t for t in self.tables if not self._is_history(t)]
        with self.engine.begin() as connection:
            for group in (live, [t for t in self.tables if self._is_history(t)]):
                for table in reversed(group):
                    connection.execute(sa.delete(table))
                for table in group:
                    if self.rows[table]:
                        connection.execute(sa.insert(table), self.rows[table])

    def _is_history(self, table: sa.Table) -> bool:
        return table.name.endswith("_version") or table.name == "transaction"

    def perform(self, scenes: Any, m: Any, level: str, choices: Any) -> Play:
        self.prepare()
        engine = self.engine.execution_options(isolation_level=level)
        scripts = [partial(scene, m) for scene in scenes]
        return play(scripts, engine, choices)

    def check(self, cls: str) -> None:
        """Histories and live rows agree; ``verify()`` is asked about a class and its links."""
        m = self.models
        with Session(self.engine) as session:
            found = h.verify(session, getattr(m, cls))
            assert not found, "\n".join(finding.message for finding in found)
            check_histories(
                session.connection(),
                m.base.metadata,
                Laws(repeats=cls in ("Item", "Paper", "Shelf")),
            )

    def again(self, scenes: Any, errors: Any) -> None:
        """Those that failed are done again, one after the other."""
        for scene, error in zip(scenes, errors, strict=True):
            if error is not None and is_temporary(error):
                with Session(self.engine) as session:
                    try:
                        scene(self.models, session)
                    except sa.exc.IntegrityError as refused:
                        # somebody else has the key now
                        assert not is_temporary(refused), refused  # noqa: PT017 - a lesser one passes


def code(error: Any) -> Any:
    original = getattr(error, "orig", None)
    if "_version_open" in str(original):
        return "two open versions"
    if original is None:
        return type(error).__name__
    number = getattr(original, "sqlstate", None) or original.args[0]
    return number.partition(":")[0] if isinstance(number, str) else number


DEADLOCKS = {"40P01", 1213}
#: serialization failures and what SQLite and MariaDB have in their place
TEMPORARY = {*DEADLOCKS, "40001", 1020, "database is locked", "two open versions"}


def is_temporary(error: Any) -> bool:
    return code(error) in TEMPORARY


@pytest.fixture
def engine_options(backend: str) -> dict[str, Any]:
    return CONNECT_ARGS.get(backend, {})


@pytest.fixture
def numbering() -> Any:
    """``numbering(base, engine)`` returns a Transaction class of the test's own, or None."""
    return lambda base, engine: None


@pytest.fixture
def theatre(
    versioning: Any, make_base: Any, engine: Engine, open_session: Any, numbering: Any
) -> Iterator[Any]:
    base = make_base()
    own = numbering(base, engine)
    if own is not None:
        versioning.transaction_cls = own
    models, plain = declare(base, True), declare(make_base(), False)
    configure_mappers()
    if engine.dialect.name == "sqlite":
        _write_ahead(engine)
    open_session().close()
    stage = Theatre(engine, models, plain)
    with gates(engine):
        yield stage


def _write_ahead(engine: Engine) -> None:
    @sa.event.listens_for(engine, "connect")
    def set_up(dbapi_connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = OFF", "busy_timeout = 0"):
            dbapi_connection.execute(f"PRAGMA {pragma}").close()

    engine.dispose()


def run(theatre: Theatre, backend: str, scenes: Any, size: int | None, seed: int) -> None:
    """Play all orders, or ``size`` of them, at each isolation level, and check after each."""
    cls, *scenes = scenes
    for n, level in enumerate(LEVELS[backend]):
        if is_judged(backend, level, scenes):
            perform = partial(theatre.perform, scenes, theatre.models, level)
            some = size and samples(perform, len(scenes), size, 10 * seed + n)
            for found in some or orders(perform):
                judge(theatre, cls, scenes, level, found)


def is_judged(backend: str, level: str, scenes: Any) -> bool:
    """The one case that is left out: see docs/explanation/concurrency.rst."""
    is_snapshot = backend == "mariadb" and level == "REPEATABLE READ"
    return not (is_snapshot and come_and_go in scenes)


def judge(theatre: Theatre, cls: str, scenes: Any, level: str, found: Play) -> None:
    """The histories are right after what was played, and after what failed was done again."""
    try:
        theatre.check(cls)
        if any(found.errors):
            theatre.again(scenes, found.errors)
            theatre.check(cls)
            check_errors(theatre, scenes, level, found)
    except Exception as error:
        raise AssertionError(f"{level}, order {found.choices}:\n{found}\n{error}") from error


def check_errors(theatre: Theatre, scenes: Any, level: str, found: Play) -> None:
    """What fails for good, or with a deadlock, may fail so without history, too."""
    codes = {code(error) for error in found.errors if error is not None}
    if codes - (TEMPORARY - DEADLOCKS):
        perform = partial(theatre.perform, scenes, theatre.plain, level)
        missing = codes - (TEMPORARY - DEADLOCKS)
        for plain in itertools.chain(samples(perform, len(scenes), 50, 0), orders(perform)):
            missing -= {code(error) for error in plain.errors if error is not None}
            if not missing:
                break
        assert not missing, f"without history there is no {missing}"
    if "two open versions" in codes:
        assert level != "READ COMMITTED"


#: all orders take an hour
pytestmark = [
    EACH_ONCE,
    pytest.mark.sqlite_file,
    pytest.mark.timeout(6 * 3600 if NIGHTLY else 300),
    # who deletes what is gone
    pytest.mark.filterwarnings("ignore:DELETE statement on table:sqlalchemy.exc.SAWarning"),
]


def test_two_sessions(theatre: Theatre, backend: str) -> None:
    """Whatever the order of two sessions' steps, their histories are chains."""
    for seed, scenes in enumerate(TWO.values()):
        run(theatre, backend, scenes, None if NIGHTLY else 1, seed)


#: orders in which histories were wrong once, by whose step it is
_ONCE_WRONG = [
    ("two tables of one object", [1, 0, 0, 1, 0, 1, 0]),
    ("two tables of one object", [1, 1, *8 * [0], *8 * [1]]),
    ("link, unlink", [1, *7 * [0], *9 * [1]]),
    ("delete, delete", [0, 0, 0, 1, 0, 1, 1, 1]),
    ("two tables of one object, delete, delete", [1, *9 * [0], *9 * [1]]),
    ("tracked collection, owner", [0, 0, 0, 1, 0, 0, 0, 1, 1, 0]),
    ("delete, replace", [0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 0]),
    ("delete, replace", [0, 1, 1, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0]),
    ("delete, replace", [0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0]),
    ("delete, replace, two tables", [0, 1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0]),
    ("trigger: delete, insert again", [1, *7 * [0], *5 * [1]]),
    ("trigger: two tables of one object", [1, 1, 0, 0, 0, 1, 0]),
]


def test_orders_that_went_wrong(theatre: Theatre, backend: str) -> None:
    """Orders that random ones may miss."""
    for name, choices in _ONCE_WRONG:
        cls, *scenes = TWO[name]
        for level in LEVELS[backend]:
            if is_judged(backend, level, scenes):
                found = theatre.perform(scenes, theatre.models, level, choices)
                judge(theatre, cls, scenes, level, found)


def test_three_sessions(theatre: Theatre, backend: str) -> None:
    """In a sample of the orders of three sessions' steps, too."""
    for seed, scenes in enumerate(THREE.values()):
        run(theatre, backend, scenes, 300 if NIGHTLY else 1, seed)


#: what ids out of order matter for
_IN_TURN = ("update, update", "delete, insert again", "unlink, link again", "bulk, update")


def _each_with_a_block(_base: Any, engine: Engine) -> Any:
    """Each connection has a block of ids of its own."""

    @sa.event.listens_for(engine, "before_cursor_execute", retval=True)
    def cache(_c: Any, _cursor: Any, sql: str, parameters: Any, *_: Any) -> Any:
        if sql.startswith("CREATE SEQUENCE transaction_id_seq"):
            sql += " CACHE 50"
        return sql, parameters


@pytest.mark.backends("postgresql")
@pytest.mark.parametrize("numbering", [_each_with_a_block])
def test_ids_of_a_cache(theatre: Theatre, backend: str) -> None:
    """A sequence with CACHE gives ids out of the order of the commits."""
    with theatre.engine.connect() as connection:
        blocks = "SELECT seqcache FROM pg_sequence WHERE seqrelid = 'transaction_id_seq'::regclass"
        assert connection.exec_driver_sql(blocks).scalar_one() == 50
    for seed, name in enumerate(_IN_TURN):
        run(theatre, backend, TWO[name], None if NIGHTLY else 2, seed)


def _each_with_a_step(base: Any, engine: Engine) -> Any:
    """Each connection counts on as a node of a cluster does: 1, 4, 7 ..., or 2, 5, 8 ..."""
    nodes = itertools.cycle((3, 1, 2))

    @sa.event.listens_for(engine, "connect")
    def step(dbapi_connection: Any, _record: Any) -> None:
        with dbapi_connection.cursor() as cursor:
            cursor.execute(
                "SET auto_increment_increment = 3, auto_increment_offset = %s", (next(nodes),)
            )

    class Transaction(h.TransactionBase, base):
        __tablename__ = "transaction"
        id = mapped_column(sa.BigInteger, primary_key=True, autoincrement=True)

    return Transaction


@pytest.mark.backends("mariadb")
@pytest.mark.parametrize("numbering", [_each_with_a_step])
def test_ids_of_a_cluster(theatre: Theatre, backend: str) -> None:
    """With ``auto_increment_increment`` above 1 ids have gaps, and each connection its own."""
    for seed, name in enumerate(_IN_TURN):
        run(theatre, backend, TWO[name], None if NIGHTLY else 2, seed)
