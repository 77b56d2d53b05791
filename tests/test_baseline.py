"""With ``baseline=True`` the first change of a row without history keeps its old state."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, mapped_column, relationship

import sqlalchemy_history as h
from chain import DELETE, INSERT, UPDATE, count_transactions, history, laws
from shapes import declare_articles, declare_shapes
from sqlalchemy_history.plugins import ChangeLogPlugin, TransactionChangesPlugin
from support import upsert

__all__ = ["laws"]

pytestmark = [
    pytest.mark.options(baseline=True, native_versioning=False),
]


@pytest.fixture
def models(versioning: Any, Base: Any, laws: Any) -> SimpleNamespace:
    """Articles with notes (orphans go), remarks (by the database) and tags; a joined hierarchy."""
    laws.whole, laws.repeats = False, True

    class Note(Base):
        __tablename__ = "note"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        article_id = mapped_column(sa.ForeignKey("article.id"))

    class Remark(Base):
        __tablename__ = "remark"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        article_id = mapped_column(sa.ForeignKey("article.id", ondelete="CASCADE"))

    articles = declare_articles(
        Base,
        rank=mapped_column(sa.Integer),
        notes=relationship(Note, cascade="all, delete-orphan"),
        remarks=relationship(Remark, passive_deletes="all"),
    )
    shapes = declare_shapes(Base)
    return SimpleNamespace(Note=Note, Remark=Remark, **vars(articles), **vars(shapes))


@pytest.fixture
def session(models: Any, open_session: Any, engine: Any) -> Session:
    """Articles 1, 2, 3, what belongs to the first one, and circle 1: all without history."""
    session = open_session()
    with engine.begin() as connection:
        for entity, *rows in (
            (models.Article, *({"id": n, "name": f"old {n}", "rank": n} for n in (1, 2, 3))),
            (models.Note, {"id": 1, "article_id": 1}, {"id": 2, "article_id": 1}),
            (models.Remark, {"id": 1, "article_id": 1}),
            (models.Tag, {"id": 1}),
            (models.article_tag, {"article_id": 1, "tag_id": 1}),
            (models.Shape, {"id": 1, "name": "c", "kind": "circle"}),
        ):
            connection.execute(sa.insert(getattr(entity, "__table__", entity)), rows)
        connection.execute(sa.insert(models.Circle.__table__).values(id=1, radius=7))
    return session


def names(bind: Any, models: Any) -> list[tuple[Any, ...]]:
    return history(bind, models.Article, "id", "name")


def marks(session: Session, models: Any) -> list[str | None]:
    cls = h.transaction_class(models.Article)
    return list(session.scalars(sa.select(cls.remote_addr).order_by(cls.id)))


def check(session: Session, models: Any) -> None:
    session.commit()
    for model in (models.Article, models.Note, models.Remark, models.Shape):
        assert [f for f in h.verify(session, model) if f.kind != "no history"] == []


# -- ways to change a row


def rename(session: Session, models: Any) -> None:
    session.get(models.Article, 1).name = "new"


def rename_unloaded(session: Session, models: Any) -> None:
    article = session.get(models.Article, 1)
    session.expire(article)
    article.name = "new"


def rename_by_orm(session: Session, models: Any) -> None:
    session.execute(sa.update(models.Article).where(models.Article.rank == 1).values(name="new"))


def rename_by_core(session: Session, models: Any) -> None:
    table = models.Article.__table__
    session.execute(sa.update(table).where(table.c.rank == 1).values(name="new"))


def rename_by_key(session: Session, models: Any) -> None:
    session.execute(sa.update(models.Article).where(models.Article.id == 1).values(name="new"))


def rename_by_mappings(session: Session, models: Any) -> None:
    session.execute(sa.update(models.Article), [{"id": 1, "name": "new"}])


def rename_by_function(session: Session, models: Any) -> None:
    """Of this one it cannot be foreseen what it sets, nor whether it changes anything."""
    other = sa.select(sa.func.max("new")).select_from(models.Tag).scalar_subquery()
    statement = sa.update(models.Article).where(models.Article.rank == 1)
    session.execute(statement.values(name=sa.func.replace(other, "x", "y")))


@pytest.mark.parametrize(
    "change",
    [
        rename,
        rename_unloaded,
        rename_by_orm,
        rename_by_core,
        rename_by_key,
        rename_by_mappings,
        rename_by_function,
    ],
)
def test_an_update_keeps_the_old_state(models: Any, session: Session, change: Any) -> None:
    """The first version is what the row was before, under a transaction row of its own."""
    change(session, models)
    session.commit()
    assert names(session, models) == [(1, INSERT, 1, "old 1"), (2, UPDATE, 1, "new")]
    assert marks(session, models) == ["baseline", None]
    check(session, models)


def delete_object(session: Session, models: Any) -> None:
    session.delete(session.get(models.Article, 2))


def delete_by_orm(session: Session, models: Any) -> None:
    session.execute(sa.delete(models.Article).where(models.Article.rank == 2))


def delete_by_core(session: Session, models: Any) -> None:
    table = models.Article.__table__
    session.execute(sa.delete(table).where(table.c.id == 2))


@pytest.mark.parametrize("change", [delete_object, delete_by_orm, delete_by_core])
def test_a_delete_keeps_the_old_state(models: Any, session: Session, change: Any) -> None:
    """A deleted row was there before."""
    change(session, models)
    session.commit()
    assert names(session, models) == [(1, INSERT, 2, "old 2"), (2, DELETE, 2, "old 2")]
    check(session, models)


def test_the_old_state_can_be_read_and_brought_back(models: Any, session: Session) -> None:
    """The versions of the object begin with it: changeset, previous and revert know it."""
    article = session.get(models.Article, 1)
    article.name = "new"
    session.commit()
    old, new = article.versions
    assert (old.name, old.rank, old.operation_type) == ("old 1", 1, INSERT)
    assert new.previous is old
    assert new.changeset == {"name": ["old 1", "new"]}
    old.revert()
    session.commit()
    assert article.name == "old 1"


def test_as_of_shows_the_old_state_at_its_transaction(models: Any, session: Session) -> None:
    """It is live from its own transaction to the change's; before the two nothing is known."""
    before = datetime.now(timezone.utc) - timedelta(hours=1)
    session.get(models.Article, 1).name = "new"
    session.commit()
    old, new = session.get(models.Article, 1).versions
    seen = [
        [version.name for version in session.scalars(h.as_of(models.Article, at))]
        for at in (before, old.transaction_id, new.transaction_id)
    ]
    assert seen == [[], ["old 1"], ["new"]]


