"""What is recorded of each way to write, in each mode: the table in the documentation, cell by cell."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session, mapped_column

from chain import DELETE, INSERT, UPDATE, history
from sqlalchemy_history import UntrackedWriteWarning, versioning_manager

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "ways_to_write.rst"


def unit_of_work(engine: Any, models: Any, folder: Path) -> None:
    with Session(engine) as session:
        session.add(models.Article(id=2, name="b"))
        session.get(models.Article, 1).name = "b"
        session.commit()


def orm_bulk(engine: Any, models: Any, folder: Path) -> None:
    with Session(engine) as session:
        session.execute(sa.insert(models.Article), [{"id": 2, "name": "b"}])
        session.execute(sa.update(models.Article).where(models.Article.id == 1).values(name="b"))
        session.commit()


def _core(connection: Any, models: Any) -> None:
    table = models.Article.__table__
    connection.execute(sa.insert(table), [{"id": 2, "name": "b"}])
    connection.execute(sa.update(table).where(table.c.id == 1).values(name="b"))


def core_of_a_session(engine: Any, models: Any, folder: Path) -> None:
    with Session(engine) as session:
        _core(session.connection(), models)
        session.commit()


def core_of_an_engine(engine: Any, models: Any, folder: Path) -> None:
    with engine.begin() as connection:
        _core(connection, models)


def sql_text(engine: Any, models: Any, folder: Path) -> None:
    with Session(engine) as session:
        session.execute(sa.text("INSERT INTO article VALUES (2, 'b')"))
        session.execute(sa.text("UPDATE article SET name = 'b' WHERE id = 1"))
        session.commit()


def cascade(engine: Any, models: Any, folder: Path) -> None:
    with Session(engine) as session:
        session.execute(sa.delete(models.Topic))
        session.commit()


def outside_cascade(engine: Any, models: Any, folder: Path) -> None:
    outside(engine, "DELETE FROM topic")


def outside_client(engine: Any, models: Any, folder: Path) -> None:
    outside(
        engine, "INSERT INTO article VALUES (2, 'b')", "UPDATE article SET name = 'b' WHERE id = 1"
    )


def outside(engine: Any, *statements: str) -> None:
    """What a client does with a connection that SQLAlchemy knows nothing of."""
    connection = engine.raw_connection()
    cursor = connection.cursor()
    for statement in statements:
        cursor.execute(statement)
    cursor.close()
    connection.commit()
    connection.close()


def load(engine: Any, models: Any, folder: Path) -> None:
    if engine.dialect.name == "postgresql":
        connection = engine.raw_connection()
        with connection.cursor() as cursor, cursor.copy("COPY article FROM STDIN") as copy:
            copy.write("2\tb\n")
        connection.commit()
        connection.close()
        outside(engine, "UPDATE article SET name = 'b' WHERE id = 1")
        return
    (folder / "rows").write_text("2\tb\n")
    loading = sa.create_engine(engine.url.update_query_dict({"local_infile": "1"}))
    outside(
        loading,
        f"LOAD DATA LOCAL INFILE '{folder / 'rows'}' INTO TABLE article",
        "UPDATE article SET name = 'b' WHERE id = 1",
    )
    loading.dispose()


#: the rows of the table: what it says of a way to write -> how it is done here
WAYS: dict[str, Callable[[Any, Any, Path], None]] = {
    "Objects of a session (unit of work)": unit_of_work,
    "ORM bulk statements": orm_bulk,
    "Core statements of a session's connection": core_of_a_session,
    "Core statements of another connection": core_of_an_engine,
    "SQL text in a session": sql_text,
    "Cascades set off by a session": cascade,
    "Cascades set off by another client": outside_cascade,
    "Another client": outside_client,
    "COPY, LOAD DATA": load,
}
MODES = ("session", "watch", "native")


def said(way: str, mode: str) -> str:
    """The cell of the documentation's table."""
    for line in PAGE.read_text().splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if cells[0] == way:
            return cells[1 + MODES.index(mode)]
    raise AssertionError(f"{PAGE.name} says nothing of {way!r}")


@pytest.fixture
def options(mode: str, strategy: str) -> dict[str, Any]:
    return {
        "strategy": strategy,
        "native_versioning": mode == "native",
        "untracked": "warn",
    }


@pytest.fixture
def models(versioning: Any, Base: Any) -> Any:
    class Article(Base):
        __tablename__ = "article"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        name = mapped_column(sa.String(20))

    class Topic(Base):
        __tablename__ = "topic"
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)

    class Remark(Base):
        __tablename__ = "remark"
        __versioned__ = {}
        id = mapped_column(sa.Integer, primary_key=True, autoincrement=False)
        topic_id = mapped_column(sa.ForeignKey("topic.id", ondelete="CASCADE"))

    Base.Article, Base.Topic, Base.Remark = Article, Topic, Remark
    return Base


@pytest.mark.parametrize("strategy", ["validity"], indirect=True)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
def test_the_table_says_what_is_recorded(
    models: Any, open_session: Any, engine: Any, tmp_path: Path, way: str, mode: str
) -> None:
    """What the documentation says of a way to write in a mode is what is recorded."""
    if way == "COPY, LOAD DATA" and engine.dialect.name == "sqlite":
        return  # SQLite has nothing of the kind
    session = open_session()
    session.add_all([models.Article(id=1, name="a"), models.Topic(id=1)])
    session.flush()
    session.add(models.Remark(id=1, topic_id=1))
    session.commit()
    session.close()
    if mode == "watch":
        versioning_manager.watch(engine)
    cell = said(way, mode)
    if cell == "a warning":
        with pytest.warns(UntrackedWriteWarning, match="article"):
            WAYS[way](engine, models, tmp_path)
    else:
        WAYS[way](engine, models, tmp_path)
    cascades = way.startswith("Cascades")
    entity = models.Remark if cascades else models.Article
    later = sorted(row[1:3] for row in history(engine, entity) if row[0] > 1)
    every = [(DELETE, 1)] if cascades else [(INSERT, 2), (UPDATE, 1)]
    assert cell in ("recorded", "nothing", "a warning")
    assert later == (every if cell == "recorded" else [])
