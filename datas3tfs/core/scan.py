"""Walk through a TAR, in one pass and flat memory, and learn where every datapoint lies.

`scan` takes the archive as chunks of any length and yields its datapoints in order; each comes after
its content has been checksummed. Directories and harmless global headers are skipped. All else that
is not a regular file with a datapoint's name, in key order without gap, is refused by name, because
what is skipped silently is lost silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from datas3tfs.core import tar
from datas3tfs.core.checksums import ContentChecksum
from datas3tfs.core.names import DatapointName, parse_datapoint_name, printable
from datas3tfs.errors import Invalid

# A global PAX header with one of these changes what later headers mean.
_GLOBAL_REFUSED = ("path", "size", "linkpath", "GNU.sparse", "hdrcharset")


@dataclass(frozen=True, slots=True)
class Scanned:
    """One datapoint as it lies in the archive. *offset* is that of its first header block."""

    name: DatapointName
    offset: int
    header_blocks: int
    size: int
    mtime_ns: int
    crc: int
    chunk_crcs: list[int]


def scan(chunks: Iterable[bytes]) -> Iterator[Scanned]:
    """Yield the datapoints of the TAR in *chunks*, in key order without gap.

    Raises Invalid, naming the entry, for anything that may not become a datarange: foreign names,
    links, devices, sparse files, keys out of order, duplicates, gaps, a cut or damaged archive, data
    after its end, or no datapoint at all.
    """
    source = _Source(chunks)
    expected: int | None = None
    while (found := _next_member(source)) is not None:
        offset, member = found
        name = _check_member(member, expected)
        checksum = ContentChecksum()
        for part in source.consume(member.size):
            checksum.update(part)
        source.skip(tar.padded(member.size) - member.size)
        whole, chunk_crcs = checksum.finish()
        yield Scanned(name, offset, member.header_blocks, member.size, member.mtime_ns, whole, chunk_crcs)
        expected = name.key + 1
    if expected is None:
        raise Invalid("the archive holds no datapoint")


class HeadersGoOn(Invalid):
    """The headers of a datapoint go on behind where they should end."""


def read_headers(blocks: bytes, start: int, key: int) -> tuple[int, tar.Member, DatapointName]:
    """Return (offset, member, name) of datapoint *key*, whose headers end with *blocks*; these begin at
    byte *start* with whatever may be skipped. Raises Invalid, and HeadersGoOn."""
    source = _Source([blocks], start)
    try:
        found = _next_member(source)
    except _Cut:
        raise HeadersGoOn(f"the headers before byte {start + len(blocks)} go on behind it") from None
    if found is None:
        raise Invalid(f"the archive ends before byte {start + len(blocks)}, where key {key} should be")
    offset, member = found
    if source.offset != start + len(blocks):
        raise Invalid(f"{printable(member.name)}: its content begins at byte {source.offset} already")
    return offset, member, _check_member(member, key)


def check_end(blocks: bytes, start: int) -> None:
    """Raise Invalid unless *blocks*, from byte *start* on, are the end of an archive: at least one zero
    block, nothing but zeros behind it, and before it what may be skipped."""
    found = _next_member(_Source([blocks], start))
    if found is not None:
        raise Invalid(f"{printable(found[1].name)}: is behind the last datapoint, at byte {found[0]}")


def _next_member(source: _Source) -> tuple[int, tar.Member] | None:
    """Return (offset, member) of the next regular file, None at the end of the archive."""
    extended: list[tuple[int, bytes]] = []
    start = source.offset
    is_awaited = False  # the header that an extended or global one is for: Python's tarfile wants one, too
    while True:
        block = source.take(tar.BLOCK)
        if block == tar.ZERO_BLOCK:
            if is_awaited:
                raise Invalid("the archive ends after an extended header")
            _check_end(source)
            return None
        header = _parse_header(block, source.offset - tar.BLOCK)
        is_awaited = header.kind in tar.EXTENDED
        if header.kind == tar.PAX_GLOBAL:
            _check_global(_extended_data(source, header, start))
            start = source.offset if not extended else start
        elif header.kind in tar.EXTENDED:
            extended.append((header.kind, _extended_data(source, header, start)))
        else:
            member = tar.resolve(header, extended, (source.offset - start) // tar.BLOCK)
            if header.kind != tar.DIRECTORY:
                return start, member
            if (
                member.size
            ):  # POSIX means a limit by that, GNU tar skips it: where the next entry is, who knows
                raise Invalid(f"{printable(member.name)}: is a directory with a size, at byte {start}")
            extended, start = [], source.offset


def _parse_header(block: bytes, offset: int) -> tar.Header:
    try:
        return tar.parse_header(block)
    except Invalid as exc:
        raise Invalid(f"{exc} at byte {offset}") from None


def _extended_data(source: _Source, header: tar.Header, start: int) -> bytes:
    """Return the data of an extended header; *start* is where its member's first one begins."""
    if source.offset - start + tar.padded(header.size) > tar.EXTENDED_LIMIT:
        raise Invalid(f"{printable(header.name)}: extended headers are too large, at byte {start}")
    data = source.take(header.size)
    source.skip(tar.padded(header.size) - header.size)
    return data


