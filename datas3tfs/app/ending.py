"""How a mount ends: what is closed is committed first; a second signal leaves it in the journal."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator, Callable

import trio

from datas3tfs.app.writing import Written
from datas3tfs.errors import Datas3tError, Unavailable

log = logging.getLogger(__name__)

_LAST_ANSWERS_SECONDS = 2.0  # for requests under way when told to stop


class Ending:
    """Ends a mount; *written* is None if it is read-only, *terminate* makes `serving` end by itself."""

    def __init__(self, written: Written | None, terminate: Callable[[], None]) -> None:
        self._terminate = terminate
        self.serving = trio.CancelScope()  # around what answers requests
        self._written = written
        self._draining = trio.CancelScope()  # around the commit under way, of which there may be two in turn
        self._is_told = False
        self._is_hurried = False

    async def on_signals(self, signals: AsyncIterator[int]) -> None:
        """Commit and stop at the first signal; stop committing at the second."""
        async with trio.open_nursery() as nursery:
            async for number in signals:
                log.info("stopping on %s", signal.Signals(number).name)
                if self._is_told:
                    self._is_hurried = True
                    self._draining.cancel()
                else:
                    self._is_told = True
                    nursery.start_soon(self._stop)

    async def _stop(self) -> None:
        """Commit while the mount still answers; then let requests under way finish, but not for long."""
        try:
            await self._drain()
        except Datas3tError as exc:
            log.warning("not committed yet: %s", exc)
        self._terminate()
        self.serving.deadline = min(self.serving.deadline, trio.current_time() + _LAST_ANSWERS_SECONDS)

    async def drain(self) -> None:
        """Commit what is left when the mount is gone. Raises Unavailable if something stays behind."""
        problem = ""
        try:
            await self._drain()
        except Datas3tError as exc:
            problem = f": {exc}"
        written = self._written
        if written is None or not written.left():
            return
        left = f"{written.left()} datapoints stay in the journal {written.directory}{problem}"
        if self._is_hurried:
            log.warning("%s", left)
            return
        raise Unavailable(f"{left}; mount again, or run `datas3tfs journal replay`")

    async def _drain(self) -> None:
        if self._written is None or not self._written.left() or self._is_hurried:
            return
        with trio.CancelScope() as self._draining:
            await self._written.drain()
