"""Draw the JSON file of a run: each row's parties as bars, with their spread. Needs matplotlib.

python chart.py BENCH.json CHART.png
"""

from __future__ import annotations

import json
import statistics
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # after the choice of a backend that needs no screen

COLUMNS = 3
COLOURS = {"datas3tfs": "#c0392b", "null": "#7f8c8d", "raw": "#34495e", "tmpfs": "#bdc3c7"}


def colour(party: str) -> str:
    return next((shade for start, shade in COLOURS.items() if party.startswith(start)), "#5d8aa8")


def draw(axes, row: dict) -> None:
    rates = {
        party: [sample["rate"] for sample in samples]
        for party, samples in reversed(row["samples"].items())
        if samples
    }
    medians = [statistics.median(each) for each in rates.values()]
    below = [median - min(each) for median, each in zip(medians, rates.values(), strict=True)]
    above = [max(each) - median for median, each in zip(medians, rates.values(), strict=True)]
    axes.barh(list(rates), medians, xerr=(below, above), color=list(map(colour, rates)), ecolor="#222222")
    axes.set_title(row["name"], fontsize=9)
    axes.set_xlabel(row["unit"], fontsize=7)
    axes.tick_params(labelsize=7)
    if medians and max(medians) > 50 * min(medians):
        axes.set_xscale("log")


def main() -> None:
    with open(sys.argv[1]) as file:
        found = json.load(file)
    rows = [row for row in found["rows"] if row["samples"]]
    lines = max(1, -(-len(rows) // COLUMNS))
    figure, grid = pyplot.subplots(lines, COLUMNS, figsize=(5 * COLUMNS, 2.6 * lines), squeeze=False)
    for axes, row in zip(grid.flat, rows, strict=False):
        draw(axes, row)
    for axes in list(grid.flat)[len(rows) :]:
        axes.set_visible(False)
    machine = found["machine"]
    figure.suptitle(
        f"datas3tfs, {machine['cores']} cores, Linux {machine['kernel']}, {machine['date']}", fontsize=10
    )
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    figure.savefig(sys.argv[2], dpi=110)


if __name__ == "__main__":
    main()
