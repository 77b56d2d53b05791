"""Histories can be begun, thinned out and redacted: nothing that they still show becomes wrong."""

from __future__ import annotations

import datetime as dt
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, mapped_column

import sqlalchemy_history as h
from chain import DELETE, INSERT, UPDATE, history, laws
from shapes import models
from sqlalchemy_history.plugins import ActivityPlugin, TransactionMetaPlugin

__all__ = ["laws", "models"]

sqlite_only = pytest.mark.backends("sqlite")


def plain(engine: Any, *rows: tuple[Any, dict[str, Any]]) -> None:
    """Insert rows behind the back of versioning."""
    with engine.begin() as connection:
        for entity, values in rows:
            connection.execute(sa.insert(getattr(entity, "__table__", entity)).values(values))


def names_at(session: Session, entity: Any, at: Any) -> dict[Any, str]:
    """Key -> name of what was live at a moment."""
    cls = h.version_class(entity)
    return {
        key: version.name
        for version in session.scalars(h.as_of(entity, at))
        for key in [sa.inspect(cls).primary_key_from_instance(version)[0]]
    }


def transactions(session: Session, model: Any) -> list[Any]:
    cls = h.transaction_class(model)
    return list(session.scalars(sa.select(cls).order_by(cls.id)))


def make_history(session: Session, model: Any, values: list[str | None], **key: Any) -> list[int]:
    """One transaction for each value; None deletes. Returns the transactions' ids."""
    obj = None
    ids = []
    for value in values:
        if value is None:
            session.delete(obj)
            obj = None
        elif obj is None:
            obj = model(name=value, **key)
            session.add(obj)
        else:
            obj.name = value
        session.commit()
        ids.append(max(tx.id for tx in transactions(session, model)))
    return ids


# -- backfill


def test_backfill_gives_rows_without_history_a_first_version(
    models: Any, open_session: Any, engine: Any
) -> None:
    """Rows that were there before get an INSERT version; rows with a history are left alone."""
    session = open_session()
    session.add(models.Article(id=1, name="recorded"))
    session.commit()
    plain(
        engine,
        (models.Article, {"id": 2, "name": "older"}),
        (models.Article, {"id": 3, "name": "oldest"}),
    )
    assert h.backfill(session, models.Article) == 2
    session.commit()
    assert history(session, models.Article, "id", "name") == [
        (1, INSERT, 1, "recorded"),
        (2, INSERT, 2, "older"),
        (2, INSERT, 3, "oldest"),
    ]


def test_backfill_takes_hierarchies_composite_keys_and_links_along(
    models: Any, open_session: Any, engine: Any
) -> None:
    """All tables of a hierarchy, and links, get their first version, and are seen."""
    session = open_session()
    plain(
        engine,
        (models.Tag, {"id": 1, "name": "t"}),
        (models.Article, {"id": 1, "name": "a"}),
        (models.article_tag, {"article_id": 1, "tag_id": 1}),
        (models.Shape, {"id": 1, "name": "s", "kind": "shape"}),
        (models.Shape, {"id": 2, "name": "c", "kind": "circle"}),
        (models.Circle, {"id": 2, "radius": 3}),
        (models.Line, {"order": "x", "number": 1, "name": "x1"}),
        (models.Line, {"order": "x", "number": 2, "name": "x2"}),
        (models.Line, {"order": "y", "number": 1, "name": "y1"}),
    )
    assert h.backfill(session, models.Tag) == 1
    assert h.backfill(session, models.Article) == 2
    assert h.backfill(session, models.Circle) == 2
    assert h.backfill(session, models.Line, batch_size=1) == 3
    session.commit()
    assert [tag.name for tag in session.get(models.Article, 1).versions[0].tags] == ["t"]
    circle = session.get(models.Circle, 2)
    assert [(v.name, v.radius) for v in circle.versions] == [("c", 3)]
    circle.radius = 4
    session.commit()
    assert [v.radius for v in circle.versions] == [3, 4]
    assert history(session, models.Line, "name") == [(4, INSERT, n) for n in ("x1", "x2", "y1")]


