"""Calls of the server: JSON there and back, errors as ours. Not for what the routes are (server.py).

Concurrency: any number of calls at once.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from datas3tfs.client.connections import timeouts, translated
from datas3tfs.client.retrying import Again, Retrier, Tries
from datas3tfs.client.tuning import Tuning
from datas3tfs.core.names import printable
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, Forbidden, Invalid, NotFound
from datas3tfs.wire.answers import Problem
from datas3tfs.wire.values import Request

T = TypeVar("T")

_PASSES = frozenset({408, 425, 429, 502, 503, 504})
_BRANCHES: dict[int, type[Datas3tError]] = {401: Forbidden, 403: Forbidden, 404: NotFound, 409: Conflict}
_LONGEST_WAIT = 3600.0  # seconds; a Retry-After beyond is not meant for us


class Api:
    """The server at one address."""

    def __init__(self, pool: httpx.AsyncClient, retrier: Retrier, tuning: Tuning, name: str) -> None:
        self._pool = pool
        self._retrier = retrier
        self._tuning = tuning
        self._name = name  # for messages

    async def ask(
        self,
        method: str,
        path: str,
        answer: TypeAdapter[T],
        body: Request | None = None,
        *,
        params: dict[str, str] | None = None,
        silence: float | None = None,
        tries: Tries | None = None,
    ) -> T:
        """Call a route and return its JSON as *answer*; *silence*: seconds until it must have come.

        Raises what the server says (NotFound, Conflict, Invalid, Forbidden, Corrupt), Unavailable.
        """

        async def attempt() -> T:
            content = await self._attempt(method, path, body, params, silence)
            try:
                return answer.validate_json(content)
            except ValidationError:
                raise Again("what came is not what a datas3tfs server answers") from None

        return await self._retrier.run(self._what(path), attempt, tries=tries)

    async def fetch(
        self,
        method: str,
        path: str,
        body: Request | None = None,
        *,
        params: dict[str, str] | None = None,
        silence: float | None = None,
        tries: Tries | None = None,
    ) -> bytes:
        """Call a route and return the body of its answer as it is. Raises as `ask`."""

        async def attempt() -> bytes:
            return await self._attempt(method, path, body, params, silence)

        return await self._retrier.run(self._what(path), attempt, tries=tries)

    def _what(self, path: str) -> str:
        return f"{self._name}: {path}"

    async def _attempt(
        self,
        method: str,
        path: str,
        body: Request | None,
        params: dict[str, str] | None,
        silence: float | None,
    ) -> bytes:
        content = None if body is None else body.model_dump_json(exclude_none=True).encode()
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        with translated():
            response = await self._pool.request(
                method,
                path.removeprefix("/"),
                content=content,
                headers=headers,
                params=params,
                timeout=timeouts(self._tuning, silence),
            )
        if response.is_success and response.headers.get("Content-Type", "").startswith("text/html"):
            raise Again("a page came, which a datas3tfs server never sends")
        if response.is_success:
            return response.content
        raise self._refusal(response)

    def _refusal(self, response: httpx.Response) -> Exception:
        status, problem = response.status_code, _problem(response)
        said = printable(" ".join(problem.detail.split())) if problem else f"status {status}"
        if status in _PASSES or (status >= 500 and problem is None):
            return Again(said, after=_retry_after(response), undone=status == 429)
        if status >= 500:
            return Corrupt(said)
        if problem is not None:
            return _BRANCHES.get(status, Invalid)(said)
        if status in (401, 403):
            return Forbidden(f"{self._name}: access refused ({said})")
        if response.is_redirect:
            return Invalid(f"{self._name}: redirects elsewhere; give the address it really has")
        return Invalid(f"{self._name}: not a datas3tfs server ({said})")


def _problem(response: httpx.Response) -> Problem | None:
    """Return the problem the server has stated; None if it was something before it that answered."""
    if not response.headers.get("Content-Type", "").startswith("application/problem+json"):
        return None
    try:
        return Problem.model_validate_json(response.content)
    except ValidationError:
        return None


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that RFC 9110's Retry-After asks for, a number or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), _LONGEST_WAIT)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return min(max((moment - datetime.now(UTC)).total_seconds(), 0.0), _LONGEST_WAIT)
