"""Signed GET addresses by object key, so that one signature serves many range requests of ours.

Signing costs a tenth of the CPU of a request, a kept address none of it. The Range header is not
signed, hence one address per key. Not for the addresses that others are given: those are signed
anew each time, so that each lives as long as promised. Concurrency: the event loop's alone.
"""

from __future__ import annotations

from collections import OrderedDict


class PresignedUrls:
    """The *limit* addresses used last, each for half of its *life* (seconds)."""

    def __init__(self, life: float, limit: int) -> None:
        self._half_life = life / 2
        self._limit = limit
        self._urls: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def get(self, key: str, now: float) -> str | None:
        """Return the address of *key* if it is fresh enough at *now* (seconds, monotonic)."""
        url, signed = self._urls.get(key, ("", 0.0))
        if not url or now - signed >= self._half_life:
            return None
        self._urls.move_to_end(key)
        return url

    def remember(self, key: str, url: str, now: float) -> None:
        """Keep *url*, signed at *now*; the one not used for longest makes room."""
        self._urls[key] = (url, now)
        self._urls.move_to_end(key)
        if len(self._urls) > self._limit:
            self._urls.popitem(last=False)

    def discard(self, key: str) -> None:
        """Forget the address of *key*, which the server refused."""
        self._urls.pop(key, None)
