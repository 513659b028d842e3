"""The one place that tries again.

Only Unavailable is tried again; everything else would come out the same. Not for what is tried
(store.py). Each attempt has a timeout and all of them together another: whatever the server does,
an operation ends. Concurrency: the event loop's; attempts of one operation follow each other.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from datas3tfs.core.counters import Counters
from datas3tfs.errors import Unavailable
from datas3tfs.objects.settings import S3Settings

T = TypeVar("T")


class Retrier:
    """Exponential back-off with full jitter; *random* returns floats from 0 to 1."""

    def __init__(self, settings: S3Settings, counters: Counters, random: Callable[[], float]) -> None:
        self._settings = settings
        self._counters = counters
        self._random = random

    async def run(self, what: str, attempt: Callable[[], Awaitable[T]], volume: int = 0) -> T:
        """Return what *attempt* returns, which moves about *volume* bytes.

        Raises Unavailable, saying what was tried and for how long; anything else as it comes.
        """
        begun = trio.current_time()
        allowance = self._settings.allowance(volume)
        end = begun + self._settings.io_timeout + allowance
        patience = self._settings.attempt_timeout + allowance
        tries = 0
        while True:
            tries += 1
            failure = Unavailable(f"no answer within {patience:.1f} s")
            try:
                with trio.move_on_at(min(end, trio.current_time() + patience)):
                    return await attempt()
            except Unavailable as exc:
                failure = exc
            self._counters.add("s3.error")
            pause = self._pause(tries)
            now = trio.current_time()
            if now + pause >= end:
                spent = f"{tries} attempt{'s' if tries > 1 else ''} in {now - begun:.1f} s"
                raise Unavailable(f"{what}: gave up after {spent}; last: {failure}") from failure
            self._counters.add("s3.retry")
            await trio.sleep(pause)

    def _pause(self, tries: int) -> float:
        ceiling = self._settings.first_pause * 2.0 ** min(tries - 1, 30)
        return self._random() * min(self._settings.longest_pause, ceiling)
