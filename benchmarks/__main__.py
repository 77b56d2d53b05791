"""The one command: set up the environments, then compare.

``python -m benchmarks`` needs nothing but Python. It makes a virtual environment for each group
of contenders (sqlalchemy-history has our import name, so the two cannot share one), and hands over
to :mod:`benchmarks.compare`, which runs in the first of them.

    python -m benchmarks                                  # all workloads, SQLite in memory
    python -m benchmarks --database postgresql --strategy validity,subquery
    python -m benchmarks --workloads W1,W2 --contenders plain,ours --repeat 9
    python -m benchmarks --short                          # what CI runs
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

from benchmarks import environments

CONTENDERS = (
    "plain",
    "handwritten",
    "floor",
    "recipe",
    "ours",
    "ours-native",
    "history",
    "continuum",
    "continuum-native",
    "postgresql-audit",
)
DATABASES = ("sqlite", "sqlite-file", "postgresql", "mariadb")
STRATEGIES = ("validity", "subquery")


def several(allowed: tuple[str, ...] | None) -> Callable[[str], list[str]]:
    """An argparse type: names separated by commas, each of them one of *allowed*."""

    def split(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in names if allowed is not None and name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(
                f"{unknown[0]!r} is not one of {', '.join(allowed or ())}"
            )
        return names

    return split


def parser() -> argparse.ArgumentParser:
    """The command line, shared by this module and :mod:`benchmarks.compare`."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0]
    )
    add = result.add_argument
    add("--short", action="store_true", help="small, SQLite, plain and ours: counts only matter")
    add("--keep-steps", action="store_true", help="with --short: what is counted is the new norm")
    add("--workloads", type=several(None), metavar="W1,W2", help="default: all")
    add("--contenders", type=several(CONTENDERS), metavar="plain,ours", help="default: all")
    add("--database", type=several(DATABASES), default=["sqlite"], help=", ".join(DATABASES))
    add("--strategy", type=several(STRATEGIES), default=["validity"], help=", ".join(STRATEGIES))
    add("--repeat", type=int, metavar="N", help="rounds of each workload (default 5, short 1)")
    add("--scale", type=float, default=1.0, help="factor on every size (default 1)")
    add("--sqlalchemy", default="2.0.58", metavar="VERSION", help="SQLAlchemy for all of them")
    add("--output", metavar="DIR", help="default docs/benchmarks; short: nothing is written")
    return result


def main() -> int:
    """Make what is missing of the environments and run the comparison in the first."""
    options = parser().parse_args()
    python = environments.python_of("core", options.sqlalchemy)
    command = [str(python), "-m", "benchmarks.compare", *sys.argv[1:]]
    return subprocess.run(command, cwd=environments.ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