@pytest.mark.parametrize("key", ["id", "name"])
@pytest.mark.parametrize("by_orm", [True, False])
@pytest.mark.backends("sqlite", "postgresql", "mariadb")
def test_an_upsert_keeps_the_old_state(
    versioning: Any, Base: Any, open_session: Any, engine: Any, laws: Any, key: str, by_orm: bool
) -> None:
    """Rows that have a key of those that it inserts, whichever unique key that is."""
    laws.whole = False

    class Item(Base):
        __tablename__ = "item"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True)
        name = mapped_column(sa.String(20), unique=True)
        price = mapped_column(sa.Integer)

    session = open_session()
    rows = [{"name": f"item {n}", "price": n} for n in (1, 2, 3)]
    with engine.begin() as connection:
        connection.execute(sa.insert(Item.__table__), rows)
    target = Item if by_orm else Item.__table__
    new = [rows[0], {"name": "item 4", "price": 4}]
    if key == "id":
        new = [{"id": n, **row} for n, row in zip((1, 4), new, strict=True)]
    session.execute(upsert(engine.dialect.name, target, new, key=key, price=9))
    session.commit()
    found = history(session, Item, "name", "price")
    assert sorted(found) == [
        (1, INSERT, "item 1", 1),
        (2, INSERT, "item 4", 4),
        (2, UPDATE, "item 1", 9),
    ]
    assert [f.kind for f in h.verify(session, Item)] == ["no history"] * 2


