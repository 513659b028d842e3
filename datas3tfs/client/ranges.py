"""GET ranges of objects from signed addresses: the way of all bulk bytes that a client reads.

One request, one attempt. Not for what an answer is worth (storage.py) nor for trying again (retrying.py).

Concurrency: `Ranges` belongs to the event loop; requests block in worker threads, which cost a quarter of the
CPU time that an event loop's streams do, at 8 MiB a request. A thread fills a buffer that nobody else has; if
its request is not wanted any more the loop calls it off, which shuts its socket down, so that the thread ends
at once. Only one that still connects goes on until its time is up.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection

import anyio
import httpx
import numpy as np
from anyio import to_thread

from datas3tfs.client.retrying import Again
from datas3tfs.client.tuning import Tuning
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid, Unavailable

_IDLE_SECONDS = 10.0  # until an unused connection is given up: who knows what is between us and S3
_IDLE_MOST = 32
_THREADS = 64  # a request more waits; each of any number of downloads has one at least
_ERROR_DOCUMENT = 16 << 10  # bytes read of one

Check = Callable[[Span, int, httpx.Headers], None]  # given what was asked for, the status, the headers


class Refusal(Exception):
    """The answer has another status than those of a range. Never leaves this package."""

    def __init__(self, status: int, document: bytes) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.document = document


class Flight:
    """One request in a worker thread, which the event loop may call off. What has come is at the beginning
    of *buffer*: the first *count* bytes, which no thread touches any more."""

    def __init__(self, span: Span, step: int) -> None:
        self.span = span
        self.step = step  # bytes read at once: so many are lost if the connection breaks
        # Not a bytearray: to fill that with zeros first takes as long as to receive it.
        self.buffer: memoryview = np.empty(span.length, np.uint8).data
        self.count = 0
        self._lock = threading.Lock()  # held for a few instructions, never during a transfer
        self._socket: socket.socket | None = None
        self._off = False

    def board(self, connected: socket.socket) -> None:
        """Let *connected* be shut down from now on. Raises Again if nobody wants it any more."""
        with self._lock:
            if self._off:
                raise Again("called off")
            self._socket = connected

    def land(self) -> None:
        """End that: the connection may carry somebody else next."""
        with self._lock:
            self._socket = None

    def received(self) -> memoryview:
        """Return what has come."""
        return self.buffer[: self.count]

    def call_off(self) -> None:
        """Make the thread stop at once."""
        with self._lock:
            self._off = True
            if self._socket is not None:
                with suppress(OSError):  # gone already
                    # Not the method of a TLS socket: that takes away what the thread reads with.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


class Ranges:
    """Connections to wherever objects are."""

    def __init__(self, tuning: Tuning, trust: ssl.SSLContext) -> None:
        self._tuning = tuning
        self._limiter = anyio.CapacityLimiter(_THREADS)
        self._connections = _Connections(tuning.connect, trust)

    def close(self) -> None:
        """Close idle connections; those in use close when their threads are done."""
        self._connections.close()

    async def fetch(self, url: str, flight: Flight, check: Check) -> None:
        """Fill the flight's buffer from an answer that *check* has let pass. Raises Again, Refusal,
        Unavailable, Invalid, what *check* raises; its count says how much came until then."""
        work = partial(self._fetch, _parsed(url), flight, check)
        try:
            await to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._limiter)
        except anyio.get_cancelled_exc_class():
            flight.call_off()
            raise

    def _fetch(self, url: httpx.URL, flight: Flight, check: Check) -> None:
        connection = self._connections.take(url)
        with _translated():
            try:
                assert connection.sock is not None
                connection.sock.settimeout(self._tuning.silence)
                flight.board(connection.sock)
                try:
                    is_reusable = _exchange(connection, url, flight, check)
                finally:
                    flight.land()
            except BaseException:
                connection.close()  # what is left in it must not be taken for the next answer
                raise
            self._connections.give_back(url, connection, is_reusable=is_reusable)


def _exchange(connection: HTTPConnection, url: httpx.URL, flight: Flight, check: Check) -> bool:
    """Ask and take what comes; say whether the connection may be used again."""
    headers = {
        "Host": url.netloc.decode("ascii"),
        "Range": f"bytes={flight.span.start}-{flight.span.last}",
        "Accept-Encoding": "identity",
    }
    connection.request("GET", url.raw_path.decode("ascii"), headers=headers)
    with connection.getresponse() as response:
        if response.status not in (200, 206):
            raise Refusal(response.status, response.read(_ERROR_DOCUMENT))
        check(flight.span, response.status, httpx.Headers(response.getheaders()))
        _read(response, flight)
        return not response.will_close


def _read(response: HTTPResponse, flight: Flight) -> None:
    """Read the body. Raises Again if it ends early."""
    view = flight.buffer
    while flight.count < len(view):
        length = response.readinto(view[flight.count : flight.count + flight.step])
        if not length:
            raise Again(f"{flight.count} bytes came, {len(view)} were announced")
        flight.count += length


class _Connections:
    """Connections that are open and not in use. Any thread may call."""

    def __init__(self, patience: float, trust: ssl.SSLContext) -> None:
        self._patience = patience
        self._trust = trust
        self._lock = threading.Lock()
        self._idle: list[tuple[float, httpx.URL, HTTPConnection]] = []  # since when; used last is last
        self._is_closed = False

    def take(self, url: httpx.URL) -> HTTPConnection:
        """Return a connection to the host of *url*, an idle one if there is one."""
        while (connection := self._take_idle(_origin(url))) is not None:
            if _is_alive(connection):
                return connection
            connection.close()
        return _connected(url, self._patience, self._trust)

    def give_back(self, url: httpx.URL, connection: HTTPConnection, *, is_reusable: bool) -> None:
        """Keep *connection* for whoever comes next, if it may be used again."""
        now, dropped = time.monotonic(), [connection]
        with self._lock:
            if is_reusable and not self._is_closed:
                self._idle.append((now, _origin(url), connection))
                fresh = [one for one in self._idle if now - one[0] < _IDLE_SECONDS][-_IDLE_MOST:]
                dropped = [one[2] for one in self._idle if one not in fresh]
                self._idle = fresh
        for one in dropped:
            one.close()

    def close(self) -> None:
        """Close what is idle, and what is given back from now on."""
        with self._lock:
            self._is_closed, idle, self._idle = True, self._idle, []
        for _, _, connection in idle:
            connection.close()

    def _take_idle(self, origin: httpx.URL) -> HTTPConnection | None:
        with self._lock:
            for at in range(len(self._idle) - 1, -1, -1):
                if self._idle[at][1] == origin:
                    return self._idle.pop(at)[2]
        return None


def _connected(url: httpx.URL, patience: float, trust: ssl.SSLContext) -> HTTPConnection:
    if url.scheme == "https":
        connection: HTTPConnection = HTTPSConnection(url.host, url.port, timeout=patience, context=trust)
    else:
        connection = HTTPConnection(url.host, url.port, timeout=patience)
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as exc:
        connection.close()
        raise Unavailable(f"no trusted TLS connection: {exc.verify_message}") from None
    except (OSError, ValueError):
        connection.close()
        raise Again("no connection", undone=True) from None
    return connection


def _parsed(text: str) -> httpx.URL:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise Invalid("not an address of a web server") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise Invalid("not an address of a web server")
    return url


def _origin(url: httpx.URL) -> httpx.URL:
    return url.copy_with(raw_path=b"/", fragment=None)


def _is_alive(connection: HTTPConnection) -> bool:
    """Say whether nothing has come meanwhile: a hang-up, or what nobody has asked for."""
    if connection.sock is None:
        return False
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return not poll.poll(0)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what sockets and http.client raise into Again, without its text: it may tell of addresses."""
    try:
        yield
    except TimeoutError:
        raise Again("the server went silent") from None
    except (OSError, HTTPException, ValueError):
        raise Again("the connection broke") from None