def test_backfill_goes_on_where_it_was_stopped(models: Any, open_session: Any, engine: Any) -> None:
    """With commit=True what was done before a run was killed stays, and is not done again."""
    session = open_session()
    plain(engine, *((models.Article, {"id": i, "name": str(i)}) for i in range(1, 8)))
    seen = []

    class Killed(Exception):
        pass

    def die(progress: h.Progress) -> None:
        seen.append((progress.task, progress.table, progress.done))
        if progress.done >= 4:
            raise Killed

    with pytest.raises(Killed):
        h.backfill(session, models.Article, batch_size=2, commit=True, progress=die)
    assert seen == [("backfill", "article", 2), ("backfill", "article", 4)]
    session.rollback()
    assert h.backfill(session, models.Article, batch_size=2, commit=True) == 3
    assert [row[2] for row in history(session, models.Article, "id")] == list(range(1, 8))
    assert [row[0] for row in history(session, models.Article, "id")] == [1] * 4 + [2] * 3


@pytest.mark.sqlite_file
@pytest.mark.parametrize("task", ["backfill", "vacuum", "prune", "repair", "redact"])
def test_a_run_that_was_killed_is_started_again(
    models: Any, open_session: Any, engine: Any, task: str
) -> None:
    """A process that dies at any batch leaves a right history, and the next one does the rest."""
    session = open_session()
    cls = h.version_class(models.Article)
    session.add_all(models.Article(id=i, name="first") for i in range(1, 13))
    session.commit()
    session.execute(sa.update(models.Article).values(name="second"))
    session.commit()
    whole = len(history(session, models.Article, "id"))
    assert whole == 24
    if task == "backfill":
        session.execute(sa.delete(cls))
    elif task == "vacuum":
        session.execute(sa.update(cls).values(name="second"))
    elif task == "repair":
        session.execute(sa.update(cls).where(cls.operation_type == 1).values(name="wrong"))
    last = session.scalar(sa.select(sa.func.max(h.transaction_class(models.Article).id)))
    session.commit()

    def run(session: Session, progress: Any) -> None:
        if task == "vacuum":
            h.vacuum(session, models.Article, 5, commit=True, progress=progress)
        elif task == "prune":
            h.prune(session, models.Article, before=last, batch_size=5, commit=True,
                    progress=progress)  # fmt: skip
        elif task == "redact":
            h.redact(session, models.Article, 1, {"name": "(erased)"})
            if progress is not None:
                progress(None)
            session.commit()
        else:
            getattr(h, task)(session, models.Article, batch_size=5, commit=True, progress=progress)

    def die(batches: list[Any], _: Any) -> None:
        batches.pop()
        if not batches:
            os.kill(os.getpid(), signal.SIGKILL)

    for batches in (1,) if task == "redact" else (1, 2):
        child = os.fork()
        if child == 0:
            run(Session(sa.create_engine(engine.url)), partial(die, [None] * batches))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        wrong = {f.kind for f in h.verify(session, models.Article) if f.severity == "error"}
        assert wrong <= ({"differs from live row"} if task == "repair" else set())
        session.commit()
    run(session, None)
    rows = len(history(session, models.Article, "id"))
    assert rows == {"repair": 36, "redact": 24}.get(task, 12)
    kinds = {f.kind for f in h.verify(session, models.Article)} - {"unused transaction"}
    assert kinds == ({"equal versions"} if task == "redact" else set())


def test_backfill_marks_its_transaction(models: Any, open_session: Any, engine: Any) -> None:
    """One transaction row for all batches, marked; what transaction_context() says wins."""
    session = open_session()
    plain(engine, *((models.Article, {"id": i, "name": str(i)}) for i in range(1, 8)))
    h.backfill(session, models.Article, batch_size=2, commit=True)
    session.commit()
    plain(engine, (models.Article, {"id": 8, "name": "8"}))
    with h.transaction_context(remote_addr="migration 7"):
        h.backfill(session, models.Article)
    session.commit()
    assert [tx.remote_addr for tx in transactions(session, models.Article)] == [
        "backfill",
        "migration 7",
    ]
    assert all(tx.issued_at for tx in transactions(session, models.Article))


