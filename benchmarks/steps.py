"""The norm for the instructions of Python's bytecode that ours adds to a workload of the short form.

A time says little on a loaded machine; the number of instructions is the same on any, for one
release of Python and of SQLAlchemy. ``steps.json`` has the norm of each; a release that is not in
it is not judged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.goals import Result
from benchmarks.report import About

FILE = Path(__file__).with_suffix(".json")


def _release(about: About) -> str:
    python = about.machine()["Python"].split(".")
    return f"{'.'.join(python[:2])}, SQLAlchemy {about.sqlalchemy}, {about.title}"


def _norms() -> dict[str, dict[str, int]]:
    norms: dict[str, dict[str, int]] = json.loads(FILE.read_text(encoding="utf-8"))
    return norms


def known(about: About) -> Mapping[str, int]:
    """The norm of each workload."""
    return _norms().get(_release(about), {})


def is_worse(steps: int | None, norm: int) -> bool:
    """Whether more is done than before; the garbage of other runs may cost a few steps."""
    return steps is not None and steps > norm * 1.03 + 100


def keep(about: About, results: Mapping[str, Mapping[str, Result]]) -> None:
    """Let the results be the norm."""
    norms = _norms() if FILE.exists() else {}
    found = norms.setdefault(_release(about), {})
    for name, by_contender in results.items():
        ours = by_contender.get("ours")
        if ours is not None and ours.added_steps is not None:
            found[name] = ours.added_steps
    FILE.write_text(json.dumps(norms, indent=1, sort_keys=True) + "\n", encoding="utf-8")
