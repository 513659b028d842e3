"""Turn a planned layout and its contents into the bytes of a TAR, and into its index on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from datas3tfs.core import tar
from datas3tfs.core.checksums import ContentChecksum
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.layout import Layout, Planned
from datas3tfs.errors import Invalid

CHUNK_SIZE = 4 * 1024 * 1024  # what is yielded at once: small datapoints are joined up to this …
_LARGE = 1024 * 1024  # … and pieces of so many bytes are handed on as they are, not copied


def compose(
    layout: Layout, content: Callable[[int], Iterable[bytes]], builder: IndexBuilder
) -> Iterator[bytes]:
    """Yield the TAR of *layout*, `layout.size` bytes in chunks; record every datapoint in *builder*.

    *content* returns the bytes of the i-th member, in any pieces. Raises Invalid, naming it, if they
    are not as many as planned: the source has changed.
    """
    pending: list[bytes] = []
    waiting = 0
    for block in _blocks(layout, content, builder):
        is_large = len(block) >= _LARGE
        if pending and (is_large or waiting >= CHUNK_SIZE):
            yield b"".join(pending)
            pending, waiting = [], 0
        if is_large:
            yield block
        else:
            pending.append(block)
            waiting += len(block)
    yield b"".join([*pending, tar.END_OF_ARCHIVE])


def _blocks(
    layout: Layout, content: Callable[[int], Iterable[bytes]], builder: IndexBuilder
) -> Iterator[bytes]:
    for number, (member, offset) in enumerate(zip(layout.members, layout.offsets, strict=True)):
        header = member.header
        yield header
        checksum = ContentChecksum()
        for data in _exactly(member, content(number)):
            checksum.update(data)
            yield data
        if padding := tar.padded(member.size) - member.size:
            yield bytes(padding)
        crc, chunk_crcs = checksum.finish()
        builder.add(
            offset=offset,
            header_blocks=len(header) // tar.BLOCK,
            size=member.size,
            mtime_ns=member.mtime_ns // 1_000_000_000 * 1_000_000_000,
            extension=member.extension,
            crc=crc,
            chunk_crcs=chunk_crcs,
        )


def _exactly(member: Planned, data: Iterable[bytes]) -> Iterator[bytes]:
    left = member.size
    for part in data:
        left -= len(part)
        if left < 0:
            break
        yield part
    if left:
        raise Invalid(f"{member.name}: its source has changed size while it was read")