def test_backfill_and_changes_in_one_transaction(
    models: Any, open_session: Any, engine: Any
) -> None:
    """Before or after changes in the same transaction, backfill leaves one chain per row."""
    session = open_session()
    plain(engine, *((models.Article, {"id": i, "name": str(i)}) for i in (1, 2)))
    assert h.backfill(session, models.Article) == 2
    session.get(models.Article, 1).name = "one"
    session.commit()
    assert history(session, models.Article, "id", "name") == [
        (1, INSERT, 1, "1"),
        (1, INSERT, 2, "2"),
        (2, UPDATE, 1, "one"),
    ]
    session.commit()
    plain(engine, (models.Article, {"id": 3, "name": "3"}))
    session.get(models.Article, 2).name = "two"
    session.flush()
    assert h.backfill(session, models.Article) == 1
    session.get(models.Article, 3).name = "three"
    session.commit()
    assert history(session, models.Article, "id", "name")[3:] == [
        (3, UPDATE, 2, "two"),
        (3, INSERT, 3, "three"),
    ]


def test_backfill_leaves_classes_without_history_alone(
    versioning: Any, Base: Any, open_session: Any, engine: Any, laws: Any
) -> None:
    """In a hierarchy of which only one class is versioned, the rows of the others get nothing."""
    laws.whole = False

    class Animal(Base):
        __tablename__ = "animal"
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(50))
        kind = mapped_column(sa.String(10))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    class Cat(Animal):
        __versioned__ = {}
        __mapper_args__ = {"polymorphic_identity": "cat"}

    session = open_session()
    plain(
        engine,
        (Animal.__table__, {"id": 1, "name": "a", "kind": "animal"}),
        (Animal.__table__, {"id": 2, "name": "c", "kind": "cat"}),
    )
    assert h.backfill(session, Cat) == 1
    session.commit()
    assert history(session, Animal.__table__, "name") == [(1, INSERT, "c")]
    assert h.verify(session, Cat) == []


def test_backfill_is_set_based(
    models: Any, open_session: Any, engine: Any, statements: Callable[..., Any]
) -> None:
    """The number of statements depends on the number of batches, not on that of rows."""
    session = open_session()

    def count(rows: range) -> int:
        plain(engine, *((models.Tag, {"id": i, "name": str(i)}) for i in rows))
        with statements(engine) as log:
            assert h.backfill(session, models.Tag) == len(rows)
        session.commit()
        return len(log)

    count(range(1, 3))
    assert count(range(10, 20)) == count(range(100, 300))


# -- vacuum


def insert_copy_of_last(session: Session, model: Any, tx: int) -> None:
    """Write a version that says the same as the last one, as the peers do."""
    v = model.__table__.info["sqlalchemy_history"].version
    last = (
        session.execute(sa.select(v).order_by(v.c.transaction_id.desc()).limit(1)).mappings().one()
    )
    values = {**last, "transaction_id": tx, "operation_type": UPDATE}
    if "end_transaction_id" in v.c:
        which = v.c.transaction_id == last["transaction_id"]
        session.execute(sa.update(v).where(which).values(end_transaction_id=tx))
        values["end_transaction_id"] = None
    session.execute(sa.insert(v).values(values))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Article", {"id": 1}),
        ("Line", {"order": "a", "number": 1}),
        ("Circle", {"id": 1, "radius": 2}),
    ],
)
def test_vacuum_removes_versions_that_say_nothing_new(
    models: Any, open_session: Any, name: str, key: dict[str, Any]
) -> None:
    """Equal neighbours go, A, B, A stays, the chain is linked again, unused transactions go."""
    session = open_session()
    model = getattr(models, name)
    make_history(session, model, ["a", "b", "a"], **key)
    root = models.Shape if name == "Circle" else model
    tables = [models.Shape, models.Circle] if name == "Circle" else [model]
    for _ in range(3):
        session.execute(sa.insert(h.transaction_class(model)).values(remote_addr="void"))
        tx = max(row.id for row in transactions(session, model))
        for table in tables:
            insert_copy_of_last(session, table, tx)
    session.commit()
    assert len(history(session, root, "name")) == 6
    assert h.vacuum(session, model, yield_per=2) == 3
    session.commit()
    assert history(session, root, "name") == [(1, INSERT, "a"), (2, UPDATE, "b"), (3, UPDATE, "a")]
    assert len(transactions(session, model)) == 3
    assert h.vacuum(session, model) == 0


