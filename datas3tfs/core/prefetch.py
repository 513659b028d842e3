"""Decide what to fetch ahead, from nothing but where readers have been.

Positions are *linear*: the objects of a dataset laid end to end in key order. Reading datapoints in
order is then just reading forwards, across the borders of files and of objects, and a large file is
no special case. Streams of forward reads are told apart, so that several readers at once each get
their own window. A stream must go forward `_PROOF` times before anything is fetched for it; then its
window starts small and doubles while the reader keeps pace.

This is a state machine without clock or I/O: `observe` is told of every read and answers with the
span worth having. Whether it is fetched is the prefetcher's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from datas3tfs.core.spans import Span

# A read belongs to a stream if it starts at most this far behind or ahead of where the stream is: the
# kernel's own read-ahead comes in out of order by a few of its 128 KiB requests.
_BEHIND = 512 * 1024
_AHEAD = 256 * 1024
# Until a stream has proved itself, its reads must follow each other closely, in bytes (between
# datapoints lie headers and padding, 10 KiB at the end of a TAR) and in time (in reads observed). A
# random reader goes on just where some earlier read ended by chance; twice running, rarely.
_PROOF = 2
_CLOSE = 32 * 1024
_SOON = 32
_STREAMS = 64  # readers told apart; the one idle longest is forgotten


@dataclass(frozen=True, slots=True)
class PrefetchLimits:
    """How far ahead to fetch, in bytes."""

    first_window: int = 512 * 1024
    largest_window: int = 16 * 1024 * 1024


@dataclass(slots=True)
class _Stream:
    position: int  # where the next read of this stream is expected
    proof: int
    window: int  # of the last answer; 0 before the first
    reached: int  # everything up to here has been asked for
    seen: int  # when last used, in reads observed

    @property
    def tolerance(self) -> int:
        """How far ahead of its position a read may start and still be this stream's: anywhere in what it
        has been given, for of that most reads are not seen (the page cache has it)."""
        return max(_AHEAD, self.reached - self.position) if self.proof >= _PROOF else _CLOSE


class PrefetchPlanner:
    """The streams of one dataset."""

    def __init__(self, limits: PrefetchLimits) -> None:
        self._limits = limits
        self._streams: list[_Stream] = []
        self._observed = 0

    def observe(self, read: Span) -> Span | None:
        """Take note of a read at *read*; return the span now worth having, or None.

        The span starts at the read itself or where an earlier answer ended, and is never empty.
        """
        self._observed += 1
        stream = self._stream_of(read)
        if stream is None:
            self._add(read)
            return None
        if stream.proof < _PROOF and self._observed - stream.seen > _SOON:
            stream.proof = 0
        stream.seen = self._observed
        if read.stop > stream.position and (stream.proof >= _PROOF or read.start >= stream.position):
            stream.proof += 1
            stream.position = read.stop
        if stream.proof < _PROOF:
            return None
        return self._extend(stream, read)

    def _stream_of(self, read: Span) -> _Stream | None:
        """Return the stream this read continues: of several, the one it continues most closely."""
        near = [s for s in self._streams if -_BEHIND <= read.start - s.position <= s.tolerance]
        return min(near, key=lambda s: abs(read.start - s.position), default=None)

    def _add(self, read: Span) -> None:
        if len(self._streams) >= _STREAMS:
            self._streams.remove(min(self._streams, key=lambda s: s.seen))
        self._streams.append(_Stream(read.stop, 0, 0, read.stop, self._observed))

    def _extend(self, stream: _Stream, read: Span) -> Span | None:
        ahead = stream.reached - stream.position
        if stream.window and ahead >= stream.window // 2:
            return None
        stream.window = min(max(2 * stream.window, self._limits.first_window), self._limits.largest_window)
        # Just proved, or the reader has overtaken the window: begin with this very read.
        start = stream.reached if ahead > 0 else read.start
        stream.reached = max(stream.position, start) + stream.window
        return Span(start, stream.reached)
