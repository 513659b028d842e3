"""Decide what to fetch ahead, from nothing but where readers have been.

Positions are *linear*: the objects of a dataset laid end to end in key order. Reading datapoints in
order is then just reading forwards, across the borders of files and of objects, and a large file is
no special case. Streams of reads are told apart, so that several readers at once each get their own
window. Who reads backwards reads forwards in a mirror. A stream must prove itself before anything is fetched
for it; then its window starts small and grows while the reader keeps pace. Many readers have smaller windows
each, so that what was fetched for one is not evicted for another.

Not every read is seen: what was pushed into the page cache is read there. So a proven stream may go on
anywhere in what it was given, and a little beyond.

This is a state machine without clock or I/O: `observe` is told of every read and answers with the
span worth having. Whether it is fetched is the prefetcher's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.spans import Span

# A read belongs to a stream if it starts at most this far behind or ahead of where the stream is: the
# kernel's own read-ahead comes in out of order by a few of its requests, of 1 MiB at most.
_BEHIND = 1024 * 1024
_AHEAD = 256 * 1024
# Until a stream has proved itself, its reads must follow each other closely, in bytes (between
# datapoints lie headers and padding, 10 KiB at the end of a TAR) and in time (in reads observed). A
# random reader goes on just where some earlier read ended by chance; twice running, rarely. Nor does it go
# on a little further again and again: who leaves out a few datapoints each time needs more steps.
_CLOSE = 32 * 1024
_CLOSE_STEP, _LOOSE_STEP = 5, 2
_PROOF = 10
_SOON = 32
_STREAMS = 64  # readers told apart; the one idle longest is forgotten
_ACTIVE = 1024  # … and of those, whose last read is so many reads ago, others have the share
_GROWTH = 8  # of the window, each time half of it is read: few round trips until it hides all latency
_STEP = 8 * 1024 * 1024  # bytes read of a large window until as many are fetched: a request, so that some run


@dataclass(frozen=True, slots=True)
class PrefetchLimits:
    """How far ahead to fetch, in bytes: of one reader, and of all together."""

    first_window: int = 1024 * 1024
    largest_window: int = 32 * 1024 * 1024  # 30 ms of latency at 1 GB/s; twice that took memory and no time
    all_windows: int = 256 * 1024 * 1024


@dataclass(slots=True)
class _Stream:
    position: int  # where the next read of this stream is expected
    proof: int
    window: int  # of the last answer; 0 before the first
    reached: int  # everything up to here has been asked for
    seen: int  # when last used, in reads observed

    @property
    def is_proven(self) -> bool:
        """Whether this is a reader, beyond reasonable doubt."""
        return self.proof >= _PROOF

    @property
    def tolerance(self) -> int:
        """How far ahead of its position a read may start and still be this stream's."""
        return _AHEAD + (max(0, self.reached - self.position) if self.is_proven else 0)

    def advance(self, read: Span) -> None:
        """Take a read into account that is this stream's. Two that follow each other may share a piece."""
        if read.stop <= self.position:
            return
        if not self.is_proven:
            if read.start < self.position - CHUNK:
                return
            self.proof += _CLOSE_STEP if read.start - self.position <= _CLOSE else _LOOSE_STEP
        self.position = read.stop


class PrefetchPlanner:
    """The readers of one dataset."""

    def __init__(self, limits: PrefetchLimits) -> None:
        self._forwards = _Streams(limits)
        self._backwards = _Streams(limits)

    @property
    def is_forwards(self) -> bool:
        """Whether the read observed last belongs to a reader known to go forwards."""
        return self._forwards.is_following

    @property
    def ahead(self) -> int:
        """Bytes given out beyond where readers were last seen: read unseen, yet to be read, or in vain."""
        return self._forwards.ahead + self._backwards.ahead

    def observe(self, read: Span) -> Span | None:
        """Take note of a read at *read*; return the span now worth having, or None.

        The span borders on the read itself or on an earlier answer, and is never empty.
        """
        ahead = self._forwards.observe(read)
        if self.is_forwards:
            return ahead
        mirrored = self._backwards.observe(_mirrored(read))
        if mirrored is None:
            return None
        behind = _mirrored(mirrored)
        return Span(max(0, behind.start), behind.stop) if behind.stop > 0 else None


def _mirrored(span: Span) -> Span:
    return Span(-span.stop, -span.start)


class _Streams:
    """Those that go in one direction."""

    def __init__(self, limits: PrefetchLimits) -> None:
        self._limits = limits
        self._streams: list[_Stream] = []
        self._observed = 0
        self.is_following = False  # whether the read observed last belongs to a proven stream

    @property
    def ahead(self) -> int:
        """See PrefetchPlanner."""
        return sum(max(0, stream.reached - stream.position) for stream in self._streams)

    def observe(self, read: Span) -> Span | None:
        """See PrefetchPlanner."""
        self._observed += 1
        stream = self._stream_of(read)
        if stream is None:
            self.is_following = False
            self._add(read)
            return None
        if not stream.is_proven and self._observed - stream.seen > _SOON:
            stream.proof = 0
        stream.seen = self._observed
        stream.advance(read)
        self.is_following = stream.is_proven
        return self._extend(stream, read) if stream.is_proven else None

    def _stream_of(self, read: Span) -> _Stream | None:
        """Return the stream this read continues: of several, the one it continues most closely."""
        near = [s for s in self._streams if -_BEHIND <= read.start - s.position <= s.tolerance]
        return min(near, key=lambda s: abs(read.start - s.position), default=None)

    def _add(self, read: Span) -> None:
        if len(self._streams) >= _STREAMS:
            self._streams.remove(min(self._streams, key=lambda s: s.seen))
        self._streams.append(_Stream(read.stop, 0, 0, read.stop, self._observed))

    def _active(self) -> int:
        """Return how many readers there are, one at least."""
        return max(1, sum(s.is_proven and self._observed - s.seen <= _ACTIVE for s in self._streams))

    def _extend(self, stream: _Stream, read: Span) -> Span | None:
        ahead = stream.reached - stream.position
        if stream.window and ahead > stream.window - min(stream.window // 2, _STEP):
            return None
        first, share = self._limits.first_window, self._limits.all_windows // self._active()
        stream.window = min(
            max(_GROWTH * stream.window, first), self._limits.largest_window, max(first, share)
        )
        if ahead >= stream.window:  # others have come, and its share is less than it has
            return None
        # Just proved, or the reader has overtaken the window: begin with this very read.
        start = stream.reached if ahead > 0 else read.start
        length = max(stream.position, read.stop) + stream.window - start
        stream.reached = start + (length - length % _STEP if length > _STEP else length)
        return Span(start, stream.reached)
