"""Tasks that run as long as a block does; among them the asyncio loop that asyncpg needs.

A nursery would wrap what the block raises into an exception group; callers of catalog/ expect the errors
of datas3tfs.errors, so they are carried past it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import trio
import trio_asyncio  # type: ignore[import-untyped]  # publishes none

T = TypeVar("T")


class AsyncioLoop(Protocol):
    """What catalog/ uses of trio-asyncio's loop."""

    async def run_aio_coroutine(self, coro: Coroutine[Any, Any, T]) -> T:
        """Run an asyncio coroutine to its end; cancelling the caller cancels it and waits for it."""
        ...

    async def synchronize(self) -> None:
        """Wait until the loop has run what was put into its queue before."""
        ...


@asynccontextmanager
async def in_background(job: Callable[[trio.TaskStatus[T]], Awaitable[None]]) -> AsyncIterator[T]:
    """Run *job* during the block, which gets what the job reports as started; then cancel the job.

    What the block raises comes out unwrapped. A job that fails cancels the block, and its error comes out
    in an exception group: the jobs in catalog/ are written not to. Cancelling from outside reaches the
    block alone, which may need the job to clean up behind itself (a writer gives its keys back).
    """
    failure: BaseException | None = None
    scope = trio.CancelScope(shield=True)

    async def shielded(task_status: trio.TaskStatus[T]) -> None:
        with scope:
            await job(task_status)

    async with trio.open_nursery() as nursery:
        started: T = await nursery.start(shielded)
        try:
            yield started
        except BaseException as exc:
            failure = exc  # kept, not swallowed: raised again below
        scope.cancel()
    if failure is not None:
        raise failure


async def run_asyncio(task_status: trio.TaskStatus[AsyncioLoop]) -> None:
    """Run an asyncio loop in a task of its own, so that callers see nothing of its scopes; a job."""
    async with trio_asyncio.open_loop() as loop:
        task_status.started(loop)
        await trio.sleep_forever()