# -- which rows


def test_several_rows_of_one_statement(models: Any, session: Session) -> None:
    """All rows of a statement share the two transaction rows; others get no version."""
    session.execute(sa.update(models.Article).where(models.Article.rank < 3).values(name="new"))
    session.commit()
    assert names(session, models) == [
        (1, INSERT, 1, "old 1"),
        (1, INSERT, 2, "old 2"),
        (2, UPDATE, 1, "new"),
        (2, UPDATE, 2, "new"),
    ]


def test_several_flushes_share_one_transaction_row(models: Any, session: Session) -> None:
    """What a later flush or statement finds goes under the same row, the change's comes after."""
    for n in (1, 2):
        session.get(models.Article, n).name = "new"
        session.flush()
    session.execute(sa.delete(models.Article).where(models.Article.id == 3))
    session.commit()
    assert [row[:3] for row in names(session, models)] == [
        (1, INSERT, 1),
        (1, INSERT, 2),
        (1, INSERT, 3),
        (2, UPDATE, 1),
        (2, UPDATE, 2),
        (2, DELETE, 3),
    ]
    check(session, models)


def test_a_transaction_that_has_begun_moves_behind(models: Any, session: Session) -> None:
    """Versions that were written before the first old state keep their order and their author."""
    session.add(models.Article(id=9, name="born"))
    session.flush()
    session.get(models.Article, 1).name = "new"
    transaction = h.versioning_manager.unit_of_work(session).current_transaction
    transaction.remote_addr = "me"
    session.commit()
    assert names(session, models) == [
        (1, INSERT, 1, "old 1"),
        (2, UPDATE, 1, "new"),
        (2, INSERT, 9, "born"),
    ]
    assert marks(session, models) == ["baseline", "me"]
    check(session, models)


def test_a_row_with_history_gets_none(models: Any, session: Session) -> None:
    """Neither a new row, nor one that was backfilled, nor one that has got its first version."""
    h.backfill(session, models.Article)
    session.commit()
    session.add(models.Article(id=4, name="born"))
    session.flush()
    for n in (1, 4):
        session.get(models.Article, n).name = "new"
    session.commit()
    session.execute(sa.update(models.Article).values(name="newer"))
    session.delete(session.get(models.Article, 4))
    session.commit()
    assert "baseline" not in marks(session, models)
    assert count_transactions(session, models.Article) == 3


@pytest.mark.parametrize("change", [rename_by_orm, rename_by_core, rename])
def test_no_net_change_leaves_no_transaction_row(
    models: Any, session: Session, change: Any
) -> None:
    """Where it can be foreseen that nothing changes, nothing is written."""
    with h.versioning_disabled(session):
        table = models.Article.__table__
        session.execute(sa.update(table).where(table.c.id == 1).values(name="new"))
    session.commit()
    assert session.get(models.Article, 1).name == "new"
    change(session, models)
    session.commit()
    assert names(session, models) == []
    assert count_transactions(session, models.Article) == 0


def test_a_savepoint_takes_the_old_state_along(models: Any, session: Session) -> None:
    """After a rollback to a savepoint the row has no history again, and gets one later."""
    savepoint = session.begin_nested()
    session.get(models.Article, 1).name = "gone"
    session.flush()
    savepoint.rollback()
    assert names(session, models) == []
    with session.begin_nested():
        session.get(models.Article, 1).name = "new"
    session.get(models.Article, 2).name = "new"
    session.commit()
    assert [row[:3] for row in names(session, models)] == [
        (1, INSERT, 1),
        (1, INSERT, 2),
        (2, UPDATE, 1),
        (2, UPDATE, 2),
    ]
    check(session, models)


