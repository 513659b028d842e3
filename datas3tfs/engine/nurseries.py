"""Nurseries that belong to a block of code, or to a list of things to do, without wrapping what is raised."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

T = TypeVar("T")
R = TypeVar("R")


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


async def side_by_side(work: Callable[[T], Awaitable[R]], items: Iterable[T], at_once: int) -> list[R]:
    """Return what *work* returns for each of *items*, in their order; *at_once* are under way at a time.

    Raises the first failure, as it is, when the others have been cancelled.
    """
    upcoming = enumerate(items)
    results: dict[int, R] = {}
    failures: list[BaseException] = []

    async def worker() -> None:
        for number, item in upcoming:
            try:
                results[number] = await work(item)
            except trio.Cancelled:
                raise
            except BaseException as exc:
                failures.append(exc)
                nursery.cancel_scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(worker)
    if failures:
        raise failures[0]
    return [results[number] for number in range(len(results))]
