"""What the libraries do in the same situations: ``python -m benchmarks.features``.

Each situation is a function of one page of code that runs in a process of its own, on SQLite in
memory, under each library. It answers whether the history says what happened. An exception is an
answer too. The answers are written to ``docs/explanation/comparison.csv``.
"""

from __future__ import annotations

import csv
import importlib
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SQLALCHEMY = "2.0.58"
TABLE = ROOT / "docs" / "explanation" / "comparison.csv"

#: column of the table -> its environment, and its import name
LIBRARIES = {
    "this package": ("core", "sqlalchemy_history"),
    "sqlalchemy-history 2.2.1": ("history", "sqlalchemy_history"),
    "SQLAlchemy-Continuum 2.0.0": ("continuum", "sqlalchemy_continuum"),
}

#: what the table says -> the function that finds out
SITUATIONS: dict[str, Callable[[Any], bool]] = {}


def situation(text: str) -> Callable[[Callable[[Any], bool]], Callable[[Any], bool]]:
    def register(function: Callable[[Any], bool]) -> Callable[[Any], bool]:
        SITUATIONS[text] = function
        return function

    return register


class Setting:
    """Two models, their tables, and a session, under one library."""

    def __init__(self, name: str) -> None:
        import sqlalchemy as sa
        from sqlalchemy import orm

        self.library = library = importlib.import_module(name)
        library.make_versioned(user_cls=None)

        class Base(orm.DeclarativeBase):
            pass

        link = sa.Table(
            "item_tag",
            Base.metadata,
            sa.Column("item_id", sa.ForeignKey("item.id"), primary_key=True),
            sa.Column("tag_id", sa.ForeignKey("tag.id"), primary_key=True),
        )

        class Item(Base):
            __tablename__ = "item"
            __versioned__: dict[str, Any] = {}
            id = orm.mapped_column(sa.Integer, primary_key=True)
            price = orm.mapped_column(sa.Integer)
            parts = orm.relationship("Part", passive_deletes=True)
            tags = orm.relationship("Tag", secondary=link)

        class Part(Base):
            __tablename__ = "part"
            __versioned__: dict[str, Any] = {}
            id = orm.mapped_column(sa.Integer, primary_key=True)
            item_id = orm.mapped_column(sa.ForeignKey("item.id", ondelete="CASCADE"))
            place = orm.mapped_column(sa.Integer, unique=True)

        class Tag(Base):
            __tablename__ = "tag"
            __versioned__: dict[str, Any] = {}
            id = orm.mapped_column(sa.Integer, primary_key=True)

        self.Base, self.Item, self.Part, self.Tag = Base, Item, Part, Tag
        self.engine = sa.create_engine("sqlite://")
        self.statements: list[str] = []

        @sa.event.listens_for(self.engine, "connect")
        def on_connect(connection: Any, _record: Any) -> None:
            connection.isolation_level = None
            connection.execute("PRAGMA foreign_keys = ON")

        @sa.event.listens_for(self.engine, "begin")
        def on_begin(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN")

        @sa.event.listens_for(self.engine, "before_cursor_execute")
        def on_execute(_c: Any, _cursor: Any, sql: str, *_more: Any) -> None:
            if sql != "BEGIN":
                self.statements.append(sql)

        self.declared()
        self.session = orm.Session(self.engine)

    def declared(self) -> None:
        """Classes have been declared: make their tables."""
        from sqlalchemy.orm import configure_mappers

        configure_mappers()
        self.Base.metadata.create_all(self.engine)

    def store(self, *objects: Any) -> None:
        self.session.add_all(objects)
        self.session.commit()

    def says(self, cls: Any, *columns: str) -> list[tuple[Any, ...]]:
        """Operation types and values of all versions of a class, as the database has them."""
        import sqlalchemy as sa

        table = self.library.version_class(cls).__table__
        wanted = [table.c[name] for name in ("operation_type", *columns)]
        statement = sa.select(*wanted).order_by(table.c.transaction_id, table.c.id)
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(statement)]

    def transactions(self) -> int:
        import sqlalchemy as sa

        with self.engine.connect() as connection:
            return connection.scalar(sa.text('SELECT count(*) FROM "transaction"')) or 0


@situation("objects of a session that are inserted, changed and deleted are recorded")
def objects(s: Setting) -> bool:
    item = s.Item(id=1, price=1)
    s.store(item)
    item.price = 2
    s.session.commit()
    s.session.delete(item)
    s.session.commit()
    return s.says(s.Item, "price") == [(0, 1), (1, 2), (2, 2)]


@situation("a version's many-to-many collection shows what was linked then")
def links_then(s: Setting) -> bool:
    one, two = s.Tag(id=1), s.Tag(id=2)
    item = s.Item(id=1, price=1, tags=[one])
    s.store(item, two)
    item.price, item.tags = 2, [two]
    s.session.commit()
    return [[tag.id for tag in version.tags] for version in item.versions] == [[1], [2]]