def test_a_failed_statement_leaves_a_sound_history(
    models: Any, session: Session, backend: str
) -> None:
    """The statement fails after the old states were written; the transaction goes on."""
    table = models.Article.__table__
    session.get(models.Article, 3).rank = 30
    session.flush()
    with pytest.raises(sa.exc.IntegrityError), session.begin_nested():
        session.execute(sa.update(table).where(table.c.id < 3).values(id=3))
    session.get(models.Article, 2).name = "new"
    session.commit()
    assert [row for row in names(session, models) if row[2] > 1] == [
        (1, INSERT, 2, "old 2"),
        (1, INSERT, 3, "old 3"),
        (2, UPDATE, 2, "new"),
        (2, UPDATE, 3, "old 3"),
    ]
    check(session, models)


@pytest.mark.backends("sqlite", "mariadb")
def test_a_failed_statement_without_a_savepoint(models: Any, session: Session) -> None:
    """Its old states and the transaction row it moved are as they were; the transaction goes on."""
    h.backfill(session, models.Article)
    session.commit()
    session.get(models.Article, 3).name = "new"
    session.flush()
    transaction = h.versioning_manager.unit_of_work(session).current_transaction
    table = models.Article.__table__
    with pytest.raises(sa.exc.IntegrityError):  # its notes refer to it
        session.execute(sa.delete(table).where(table.c.id == 1))
    assert history(session, models.Remark) == []
    assert h.versioning_manager.unit_of_work(session).current_transaction is transaction
    session.execute(sa.delete(models.Remark).where(models.Remark.article_id == 1))
    session.commit()
    assert history(session, models.Remark) == [(2, INSERT, 1, 1), (3, DELETE, 1, 1)]
    check(session, models)


def test_all_tables_of_a_joined_hierarchy(models: Any, session: Session) -> None:
    """A change of one part of an object keeps the old state of all parts."""
    session.get(models.Circle, 1).radius = 8
    session.commit()
    assert history(session, models.Shape, "name") == [(1, INSERT, "c"), (2, UPDATE, "c")]
    assert history(session, models.Circle, "radius") == [(1, INSERT, 7), (2, UPDATE, 8)]
    check(session, models)


def test_a_statement_on_a_part_of_a_joined_hierarchy(models: Any, session: Session) -> None:
    """So does a statement on one of the tables."""
    table = models.Circle.__table__
    session.execute(sa.update(table).where(table.c.radius == 7).values(radius=8))
    session.commit()
    assert history(session, models.Shape, "name") == [(1, INSERT, "c"), (2, UPDATE, "c")]
    assert history(session, models.Circle, "radius") == [(1, INSERT, 7), (2, UPDATE, 8)]
    check(session, models)


def test_orphans(models: Any, session: Session) -> None:
    """A flush that finds an orphan by itself keeps what it was."""
    article = session.get(models.Article, 1)
    article.notes.pop(0)
    session.commit()
    assert history(session, models.Note) == [(1, INSERT, 1, 1), (2, DELETE, 1, 1)]


def test_association_rows(models: Any, session: Session) -> None:
    """A removed link was there before."""
    article = session.get(models.Article, 1)
    article.tags.clear()
    session.commit()
    assert history(session, models.article_tag) == [(1, INSERT, 1, 1), (2, DELETE, 1, 1)]


@pytest.mark.parametrize("how", ["object", "statement"])
def test_what_the_database_cascades(models: Any, session: Session, how: str) -> None:
    """ON DELETE CASCADE reaches rows without history: they keep their old state too."""
    with h.versioning_disabled(session):
        session.execute(sa.delete(models.Note))
        session.execute(sa.delete(models.article_tag))
    session.commit()
    if how == "object":
        session.delete(session.get(models.Article, 1))
    else:
        session.execute(sa.delete(models.Article).where(models.Article.rank == 1))
    session.commit()
    assert history(session, models.Remark) == [(1, INSERT, 1, 1), (2, DELETE, 1, 1)]
    assert names(session, models) == [(1, INSERT, 1, "old 1"), (2, DELETE, 1, "old 1")]


