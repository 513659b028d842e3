"""Fetch stretches of objects as one stream: a few range requests ahead, delivered in order.

Each stream may always have one small request under way; larger ones, and several, as long as the client
has places left. So any number of streams moves, in bounded memory, and a stream that nobody reads on
stops nobody else.

Concurrency: requests run in the client's task group, not in the stream's: the stream is a plain generator
that may be left anywhere, and stops what it has under way then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from datas3tfs.client.storage import Storage
from datas3tfs.client.tuning import Tuning
from datas3tfs.core.spans import Span
from datas3tfs.errors import Unavailable


@dataclass(frozen=True, slots=True)
class Stretch:
    """Bytes of an object, and where to get them."""

    object_key: str
    url: str
    span: Span


class Places:
    """How many transfers may be in flight. A place may be given back by another task than took it."""

    def __init__(self, count: int) -> None:
        self._free = anyio.Semaphore(count)

    async def take(self) -> None:
        """Wait for a place."""
        await self._free.acquire()

    def take_if_free(self) -> bool:
        """Take a place unless there is none."""
        try:
            self._free.acquire_nowait()
        except anyio.WouldBlock:
            return False
        return True

    def give_back(self) -> None:
        """Let somebody else have it."""
        self._free.release()


class _Request:
    """A range that is being fetched. *number*: of which stretch it is."""

    def __init__(self, number: int, stretch: Stretch, span: Span, places: Places | None) -> None:
        self.number = number
        self.stretch = stretch
        self.span = span
        self.data = bytearray()
        self.error: Exception | None = None
        self.done = anyio.Event()
        self._places = places
        self._scope = anyio.CancelScope()

    async def run(self, storage: Storage) -> None:
        """Fetch; whatever comes of it is for whoever reads the stream."""
        try:
            with self._scope:
                what = f"read {self.stretch.object_key} bytes {self.span.start}..{self.span.stop}"
                await storage.fetch(what, self.stretch.url, self.span, self.data)
        except Exception as exc:
            self.error = exc
        finally:
            self.done.set()

    def leave(self) -> None:
        """Stop it if it still runs, and give its place back."""
        self._scope.cancel()
        if self._places is not None:
            self._places.give_back()
            self._places = None


@dataclass(frozen=True, slots=True)
class Flows:
    """Makes streams."""

    storage: Storage
    tasks: TaskGroup
    places: Places
    tuning: Tuning

    async def stream(self, stretches: Sequence[Stretch]) -> AsyncGenerator[tuple[int, bytearray], None]:
        """Yield (number of the stretch, bytes) of all *stretches*, in order. Raises Refused, Unavailable."""
        under_way: deque[_Request] = deque()
        number, at = 0, stretches[0].span.start if stretches else 0
        try:
            while True:
                while number < len(stretches) and (request := self._next(under_way, number, stretches, at)):
                    under_way.append(request)
                    self.tasks.start_soon(request.run, self.storage)
                    at = request.span.stop
                    if at == stretches[number].span.stop:
                        number += 1
                        at = stretches[number].span.start if number < len(stretches) else 0
                if not under_way:
                    return
                request = under_way[0]
                await request.done.wait()
                if request.error is not None:
                    raise request.error
                if len(request.data) != request.span.length:
                    raise Unavailable(f"{request.stretch.object_key}: the client was closed meanwhile")
                yield request.number, request.data
                under_way.popleft().leave()
        finally:
            for request in under_way:
                request.leave()

    def _next(
        self, under_way: Sequence[_Request], number: int, stretches: Sequence[Stretch], at: int
    ) -> _Request | None:
        """Return what to ask for next, from byte *at* on; None if that has to wait."""
        stretch = stretches[number]
        may_have_place = len(under_way) < self.tuning.ahead and self.places.take_if_free()
        if not may_have_place and under_way:
            return None
        length = self.tuning.piece if may_have_place else self.tuning.lone_piece
        span = Span(at, min(at + length, stretch.span.stop))
        return _Request(number, stretch, span, self.places if may_have_place else None)
