"""What an earlier process has left in a journal: read it, and bring it in line with Postgres.

Reading needs the journal alone (`replay`; `datas3tfs journal list` and `export` use no more). `reconcile`
then asks Postgres what became of uploads under way, and makes sure that the keys are still held. Doing either
twice does no harm.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace

import trio

from datas3tfs.core.journalrecords import Accepted, Begun, EntryId, Gone, Place, Renamed
from datas3tfs.core.model import DatasetId, UploadId
from datas3tfs.core.spans import Span
from datas3tfs.engine.draft import Draft
from datas3tfs.engine.entries import Entry, EntryState, Safe
from datas3tfs.engine.journal import Journal
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, NotFound
from datas3tfs.ports import JournalStore, Leases, Uploads

log = logging.getLogger(__name__)

OUTDATED = (
    "perhaps outdated: a damaged part of the log may have held a newer version, or said that it was removed "
    "(rename or rewrite it, or replay with --force, if it is wanted)"
)


@dataclass(frozen=True, slots=True)
class Found:
    """An accepted file, as the records say."""

    says: Accepted  # without content
    place: Place
    inline: bool
    last: Place  # of the last record about it, which may be one of another name


@dataclass(slots=True)
class Replayed:
    """What the log amounts to: accepted files by number, and the uploads that may have committed them."""

    files: dict[EntryId, Found] = field(default_factory=dict)
    begun: dict[EntryId, UploadId] = field(default_factory=dict)
    superseded: list[Place] = field(default_factory=list)
    last: int = 0  # the highest number given out
    _names: dict[tuple[DatasetId, str], EntryId] = field(default_factory=dict)

    def accept(self, found: Found) -> None:
        """Take in an Accepted record. What was begun before has failed, or it could not have changed."""
        self._forget(found.says.entry)
        self._name(found)

    def rename(self, record: Renamed, place: Place) -> None:
        """Take in a Renamed record."""
        old = self.files.get(record.entry)
        if old is not None:
            self._unname(old)
            says = replace(
                old.says,
                dataset_id=record.dataset_id,
                dataset=record.dataset,
                name=record.name,
                doubtful=False,  # who gave it that name knew it
            )
            self._name(replace(old, says=says, last=place))
        elif record.replaced is not None:
            # Its own record went with the beginning of the log: a later one says what became of it.
            self._forget(record.replaced)

    def begin(self, record: Begun) -> None:
        """Take in a Begun record: of several about a file, only the last can have committed it."""
        self._given_out(record.entries)
        self.begun.update(dict.fromkeys(record.entries, record.upload))

    def remove(self, entries: Iterable[EntryId]) -> None:
        """Take in a Gone record."""
        for entry in entries:
            self._given_out((entry,))
            self._forget(entry)

    def _given_out(self, entries: Iterable[EntryId]) -> None:
        self.last = max(self.last, *entries)

    def _name(self, found: Found) -> None:
        """A name belongs to whoever got it last; what had it before was replaced."""
        name = found.says.dataset_id, found.says.name
        replaced = self._names.get(name)
        if replaced is not None and replaced != found.says.entry:
            self._forget(replaced)
        self.files[found.says.entry], self._names[name] = found, found.says.entry
        self._given_out((found.says.entry,))

    def _forget(self, entry: EntryId) -> None:
        self.begun.pop(entry, None)
        found = self.files.pop(entry, None)
        if found is not None:
            self._unname(found)
            self.superseded.append(found.place)

    def _unname(self, found: Found) -> None:
        name = found.says.dataset_id, found.says.name
        if self._names.get(name) == found.says.entry:
            del self._names[name]


def replay(store: JournalStore) -> Replayed:
    """Read the log from begin to end. Blocks: for a worker thread. Raises Unavailable, Corrupt."""
    replayed = Replayed()
    for record, place in store.records():
        match record:
            case Accepted():
                # One of no bytes may have had a file of its own, which is as empty.
                inline = record.crc is not None and place.size == record.size
                replayed.accept(Found(record, place, inline, place))
            case Renamed():
                replayed.rename(record, place)
            case Gone():
                replayed.remove(record.entries)
            case Begun():
                replayed.begin(record)
    return replayed


async def reconcile(
    replayed: Replayed,
    store: JournalStore,
    journal: Journal,
    uploads: Uploads,
    leases: Leases,
    *,
    force: bool = False,
) -> None:
    """Put what is left into *journal*, its keys held; finish what was committed.

    Raises Unavailable; and Conflict, before anything is touched, if this may be the copy of a journal that is
    in use, unless *force*: what that one is uploading would be abandoned, and its keys given up.
    """
    try:
        await leases.enrol(store.holder, store.place, alone=not force)
    except Conflict as exc:
        raise Conflict(
            f"{store.place}: this may be the copy of a journal: {exc}; make sure that it is not any more, "
            "then use --force"
        ) from exc
    await _settle_uploads(replayed, store, uploads)
    for place in replayed.superseded:
        store.drop(place)
    journal.number_after(EntryId(max(replayed.last, *store.contents(), 0)))
    for entry in await trio.to_thread.run_sync(_entries, replayed, store, force):
        if entry.key is None or journal.entries.at_key(entry.dataset_id, entry.key) is None:
            journal.adopt(entry)
        else:  # a damaged log has lost the record of the older one's end
            log.error("%s/%s: kept in the journal, but another has its key", entry.dataset, entry.name)
    await trio.to_thread.run_sync(_remove_orphans, store, replayed)
    await _hold_keys(store, journal, leases)


async def _settle_uploads(replayed: Replayed, store: JournalStore, uploads: Uploads) -> None:
    await uploads.abandon_all(store.holder)  # nobody is writing them: we have the journal to ourselves
    entries_of: dict[UploadId, list[EntryId]] = defaultdict(list)
    for entry, upload in replayed.begun.items():
        if entry in replayed.files:
            entries_of[upload].append(entry)
    for upload, entries in entries_of.items():
        if await uploads.published(upload) is not None:
            store.append(Gone(tuple(entries)))
            replayed.remove(entries)
            log.info("%d datapoints had been committed already", len(entries))


def _entries(replayed: Replayed, store: JournalStore, force: bool) -> list[Entry]:
    """Return the entries of what was found, the last in the log first."""
    return [entry_of(store, found, force=force) for found in reversed(replayed.files.values())]


def entry_of(store: JournalStore, found: Found, *, force: bool) -> Entry:
    """Return the entry of an accepted file; refused if its content is not there or, unless *force*, if there
    may have been a newer one."""
    says = found.says
    problem: Datas3tError | None = None
    try:
        if found.inline:
            draft = Draft.in_log(store, says.entry, found.place)
        else:
            draft = Draft.in_file(store, says.entry, None if says.crc is None else says.size)
            if says.crc is not None:
                draft.learn_crc(says.crc)
    except (Corrupt, NotFound) as exc:
        log.error("%s/%s: kept in the journal, but damaged: %s", says.dataset, says.name, exc)
        draft, problem = Draft.damaged(store, says.entry, says.size), Corrupt(str(exc))
    entry = Entry(says.entry, says.dataset_id, says.dataset, says.name, draft, says.mtime_ns)
    entry.safe = Safe(found.place, found.inline, says.size, says.crc, says.mtime_ns)
    entry.changed = False
    entry.synced = not found.inline  # that process may have done it
    if problem is None and not force and is_doubtful(store, found):
        log.error("%s/%s: kept in the journal, but %s", says.dataset, says.name, OUTDATED)
        problem, entry.is_doubtful = Corrupt(OUTDATED), True
    if problem is not None:
        entry.state, entry.problem = EntryState.REFUSED, problem
    return entry


def is_doubtful(store: JournalStore, found: Found) -> bool:
    """Say whether a record is missing that may have said something else of a file since. To be asked after a
    replay."""
    return found.says.doubtful or store.may_be_outdated(found.says, found.last)


def _remove_orphans(store: JournalStore, replayed: Replayed) -> None:
    """Delete the content files of files that were never accepted, or are gone."""
    needed = {number for number, found in replayed.files.items() if not found.inline}
    orphans = [number for number in store.contents() if number not in needed]
    if orphans and store.has_gaps():
        # One of them may be all that is left of a file whose record was lost.
        log.warning(
            "%s: %d content files of nothing known are kept: its log is damaged", store.place, len(orphans)
        )
        return
    for number in orphans:
        with closing(store.open_content(number)) as content:
            content.remove()


async def _hold_keys(store: JournalStore, journal: Journal, leases: Leases) -> None:
    """Make sure of the keys of all entries; refuse those whose keys somebody else has now."""
    for lease in await leases.held(store.holder):
        journal.leases.know(lease.dataset_id, lease.keys, accepted=lease.accepted)
    for entry in journal.entries:
        if entry.key is None or entry.state is EntryState.REFUSED:
            continue
        try:
            if not journal.leases.holds(entry.dataset_id, entry.key):
                wanted = Span(entry.key, entry.key + 1)
                lease = await leases.take(store.holder, entry.dataset_id, wanted, accepted=True)
                journal.leases.know(entry.dataset_id, lease.keys, accepted=lease.accepted)
            await journal.leases.accept(entry.dataset_id, entry.key)
        except (Conflict, NotFound) as exc:
            log.error("%s/%s: kept in the journal, cannot be committed: %s", entry.dataset, entry.name, exc)
            entry.state, entry.problem = EntryState.REFUSED, exc
