"""The goals, as data, and the figures that they are about.

A :class:`Figure` is a row of the table: one number that is made of the runs of one workload, and
how small it is to be. A ratio means the same on every machine; R1 to R4 are compared with the peers
in the same run. Goals in milliseconds (import, R5) are those of two shared cores of 2026.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median


@dataclass
class Result:
    """What one contender did on one workload; lists have an entry for each round."""

    size: int
    seconds: list[float] = field(default_factory=list)
    plain_seconds: list[float] = field(default_factory=list)
    statements: int | None = None
    plain_statements: int | None = None
    steps: int | None = None
    plain_steps: int | None = None
    peak: int | None = None
    plain_peak: int | None = None
    kept: int | None = None
    plain_kept: int | None = None
    missed: list[str] = field(default_factory=list)
    error: str | None = None

    @property
    def added_statements(self) -> int | None:
        """Statements beyond those of plain; all of them where plain takes no part."""
        if self.statements is None:
            return None
        return self.statements - (self.plain_statements or 0)

    @property
    def added_steps(self) -> int | None:
        """Instructions of bytecode, counted likewise."""
        return None if self.steps is None else self.steps - (self.plain_steps or 0)


MEGABYTE = 1_000_000


def ratio(result: Result) -> float | None:
    """Median, over the rounds, of the time by that of plain in the same round."""
    pairs = list(zip(result.seconds, result.plain_seconds, strict=False))
    return median(mine / plain for mine, plain in pairs) if pairs else None


def added_per_row(result: Result) -> float | None:
    """Microseconds beyond plain for each row."""
    pairs = list(zip(result.seconds, result.plain_seconds, strict=False))
    if not pairs:
        return None
    return median(mine - plain for mine, plain in pairs) / result.size * 1e6


def milliseconds(result: Result) -> float | None:
    return median(result.seconds) * 1e3 if result.seconds else None


def peak_ratio(result: Result) -> float | None:
    if result.peak is None or not result.plain_peak:
        return None
    return result.peak / result.plain_peak


def added_peak(result: Result) -> float | None:
    """Megabytes of Python memory beyond plain, at the worst moment."""
    if result.peak is None or result.plain_peak is None:
        return None
    return (result.peak - result.plain_peak) / MEGABYTE


def added_kept(result: Result) -> float | None:
    """Megabytes of Python memory beyond plain, at the end."""
    if result.kept is None or result.plain_kept is None:
        return None
    return (result.kept - result.plain_kept) / MEGABYTE


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row: ``goals`` by ``database`` or ``database/strategy``; ``faster`` than the peers."""

    workload: str
    unit: str
    of: Callable[[Result], float | None]
    goals: Mapping[str, float] = field(default_factory=dict)
    faster: float | None = None

    def goal(self, database: str, strategy: str) -> float | None:
        return self.goals.get(f"{database}/{strategy}", self.goals.get(database))


def _write(workload: str, sqlite: float, postgresql: float) -> Figure:
    goals = {"sqlite": sqlite, "postgresql": postgresql}
    return Figure(workload=workload, unit="x plain", of=ratio, goals=goals)


FIGURES: tuple[Figure, ...] = (
    _write("W1", 1.08, 1.10),
    _write("W2", 1.20, 1.30),
    _write("W3", 1.15, 1.25),
    _write("W4", 1.40, 1.40),
    _write("W5", 1.08, 1.08),
    _write("W8", 1.20, 1.25),
    Figure(
        workload="W9",
        unit="added us/row",
        of=added_per_row,
        goals={"sqlite": 2.5, "postgresql": 11.0},
    ),
    # "does not grow with the rows": what a statement or two takes, at any size
    Figure(
        workload="W9",
        unit="added peak MB",
        of=added_peak,
        goals={"sqlite": 1.0, "postgresql": 1.0},
    ),
    _write("W10", 1.5, 1.5),
    Figure(
        workload="W10",
        unit="added MB",
        of=added_kept,
        goals={"sqlite": 10.0, "postgresql": 10.0},
    ),
    Figure(
        workload="W11",
        unit="peak x plain",
        of=peak_ratio,
        goals={"sqlite": 1.03, "postgresql": 1.03},
    ),
    _write("W12", 1.03, 1.05),
    Figure(workload="W12f", unit="x plain", of=ratio),
    _write("W13", 1.01, 1.01),
    _write("W14", 1.10, 1.10),
    Figure(
        workload="import",
        unit="ms",
        of=milliseconds,
        goals={"sqlite": 10.0, "postgresql": 10.0},
    ),
    Figure(workload="R1", unit="ms", of=milliseconds, faster=30),
    Figure(workload="R2", unit="ms", of=milliseconds, faster=30),
    Figure(workload="R3", unit="ms", of=milliseconds, faster=50),
    Figure(workload="R4", unit="ms", of=milliseconds, faster=50),
    # validity: at the moment that is the worst for it
    Figure(
        workload="R5",
        unit="ms",
        of=milliseconds,
        goals={
            "sqlite/subquery": 110.0,
            "postgresql/subquery": 290.0,
            "sqlite/validity": 260.0,
            "postgresql/validity": 93.0,
        },
    ),
)
