"""What writing adds to a mount: open the journal, bring it in line with Postgres, commit in the background,
and empty it when the mount ends.
"""

from __future__ import annotations

import logging
import resource
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from datas3tfs.app.services import Services
from datas3tfs.config import Settings
from datas3tfs.core.counters import Counters
from datas3tfs.engine.attempt import open_attempts
from datas3tfs.engine.committer import BatchLimits, Committer, open_committer
from datas3tfs.engine.entries import Entries, Entry, EntryState
from datas3tfs.engine.journal import Journal
from datas3tfs.engine.leases import KeyLeases
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.engine.quota import Quota
from datas3tfs.engine.recovery import reconcile, replay
from datas3tfs.engine.snapshot import Snapshots
from datas3tfs.engine.sweeper import sweep
from datas3tfs.engine.writer import Writer
from datas3tfs.errors import Conflict, Datas3tError
from datas3tfs.journal.store import DiskJournal, open_journal

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 60.0
_LOCK_PAUSE = 0.25  # between looks whether another process has left the journal
_SEGMENTS = 16  # a journal's quota has room for so many log segments, or space would be freed too rarely
_SEGMENT_BYTES = 64 * 1024 * 1024
_DRAIN_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class JournalOptions:
    """Where a journal is and how it is used. *patience*: seconds a writer waits for others; *lock_patience*:
    … and this process for another to leave the journal. *force*: even if it may be the copy of one that is in
    use elsewhere."""

    directory: Path
    size: int
    batches: BatchLimits
    patience: float
    lock_patience: float
    force: bool


def journal_options(
    settings: Settings, directory: Path, *, force: bool, lock_patience: float | None = None
) -> JournalOptions:
    """Return how the settings want the journal in *directory* to be used."""
    patience = settings.io_timeout
    return JournalOptions(
        directory,
        settings.journal_size,
        BatchLimits(settings.batch_bytes, settings.batch_age),
        patience,
        patience if lock_patience is None else lock_patience,
        force,
    )


@dataclass(frozen=True, slots=True)
class Written:
    """The parts of a mount that can be written to."""

    journal: Journal
    committer: Committer
    counters: Counters
    directory: Path
    patience: float

    def stats(self) -> dict[str, object]:
        """Return what `datas3tfs stats` shows of the journal: files by state, and bytes."""
        states: Counter[str] = Counter()
        for entry in self.journal.entries:
            states[_kind(entry)] += 1
        return {
            "directory": str(self.directory),
            "used_bytes": self.journal.quota.used,
            "size_bytes": self.journal.quota.limit,
            **{name: states[name] for name in ("open", "journaled", "committing", "refused", "temporary")},
            "committed": self.counters.snapshot().get("commit.datapoints", 0),
            "problem": self._problem(),
        }

    def _problem(self) -> str | None:
        """Return why a file is refused or, if none is, what the last attempt at one failed of."""
        problems = [entry for entry in self.journal.entries if entry.problem is not None]
        problems.sort(key=lambda entry: entry.state is not EntryState.REFUSED)
        return str(problems[0].problem) if problems else None

    def left(self) -> int:
        """Return how many datapoints are safe here and not committed."""
        done = EntryState.COMMITTED
        return sum(
            e.key is not None and e.safe is not None and e.state is not done for e in self.journal.entries
        )

    async def drain(self) -> None:
        """Commit all that is closed; try again while that gets anywhere. Raises what it failed of."""
        left, deadline = self.left(), trio.current_time() + self.patience
        while True:
            try:
                await self.committer.drain()
                return
            except Datas3tError:
                if self.left() < left:
                    left, deadline = self.left(), trio.current_time() + self.patience
                if trio.current_time() > deadline or self._is_refused_only():
                    raise
            await trio.sleep(_DRAIN_PAUSE)

    def _is_refused_only(self) -> bool:
        left = [entry for entry in self.journal.entries if entry.key is not None and entry.safe is not None]
        return all(entry.state in (EntryState.REFUSED, EntryState.COMMITTED) for entry in left)


def _kind(entry: Entry) -> str:
    """Say in which state of a file, for people, an entry is."""
    if entry.key is None:
        return "temporary"
    return "open" if entry.safe is None else entry.state.value


@asynccontextmanager
async def open_writing(
    services: Services, snapshots: Snapshots, options: JournalOptions
) -> AsyncIterator[Written]:
    """Open the journal with what an earlier mount has left in it, and commit in the background.

    Raises Conflict (another process has it, or the journal that it is a copy of), Invalid (of another
    installation), Unavailable, Corrupt.
    """
    catalog, counters = services.catalog, services.counters
    installation = await catalog.registry.installation()
    _allow_many_files()
    async with _opened(options, installation) as store:
        entries = Entries()
        leases = KeyLeases(catalog.leases, store.holder, store.place, entries, snapshots)
        quota = Quota(store, options.size, options.patience, counters)
        journal = Journal(store, entries, leases, snapshots, quota, options.patience, counters)
        replayed = await trio.to_thread.run_sync(replay, store)
        await reconcile(replayed, store, journal, catalog.uploads, catalog.leases, force=options.force)
        if len(entries):
            log.info("%s: %d files of an earlier mount", options.directory, len(entries))
        async with (
            open_attempts(journal, Writer(catalog.uploads, services.stores), snapshots, counters) as attempts,
            open_committer(journal, attempts, options.batches) as committer,
            background_nursery() as nursery,
        ):
            nursery.start_soon(leases.keep)
            nursery.start_soon(_keep_sweeping, services)
            yield Written(journal, committer, counters, options.directory, options.patience)
        await _leave(journal)


def _allow_many_files() -> None:
    """Every uncommitted file that is large keeps a descriptor open; shells allow a thousand by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@asynccontextmanager
async def _opened(options: JournalOptions, installation: str) -> AsyncIterator[DiskJournal]:
    """Open the journal; wait for a process that is just about to leave it. Raises as `open_journal`."""
    deadline = trio.current_time() + options.lock_patience
    segment = min(_SEGMENT_BYTES, max(options.size // _SEGMENTS, 64 * 1024))
    warned = False
    with ExitStack() as stack:
        while True:
            try:
                store = stack.enter_context(
                    open_journal(options.directory, installation, segment_bytes=segment)
                )
                break
            except Conflict as exc:
                if trio.current_time() > deadline:
                    raise
                if not warned:
                    log.warning("waiting: %s", exc)
                warned = True
            await trio.sleep(_LOCK_PAUSE)
        yield store


async def _keep_sweeping(services: Services) -> None:
    catalog = services.catalog
    while True:
        try:
            await sweep(catalog.uploads, catalog.leases, catalog.graveyard, services.stores)
        except Datas3tError as exc:
            log.debug("could not sweep yet: %s", exc)
        await trio.sleep(_SWEEP_SECONDS)


async def _leave(journal: Journal) -> None:
    """Give back keys that nothing needs; they would expire anyway."""
    try:
        left = [entry for entry in journal.entries if entry.state is not EntryState.COMMITTED]
        if left:
            for dataset in {entry.dataset_id for entry in left}:
                await journal.leases.release_unused(dataset)
        else:
            await journal.leases.dismiss()
    except Datas3tError as exc:
        log.warning("leases are left to expire: %s", exc)
