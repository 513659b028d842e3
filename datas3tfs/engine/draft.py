"""The content of one uncommitted file: in memory while it is small and changing, in the log once it is
accepted, in a file of its own when it is large.

Not for names, keys or who may write when (entries.py, journal.py). The event loop alone calls, except for
`pieces`, `checksum` and `sync`, which are for worker threads and open the file for themselves: it is open
here only while somebody has the entry open (`park`), as there may be more of them than descriptors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

from datas3tfs.core.checksums import crc32c
from datas3tfs.core.journalrecords import EntryId, Place
from datas3tfs.errors import Corrupt, Forbidden, NotFound, Unavailable
from datas3tfs.ports import JournalContent, JournalStore

# Larger content gets a file of its own. 128 KiB is what the kernel writes at once, and at 99 requests in
# flight bounds what open small files cost in memory.
INLINE_LIMIT = 128 * 1024
_PIECE = 4 * 1024 * 1024
_SIZE_LIMIT = 2**48 - 1  # docs/FORMAT.md: what an index can say


class Draft:
    """Content that may still change. *place*: where the log has it; *own*: it has a file of its own."""

    __slots__ = (
        "_buffer",
        "_crc",
        "_crc_length",
        "_entry",
        "_file",
        "_is_lost",
        "_place",
        "_removed",
        "_store",
        "is_own_file",
        "size",
        "version",
    )

    def __init__(self, store: JournalStore, entry: EntryId) -> None:
        self._store = store
        self._entry = entry
        self._buffer: bytes | bytearray | None = b""  # bytes until something is changed in it
        self._place: Place | None = None
        self._file: JournalContent | None = None  # open
        self._removed = False  # the file has no name any more
        self.is_own_file = False  # whether the content is in a file of its own
        self._is_lost = False  # it could not be synced once
        self._crc = 0  # of the first `_crc_length` bytes of the file
        self._crc_length = 0
        self.size = 0
        self.version = 0  # grows with every change

    @classmethod
    def in_log(cls, store: JournalStore, entry: EntryId, place: Place) -> Draft:
        """Return the draft whose content the log has at *place*."""
        draft = cls(store, entry)
        draft.rest_in_log(place)
        return draft

    @classmethod
    def in_file(cls, store: JournalStore, entry: EntryId, size: int | None) -> Draft:
        """Return the draft whose content is in its own file: *size* bytes, None for as many as there
        are. Raises NotFound, Corrupt (shorter), Unavailable."""
        draft = cls(store, entry)
        with closing(store.open_content(entry)) as file:
            found = file.size()
        draft._buffer, draft.is_own_file = None, True
        if size is not None and found < size:
            raise Corrupt(f"the journal's content file {entry} has {found} bytes instead of {size}")
        draft.size = found if size is None else size
        return draft

    @classmethod
    def damaged(cls, store: JournalStore, entry: EntryId, size: int) -> Draft:
        """Return the draft whose own file should have *size* bytes, and is missing or shorter: it can be
        removed, and reading it fails. Never empty, so that nobody takes it for what it should be."""
        draft = cls(store, entry)
        draft._buffer, draft.is_own_file, draft.size = None, True, max(1, size)
        return draft

    @property
    def file_bytes(self) -> int:
        """Bytes it takes on disk outside of the log."""
        return self.size if self.is_own_file else 0

    def read(self, offset: int, size: int) -> bytes:
        """Return up to *size* bytes from *offset* on. Raises Unavailable."""
        size = max(0, min(size, self.size - offset))
        if self._buffer is not None:
            if size == len(self._buffer):
                return bytes(self._buffer)
            return bytes(memoryview(self._buffer)[offset : offset + size])
        if self.is_own_file:
            return self._opened().read(offset, size)
        assert self._place is not None
        return self._store.read(self._place, offset, size)

    def pieces(self) -> Iterator[bytes]:
        """Yield all of the content, in pieces. Raises NotFound, Unavailable, Corrupt (it is cut short)."""
        with ExitStack() as stack:
            read = self.read
            if self.is_own_file:
                read = stack.enter_context(closing(self._store.open_content(self._entry))).read
            for offset in range(0, self.size, _PIECE):
                size = min(_PIECE, self.size - offset)
                piece = read(offset, size)
                if len(piece) != size:
                    raise Corrupt("the journal's content is cut short")
                yield piece

    def write(self, offset: int, data: bytes) -> None:
        """Write *data* at *offset*; a gap is filled with zeros. Raises Full, Unavailable, Forbidden."""
        if not data:
            return
        stop = offset + len(data)
        if stop > _SIZE_LIMIT:
            raise Forbidden(f"a datapoint has at most {_SIZE_LIMIT} bytes")
        self.version += 1
        if stop > INLINE_LIMIT and not self.is_own_file:
            self._move_to_file()
        if self.is_own_file:
            self._write_file(self._opened(), offset, data)
        elif not self.size:
            self._buffer, self._place = bytes(offset) + data if offset else data, None
        else:
            buffer = self._in_memory()
            if offset > len(buffer):
                buffer.extend(bytes(offset - len(buffer)))
            buffer[offset:stop] = data
        self.size = max(self.size, stop)

    def truncate(self, size: int) -> None:
        """Cut it to *size* bytes, or fill it up with zeros. Raises Full, Unavailable, Forbidden."""
        if size > _SIZE_LIMIT:
            raise Forbidden(f"a datapoint has at most {_SIZE_LIMIT} bytes")
        self.version += 1
        if size > INLINE_LIMIT and not self.is_own_file:
            self._move_to_file()
        if self.is_own_file:
            self._forget_crc(size)
            if size > self.size:
                self._opened().truncate(self.size)
            self._opened().truncate(size)
        else:
            buffer = self._in_memory()
            del buffer[size:]
            buffer.extend(bytes(size - len(buffer)))
        self.size = size

    def inline_content(self) -> bytes | None:
        """Return the content if it belongs into the log, None if it has a file of its own."""
        return None if self.is_own_file else self.read(0, self.size)

    def rest_in_log(self, place: Place) -> None:
        """The log has the content now: memory need not."""
        self._buffer, self._place, self.size = None, place, place.size

    def known_crc(self) -> int | None:
        """Return the CRC32C of the content if that needs no reading: written from begin to end, or empty."""
        return self._crc if self._crc_length == self.size else None

    def checksum(self) -> int:
        """Return the CRC32C of all of the content, by reading it. Blocks: for a worker thread."""
        crc = 0
        for piece in self.pieces():
            crc = crc32c(piece, crc)
        return crc

    def learn_crc(self, crc: int) -> None:
        """Remember the CRC32C of the content as it is now."""
        self._crc, self._crc_length = crc, self.size

    def sync(self) -> None:
        """Make a file of its own survive a loss of power. Blocks: for a worker thread."""
        if self._is_lost:
            raise Unavailable(f"the disk lost a part of the journal's content file {self._entry}")
        if self.is_own_file:
            with closing(self._store.open_content(self._entry)) as file:
                try:
                    file.sync()
                except Unavailable:
                    # The kernel says it once, and forgets what it could not write: a second call would
                    # succeed.
                    self._is_lost = True
                    raise

    def park(self) -> None:
        """Nobody has it open: a descriptor is not needed."""
        if self._file is not None and not self._removed:
            self._file.close()
            self._file = None

    def moved_in_log(self, old: Place, new: Place) -> None:
        """The log has the content of *old* at *new* now."""
        if self._place == old:
            self._place = new

    def detach(self) -> None:
        """Take the content off the disk while somebody may still read (and, unlinked, write) it."""
        if self.is_own_file:
            self._remove_file()
        else:
            self._in_memory()

    def close(self) -> None:
        """Take the content off the disk and give everything back; nothing can be read any more. *size* stays:
        the kernel may still ask for it."""
        if self.is_own_file:
            with suppress(NotFound):  # it was lost
                self._remove_file()
                self._opened().close()
        self._buffer, self._place, self._file, self.is_own_file = b"", None, None, False

    def _remove_file(self) -> None:
        if not self._removed:
            self._opened().remove()
            self._removed = True

    def _opened(self) -> JournalContent:
        if self._file is None:
            self._file = self._store.open_content(self._entry)
        return self._file

    def _in_memory(self) -> bytearray:
        if self._buffer is None:
            assert self._place is not None
            self._buffer, self._place = self._store.read(self._place, 0, self._place.size), None
        if not isinstance(self._buffer, bytearray):
            self._buffer = bytearray(self._buffer)
        return self._buffer

    def _move_to_file(self) -> None:
        content = self.read(0, self.size)
        file = self._store.create_content(self._entry)
        try:
            file.write(0, content)
        except BaseException:
            file.remove()
            file.close()
            raise
        self._file, self.is_own_file, self._buffer, self._place = file, True, None, None
        self._crc, self._crc_length = crc32c(content), len(content)

    def _write_file(self, file: JournalContent, offset: int, data: bytes) -> None:
        self._forget_crc(offset)
        if offset > self.size:
            file.truncate(self.size)  # a write that failed may have left something there
        file.write(offset, data)
        if offset == self._crc_length:
            self._crc, self._crc_length = crc32c(data, self._crc), offset + len(data)

    def _forget_crc(self, offset: int) -> None:
        """What is at *offset* and behind changes, perhaps half of it only."""
        if offset < self._crc_length:
            self._crc = self._crc_length = 0