def test_vacuum_keeps_what_follows_a_delete(models: Any, open_session: Any) -> None:
    """A row that came back with the values it was deleted with has two lives, and keeps them."""
    session = open_session()
    make_history(session, models.Article, ["a", None, "a"], id=1)
    assert h.vacuum(session, models.Article) == 0


def test_vacuum_refuses_what_has_no_history(versioning: Any, Base: Any, open_session: Any) -> None:
    """A class without history is an error that names it."""

    class Plain(Base):
        __tablename__ = "plain"
        id = mapped_column(sa.Integer, primary_key=True)

    with pytest.raises(h.ClassNotVersioned, match="Plain"):
        h.vacuum(open_session(), Plain)


# -- prune


@pytest.fixture
def three_lives(models: Any, open_session: Any) -> tuple[Session, list[int], list[dict[Any, str]]]:
    """A session, six transactions' ids, and what was live after each of them."""
    session = open_session()
    one = models.Article(id=1, name="a1")
    two = models.Article(id=2, name="b1")
    three = models.Article(id=3, name="c1")
    steps: list[Callable[[], Any]] = [
        lambda: session.add_all([one, two, three]),
        lambda: (setattr(one, "name", "a2"), setattr(three, "name", "c2")),
        lambda: session.delete(two),
        lambda: setattr(one, "name", "a3"),
        lambda: session.add(models.Article(id=2, name="b2")),
        lambda: (setattr(one, "name", "a4"), session.delete(three)),
    ]
    ids = []
    for step in steps:
        step()
        session.commit()
        ids.append(max(tx.id for tx in transactions(session, models.Article)))
    return session, ids, [names_at(session, models.Article, at) for at in ids]


@pytest.mark.parametrize("first", [0, 2, 3, 5])
def test_prune_before_leaves_its_window_right(models: Any, three_lives: Any, first: int) -> None:
    """From the moment given on, as_of() shows what it always showed; what ended before is gone."""
    session, ids, shown = three_lives
    total = len(history(session, models.Article, "id"))
    removed = h.prune(session, models.Article, before=ids[first], batch_size=2)
    session.commit()
    left = history(session, models.Article, "id")
    assert removed == total - len(left)
    assert removed == [0, 2, 4, 5, 5, 8][first]
    for at, was in zip(ids[first:], shown[first:], strict=True):
        assert names_at(session, models.Article, at) == was
    assert h.prune(session, models.Article, before=ids[first]) == 0
    assert h.verify(session, models.Article) == []


def test_prune_takes_a_moment_in_any_form(models: Any, three_lives: Any) -> None:
    """A Transaction, its id or an aware datetime; naive: an error. Unused transactions go."""
    session, ids, shown = three_lives
    cls = h.transaction_class(models.Article)
    third = session.get(cls, ids[2])
    at = dt.datetime(2020, 1, 1)
    for number, tx in enumerate(transactions(session, models.Article)):
        tx.issued_at = at + dt.timedelta(days=number)
    session.commit()
    with pytest.raises(TypeError, match="naive"):
        h.prune(session, models.Article, before=at)
    moment = (at + dt.timedelta(days=2, hours=1)).replace(tzinfo=dt.timezone.utc)
    assert h.prune(session, models.Article, before=moment) == 4
    session.rollback()
    assert h.prune(session, models.Article, before=third) == 4
    session.commit()
    assert h.prune(session, models.Article, before=moment) == 0
    session.commit()
    # the third transaction did nothing but delete what is not known any more
    assert [tx.id for tx in transactions(session, models.Article)] == [
        ids[1],
        ids[3],
        ids[4],
        ids[5],
    ]
    assert names_at(session, models.Article, moment) == shown[2]


