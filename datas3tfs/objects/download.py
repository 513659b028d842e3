"""Fetching (fetching.py) in worker threads, for the event loop; on timeout or cancellation a flight is called
off, and its thread returns at once.

Concurrency: the event loop's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from datas3tfs.core.spans import Span
from datas3tfs.objects.fetching import Fetcher, Flight
from datas3tfs.objects.settings import S3Settings


class Downloads:
    """One endpoint's."""

    def __init__(self, settings: S3Settings, limiter: trio.CapacityLimiter, *, tls: bool) -> None:
        self._limiter = limiter
        self._fetcher = Fetcher(settings, tls=tls)

    def close(self) -> None:
        """Close idle connections; those in use close when their threads are done."""
        self._fetcher.close()

    async def span(self, url: str, key: str, span: Span, total: int) -> bytes:
        """Return exactly the bytes *span*. Raises NotFound, Corrupt, Unavailable, Denied."""
        return await self._fly(partial(self._fetcher.span, url=url, key=key, span=span, total=total))

    async def whole(self, url: str, key: str, limit: int) -> bytes:
        """Return a whole object of at most *limit* bytes. Raises as `span` does."""
        return await self._fly(partial(self._fetcher.whole, url=url, key=key, limit=limit))

    async def _fly(self, work: Callable[[Flight], bytes]) -> bytes:
        flight = Flight()
        try:
            return await trio.to_thread.run_sync(work, flight, abandon_on_cancel=True, limiter=self._limiter)
        except trio.Cancelled:
            flight.call_off()
            raise
