"""Bearer tokens: whether they are asked for, whose one is, and what it is good for.

What Postgres said is believed for a few seconds, so that a burst of requests is one query; a token that is
removed stops working that much later. Tokens are known by their SHA-256 only: the catalog's unique index on
digests compares, so no comparison here takes longer the better one guesses.
Concurrency: the event loop's. Two requests may ask Postgres the same thing at once.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Literal

import trio
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from datas3tfs.api.browsers import reason_to_refuse
from datas3tfs.api.failures import Failures
from datas3tfs.core.model import Token
from datas3tfs.ports import Tokens

_BELIEVED_SECONDS = 5.0
_REMEMBERED = 1000  # tokens
_FORM = re.compile(r"d3t_[A-Za-z0-9_-]{43}\Z")

ANYBODY = Token(name="", can_write=True, datasets=None, created_ns=0)  # where nobody is asked


def new_token() -> str:
    """Make a token: 256 random bits."""
    return "d3t_" + secrets.token_urlsafe(32)


def digest_of(token: str) -> bytes:
    """Return what the catalog keeps of a token. It is as random as it is long: no salt, no stretching."""
    return hashlib.sha256(token.encode()).digest()


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use a server."""

    auth: Literal["auto", "token", "none"]
    is_loopback: bool  # only this machine can connect
    is_trusted: bool = False  # only this process can: nothing is asked, nothing is refused


@dataclass(slots=True)
class Guard:
    """Lets requests in."""

    tokens: Tokens
    access: Access
    _failures: Failures = field(default_factory=Failures)
    _found: dict[bytes, tuple[float, Token]] = field(default_factory=dict)  # digest → (since when, whose)
    _are_any: tuple[float, bool] | None = None  # (since when, whether there are tokens at all)

    async def asks(self) -> bool:
        """Say whether a token is asked for. Raises Unavailable."""
        if self.access.is_trusted or self.access.auth == "none":
            return False
        if self.access.auth == "token" or not self.access.is_loopback:
            return True
        now = trio.current_time()
        if self._are_any is None or now - self._are_any[0] >= _BELIEVED_SECONDS:
            self._are_any = (now, bool(await self.tokens.all()))
        return self._are_any[1]

    async def admit(self, request: HttpRequest) -> Token:
        """Return who sends a request. Raises HTTPException 401, 403 (a web page), 429; Unavailable."""
        if self.access.is_trusted:
            return ANYBODY
        if not await self.asks():
            reason = reason_to_refuse(request.headers, only_loopback=self.access.is_loopback)
            if reason is not None:
                raise HTTPException(403, reason)
            return ANYBODY
        return await self._bearer(request)

    async def _bearer(self, request: HttpRequest) -> Token:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        given = given.strip()
        if scheme.lower() != "bearer" or not given:
            raise _unauthorized("a token is needed: Authorization: Bearer …")
        client = request.client.host if request.client else ""
        digest = digest_of(given)
        wait = self._failures.wait(client)
        # A token that was right before is looked at all the same: others may come from that address.
        if wait and digest not in self._found:
            raise HTTPException(429, "too many wrong tokens came from here", {"Retry-After": str(wait)})
        token = await self._lookup(digest) if _FORM.match(given) else None
        if token is None:
            self._failures.add(client)
            raise _unauthorized("this token is not known (any more)")
        return token

    async def _lookup(self, digest: bytes) -> Token | None:
        now = trio.current_time()
        since, known = self._found.get(digest, (0.0, None))
        if known is not None and now - since < _BELIEVED_SECONDS:
            return known
        token = await self.tokens.find(digest)
        self._found.pop(digest, None)
        if token is not None:
            if len(self._found) >= _REMEMBERED:
                del self._found[next(iter(self._found))]
            self._found[digest] = (now, token)
        return token


def _unauthorized(detail: str) -> HTTPException:
    return HTTPException(401, detail, {"WWW-Authenticate": 'Bearer realm="datas3tfs"'})
