"""Nurseries that belong to a block of code, without wrapping what the block raises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def background_nursery() -> AsyncIterator[trio.Nursery]:
    """Run background tasks for as long as the block runs; leaving it cancels them.

    trio wraps everything that passes a nursery into an ExceptionGroup, although the block's own error
    has nothing to do with the background. Here the block's error comes out as it is, and so does a
    background task's if it is the only one.
    """
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as exc:
                failure = exc
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from group.exceptions[0].__cause__
        raise
    if failure is not None:
        raise failure
