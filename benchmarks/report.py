"""Results to a page: RST for people, JSON for programs. No figure is ever typed by hand."""

from __future__ import annotations

import csv
import dataclasses
import datetime as dt
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.databases import TITLES
from benchmarks.goals import FIGURES, Figure, Result, added_kept, milliseconds
from benchmarks.workloads import WORKLOADS

Results = dict[str, dict[str, Result]]

PEERS = ("history", "continuum")

INDEX = """\
Benchmarks
==========

Written by ``python -m benchmarks``, which makes the same tables on your machine; see its ``--help``.
It needs Python and, for the servers, their addresses in ``HISTORY_POSTGRESQL_URL`` and
``HISTORY_MARIADB_URL``. Each row of a table is a piece of work (*W* writes, *R* reads), and each
column is a way to do it:

``plain``
   the ORM work without versioning
``handwritten``
   the best that a careful user writes with Core, without a library
``floor``
   a prototype that sends the best SQL to the driver's cursor, and does nothing else that a library
   has to do
``recipe``
   the ``versioned_history`` example of SQLAlchemy's documentation, written anew
``ours``
   this package
``ours-native``
   this package with ``native_versioning=True``
``history``, ``continuum``
   sqlalchemy-history and SQLAlchemy-Continuum

``goal`` is what this package aims at, and ``verdict`` says whether it gets there, and how it compares
with ``handwritten``.

``python -m benchmarks.scale`` shows how the time grows with the work, ``python -m benchmarks.profile``
what the time of a transaction of one row is spent on, and ``python -m benchmarks.growth`` what long
histories cost.

Where a goal is missed
----------------------

W3, W14
   Small transactions. Who records has to listen to the session and to the engine, and what SQLAlchemy
   spends on that is most of what the goal leaves, as the floor shows: it only listens and sends three
   finished statements. :doc:`profile` counts whose instructions the rest are.
W12, W13
   Each object that a flush has looked at is looked at once more, to see whether it changed. SQLAlchemy
   takes several times as long for it, but a hundredth of that is not enough.
W10, import
   The partial index of open versions names its condition for SQLite and PostgreSQL, and SQLAlchemy
   loads both dialects for it; a program that uses PostgreSQL has loaded that one anyway. The import
   brings in what records and what reads, since each program that calls ``make_versioned()`` needs it.
R1 to R4
   Versions are loaded as objects by SQLAlchemy's ORM, in one query or two. :doc:`profile` shows how
   little of the time is this package's: reading as many live objects takes as long.
R5
   The database reads the versions of a whole table, with the SQL that is written by hand, too.

.. toctree::
   :glob:

   *
"""


LEGEND = (
    "Medians over the rounds; ratios are taken within a round. The column of plain is absolute.",
    "With SQLite in memory it is the time of the process on a CPU, else that on the clock.",
    "``[#]``: not all of the versions were written, see below. ``(of N)``: measured at that",
    "smaller size, against plain at the same size. ``(1 run)``: too slow for more rounds.",
)


@dataclass(frozen=True, kw_only=True)
class About:
    """What was compared, and where."""

    database: str
    strategy: str
    contenders: Sequence[str]
    repeat: int
    sqlalchemy: str
    server: str

    @property
    def title(self) -> str:
        return f"{TITLES[self.database]}, {self.strategy} strategy"

    def machine(self) -> dict[str, str]:
        return {**machine(self.sqlalchemy, self.server), "Rounds": str(self.repeat)}


def machine(sqlalchemy: str, server: str) -> dict[str, str]:
    """Where something was measured, and when."""
    return {
        "Date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "Cores": str(os.cpu_count()),
        "Machine": f"{platform.system()} {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "SQLAlchemy": sqlalchemy,
        "Database": server,
    }


