"""A journal's directory, opened: `lock`, `identity.json`, `reserve`, segments in `log/`, files in `content/`.

Blocking calls, all of them short but `sync` and `JournalContent.sync`. One thread calls the methods here,
except `read`, `sync` and `free_bytes`, which any number of worker threads may call at the same time, also
while the one appends, drops (a record being read is read to its end, or found to be gone) and closes.
Content files are for any thread, see contents.py. Not for what the records mean: that is the engine's.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from datas3tfs.core.journalrecords import Accepted, EntryId, Place, Record
from datas3tfs.core.model import HolderId
from datas3tfs.errors import Corrupt, Full, NotFound, Unavailable
from datas3tfs.journal.contents import DiskContent, content_entries, content_path
from datas3tfs.journal.files import DIRECTORY_MODE, failing, sync_directory
from datas3tfs.journal.identity import Identity, check_installation, create_identity, read_identity
from datas3tfs.journal.locking import locked, owner_of
from datas3tfs.journal.log import Log
from datas3tfs.journal.reserve import Reserve
from datas3tfs.journal.segments import SEGMENT_BYTES, find_segments
from datas3tfs.journal.syncing import Unsynced

_LOG, _CONTENT, _RESERVE = "log", "content", "reserve"


class DiskJournal:
    """Implements ports.JournalStore; made by `open_journal`."""

    def __init__(
        self, directory: Path, identity: Identity, segment_bytes: int, *, read_only: bool, owner: str | None
    ) -> None:
        self.owner = owner  # the process that has it, if that is another (then it is open for reading only)
        self._directory = directory
        self._contents = directory / _CONTENT
        self._identity = identity
        self._read_only = read_only
        self._reserve = Reserve(str(directory / _RESERVE))
        self._unsynced = Unsynced([], [str(self._contents)])
        self._log = Log(directory / _LOG, identity.holder, segment_bytes, self._unsynced, read_only=read_only)

    @property
    def holder(self) -> HolderId:
        """The journal's name for ever, under which it holds leases."""
        return self._identity.holder

    @property
    def installation(self) -> str:
        """The installation whose datasets its files are in."""
        return self._identity.installation

    @property
    def place(self) -> str:
        """Where it is, for people: "host:/directory"."""
        return place_of(self._directory)

    @property
    def log_bytes(self) -> int:
        """Bytes of the log on disk, live or not."""
        return self._log.bytes

    def records(self) -> Iterator[tuple[Record, Place]]:
        """Yield all records found when it was opened, oldest first, each with the place it occupies, and
        without inline content. To be read to the end before anything is appended. Raises Invalid (newer
        format), Unavailable."""
        return self._log.records()

    def damaged(self) -> list[str]:
        """Return the parts of the log that records are missing from. To be asked after a replay."""
        return self._log.damaged()

    def has_gaps(self) -> bool:
        """Say whether records are missing, from the log or from what was put aside of it as damaged. To be
        asked after a replay. Raises Unavailable."""
        return self._log.has_gaps()

    def may_be_outdated(self, record: Accepted, place: Place) -> bool:
        """Say whether a record is missing that may have replaced *record*, or undone it: one behind *place*,
        where the log says it for the last time. To be asked after a replay."""
        return self._log.may_be_outdated(record, place)

    def append(self, record: Record) -> Place:
        """Append a record; return its place. Raises Full, Unavailable; the log is as before then.
        Raises Invalid if the record cannot be written. A full disk is kept from files first: what
        else there is to write finds room in the reserve."""
        self._writable()
        is_file = isinstance(record, Accepted)
        if is_file and not self._reserve.is_there:
            self._reserve.make()
        try:
            return self._log.append(record)
        except Full:
            if is_file or not self._reserve.is_there:
                raise
            self._reserve.release()
            return self._log.append(record)

    def read(self, place: Place, offset: int, size: int) -> bytes:
        """Return up to *size* bytes of the content inside the record at *place*, from *offset* on; fewer
        only at the end. Raises Corrupt (it is cut short), Unavailable."""
        return self._log.read(place, offset, size)

    def drop(self, place: Place) -> None:
        """Say that the Accepted record at *place* is not needed any more; saying it again is harmless."""
        self._log.drop(place)

    def oldest(self) -> int | None:
        """Return the number of the oldest segment that only needed records keep on disk, or None."""
        return self._log.oldest()

    def create_content(self, entry: EntryId) -> DiskContent:
        """Make the (empty) content file of an entry. Raises Full, Unavailable (there is one already)."""
        self._writable()
        content = DiskContent(content_path(self._contents, entry), os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._unsynced.add_directory(str(self._contents))
        return content

    def open_content(self, entry: EntryId) -> DiskContent:
        """Open the content file of an entry. Raises NotFound, Unavailable."""
        return DiskContent(content_path(self._contents, entry), os.O_RDONLY if self._read_only else os.O_RDWR)

    def contents(self) -> list[EntryId]:
        """Return which entries have a content file, ascending. Raises Unavailable."""
        return content_entries(self._contents)

    def free_bytes(self) -> int:
        """Return how many bytes its disk has left for us. Raises Unavailable."""
        with failing(self._directory):
            told = os.statvfs(self._directory)
        return told.f_bavail * told.f_frsize

    def sync(self) -> None:
        """Make all that was appended survive a loss of power, and the names of content files; their
        bytes are JournalContent.sync's. Blocks for long. Raises Full, Unavailable."""
        self._writable()
        self._log.promise()
        self._unsynced.sync()

    def close(self) -> None:
        """Close the log; content files are closed one by one."""
        self._log.close()

    def _writable(self) -> None:
        if self._read_only:
            raise Unavailable(f"{self._directory}: the journal is open for reading only")


def place_of(directory: Path) -> str:
    """Return where the journal in *directory* is, for people: "host:/directory"."""
    return f"{os.uname().nodename}:{directory}"


@contextmanager
def open_journal(
    directory: Path,
    installation: str | None,
    *,
    read_only: bool = False,
    segment_bytes: int = SEGMENT_BYTES,
) -> Iterator[DiskJournal]:
    """Open the journal in *directory*, made if there is none, for this process alone.

    *installation* is the catalog's, or None not to check it; then there must be a journal. *read_only*:
    changes nothing, not even what is half done, and takes no lock; who has it is `owner`, and what that
    process does meanwhile may be seen or not. Blocks for as long as a few files take. Raises NotFound,
    Conflict (in use), Invalid (of another installation, newer format), Corrupt, Full, Unavailable.
    """
    directory = directory.resolve()
    with ExitStack() as stack:
        if read_only:
            identity = read_identity(directory)
            owner = owner_of(directory)
        else:
            if installation is not None:
                _make(directory)
            _check_owner(directory)
            stack.enter_context(locked(directory))
            identity, owner = _identity(directory, installation), None
            _make(directory / _LOG)
            _make(directory / _CONTENT)
        if installation is not None:
            check_installation(directory, identity, installation)
        journal = DiskJournal(directory, identity, segment_bytes, read_only=read_only, owner=owner)
        stack.callback(journal.close)
        yield journal


def _identity(directory: Path, installation: str | None) -> Identity:
    try:
        return read_identity(directory)
    except NotFound:
        if find_segments(directory / _LOG) or content_entries(directory / _CONTENT):
            raise Corrupt(f"{directory}: there is a journal, but its identity.json is missing") from None
        if installation is None:
            raise
        return create_identity(directory, installation)


def _make(directory: Path) -> None:
    """Make a directory of ours, that nobody else may look into."""
    with failing(directory):
        missing = [path for path in (directory, *directory.parents) if not path.is_dir()]
        directory.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
        for path in reversed(missing):  # each is a name in the one above
            sync_directory(path.parent)
    _check_owner(directory)


def _check_owner(directory: Path) -> None:
    with failing(directory):
        try:
            found = os.lstat(directory)
        except FileNotFoundError:
            raise NotFound(f"{directory}: there is no journal") from None
        if not stat.S_ISDIR(found.st_mode):
            raise Unavailable(f"{directory}: not a directory")
        if found.st_uid != os.geteuid():
            raise Unavailable(
                f"{directory}: the journal belongs to another user; choose another --journal-dir"
            )
        os.chmod(directory, DIRECTORY_MODE)
