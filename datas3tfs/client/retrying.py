"""The one place of the client that tries again: exponential back-off with full jitter.

Only what an attempt marks as worth it, by raising `Again`, is tried again. Concurrency: attempts of one
operation follow each other; an operation keeps no state here.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from datas3tfs.client.tuning import Tuning
from datas3tfs.errors import Unavailable

T = TypeVar("T")
_CHANCE = random.SystemRandom()


class Again(Exception):
    """An attempt has failed in a way that may pass. Never leaves this package.

    *after*: seconds that the other side asks to wait; *undone*: surely nothing has happened there.
    """

    def __init__(self, reason: str, *, after: float | None = None, undone: bool = False) -> None:
        super().__init__(reason)
        self.after = after
        self.undone = undone


class Tries:
    """What is known of the attempts of one operation so far."""

    def __init__(self) -> None:
        self.lost = False  # one has failed and may have taken effect all the same


class Retrier:
    """Tries for *patience* seconds; *jitter* returns floats from 0 to 1."""

    def __init__(self, tuning: Tuning, patience: float, jitter: Callable[[], float] = _CHANCE.random) -> None:
        self._tuning = tuning
        self._patience = patience
        self._jitter = jitter

    async def run(
        self,
        what: str,
        attempt: Callable[[], Awaitable[T]],
        *,
        reached: Callable[[], int] = lambda: 0,
        tries: Tries | None = None,
    ) -> T:
        """Return what *attempt* returns. Patience starts anew whenever *reached* says that it got further.

        Raises Unavailable, saying what was tried and for how long; anything but Again as it comes.
        """
        begun, count, before = anyio.current_time(), 0, reached()
        while True:
            try:
                return await attempt()
            except Again as exc:
                failure = exc
            if tries is not None:
                tries.lost = tries.lost or not failure.undone
            if reached() != before:
                begun, count, before = anyio.current_time(), 0, reached()
            count += 1
            pause = self._pause(count, failure.after)
            spent = anyio.current_time() - begun
            # A second attempt follows one for which a silent server has taken all the time.
            waited = pause if count == 1 else spent + pause
            if waited >= self._patience:
                times = f"{count} attempt{'s' if count > 1 else ''} in {spent:.1f} s"
                # from None: what libraries raise may tell a signed address.
                raise Unavailable(f"{what}: gave up after {times}; last: {failure}") from None
            await anyio.sleep(pause)

    def _pause(self, count: int, after: float | None) -> float:
        ceiling = min(self._tuning.longest_pause, self._tuning.first_pause * 2.0 ** min(count - 1, 30))
        return max(self._jitter() * ceiling, after or 0.0)