@pytest.mark.parametrize("keep", [1, 3])
def test_prune_keeps_the_last_versions(models: Any, three_lives: Any, keep: int) -> None:
    """keep_last= keeps so many versions of each object, and each of them where it was."""
    session, _ids, _ = three_lives
    before = {}
    for row in history(session, models.Article, "id", "name"):
        before.setdefault(row[2], []).append(row[1:])
    h.prune(session, models.Article, keep_last=keep)
    session.commit()
    after: dict[Any, Any] = {}
    for row in history(session, models.Article, "id", "name"):
        after.setdefault(row[2], []).append(row[1:])
    assert after == {key: rows[-keep:] for key, rows in before.items()}


def test_prune_with_both_removes_only_what_both_allow(models: Any, three_lives: Any) -> None:
    """With before= and keep_last=, a version goes only if it is old and not one of the last."""
    session, ids, shown = three_lives
    h.prune(session, models.Article, before=ids[5], keep_last=2)
    session.commit()
    assert [row[1:] for row in history(session, models.Article, "name")] == [
        (UPDATE, "c2"),
        (DELETE, "b1"),
        (UPDATE, "a3"),
        (INSERT, "b2"),
        (UPDATE, "a4"),
        (DELETE, "c2"),
    ]
    assert names_at(session, models.Article, ids[5]) == shown[5]


def test_prune_keeps_links_of_its_window(models: Any, open_session: Any) -> None:
    """Links that were valid in the window stay, those that ended before it go."""
    session = open_session()
    article = models.Article(
        id=1, name="a", tags=[models.Tag(id=1, name="x"), models.Tag(id=2, name="y")]
    )
    session.add(article)
    session.commit()
    article.tags = article.tags[1:]
    session.commit()
    article.name = "b"
    session.commit()
    last = transactions(session, models.Article)[-1]
    h.prune(session, models.Article, before=last)
    session.commit()
    assert [row[1:] for row in history(session, models.article_tag)] == [(INSERT, 1, 2)]
    [version] = session.scalars(h.as_of(models.Article, last))
    assert [tag.name for tag in version.tags] == ["y"]


def test_prune_takes_all_tables_of_a_hierarchy(models: Any, open_session: Any) -> None:
    """No table of a joined hierarchy keeps a version that the others have lost."""
    session = open_session()
    ids = make_history(session, models.Circle, ["a", "b", "c"], id=1, radius=1)
    assert h.prune(session, models.Circle, before=ids[-1], commit=True, batch_size=1) == 2
    assert history(session, models.Shape, "name") == [(1, UPDATE, "c")]
    assert history(session, models.Circle, "radius") == [(1, UPDATE, 1)]


def test_a_batch_is_larger_than_one_list_of_keys(models: Any, open_session: Any) -> None:
    """Where a database takes few keys at once, a batch goes in portions, and nothing is left out."""
    session = open_session()
    session.add_all(models.Line(order="a", number=n, name="first") for n in range(250))
    session.commit()
    session.execute(sa.update(models.Line).values(name="second"))
    session.commit()
    session.execute(sa.update(h.version_class(models.Line)).values(name="second"))
    assert h.vacuum(session, models.Line) == 250
    session.execute(sa.update(models.Line).values(name="third"))
    session.commit()
    assert h.prune(session, models.Line, keep_last=1) == 250
    assert h.verify(session, models.Line) == []


def test_prune_needs_to_know_what(models: Any, open_session: Any) -> None:
    """Without a moment or a number there is nothing to prune; the last version always stays."""
    session = open_session()
    with pytest.raises(TypeError, match="before="):
        h.prune(session, models.Article)
    with pytest.raises(ValueError, match="keep_last=0"):
        h.prune(session, models.Article, keep_last=0)


