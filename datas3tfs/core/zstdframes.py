"""zstd frames as boundaries: split a file into frames without decompressing, decompress with a limit.

RFC 8878 section 3.1. The binding can neither tell where a frame ends nor bound what an untrusted
frame expands to when its header lies; both are needed to read an index that somebody else wrote.
"""

from __future__ import annotations

import io

import zstandard

from datas3tfs.errors import Corrupt

MAGIC = b"\x28\xb5\x2f\xfd"
SKIPPABLE_MAGIC = b"\x50\x2a\x4d\x18"  # the first of the sixteen magic numbers for skippable frames
_HEADER_LIMIT = 18  # bytes of a frame's header at most
_FRAMES_LIMIT = 64  # in one file; ours has two, other writers' one or a few
_STEP = 1 << 20
_SKIPPABLE = frozenset(bytes([low]) + SKIPPABLE_MAGIC[1:] for low in range(0x50, 0x60))


def skippable_frame(payload: bytes) -> bytes:
    """Wrap *payload* so that any zstd decoder passes over it."""
    return SKIPPABLE_MAGIC + len(payload).to_bytes(4, "little") + payload


def split(data: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return (zstd frames, payloads of skippable frames) of *data*. Raises Corrupt on anything else."""
    frames: list[bytes] = []
    payloads: list[bytes] = []
    position = 0
    while position < len(data):
        if len(frames) + len(payloads) >= _FRAMES_LIMIT:
            raise Corrupt("too many zstd frames")
        magic = data[position : position + 4]
        if magic == MAGIC:
            stop = _frame_stop(data, position)
            frames.append(data[position:stop])
        elif magic in _SKIPPABLE:
            stop = position + 8 + int.from_bytes(data[position + 4 : position + 8], "little")
            payloads.append(data[position + 8 : stop])
        else:
            raise Corrupt("not a zstd frame")
        if stop > len(data):
            raise Corrupt("zstd frame is cut short")
        position = stop
    return frames, payloads


def decompress(frame: bytes, limit: int) -> bytes:
    """Return what *frame* holds. Raises Corrupt if that is damaged or more than *limit* bytes."""
    pieces: list[bytes] = []
    left = limit
    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(io.BytesIO(frame)) as reader:
            while piece := reader.read(_STEP):  # the limit may be a lie as well: never ask for all of it
                left -= len(piece)
                if left < 0:
                    raise Corrupt(f"zstd frame holds more than {limit} bytes")
                pieces.append(piece)
    except zstandard.ZstdError as exc:
        raise Corrupt(f"damaged zstd frame ({exc})") from None
    return b"".join(pieces)


def compress(data: bytes) -> bytes:
    """Return *data* as one zstd frame with content size and checksum."""
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)


def _frame_stop(data: bytes, start: int) -> int:
    """Return where the zstd frame that begins at *start* ends, by its block headers."""
    head = data[start : start + _HEADER_LIMIT]
    try:
        position = start + zstandard.frame_header_size(head)
        checksum = 4 if zstandard.get_frame_parameters(head).has_checksum else 0
    except zstandard.ZstdError as exc:
        raise Corrupt(f"damaged zstd frame ({exc})") from None
    last = False
    while not last:
        header = int.from_bytes(data[position : position + 3], "little")
        if position + 3 > len(data):
            raise Corrupt("zstd frame is cut short")
        last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        position += 3 + (1 if kind == 1 else size)  # an RLE block stores its one byte only
    return position + checksum
