"""Where the work goes that no set-based SQL makes smaller, in instructions of Python's bytecode.

    python -m benchmarks.profile

A transaction of one row has nothing to share its fixed cost with, and to read versions is to load
objects, so W3, W14, R3 and R4 are the goals that are hardest to reach. The count of instructions is
the same on any machine, for one release of Python and of SQLAlchemy, and shows what is whose: what
SQLAlchemy does for an application that listens to nothing, what it does in addition for one that
listens, and what each contender does itself. Runs in the interpreter that calls it, and writes
``docs/benchmarks/profile.rst``.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import sqlalchemy

from benchmarks import databases, report
from benchmarks.compare import Worker
from benchmarks.environments import ROOT
from benchmarks.workloads import WORKLOADS

CONTENDERS = ("plain", "floor", "handwritten", "ours")

#: workload -> its size, how many transactions or versions that makes, and who takes part
PROFILED: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "W3": (40, 40, CONTENDERS),
    "W12f": (100, 1, CONTENDERS),
    "W14": (50, 1, CONTENDERS),
    "R1": (1_000, 1_000, ("ours",)),
    "R3": (1_000, 1_000, ("ours",)),
    "R4": (1_000, 1_000, ("ours",)),
}

#: what counts as which part, by the end of a file's name or a piece of it; the first one that fits
PARTS = (
    ("listening: SQLAlchemy's events", ("sqlalchemy/event/",)),
    ("ours: what a flush changed", ("history/capture.py", "history/unit_of_work.py")),
    ("ours: SQL and its parameters", ("history/write", "history/prepared.py", "history/keys.py")),
    ("ours: reading", ("history/version", "history/changeset.py", "history/relationships.py")),
    ("ours: the rest", ("sqlalchemy_history/",)),
    ("the contender's own", ("benchmarks/",)),
)
OTHER = "SQLAlchemy and Python"

PAGE = """\
Whose instructions
==================

Written by ``python -m benchmarks.profile``: instructions of Python's bytecode for each transaction,
or for each version that is read, by whose they are. *Plain* is the work without versioning. The
*floor* listens to what has to be listened to and sends three finished statements to the driver's
cursor: nothing that versions from Python can do less. *Handwritten* knows its models and what it
changes, and writes the versions through SQLAlchemy. What the database and the driver do is not in
these figures. Who reads versions loads them as any objects, so the part of SQLAlchemy there is what
reading as many live objects takes.

"""


def part_of(name: str) -> str:
    """The part that a file belongs to."""
    name = name.replace("\\", "/")
    return next((part for part, pieces in PARTS if any(p in name for p in pieces)), OTHER)


def profile(database: str, workload: str) -> dict[str, Counter[str]]:
    """Instructions of a transaction, or for a version, by contender and part."""
    size, units, contenders = PROFILED[workload]
    found = {}
    with databases.made(database, contenders) as urls:
        for name in contenders:
            settings = {"contender": name, "strategy": "validity", "url": urls[name]}
            worker = Worker(Path(sys.executable), settings)
            try:
                for _ in range(2):  # the second one finds the statements compiled
                    answer = worker.ask(WORKLOADS[workload], size, "steps")
            finally:
                worker.close()
            if "error" in answer:
                raise SystemExit(f"{workload}, {name}: {answer['error']}")
            parts = found[name] = Counter[str]()
            for file, steps in answer["steps_by_file"].items():
                parts[part_of(file)] += steps
            for part in parts:
                parts[part] = round(parts[part] / units)
    return found


def page() -> str:
    """The page: a table for each workload."""
    lines = []
    machine = report.machine(sqlalchemy.__version__, databases.describe("sqlite"))
    lines += [f":{key}: {value}" for key, value in machine.items()]
    for workload in PROFILED:
        title = f"{workload} {WORKLOADS[workload].title}"
        lines += ["", title, "-" * len(title), ""]
        found = profile("sqlite", workload)
        rows = [
            [part, *(f"{steps[part]:,}" if steps[part] else "-" for steps in found.values())]
            for part in (OTHER, *(part for part, _ in PARTS))
            if any(steps[part] for steps in found.values())
        ]
        totals = [steps.total() for steps in found.values()]
        rows.append(["all", *(f"{total:,}" for total in totals)])
        if "plain" in found:
            rows.append(["x plain", *(f"{total / totals[0]:.2f}" for total in totals)])
        lines += report.table(["instructions", *found], rows)
    return PAGE + "\n".join(lines) + "\n"


def main() -> None:
    """Count, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmarks", metavar="DIR")
    target = parser.parse_args().output / "profile.rst"
    target.write_text(page(), encoding="utf-8")
    print(target.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
