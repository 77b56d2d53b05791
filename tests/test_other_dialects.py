"""SQL Server and Oracle: what we say to them is their SQL, as far as can be told without a server.

An engine with a driver made up here goes through whole sessions; what it would have sent is looked
at for what the database does not know.
"""

from __future__ import annotations

import datetime
import itertools
import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine.interfaces import ExecuteStyle
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from sqlalchemy_history import version_table

#: what a statement must not hold, and why
FORBIDDEN = {
    "mssql": {
        r"\bLIMIT\b": "TOP or FETCH",
        r"\bDISTINCT FROM\b": "since 2022 only",
        r"\b(true|false)\b": "there are no boolean literals",
        r"\(\s*\w[\w.\[\]]*,[^()]*\)\s*(NOT )?IN\b": "there are no row values",
        r"\|\|": "+ or CONCAT",
        r"\bFOR UPDATE\b": "there are table hints",
        r"SELECT\s+(NOT )?EXISTS": "a condition is no value",
        r"\bFROM DUAL\b": "there is no DUAL",
        r"\bLATERAL\b|\bUSING\b": "not its SQL",
    },
    "oracle": {
        r"\bLIMIT\b": "FETCH FIRST",
        r"\bDISTINCT FROM\b": "DECODE",
        r"\b(true|false)\b": "since 23 only",
        r"^UPDATE\b(?:(?!\(SELECT).)*\bFROM\b": "there is no UPDATE ... FROM",
        r"SELECT\s+(NOT )?EXISTS": "a condition is no value",
        r"^INSERT\b.*\bFOR UPDATE\b": "a subquery cannot lock",
        r"\bFROM \w+ AS\b": "a table's alias has no AS",
        r"\bUNION ALL\b.*\bFOR UPDATE\b": "a union cannot lock",
        r"SELECT (?:(?!\bFROM\b).)*$": "SELECT needs a FROM, which is DUAL",
    },
}

#: enough of SQL to find out where a pair of parentheses ends
_STRINGS = re.compile(r"'[^']*'")


def complaints(dialect: str, sql: str) -> list[str]:
    """What of ``sql`` the database does not know."""
    sql = " ".join(_STRINGS.sub("''", sql).split())
    found = [
        f"{why}: {sql}"
        for pattern, why in FORBIDDEN[dialect].items()
        if re.search(pattern, sql, re.IGNORECASE)
    ]
    for name in re.findall(r"(?:CREATE (?:UNIQUE )?(?:TABLE|INDEX|SEQUENCE)) \"?(\w+)", sql):
        if len(name) > 128:
            found.append(f"the name is too long: {name}")
    return found


class Cursor:
    """A cursor that says that everything went well."""

    arraysize = 1
    lastrowid = 1

    def __init__(self) -> None:
        self.description: Any = None
        self.rowcount = 1
        self.rows: list[tuple[Any, ...]] = []

    def fetchone(self) -> Any:
        return self.rows.pop(0) if self.rows else None

    def fetchall(self) -> Any:
        rows, self.rows = self.rows, []
        return rows

    def fetchmany(self, size: int | None = None) -> Any:
        return self.fetchall()

    def var(self, *args: Any, **kw: Any) -> Any:
        number = next(_numbers)
        return types.SimpleNamespace(getvalue=lambda: [number], values=[[number]])

    def nextset(self) -> Any:
        return None

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kw: None


_numbers = itertools.count(1000)


class Driver(types.ModuleType):
    """A DBAPI that connects to nothing."""

    paramstyle = "qmark"
    version = "5.0.0"
    __version__ = "3.0.0"

    class Error(Exception):
        pass

    def __init__(self, paramstyle: str) -> None:
        super().__init__("driver")
        self.paramstyle = paramstyle
        self.DatabaseError = self.InterfaceError = self.OperationalError = self.Error

    def connect(self, *args: Any, **kw: Any) -> Any:
        nothing = lambda *args, **kw: None  # noqa: E731
        return types.SimpleNamespace(
            cursor=Cursor,
            commit=nothing,
            rollback=nothing,
            close=nothing,
            autocommit=False,
            outputtypehandler=None,
            inputtypehandler=None,
            stmtcachesize=20,
            thin=True,
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **kw: None})


