"""An HTTP proxy before an S3 server that misbehaves on demand.

    with FaultProxy(port_of_the_server) as proxy:
        proxy.add(Fault(Kind.TRUNCATE, times=1, path="index"))

It passes the Host header on unchanged, for SigV4 signs it: addresses signed for the proxy's host and
port hold at the server. Also a program, to add latency for a benchmark from a process of its own:
`python -m tests.harness.faultproxy --upstream PORT --listen PORT --latency 0.02`.

Not for TLS, chunked requests, or anything but tests. Concurrency: one thread per connection, which
moves bytes through one large buffer (the interpreter lock is free meanwhile); the fault list and the
counters are behind one lock.
"""

from __future__ import annotations

import argparse
import re
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum, auto
from types import TracebackType

_BUFFER = 1 << 18
_HEAD_LIMIT = 64 << 10
_PAGE = b"<html><body><h1>It works!</h1></body></html>"
_REASONS = {403: "Forbidden", 404: "Not Found", 500: "Internal Server Error", 503: "Slow Down"}


class Kind(Enum):
    """What goes wrong."""

    TRUNCATE = auto()  # announce all of the body, send half, close
    RESET = auto()  # send half of the body, then RST
    STALL_BODY = auto()  # send half of the body, then nothing
    STALL_HEAD = auto()  # take the request, answer nothing
    DRIBBLE = auto()  # send half of the body, then a byte every 50 ms
    STATUS = auto()  # answer `status` with an error document
    PAGE = auto()  # answer 200 with a page of HTML
    PAGE_404 = auto()  # answer 404 with a line of text, as web servers do that know nothing of S3
    IGNORE_RANGE = auto()  # pass on without Range: the whole object comes, with 200
    SHIFT = auto()  # ask the server for bytes `shift` further on and say so in Content-Range
    LIE = auto()  # the same, but claim in Content-Range that they are those asked for
    CORRUPT = auto()  # flip one bit in the middle of the body
    LOSE_ANSWER = auto()  # let the server do it, then close without an answer


class Moment(Enum):
    """How far a request has come when a witness is told."""

    ASKED = auto()  # nothing of it has been passed on
    HALFWAY = auto()  # half of its body has
    ANSWERED = auto()  # the server has done it; the client does not know yet


Witness = Callable[[Moment, str, str], bool]  # of method and path; True: hang up on both sides here

_HALFWAY = (Kind.TRUNCATE, Kind.RESET, Kind.STALL_BODY, Kind.DRIBBLE, Kind.CORRUPT)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault for the next *times* requests (None: for ever) whose method and path match."""

    kind: Kind
    times: int | None = None
    path: str = ""  # part of the path or query; "" matches all
    method: str = "GET"  # "" matches all
    status: int = 503
    shift: int = 512

    def matches(self, method: str, path: str) -> bool:
        """Say whether this is about the request."""
        return self.path in path and self.method in ("", method)


@dataclass(frozen=True, slots=True)
class _Head:
    """First line and headers of a message, as they came."""

    line: str
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        return next((value for header, value in self.headers if header.lower() == name), None)

    def without(self, *names: str) -> _Head:
        return replace(self, headers=tuple(pair for pair in self.headers if pair[0].lower() not in names))

    def with_(self, name: str, value: str) -> _Head:
        kept = self.without(name.lower())
        return replace(kept, headers=(*kept.headers, (name, value)))

    def encoded(self) -> bytes:
        lines = [self.line, *(f"{name}: {value}" for name, value in self.headers)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class _Closed(Exception):
    """One side has hung up."""


class _Stream:
    """A socket with what was read beyond a head."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self._ahead = b""

    def head(self) -> _Head:
        data = self._ahead
        while b"\r\n\r\n" not in data:
            more = self.sock.recv(_HEAD_LIMIT)
            if not more or len(data) > _HEAD_LIMIT:
                raise _Closed
            data += more
        raw, self._ahead = data.split(b"\r\n\r\n", 1)
        line, *rest = raw.decode("latin-1").split("\r\n")
        pairs = (header.split(":", 1) for header in rest)
        return _Head(line, tuple((name.strip(), value.strip()) for name, value in pairs))

    def pieces(self, length: int | None, buffer: memoryview) -> Iterator[memoryview]:
        """Yield *length* bytes (None: until the end) in pieces, valid until the next one."""
        left = length
        while left is None or left > 0:
            limit = len(buffer) if left is None else min(left, len(buffer))
            if self._ahead:
                piece = memoryview(self._ahead)[:limit]
                self._ahead = self._ahead[limit:]
            else:
                piece = buffer[: self.sock.recv_into(buffer[:limit])]
            if not piece:
                if left is None:
                    return
                raise _Closed
            if left is not None:
                left -= len(piece)
            yield piece


