"""Commit what the journal of a dead mount holds, without mounting anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from datas3tfs.app.services import Services, open_services
from datas3tfs.app.writing import Written, journal_options, open_writing
from datas3tfs.config import Settings
from datas3tfs.engine.entries import EntryState
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.engine.snapshot import Removed, Snapshots, open_snapshots
from datas3tfs.errors import Datas3tError
from datas3tfs.journal.identity import read_identity

_LOOK_SECONDS = 0.25
_LAST_LOOK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Stayed:
    """A file that is still in the journal, and why."""

    dataset: str
    name: str
    size: int
    state: str  # temporary, refused or journaled
    problem: str


@dataclass(frozen=True, slots=True)
class Replay:
    """What a replay has come to."""

    committed: int
    stayed: tuple[Stayed, ...]


async def replay_journal(
    settings: Settings, directory: Path, *, force: bool, advance: Callable[[int], None]
) -> Replay:
    """Commit all that can be committed of the journal in *directory*; say what could not.

    *advance* is told how many datapoints were committed. *force*: even if the journal was in use at another
    place a moment ago, and files that may be outdated as its log is damaged. Raises NotFound, Conflict (a
    process has it, here or there), Invalid (of another installation), Corrupt, Unavailable.
    """
    await trio.to_thread.run_sync(read_identity, directory)  # there is one, or we would make it
    async with (
        open_services(settings, settings.io_timeout) as services,
        open_snapshots(services.catalog.reader, settings.io_timeout) as snapshots,
        _following(services, snapshots),
    ):
        options = journal_options(settings, directory, force=force, lock_patience=0)
        async with open_writing(services, snapshots, options) as written:
            before = written.left()
            problem = await _drained(written, advance)
            with trio.move_on_after(_LAST_LOOK_SECONDS):
                await snapshots.refreshed()  # then what is committed leaves the journal, and leases end
            return Replay(before - written.left(), _stayed(written, problem))


@asynccontextmanager
async def _following(services: Services, snapshots: Snapshots) -> AsyncIterator[None]:
    """Keep the snapshots up to date. Nobody here has cached what goes."""
    sender, receiver = trio.open_memory_channel[Removed](0)
    async with services.catalog.reader.changes() as feed, background_nursery() as nursery:
        nursery.start_soon(snapshots.follow, feed, sender)
        nursery.start_soon(_ignore, receiver)
        yield


async def _ignore(receiver: trio.MemoryReceiveChannel[Removed]) -> None:
    async for _ in receiver:
        pass


async def _drained(written: Written, advance: Callable[[int], None]) -> str:
    """Commit what can be; return what the rest failed of."""
    problem = ""
    async with background_nursery() as nursery:
        nursery.start_soon(_watch, written, advance)
        try:
            await written.drain()
        except Datas3tError as exc:
            problem = str(exc)
        return problem


async def _watch(written: Written, advance: Callable[[int], None]) -> None:
    left = written.left()
    while True:
        await trio.sleep(_LOOK_SECONDS)
        now = written.left()
        advance(left - now)
        left = now


def _stayed(written: Written, problem: str) -> tuple[Stayed, ...]:
    stayed = []
    for entry in written.journal.entries:
        if entry.state is EntryState.COMMITTED:
            continue
        if entry.key is None:
            state, why = "temporary", "not the name of a datapoint"
        else:
            state, why = entry.state.value, str(entry.problem or problem)
        stayed.append(Stayed(entry.dataset, entry.name, entry.size, state, why))
    return tuple(sorted(stayed, key=lambda one: (one.dataset, one.name)))