def test_transactions_that_others_refer_to_stay(
    versioning: Any, models: Any, Base: Any, open_session: Any
) -> None:
    """A transaction that a table of the user's refers to is not unused."""
    h.version_class(models.Article)

    class Approval(Base):
        __tablename__ = "approval"
        id = mapped_column(sa.Integer, primary_key=True)
        transaction_id = mapped_column(sa.ForeignKey("transaction.id"))

    session = open_session()
    ids = make_history(session, models.Article, ["a", "b", "c"], id=1)
    session.add(Approval(transaction_id=ids[0]))
    session.commit()
    h.prune(session, models.Article, keep_last=1)
    session.commit()
    assert [tx.id for tx in transactions(session, models.Article)] == [ids[0], ids[2]]


# -- redact


def test_redact_erases_values_of_one_object(models: Any, open_session: Any) -> None:
    """All versions of the object and its live row lose the value; other objects keep theirs."""
    session = open_session()
    make_history(session, models.Article, ["secret", "secret too", None], id=1, body="fine")
    make_history(session, models.Article, ["secret", "public"], id=2, body="fine")
    make_history(session, models.Article, ["secret"], id=1, body="fine")
    assert h.redact(session, models.Article, 1, columns=["name"]) == 4
    session.commit()
    rows = {
        (row[2], row[3], row[4]) for row in history(session, models.Article, "id", "name", "body")
    }
    assert rows == {(1, None, "fine"), (2, "secret", "fine"), (2, "public", "fine")}
    assert session.get(models.Article, 1).name is None
    assert not [f for f in h.verify(session, models.Article) if f.severity == "error"]


def test_redact_says_who_and_when(models: Any, open_session: Any) -> None:
    """A transaction row is left as a mark; verify() and prune() leave it alone."""
    session = open_session()
    ids = make_history(session, models.Article, ["secret", "b"], id=1)
    h.redact(session, models.Article, 1, columns={"name": "(erased)"})
    session.commit()
    mark = transactions(session, models.Article)[-1]
    assert mark.remote_addr == "redact article 1: name"
    assert mark.issued_at is not None
    assert session.get(models.Article, 1).name == "(erased)"
    assert [f.kind for f in h.verify(session, models.Article)] == ["equal versions"]
    h.prune(session, models.Article, before=ids[-1])
    h.vacuum(session, models.Article)
    session.commit()
    assert h.verify(session, models.Article) == []
    assert mark in transactions(session, models.Article)


def test_redact_of_a_hierarchy_and_of_composite_keys(models: Any, open_session: Any) -> None:
    """Values are erased in whichever table they are; by default all that tell something."""
    session = open_session()
    make_history(session, models.Circle, ["a", "b"], id=1, radius=7)
    make_history(session, models.Line, ["a", None], order="x", number=1)
    assert h.redact(session, models.Circle, (1,)) == 2
    assert h.redact(session, models.Line, {"order": "x", "number": 1}, [models.Line.name]) == 2
    session.commit()
    assert [row[2:] for row in history(session, models.Shape)] == [(1, None, "circle")] * 2
    assert [row[2:] for row in history(session, models.Circle)] == [(1, None)] * 2
    assert {row[2:] for row in history(session, models.Line)} == {("x", 1, None)}


@sqlite_only
def test_redact_refuses_what_it_cannot_do(models: Any, open_session: Any) -> None:
    """Unknown names, keys, and values that the live row must have: an error, nothing changed."""
    session = open_session()
    models.Article.__table__.c.body.nullable = False
    make_history(session, models.Article, ["a"], id=1, body="b")
    for columns, message in (
        (["nmae"], "did you mean 'name'"),
        (["id"], "which row it is"),
        (["body"], "article.body of the live row 1 cannot be NULL"),
    ):
        with pytest.raises(h.VersioningError, match=message):
            h.redact(session, models.Article, 1, columns=columns)
    with pytest.raises(h.VersioningError, match="Line is identified by"):
        h.redact(session, models.Line, 1)
    session.rollback()
    assert history(session, models.Article, "name", "body") == [(1, INSERT, "a", "b")]


