"""Damage is found, told in words, and mended: what verify() and repair() know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

import sqlalchemy_history as h
from chain import DELETE, INSERT, UPDATE, history, laws
from shapes import models

__all__ = ["laws", "models"]

validity = pytest.mark.parametrize("strategy", ["validity"])

pytestmark = pytest.mark.options(unique_open=False)


@pytest.fixture
def session(models: Any, open_session: Callable[..., Session]) -> Session:
    """Histories of every kind, all of them sound: six transactions."""
    session = open_session()
    tags = [models.Tag(id=1, name="x"), models.Tag(id=2, name="y")]
    article = models.Article(id=1, name="a", tags=tags)
    line = models.Line(order="o", number=1, name="a")
    circle = models.Circle(id=1, name="a", radius=1)
    gone = models.Article(id=2, name="gone")
    session.add_all([article, line, circle, gone])
    session.commit()
    for step in ("b", "c"):
        article.name = line.name = circle.name = step
        session.commit()
    circle.radius = 2
    session.delete(gone)
    session.commit()
    article.tags = [tags[1]]
    session.commit()
    article.tags = tags
    session.commit()
    return session


def version(entity: Any) -> sa.Table:
    return h.version_table(getattr(entity, "__table__", entity))


def damage(session: Session, statement: Any) -> None:
    """Run a statement behind the back of versioning."""
    session.commit()
    with session.get_bind().begin() as connection:
        assert connection.execute(statement).rowcount


def found(session: Session, *models: Any) -> list[tuple[Any, ...]]:
    """What verify() finds: (kind, severity, table, key, number of the transaction)."""
    rows = []
    for model in models:
        for finding in h.verify(session, model):
            assert finding.message.startswith(finding.table)
            rows.append(
                (finding.kind, finding.severity, finding.table, finding.key, finding.transaction_id)
            )
    return sorted(rows, key=repr)


def is_mended_by_repair(session: Session, model: Any, **options: Any) -> list[tuple[Any, ...]]:
    """The steps of repair(), which are those of its plan and leave nothing to be found."""
    before = h.verify(session, model)
    plan = h.repair(session, model, dry_run=True)
    assert h.verify(session, model) == before
    assert h.repair(session, model, **options) == plan
    session.commit()
    assert [f for f in h.verify(session, model) if f.severity != "note"] == []
    assert h.repair(session, model) == []
    return [(step.kind, step.table, step.count) for step in plan]


def ids(session: Session, model: Any) -> list[int]:
    cls = h.transaction_class(model)
    return list(session.scalars(sa.select(cls.id).order_by(cls.id)))


def test_a_sound_history_has_no_findings(models: Any, session: Session) -> None:
    """What versioning itself writes is found sound, and repair() has nothing to do."""
    for model in (models.Article, models.Tag, models.Line, models.Shape, models.Circle):
        assert h.verify(session, model) == []
        assert h.repair(session, model) == []


def test_verify_changes_nothing_and_takes_as_many_statements_as_laws(
    models: Any, session: Session, engine: Any, statements: Callable[..., Any]
) -> None:
    """Only SELECTs, and no more of them when there is more history or more damage."""
    session.commit()
    with statements(engine) as log:
        h.verify(session, models.Line)
    few = len(log)
    session.add_all([models.Line(order="many", number=i, name="a") for i in range(50)])
    session.commit()
    damage(session, sa.update(models.Line.__table__).values(name="z"))
    with statements(engine) as log:
        assert len(h.verify(session, models.Line)) == 51
    assert len(log) == few
    assert all(one.sql.lstrip().startswith(("SELECT", "WITH", "DECLARE")) for one in log)
    assert len(h.verify(session, models.Line, limit=3)) == 3
    is_mended_by_repair(session, models.Line, batch_size=20)


@validity
def test_two_open_versions(models: Any, session: Session) -> None:
    """An older version that is open beside the last one is ended where the next one starts."""
    v = version(models.Line)
    first, second = ids(session, models.Line)[:2]
    damage(
        session, sa.update(v).where(v.c.transaction_id == second).values(end_transaction_id=None)
    )
    assert found(session, models.Line) == [
        ("two open versions", "error", "line_version", ("o", 1), second)
    ]
    damage(session, sa.update(v).where(v.c.transaction_id == first).values(end_transaction_id=None))
    assert found(session, models.Line) == [
        ("two open versions", "error", "line_version", ("o", 1), first),
        ("two open versions", "error", "line_version", ("o", 1), second),
    ]
    assert is_mended_by_repair(session, models.Line) == [("two open versions", "line_version", 2)]
    assert [row[1:] for row in history(session, models.Line, "name")] == [
        (INSERT, "a"),
        (UPDATE, "b"),
        (UPDATE, "c"),
    ]


@validity
def test_open_versions_that_are_not_the_last(models: Any, session: Session) -> None:
    """The order of transactions decides which version is open, not which one happens to be."""
    v = version(models.Line)
    damage(session, sa.update(v).values(end_transaction_id=v.c.transaction_id + 1))
    first, _, third = ids(session, models.Line)[:3]
    damage(session, sa.update(v).where(v.c.transaction_id == first).values(end_transaction_id=None))
    assert found(session, models.Line) == [
        ("never closed", "error", "line_version", ("o", 1), first),
        ("no open version", "error", "line_version", ("o", 1), third),
    ]
    is_mended_by_repair(session, models.Line)


@validity
def test_wrong_and_missing_ends(models: Any, session: Session) -> None:
    """A version that ends too late, and a last version that has an end, are linked again."""
    v = version(models.Circle)
    numbers = ids(session, models.Circle)
    damage(
        session,
        sa.update(v).where(v.c.transaction_id == numbers[0]).values(end_transaction_id=numbers[2]),
    )
    damage(
        session,
        sa.update(v).where(v.c.end_transaction_id.is_(None)).values(end_transaction_id=numbers[5]),
    )
    assert found(session, models.Shape) == [
        ("no open version", "error", "circle_version", 1, numbers[3]),
        ("wrong end", "error", "circle_version", 1, numbers[0]),
    ]
    is_mended_by_repair(session, models.Shape)


@validity
def test_association_rows_that_were_never_closed(models: Any, session: Session) -> None:
    """Links of which no version was ever ended, as the peers leave them, are linked again."""
    damage(session, sa.update(version(models.article_tag)).values(end_transaction_id=None))
    kinds = {(kind, table) for kind, _, table, *_ in found(session, models.Article)}
    assert kinds == {("two open versions", "article_tag_version")}
    is_mended_by_repair(session, models.Article)
    numbers = ids(session, models.Article)
    [was] = session.scalars(h.as_of(models.Article, numbers[4]))
    assert [tag.name for tag in was.tags] == ["y"]


def test_dangling_transactions(models: Any, session: Session) -> None:
    """A missing transaction row is made anew, marked, dated as the one before; ids stay unique."""
    numbers = ids(session, models.Line)
    cls = h.transaction_class(models.Line)
    lost = numbers[-1] + 50
    v = version(models.Line)
    values: dict[str, Any] = {"transaction_id": lost}
    damage(session, sa.update(v).where(v.c.transaction_id == numbers[2]).values(values))
    if "end_transaction_id" in v.c:
        which = v.c.transaction_id == numbers[1]
        damage(session, sa.update(v).where(which).values(end_transaction_id=lost))
    assert found(session, models.Line) == [
        ("dangling transaction", "error", "line_version", ("o", 1), lost)
    ]
    is_mended_by_repair(session, models.Line)
    made = session.get(cls, lost)
    assert made.remote_addr == "repair"
    assert made.issued_at == session.get(cls, numbers[-1]).issued_at
    session.get(models.Line, ("o", 1)).name = "d"
    session.commit()
    assert max(ids(session, models.Line)) > lost


def test_unused_transactions_are_noted_and_stay(models: Any, session: Session) -> None:
    """A transaction without versions does no harm; somebody may have made it on purpose."""
    cls = h.transaction_class(models.Line)
    damage(session, sa.insert(cls.__table__).values(remote_addr="somebody"))
    unused = max(ids(session, models.Line))
    assert found(session, models.Line) == [
        ("unused transaction", "note", "transaction", None, unused)
    ]
    assert h.repair(session, models.Line) == []
    assert max(ids(session, models.Line)) == unused


@pytest.mark.parametrize("name", ["Line", "Circle"])
def test_the_live_row_says_otherwise(models: Any, session: Session, name: str) -> None:
    """What was changed behind our back becomes a version of now; the past is not rewritten."""
    model = getattr(models, name)
    changed = {"Line": {"name": "z"}, "Circle": {"radius": 9}}[name]
    damage(session, sa.update(model.__table__).values(changed))
    [finding] = h.verify(session, model)
    assert (finding.kind, finding.severity) == ("differs from live row", "error")
    [step] = is_mended_by_repair(session, model, commit=True)
    assert step == ("differs from live row", finding.table, 1)
    attribute, value = changed.popitem()
    obj = session.scalars(sa.select(model)).one()
    assert getattr(obj.versions[-1], attribute) == value
    assert obj.versions[-1].transaction.remote_addr == "repair"
    assert obj.versions[-1].operation_type == UPDATE
    assert getattr(obj.versions[-2], attribute) != value


def test_rows_that_live_after_their_delete(models: Any, session: Session) -> None:
    """A row that came back behind our back gets an INSERT version."""
    damage(session, sa.insert(models.Article.__table__).values(id=2, name="back"))
    assert [row[:4] for row in found(session, models.Article)] == [
        ("lives after DELETE", "error", "article_version", 2)
    ]
    is_mended_by_repair(session, models.Article)
    versions = session.get(models.Article, 2).versions
    assert [(v.operation_type, v.name) for v in versions] == [
        (INSERT, "gone"),
        (DELETE, "gone"),
        (INSERT, "back"),
    ]


@pytest.mark.parametrize("name", ["Line", "Circle"])
def test_rows_that_are_gone_without_a_delete(models: Any, session: Session, name: str) -> None:
    """A row that was removed behind our back gets a DELETE version in all tables."""
    model = getattr(models, name)
    session.expunge_all()
    tables = [models.Circle.__table__, models.Shape.__table__]
    for table in tables if name == "Circle" else [model.__table__]:
        damage(session, sa.delete(table))
    assert [row[:3] for row in found(session, model)] == [
        ("gone without DELETE", "error", f"{'shape' if name == 'Circle' else 'line'}_version")
    ]
    is_mended_by_repair(session, model)
    for table in tables if name == "Circle" else [model.__table__]:
        assert history(session, table)[-1][1] == DELETE
    assert session.scalars(h.as_of(model, max(ids(session, model)))).all() == []


def test_rows_without_history(models: Any, session: Session) -> None:
    """Rows that no version knows are a warning; repair() backfills them."""
    damage(session, sa.insert(models.Line.__table__).values(order="p", number=1, name="new"))
    assert found(session, models.Line) == [("no history", "warning", "line", ("p", 1), None)]
    is_mended_by_repair(session, models.Line)
    assert [v.name for v in session.get(models.Line, ("p", 1)).versions] == ["new"]


def test_versions_that_say_nothing_new(models: Any, session: Session) -> None:
    """Consecutive equal versions are a warning; repair() removes the later one."""
    numbers = ids(session, models.Line)
    v = version(models.Line)
    damage(session, sa.update(v).where(v.c.transaction_id == numbers[1]).values(name="a"))
    assert found(session, models.Line) == [
        ("equal versions", "warning", "line_version", ("o", 1), numbers[1])
    ]
    is_mended_by_repair(session, models.Line)
    assert [row[2] for row in history(session, models.Line, "name")] == ["a", "c"]


def test_parts_of_a_hierarchy_without_their_base(models: Any, session: Session) -> None:
    """A version in a subclass's table that the base table lacks cannot be shown: it goes."""
    numbers = ids(session, models.Circle)
    v = version(models.Shape)
    damage(session, sa.delete(v).where(v.c.transaction_id == numbers[1]))
    kinds = {row[:3] for row in found(session, models.Circle)}
    assert ("stray part", "error", "circle_version") in kinds
    is_mended_by_repair(session, models.Circle)
    assert [v.name for v in session.get(models.Circle, 1).versions] == ["a", "c", "c"]


