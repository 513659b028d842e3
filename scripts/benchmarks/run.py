"""Measure datas3tfs beside ceilings and peers, all in one run and interleaved; see docs/BENCHMARKS.md.

Prints a table, each goal with what came of it; --json and --chart write the same to files. Ratios within
one run mean something; absolute figures on a shared machine mean little.

    scripts/bench [--quick] [--only NAME…] [--rounds N] [--json FILE] [--chart FILE.png]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import table
from book import Book
from plan import Plan
from processes import HERE, Failed, run
from sections import api, first_byte, iterate, large, listing, scan, shuffle, writing
from world import World, open_world

SECTIONS: dict[str, Callable[[World, Book, Plan], None]] = {
    "scan": scan.measure,
    "shuffle": shuffle.measure,
    "announced": shuffle.announced,
    "large": large.measure,
    "list": listing.measure,
    "first-byte": first_byte.measure,
    "iterate": iterate.measure,
    "create": writing.create,
    "bulk": writing.bulk,
    "fsync": writing.fsync,
    "api": api.measure,
}
WRITING = ("create", "bulk", "fsync")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, in minutes")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="NAME", help=", ".join(SECTIONS))
    parser.add_argument("--write", action="store_const", dest="only", const=WRITING, help="only writing")
    parser.add_argument("--api", action="store_const", dest="only", const=("api",), help="only the HTTP API")
    parser.add_argument("--rounds", type=int, help="how often (5; 2 if quick)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="(bench.json)", default=Path("bench.json"))
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="needs matplotlib")
    parser.add_argument("--verbose", action="store_true", help="say what goes on")
    parser.add_argument("--peers", type=Path, metavar="PYTHON", help="that has webdataset and ratarmount")
    return parser.parse_args()


def machine() -> dict[str, object]:
    """Say what the figures were measured on."""
    return {
        "kernel": platform.release(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "pyfuse3": version("pyfuse3"),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def document(book: Book, took: dict[str, float]) -> dict[str, object]:
    return {
        "machine": machine(),
        "seconds": took,
        "rows": [row.document() for row in book.rows],
        "absent": book.absent,
    }


def interrupted(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


class Printer:
    """Prints the rows that are new and saves them all, also when a run is interrupted."""

    def __init__(self, book: Book, file: Path) -> None:
        self._book, self._file = book, file
        self._took: dict[str, float] = {}
        self._printed = 0

    def section(self, name: str, seconds: float) -> None:
        self._took[name] = round(seconds, 1)
        for row in self._book.rows[self._printed :]:
            print("\n".join(table.lines(row)), flush=True)
        self._printed = len(self._book.rows)
        print(f"-- {name}: {seconds:.0f} s", file=sys.stderr, flush=True)
        self._file.write_text(json.dumps(document(self._book, self._took), indent=1) + "\n")


def measure(world: World, book: Book, plan: Plan, name: str, printer: Printer) -> None:
    begin = time.perf_counter()
    try:
        SECTIONS[name](world, book, plan)
    except Failed as failure:
        book.miss(name, str(failure))
    finally:
        printer.section(name, time.perf_counter() - begin)


def main() -> None:
    options = arguments()
    plan = Plan(options.rounds or (2 if options.quick else 5), options.quick, options.verbose)
    signal.signal(signal.SIGTERM, interrupted)  # so that everything is unmounted
    book = Book()
    printer = Printer(book, options.json)
    try:
        with open_world(options.peers) as world:
            for name in options.only or SECTIONS:
                measure(world, book, plan, name, printer)
        print("\n".join(table.summary(book)))
        if options.chart:
            python = options.peers or sys.executable
            run([python, HERE / "chart.py", options.json, options.chart], dict(os.environ))
    except Failed as failure:
        raise SystemExit(f"bench: {failure}") from None


if __name__ == "__main__":
    main()
