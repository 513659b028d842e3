"""Do a piece of work once for all who ask for it at the same time.

The work runs in a nursery of its own, not in a caller's task: a caller that gives up (its patience
has an end) neither stops it nor makes the others start again.
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


class _Flight(Generic[V]):
    def __init__(self) -> None:
        self.landed = trio.Event()
        self.result: list[V] = []
        self.error: Datas3tError | None = None


class SingleFlight(Generic[K, V]):
    """Runs work by key; the results are not kept."""

    def __init__(self, nursery: trio.Nursery, patience: float) -> None:
        self._nursery = nursery
        self._patience = patience
        self._flights: dict[K, _Flight[V]] = {}

    async def run(self, key: K, work: Callable[[], Awaitable[V]]) -> V:
        """Return what *work* returns, or raise the Datas3tError it raises; join if it is under way.

        Raises Unavailable after *patience* seconds; the work goes on, for whoever asks again.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            self._nursery.start_soon(self._fly, key, flight, work)
        with trio.move_on_after(self._patience):
            await flight.landed.wait()
        if not flight.landed.is_set():
            raise Unavailable(f"not ready within {self._patience:g} s, still being loaded")
        if flight.error is not None:
            raise type(flight.error)(*flight.error.args) from flight.error
        return flight.result[0]

    async def _fly(self, key: K, flight: _Flight[V], work: Callable[[], Awaitable[V]]) -> None:
        try:
            flight.result.append(await work())
        except Datas3tError as exc:
            flight.error = exc
        except Exception as exc:  # a bug, or input nobody thought of; it must not end the mount
            log.exception("unexpected failure; please report it")
            flight.error = Unavailable(f"unexpected failure ({type(exc).__name__})")
        finally:
            del self._flights[key]
            flight.landed.set()
