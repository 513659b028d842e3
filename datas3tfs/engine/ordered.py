"""Do several things at once and take the results one by one, in the order of the things.

What reading an object in large ranges comes down to. Concurrency: up to *in_flight* calls are under
way or wait to be taken, so that is what the memory holds; leaving cancels them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import Generic, TypeVar

import trio

from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.errors import Datas3tError

T = TypeVar("T")


class _Slot(Generic[T]):
    def __init__(self) -> None:
        self.done = trio.Event()
        self.results: list[T] = []  # one, or none if it failed
        self.error: Datas3tError | None = None


@asynccontextmanager
async def open_ordered(
    calls: Iterable[Callable[[], Awaitable[T]]], in_flight: int
) -> AsyncIterator[AsyncIterator[T]]:
    """Iterate over what *calls* return. What one of them raises comes out when its turn has come."""

    async def run(call: Callable[[], Awaitable[T]], slot: _Slot[T]) -> None:
        try:
            slot.results.append(await call())
        except Datas3tError as exc:
            slot.error = exc
        slot.done.set()

    async def results() -> AsyncGenerator[T, None]:
        waiting: deque[_Slot[T]] = deque()
        upcoming = iter(calls)
        while True:
            while len(waiting) < in_flight and (call := next(upcoming, None)) is not None:
                waiting.append(_Slot())
                nursery.start_soon(run, call, waiting[-1])
            if not waiting:
                return
            slot = waiting.popleft()
            await slot.done.wait()
            if slot.error is not None:
                raise slot.error
            yield slot.results.pop()

    async with background_nursery() as nursery, aclosing(results()) as ordered:
        yield ordered
