"""One attempt to commit one batch of entries: freeze, begin, note in the journal, upload, publish, forget.

    begin (Postgres: keys pass from leases to the upload) → Begun (journal) → PUT, PUT, publish (writer.py)
      → Gone (journal) → entries disappear once this mount's snapshot shows the datarange

Every error has an outcome for the entries: committed, put back, refused, or unknown (Postgres did not say
whether it published): then they stay frozen until it does, and nobody waits for that.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from datas3tfs.core.checksums import crc32c
from datas3tfs.core.compose import compose
from datas3tfs.core.counters import Counters
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.indexfile import encode_index_file
from datas3tfs.core.journalrecords import Begun, Gone
from datas3tfs.core.layout import Planned, plan_layout
from datas3tfs.core.model import Datarange, DatasetId, Upload, UploadIntent
from datas3tfs.core.spans import Span
from datas3tfs.engine.entries import Entry, EntryState
from datas3tfs.engine.journal import Journal
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.engine.snapshot import Snapshots
from datas3tfs.engine.threads import in_thread
from datas3tfs.engine.writer import Writer
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, Invalid, NotFound, Unavailable

log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # between questions to Postgres how an attempt has ended


@dataclass(frozen=True, slots=True)
class Attempt:
    """A batch being committed: entries of one dataset, contiguous, ascending."""

    dataset_id: DatasetId
    entries: Sequence[Entry]

    @property
    def keys(self) -> Span:
        """Their keys."""
        first = self.entries[0].key
        assert first is not None
        return Span(first, first + len(self.entries))

    def __str__(self) -> str:
        return f"{self.entries[0].dataset}: {self.keys.start} to {self.keys.last}"


class _Damaged(Corrupt):
    """The content of one entry is not what was accepted."""

    def __init__(self, entry: Entry, reason: str) -> None:
        super().__init__(f"the journal's copy is damaged ({reason})")
        self.entry = entry


class Unreadable(Unavailable):
    """The content of one entry cannot be read now; it is not the others' fault."""

    def __init__(self, entry: Entry, reason: str) -> None:
        super().__init__(f"{entry.name}: {reason}")
        self.entry = entry


class _Unknown(Exception):
    """Postgres did not say whether an upload was published."""

    def __init__(self, upload: Upload, error: Datas3tError) -> None:
        super().__init__(upload, error)
        self.upload = upload
        self.error = error


