"""What histories of 1,000,000 and 10,000,000 versions cost: written, read and kept up.

    python -m benchmarks.growth --database sqlite-file,postgresql --versions 1000000,10000000

Runs in the interpreter that calls it, which needs SQLAlchemy and the drivers. The history is made by
set-based SQL: ten versions of each object, a hundred objects in each transaction. The figures are
kept in ``docs/benchmarks/growth.json``; a run replaces its own and writes the page anew.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import sqlalchemy
from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    String,
    cast,
    create_engine,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
    text,
    union_all,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqlalchemy_history as history
from benchmarks import databases, report
from benchmarks.__main__ import DATABASES, STRATEGIES, several
from benchmarks.environments import ROOT

#: versions of each object, and objects in each transaction
VERSIONS_OF_ONE, OBJECTS_OF_ONE = 10, 100

Figures = dict[str, float | None]

#: key -> (what is measured, unit)
TITLES = {
    "write_one": ("write: one object, one commit", "ms"),
    "write_many": ("write: 1,000 objects, one commit", "ms"),
    "as_of_one": ("as_of: one object, halfway back", "ms"),
    "as_of_page": ("as_of: a page of 50 objects, halfway back", "ms"),
    "as_of_all": ("as_of: all objects counted, halfway back", "s"),
    "timeline": ("timeline of one object", "ms"),
    "verify": ("verify", "s"),
    "verify_memory": ("verify: memory of Python that it adds", "MB"),
    "stats": ("stats", "s"),
    "prune": ("prune: the oldest tenth, in batches of 10,000", "s"),
    "bytes": ("size of the version table with its indexes", "MB"),
}

PAGE = """\
What a large history costs
==========================

Written by ``python -m benchmarks.growth``. A history has ten versions of each object, a hundred
objects in each transaction; rows have a text of 100 characters. Reading and writing one object or
page are medians over 50 objects that are spread over the table; the others are single runs. Data
that the database has to read from the disk first is part of that. PostgreSQL and MariaDB were
analyzed before, as they do by themselves after a while.

"""


def declare(strategy: str) -> Any:
    """The one model that is measured."""
    history.make_versioned(user_cls=None, options={"strategy": strategy})

    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "item"
        __versioned__: ClassVar[dict[str, Any]] = {}
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str] = mapped_column(String(50))
        body: Mapped[str] = mapped_column(String(100))
        score: Mapped[int]

    Base.registry.configure()
    return Item


def fill(engine: Engine, model: Any, versions: int) -> int:
    """Make the tables and a history of so many ``versions``; the last transaction's id."""
    objects = versions // VERSIONS_OF_ONE
    each = objects // OBJECTS_OF_ONE
    tables = model.metadata.tables
    model.metadata.create_all(engine)
    with engine.begin() as connection:
        ids = _numbers(each * VERSIONS_OF_ONE).subquery("n")
        now = literal(history.transaction.utcnow())
        rows = select(ids.c.n + 1, now)
        _run(connection, insert(tables["transaction"]).from_select(["id", "issued_at"], rows))
        if connection.dialect.supports_sequences:
            sequence: Any = literal("transaction_id_seq")
            if connection.dialect.name != "postgresql":
                sequence = literal_column("transaction_id_seq")
            connection.execute(select(func.setval(sequence, each * VERSIONS_OF_ONE)))
    n = _numbers(objects).subquery("n").c.n
    first = tables["item"]
    for step in range(VERSIONS_OF_ONE):
        values = {
            "id": n + 1,
            "title": literal("item ") + cast(n, String(20)),
            "body": literal("x" * 100),
            "score": literal(step),
        }
        target = first if step == VERSIONS_OF_ONE - 1 else None
        tx = n // OBJECTS_OF_ONE + 1 + step * each
        own = {"transaction_id": tx, "operation_type": literal(int(step > 0))}
        if "end_transaction_id" in tables["item_version"].c:
            own["end_transaction_id"] = null() if target is not None else tx + each
        with engine.begin() as connection:
            version = select(*({**values, **own}).values())
            into = insert(tables["item_version"])
            _run(connection, into.from_select([*values, *own], version))
            if target is not None:
                _run(connection, insert(target).from_select(list(values), select(*values.values())))
    analyze = {
        "postgresql": ["VACUUM ANALYZE"],
        "mysql": [f"ANALYZE TABLE {name}" for name in ("item", "item_version", "`transaction`")],
    }
    options = {"isolation_level": "AUTOCOMMIT"}
    with engine.connect().execution_options(**options) as connection:
        for statement in analyze.get(engine.dialect.name, ()):
            connection.execute(text(statement))
    return each * VERSIONS_OF_ONE


def _run(connection: Connection, statement: Any) -> None:
    """Execute past everybody's listeners."""
    sql = statement.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
    connection.connection.cursor().execute(str(sql))


def _numbers(count: int) -> Any:
    """SELECT of 0 to ``count`` - 1 as ``n``, without recursion or a function of one database."""
    digits = union_all(*(select(literal(d).label("d")) for d in range(10)))
    n: Any = literal(0, BigInteger)
    for power in range(len(str(count - 1))):
        n = n + digits.subquery(f"digit_{power}").c.d * 10**power
    return select(n.label("n")).where(n < count)


