"""Whether the cost of one change stays the same, however much there is of everything else.

    python -m benchmarks.scale --database sqlite,postgresql

Runs in the interpreter that calls it, which needs SQLAlchemy and the drivers. Each series runs one
workload in several sizes, plain and ours in turn, and tells what ours adds for each unit: an
object, a flush, a transaction; where the database's own growth counts, also what versions written by
hand add. The figures are kept in ``docs/benchmarks/scale.json``; a run
replaces its own and writes the page and its plot anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy

from benchmarks import databases, report
from benchmarks.__main__ import DATABASES, several
from benchmarks.compare import Worker
from benchmarks.environments import ROOT, draw
from benchmarks.workloads import WORKLOADS


@dataclass(frozen=True, kw_only=True)
class Series:
    """A workload in several sizes; its size is ``units`` of what is counted, if that is a number."""

    workload: str
    what: str
    sizes: tuple[int, ...]
    per: str
    units: int | None = None
    contenders: tuple[str, ...] = ("plain", "ours")


SERIES = (
    Series(
        workload="W1",
        what="objects inserted by a flush",
        sizes=(10, 100, 1_000, 10_000, 100_000),
        per="object",
    ),
    Series(
        workload="W2",
        what="objects updated by a flush",
        sizes=(10, 100, 1_000, 10_000, 100_000),
        per="object",
    ),
    Series(
        workload="W12f",
        what="objects loaded, one of them updated",
        sizes=(1, 10, 100, 1_000, 10_000, 100_000),
        per="flush",
        units=1,
    ),
    Series(
        workload="S1",
        what="flushes in a transaction, of one object each",
        sizes=(1, 10, 100, 1_000),
        per="flush",
    ),
    Series(
        workload="S4",
        what="flushes in a transaction, of the same object",
        sizes=(1, 10, 100, 1_000),
        per="flush",
    ),
    Series(
        workload="S2",
        what="models that are versioned",
        sizes=(1, 10, 100, 300),
        per="transaction",
        units=200,
    ),
    Series(
        workload="S3",
        what="versions in the table",
        sizes=(10_000, 100_000, 1_000_000, 10_000_000),
        per="object",
        units=1_000,
        contenders=("plain", "handwritten", "ours"),
    ),
)

PAGE = """\
What grows with what
====================

Written by ``python -m benchmarks.scale``: what versioning adds to the same ORM work without it, for
each unit of that work, while something else grows. A small flush has a fixed cost, which shows
where the number of objects is small. Medians of the differences within a round.

.. image:: scale.svg
   :alt: What versioning adds for each unit, by size

"""


def measure(series: Series, workers: dict[str, Worker], rounds: int, largest: int) -> list[Any]:
    """Of each size: itself, and the microseconds for each unit.

    What ours adds, those of plain, and what versions written by hand add, if they take part.
    """
    points = []
    for size in (size for size in series.sizes if size <= largest):
        seconds: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(rounds + 1):
            for name in workers if number % 2 else reversed(workers):
                answer = workers[name].ask(WORKLOADS[series.workload], size, "time")
                if "error" in answer:
                    raise SystemExit(f"{series.workload}, {name}: {answer['error']}")
                if number:  # the first one compiles the statements
                    seconds[name].append(answer["seconds"])
        units = (series.units or size) / 1e6
        plain = seconds.pop("plain")
        added = {
            name: median(a - b for a, b in zip(found, plain, strict=True)) / units
            for name, found in seconds.items()
        }
        points.append([size, added["ours"], median(plain) / units, added.get("handwritten")])
        print(f"  {size:,}: {added}", file=sys.stderr, flush=True)
    return points


def page(runs: dict[str, Any]) -> str:
    """The page about all ``runs``, a table for each database."""
    lines = []
    for name, run in sorted(runs.items()):
        title = databases.TITLES[name]
        lines += [title, "-" * len(title), ""]
        lines += [f":{key}: {value}" for key, value in run["machine"].items()]
        rows = [
            [series.what, f"{size:,}", f"us/{series.per}", *map(_shown, figures)]
            for series in SERIES
            for size, *figures in run["points"].get(series.what, ())
        ]
        heads = ["what grows", "to", "unit", "added", "plain", "added by hand"]
        lines += ["", *report.table(heads, rows), ""]
    return PAGE + "\n".join(lines)


def _shown(figure: float | None) -> str:
    return "-" if figure is None else report.number(figure)


def main() -> None:
    """Measure, and write data, page and plot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    add = parser.add_argument
    add("--database", type=several(DATABASES), default=["sqlite"], help=", ".join(DATABASES))
    add("--repeat", type=int, default=5, metavar="N", help="rounds of each size")
    add("--series", type=several(None), default=[], metavar="S1", help="only these workloads")
    add("--largest", type=int, default=10_000_000, metavar="N", help="leave larger sizes out")
    add("--output", type=Path, default=ROOT / "docs" / "benchmarks", metavar="DIR")
    options = parser.parse_args()
    data = options.output / "scale.json"
    wanted = [one for one in SERIES if not options.series or one.workload in options.series]
    for database in options.database:
        points = {}
        for series in wanted:
            print(f"{database}: {series.what}", file=sys.stderr, flush=True)
            with databases.made(database, series.contenders) as urls:
                workers = {
                    name: Worker(
                        Path(sys.executable),
                        {"contender": name, "strategy": "validity", "url": urls[name]},
                    )
                    for name in series.contenders
                }
                try:
                    points[series.what] = measure(series, workers, options.repeat, options.largest)
                finally:
                    for worker in workers.values():
                        worker.close()
        runs = json.loads(data.read_text(encoding="utf-8")) if data.exists() else {}
        machine = report.machine(sqlalchemy.__version__, databases.describe(database))
        if options.series:
            points = runs.get(database, {}).get("points", {}) | points
        found = {series.what: points[series.what] for series in SERIES if series.what in points}
        runs[database] = {"machine": machine, "points": found}
        options.output.mkdir(parents=True, exist_ok=True)
        data.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
        data.with_suffix(".rst").write_text(page(runs), encoding="utf-8")
        draw(data)
    print(data.with_suffix(".rst").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
