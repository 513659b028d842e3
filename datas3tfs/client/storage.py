"""Bytes to and from S3, through URLs the server has signed: one PUT, one range of an object.

What comes is never trusted: a range must be announced as exactly that, and come to its end. Addresses show in
no error. Not for where bytes come from or go to, and not for new URLs: a URL that S3 does not accept (any
more) is `Refused`, and the caller asks the server for another. Concurrency: any number of transfers at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import anyio
import httpx

from datas3tfs.client.connections import timeouts, translated
from datas3tfs.client.ranges import Flight, Ranges, Refusal
from datas3tfs.client.retrying import Again, Retrier
from datas3tfs.client.tuning import Tuning
from datas3tfs.core.names import printable
from datas3tfs.core.spans import Span
from datas3tfs.errors import Unavailable

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9.]{1,64})\s*</Code>")
_PASSES = frozenset({408, 429})
_CAREFUL_STEP = 64 << 10  # bytes read at once after a failure: no more are lost by the next

Advance = Callable[[int], None]


class Body(Protocol):
    """Bytes to be stored; the same ones however often they are asked for."""

    @property
    def size(self) -> int: ...

    async def read(self, at: int, size: int) -> bytes:
        """Return exactly *size* bytes from *at* on, which there are."""
        ...


class Refused(Exception):
    """S3 does not accept the URL: it has expired, or what it names is gone. Never leaves this package."""


class Gone(Refused):
    """S3 has no such object."""


class Storage:
    """S3, as far as URLs reach."""

    def __init__(self, pool: httpx.AsyncClient, ranges: Ranges, retrier: Retrier, tuning: Tuning) -> None:
        self._pool = pool
        self._ranges = ranges
        self._retrier = retrier
        self._tuning = tuning

    async def put(self, what: str, url: str, body: Body, reached: Callable[[int], None]) -> str:
        """Store *body*; return S3's ETag. *reached* hears how many bytes each attempt has sent so far.

        Raises Refused, Unavailable, and what *body* raises.
        """
        host = httpx.URL(url).netloc.decode("ascii")
        headers = {"Host": host, "Content-Length": str(body.size), "Accept-Encoding": "identity"}
        extensions = {"timeout": timeouts(self._tuning).as_dict()}

        async def attempt() -> str:
            with translated(), _in_time(self._tuning.allowance(body.size)):
                stream = _Stream(body, self._tuning.chunk, reached)
                request = httpx.Request("PUT", url, headers=headers, stream=stream, extensions=extensions)
                try:
                    response = await self._pool.send(request)
                finally:
                    stream.let_go()
            if response.status_code != 200:
                raise _refusal(response.status_code, response.content)
            if "ETag" not in response.headers:
                raise Again("S3 answered without an ETag")
            return response.headers["ETag"]

        return await self._retrier.run(what, attempt)

    async def fetch(self, what: str, url: str, span: Span) -> memoryview:
        """Return the bytes *span* of an object. An attempt goes on where the one before broke off.

        Raises Refused, Unavailable."""
        parts: list[memoryview] = []

        async def attempt() -> None:
            left = Span(span.start + sum(map(len, parts)), span.stop)
            if not left:  # the last byte came with the last second
                return
            flight = Flight(left, _CAREFUL_STEP if parts else self._tuning.chunk)
            try:
                with _in_time(self._tuning.allowance(left.length)):
                    await self._ranges.fetch(url, flight, _check_range)
            except Refusal as exc:
                raise _refusal(exc.status, exc.document) from None
            finally:
                parts.append(flight.received())

        await self._retrier.run(what, attempt, reached=lambda: sum(map(len, parts)))
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


class _Stream(httpx.AsyncByteStream):
    """The body of a request. Not a generator: httpx leaves those behind when a request is cancelled."""

    def __init__(self, body: Body, chunk: int, reached: Callable[[int], None]) -> None:
        self._body: Body | None = body
        self._chunk = chunk
        self._reached = reached
        self._at = 0

    def let_go(self) -> None:
        """Forget the body: httpx has its answers refer to themselves, and so to all they came from."""
        self._body = None

    def __aiter__(self) -> _Stream:
        return self

    async def __anext__(self) -> bytes:
        if self._body is None:
            raise StopAsyncIteration
        self._reached(self._at)
        size = min(self._chunk, self._body.size - self._at)
        if not size:
            raise StopAsyncIteration
        data = await self._body.read(self._at, size)
        self._at += size
        return data


@contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    """Give the block *seconds*; after that, it is tried again."""
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise Again(f"too slow: not done within {seconds:.0f} s")


def _check_range(span: Span, status: int, headers: httpx.Headers) -> None:
    """Raise Again unless the answer announces exactly *span*. Status 200 with a right Content-Range is
    rclone's way to answer; the whole object, an error page or another range must not pass for it."""
    if headers.get("Content-Encoding", "identity").strip().lower() not in ("identity", ""):
        raise Again("the body came encoded, not as it is stored")
    if "Transfer-Encoding" in headers:
        raise Again("the body came in chunks, not with a length")
    match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
    if match is None:
        raise Again(f"status {status} without a usable Content-Range")
    if (int(match[1]), int(match[2])) != (span.start, span.last):
        raise Again(f"bytes {match[1]}-{match[2]} came, {span.start}-{span.last} were asked for")
    if headers.get("Content-Length", "").strip() != str(span.length):
        raise Again("the announced length is not that of the range asked for")


def _refusal(status: int, document: bytes) -> Exception:
    match = _CODE.search(document)
    code = match[1].decode("ascii") if match else ""
    said = f"S3 answered {status}{f' {code}' if code else ''}"
    if status in _PASSES or status >= 500 or code == "RequestTimeout":
        return Again(said)
    if 300 <= status < 400:
        return Unavailable(f"{said}: a redirect; the bucket's endpoint or region is not right")
    if status == 404 and code == "NoSuchKey":
        return Gone(said)
    return Refused(printable(said)) if status >= 400 else Again(said)