class Attempts:
    """Makes attempts, and knows how they ended; made by `open_attempts`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        journal: Journal,
        writer: Writer,
        snapshots: Snapshots,
        counters: Counters,
    ) -> None:
        self._nursery = nursery
        self._journal = journal
        self._writer = writer
        self._snapshots = snapshots
        self._counters = counters

    def start(self, entries: Sequence[Entry]) -> Attempt:
        """Freeze *entries*; `run` must follow."""
        for entry in entries:
            entry.state, entry.problem = EntryState.COMMITTING, None
        return Attempt(entries[0].dataset_id, entries)

    async def run(self, attempt: Attempt) -> Datas3tError | None:
        """Try to commit; return what it failed of if trying again may help, None if all is well (also if
        entries were refused)."""
        try:
            datarange = await self._commit(attempt)
        except _Damaged as exc:
            self._refuse([exc.entry], Corrupt(str(exc)))
            return await self._run_without(attempt, exc.entry)
        except Unreadable as exc:
            self._failed([exc.entry], exc)
            return await self._run_without(attempt, exc.entry) or exc
        except (Conflict, NotFound, Invalid, Corrupt) as exc:
            return await self._narrow_down(attempt, exc)
        except _Unknown as exc:
            self._nursery.start_soon(self._find_out, attempt, exc)
            return exc.error
        except Datas3tError as exc:
            self._failed(attempt.entries, exc)
            return exc
        except Exception as exc:  # a bug, or input nobody thought of; it must not end the mount
            log.exception("%s: unexpected failure; please report it", attempt)
            error = Unavailable(f"unexpected failure ({type(exc).__name__})")
            self.put_back(attempt.entries, error)
            return error
        except BaseException:
            self.put_back(attempt.entries, Unavailable(f"{attempt}: interrupted"))
            raise
        self._finished(attempt, datarange)
        return None

    async def _commit(self, attempt: Attempt) -> Datarange:
        """Upload and publish. Raises what stood in the way, if nothing is published, or _Unknown."""
        entries, journal = attempt.entries, self._journal
        dataset = self._snapshots.dataset(attempt.dataset_id)
        layout = await trio.to_thread.run_sync(plan_layout, [_planned(entry) for entry in entries])
        builder = IndexBuilder()

        def index() -> bytes:
            return encode_index_file(builder.finish(first=layout.keys.start, object_size=layout.size))

        intent = UploadIntent(dataset.id, layout.keys, layout.size, journal.leases.holder)
        await self._writer.check(dataset.bucket_id)
        upload = await self._writer.begin(intent, dataset.bucket_id)
        try:
            journal.store.append(Begun(upload.id, tuple(entry.id for entry in entries)))
            chunks = compose(layout, lambda i: _content(entries[i]), builder)
            return await self._writer.finish(upload, in_thread(chunks), index)
        except Datas3tError as exc:
            published = await self._outcome(upload, exc)
            if published is not None:
                return published
            if isinstance(exc, Conflict | NotFound) or type(exc) is Corrupt:
                # Keys were refused, if at all, by `begin`: this one is between us and the stores.
                raise Unavailable(str(exc)) from exc
            raise
        except BaseException:
            await self._writer.abandon(upload)
            raise

    async def _outcome(self, upload: Upload, error: Datas3tError) -> Datarange | None:
        """Return what was published in spite of *error*; None if nothing is, nor will be. Raises _Unknown."""
        try:
            return await self._writer.published(upload)
        except Datas3tError:
            raise _Unknown(upload, error) from error

    async def _find_out(self, attempt: Attempt, unknown: _Unknown) -> None:
        """Ask until Postgres says what became of an upload. Those who wait for its entries get the error, and
        the entries stay as they are."""
        log.warning("%s: it is not known yet whether it was committed: %s", attempt, unknown.error)
        for entry in attempt.entries:
            entry.problem = unknown.error
            entry.wake()
        while True:
            await trio.sleep(_LOOK_SECONDS)
            try:
                published = await self._writer.published(unknown.upload)
            except Datas3tError as exc:
                log.debug("%s: still unknown: %s", attempt, exc)
                continue
            break
        log.info("%s: it was %s", attempt, "not committed" if published is None else "committed")
        if published is None:
            self.put_back(attempt.entries, unknown.error)
            self._journal.backlog.recount(attempt.dataset_id)
        else:
            self._finished(attempt, published)

    async def _narrow_down(self, attempt: Attempt, error: Datas3tError) -> Datas3tError | None:
        """Find the entries that cannot be committed, by halves, and commit the others."""
        entries = attempt.entries
        if len(entries) == 1:
            self._refuse(entries, error)
            return None
        middle = len(entries) // 2
        return await self._run_parts(attempt, [entries[:middle], entries[middle:]])

    async def _run_without(self, attempt: Attempt, one: Entry) -> Datas3tError | None:
        at = attempt.entries.index(one)
        return await self._run_parts(attempt, [attempt.entries[:at], attempt.entries[at + 1 :]])

    async def _run_parts(self, attempt: Attempt, parts: Sequence[Sequence[Entry]]) -> Datas3tError | None:
        problem: Datas3tError | None = None
        for part in parts:
            if part:
                problem = await self.run(Attempt(attempt.dataset_id, part)) or problem
        return problem

    def _finished(self, attempt: Attempt, datarange: Datarange) -> None:
        for entry in attempt.entries:
            entry.state = EntryState.COMMITTED
            entry.wake()
        self._counters.add("commit.dataranges")
        self._counters.add("commit.datapoints", len(attempt.entries))
        self._counters.add("commit.bytes", datarange.size)
        self._journal.leases.part_with(attempt.dataset_id, attempt.keys)
        try:
            self._journal.store.append(Gone(tuple(entry.id for entry in attempt.entries)))
        except Unavailable as exc:  # the next process asks Postgres about the upload instead
            log.warning("%s: committed, but the journal could not note it: %s", attempt, exc)
        self._nursery.start_soon(self._retire, attempt)

    async def _retire(self, attempt: Attempt) -> None:
        """Let the entries go when this mount's snapshot has what they have become."""
        await self._snapshots.refreshed()
        self._journal.retire(attempt.entries)

    def _failed(self, entries: Sequence[Entry], error: Datas3tError) -> None:
        what = Attempt(entries[0].dataset_id, entries)
        log.warning("%s: not committed yet: %s", what, error)
        self._counters.add("commit.failed")
        self.put_back(entries, error)

    def put_back(self, entries: Sequence[Entry], error: Datas3tError) -> None:
        """Let entries that are not committed, because of *error*, be changed and tried again."""
        for entry in entries:
            if entry.state is EntryState.COMMITTING:
                entry.state, entry.problem = EntryState.JOURNALED, error
                entry.wake()

    def _refuse(self, entries: Sequence[Entry], error: Datas3tError) -> None:
        for entry in entries:
            log.error("%s/%s: cannot be committed, kept in the journal: %s", entry.dataset, entry.name, error)
            self._counters.add("commit.refused")
            entry.state, entry.problem = EntryState.REFUSED, error
            entry.wake()


def _planned(entry: Entry) -> Planned:
    assert entry.key is not None
    return Planned(entry.key, entry.extension, entry.size, entry.mtime_ns)


def _content(entry: Entry) -> Iterator[bytes]:
    """Yield an entry's content, checked against what was accepted. Runs in a worker thread."""
    crc = 0
    try:
        for piece in entry.draft.pieces():
            crc = crc32c(piece, crc)
            yield piece
    except (Corrupt, NotFound) as exc:
        raise _Damaged(entry, str(exc)) from exc
    except Unavailable as exc:
        raise Unreadable(entry, str(exc)) from exc
    if entry.safe is not None and entry.safe.crc not in (None, crc):
        raise _Damaged(entry, "its CRC32C is not the one recorded")


@asynccontextmanager
async def open_attempts(
    journal: Journal, writer: Writer, snapshots: Snapshots, counters: Counters
) -> AsyncIterator[Attempts]:
    """Own what goes on after attempts have ended."""
    async with background_nursery() as nursery:
        yield Attempts(nursery, journal, writer, snapshots, counters)
