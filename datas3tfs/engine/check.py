"""Check bytes from a TAR against its index: the one place that decides that they are right."""

from __future__ import annotations

from datas3tfs.core import tar
from datas3tfs.core.checksums import CHUNK, crc32c
from datas3tfs.core.index import Entry, Index
from datas3tfs.core.reads import Piece
from datas3tfs.errors import Corrupt, Invalid


def check_header(entry: Entry, blocks: bytes) -> None:
    """Raise Corrupt unless *blocks* are the TAR headers of *entry*: its name, its size."""
    try:
        member = tar.parse_group(blocks)
    except Invalid as exc:
        raise Corrupt(f"datapoint {entry.name}: {exc}") from None
    if member.name != entry.name or member.size != entry.size or member.kind not in tar.REGULAR:
        raise Corrupt(f"datapoint {entry.name}: the TAR has another entry in its place")


def check_piece(index: Index, slot: int, entry: Entry, piece: Piece, data: memoryview) -> None:
    """Raise Corrupt unless *data* is *piece* of the datapoint: header if it has it, CRC32C if known."""
    header_length = piece.content.start - piece.span.start
    if header_length:
        check_header(entry, bytes(data[:header_length]))
    expected = entry.crc if entry.size <= CHUNK else index.chunk_crc(slot, piece.number)
    if expected is not None and crc32c(data[header_length:]) != expected:
        raise Corrupt(f"datapoint {entry.name}: content fails its checksum")