@situation("a deleted object is brought back by ``revert()``")
def brought_back(s: Setting) -> bool:
    item = s.Item(id=1, price=1)
    s.store(item)
    version = item.versions[0]
    s.session.delete(item)
    s.session.commit()
    version.revert()
    s.session.commit()
    return bool(s.session.get(s.Item, 1).price == 1)


@situation("``session.execute(update(...))`` is recorded")
def bulk_update(s: Setting) -> bool:
    import sqlalchemy as sa

    s.store(s.Item(id=1, price=1), s.Item(id=2, price=1))
    s.session.execute(sa.update(s.Item).values(price=s.Item.price + 1))
    s.session.commit()
    return s.says(s.Item, "price") == [(0, 1), (0, 1), (1, 2), (1, 2)]


@situation("``session.execute(delete(...))`` is recorded")
def bulk_delete(s: Setting) -> bool:
    import sqlalchemy as sa

    s.store(s.Item(id=1, price=1))
    s.session.execute(sa.delete(s.Item))
    s.session.commit()
    return s.says(s.Item, "price") == [(0, 1), (2, 1)]


@situation("``session.execute(insert(...))`` of many rows is recorded")
def bulk_insert(s: Setting) -> bool:
    import sqlalchemy as sa

    s.session.execute(sa.insert(s.Item), [{"id": 1, "price": 1}, {"id": 2, "price": 2}])
    s.session.commit()
    return s.says(s.Item, "price") == [(0, 1), (0, 2)]


@situation("an upsert (``ON CONFLICT DO UPDATE``) is recorded")
def upsert(s: Setting) -> bool:
    from sqlalchemy.dialects.sqlite import insert

    s.store(s.Item(id=1, price=1))
    statement = insert(s.Item).values([{"id": 1, "price": 9}, {"id": 2, "price": 2}])
    s.session.execute(
        statement.on_conflict_do_update(
            index_elements=["id"], set_={"price": statement.excluded.price}
        )
    )
    s.session.commit()
    return s.says(s.Item, "price") == [(0, 1), (1, 9), (0, 2)]


@situation("children that ``ON DELETE CASCADE`` deletes get their versions")
def cascade(s: Setting) -> bool:
    s.store(s.Item(id=1, parts=[s.Part(id=1)]))
    s.session.expire_all()
    s.session.delete(s.session.get(s.Item, 1))
    s.session.commit()
    return s.says(s.Part) == [(0,), (2,)]


@situation("an attribute set to a SQL expression: the version holds what the database made of it")
def expression(s: Setting) -> bool:
    item = s.Item(id=1, price=1)
    s.store(item)
    item.price = s.Item.price + 1
    s.session.commit()
    return s.says(s.Item, "price") == [(0, 1), (1, 2)]


@situation("changed and changed back in one transaction: no version, no transaction row")
def there_and_back(s: Setting) -> bool:
    item = s.Item(id=1, price=1)
    s.store(item)
    for price in (2, 1):
        item.price = price
        s.session.flush()
    s.session.commit()
    return (s.says(s.Item, "price"), s.transactions()) == ([(0, 1)], 1)


@situation("inserted and deleted in one transaction: no version, no transaction row")
def nothing_left(s: Setting) -> bool:
    item = s.Item(id=1, price=1)
    s.session.add(item)
    s.session.flush()
    s.session.delete(item)
    s.session.commit()
    return (s.says(s.Item), s.transactions()) == ([], 0)


@situation("a savepoint that is rolled back leaves nothing")
def savepoint(s: Setting) -> bool:
    item = s.Item(id=1, price=1)
    s.store(item)
    nested = s.session.begin_nested()
    item.price = 2
    s.session.flush()
    nested.rollback()
    s.session.commit()
    return (s.says(s.Item, "price"), s.transactions()) == ([(0, 1)], 1)


@situation("a changed primary key: the old key ends, the new one begins")
def new_key(s: Setting) -> bool:
    item = s.Item(id=1, price=1)
    s.store(item)
    item.id = 2
    s.session.commit()
    return s.says(s.Item, "id") == [(0, 1), (2, 1), (0, 2)]


@situation("the DELETE version has the value of a deferred column that may not be loaded")
def never_loaded(s: Setting) -> bool:
    from sqlalchemy import String
    from sqlalchemy.orm import deferred, mapped_column

    class Letter(s.Base):
        __tablename__ = "letter"
        __versioned__: dict[str, Any] = {}
        id = mapped_column(String(20), primary_key=True)
        text = deferred(mapped_column(String(20)), raiseload=True)

    s.declared()
    s.store(Letter(id="a", text="secret"))
    s.session.expunge_all()
    s.session.delete(s.session.get(Letter, "a"))
    s.session.commit()
    return s.says(Letter, "text") == [(0, "secret"), (2, "secret")]


@situation("a many-to-many link removed and added again in one transaction")
def link_again(s: Setting) -> bool:
    tag = s.Tag(id=1)
    item = s.Item(id=1, tags=[tag])
    s.store(item)
    for tags in ([], [tag]):
        item.tags = tags
        s.session.flush()
    s.session.commit()
    version = s.session.query(s.library.version_class(s.Item)).one()
    return [t.id for t in version.tags] == [1]


