"""Disjoint spans with a value each: which bytes of an object are at hand, or on their way."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Generic, TypeVar

from datas3tfs.core.spans import Span

T = TypeVar("T")


class Extents(Generic[T]):
    """A map from disjoint spans to values. All operations are a bisection."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._items: list[tuple[Span, T]] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[tuple[Span, T]]:
        return iter(self._items)

    def at(self, position: int) -> tuple[Span, T] | None:
        """Return the extent that contains *position*, or None."""
        at = bisect_right(self._starts, position) - 1
        if at >= 0 and position in self._items[at][0]:
            return self._items[at]
        return None

    def free(self, span: Span) -> Span:
        """Return the first stretch of *span* that no extent covers; empty if there is none."""
        start = span.start
        while start < span.stop and (found := self.at(start)) is not None:
            start = found[0].stop
        if start >= span.stop:
            return Span(span.stop, span.stop)
        following = bisect_right(self._starts, start)
        stop = self._starts[following] if following < len(self._starts) else span.stop
        return Span(start, min(stop, span.stop))

    def insert(self, span: Span, value: T) -> None:
        """Add an extent. Raises ValueError if it is empty or overlaps another."""
        at = bisect_right(self._starts, span.start)
        overlaps_next = at < len(self._starts) and self._starts[at] < span.stop
        if not span or overlaps_next or (at and self._items[at - 1][0].stop > span.start):
            raise ValueError(f"extent {span} is empty or overlaps another")
        self._starts.insert(at, span.start)
        self._items.insert(at, (span, value))

    def remove(self, span: Span) -> None:
        """Remove the extent *span*. Raises KeyError if there is none."""
        at = bisect_right(self._starts, span.start) - 1
        if at < 0 or self._items[at][0] != span:
            raise KeyError(span)
        del self._starts[at], self._items[at]