class Database:
    """An engine on nothing, and what was sent to it."""

    def __init__(self, dialect: str) -> None:
        url = {"mssql": "mssql+pyodbc://u:p@dsn", "oracle": "oracle+oracledb://u:p@host/name"}
        paramstyle = {"mssql": "qmark", "oracle": "named"}
        self.dialect = dialect
        self.engine = sa.create_engine(
            url[dialect], module=Driver(paramstyle[dialect]), _initialize=False
        )
        self.sent: list[str] = []
        #: how many rows a statement matches, by its beginning; else one
        self.rowcounts: dict[str, int] = {}
        for name in ("do_execute", "do_executemany"):
            event.listen(self.engine, name, self._execute)
        event.listen(self.engine, "do_execute_no_params", self._execute_plain)

    def _execute_plain(self, cursor: Any, sql: str, context: Any) -> bool:
        return self._execute(cursor, sql, None, context)

    def _execute(self, cursor: Any, sql: str, parameters: Any, context: Any) -> bool:
        self.sent.append(sql)
        cursor.rowcount = len(parameters) if context.execute_style is _MANY else 1
        columns = list(getattr(context.compiled, "_result_columns", None) or ())
        if columns and not (self.dialect == "oracle" and context.isinsert):
            cursor.description = [(c.keyname, None, None, None, None, None, True) for c in columns]
            cursor.rows = [tuple(_value(column, context.isinsert) for column in columns)]
        for text, count in self.rowcounts.items():
            if sql.startswith(text):
                cursor.rowcount = count
        return True

    def complaints(self) -> list[str]:
        return [text for sql in self.sent for text in complaints(self.dialect, sql)]

    def sent_to(self, table: str) -> list[str]:
        """The statements that write to ``table``, by their first word."""
        pattern = re.compile(rf"(INSERT INTO|UPDATE|DELETE FROM) [\[\"]?{table}\b")
        return [sql.split()[0] for sql in self.sent if pattern.match(sql)]


_MANY = ExecuteStyle.EXECUTEMANY


def _value(column: Any, is_new: bool) -> Any:
    kind = column.type
    while isinstance(kind, sa.TypeDecorator):
        kind = kind.impl_instance
    if isinstance(kind, sa.DateTime):
        return datetime.datetime(2026, 1, 1)
    return "a" if isinstance(kind, sa.String) else next(_numbers) if is_new else 1


@pytest.fixture(params=["mssql", "oracle"])
def backend(request: pytest.FixtureRequest) -> str:
    """The dialects of this file need no server."""
    return request.param


@pytest.fixture
def database(backend: str) -> Iterator[Database]:
    found = Database(backend)
    yield found
    found.engine.dispose()


@pytest.fixture
def models(versioning: Any, Base: Any) -> Any:
    """One of each: a plain table, a composite key, joined tables, links, big columns."""
    links = sa.Table(
        "article_tag",
        Base.metadata,
        sa.Column("article_id", sa.ForeignKey("article.id"), primary_key=True),
        sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
    )

    marking = sa.Table(
        "mark",
        Base.metadata,
        sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("article_id", sa.ForeignKey("article.id")),
        sa.Column("tag_id", sa.ForeignKey("tag.id")),
    )

    class Article(Base):
        __tablename__ = "article"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        name: Mapped[str | None] = mapped_column(sa.String(20))
        text: Mapped[str | None] = mapped_column(sa.Text)
        data: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
        is_open: Mapped[bool | None] = mapped_column(sa.Boolean(create_constraint=True))
        kind: Mapped[str | None] = mapped_column(sa.Enum("a", "b", name="kind"))
        at: Mapped[Any] = mapped_column(sa.DateTime)
        tags: Mapped[list[Any]] = relationship("Tag", secondary=links)
        marks: Mapped[list[Any]] = relationship("Tag", secondary=marking)

    class Tag(Base):
        __tablename__ = "tag"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    class Place(Base):
        __tablename__ = "place"
        __versioned__: dict[str, Any] = {}
        x: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        y: Mapped[str] = mapped_column(sa.String(9), primary_key=True)
        name: Mapped[str | None] = mapped_column(sa.String(20))

    class Item(Base):
        __tablename__ = "item"
        __versioned__: dict[str, Any] = {}
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        type: Mapped[str] = mapped_column(sa.String(9))
        name: Mapped[str | None] = mapped_column(sa.String(20))
        __mapper_args__ = {"polymorphic_on": "type", "polymorphic_identity": "item"}

    class Book(Item):
        __tablename__ = "book"
        id: Mapped[int] = mapped_column(sa.ForeignKey("item.id"), primary_key=True)
        pages: Mapped[int | None] = mapped_column()
        __mapper_args__ = {"polymorphic_identity": "book"}

    return types.SimpleNamespace(
        Article=Article, Tag=Tag, Place=Place, Item=Item, Book=Book, links=links
    )


