"""Read the datapoints of some keys, in order, each whole and checked before anybody sees it.

    server.locate (URLs) → flow (bytes, a few requests ahead) → walking (entries, checks)

What goes wrong with a URL or with bytes is mended here: the server is asked again, from the first datapoint
on that was not whole yet. That serves URLs that have expired, objects that were merged into others
meanwhile, and bytes that were mangled on the way. Of many keys, where they lie is asked for in windows, the
next one while the one before is read. Concurrency: each call is a generator of its own; worker threads look
through what has come.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial

from anyio import CapacityLimiter, to_thread

from datas3tfs.client.ahead import Ahead
from datas3tfs.client.flow import Flows, Stretch
from datas3tfs.client.server import Server
from datas3tfs.client.storage import Gone, Refused
from datas3tfs.client.walking import Mangled, Sink, Walked, Walker
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, NotFound, Unavailable
from datas3tfs.wire.answers import Segment

_WINDOW = 1 << 16  # keys whose checksums are asked for at once: about 700 KB of JSON
_SPANS = 1000  # … and dataranges, where these are known: the server fetches the indices of all in a minute
_ATTEMPTS = 3  # at the same datapoint
_THREADS = 8  # that look through what has come: more would wait for the interpreter lock
_SHORT = 64 << 10  # bytes that are looked through in no time: a millisecond, if they are of empty datapoints


@dataclass(frozen=True, slots=True)
class Step:
    """The next bytes of the TAR, and the datapoints they complete. *tail* of all bytes so far belong to one
    that is not whole yet. If *restarted*, there are none: those of the tail come again."""

    raw: bytes | memoryview
    found: list[Walked]
    tail: int
    restarted: bool = False


class Vanished(Corrupt):
    """An object that the server names is not in S3."""


class _Trouble(Exception):
    """Something that asking again may mend; *error* is what it was."""

    def __init__(self, error: Datas3tError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class Reading:
    """Reads from one server."""

    server: Server
    flows: Flows
    # Not those that everybody shares: whoever waits for us may have all of them.
    threads: CapacityLimiter = field(default_factory=partial(CapacityLimiter, _THREADS))

    async def walk(
        self, dataset: str, keys: Span, make_sink: Callable[[int], Sink]
    ) -> AsyncGenerator[Step, None]:
        """Yield the TAR of the datapoints of *keys* that exist, without its end, and each of them.

        *make_sink* is given a size and returns what takes the content; worker threads call both. Raises
        NotFound (there is none), Conflict (there are others than at the beginning), Corrupt (still wrong
        after three attempts), Unavailable.
        """
        segments: list[Segment] | None = None
        if keys.length <= _WINDOW:
            segments = await self.server.locate(dataset, keys, checksums=True)
            windows = [_spans(segments)]
        else:  # where each window lies is asked when it is its turn: the server looks into every index
            windows = _windows(await self._planned(dataset, keys))
        coming: Ahead[list[Segment]] | None = None
        try:
            for window, following in itertools.zip_longest(windows, windows[1:]):
                if coming is not None:
                    segments = await coming.get()
                coming = None if following is None else self._locate_ahead(dataset, following)
                async with aclosing(self._walk_window(dataset, window, segments, make_sink)) as steps:
                    async for step in steps:
                        yield step
        finally:
            if coming is not None:
                coming.leave()

    async def _walk_window(
        self,
        dataset: str,
        window: Sequence[Span],
        segments: list[Segment] | None,
        make_sink: Callable[[int], Sink],
    ) -> AsyncGenerator[Step, None]:
        """Yield what `walk` does, of the keys *window*; *segments* is where they lie, if known."""
        troubles, at = 0, window[0].start
        while at < window[-1].stop:
            wanted = Span(at, window[-1].stop)
            try:
                segments = segments or await self._locate_again(dataset, wanted, window)
                async with aclosing(self._walk_segments(segments, make_sink)) as steps:
                    async for step in steps:
                        if step.found:
                            at, troubles = step.found[-1].key + 1, 0
                        yield step
                return
            except _Trouble as exc:
                troubles, segments = troubles + 1, None
                if troubles >= _ATTEMPTS:
                    raise exc.error from None
                yield Step(b"", [], 0, restarted=True)

    def _locate_ahead(self, dataset: str, window: Sequence[Span]) -> Ahead[list[Segment]]:
        keys = Span(window[0].start, window[-1].stop)
        work = partial(self._locate_again, dataset, keys, window)
        return Ahead(self.flows.tasks, f"dataset {dataset}", work)

    async def _planned(self, dataset: str, keys: Span) -> list[Span]:
        """Return which of *keys* each datarange has. Raises NotFound if none has any."""
        found = [
            common
            for one in await self.server.dataranges(dataset)
            if (common := Span(one.min_datapoint_key, one.max_datapoint_key + 1).intersection(keys))
        ]
        if not found:
            raise NotFound(f"dataset {dataset} has no datapoint from {keys.start} to {keys.last}")
        return found

    async def _locate_again(self, dataset: str, keys: Span, window: Sequence[Span]) -> list[Segment]:
        """Return where *keys* lie now. Raises Conflict if they are not those of the plan any more."""
        planned = _joined([common for span in window if (common := span.intersection(keys))])
        try:
            segments = await self.server.locate(dataset, keys, checksums=True)
        except NotFound:
            segments = []
        if _spans(segments) != planned:
            raise Conflict(f"dataset {dataset} has changed while it was read, from key {keys.start} on")
        return segments

    async def _walk_segments(
        self, segments: Sequence[Segment], make_sink: Callable[[int], Sink]
    ) -> AsyncGenerator[Step, None]:
        stretches = [Stretch(one.object_key, one.presigned_url, _bytes_of(one)) for one in segments]
        walkers = [Walker(_keys_of(one), _crcs_of(one), make_sink) for one in segments]
        current = 0
        try:
            async with aclosing(self.flows.stream(stretches)) as stream:
                async for number, data in stream:
                    if number != current:
                        walkers[current].finish()
                        current = number
                    found = await self._feed(walkers[current], data)
                    yield Step(data, found, walkers[current].tail)
            walkers[current].finish()
        except Mangled as exc:
            raise _Trouble(Corrupt(f"{segments[current].object_key}: {exc}")) from None
        except Gone as exc:
            raise _Trouble(Vanished(f"{segments[current].object_key}: {exc}")) from None
        except Refused as exc:
            raise _Trouble(Unavailable(f"{segments[current].object_key}: {exc}")) from None

    async def _feed(self, walker: Walker, data: memoryview) -> list[Walked]:
        """Let *walker* take in *data*, in a worker thread unless that would cost more."""
        if len(data) < _SHORT:
            return walker.feed(data)
        return await to_thread.run_sync(walker.feed, data, limiter=self.threads)


def _keys_of(segment: Segment) -> Span:
    return Span(segment.first_datapoint, segment.last_datapoint + 1)


def _crcs_of(segment: Segment) -> list[int | None] | None:
    if segment.crc32c is not None and len(segment.crc32c) != _keys_of(segment).length:
        raise Unavailable(f"{segment.object_key}: the server names checksums of other datapoints")
    return segment.crc32c


def _bytes_of(segment: Segment) -> Span:
    first, dash, last = segment.range.removeprefix("bytes=").partition("-")
    if not (dash and first.isdigit() and last.isdigit() and int(first) <= int(last)):
        raise Unavailable(f"{segment.object_key}: the server names an impossible range")
    return Span(int(first), int(last) + 1)


def _spans(segments: Sequence[Segment]) -> list[Span]:
    """Return the keys of *segments*, adjacent ones as one. Raises Unavailable if they are in no order."""
    return _joined([_keys_of(one) for one in segments])


def _joined(found: Sequence[Span]) -> list[Span]:
    """Return *found*, adjacent ones as one. Raises Unavailable if they are in no order."""
    spans: list[Span] = []
    for keys in found:
        if spans and keys.start < spans[-1].stop:
            raise Unavailable("the server names datapoints that are not in order")
        if spans and spans[-1].stop == keys.start:
            spans[-1] = Span(spans[-1].start, keys.stop)
        else:
            spans.append(keys)
    return spans


def _windows(plan: Sequence[Span]) -> list[list[Span]]:
    """Cut *plan* into groups of at most so many keys, and spans."""
    windows: list[list[Span]] = [[]]
    room = _WINDOW
    for span in plan:
        at = span.start
        while at < span.stop:
            if not room or len(windows[-1]) == _SPANS:
                windows.append([])
                room = _WINDOW
            part = Span(at, min(span.stop, at + room))
            windows[-1].append(part)
            room -= part.length
            at = part.stop
    return windows
