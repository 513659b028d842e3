"""Fetch stretches of objects as one stream: a few range requests ahead, delivered in order.

Each stream may always have one small request under way; larger ones, and several, as long as the client
has places left. So any number of streams moves, in bounded memory, and a stream that nobody reads on
stops nobody else.

Concurrency: requests run in the client's task group (ahead.py), not in the stream's: the stream is a plain
generator that may be left anywhere, and stops what it has under way then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial

import anyio
from anyio.abc import TaskGroup

from datas3tfs.client.ahead import Ahead
from datas3tfs.client.storage import Storage
from datas3tfs.client.tuning import Tuning
from datas3tfs.core.spans import Span

_DOUBLINGS = 16  # of the length of a request, at most


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


@dataclass(frozen=True, slots=True)
class _Request:
    """A range that is being fetched. *number*: of which stretch it is; *places*: where its place is from."""

    number: int
    span: Span
    places: Places | None
    data: Ahead[memoryview]

    def leave(self) -> None:
        """Stop it if it still runs, and give its place back."""
        self.data.leave()
        if self.places is not None:
            self.places.give_back()


@dataclass(frozen=True, slots=True)
class Flows:
    """Makes streams."""

    storage: Storage
    tasks: TaskGroup
    places: Places
    tuning: Tuning

    async def stream(self, stretches: Sequence[Stretch]) -> AsyncGenerator[tuple[int, memoryview], None]:
        """Yield (number of the stretch, bytes) of all *stretches*, in order. Raises Refused, Unavailable."""
        under_way: deque[_Request] = deque()
        number, begun = 0, 0
        at = stretches[0].span.start if stretches else 0
        try:
            while True:
                while number < len(stretches) and (
                    request := self._next(len(under_way), begun, number, stretches[number], at)
                ):
                    under_way.append(request)
                    begun, at = begun + 1, request.span.stop
                    if at == stretches[number].span.stop:
                        number += 1
                        at = stretches[number].span.start if number < len(stretches) else 0
                if not under_way:
                    return
                yield under_way[0].number, await under_way[0].data.get()
                under_way.popleft().leave()
        finally:
            for request in under_way:
                request.leave()

    def _next(self, under_way: int, begun: int, number: int, stretch: Stretch, at: int) -> _Request | None:
        """Ask for what comes next, from byte *at* on; None if that has to wait. The first requests are small,
        each twice the one before: so the first bytes come soon, and few come that nobody waits for."""
        has_place = under_way < self.tuning.ahead and self.places.take_if_free()
        if not has_place and under_way:
            return None
        length = min(self.tuning.piece, self.tuning.lone_piece << min(begun, _DOUBLINGS))
        span = Span(at, min(at + (length if has_place else self.tuning.lone_piece), stretch.span.stop))
        what = f"read {stretch.object_key} bytes {span.start}..{span.stop}"
        data = Ahead(self.tasks, stretch.object_key, partial(self.storage.fetch, what, stretch.url, span))
        return _Request(number, span, self.places if has_place else None, data)
