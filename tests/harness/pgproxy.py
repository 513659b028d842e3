"""A proxy before Postgres that understands both sides' messages: to lose one, or to break off at one.

It plays what a real network does at the worst moment (a connection that dies during COMMIT), what pgbouncer
in transaction mode does (notifications that never arrive), and tells a witness which statements pass. No
TLS: use sslmode=disable. One trio task per direction and connection; `running_pgproxy` is for tests without
trio, and runs everything in a thread.
"""

from __future__ import annotations

import queue
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeVar
from urllib.parse import urlsplit

import trio

T = TypeVar("T")

_CHUNK = 1 << 16
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError)  # either end hung up: so does the other


class Fate(Enum):
    """What becomes of a message of the server."""

    PASS = auto()
    LOSE = auto()
    BREAK = auto()  # the client's connection, before it sees the message


Judge = Callable[[bytes, bytes], Fate]  # by the message's type (one letter) and body


def passing(kind: bytes, body: bytes) -> Fate:
    """Pass every message."""
    return Fate.PASS


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement about to be passed on, or *answered* and about to be told so; *before* are those before
    it in its transaction, from BEGIN on."""

    text: str
    before: tuple[str, ...]
    answered: bool


Witness = Callable[[Statement], bool]  # True: hang up on both sides here


def indifferent(statement: Statement) -> bool:
    """Let every statement pass."""
    return False


class CommitsUnheard:
    """A judge: each time it is armed, one COMMIT succeeds and the client does not hear of it."""

    def __init__(self) -> None:
        self._armed = False
        self._meanwhile: Callable[[], object] | None = None

    def __call__(self, kind: bytes, body: bytes) -> Fate:
        if self._armed and kind == b"C" and body == b"COMMIT\0":
            self._armed = False
            if self._meanwhile is not None:
                self._meanwhile()
            return Fate.BREAK
        return Fate.PASS

    async def during(self, call: Awaitable[T], meanwhile: Callable[[], object] | None = None) -> T:
        """Return what *call* does, its COMMIT unheard; *meanwhile* is called before it can try again."""
        self._armed, self._meanwhile = True, meanwhile
        result = await call
        assert not self._armed, "there was no COMMIT"
        return result


class CommitsLost:
    """A witness: each time it is armed, one COMMIT does not reach the server."""

    def __init__(self) -> None:
        self._armed = False

    def __call__(self, statement: Statement) -> bool:
        if self._armed and statement.text.startswith("COMMIT") and not statement.answered:
            self._armed = False
            return True
        return False

    async def during(self, call: Awaitable[T]) -> T:
        """Return what *call* does, its COMMIT lost."""
        self._armed = True
        result = await call
        assert not self._armed, "there was no COMMIT"
        return result


@dataclass(slots=True)
class PgProxy:
    """A running proxy; *judge* and *witness* may be replaced at any time. Both are called by its thread."""

    url: str
    judge: Judge
    witness: Witness = indifferent
    broken: int = 0  # connections that were cut
    _connections: set[trio.CancelScope] = field(default_factory=set)
    _token: trio.lowlevel.TrioToken | None = None

    def cut(self) -> None:
        """Break all connections; new ones are accepted. From any thread."""
        assert self._token is not None
        self._token.run_sync_soon(self._cut)

    def _cut(self) -> None:
        self.broken += len(self._connections)
        for scope in self._connections:
            scope.cancel()


@asynccontextmanager
async def open_pgproxy(url: str) -> AsyncIterator[PgProxy]:
    """Run a proxy to the server of *url* for the block; its own url leads to the same database."""
    parts = urlsplit(url)
    assert parts.port is not None
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    own_port = listeners[0].socket.getsockname()[1]
    proxy = PgProxy(url.replace(f":{parts.port}/", f":{own_port}/") + "?sslmode=disable", passing)
    proxy._token = trio.lowlevel.current_trio_token()

    async def handle(client: trio.SocketStream) -> None:
        with (
            suppress(OSError),
            trio.CancelScope() as scope,
        ):  # the server is away: so is the client's connection
            proxy._connections.add(scope)
            try:
                await _relay(proxy, client, parts.port)
            finally:
                proxy._connections.discard(scope)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()


@contextmanager
def running_pgproxy(url: str) -> Iterator[PgProxy]:
    """Do the same in a thread, for tests without trio."""
    opened: queue.SimpleQueue[tuple[PgProxy, trio.Event, trio.lowlevel.TrioToken]] = queue.SimpleQueue()

    async def serve() -> None:
        async with open_pgproxy(url) as proxy:
            ended = trio.Event()
            opened.put((proxy, ended, trio.lowlevel.current_trio_token()))
            await ended.wait()

    thread = threading.Thread(target=trio.run, args=(serve,), daemon=True, name="pgproxy")
    thread.start()
    proxy, ended, token = opened.get(timeout=10)
    try:
        yield proxy
    finally:
        token.run_sync_soon(ended.set)
        thread.join(10)


async def _relay(proxy: PgProxy, client: trio.SocketStream, port: int | None) -> None:
    assert port is not None
    async with client, await trio.open_tcp_stream("127.0.0.1", port) as server:
        talk = _Conversation(proxy)

        async def upwards() -> None:
            with suppress(*_GONE):
                await _asked(talk, client, server)
            nursery.cancel_scope.cancel()

        async def downwards() -> None:
            with suppress(*_GONE):
                await _judged(talk, server, client)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upwards)
            nursery.start_soon(downwards)


class _Conversation:
    """What one connection is doing. asyncpg has one statement under way at a time, which is relied upon."""

    def __init__(self, proxy: PgProxy) -> None:
        self.proxy = proxy
        self._prepared: dict[bytes, str] = {}
        self._transaction: list[str] = []
        self._current: str | None = None  # passed on, not answered

    def asks(self, kind: bytes, body: bytes) -> bool:
        """Take note of a message of the client; say whether to hang up instead of passing it on."""
        if kind == b"P":  # Parse: name, statement
            name, text = body.split(b"\0", 2)[:2]
            self._prepared[name] = text.decode()
            return False
        if kind == b"B":  # Bind: portal, name; Execute follows
            self._current = self._prepared.get(body.split(b"\0", 2)[1], "")
        elif kind == b"Q":
            self._current = body[:-1].decode()
        else:
            return False
        return self.proxy.witness(Statement(self._current, tuple(self._transaction), answered=False))

    def answers(self, kind: bytes) -> bool:
        """Take note of a message of the server; say whether to hang up instead of passing it on."""
        # CommandComplete, or PortalSuspended: asyncpg asks for one row where one is wanted.
        if kind not in (b"C", b"s") or self._current is None:
            return False
        text, self._current = self._current, None
        before = tuple(self._transaction)
        if text.startswith(("COMMIT", "ROLLBACK")):
            self._transaction.clear()
        elif before or text.startswith("BEGIN"):
            self._transaction.append(text)
        return self.proxy.witness(Statement(text, before, answered=True))


async def _asked(talk: _Conversation, client: trio.SocketStream, server: trio.SocketStream) -> None:
    """Pass on the client's messages until one breaks the connection. The first has no type."""
    pending = bytearray()
    typed = 0
    while chunk := await client.receive_some(_CHUNK):
        pending += chunk
        while len(pending) >= typed + 4 and len(pending) >= (
            length := typed + struct.unpack_from(">I", pending, typed)[0]
        ):
            message = bytes(pending[:length])
            del pending[:length]
            if typed and talk.asks(message[:1], message[5:]):
                return
            typed = 1
            await server.send_all(message)


async def _judged(talk: _Conversation, server: trio.SocketStream, client: trio.SocketStream) -> None:
    """Pass on the server's messages (type, length including itself, body) until one breaks the connection."""
    pending = bytearray()
    while chunk := await server.receive_some(_CHUNK):
        pending += chunk
        while len(pending) >= 5 and len(pending) > (length := struct.unpack_from(">I", pending, 1)[0]):
            message = bytes(pending[: length + 1])
            del pending[: length + 1]
            fate = talk.proxy.judge(message[:1], message[5:])
            if fate is Fate.BREAK or talk.answers(message[:1]):
                return
            if fate is Fate.PASS:
                await client.send_all(message)
