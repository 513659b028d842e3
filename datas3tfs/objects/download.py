"""GET bytes from a signed address through urllib3: the data path, without boto3.

Not for deciding what an answer is worth (answers.py) nor for retries (retries.py): one request, one
verdict. Redirects, retries and decoding are off: what comes is what the server sent.

Concurrency: `Downloads` belongs to the event loop; the functions it runs block in worker threads.
The body is read in one call into one buffer (of the ways measured on 8 MiB ranges from loopback the
fastest: 910 MB/s and 3.0 ms CPU, against 740 MB/s and 5.0 ms for read1 and join, 420 MB/s and more
than 9 ms for readinto a bytearray that must become bytes). The price is that the thread cannot look
at a clock meanwhile; instead the loop, on timeout or cancellation, calls the flight off: that shuts
the socket down and the thread returns at once. Before there is a head to read, the socket's own
timeouts end the thread.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import trio
import urllib3

from datas3tfs.core.spans import Span
from datas3tfs.errors import Unavailable
from datas3tfs.objects import answers
from datas3tfs.objects.answers import Answer
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.translate import translated

T = TypeVar("T")

_ERROR_DOCUMENT = 16 << 10  # bytes of an error page worth looking at; S3's are below 1 KiB


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


class Downloads:
    """A pool of connections to one endpoint."""

    def __init__(self, settings: S3Settings, limiter: trio.CapacityLimiter, *, tls: bool) -> None:
        self._limiter = limiter
        trust = ssl.create_default_context(cafile=settings.ca_bundle) if tls else None
        self._pool = urllib3.PoolManager(num_pools=1, maxsize=settings.parallel_gets, ssl_context=trust)
        self._timeout = urllib3.Timeout(connect=settings.connect_timeout, read=settings.silence)

    def close(self) -> None:
        """Close idle connections; those in use close when their threads are done."""
        self._pool.clear()

    async def span(self, url: str, key: str, span: Span, total: int) -> bytes:
        """Return exactly the bytes *span*. Raises NotFound, Corrupt, Unavailable, Denied."""

        def work(flight: Flight) -> bytes:
            headers = {"Range": f"bytes={span.start}-{span.last}", "Accept-Encoding": "identity"}
            return self._fetch(flight, url, key, headers, check)

        def check(answer: Answer) -> int:
            return answers.check_range(key, span, total, answer)

        return await self._fly(work)

    async def whole(self, url: str, key: str, limit: int) -> bytes:
        """Return a whole object of at most *limit* bytes. Raises as `span` does."""

        def work(flight: Flight) -> bytes:
            headers = {"Accept-Encoding": "identity"}
            return self._fetch(flight, url, key, headers, check)

        def check(answer: Answer) -> int:
            return answers.check_whole(key, limit, answer)

        return await self._fly(work)

    async def _fly(self, work: Callable[[Flight], T]) -> T:
        flight = Flight()
        try:
            return await trio.to_thread.run_sync(work, flight, abandon_on_cancel=True, limiter=self._limiter)
        except trio.Cancelled:
            flight.call_off()
            raise

    def _fetch(
        self, flight: Flight, url: str, key: str, headers: dict[str, str], check: Callable[[Answer], int]
    ) -> bytes:
        """Send one GET and return its body, *check*ed before it is read (in a worker thread)."""
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
                body = _body(key, response, check)
                flight.land()
                response.release_conn()
            except BaseException:
                flight.land()
                response.close()  # what is left in it must not be taken for the next answer
                raise
            return body


def _body(key: str, response: urllib3.BaseHTTPResponse, check: Callable[[Answer], int]) -> bytes:
    answer = _head(response)
    if answer.status not in (200, 206):
        refused = answers.refusal(key, answer.status, answers.error_code(response.read(_ERROR_DOCUMENT)))
        raise Denied(str(refused)) if answer.status == 403 else refused
    length = check(answer)
    body = response.read(length) if length else b""
    answers.check_length(key, length, len(body))
    return body


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