class Tasks:
    """What is measured, on one history."""

    def __init__(self, session: Session, model: Any, versions: int, last: int) -> None:
        self.session = session
        self.model = model
        self.version = history.version_class(model)
        self.objects = versions // VERSIONS_OF_ONE
        self.last = last
        self.found: Figures = {}

    def write_one(self, id_: int) -> None:
        self.session.get_one(self.model, id_).score = -id_
        self.session.commit()

    def write_many(self) -> None:
        some = range(2, self.objects, self.objects // 1000)
        for obj in self.session.scalars(select(self.model).where(self.model.id.in_(some))):
            obj.score = -1
        self.session.commit()

    def as_of_one(self, id_: int) -> None:
        statement = history.as_of(self.model, self.last // 2).where(self.version.id == id_)
        self.session.scalars(statement).one()

    def as_of_page(self, id_: int) -> None:
        page = history.as_of(self.model, self.last // 2).where(self.version.id > id_)
        self.session.scalars(page.order_by(self.version.id).limit(50)).all()

    def as_of_all(self) -> None:
        everything = history.as_of(self.model, self.last // 2).subquery()
        self.session.scalar(select(func.count()).select_from(everything))

    def timeline(self, id_: int) -> None:
        assert len(history.timeline(self.session, self.session.get_one(self.model, id_))) > 1

    def verify(self) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert not history.verify(self.session, self.model)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.found["verify_memory"] = (after - before) / 1024

    def stats(self) -> None:
        [size] = history.stats(self.session, self.model)
        self.found["bytes"] = None if size.bytes is None else size.bytes / 1e6

    def prune(self) -> None:
        until = 2 * self.last // VERSIONS_OF_ONE
        gone = history.prune(self.session, self.model, before=until, batch_size=10_000, commit=True)
        assert gone == self.objects, gone

    def all(self) -> Figures:
        """All figures of the history, in the order of the page."""
        found = self.found
        for one in (self.write_one, self.as_of_one, self.as_of_page, self.timeline):
            found[one.__name__] = self._median(one)
        found["write_many"] = _seconds(self.write_many) * 1000
        for task in (self.as_of_all, self.verify, self.stats, self.prune):
            found[task.__name__] = _seconds(task)
            print(f"  {task.__name__}: {found[task.__name__]:.1f} s", file=sys.stderr, flush=True)
            self.session.commit()
        return {key: found[key] for key in TITLES}

    def _median(self, task: Callable[[int], None]) -> float:
        """Milliseconds of one call; the first one, which compiles the statements, is left out."""
        times = []
        for id_ in range(1, self.objects, self.objects // 50):
            self.session.expunge_all()
            times.append(_seconds(partial(task, id_)))
        self.session.rollback()
        return statistics.median(times[1:]) * 1000


def _seconds(task: Callable[[], None]) -> float:
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def page(runs: dict[str, Any]) -> str:
    """The page about all ``runs``, a table for each database and strategy."""
    lines = []
    for name in sorted({key.rpartition(" ")[0] for key in runs}):
        mine = [run for key, run in runs.items() if key.rpartition(" ")[0] == name]
        mine.sort(key=lambda run: run["versions"])
        database, strategy = name.split()
        title = f"{databases.TITLES[database]}, {strategy} strategy"
        lines += [title, "-" * len(title), ""]
        lines += [f":{key}: {value}" for key, value in mine[-1]["machine"].items()]
        header = ["", "unit", *(f"{run['versions']:,} versions" for run in mine)]
        rows = []
        for key, (what, unit) in TITLES.items():
            numbers = [run["figures"][key] for run in mine]
            rows.append([what, unit, *("?" if n is None else report.number(n) for n in numbers)])
        lines += ["", *report.table(header, rows), ""]
    return PAGE + "\n".join(lines)


def main() -> None:
    """Measure, and write data and page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    add = parser.add_argument
    add("--database", type=several(DATABASES), default=["sqlite-file"], help=", ".join(DATABASES))
    add("--strategy", type=several(STRATEGIES), default=["validity"], help=", ".join(STRATEGIES))
    add("--versions", type=several(None), default=["1000000"], metavar="N,M")
    add("--output", type=Path, default=ROOT / "docs" / "benchmarks", metavar="DIR")
    options = parser.parse_args()
    data = options.output / "growth.json"
    for strategy in options.strategy:
        model = declare(strategy)
        for database in options.database:
            for versions in map(int, options.versions):
                run = f"{database} {strategy} {versions}"
                print(run, file=sys.stderr, flush=True)
                with databases.made(database, ["growth"]) as urls:
                    engine = create_engine(urls["growth"])
                    last = fill(engine, model, versions)
                    with Session(engine) as session:
                        figures = Tasks(session, model, versions, last).all()
                    engine.dispose()
                runs = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
                machine = report.machine(sqlalchemy.__version__, databases.describe(database))
                runs[run] = {"versions": versions, "machine": machine, "figures": figures}
                options.output.mkdir(parents=True, exist_ok=True)
                content = json.dumps(runs, indent=1)
                data.write_text(content + "\n", encoding="utf-8")
                data.with_suffix(".rst").write_text(page(runs), encoding="utf-8")
        history.remove_versioning()
        history.versioning_manager.reset()
    print(data.with_suffix(".rst").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