class FaultProxy:
    """Listens on loopback while it is entered or started; `endpoint` is its URL."""

    def __init__(self, upstream_port: int, *, latency: float = 0.0, listen_port: int = 0) -> None:
        self.latency = latency  # seconds before each request is passed on; may be changed any time
        self.witness: Witness = lambda moment, method, path: False  # called by any thread; may be changed
        self.port = listen_port
        self._upstream = ("127.0.0.1", upstream_port)
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._met: Counter[Kind] = Counter()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._released = threading.Event()  # set: what stalls hangs up
        self._listener: socket.socket | None = None
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def endpoint(self) -> str:
        """The URL to give to clients."""
        return f"http://127.0.0.1:{self.port}"

    def add(self, *faults: Fault) -> None:
        """Let *faults* happen; the first that matches a request is the one, and is used up by one."""
        with self._lock:
            self._faults.extend(faults)

    def clear(self) -> None:
        """Behave from now on; what stalls hangs up."""
        with self._lock:
            self._faults.clear()
            self._released.set()
            self._released = threading.Event()

    def met(self) -> Counter[Kind]:
        """Return how many requests have met a fault, by kind."""
        with self._lock:
            return self._met.copy()

    def requests(self, method: str, path: str = "") -> int:
        """Return how many requests with *method* and *path* in path or query came since forget()."""
        with self._lock:
            return sum(n for (verb, where), n in self._requests.items() if verb == method and path in where)

    def forget(self) -> None:
        """Start counting from nought."""
        with self._lock:
            self._requests.clear()

    def start(self) -> None:
        """Listen, on the same port as before."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(256)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._spawn(self._accept, listener)

    def stop(self) -> None:
        """Hang up on everybody and refuse connections until start()."""
        with self._lock:
            self._released.set()
            self._released = threading.Event()
            sockets, threads = list(self._sockets), list(self._threads)
            if self._listener is not None:
                sockets.append(self._listener)
                self._listener = None
        for sock in sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        self._threads = [thread for thread in threads if thread.is_alive()]

    def __enter__(self) -> FaultProxy:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Threads

    def _spawn(self, work: Callable[[socket.socket], None], sock: socket.socket) -> None:
        thread = threading.Thread(target=work, args=(sock,), daemon=True, name="faultproxy")
        with self._lock:
            self._threads = [old for old in self._threads if old.is_alive()]
            thread.start()
            self._threads.append(thread)

    def _accept(self, listener: socket.socket) -> None:
        with listener, suppress(OSError):  # shut down by stop()
            while True:
                self._spawn(self._serve, listener.accept()[0])

    @contextmanager
    def _known(self, sock: socket.socket) -> Iterator[None]:
        """Let stop() find the socket."""
        with self._lock:
            self._sockets.add(sock)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(sock)

    def _serve(self, sock: socket.socket) -> None:
        with sock, self._known(sock), suppress(OSError, _Closed):
            client = _Stream(sock)
            first = client.head()
            with socket.create_connection(self._upstream) as upstream, self._known(upstream):
                _Connection(self, client, _Stream(upstream)).run(first)

    def _note(self, method: str, path: str) -> tuple[Fault | None, threading.Event]:
        """Count a request; return the fault it meets, and what is set when that is lifted."""
        with self._lock:
            released = self._released
            self._requests[method, path] += 1
            for place, fault in enumerate(self._faults):
                if fault.matches(method, path):
                    self._met[fault.kind] += 1
                    if fault.times is not None:
                        left = replace(fault, times=fault.times - 1)
                        self._faults[place : place + 1] = [left] if left.times else []
                    return fault, released
        return None, released


class _Connection:
    """One client's connection and its own to the server."""

    def __init__(self, proxy: FaultProxy, client: _Stream, server: _Stream) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._buffer = memoryview(bytearray(_BUFFER))
        self._released = threading.Event()

    def run(self, first: _Head) -> None:
        head = first
        while self._exchange(head):
            head = self._client.head()

    def _exchange(self, asked: _Head) -> bool:
        """Pass one request on and its answer back, or not; say whether the connection lives on."""
        method, path, _ = asked.line.split(" ", 2)
        fault, self._released = self._proxy._note(method, path)
        kind = fault.kind if fault else None
        time.sleep(self._proxy.latency)
        body = self._client.pieces(int(asked.get("content-length") or 0), self._buffer)
        if (asked.get("expect") or "").lower() == "100-continue":
            self._client.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault is not None and kind in (Kind.STALL_HEAD, Kind.STATUS, Kind.PAGE, Kind.PAGE_404):
            for _ in body:
                pass
            return self._answer_alone(fault)
        sent = asked.without("expect")
        if "?" in path and "X-Amz-Signature" not in path:
            sent = sent.with_("Connection", "close")  # a listing may come chunked: its end is the close
        if kind is Kind.IGNORE_RANGE:
            sent = sent.without("range")
        elif fault is not None and kind in (Kind.SHIFT, Kind.LIE):
            sent = sent.with_("Range", _shifted(asked.get("range") or "", fault.shift))
        if self._proxy.witness(Moment.ASKED, method, path):
            return False
        self._server.sock.sendall(sent.encoded())
        if not self._send_body(body, int(asked.get("content-length") or 0), method, path):
            return False
        return self._answer(asked, method, path, kind)

    def _send_body(self, body: Iterator[memoryview], length: int, method: str, path: str) -> bool:
        passed, told = 0, False
        for piece in body:
            self._server.sock.sendall(piece)
            passed += len(piece)
            if not told and length / 2 <= passed < length:
                told = True
                if self._proxy.witness(Moment.HALFWAY, method, path):
                    return False
        return True

    def _answer_alone(self, fault: Fault) -> bool:
        if fault.kind is Kind.STALL_HEAD:
            self._hold()
            return False
        status, body, media = 200, _PAGE, "text/html"
        if fault.kind is Kind.PAGE_404:
            status, body, media = 404, b"404 page not found\n", "text/plain"
        elif fault.kind is Kind.STATUS:
            status, media = fault.status, "application/xml"
            body = b"<Error><Code>InjectedFault</Code><Message>by the proxy</Message></Error>"
        line = f"HTTP/1.1 {status} {_REASONS.get(status, 'OK')}"
        head = _Head(line, (("Content-Length", str(len(body))), ("Content-Type", media)))
        self._client.sock.sendall(head.encoded() + body)
        return True

    def _answer(self, asked: _Head, method: str, path: str, kind: Kind | None) -> bool:
        head = self._server.head()
        while head.line.split(" ", 2)[1] == "100":
            head = self._server.head()
        if kind is Kind.LOSE_ANSWER or self._proxy.witness(Moment.ANSWERED, method, path):
            return False
        if kind is Kind.LIE and head.get("content-range"):
            total = (head.get("content-range") or "").rpartition("/")[2]
            claimed = (asked.get("range") or "").replace("bytes=", "bytes ")
            head = head.with_("Content-Range", f"{claimed}/{total}")
        length, lives = _framing(head, method)
        self._client.sock.sendall(head.encoded())
        return self._body(length, kind) and lives

    def _body(self, length: int | None, kind: Kind | None) -> bool:
        """Pass the body back, or part of it; say whether the client can go on with the connection."""
        half = (length or 0) // 2
        faulty = bool(length) and kind in _HALFWAY
        for piece in self._server.pieces(half if faulty else length, self._buffer):
            self._client.sock.sendall(piece)
        if not faulty:
            return True
        if kind is Kind.STALL_BODY:
            self._hold()
        elif kind is Kind.RESET:
            # Without lingering, close() sends RST and drops what is unsent.
            self._client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif kind in (Kind.DRIBBLE, Kind.CORRUPT):
            rest = b"".join(bytes(piece) for piece in self._server.pieces((length or 0) - half, self._buffer))
            self._finish(rest, kind)
            return True
        return False

    def _finish(self, rest: bytes, kind: Kind) -> None:
        if kind is Kind.CORRUPT:
            self._client.sock.sendall(bytes([rest[0] ^ 1]) + rest[1:])
            return
        for byte in rest:
            self._client.sock.sendall(bytes([byte]))
            if self._released.wait(0.05):
                raise _Closed

    def _hold(self) -> None:
        """Return when the client hangs up or the fault is lifted."""
        while not self._released.is_set():
            if select.select([self._client.sock], [], [], 0.05)[0]:
                return


def _shifted(asked: str, shift: int) -> str:
    match = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
    if match is None:
        return asked
    return f"bytes={int(match[1]) + shift}-{int(match[2]) + shift}"


def _framing(head: _Head, method: str) -> tuple[int | None, bool]:
    """Return the body's length (None: until the server closes) and whether both connections live on."""
    status = head.line.split(" ", 2)[1]
    lives = (head.get("connection") or "").lower() != "close"
    if method == "HEAD" or status in ("204", "304"):
        return 0, lives
    length = head.get("content-length")
    if length is None:  # chunked, or until the end: passed on as it comes
        return None, False
    return int(length), lives


def main() -> None:
    """Run until interrupted."""
    parser = argparse.ArgumentParser(description="An HTTP proxy that adds latency.")
    parser.add_argument("--upstream", type=int, required=True, help="port of the server on loopback")
    parser.add_argument("--listen", type=int, default=0, help="port to listen on; 0: any")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each request")
    options = parser.parse_args()
    with FaultProxy(options.upstream, latency=options.latency, listen_port=options.listen) as proxy:
        print(proxy.port, flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
