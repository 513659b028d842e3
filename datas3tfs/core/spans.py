"""Half-open integer spans: the one way to say "from here to there" for bytes and for keys.

Inclusive ends exist only where HTTP, SQL rows and object names demand them; they are converted on
that line and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """The integers from *start* (included) to *stop* (excluded). Raises ValueError if stop < start."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if self.stop < self.start:
            raise ValueError(f"span ends before it starts: {self.start}..{self.stop}")

    def __bool__(self) -> bool:
        return self.stop > self.start

    def __contains__(self, value: int) -> bool:
        return self.start <= value < self.stop

    @property
    def length(self) -> int:
        """How many integers (a method, not `len()`, which cannot exceed the machine's word)."""
        return self.stop - self.start

    @property
    def last(self) -> int:
        """The inclusive end, for HTTP, SQL and object names."""
        return self.stop - 1

    def covers(self, other: Span) -> bool:
        """Say whether every integer of *other* is in here."""
        return self.start <= other.start and other.stop <= self.stop

    def intersection(self, other: Span) -> Span:
        """Return what both have in common; empty (start == stop) if nothing."""
        start = max(self.start, other.start)
        return Span(start, max(start, min(self.stop, other.stop)))

    def shifted(self, by: int) -> Span:
        """Return the same span *by* further on."""
        return Span(self.start + by, self.stop + by)


def coalesce(spans: Iterable[Span], *, gap: int, limit: int) -> list[Span]:
    """Merge ascending *spans* whose distance is at most *gap*, never beyond *limit* integers each.

    A span already longer than *limit* stays as it is. A request costs more than the transfer of a
    small gap, which is why one reads through it.
    """
    merged: list[Span] = []
    for span in spans:
        if merged and span.start - merged[-1].stop <= gap and span.stop - merged[-1].start <= limit:
            merged[-1] = Span(merged[-1].start, max(merged[-1].stop, span.stop))
        else:
            merged.append(span)
    return merged