@situation("the collections of all versions can be loaded eagerly (``selectinload``)")
def eager(s: Setting) -> bool:
    from sqlalchemy import select
    from sqlalchemy.orm import selectinload

    item = s.Item(id=1, price=0, parts=[s.Part(id=1)])
    s.store(item)
    for price in range(1, 10):
        item.price = price
        s.session.commit()
    cls = s.library.version_class(s.Item)
    s.statements.clear()
    found = s.session.scalars(select(cls).options(selectinload(cls.parts))).all()
    return [len(v.parts) for v in found] == [1] * 10 and len(s.statements) == 2


@situation("``index`` counts the versions of its own object")
def index(s: Setting) -> bool:
    s.store(s.Item(id=1, price=1))
    second = s.Item(id=2, price=1)
    s.store(second)
    return bool(second.versions[0].index == 0)


@situation("a row that comes back after a delete: its changeset starts from nothing")
def comes_back(s: Setting) -> bool:
    s.store(s.Item(id=1, price=1))
    s.session.delete(s.session.get(s.Item, 1))
    s.session.commit()
    s.session.expunge_all()
    s.store(s.Item(id=1, price=1))
    version = s.session.get(s.Item, 1).versions[2]
    return {k: list(v) for k, v in version.changeset.items()} == {
        "id": [None, 1],
        "price": [None, 1],
    }


@situation("two children that swapped a UNIQUE value swap it back in a revert of their parent")
def swapped(s: Setting) -> bool:
    one, two = s.Part(id=1, place=1), s.Part(id=2, place=2)
    item = s.Item(id=1, price=1, parts=[one, two])
    s.store(item)
    for part, place in ((one, None), (two, 1), (one, 2)):
        part.place = place
        s.session.flush()
    item.price = 2
    s.session.commit()
    item.versions[0].revert(relations=["parts"])
    s.session.commit()
    return (one.place, two.place) == (1, 2)


@situation("a deleted object whose ``__init__`` wants arguments can be brought back")
def wants_arguments(s: Setting) -> bool:
    from sqlalchemy import Integer
    from sqlalchemy.orm import mapped_column

    class Point(s.Base):
        __tablename__ = "point"
        __versioned__: dict[str, Any] = {}
        id = mapped_column(Integer, primary_key=True)

        def __init__(self, key: int) -> None:
            self.id = key

    s.declared()
    point = Point(1)
    s.store(point)
    version = point.versions[0]
    s.session.delete(point)
    s.session.commit()
    version.revert()
    s.session.commit()
    return s.session.get(Point, 1) is not None


@situation("``create_all()`` right after the classes makes the version tables")
def create_all(s: Setting) -> bool:
    import sqlalchemy as sa
    from sqlalchemy.orm import DeclarativeBase, mapped_column

    class Base(DeclarativeBase):
        pass

    class Note(Base):
        __tablename__ = "note"
        __versioned__: dict[str, Any] = {}
        id = mapped_column(sa.Integer, primary_key=True)

    Base.metadata.create_all(s.engine)
    return sa.inspect(s.engine).has_table("note_version")


@situation("a misspelled option is an error")
def misspelled(s: Setting) -> bool:
    from sqlalchemy import Integer
    from sqlalchemy.orm import configure_mappers, mapped_column

    class Note(s.Base):
        __tablename__ = "note"
        __versioned__ = {"exlude": ["id"]}
        id = mapped_column(Integer, primary_key=True)

    try:
        configure_mappers()
    except s.library.ImproperlyConfigured:
        return True
    return False


def answer(number: int, name: str) -> str:
    """What the library of that import name does in one situation."""
    try:
        return "yes" if list(SITUATIONS.values())[number](Setting(name)) else "no"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return f"no: ``{type(error).__name__}``"


def answers(name: str) -> list[str]:
    """What the library does in each situation, each in a process that it has for itself."""
    importlib.import_module("sqlalchemy.orm")
    importlib.import_module(name)
    numbers = [(number, name) for number in range(len(SITUATIONS))]
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        return pool.starmap(answer, numbers, chunksize=1)


def ask(python: Path, name: str, path: Path | None) -> list[str]:
    """``answers()`` under another interpreter; ``path`` is where the library is, if not installed."""
    # run as a file, so that the checkout, which has the name of one of the peers, is out of the way
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [str(python), __file__, name]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def main() -> None:
    if len(sys.argv) > 1:
        warnings.simplefilter("ignore")
        print(*answers(sys.argv[1]), sep="\n")
        return
    from benchmarks.environments import python_of

    columns = [
        ask(python_of(environment, SQLALCHEMY), name, ROOT if environment == "core" else None)
        for environment, name in LIBRARIES.values()
    ]
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["situation", *LIBRARIES])
        table.writerows(zip(SITUATIONS, *columns, strict=True))


if __name__ == "__main__":
    main()
