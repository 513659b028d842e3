"""How every operation runs: a place and a time for it, who asks, what is asked, may they, do it, answer.

Concurrency: at most so many requests are being worked on, heavy ones fewer; the others are turned away (503),
or wait, if heavy. A place is given back before the answer is sent, so that no slow reader keeps it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import trio
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from datas3tfs.api.backend import Backend
from datas3tfs.api.bodies import parse_body, parse_query, read_body
from datas3tfs.api.operations import LONG, Call, Operation, Scope
from datas3tfs.api.permits import check_dataset, check_rights
from datas3tfs.api.problems import RETRY_SECONDS, answer_error
from datas3tfs.api.tokens import ANYBODY, Guard
from datas3tfs.core.model import Token

CALLER = "datas3tfs.caller"  # in the ASGI scope: the name of the token, for the access log
_GONE = 499  # nginx's word for: the client did not wait; nobody sees it but the log


@dataclass(frozen=True, slots=True)
class Places:
    """How many requests are worked on at once."""

    requests: int = 512
    heavy: int = 4  # each may hold some ten megabytes
    very_long: int = 4  # of those that may take an hour: the others must not wait for them


class Runner:
    """Makes handlers of operations."""

    def __init__(self, backend: Backend, guard: Guard, places: Places) -> None:
        self._backend = backend
        self._guard = guard
        self._free = places.requests
        self._heavy = trio.CapacityLimiter(places.heavy)
        self._very_long = trio.CapacityLimiter(places.very_long)

    def handler(self, operation: Operation[Any]) -> Callable[[HttpRequest], Awaitable[Response]]:
        """Return what answers requests for *operation*; it raises nothing."""

        async def handle(request: HttpRequest) -> Response:
            try:
                with self._place(operation):
                    return await self._in_time(operation, request)
            except ClientDisconnect:
                return Response(status_code=_GONE)
            except Exception as exc:
                return answer_error(exc, request.headers.get("accept"))

        return handle

    @contextmanager
    def _place(self, operation: Operation[Any]) -> Iterator[None]:
        if self._free <= 0 and operation.scope is not Scope.OPEN:
            raise HTTPException(503, "too many requests at once", {"Retry-After": str(RETRY_SECONDS)})
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def _in_time(self, operation: Operation[Any], request: HttpRequest) -> Response:
        has_arrived = False
        with trio.move_on_after(operation.seconds):
            caller = await self._admit(operation, request)
            body = b"" if operation.method == "GET" else await read_body(request)
            has_arrived = True
            return await self._work(operation, request, caller, body)
        if has_arrived:
            raise HTTPException(503, f"not done within {operation.seconds:g} s; try again")
        raise HTTPException(408, f"the request did not arrive within {operation.seconds:g} s")

    async def _admit(self, operation: Operation[Any], request: HttpRequest) -> Token:
        if operation.scope is Scope.OPEN:
            return ANYBODY
        caller = await self._guard.admit(request)
        request.scope[CALLER] = caller.name
        check_rights(caller, operation)
        return caller

    async def _work(
        self, operation: Operation[Any], request: HttpRequest, caller: Token, body: bytes
    ) -> Response:
        is_query = operation.method == "GET"
        given = parse_query(request, operation.takes) if is_query else parse_body(body, operation.takes)
        await check_dataset(self._backend, caller, operation, given)
        access = self._guard.access
        is_private = access.is_loopback and not await self._guard.asks()
        call = Call(self._backend, caller, access.is_trusted, is_private, request)
        if not operation.is_heavy:
            return _answer(operation, await operation.run(call, given))
        async with self._very_long if operation.seconds > LONG else self._heavy:
            return _answer(operation, await operation.run(call, given))


def _answer(operation: Operation[Any], result: object) -> Response:
    """Return *result* as bytes: what has no value is left out, as Go does with `omitempty`."""
    if isinstance(result, Response):
        return result
    content = b"" if result is None else _encoded(result)
    has_type = operation.status != 204 and operation.media_type
    return Response(content, operation.status, media_type=operation.media_type if has_type else None)


def _encoded(result: object) -> bytes:
    if isinstance(result, BaseModel):
        return result.model_dump_json(exclude_none=True).encode()
    assert isinstance(result, Sequence)
    return b"[" + b",".join(_encoded(one) for one in result) + b"]"
