"""What the engine needs of the local disk to keep accepted files on. Nothing here is a coroutine: a local
write takes less time than a switch to a thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from datas3tfs.core.journalrecords import Accepted, EntryId, Place, Record
from datas3tfs.core.model import HolderId


class JournalContent(Protocol):
    """The content of one uncommitted file, in a file of its own. Not coroutines; see JournalStore."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of *data*. Raises Full, Unavailable; a part may have been written."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Return up to *size* bytes; fewer only at the end. Raises Unavailable."""
        ...

    def truncate(self, size: int) -> None:
        """Make it *size* bytes long; new bytes are zeros. Raises Full, Unavailable."""
        ...

    def size(self) -> int:
        """Return its length in bytes."""
        ...

    def sync(self) -> None:
        """Make it survive a loss of power. Blocks for long: call it in a thread. Raises Unavailable."""
        ...

    def remove(self) -> None:
        """Take it off the disk; it stays readable and writable until closed."""
        ...

    def close(self) -> None:
        """Close it; nothing may be called any more."""
        ...


class JournalStore(Protocol):
    """A journal's directory: a log of records, and files for large content. Exclusive to one process.

    Nothing here is a coroutine: a call is a few system calls on local files. `append` returns when the
    record would survive SIGKILL; only `sync` blocks for long, to make it survive a loss of power.
    """

    @property
    def holder(self) -> HolderId:
        """The journal's name for ever, under which it holds leases."""
        ...

    @property
    def place(self) -> str:
        """Where it is, for people: "host:/directory"."""
        ...

    @property
    def log_bytes(self) -> int:
        """Bytes of the log on disk, live or not."""
        ...

    def records(self) -> Iterator[tuple[Record, Place]]:
        """Yield all records found when it was opened, oldest first, each with the place it occupies.
        Accepted records come without their inline content: `read` has it if the place is as long as the
        file. To be read to its end before anything is appended."""
        ...

    def has_gaps(self) -> bool:
        """Say whether records are missing, from the log or from what was put aside of it as damaged. To be
        asked after `records`. Raises Unavailable."""
        ...

    def may_be_outdated(self, record: Accepted, place: Place) -> bool:
        """Say whether a record is missing that may have replaced *record*, or undone it: one behind *place*,
        where the log says it for the last time. To be asked after `records`."""
        ...

    def append(self, record: Record) -> Place:
        """Append a record; return its place. Raises Full, Unavailable, Invalid (out of the format's range);
        the log is as before then."""
        ...

    def read(self, place: Place, offset: int, size: int) -> bytes:
        """Return up to *size* bytes of the content inside the Accepted record at *place*, from *offset*
        on; fewer only at the end. Raises Corrupt (it is cut short), Unavailable."""
        ...

    def drop(self, place: Place) -> None:
        """Say that the Accepted record at *place* is not needed any more. The oldest segments are
        deleted as soon as nothing in them is."""
        ...

    def oldest(self) -> int | None:
        """Return the number of the oldest segment that only records still needed keep on disk, the one
        being appended to excepted: append those again, drop the old places, and it goes."""
        ...

    def create_content(self, entry: EntryId) -> JournalContent:
        """Make the (empty) content file of an entry. Raises Full, Unavailable."""
        ...

    def open_content(self, entry: EntryId) -> JournalContent:
        """Open the content file of an entry. Raises NotFound, Unavailable."""
        ...

    def contents(self) -> list[EntryId]:
        """Return which entries have a content file."""
        ...

    def free_bytes(self) -> int:
        """Return how many bytes its disk has left for us."""
        ...

    def sync(self) -> None:
        """Make all that was appended survive a loss of power. Blocks for long: call it in a thread.
        Raises Unavailable."""
        ...