# -- stats


def test_stats_count_rows_objects_versions_and_waste(models: Any, open_session: Any) -> None:
    """Numbers of a history, the hottest objects first; bytes where the database tells."""
    session = open_session()
    make_history(session, models.Article, ["a", "b", "c"], id=1)
    make_history(session, models.Article, ["a", None], id=2)
    article, links = h.stats(session, models.Article, hottest=1)
    assert (article.table, article.rows, article.objects, article.versions, article.waste) == (
        "article",
        1,
        2,
        5,
        0,
    )
    assert article.hottest == ((1, 3),)
    assert article.bytes is None or article.bytes > 0
    assert (links.table, links.versions, links.hottest) == ("article_tag", 0, ())


def test_count_versions_binds_its_parameters(versioning: Any, Base: Any, open_session: Any) -> None:
    """A quote in a key is no SQL."""

    class Word(Base):
        __tablename__ = "word"
        __versioned__ = {}
        text = mapped_column(sa.String(20), primary_key=True)
        name = mapped_column(sa.String(20))

    session = open_session()
    word = Word(text="it's", name="a")
    session.add(word)
    session.commit()
    word.name = "b"
    session.commit()
    assert h.count_versions(word) == 2
    assert h.count_versions(word.versions[0]) == 2
    assert h.count_versions(Word(text="new")) == 0


# -- plugins


@sqlite_only
@pytest.mark.parametrize("plugins", [[ActivityPlugin(), TransactionMetaPlugin()]])
def test_redact_reaches_what_plugins_keep(
    models: Any, versioning: Any, plugins: Any, open_session: Any
) -> None:
    """Data of activities about the object is erased; that of others stays."""
    session = open_session()
    make_history(session, models.Article, ["secret"], id=1)
    make_history(session, models.Article, ["public"], id=2)
    activity = versioning.activity_cls
    one, two = session.get(models.Article, 1), session.get(models.Article, 2)
    session.add_all(
        [
            activity(verb="named", object=one, data={"name": "secret"}),
            activity(verb="linked", object=two, target=one, data={"to": "secret"}),
            activity(verb="named", object=two, data={"name": "public"}),
        ]
    )
    session.commit()
    loaded = session.scalars(sa.select(activity).order_by(activity.id)).all()
    h.redact(session, models.Article, 1, columns={"name": "(erased)"})
    expected = [("named", None), ("linked", None), ("named", {"name": "public"})]
    assert [(one.verb, one.data) for one in loaded] == expected
    session.commit()
    found = session.execute(sa.select(activity.verb, activity.data).order_by(activity.id)).all()
    assert [tuple(row) for row in found] == expected


@sqlite_only
@pytest.mark.parametrize("plugins", [[ActivityPlugin(), TransactionMetaPlugin()]])
def test_prune_and_the_tables_of_plugins(
    models: Any, versioning: Any, plugins: Any, open_session: Any
) -> None:
    """A transaction with an activity is in use; what is only said about one goes with it."""
    session = open_session()
    article = models.Article(id=1, name="a")
    for name in "abc":
        article.name = name
        session.add(article)
        versioning.unit_of_work(session).create_transaction(session).meta = {"name": name}
        if name == "a":
            session.add(versioning.activity_cls(verb="began", object=article))
        session.commit()
    session.expunge_all()
    assert h.prune(session, models.Article, keep_last=1) == 2
    session.commit()
    meta = {tx.id: dict(tx.meta) for tx in transactions(session, models.Article)}
    assert list(meta.values()) == [{"name": "a"}, {"name": "c"}]
    assert session.scalar(sa.text("SELECT count(*) FROM transaction_meta")) == 2
    assert h.verify(session, models.Article) == []