class TestComplaints:
    """The checks themselves find what they are there for."""

    @pytest.mark.parametrize(
        ("dialect", "sql"),
        [
            ("mssql", "SELECT a FROM t LIMIT 1"),
            ("mssql", "DELETE FROM t WHERE (t.a, t.b) IN ((1, 2))"),
            ("mssql", "SELECT a FROM t WHERE t.b = true"),
            ("oracle", "UPDATE t SET a=u.a FROM u WHERE t.b = u.b"),
            ("oracle", "INSERT INTO t (a) SELECT 1"),
            ("oracle", "SELECT t.a FROM table_a AS t"),
        ],
    )
    def test_found(self, dialect: str, sql: str) -> None:
        assert complaints(dialect, sql)

    @pytest.mark.parametrize(
        ("dialect", "sql"),
        [
            ("oracle", "UPDATE t SET a=(SELECT u.a FROM u WHERE u.b = t.b) WHERE t.a = 1"),
            ("oracle", "DELETE FROM t WHERE (t.a, t.b) IN ((1, 2))"),
            ("mssql", "UPDATE t SET a=u.a FROM t, u WHERE t.b = u.b AND t.a IN (1, 2)"),
            ("mssql", "INSERT INTO t (a) SELECT 1 WHERE EXISTS (SELECT 'true' FROM u)"),
        ],
    )
    def test_nothing_to_find(self, dialect: str, sql: str) -> None:
        assert complaints(dialect, sql) == []


def test_tables(models: Any, Base: Any, backend: str) -> None:
    """CREATE TABLE, INDEX and SEQUENCE of version, association and transaction tables."""
    sent: list[str] = []
    engine: Any = sa.create_mock_engine(
        {"mssql": "mssql+pyodbc://", "oracle": "oracle+oracledb://"}[backend],
        lambda sql, *args, **kw: sent.append(str(sql.compile(dialect=engine.dialect))),
    )
    sa.orm.configure_mappers()
    Base.metadata.create_all(engine, checkfirst=False)
    for name in ("article", "tag", "place", "item", "book", "article_tag"):
        [create] = [sql for sql in sent if f"CREATE TABLE {name}_version " in sql]
        own = {
            "mssql": r"transaction_id BIGINT NOT NULL",
            "oracle": r"transaction_id NUMBER\(19\) NOT NULL",
        }
        assert re.search(own[backend], create)
        assert not re.search(r"IDENTITY|CHECK|DEFAULT|REFERENCES|UNIQUE", create)
        # a unique index that ignores its condition would allow one version of a row
        assert not [sql for sql in sent if "UNIQUE" in sql and f"{name}_version" in sql]
    assert len([sql for sql in sent if "CREATE SEQUENCE transaction_id_seq" in sql]) == 1
    assert not [text for sql in sent for text in complaints(backend, sql)]
    [transaction] = [sql for sql in sent if re.search(r"CREATE TABLE [\[\"]?transaction\b", sql)]
    assert "IDENTITY" not in transaction


def insert_update_delete(session: Session, m: Any) -> None:
    objects = [
        m.Article(id=1, name="a", tags=[m.Tag(id=1), m.Tag(id=2)], marks=[m.Tag(id=3)]),
        m.Article(id=2, name="b"),
        m.Place(x=1, y="a", name="p"),
        m.Place(x=2, y="a", name="q"),
        m.Book(id=1, name="b", pages=1),
        m.Book(id=2, name="c", pages=1),
    ]
    session.add_all(objects)
    session.commit()
    objects[0].name, objects[1].name = "c", "d"
    objects[2].name, objects[3].name = "r", "s"
    objects[4].pages, objects[5].pages = 5, 6
    session.flush()
    session.commit()
    for obj in objects:
        session.delete(obj)
    session.commit()


def one_of_each(session: Session, m: Any) -> None:
    for make in (
        lambda: m.Article(id=1, name="a"),
        lambda: m.Place(x=1, y="a", name="a"),
        lambda: m.Book(id=1, name="a"),
    ):
        obj = make()
        session.add(obj)
        session.commit()
        obj.name = "b"
        session.commit()
        session.delete(obj)
        session.commit()


def unsure(session: Session, m: Any) -> None:
    """Expired attributes and SQL expressions: the database alone can tell what changed."""
    objects = [m.Article(id=1), m.Article(id=2), m.Place(x=1, y="a"), m.Book(id=1, pages=1)]
    session.add_all(objects)
    session.commit()
    for obj in objects:
        session.expire(obj, ["name"])
        obj.name = "x"
    objects[0].at = sa.func.now()
    session.commit()
    objects[2].name = "y"
    session.commit()


