"""One range request: connections are used again while they are good, and nothing unwanted goes on."""

from __future__ import annotations

import dataclasses
import queue
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import httpx
import pytest
from anyio import to_thread

from datas3tfs.client import Tuning
from datas3tfs.client.ranges import Flight, Ranges, Refusal
from datas3tfs.client.retrying import Again
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid, Unavailable
from tests.client.conftest import Run

TUNING = Tuning(silence=20.0, connect=5.0)
BODY = bytes(range(256)) * 16


class Peer:
    """A server of one connection at a time that does what the test says. *accepted* counts connections."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme, port = "http" if context is None else "https", self._listener.getsockname()[1]
        self.url = f"{scheme}://127.0.0.1:{port}/bucket/key?signed=1"
        self._context = context
        self.accepted = 0
        self.heads: queue.Queue[bytes] = queue.Queue()
        self.hung_up = threading.Event()  # the client has closed a connection
        self.answer: Callable[[socket.socket], None] = send_all
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                with self._secured(connection) as stream, suppress(OSError):
                    while head := stream.recv(1 << 16):
                        self.heads.put(head)
                        self.answer(stream)
                    self.hung_up.set()

    def _secured(self, connection: socket.socket) -> socket.socket:
        return (
            connection if self._context is None else self._context.wrap_socket(connection, server_side=True)
        )

    def close(self) -> None:
        self._listener.close()


def send_all(connection: socket.socket) -> None:
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(BODY)}\r\n\r\n"
    connection.sendall(head.encode() + BODY)


def send_half_and_reset(connection: socket.socket) -> None:
    head = f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(BODY)}\r\n\r\n"
    connection.sendall(head.encode() + BODY[:2048])
    connection.recv(1)  # the client has taken what it wanted of it
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def send_and_close(connection: socket.socket) -> None:
    send_all(connection)
    connection.shutdown(socket.SHUT_RDWR)


def send_half(connection: socket.socket) -> None:
    connection.sendall(f"HTTP/1.1 206 Partial Content\r\nContent-Length: {len(BODY)}\r\n\r\n".encode())
    connection.sendall(BODY[:2048])


def refuse(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno!")


def answer_nothing(connection: socket.socket) -> None:
    """Wait for what will not come."""


@contextmanager
def peer(
    answer: Callable[[socket.socket], None] = send_all, context: ssl.SSLContext | None = None
) -> Iterator[Peer]:
    made = Peer(context)
    made.answer = answer
    try:
        yield made
    finally:
        made.close()


@contextmanager
def ranges_of(tuning: Tuning = TUNING, certificate: Path | None = None) -> Iterator[Ranges]:
    made = Ranges(tuning, ssl.create_default_context(cafile=certificate))
    try:
        yield made
    finally:
        made.close()


def let_pass(span: Span, status: int, headers: httpx.Headers) -> None:
    """Believe any answer."""


def flight(step: int = 1 << 20) -> Flight:
    return Flight(Span(100, 100 + len(BODY)), step)


def test_a_connection_is_used_again(run: Run[None]) -> None:
    async def work() -> None:
        with peer() as server, ranges_of() as ranges:
            for _ in range(5):
                one = flight()
                await ranges.fetch(server.url, one, let_pass)
                assert one.received() == BODY
            assert server.accepted == 1
            head = server.heads.get().decode()
            assert head.startswith("GET /bucket/key?signed=1 HTTP/1.1\r\n")
            assert f"\r\nRange: bytes=100-{99 + len(BODY)}\r\n" in head
            assert head.count("Host: ") == 1
            ranges.close()
            assert await to_thread.run_sync(server.hung_up.wait, 10)

    run(work)


@pytest.mark.parametrize("answer", [send_and_close, refuse])
def test_a_connection_that_is_over_is_not(run: Run[None], answer: Callable[[socket.socket], None]) -> None:
    async def work() -> None:
        with peer(answer) as server, ranges_of() as ranges:
            for _ in range(3):
                with suppress(Refusal):
                    await ranges.fetch(server.url, flight(), let_pass)
                await to_thread.run_sync(server.hung_up.wait, 10)
                server.hung_up.clear()
            assert server.accepted == 3

    run(work)


def test_what_the_check_does_not_let_pass_is_not_read(run: Run[None]) -> None:
    def check(span: Span, status: int, headers: httpx.Headers) -> None:
        assert (span, status, headers["content-length"]) == (Span(100, 4196), 206, "4096")
        raise Again("not what was asked for")

    async def work() -> None:
        with peer() as server, ranges_of() as ranges:
            one = flight()
            with pytest.raises(Again, match="not what was asked for"):
                await ranges.fetch(server.url, one, check)
            assert bytes(one.received()) == b""
            await ranges.fetch(server.url, flight(), let_pass)
            assert server.accepted == 2

    run(work)


def test_what_came_before_the_connection_broke_is_kept(run: Run[None]) -> None:
    async def work() -> None:
        quick = dataclasses.replace(TUNING, silence=0.3)
        with peer(send_half_and_reset) as server, ranges_of(quick) as ranges:
            one = flight(step=1024)
            with pytest.raises(Again, match=r"silent|broke"):
                await ranges.fetch(server.url, one, let_pass)
            assert one.received() == BODY[:2048]

    run(work)


@pytest.mark.parametrize("answer", [answer_nothing, send_half])
def test_what_is_cancelled_hangs_up_at_once(run: Run[None], answer: Callable[[socket.socket], None]) -> None:
    async def work() -> None:
        with peer(answer) as server, ranges_of(dataclasses.replace(TUNING, silence=100.0)) as ranges:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ranges.fetch, server.url, flight(), let_pass)
                await to_thread.run_sync(server.heads.get)
                tasks.cancel_scope.cancel()
            assert await to_thread.run_sync(server.hung_up.wait, 10)

    run(work)


@pytest.mark.parametrize("url", ["", "ftp://host/key", "http://", "/key", "http://host:x/"])
def test_an_address_that_is_none(run: Run[None], url: str) -> None:
    async def work() -> None:
        with ranges_of() as ranges, pytest.raises(Invalid, match="not an address of a web server"):
            await ranges.fetch(url, flight(), let_pass)

    run(work)


def test_nobody_there(run: Run[None]) -> None:
    async def work() -> None:
        with ranges_of() as ranges, pytest.raises(Again, match="no connection") as caught:
            await ranges.fetch("http://127.0.0.1:9/key?signed=1", flight(), let_pass)
        assert caught.value.undone

    run(work)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for loopback, and its key, in one file."""
    made = tmp_path_factory.mktemp("tls") / "both.pem"
    words = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    command = ["openssl", *words.split(), "-keyout", str(made), "-out", str(made)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return made


def test_over_tls_it_is_the_same(run: Run[None], certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def work() -> None:
        with peer(send_all, context) as server, ranges_of(TUNING, certificate) as ranges:
            for _ in range(3):
                one = flight(step=100)
                await ranges.fetch(server.url, one, let_pass)
                assert one.received() == BODY
            assert server.accepted == 1
            server.answer = send_half
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ranges.fetch, server.url, flight(), let_pass)
                for _ in range(4):
                    await to_thread.run_sync(server.heads.get)
                tasks.cancel_scope.cancel()
            assert await to_thread.run_sync(server.hung_up.wait, 10)
            with (
                ranges_of() as untrusting,
                pytest.raises(Unavailable, match="no trusted TLS"),
            ):
                await untrusting.fetch(server.url, flight(), let_pass)

    run(work)
