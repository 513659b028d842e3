"""Do a piece of work once for all who ask for it at the same time.

The work runs in a nursery of its own, not in a caller's task: a caller that gives up (its patience
has an end) neither stops it nor makes the others start again.

Patience is the work's, not each caller's. libfuse before 3.17 cannot tell the kernel that lookups in one
directory may come at once, so they come one after the other: if each waited for itself, the eighth of
eight readers would get its error after eight times the limit.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import trio

from datas3tfs.errors import Datas3tError, Unavailable

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

# How long work that came to nothing is not begun again: those who queue behind the first to be told
# get the same answer at once, and who asks later finds what has been away back again.
_PAUSE = 1.0


class _Flight(Generic[V]):
    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.landed = trio.Event()
        self.result: list[V] = []
        self.error: Datas3tError | None = None


class SingleFlight(Generic[K, V]):
    """Runs work by key; the results are not kept."""

    def __init__(self, nursery: trio.Nursery, patience: float) -> None:
        self._nursery = nursery
        self._patience = patience
        self._flights: dict[K, _Flight[V]] = {}
        self._failed: dict[K, tuple[float, Unavailable]] = {}

    async def run(self, key: K, what: str, work: Callable[[], Awaitable[V]]) -> V:
        """Return what *work* returns, or raise the Datas3tError it raises; join if it is under way.

        Raises Unavailable, naming *what*, if it takes longer than *patience* seconds from its beginning;
        the work goes on, for whoever asks again. Also, at once, just after it has been so.
        """
        flight = self._flights.get(key)
        if flight is None:
            self._raise_if_just_failed(key)
            flight = self._flights[key] = _Flight(trio.current_time() + self._patience)
            self._nursery.start_soon(self._fly, key, flight, work)
        with trio.move_on_at(flight.deadline):
            await flight.landed.wait()
        if not flight.landed.is_set():
            raise Unavailable(f"{what}: not ready within {self._patience:g} s, still being loaded")
        if flight.error is not None:
            raise type(flight.error)(*flight.error.args) from flight.error
        return flight.result[0]

    async def _fly(self, key: K, flight: _Flight[V], work: Callable[[], Awaitable[V]]) -> None:
        try:
            flight.result.append(await work())
        except Datas3tError as exc:
            flight.error = exc
            if isinstance(exc, Unavailable):
                self._failed[key] = (trio.current_time() + _PAUSE, exc)
        except Exception as exc:  # a bug, or input nobody thought of; it must not end the mount
            log.exception("unexpected failure; please report it")
            flight.error = Unavailable(f"unexpected failure ({type(exc).__name__})")
        finally:
            del self._flights[key]
            flight.landed.set()

    def _raise_if_just_failed(self, key: K) -> None:
        now = trio.current_time()
        self._failed = {other: failed for other, failed in self._failed.items() if failed[0] > now}
        if key in self._failed:
            error = self._failed[key][1]
            raise Unavailable(*error.args) from error
