"""TAR headers: parse what any writer makes, build what we write.

Read: POSIX ustar and PAX (POSIX.1-2017, pax "Interchange Format"), old V7, GNU (long names, base-256
numbers) as described in GNU tar's manual, "Basic Tar Format". Written: ustar, with a PAX header only
where a value does not fit. What has several headers is a *group*: extended headers with their data
blocks, then the member's own header. Not here: walking through an archive (scan).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from datas3tfs.core.names import printable
from datas3tfs.errors import Invalid

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
ZERO_BLOCK = bytes(BLOCK)
# Most that may come before a member's own header: a path, a few PAX records. Linux paths end at 4 KiB;
# Python's tarfile has no limit, libarchive 1 MiB for one of them, and so have we for all of a member's:
# a hostile size must not become our memory.
EXTENDED_LIMIT = 1 << 20

REGULAR = frozenset(b"0\x007")
DIRECTORY = ord("5")
PAX = frozenset(b"xX")
PAX_GLOBAL = ord("g")
GNU_LONG_NAME = ord("L")
GNU_LONG_LINK = ord("K")
EXTENDED = PAX | {PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK}
KINDS = {
    ord("1"): "hard link",
    ord("2"): "symbolic link",
    ord("3"): "character device",
    ord("4"): "block device",
    ord("6"): "FIFO",
    ord("S"): "sparse file",
    ord("M"): "continuation of another volume",
    ord("V"): "volume label",
    ord("D"): "GNU dump directory",
}

_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_OCTAL_LIMIT = 8**11  # eleven octal digits in size and mtime
# Times beyond are refused: in nanoseconds they would not fit 64 bits. Reached in the year 2261.
TIME_LIMIT = 9_200_000_000
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Header:
    """One 512-byte header block. *size* counts the bytes of data that follow it."""

    name: str
    size: int
    mtime_ns: int
    kind: int  # the type flag byte


@dataclass(frozen=True, slots=True)
class Member:
    """A whole group of headers, resolved: what the archive says about one member."""

    name: str
    size: int
    mtime_ns: int
    kind: int
    header_blocks: int


def padded(size: int) -> int:
    """Return *size* rounded up to whole blocks, in bytes."""
    return -(-size // BLOCK) * BLOCK


def parse_header(block: bytes) -> Header:
    """Parse one non-zero header block. Raises Invalid if it is none (wrong checksum, wrong numbers)."""
    if len(block) != BLOCK:
        raise Invalid("TAR header is cut short")
    _check_sum(block)
    fields = _FIELDS.unpack(block)
    name = _text(fields[0])
    if fields[9] == b"ustar\x0000" and (prefix := _text(fields[14])):
        name = f"{prefix}/{name}"
    kind = fields[7][0]
    if kind == 0 and name.endswith("/"):
        kind = DIRECTORY  # V7 had no type for it
    return Header(name, _number(fields[4], "size"), _number(fields[5], "mtime", signed=True) * _SECOND, kind)


def resolve(header: Header, extended: list[tuple[int, bytes]], header_blocks: int) -> Member:
    """Apply the *extended* headers (type flag, data) that came before *header*.

    Raises Invalid for sparse files in any dialect: their stored bytes are not their content.
    """
    name, size, mtime_ns = header.name, header.size, header.mtime_ns
    for kind, data in extended:
        if kind == GNU_LONG_NAME:
            name = _text(data)
        elif kind in PAX:
            records = parse_pax(data)
            if any(key.startswith("GNU.sparse") for key in records) or "SCHILY.realsize" in records:
                raise Invalid(f"{printable(records.get('path', name))}: sparse entries are not supported")
            name = records.get("path", name)
            size = _decimal(records["size"], "size") if "size" in records else size
            mtime_ns = parse_pax_time(records["mtime"]) if "mtime" in records else mtime_ns
    return Member(name, size, mtime_ns, header.kind, header_blocks)


def parse_group(blocks: bytes) -> Member:
    """Parse a datapoint's whole group of headers, exactly *blocks*. Raises Invalid if it is not one."""
    if len(blocks) > EXTENDED_LIMIT + BLOCK:
        raise Invalid("TAR headers are too large")
    extended: list[tuple[int, bytes]] = []
    position = 0
    while True:
        header = parse_header(blocks[position : position + BLOCK])
        position += BLOCK
        if header.kind not in EXTENDED:
            break
        extended.append((header.kind, blocks[position : position + header.size]))
        position += padded(header.size)
        if position >= len(blocks):
            raise Invalid("TAR headers are cut short")
    if position != len(blocks):
        raise Invalid("TAR headers are shorter than the index says")
    return resolve(header, extended, position // BLOCK)


def parse_pax(data: bytes) -> dict[str, str]:
    """Parse PAX records, "LENGTH KEY=VALUE\\n" each. Raises Invalid if they are malformed."""
    records: dict[str, str] = {}
    position = 0
    while position < len(data) and data[position] != 0:
        space = data.find(b" ", position, position + 20)
        length = int(data[position:space]) if space > position and data[position:space].isdigit() else 0
        record = data[position : position + length]
        if length < 5 or len(record) != length or not record.endswith(b"\n"):
            raise Invalid("malformed PAX header")
        key, equals, value = record[space - position + 1 : -1].partition(b"=")
        if not equals:
            raise Invalid("malformed PAX header")
        records[_decode(key)] = _decode(value)
        position += length
    return records


def parse_pax_time(text: str) -> int:
    """Return nanoseconds of a PAX time, decimal seconds. Raises Invalid if it is none."""
    whole, _, fraction = text.strip().partition(".")
    digits = whole.removeprefix("-")
    if not (text.isascii() and digits.isdigit() and len(digits) <= 12 and (fraction or "0").isdigit()):
        raise Invalid(f"malformed PAX time {printable(text)!r}")
    if int(digits) >= TIME_LIMIT:
        raise Invalid(f"PAX time {printable(text)} is out of range")
    nanoseconds = int(digits) * _SECOND + int((fraction + "000000000")[:9])
    return -nanoseconds if whole.startswith("-") else nanoseconds


def clamped_time(mtime_ns: int) -> int:
    """Return the nearest time, in nanoseconds, that a TAR can say; nobody means one beyond."""
    limit = (TIME_LIMIT - 1) * 1_000_000_000
    return max(-limit, min(mtime_ns, limit))


def build_header(name: str, size: int, mtime_ns: int) -> bytes:
    """Return the header blocks of a regular file, mode 0644, owned by nobody in particular.

    The time is written in whole seconds. One ustar block wherever the values fit, otherwise preceded
    by a PAX header with just those that do not.
    """
    seconds = mtime_ns // _SECOND
    raw = name.encode()
    pax: dict[str, str] = {}
    if len(raw) > 100:
        pax["path"], raw = name, raw[:100].decode(errors="ignore").encode()
    if size >= _OCTAL_LIMIT:
        pax["size"] = str(size)
    if not 0 <= seconds < _OCTAL_LIMIT:
        pax["mtime"] = str(seconds)
    block = _ustar(raw, 0 if "size" in pax else size, 0 if "mtime" in pax else seconds, b"0")
    return _pax_header(pax) + block if pax else block


def header_length(name: str, size: int, mtime_ns: int) -> int:
    """Return how many bytes `build_header` will make, without making them where one block suffices."""
    plain = len(name) <= 50 and size < _OCTAL_LIMIT and 0 <= mtime_ns // _SECOND < _OCTAL_LIMIT
    return BLOCK if plain else len(build_header(name, size, mtime_ns))


def _pax_header(records: dict[str, str]) -> bytes:
    data = b"".join(_pax_record(key, value) for key, value in sorted(records.items()))
    return _ustar(b"././@PaxHeader", len(data), 0, b"x") + data.ljust(padded(len(data)), b"\0")


def _pax_record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = len(body)
    while length != len(body) + len(str(length)):  # the length counts its own digits
        length = len(body) + len(str(length))
    return str(length).encode() + body


def _ustar(name: bytes, size: int, mtime: int, kind: bytes) -> bytes:
    block = _FIELDS.pack(
        name, b"0000644\0", b"0000000\0", b"0000000\0", b"%011o\0" % size, b"%011o\0" % mtime,
        b"        ", kind, b"", b"ustar\x0000", b"", b"", b"0000000\0", b"0000000\0", b"",
    )  # fmt: skip
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _check_sum(block: bytes) -> None:
    stored = _number(block[148:156], "checksum")
    blanked = block[:148] + b"        " + block[156:]
    # Some old writers summed signed characters; both are accepted, as in GNU tar.
    if stored != sum(blanked) and stored != sum(struct.unpack("512b", blanked)):
        raise Invalid("not a TAR header (wrong checksum)")


def _number(field: bytes, what: str, *, signed: bool = False) -> int:
    """Parse octal text or, as GNU does for large values, base-256 with the top bit set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False) & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
    else:
        digits = field.split(b"\0", 1)[0].strip()
        if digits.strip(b"01234567"):
            raise Invalid(f"malformed {what} in a TAR header")
        value = int(digits or b"0", 8)
    if value < 0 and not signed:
        raise Invalid(f"negative {what} in a TAR header")
    if abs(value) >= 1 << 62 or (signed and abs(value) >= TIME_LIMIT):
        raise Invalid(f"{what} in a TAR header is out of range")
    return value


def _decimal(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise Invalid(f"malformed PAX {what} {printable(text)!r}")
    return int(text)


def _text(field: bytes) -> str:
    return _decode(field.split(b"\0", 1)[0])


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
