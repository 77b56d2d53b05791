"""Plots of what the other modules measured: ``python -m benchmarks.plot docs/benchmarks/x.json``.

Runs in an environment of its own, which has matplotlib; see :func:`.environments.draw`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

#: no date and no random ids: the same figures give the same file
mpl.rcParams.update({"svg.hashsalt": "history", "font.size": 9, "axes.grid": True})
METADATA = {"Date": None, "Creator": None}


def comparison(data: dict[str, Any]) -> Any:
    """Bars: the ratios of each workload, on a logarithmic axis, with the goals."""
    figures = [figure for figure in data["figures"] if figure["unit"] == "x plain"]
    contenders = [name for name in data["contenders"] if name != "plain"]
    plot, axes = plt.subplots(figsize=(9, 0.5 + 0.16 * len(figures) * (len(contenders) + 1)))
    height = 1 / (len(contenders) + 1)
    for i, name in enumerate(contenders):
        known = [(row, figure["values"].get(name)) for row, figure in enumerate(figures)]
        bars = [(row + i * height, value) for row, value in known if value]
        axes.barh([y for y, _ in bars], [value for _, value in bars], height, label=name)
    goals = [(row, figure["goal"]) for row, figure in enumerate(figures) if figure["goal"]]
    for row, goal in goals:
        axes.plot([goal, goal], [row - height / 2, row + 1 - 1.5 * height], "k--", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("time, x plain (dashed: the goal)")
    axes.set_yticks(
        [row + height * (len(contenders) - 1) / 2 for row in range(len(figures))],
        [figure["workload"] for figure in figures],
    )
    axes.invert_yaxis()
    axes.legend(loc="upper right")
    return plot


def scale(data: dict[str, Any]) -> Any:
    """A small plot for each series, with a line for each database."""
    names = list(next(iter(data.values()))["points"])
    plot, all_axes = plt.subplots(-(-len(names) // 2), 2, figsize=(9, 1.5 * len(names)))
    for name, axes in zip(names, all_axes.flat, strict=False):
        for database, run in sorted(data.items()):
            points = run["points"][name]
            line = axes.plot([p[0] for p in points], [p[1] for p in points], "o-", label=database)
            for place, style in ((2, ":"), (3, "--")):
                drawn = [(p[0], p[place]) for p in points if p[place] is not None]
                if drawn:
                    axes.plot(*zip(*drawn, strict=True), style, color=line[0].get_color())
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_title(name)
        axes.set_ylabel("us (dotted: plain; dashed: by hand)")
        axes.legend()
    return plot


def main() -> None:
    """Draw the file that is named, next to it."""
    path = Path(sys.argv[1])
    data = json.loads(path.read_text(encoding="utf-8"))
    plot = scale(data) if path.stem == "scale" else comparison(data)
    plot.tight_layout()
    plot.savefig(path.with_suffix(".svg"), metadata=METADATA)


if __name__ == "__main__":
    main()
