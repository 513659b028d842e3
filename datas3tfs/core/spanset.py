"""A set of whole numbers, kept as the few spans it is made of."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from datas3tfs.core.spans import Span


class SpanSet:
    """Numbers in ascending spans that neither touch nor overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def __contains__(self, number: int) -> bool:
        return self.stop_after(number) is not None

    def __iter__(self) -> Iterator[Span]:
        return map(Span, self._starts, self._stops)

    def __bool__(self) -> bool:
        return bool(self._starts)

    def stop_after(self, number: int) -> int | None:
        """Return where the span that holds *number* ends; None if the number is not in the set."""
        at = bisect_right(self._starts, number) - 1
        return self._stops[at] if at >= 0 and number < self._stops[at] else None

    def start_before(self, number: int) -> int | None:
        """Return where the span that holds *number* starts; None if the number is not in the set."""
        at = bisect_right(self._starts, number) - 1
        return self._starts[at] if at >= 0 and number < self._stops[at] else None

    def add(self, span: Span) -> None:
        """Put the numbers of *span* in."""
        if not span:
            return
        low = self._first_ending_from(span.start)
        high = bisect_right(self._starts, span.stop)
        start = min([span.start, *self._starts[low:high]])
        stop = max([span.stop, *self._stops[low:high]])
        self._starts[low:high], self._stops[low:high] = [start], [stop]

    def remove(self, span: Span) -> None:
        """Take the numbers of *span* out, as far as they are in."""
        if not span:
            return
        low = self._first_ending_from(span.start + 1)
        high = bisect_right(self._starts, span.stop - 1)
        if low >= high:
            return
        around = [(self._starts[low], span.start), (span.stop, self._stops[high - 1])]
        kept = [(start, stop) for start, stop in around if start < stop]
        self._starts[low:high] = [start for start, _ in kept]
        self._stops[low:high] = [stop for _, stop in kept]

    def _first_ending_from(self, number: int) -> int:
        """Return the position of the first span that ends at *number* or later."""
        return bisect_right(self._stops, number - 1)
