"""Counters of requests, bytes and hits: what `stats`, the tests and the demo show.

Names are `area.thing` (`s3.get`, `s3.get_bytes`, `sql.query`, `fuse.read`, `cache.index_hit`). Only the
event loop counts; worker threads hand their figures to it.
"""

from __future__ import annotations

from collections import defaultdict


class Counters:
    """A bag of named integers that only grow."""

    def __init__(self) -> None:
        self._values: defaultdict[str, int] = defaultdict(int)

    def add(self, name: str, amount: int = 1) -> None:
        """Add *amount* to the counter *name*, which starts at nought."""
        self._values[name] += amount

    def get(self, name: str) -> int:
        """Return the counter *name*, nought if it was never added to."""
        return self._values.get(name, 0)

    def snapshot(self) -> dict[str, int]:
        """Return all counters, sorted by name."""
        return dict(sorted(self._values.items()))
