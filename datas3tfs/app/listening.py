"""Accept connections and have hypercorn speak HTTP on each; whatever goes wrong on one ends that one only.

hypercorn's own `serve` lets an error of one connection end all (0.18: a client that hangs up in the middle of
a body while it is being answered is enough), so its parts are put together here. Not for what is answered.
Concurrency: each connection is a task; they end with `accept`.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

from datas3tfs.errors import Unavailable

log = logging.getLogger(__name__)

FINISH_SECONDS = 30.0  # for what runs when told to stop; what takes longer can be asked for again
_HEAD_SECONDS = 20  # for a request's head to arrive, and for an idle connection
_SILENT_SECONDS = 60  # for a client to take what is sent to it
_BACKLOG = 1024  # connections that may wait to be accepted; the kernel may allow fewer
_MOST = 700  # connections at once: S3 and Postgres need descriptors, too, and 1024 is a usual limit


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises Unavailable (taken, not ours)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as exc:
        raise Unavailable(f"{host}:{port}: cannot listen there: {exc.strerror}") from exc
    # Connections inherit these (tcp(7)); the first covers a peer whose window stays closed, too.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_SECONDS * 1000)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket, tls: ssl.SSLContext | None) -> str:
    """Return how to call what listens there."""
    host, port, *_ = listener.getsockname()
    return f"{'http' if tls is None else 'https'}://{f'[{host}]' if ':' in host else host}:{port}"


async def accept(
    listener: socket.socket, tls: ssl.SSLContext | None, application: Any, stop: Callable[[], Awaitable[None]]
) -> None:
    """Serve *application* until *stop* returns; then take nothing new, and finish what runs."""
    plain = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
    doors: Any = plain if tls is None else trio.SSLListener(plain, tls, https_compatible=True)
    context = WorkerContext(None)
    async with trio.open_nursery() as connections:
        answer = partial(_answer, _Answering(application, context), connections)
        async with trio.open_nursery() as accepting:
            accepting.start_soon(partial(trio.serve_listeners, answer, [doors], handler_nursery=connections))
            await stop()
            accepting.cancel_scope.cancel()  # which closes the listener
        await context.terminated.set()  # idle connections are closed
        connections.cancel_scope.deadline = trio.current_time() + FINISH_SECONDS


class _Answering:
    """What all connections have in common."""

    def __init__(self, application: Any, context: WorkerContext) -> None:
        self.config = _config()
        self.application = wrap_app(application, 0, "asgi")
        self.context = context


class _Connection(TCPServer):
    """hypercorn's, whose task outlives a connection that its client has closed for as long as an idle one."""

    _is_over = False

    async def _read_data(self) -> None:
        await super()._read_data()
        self._is_over = True
        await self.idle_task.stop()

    async def _idle_timeout(self) -> None:
        if not self._is_over:
            await super()._idle_timeout()


async def _answer(common: _Answering, connections: trio.Nursery, stream: Any) -> None:
    """Speak HTTP on one connection."""
    try:
        if len(connections.child_tasks) > _MOST:
            with trio.move_on_after(1.0):
                await trio.aclose_forcefully(stream)
            return
        await _Connection(
            common.application, common.config, common.context, ConnectionState({}), stream
        ).run()
    except Exception as exc:
        # The client's doing, or hypercorn's; what the application raises is answered and logged there.
        log.info("a connection has failed (%s)", type(exc).__name__)
        log.debug("of this", exc_info=exc)


async def _stay_with_http1(connection: H11Protocol, event: h11.Request) -> None:
    """Take no notice of a wish for HTTP/2 without TLS, which no client of ours has: a connection that asks
    for it and says nothing more would be kept for ever (hypercorn 0.18)."""


def _config() -> Config:
    H11Protocol._check_protocol = _stay_with_http1  # type: ignore[assignment,method-assign]  # there is no setting
    config = Config()
    config.keep_alive_timeout = _HEAD_SECONDS
    config.ssl_handshake_timeout = _HEAD_SECONDS
    config.include_server_header = False
    config.accesslog = None  # api/observing.py writes one
    config.errorlog = logging.getLogger("hypercorn.error")
    return config
