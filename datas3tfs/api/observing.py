"""Around the whole application: figures, the access log, HEAD, and headers that every answer has.

The log line has the route's template, never the path, the query, a header or a URL as they came; whom a token
belongs to by the token's name. Plain ASGI: answers are not held back. Concurrency: no state but the metrics'.
"""

from __future__ import annotations

import logging

import trio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from datas3tfs.api.metrics import Metrics
from datas3tfs.api.running import CALLER
from datas3tfs.core.names import printable

log = logging.getLogger(__name__)

# Answers hold presigned URLs: nobody is to keep them, guess what they are, or show them in a frame.
_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]


class Observed:
    """An application, looked at."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; note how it was answered."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, status, method = trio.current_time(), 0, scope["method"]
        inner = {**scope, "method": "GET"} if method == "HEAD" else scope

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *_HEADERS]}
            elif method == "HEAD" and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        self._metrics.begun()
        try:
            await self._app(inner, receive, sending)
        finally:
            seconds = trio.current_time() - begun
            route = _route(inner, status)
            self._metrics.ended(route, method, status, seconds)
            log.info(
                "%s %s %s %d %.0f ms%s",
                _client(scope),
                printable(method),
                route or "(no such path)",
                status,
                seconds * 1000,
                f" {printable(inner[CALLER])}" if inner.get(CALLER) else "",
            )


def _route(scope: Scope, status: int) -> str | None:
    route = scope.get("route")
    path = getattr(route, "path", None)
    return path if isinstance(path, str) else None


def _client(scope: Scope) -> str:
    client = scope.get("client")
    return printable(str(client[0])) if client else "-"
