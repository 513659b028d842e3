"""What was measured: rows of samples by party and round, and the goals beside them.

A ratio is taken round by round, between samples that were measured one after the other, so that noise that
hits both cancels; then its median and spread. Not for measuring nor for printing (table.py). Plain values.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Sample = dict[str, float]  # figures by name; "rate" is the row's own


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, smallest and largest of some rounds."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        return Spread(statistics.median(values), min(values), max(values))

    def shown(self, form: str = ".2f") -> str:
        return f"{self.median:{form}} [{self.low:{form}} – {self.high:{form}}]"


@dataclass(frozen=True, slots=True)
class Goal:
    """What *figure* of *party* must reach: by itself, or as a multiple of that of *over*.

    Of several parties in *over* the one with the lower figure counts in each round.
    """

    party: str
    over: tuple[str, ...] = ()
    figure: str = "rate"
    least: float | None = None
    most: float | None = None
    issue: int = 5  # whose table it is from

    @property
    def text(self) -> str:
        bound = f"≥ {self.least:g}" if self.least is not None else f"≤ {self.most:g}"
        times = f" × {' or '.join(self.over)}" if self.over else ""
        return f"{self.party}: {self.figure} {bound}{times}"

    def values(self, samples: dict[str, list[Sample]]) -> list[float]:
        """Return the figure, or the ratio, of each round; nothing if a party was not there."""
        mine = [sample.get(self.figure) for sample in samples.get(self.party, [])]
        theirs = [[s.get(self.figure) for s in samples[other]] for other in self.over if samples.get(other)]
        if self.over and not theirs:
            return []
        rounds = zip(mine, *theirs, strict=False)
        found: list[float] = []
        for value, *others in rounds:
            there = [other for other in others if other]
            if value is not None and (there or not self.over):
                found.append(value / min(there) if self.over else value)
        return found

    def reached(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass(slots=True)
class Row:
    """One workload."""

    name: str
    title: str
    unit: str
    goals: tuple[Goal, ...] = ()
    samples: dict[str, list[Sample]] = field(default_factory=dict)

    def add(self, party: str, sample: Sample) -> None:
        self.samples.setdefault(party, []).append(sample)

    def spread(self, party: str, figure: str = "rate") -> Spread | None:
        values = [sample[figure] for sample in self.samples.get(party, []) if figure in sample]
        return Spread.of(values) if values else None

    def verdicts(self) -> list[tuple[Goal, Spread | None]]:
        """Return each goal with what came out; None: not measured."""
        found = [(goal, goal.values(self.samples)) for goal in self.goals]
        return [(goal, Spread.of(values) if values else None) for goal, values in found]

    def document(self) -> dict[str, Any]:
        goals = [
            {
                "goal": goal.text,
                "issue": goal.issue,
                "median": spread.median if spread else None,
                "low": spread.low if spread else None,
                "high": spread.high if spread else None,
                "reached": goal.reached(spread.median) if spread else None,
            }
            for goal, spread in self.verdicts()
        ]
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "goals": goals,
            "samples": self.samples,
        }


@dataclass(slots=True)
class Book:
    """All rows of a run, and what could not be measured and why."""

    rows: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def row(self, name: str, title: str, unit: str, goals: Sequence[Goal] = ()) -> Row:
        self.rows.append(Row(name, title, unit, tuple(goals)))
        return self.rows[-1]

    def miss(self, party: str, reason: str) -> None:
        """Note, once, that *party* cannot take part."""
        self.absent.setdefault(party, reason)
