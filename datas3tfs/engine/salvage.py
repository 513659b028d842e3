"""Reading accepted files out of a journal that nobody serves, as they are: the directory is all that takes.

Nothing is changed, and no file stays open. Blocking calls, for commands and worker threads; not for a
journal that is being written (engine/journal.py), though looking into one does no harm.
"""

from __future__ import annotations

from collections.abc import Iterator

from datas3tfs.core.checksums import crc32c
from datas3tfs.engine.recovery import Found
from datas3tfs.errors import Corrupt
from datas3tfs.ports import JournalStore

_PIECE = 1024 * 1024


def stored_size(store: JournalStore, found: Found) -> int:
    """Return how many bytes there are of a file: as many as its record says, unless that was being changed.

    Raises NotFound (its content is missing), Corrupt (cut short), Unavailable.
    """
    says = found.says
    if found.inline:
        return says.size
    content = store.open_content(says.entry)
    try:
        size = content.size()
    finally:
        content.close()
    if says.crc is not None and size < says.size:
        raise Corrupt(f"{size} bytes are left of {says.size}")
    return size if says.crc is None else says.size


def pieces(store: JournalStore, found: Found) -> Iterator[bytes]:
    """Yield the content of a file in pieces, all that is there.

    Raises NotFound, Unavailable; and Corrupt, after the last piece, if it is not what was accepted.
    """
    says, crc, offset = found.says, 0, 0
    content = None if found.inline else store.open_content(says.entry)
    size = None if content is not None and says.crc is None else says.size
    try:
        while size is None or offset < size:
            wanted = _PIECE if size is None else min(_PIECE, size - offset)
            piece = (
                store.read(found.place, offset, wanted) if content is None else content.read(offset, wanted)
            )
            if not piece:
                break
            crc, offset = crc32c(piece, crc), offset + len(piece)
            yield piece
    finally:
        if content is not None:
            content.close()
    if size is not None and offset < size:
        raise Corrupt(f"{offset} bytes are left of {size}")
    if says.crc not in (None, crc):
        raise Corrupt("its CRC32C is not the one recorded")


def check(store: JournalStore, found: Found) -> None:
    """Read a file's content. Raises NotFound, Corrupt, Unavailable."""
    for _ in pieces(store, found):
        pass
