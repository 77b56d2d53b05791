"""Run the contenders, in turn, on the same work; called by :mod:`benchmarks.__main__`.

Each contender is a process that lives as long as the comparison and speaks JSON lines. A workload
is first run once by everybody, not timed, to count statements and check the rows that it left;
then, in each round, every contender runs it once. Ratios are taken within a round, medians over
the rounds. Whoever needs more than :data:`SLOW` seconds for a run has no second one.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import databases, report, steps
from benchmarks.__main__ import CONTENDERS as NAMES
from benchmarks.__main__ import parser
from benchmarks.contenders import CONTENDERS
from benchmarks.environments import ROOT, draw, python_of
from benchmarks.goals import Result
from benchmarks.workloads import WORKLOADS, Workload

SLOW = 20.0
TIMEOUT = 900.0

START = "import sys; sys.path.append({root!r}); from benchmarks.worker import main; main()"


class Worker:
    """The process of one contender, started when first asked."""

    def __init__(self, python: Path, settings: dict[str, str]) -> None:
        self._python = python
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None
        self.sqlalchemy = ""

    def ask(self, workload: Workload, size: int, measure: str) -> dict[str, Any]:
        """Run *workload* once; the answer has an ``error`` if that did not go well."""
        if workload.fresh:
            self.close()
        if self._process is None:
            self._start()
        request = {"workload": workload.name, "size": size, "measure": measure}
        answer = self._exchange(request)
        if workload.fresh:
            self.close()
        return answer

    def _start(self) -> None:
        command = [str(self._python), "-I", "-W", "ignore", "-c", START.format(root=str(ROOT))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self.sqlalchemy = self._exchange(self._settings).get("sqlalchemy", "")

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return {"error": "the worker did not start"}
        limit = threading.Timer(TIMEOUT, process.kill)
        limit.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            limit.cancel()
        if not line:
            self.close()
            return {"error": f"the worker died, or took more than {TIMEOUT:.0f} s"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None and process.stdin is not None and process.stdout is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            process.wait()


@dataclass
class Comparison:
    """The contenders on one database with one strategy."""

    database: str
    strategy: str
    workers: dict[str, Worker]
    repeat: int
    scale: float
    short: bool

    def run(self, workload: Workload) -> dict[str, Result]:
        """Everybody's results; plain has those of the full size."""
        sizes = self._sizes(workload)
        if not sizes:
            return {}
        plain = "plain" in sizes
        runs: list[tuple[str, int]] = list(sizes.items())
        if plain:
            smaller = sorted(set(sizes.values()) - {sizes["plain"]})
            runs[1:1] = [("plain", size) for size in smaller]
        results = {run: Result(size=run[1]) for run in runs}
        measures = ["count"] + (["memory"] if workload.memory else [])
        if self.short and not workload.fresh:
            measures += ["steps", "steps"]  # the second one finds the statements compiled
        rounds = self.repeat * workload.rounds if workload.timed else 0
        for measure in measures:
            for run in runs:
                self._once(workload, run, measure, results[run])
        for number in range(rounds):
            turn = number % len(runs)
            for run in runs[turn:] + runs[:turn]:
                taken = results[run].seconds
                if not taken or taken[-1] <= SLOW:
                    self._once(workload, run, "time", results[run])
        if plain:
            for (_, size), result in results.items():
                reference = results["plain", size]
                result.plain_seconds = list(reference.seconds)
                result.plain_statements = reference.statements
                result.plain_steps = reference.steps
                result.plain_peak, result.plain_kept = reference.peak, reference.kept
        return {name: results[name, size] for name, size in sizes.items()}

    def _sizes(self, workload: Workload) -> dict[str, int]:
        sizes = {}
        for name in self.workers:
            contender = CONTENDERS[name]
            if workload.name in contender.skips:
                continue
            size = workload.short if self.short else workload.size
            factor = 1.0 if self.short else contender.scale.get(workload.name, 1.0)
            sizes[name] = max(5, round(size * self.scale * factor)) if size > 1 else size
        return sizes

    def _once(self, workload: Workload, run: tuple[str, int], measure: str, result: Result) -> None:
        if result.error is not None:
            return
        name, size = run
        answer = self.workers[name].ask(workload, size, measure)
        if "error" in answer:
            result.error = answer["error"].replace(str(ROOT), "")
            return
        if measure == "count":
            result.statements = answer["statements"]
            result.missed = answer.get("missed", [])
        elif measure == "steps":
            result.steps = answer["steps"]
        elif measure == "memory":
            result.peak, result.kept = answer["peak"], answer["kept"]
        else:
            result.seconds.append(answer["seconds"])


def failures(about: report.About, results: dict[str, dict[str, Result]]) -> list[str]:
    """What ours did that no noise can explain: errors, wrong rows, too many statements or steps."""
    known = steps.known(about)
    found = []
    for name, by_contender in results.items():
        ours = by_contender.get("ours")
        if ours is None:
            continue
        if ours.error is not None:
            found.append(f"{name}: {ours.error}")
        found += [f"{name}: {missed}" for missed in ours.missed]
        budget = WORKLOADS[name].statements(ours.size, about.database)
        added = ours.added_statements
        if budget is not None and added is not None and added > budget:
            found.append(f"{name}: {added} statements added, {budget} allowed")
        if name in known and steps.is_worse(ours.added_steps, known[name]):
            found.append(
                f"{name}: {ours.added_steps:,} steps of Python added, {known[name]:,} known; "
                f"if that has to be, run python -m benchmarks --short --keep-steps"
            )
    return found


def main() -> int:
    """Compare, print, write; 1 when ours failed at something other than speed."""
    options = parser().parse_args()
    asked = options.workloads or [name for name in WORKLOADS if not name.startswith("S")]
    chosen = [name for name in WORKLOADS if name in asked]
    unknown = [name for name in asked if name not in WORKLOADS]
    if unknown:
        print(f"no workload {unknown[0]!r}; there are {', '.join(WORKLOADS)}", file=sys.stderr)
        return 2
    wanted = options.contenders or (["plain", "ours"] if options.short else NAMES)
    contenders = [name for name in NAMES if name in wanted or name == "plain"]
    pythons = {
        environment: python_of(environment, options.sqlalchemy)
        for environment in {CONTENDERS[name].environment for name in contenders}
    }
    output = options.output or (None if options.short else ROOT / "docs" / "benchmarks")
    failed: list[str] = []
    for database in options.database:
        names = [name for name in contenders if CONTENDERS[name].works_on(database)]
        for strategy in options.strategy:
            with databases.made(database, names) as urls:
                workers = {
                    name: Worker(
                        pythons[CONTENDERS[name].environment],
                        {"contender": name, "strategy": strategy, "url": urls[name]},
                    )
                    for name in names
                }
                repeat = options.repeat or (1 if options.short else 5)
                comparison = Comparison(
                    database, strategy, workers, repeat, options.scale, options.short
                )
                results = {}
                try:
                    for name in chosen:
                        print(f"{database} {strategy} {name}", file=sys.stderr, flush=True)
                        results[name] = comparison.run(WORKLOADS[name])
                finally:
                    for worker in workers.values():
                        worker.close()
            about = report.About(
                database=database,
                strategy=strategy,
                contenders=names,
                repeat=repeat,
                sqlalchemy=workers["plain"].sqlalchemy,
                server=databases.describe(database),
            )
            if options.keep_steps:
                steps.keep(about, results)
            failed += failures(about, results)
            print(report.text(about, results))
            if output is not None:
                draw(report.write(Path(output), about, results))
    for failure in failed:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