@pytest.mark.backends("postgresql", "mariadb")
@pytest.mark.parametrize("way", [rename, rename_by_orm])
def test_two_at_once(models: Any, session: Session, open_session: Any, way: Any) -> None:
    """Who comes second waits, and finds that the row has its first version."""
    second = open_session()
    second.get(models.Article, 1)
    session.get(models.Article, 1).rank = 1 if way is rename_by_orm else 5
    session.get(models.Article, 1).name = "first"
    session.flush()

    def change() -> None:
        way(second, models)
        second.commit()

    other = threading.Thread(target=change)
    other.start()
    other.join(0.5)
    assert other.is_alive()
    session.commit()
    other.join(20)
    assert not other.is_alive()
    assert names(session, models) == [
        (1, INSERT, 1, "old 1"),
        (2, UPDATE, 1, "first"),
        (3, UPDATE, 1, "new"),
    ]
    check(session, models)


@pytest.mark.parametrize("plugins", [[TransactionChangesPlugin(), ChangeLogPlugin()]])
def test_plugins_are_told(models: Any, session: Session, plugins: Any) -> None:
    """Of a first version as of those of backfill(): the change log has no entry for it."""
    rename(session, models)
    session.flush()
    session.execute(sa.delete(models.Article).where(models.Article.rank == 2))
    session.commit()
    cls = h.transaction_class(models.Article)
    entities = [tx.entity_names for tx in session.scalars(sa.select(cls).order_by(cls.id))]
    assert entities == [["Article"], ["Article"]]
    log = h.versioning_manager.changelog_cls
    events = session.execute(sa.select(log.row_id, log.event_type).order_by(log.id)).all()
    assert [tuple(event) for event in events] == [(1, "UPDATE"), (2, "DELETE")]


# -- what it costs


@pytest.mark.parametrize("size", [1, 3])
def test_one_statement_for_each_table_and_flush(
    models: Any, session: Session, engine: Any, statements: Any, size: int
) -> None:
    """Where all rows have a history, a flush asks once for each table, whatever it changes there."""
    h.backfill(session, models.Article)
    session.commit()
    articles = session.scalars(sa.select(models.Article).order_by(models.Article.id)).all()
    for article in articles[: size - 1]:
        article.name = "new"
    articles[size - 1].rank = 9
    with statements(engine) as log:
        session.flush()
    probes = [one for one in log if one.sql.startswith("SELECT") and "article_version" in one.sql]
    assert len(probes) == 1, log


def test_inserts_and_flushes_without_changes_ask_nothing(
    models: Any, session: Session, engine: Any, statements: Any
) -> None:
    """A flush that updates and deletes nothing costs nothing."""
    article = session.get(models.Article, 1)
    article.name = str(article.name)
    session.add(models.Article(id=9, name="born"))
    with statements(engine) as log:
        session.flush()
    assert not [one for one in log if "NOT (EXISTS" in one.sql], log


@pytest.mark.parametrize("options", [{"baseline": False}])
def test_classes_without_the_option_keep_nothing(models: Any, session: Session) -> None:
    """It is an option, and off by default."""
    rename(session, models)
    session.commit()
    assert names(session, models) == [(1, UPDATE, 1, "new")]


def test_triggers_are_too_late(versioning: Any, Base: Any) -> None:
    """Together with native_versioning it is refused."""

    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {"native_versioning": True}
        id = mapped_column(sa.Integer, primary_key=True)

    with pytest.raises(h.ImproperlyConfigured, match=r"'article'.*baseline=True"):
        sa.orm.configure_mappers()
