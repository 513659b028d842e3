"""Connections: what goes wrong on one ends that one only, and none is kept for nothing."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
import trio.testing
from hypercorn.trio.tcp_server import TCPServer

from datas3tfs.app import listening
from datas3tfs.app.listening import accept, bind, url_of
from datas3tfs.errors import Unavailable

POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n"
PUT = POST.replace(b"POST", b"PUT")
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
Message = dict[str, Any]


async def application(scope: Message, receive: Any, send: Any) -> None:
    """Read the body, but not of a PUT, then answer; break if asked to."""
    message = {"type": "http.request"}
    while scope["method"] != "PUT" and (message := await receive()).get("more_body"):
        pass
    if scope["path"] == "/break":
        raise RuntimeError("broken")
    if message["type"] == "http.request":
        await trio.lowlevel.checkpoint()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def listening_at() -> AsyncIterator[tuple[str, int]]:
    """Serve; stop at the end."""
    told = trio.Event()
    with bind("127.0.0.1", 0) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept, listener, None, application, told.wait)
            yield listener.getsockname()
            told.set()


async def answer_of(where: tuple[str, int], request: bytes = GET) -> bytes:
    """Return the first bytes that come back; b"" if the connection is closed."""
    async with await trio.open_tcp_stream(*where) as stream:
        await stream.send_all(request)
        with trio.fail_after(10):
            return bytes(await stream.receive_some(12))


async def test_clients_that_hang_up_anywhere_end_nothing_but_their_connection() -> None:
    """hypercorn 0.18 ends the whole server when a body breaks off while the answer is being written."""
    rolls = random.Random(5)
    whole = POST + b"12345" + GET + POST
    async with listening_at() as where:

        async def hang_up(request: bytes) -> None:
            stream = await trio.open_tcp_stream(*where)
            try:
                await stream.send_all(request)
                await stream.send_eof()
                if rolls.randrange(2):
                    with trio.move_on_after(5):
                        await stream.receive_some(1000)
            except trio.BrokenResourceError:
                pass
            finally:
                await trio.aclose_forcefully(stream)

        async with trio.open_nursery() as nursery:
            for cut in range(1, len(whole)):
                nursery.start_soon(hang_up, whole[:cut])
            for _ in range(50):
                nursery.start_soon(hang_up, PUT)
        assert await answer_of(where) == b"HTTP/1.1 200"


async def test_an_application_that_breaks_is_500(caplog: pytest.LogCaptureFixture) -> None:
    async with listening_at() as where:
        assert await answer_of(where, GET.replace(b" / ", b" /break ")) == b"HTTP/1.1 500"
        assert await answer_of(where) == b"HTTP/1.1 200"
    assert "RuntimeError" in caplog.text
    caplog.clear()


async def test_too_many_connections_are_closed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_MOST", 3)
    async with listening_at() as where:
        streams = [await trio.open_tcp_stream(*where) for _ in range(3)]
        for stream in streams:
            await stream.send_all(GET)
            assert await stream.receive_some(12) == b"HTTP/1.1 200"
        extra = await trio.open_tcp_stream(*where)
        with trio.fail_after(10):
            with suppress(trio.BrokenResourceError):  # reset
                assert await extra.receive_some(12) == b""
        for stream in (*streams, extra):
            await stream.aclose()


async def test_closed_connections_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_MOST", 3)
    async with listening_at() as where:
        for _ in range(10):
            assert await answer_of(where) == b"HTTP/1.1 200"
            await trio.testing.wait_all_tasks_blocked(0.01)


async def test_an_error_of_hypercorn_ends_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when two of its tasks write at once, which a client that hangs up can bring about (0.18)."""
    caplog.set_level(logging.INFO)

    async def close(connection: Any) -> None:
        await trio.aclose_forcefully(connection.stream)
        raise trio.BusyResourceError("another task is currently sending data")

    async with listening_at() as where:
        with monkeypatch.context() as patch:
            patch.setattr(TCPServer, "_close", close)
            for _ in range(3):
                assert await answer_of(where) == b"HTTP/1.1 200"
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert await answer_of(where) == b"HTTP/1.1 200"
    assert "a connection has failed (ExceptionGroup)" in caplog.text or "BusyResource" in caplog.text


def test_an_address_that_cannot_be_had_is_an_error_of_ours() -> None:
    with bind("127.0.0.1", 0) as listener:
        _, port = listener.getsockname()
        assert url_of(listener, None) == f"http://127.0.0.1:{port}"
        with pytest.raises(Unavailable, match="cannot listen"):
            bind("127.0.0.1", port)
    with pytest.raises(Unavailable, match="cannot listen"):
        bind("host.invalid", 0)
    with bind("::1", 0) as listener:
        assert url_of(listener, None).startswith("http://[::1]:")
