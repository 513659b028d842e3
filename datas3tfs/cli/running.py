"""Running asynchronous commands: under trio, stopped by signals, with one plain error at the end."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio
import typer

from datas3tfs.errors import Datas3tError

T = TypeVar("T")
_STOPPING = (signal.SIGINT, signal.SIGTERM)


def run(command: Callable[[], Awaitable[T]], *, stop_on: Sequence[signal.Signals] = _STOPPING) -> T:
    """Run *command* under trio and return what it returns.

    The first signal of *stop_on* cancels it; when it has cleaned up, the process exits with 128 + signal,
    as a shell would say. A command that handles signals itself passes (). Of an exception group with one
    error, or with errors of ours only, the first comes out, without the group.
    """
    try:
        outcome, stopped = trio.run(_until_signal, command, tuple(stop_on))
    except BaseExceptionGroup as group:
        lone = _plain(group)
        raise lone from lone.__cause__  # which says more than the group does
    if stopped is not None:
        raise typer.Exit(128 + stopped)
    return outcome[0]


async def _until_signal(
    command: Callable[[], Awaitable[T]], stop_on: Sequence[signal.Signals]
) -> tuple[list[T], int | None]:
    if not stop_on:
        return [await command()], None
    outcome: list[T] = []
    stopped: int | None = None
    with trio.open_signal_receiver(*stop_on) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal stopped
                async for number in signals:
                    stopped = stopped or number
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            outcome.append(await command())
            nursery.cancel_scope.cancel()
    # Finished in spite of the signal: then it is done, and its result stands.
    return outcome, None if outcome else stopped


def _plain(group: BaseExceptionGroup[BaseException]) -> BaseException:
    leaves = _leaves(group)
    if len(leaves) == 1 or all(isinstance(leaf, Datas3tError) for leaf in leaves):
        return leaves[0]
    return group


def _leaves(exc: BaseException) -> list[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for inner in exc.exceptions for leaf in _leaves(inner)]
    return [exc]
