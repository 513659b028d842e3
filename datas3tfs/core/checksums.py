"""CRC32C (Castagnoli, RFC 3720 appendix B.4) of buffers, in the pieces the index records.

google-crc32c takes nothing but bytes objects, so views are copied; callers keep them small.
"""

from __future__ import annotations

import google_crc32c

# Content of a datapoint is checksummed in chunks of this many bytes, so that a read in the middle of
# a large datapoint can be checked without reading all of it. 256 KiB: two of the kernel's largest
# reads, and 16 bytes of checksums per MiB.
CHUNK = 256 * 1024


def crc32c(data: bytes | memoryview, crc: int = 0) -> int:
    """Return the CRC32C of what *crc* covered before, followed by *data*."""
    return int(google_crc32c.extend(crc, data if isinstance(data, bytes) else bytes(data)))


def chunk_count(size: int) -> int:
    """Return how many chunk checksums a datapoint of *size* bytes has: none if it fits into one chunk."""
    return 0 if size <= CHUNK else -(-size // CHUNK)


class ContentChecksum:
    """Running CRC32C of one datapoint's content: of the whole and, beyond one chunk, of every chunk."""

    __slots__ = ("_chunk_crc", "_chunk_left", "chunks", "whole")

    def __init__(self) -> None:
        self.whole = 0
        self.chunks: list[int] = []
        self._chunk_crc = 0
        self._chunk_left = CHUNK

    def update(self, data: bytes | memoryview) -> None:
        """Take in the next bytes of the content."""
        view = memoryview(data)
        while len(view):
            part = bytes(view[: self._chunk_left])
            view = view[len(part) :]
            self.whole = crc32c(part, self.whole)
            self._chunk_crc = crc32c(part, self._chunk_crc)
            self._chunk_left -= len(part)
            if not self._chunk_left:
                self._close_chunk()

    def finish(self) -> tuple[int, list[int]]:
        """Return (CRC of the whole, CRCs of the chunks); the list is empty for one chunk or less."""
        if self._chunk_left != CHUNK:
            self._close_chunk()
        return self.whole, self.chunks if len(self.chunks) > 1 else []

    def _close_chunk(self) -> None:
        self.chunks.append(self._chunk_crc)
        self._chunk_crc, self._chunk_left = 0, CHUNK