def test_everything_at_once(models: Any, session: Session) -> None:
    """Damage of all kinds in one history is mended by one run, in small batches, step by step."""
    numbers = ids(session, models.Line)
    v = version(models.Line)
    session.add_all([models.Line(order="q", number=i, name="a") for i in range(5)])
    session.commit()
    damage(session, sa.update(v).where(v.c.transaction_id == numbers[1]).values(name="a"))
    damage(session, sa.update(v).where(v.c.transaction_id == numbers[2]).values(transaction_id=900))
    damage(session, sa.update(models.Line.__table__).where(models.Line.number < 2).values(name="z"))
    damage(session, sa.delete(models.Line.__table__).where(models.Line.number > 3))
    damage(session, sa.insert(models.Line.__table__).values(order="p", number=1, name="new"))
    if "end_transaction_id" in v.c:
        damage(session, sa.update(v).values(end_transaction_id=None))
    seen: list[int] = []
    steps = is_mended_by_repair(
        session, models.Line, batch_size=1, commit=True, progress=lambda p: seen.append(p.done)
    )
    assert {kind for kind, _, _ in steps} >= {
        "dangling transaction",
        "equal versions",
        "differs from live row",
        "gone without DELETE",
        "no history",
    }
    assert seen == sorted(seen)
    assert len(seen) > len(steps)
