"""Walk through part of a TAR as it comes in, piece by piece, and check that it is what was asked for.

Every entry must be a regular file with the name of the next datapoint, and its content must have the CRC32C
that the server knows, if it does. Directories and global headers between them are passed over, as they are
when a TAR is uploaded. Entries of the usual form that lie whole in a piece are looked at together
(core/runs.py), all others one by one. Pure: no I/O but that of the sinks it is given. Concurrency: one call
at a time, in any thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from datas3tfs.core import tar
from datas3tfs.core.checksums import crc32c
from datas3tfs.core.names import parse_datapoint_name, printable
from datas3tfs.core.runs import Run, RunFinder
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid

_STEP = 1 << 20  # bytes copied at once: the CRC library wants bytes objects
_SECOND = 1_000_000_000  # nanoseconds


class Mangled(Exception):
    """The bytes are not those asked for. Never leaves this package."""


class Sink(Protocol):
    """Takes the content of one datapoint."""

    def write(self, data: bytes) -> object:
        """Take the next bytes; called once if all of them have come together."""
        ...


class Walked(NamedTuple):
    """A datapoint that was there, whole and right, and what has taken its content."""

    key: int
    name: str
    size: int
    mtime_ns: int
    crc: int
    sink: Sink


class Walker:
    """Takes in the bytes of *keys*; *crcs* are theirs, as far as known. *make_sink* is asked for each."""

    def __init__(
        self, keys: Span, crcs: Sequence[int | None] | None, make_sink: Callable[[int], Sink]
    ) -> None:
        self._keys = keys
        self._crcs = crcs
        self._make_sink = make_sink
        self._next_key = keys.start
        self._runs = RunFinder()
        self._rest = b""  # of a header that has not come whole
        self._current: _Current | None = None
        self._skip = 0  # padding, or what is passed over
        self._fed = 0  # bytes taken in
        self._good = 0  # … up to the end of the last datapoint that is whole
        self._broken: Mangled | None = None  # what is wrong behind that

    @property
    def tail(self) -> int:
        """How many of the bytes so far belong to a datapoint that is not whole yet."""
        return self._fed - self._good

    def feed(self, data: bytes | memoryview) -> list[Walked]:
        """Take in the next bytes; return the datapoints they complete. Raises Mangled: when asked again, if
        some were whole before that."""
        found: list[Walked] = []
        try:
            if self._broken is not None:
                raise self._broken
            self._walk(data, found)
        except Mangled as exc:
            if not found:
                raise
            self._broken = exc
        return found

    def _walk(self, data: bytes | memoryview, found: list[Walked]) -> None:
        base = self._fed - len(self._rest)
        self._fed += len(data)
        view = memoryview(b"".join((self._rest, data)) if self._rest else data)
        at = 0
        while True:
            if self._current is not None and not self._current.left and not self._skip:
                found.append(self._finished(self._current))
                self._good = base + at
            in_header = self._current is None and not self._skip
            if in_header and (run := self._runs.find(view, at, Span(self._next_key, self._keys.stop))):
                self._take_run(view, base, run, found)
                at = run.stop
                continue
            taken = self._header(view[at:]) if in_header else self._body(view[at:])
            if not taken:
                break
            at += taken
        self._rest = bytes(view[at:])

    def _take_run(self, view: memoryview, base: int, run: Run, found: list[Walked]) -> None:
        """Take in many datapoints at once; *view* begins at byte *base*."""
        make_sink, key = self._make_sink, self._next_key
        for name, start, size, seconds in zip(run.names, run.starts, run.sizes, run.seconds, strict=True):
            content = bytes(view[start : start + size])
            crc = crc32c(content)
            self._check_crc(key, name, crc)
            sink = make_sink(size)
            sink.write(content)
            found.append(Walked(key, name, size, seconds * _SECOND, crc, sink))
            self._next_key = key = key + 1
            self._good = base + start + tar.padded(size)

    def _check_crc(self, key: int, name: str, crc: int) -> None:
        expected = None if self._crcs is None else self._crcs[key - self._keys.start]
        if expected is not None and expected != crc:
            raise Mangled(f"datapoint {name}: content fails its checksum")

    def finish(self) -> None:
        """Raise Mangled unless all datapoints have come, and nothing else."""
        if self._broken is not None:
            raise self._broken
        if self._next_key != self._keys.stop or self.tail:
            raise Mangled(f"{self._named()}: missing or cut short")

    def _named(self) -> str:
        if self._current is not None:
            return f"datapoint {self._current.member.name}"
        return f"datapoint {self._next_key:020d}"

    def _header(self, view: memoryview) -> int:
        """Begin the next entry; return how long its headers are, 0 if they have not come whole."""
        if not len(view):
            return 0
        try:
            group = _read_group(view)
        except Invalid as exc:
            raise Mangled(f"{self._named()}: {exc}") from None
        if group is None:
            return 0
        member, length = group
        if member is not None and member.kind == tar.DIRECTORY:
            self._skip = tar.padded(member.size)
        elif member is not None:
            self._check(member)
            self._current = _Current(member, self._make_sink(member.size))
        return length

    def _check(self, member: tar.Member) -> None:
        if member.kind not in tar.REGULAR or self._next_key == self._keys.stop:
            raise Mangled(f"{self._named()}: the TAR has another entry in its place")
        try:
            key = parse_datapoint_name(member.name).key
        except Invalid as exc:
            raise Mangled(f"{self._named()}: {exc}") from None
        if key != self._next_key:
            raise Mangled(f"{self._named()}: {printable(member.name)} lies in its place")

    def _body(self, view: memoryview) -> int:
        """Take content or padding; return how many bytes."""
        current = self._current
        if current is not None and current.left:
            part = view[: current.left]
            current.take(part)
            if not current.left:
                self._skip = tar.padded(current.member.size) - current.member.size
            return len(part)
        length = min(self._skip, len(view))
        self._skip -= length
        return length

    def _finished(self, current: _Current) -> Walked:
        member, key = current.member, self._next_key
        self._check_crc(key, member.name, current.crc)
        self._current, self._next_key = None, key + 1
        return Walked(key, member.name, member.size, member.mtime_ns, current.crc, current.sink)


class _Current:
    """The datapoint whose content is coming."""

    def __init__(self, member: tar.Member, sink: Sink) -> None:
        self.member = member
        self.sink = sink
        self.left = member.size
        self.crc = 0

    def take(self, part: memoryview) -> None:
        self.left -= len(part)
        for at in range(0, len(part), _STEP):
            data = bytes(part[at : at + _STEP])
            self.crc = crc32c(data, self.crc)
            self.sink.write(data)


def _read_group(view: memoryview) -> tuple[tar.Member | None, int] | None:
    """Return (member, length of its headers); None if they have not come whole, no member for a global
    header. Raises Invalid."""
    extended: list[tuple[int, bytes]] = []
    at = 0
    while True:
        if len(view) < at + tar.BLOCK:
            return None
        header = tar.parse_header(bytes(view[at : at + tar.BLOCK]))
        start = at + tar.BLOCK
        if header.kind not in tar.EXTENDED:
            return tar.resolve(header, extended, start // tar.BLOCK), start
        at = start + tar.padded(header.size)
        if at > tar.EXTENDED_LIMIT:
            raise Invalid("extended headers are too large")
        if len(view) < at:
            return None
        if header.kind != tar.PAX_GLOBAL:
            extended.append((header.kind, bytes(view[start : start + header.size])))
        elif not extended:
            return None, at
