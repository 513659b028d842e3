"""GET bytes from a signed address through urllib3: the data path, without boto3. Blocking; for threads.

Not for deciding what an answer is worth (answers.py) nor for retries (retries.py): one request, one
verdict. Redirects, retries and decoding are off: what comes is what the server sent.

A body that is wanted as bytes is read in one call into one buffer (of the ways measured on 8 MiB ranges
from loopback the fastest: 910 MB/s and 3.0 ms CPU, against 740 MB/s and 5.0 ms for read1 and join). The price
is that the thread cannot look at a clock meanwhile; instead whoever waits calls the flight off: that shuts
the socket down and the thread returns at once. Before there is a head to read, the socket's own timeouts end
the thread. A body that is wanted in a buffer given is copied there a mebibyte at a time, while it is in the
processor's cache.

Concurrency: any number of threads; urllib3's pool hands each its own connection.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import urllib3

from datas3tfs.core.spans import Span
from datas3tfs.errors import Unavailable
from datas3tfs.objects import answers
from datas3tfs.objects.answers import Answer
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.translate import translated

T = TypeVar("T")

_ERROR_DOCUMENT = 16 << 10  # bytes of an error page worth looking at; S3's are below 1 KiB
_STRIDE = 1 << 20  # bytes copied at a time


class Denied(Unavailable):
    """Status 403: what was signed may have expired; never leaves objects/."""


class Flight:
    """One request in a worker thread, which the event loop may call off."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held for a few instructions, never during a transfer
        self._response: urllib3.BaseHTTPResponse | None = None
        self._off = False

    def board(self, response: urllib3.BaseHTTPResponse) -> None:
        """Let *response* be shut down from now on. Raises Unavailable if nobody wants it any more."""
        with self._lock:
            if self._off:
                raise Unavailable("called off")
            self._response = response

    def land(self) -> None:
        """End that: the connection goes back to the pool and may carry somebody else next."""
        with self._lock:
            self._response = None

    def call_off(self) -> None:
        """Make the thread stop reading at once."""
        with self._lock:
            self._off = True
            if self._response is not None:
                with suppress(OSError, ValueError, RuntimeError):  # gone already
                    self._response.shutdown()


class Fetcher:
    """A pool of connections to one endpoint."""

    def __init__(self, settings: S3Settings, *, tls: bool) -> None:
        trust = ssl.create_default_context(cafile=settings.ca_bundle) if tls else None
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=settings.parallel_gets, ssl_context=trust)
        self._timeout = urllib3.Timeout(connect=settings.connect_timeout, read=settings.silence)

    def close(self) -> None:
        """Close idle connections; those in use close when their threads are done."""
        self._pool.clear()

    def span(self, flight: Flight, url: str, key: str, span: Span, total: int) -> bytes:
        """Return exactly the bytes *span*. Raises NotFound, Corrupt, Unavailable, Denied."""
        return self._fetch(
            flight, url, key, span, lambda answer: answers.check_range(key, span, total, answer)
        )

    def span_into(
        self, flight: Flight, url: str, key: str, span: Span, total: int, target: memoryview
    ) -> None:
        """Put exactly the bytes *span* into *target*, which is as long. Raises as `span` does; what *target*
        holds then means nothing."""

        def check(answer: Answer) -> int:
            return answers.check_range(key, span, total, answer)

        def take(response: urllib3.BaseHTTPResponse, length: int) -> None:
            position = 0
            while position < length and (piece := response.read(min(_STRIDE, length - position))):
                target[position : position + len(piece)] = piece
                position += len(piece)
            answers.check_length(key, length, position)

        self._run(flight, url, key, span, check, take)

    def whole(self, flight: Flight, url: str, key: str, limit: int) -> bytes:
        """Return a whole object of at most *limit* bytes. Raises as `span` does."""
        return self._fetch(flight, url, key, None, lambda answer: answers.check_whole(key, limit, answer))

    def _fetch(
        self, flight: Flight, url: str, key: str, span: Span | None, check: Callable[[Answer], int]
    ) -> bytes:
        def take(response: urllib3.BaseHTTPResponse, length: int) -> bytes:
            body = response.read(length) if length else b""
            answers.check_length(key, length, len(body))
            return body

        return self._run(flight, url, key, span, check, take)

    def _run(
        self,
        flight: Flight,
        url: str,
        key: str,
        span: Span | None,
        check: Callable[[Answer], int],
        take: Callable[[urllib3.BaseHTTPResponse, int], T],
    ) -> T:
        """Send one GET, *check* its head and *take* its body."""
        headers = {"Accept-Encoding": "identity"}
        if span is not None:
            headers["Range"] = f"bytes={span.start}-{span.last}"
        with translated(key):
            response = self._pool.request(
                "GET",
                url,
                headers=headers,
                timeout=self._timeout,
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                flight.board(response)
                taken = take(response, _checked(key, response, check))
                flight.land()
                response.release_conn()
            except BaseException:
                flight.land()
                response.close()  # what is left in it must not be taken for the next answer
                raise
            return taken


def _checked(key: str, response: urllib3.BaseHTTPResponse, check: Callable[[Answer], int]) -> int:
    """Return how long the body is, if it is what was asked for."""
    answer = _head(response)
    if answer.status not in (200, 206):
        refused = answers.refusal(key, answer.status, answers.error_code(response.read(_ERROR_DOCUMENT)))
        raise Denied(str(refused)) if answer.status == 403 else refused
    return check(answer)


def _head(response: urllib3.BaseHTTPResponse) -> Answer:
    headers = response.headers
    return Answer(
        status=response.status,
        content_range=headers.get("Content-Range"),
        content_length=headers.get("Content-Length"),
        content_type=headers.get("Content-Type"),
        content_encoding=headers.get("Content-Encoding"),
        transfer_encoding=headers.get("Transfer-Encoding"),
    )