def _check_member(member: tar.Member, expected: int | None) -> DatapointName:
    if member.kind not in tar.REGULAR:
        kind = tar.KINDS.get(member.kind, f"entry of type {member.kind:#x}")
        raise Invalid(f"{printable(member.name)}: is a {kind}, only regular files can be datapoints")
    if member.header_blocks > 0xFFFF or member.size >= 1 << 48:
        raise Invalid(f"{printable(member.name)}: too large for the index")
    name = parse_datapoint_name(member.name)
    if expected is not None and name.key != expected:
        raise Invalid(
            f"{printable(member.name)}: is {_misplacement(name.key, expected)}, expected key {expected}"
        )
    return name


def _misplacement(key: int, expected: int) -> str:
    if key == expected - 1:
        return "a duplicate"
    return "out of order" if key < expected else "after a gap"


def _check_global(data: bytes) -> None:
    for key in tar.parse_pax(data):
        if key.startswith(_GLOBAL_REFUSED):
            raise Invalid(f"global PAX header sets {printable(key)}, which cannot be indexed")


def _check_end(source: _Source) -> None:
    """After the first zero block nothing but zeros may follow, as padding of any record size."""
    while rest := source.some():
        if rest.strip(b"\0"):
            raise Invalid(f"data after the end of the archive, before byte {source.offset}")


class _Cut(Invalid):
    """The archive ends too early."""


class _Source:
    """The chunks as one stream of bytes that knows how far it has been read."""

    def __init__(self, chunks: Iterable[bytes], offset: int = 0) -> None:
        self._chunks = iter(chunks)
        self._chunk = b""
        self._position = 0
        self.offset = offset

    def take(self, size: int) -> bytes:
        """Return exactly *size* bytes. Raises Invalid if the archive ends before."""
        end = self._position + size
        if end <= len(self._chunk):
            data = self._chunk[self._position : end]
            self._position = end
            self.offset += size
            return data
        return b"".join(self.consume(size))

    def consume(self, size: int) -> Iterator[bytes]:
        """Yield the next *size* bytes piecewise. Raises Invalid if the archive ends before."""
        while size:
            if self._position == len(self._chunk):
                self._chunk, self._position = next(self._chunks, b""), 0
                if not self._chunk:
                    raise _Cut(f"the archive is cut short at byte {self.offset}")
            part = self._chunk[self._position : self._position + size]
            self._position += len(part)
            self.offset += len(part)
            size -= len(part)
            yield part

    def skip(self, size: int) -> None:
        """Read past *size* bytes."""
        for _ in self.consume(size):
            pass

    def some(self) -> bytes:
        """Return whatever comes next, b"" at the end."""
        part = self._chunk[self._position :] or next(self._chunks, b"")
        self._chunk, self._position = b"", 0
        self.offset += len(part)
        return part
