"""A proxy before Postgres that understands the server's messages: to lose one, or to break off at one.

It plays what a real network does at the worst moment (a connection that dies during COMMIT) and what
pgbouncer in transaction mode does (notifications that never arrive). No TLS: use sslmode=disable.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from urllib.parse import urlsplit

import trio

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


@dataclass(slots=True)
class PgProxy:
    """A running proxy; *judge* may be replaced at any time."""

    url: str
    judge: Judge


@asynccontextmanager
async def open_pgproxy(url: str) -> AsyncIterator[PgProxy]:
    """Run a proxy to the server of *url* for the block; its own url leads to the same database."""
    parts = urlsplit(url)
    assert parts.port is not None
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    own_port = listeners[0].socket.getsockname()[1]
    proxy = PgProxy(url.replace(f":{parts.port}/", f":{own_port}/") + "?sslmode=disable", passing)

    async def handle(client: trio.SocketStream) -> None:
        with suppress(OSError):  # the server is away: so is the client's connection
            await _relay(proxy, client, parts.port)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, listeners)
        try:
            yield proxy
        finally:
            nursery.cancel_scope.cancel()


async def _relay(proxy: PgProxy, client: trio.SocketStream, port: int | None) -> None:
    assert port is not None
    async with client, await trio.open_tcp_stream("127.0.0.1", port) as server:

        async def upwards() -> None:
            with suppress(*_GONE):
                async for chunk in client:
                    await server.send_all(chunk)
            nursery.cancel_scope.cancel()

        async def downwards() -> None:
            with suppress(*_GONE):
                await _judged(proxy, server, client)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upwards)
            nursery.start_soon(downwards)


async def _judged(proxy: PgProxy, server: trio.SocketStream, client: trio.SocketStream) -> None:
    """Pass on the server's messages (type, length including itself, body) until one breaks the connection."""
    pending = bytearray()
    while chunk := await server.receive_some(_CHUNK):
        pending += chunk
        while len(pending) >= 5 and len(pending) > (length := struct.unpack_from(">I", pending, 1)[0]):
            message = bytes(pending[: length + 1])
            del pending[: length + 1]
            fate = proxy.judge(message[:1], message[5:])
            if fate is Fate.BREAK:
                return
            if fate is Fate.PASS:
                await client.send_all(message)
