"""How much is measured, in a full run and in a quick one, and who goes when. Plain values."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from book import Book, Row, Sample
from processes import Failed

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
Contestant = Callable[[], Mapping[str, Sample]]  # takes one turn; samples by party


@dataclass(frozen=True, slots=True)
class Plan:
    """What the command line says."""

    rounds: int
    quick: bool
    verbose: bool = False

    def pick(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    @property
    def latencies(self) -> tuple[int, ...]:
        """Milliseconds that every request is delayed."""
        return (0, 10) if self.quick else (0, 10, 30)

    @property
    def slow_rounds(self) -> int:
        """Rounds of those who are so slow that the spread does not matter."""
        return min(self.rounds, self.pick(3, 1))

    @property
    def slow_seconds(self) -> float:
        """How long one of those reads in a round."""
        return 1.0 if self.quick else 3.0

    def files(self, size: int) -> int:
        """How many files of *size* bytes a dataset has."""
        full = {4 * KIB: 50_000, 100 * KIB: 4_000, MIB: 400}[size]
        return self.pick(full, full // 4)


def size_name(size: int) -> str:
    return f"{size // MIB}MiB" if size >= MIB else f"{size // KIB}KiB"


def one_round(plan: Plan, book: Book, row: Row, contestants: dict[str, Contestant], number: int) -> None:
    """Let each have a turn, another one first each time; who fails is out for good."""
    names = list(contestants)
    for name in names[number % len(names) :] + names[: number % len(names)]:
        begin = time.perf_counter()
        try:
            for party, sample in contestants[name]().items():
                row.add(party, sample)
        except (Failed, OSError, subprocess.TimeoutExpired) as failure:
            book.miss(f"{name} ({row.name})", str(failure))
            del contestants[name]
        if plan.verbose:
            took = time.perf_counter() - begin
            print(f"{row.name}, round {number + 1}: {name} took {took:.1f} s", file=sys.stderr, flush=True)
        if not contestants:
            return
