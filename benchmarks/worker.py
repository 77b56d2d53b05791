"""The process of one contender: reads requests, one JSON object a line, and answers likewise.

It is started isolated (``python -I``) with the checkout *after* the installed packages on its path:
so ``sqlalchemy_history`` is the peer where the peer is installed, and the working tree elsewhere.
Standard output belongs to the protocol; what anybody prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from benchmarks.bench import Bench
from benchmarks.contenders import CONTENDERS
from benchmarks.workloads import WORKLOADS


@dataclass(frozen=True)
class Request:
    """What to run: a workload, its size, and what to measure of it."""

    workload: str
    size: int
    measure: str


def run(bench: Bench, request: Request) -> dict[str, Any]:
    """Run one workload once."""
    bench.begin(request.measure)
    workload = WORKLOADS[request.workload]
    expected = workload.function(bench, request.size)
    measured = bench.measured
    answer: dict[str, Any] = {
        "seconds": measured.seconds,
        "statements": len(measured.statements),
        "peak": measured.peak,
        "kept": measured.kept,
    }
    if request.measure == "count" and expected is not None and "transaction" in bench.tables:
        answer["missed"] = differences(expected, bench.written(), bench.contender.strategy)
    return answer


def differences(
    expected: dict[str, dict[str, int]], found: dict[str, dict[str, int]], strategy: str
) -> list[str]:
    """What is missing of the expected rows, or too much, in words."""
    result = []
    for table in sorted(expected | found):
        wanted, there = expected.get(table, {}), found.get(table, {})
        for kind in ("insert", "update", "delete", "closed"):
            if kind == "closed" and strategy != "validity":
                continue
            difference = there.get(kind, 0) - wanted.get(kind, 0)
            if difference:
                word = "missing" if difference < 0 else "too many"
                result.append(f"{table}: {abs(difference):,} {kind} {word}")
    return result


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    contender = CONTENDERS[settings["contender"]](settings["strategy"])
    bench = Bench(contender, settings["url"])
    answers.write(json.dumps({"sqlalchemy": version("SQLAlchemy")}) + "\n")
    for line in sys.stdin:
        try:
            answer = run(bench, Request(**json.loads(line)))
        except Exception as error:  # noqa: BLE001 - reported; the other workloads go on
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".split("\n")[0]}
        answers.write(json.dumps(answer) + "\n")
    bench.engine.dispose()
