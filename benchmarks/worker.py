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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from benchmarks.bench import OPERATIONS, Bench, Rows
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
        "steps": measured.steps.total(),
        "steps_by_file": measured.steps,
        "peak": measured.peak,
        "kept": measured.kept,
    }
    if request.measure == "count" and expected is not None:
        answer["missed"] = missed(bench, expected)
    return answer


def missed(bench: Bench, expected: Rows) -> list[str]:
    """What the contender did not record, or too often."""
    if bench.contender.same_tables:
        if "transaction" not in bench.tables:
            return []
        closes = bench.contender.strategy == "validity"
        return differences(expected, bench.written(), (*OPERATIONS.values(), *["closed"] * closes))
    with bench.engine.connect() as connection:
        found = bench.contender.other_rows(connection)
    if found is None:
        return []
    expected = {name: rows for name, rows in expected.items() if name != "transaction"}
    return differences(expected, found, OPERATIONS.values())


def differences(
    expected: Mapping[str, Mapping[str, int]],
    found: Mapping[str, Mapping[str, int]],
    kinds: Iterable[str],
) -> list[str]:
    """What is missing of the expected rows, or too much, in words."""
    result = []
    for table in sorted({*expected, *found}):
        wanted, there = expected.get(table, {}), found.get(table, {})
        for kind in kinds:
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