def amended(session: Session, m: Any) -> None:
    """Several flushes of one transaction: refresh, delete, take back, settle."""
    for make in (
        lambda i: m.Article(id=i, name="a"),
        lambda i: m.Place(x=i, y="a", name="a"),
        lambda i: m.Book(id=i, name="a"),
    ):
        objects = [make(i) for i in range(3)]
        session.add_all(objects)
        session.flush()
        for obj in objects:
            obj.name = "b"
        session.flush()
        session.delete(objects[0])
        session.flush()
        session.commit()
        for obj in objects[1:]:
            obj.name = "c"
        session.flush()
        for obj in objects[1:]:
            obj.name = "b"
        session.flush()
        session.delete(objects[1])
        session.flush()
        session.commit()


def many(session: Session, m: Any) -> None:
    """More keys than one statement can take."""
    objects = [m.Place(x=i, y="a", name="a") for i in range(1200)]
    session.add_all(objects)
    session.commit()
    for obj in objects:
        obj.name = "b"
    session.commit()


def bulk(session: Session, m: Any) -> None:
    """Statements outside of the unit of work."""
    session.execute(sa.update(m.Article).values(name=m.Article.name + "x").where(m.Article.id > 1))
    session.execute(sa.update(m.Place).values(name="x"))
    session.execute(sa.update(m.Book).where(m.Book.pages > 1).values(pages=5))
    session.execute(sa.delete(m.Article).where(m.Article.name == "a"))
    session.execute(sa.delete(m.Place).where(m.Place.x > 2))
    session.execute(sa.insert(m.Article).values(id=7, name="a"))
    session.execute(sa.insert(m.Article), [{"id": 8, "name": "a"}, {"id": 9, "name": "b"}])
    session.execute(
        sa.insert(m.Place).from_select(["x", "y"], sa.select(m.Place.x + 10, m.Place.y))
    )
    session.execute(sa.insert(m.links).values(article_id=1, tag_id=1))
    session.execute(sa.delete(m.links).where(m.links.c.tag_id > 1))
    session.execute(sa.update(m.links).values(tag_id=3))
    session.commit()


def savepoints(session: Session, m: Any) -> None:
    session.add(m.Article(id=1, name="a"))
    with session.begin_nested():
        session.add(m.Place(x=1, y="a", name="a"))
    session.commit()


@pytest.mark.parametrize(
    "run", [insert_update_delete, one_of_each, unsure, amended, many, bulk, savepoints]
)
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
def test_writing(models: Any, database: Database, run: Callable[[Session, Any], None]) -> None:
    """Everything that a session makes us write is the dialect's own SQL."""
    with Session(database.engine, expire_on_commit=False) as session:
        run(session, models)
    ours = [sql for sql in database.sent if "_version" in sql]
    assert ours
    assert not database.complaints(), "\n".join(database.complaints())


@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")
def test_lost_rows(models: Any, database: Database) -> None:
    """A deleted row that had no version gets one of what the session knew."""
    with Session(database.engine, expire_on_commit=False) as session:
        objects = [models.Place(x=i, y="a", name="a") for i in (1, 2)]
        session.add_all(objects)
        session.commit()
        database.sent.clear()
        database.rowcounts["INSERT INTO place_version"] = 0
        for obj in objects:
            session.delete(obj)
        session.commit()
    assert database.sent_to("place_version").count("INSERT") > 1
    assert not database.complaints(), "\n".join(database.complaints())


def reading(m: Any) -> list[Any]:
    from sqlalchemy_history import as_of, version_class, versions_between

    classes = [m.Article, m.Place, m.Book]
    at = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
    return [
        *(as_of(cls, 5) for cls in classes),
        *(as_of(cls, at) for cls in classes),
        *(versions_between(cls, 1, 5) for cls in classes),
        sa.select(version_class(m.Article)).where(version_class(m.Article).tags.any()),
        sa.select(m.Article.id).where(m.Article.versions.any(name="a")),
        sa.select(version_class(m.Article)).options(
            sa.orm.joinedload(version_class(m.Article).tags),
            sa.orm.joinedload(version_class(m.Article).transaction),
        ),
    ]


def test_reading(models: Any, database: Database) -> None:
    """And so is what reads history."""
    sa.orm.configure_mappers()
    assert version_table(models.Article.__table__).name == "article_version"
    for statement in reading(models):
        database.sent.append(str(statement.compile(dialect=database.engine.dialect)))
    assert not database.complaints(), "\n".join(database.complaints())
