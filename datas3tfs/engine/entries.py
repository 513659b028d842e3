"""The table of uncommitted files: by name, by key in order, by number. Lookups only; what happens to an
entry is journal.py's and committer.py's business. Nothing here waits.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

import trio

from datas3tfs.core.journalrecords import EntryId, Place
from datas3tfs.core.model import DatasetId
from datas3tfs.core.names import is_temporary, parse_datapoint_name
from datas3tfs.core.spans import Span
from datas3tfs.engine.draft import Draft
from datas3tfs.errors import Datas3tError


class EntryState(enum.Enum):
    """How far an entry has come; the words that people see."""

    JOURNALED = "journaled"
    COMMITTING = "committing"
    COMMITTED = "committed"
    REFUSED = "refused"  # it cannot be committed as things are; kept


@dataclass(frozen=True, slots=True)
class Safe:
    """What the last Accepted record of an entry says: what the next process would find."""

    place: Place
    inline: bool  # the content is in the record
    size: int
    crc: int | None
    mtime_ns: int


@dataclass(slots=True, eq=False)
class Entry:
    """An uncommitted file. It stays an object while anybody has it open, whatever becomes of it."""

    id: EntryId
    dataset_id: DatasetId
    dataset: str  # its name
    name: str
    draft: Draft
    mtime_ns: int
    linked: bool = True  # it has a name; False: unlinked, or never got one
    safe: Safe | None = None  # None: not accepted yet
    changed: bool = True  # there is something that the accepted record does not say
    synced: bool = (
        False  # a loss of power may leave the accepted record, and a content file of its own as it is
    )
    is_doubtful: bool = False  # a lost record may have said otherwise than its own
    busy: int = 0  # how many are at it in a way that forbids to begin a commit
    writers: int = 0  # handles that may write
    handles: int = 0  # all handles
    room: int = 0  # bytes that the quota counts for it
    quiet_since: float = 0.0  # when it was last accepted or released by a writer
    state: EntryState = EntryState.JOURNALED
    problem: Datas3tError | None = None  # why it is refused, or what the last attempt failed of
    key: int | None = None  # None: a temporary name
    extension: str = ""
    waiters: list[trio.Event] = field(default_factory=list)  # of the end of the next attempt

    def __post_init__(self) -> None:
        self.call(self.dataset_id, self.dataset, self.name)

    @property
    def size(self) -> int:
        """Bytes of content."""
        return self.draft.size

    @property
    def is_committable(self) -> bool:
        """Whether it can be committed as it is: safe, a datapoint, nothing in the way."""
        return (
            self.linked
            and self.key is not None
            and self.safe is not None
            and not self.changed
            and not self.busy
            and self.state is EntryState.JOURNALED
        )

    def wake(self) -> None:
        """Let those who wait for an attempt's end look again."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.set()

    def call(self, dataset_id: DatasetId, dataset: str, name: str) -> None:
        """Give it a (valid) name."""
        self.dataset_id, self.dataset, self.name = dataset_id, dataset, name
        self.key, self.extension = None, ""
        if not is_temporary(name):
            parsed = parse_datapoint_name(name)
            self.key, self.extension = parsed.key, parsed.extension


@dataclass(slots=True, eq=False)
class OpenEntry:
    """A handle on an entry."""

    entry: Entry
    writable: bool
    synchronous: bool = False  # opened with O_SYNC or O_DSYNC: the kernel sends an fsync after every write
    owes_sync: bool = False  # … and that of the last write has not come yet


class Entries:
    """All linked entries."""

    def __init__(self) -> None:
        self._by_id: dict[EntryId, Entry] = {}
        self._by_name: dict[tuple[DatasetId, str], Entry] = {}
        self._by_key: dict[tuple[DatasetId, int], Entry] = {}
        self._keys: dict[DatasetId, list[int]] = {}
        self._temporaries: dict[DatasetId, list[EntryId]] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Entry]:
        return iter(list(self._by_id.values()))

    def with_id(self, entry_id: EntryId) -> Entry | None:
        """Return the linked entry with that number."""
        return self._by_id.get(entry_id)

    def named(self, dataset_id: DatasetId, name: str) -> Entry | None:
        """Return the entry of that name."""
        return self._by_name.get((dataset_id, name))

    def at_key(self, dataset_id: DatasetId, key: int) -> Entry | None:
        """Return the datapoint with that key, whatever its extension."""
        return self._by_key.get((dataset_id, key))

    def datasets(self) -> list[DatasetId]:
        """Return the datasets that have datapoints here."""
        return list(self._keys)

    def is_empty(self, dataset_id: DatasetId) -> bool:
        """Say whether a dataset has nothing here."""
        return dataset_id not in self._keys and dataset_id not in self._temporaries

    def next_key(self, dataset_id: DatasetId, start: int) -> int | None:
        """Return the first key from *start* on."""
        keys = self._keys.get(dataset_id, [])
        at = bisect_left(keys, start)
        return keys[at] if at < len(keys) else None

    def count(self, dataset_id: DatasetId, keys: Span) -> int:
        """Return how many of *keys* have an entry."""
        taken = self._keys.get(dataset_id, [])
        return bisect_left(taken, keys.stop) - bisect_left(taken, keys.start)

    def in_order(self, dataset_id: DatasetId) -> list[Entry]:
        """Return a dataset's datapoints, ascending by key."""
        return [self._by_key[dataset_id, key] for key in self._keys.get(dataset_id, ())]

    def temporaries(self, dataset_id: DatasetId, start: int) -> list[Entry]:
        """Return the entries with temporary names whose number is *start* or more, in order of numbers."""
        numbers = self._temporaries.get(dataset_id, [])
        return [self._by_id[number] for number in numbers[bisect_left(numbers, start) :]]

    def add(self, entry: Entry) -> None:
        """Put an entry in under its name, which is free."""
        self._by_id[entry.id] = entry
        self._by_name[entry.dataset_id, entry.name] = entry
        if entry.key is None:
            insort(self._temporaries.setdefault(entry.dataset_id, []), entry.id)
        else:
            self._by_key[entry.dataset_id, entry.key] = entry
            insort(self._keys.setdefault(entry.dataset_id, []), entry.key)

    def remove(self, entry: Entry) -> None:
        """Take an entry out; its name is free then."""
        del self._by_id[entry.id], self._by_name[entry.dataset_id, entry.name]
        if entry.key is None:
            _take(self._temporaries, entry.dataset_id, entry.id)
        else:
            del self._by_key[entry.dataset_id, entry.key]
            _take(self._keys, entry.dataset_id, entry.key)


def _take(
    lists: dict[DatasetId, list[int]] | dict[DatasetId, list[EntryId]], of: DatasetId, number: int
) -> None:
    numbers = lists[of]
    del numbers[bisect_left(numbers, number)]
    if not numbers:
        del lists[of]