def write(folder: Path, about: About, results: Results) -> Path:
    """Write the page and the data of one comparison, and the index of all; where the data is."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{about.database}-{about.strategy}"
    data = {
        **dataclasses.asdict(about),
        "machine": about.machine(),
        "figures": [
            {
                "workload": figure.workload,
                "unit": figure.unit,
                "goal": figure.goal(about.database, about.strategy),
                "values": {
                    name: figure.of(result)
                    for name, result in results.get(figure.workload, {}).items()
                },
            }
            for figure in FIGURES
            if figure.workload in results
        ],
        "results": {
            workload: {name: dataclasses.asdict(result) for name, result in found.items()}
            for workload, found in results.items()
        },
    }
    content = json.dumps(data, indent=1, sort_keys=True)
    write_comparison(folder / f"{stem}.csv", data)
    path = folder / f"{stem}.json"
    path.write_text(content + "\n", encoding="utf-8")
    image = f"\n.. image:: {stem}.svg\n   :alt: The figures in x plain, by contender\n"
    (folder / f"{stem}.rst").write_text(text(about, results) + image, encoding="utf-8")
    (folder / "index.rst").write_text(INDEX, encoding="utf-8")
    return path


def write_comparison(path: Path, data: Mapping[str, Any]) -> None:
    """A short table for people who compare libraries: times x plain, of who writes the same rows."""
    shown = [name for name in ("handwritten", "ours", *PEERS) if name in data["contenders"]]
    rows = [["work", *shown]]
    for figure in data["figures"]:
        if figure["unit"] == "x plain" and figure["workload"].startswith("W"):
            workload = WORKLOADS[figure["workload"]]
            size = max(result["size"] for result in data["results"][workload.name].values())
            values = (figure["values"].get(name) for name in shown)
            cells = ["-" if value is None else number(value) for value in values]
            rows.append([f"{workload.title} ({size:,})", *cells])
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def text(about: About, results: Results) -> str:
    """The page as RST."""
    lines = [about.title, "=" * len(about.title), ""]
    lines += [f":{key}: {value}" for key, value in about.machine().items()]
    lines += ["", *_heading("Figures"), *LEGEND, "", *_figures(about, results)]
    lines += ["", *_heading("Statements added")]
    lines += ["Beyond those of plain; all of them for R1 to R4, in which plain takes no part.", ""]
    lines += _statements(about, results)
    notes = _notes(results)
    if notes:
        lines += ["", *_heading("What was missed"), *notes]
    return "\n".join(lines) + "\n"


def _heading(title: str) -> list[str]:
    return [title, "-" * len(title), ""]


def _figures(about: About, results: Results) -> list[str]:
    header = ["work", "size", "unit", *about.contenders, "goal", "verdict"]
    rows = []
    for figure in FIGURES:
        found = results.get(figure.workload)
        if not found:
            continue
        workload = WORKLOADS[figure.workload]
        size = max(result.size for result in found.values())
        cells = [_cell(figure, name, found, size) for name in about.contenders]
        goal, verdict = _verdict(about, figure, found)
        title = f"{workload.name} {workload.title}"
        rows.append([title, f"{size:,}", figure.unit, *cells, goal, verdict])
    return table(header, rows)


def _cell(figure: Figure, name: str, found: dict[str, Result], size: int) -> str:
    result = found.get(name)
    if result is None:
        return "-"
    if result.error is not None:
        return "failed"
    if name == "plain" and figure.unit != "peak x plain":
        return _plain(figure, result)
    value = figure.of(result)
    if value is None:
        return "-"
    shown = number(value)
    if result.size != size:
        shown += f" (of {result.size:,})"
    if len(result.seconds) == 1 and len(next(iter(found.values())).seconds) > 1:
        shown += " (1 run)"
    return shown + (" [#]" if result.missed else "")


def _plain(figure: Figure, result: Result) -> str:
    """Plain is the unit of the others, so its own figure is absolute."""
    if figure.of is added_kept and result.kept is not None:
        return f"{result.kept / 1e6:.1f} MB"
    if "peak" in figure.unit and result.peak is not None:
        return f"{result.peak / 1e6:.1f} MB"
    value = milliseconds(result)
    return "-" if value is None else f"{number(value)} ms"


def _verdict(about: About, figure: Figure, found: dict[str, Result]) -> tuple[str, str]:
    ours = found.get("ours")
    value = None if ours is None or ours.error is not None else figure.of(ours)
    said = []
    if ours is not None and ours.missed:
        value = None
        said.append("wrong rows")
    if figure.faster is not None:
        goal = f"peers / {figure.faster:g}"
        peers = [figure.of(found[name]) for name in PEERS if name in found]
        best = min((peer for peer in peers if peer is not None), default=None)
        if value and best is not None:
            times = best / value
            word = "met" if times >= figure.faster else "missed"
            said.append(f"{word}: {times:.0f} x faster")
    else:
        limit = figure.goal(about.database, about.strategy)
        goal = "-" if limit is None else number(limit)
        if value is not None and limit is not None:
            said.append("met" if value <= limit else f"missed: {value / limit:.2f} x goal")
    hand = found.get("handwritten")
    by_hand = None if hand is None or hand.error is not None else figure.of(hand)
    if value is not None and by_hand is not None:
        word = "not slower" if value <= by_hand else "slower"
        if "MB" in figure.unit or "peak" in figure.unit:
            word = "not more" if value <= by_hand else "more"
        said.append(f"{word} than by hand")
    return goal, "; ".join(said)


def _statements(about: About, results: Results) -> list[str]:
    names = [name for name in about.contenders if name != "plain"]
    rows = []
    for name, found in results.items():
        workload = WORKLOADS[name]
        if workload.fresh or not found:
            continue
        size = max(result.size for result in found.values())
        cells = []
        for contender in names:
            result = found.get(contender)
            added = None if result is None else result.added_statements
            cell = "-" if added is None else f"{added:,}"
            if result is not None and added is not None and result.size != size:
                cell += f" (of {result.size:,})"
            cells.append(cell)
        budget = workload.statements(size, about.database)
        limit = "-" if budget is None else f"{budget:,}"
        rows.append([f"{name} {workload.title}", f"{size:,}", *cells, limit])
    return table(["work", "size", *names, "allowed"], rows)


def _notes(results: Results) -> list[str]:
    lines = []
    for workload, found in results.items():
        for name, result in found.items():
            said = [result.error] if result.error is not None else result.missed
            if said:
                lines.append(f"- {workload}, {name}: {'; '.join(said)}")
    return lines


def number(value: float) -> str:
    """A figure with about three digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A simple RST table, which also reads well in a terminal."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    rule = "  ".join("=" * width for width in widths)
    lines = [rule]
    for line, row in enumerate([header, *rows]):
        cells = zip(row, widths, strict=True)
        lines.append("  ".join(cell.ljust(width) for cell, width in cells).rstrip())
        if line == 0:
            lines.append(rule)
    lines.append(rule)
    return lines
