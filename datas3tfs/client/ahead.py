"""Something asked for before it is needed. Concurrency: it runs in the client's task group, not in that of
whoever asks: so a plain generator may ask, be left anywhere, and stops what it has under way then.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

from datas3tfs.errors import Unavailable

T = TypeVar("T")


class Ahead(Generic[T]):
    """What *work* returns, begun at once in *tasks*. *what* names it if the client is closed meanwhile."""

    def __init__(self, tasks: TaskGroup, what: str, work: Callable[[], Awaitable[T]]) -> None:
        self._what = what
        self._work = work
        self._done = anyio.Event()
        self._scope = anyio.CancelScope()
        self._results: list[T] = []
        self._error: Exception | None = None
        tasks.start_soon(self._run)

    async def _run(self) -> None:
        try:
            with self._scope:
                self._results.append(await self._work())
        except Exception as exc:
            self._error = exc
        finally:
            self._done.set()

    async def get(self) -> T:
        """Wait for it and return it, once. Raises what it has raised."""
        await self._done.wait()
        if self._error is not None:
            raise self._error
        if not self._results:
            raise Unavailable(f"{self._what}: the client was closed meanwhile")
        return self._results.pop()

    def leave(self) -> None:
        """Stop it if it still runs."""
        self._scope.cancel()
