"""The one table from errors to HTTP statuses, and what an error looks like to a client.

A problem is JSON (RFC 9457), or one line of text for who does not accept JSON: the Go clients, which say
nothing of what they accept, show the body as it is. Not for deciding what is wrong. Pure but for the log:
what the operator must know is written here, and nowhere deeper.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import Response

from datas3tfs.core.names import printable
from datas3tfs.errors import (
    Conflict,
    Corrupt,
    Datas3tError,
    Forbidden,
    Full,
    Invalid,
    NotFound,
    Unavailable,
)
from datas3tfs.wire.answers import Problem

log = logging.getLogger(__name__)

# The class nearest to an error's own counts.
STATUSES: dict[type[Datas3tError], int] = {
    NotFound: 404,
    Conflict: 409,
    Invalid: 422,
    Forbidden: 403,
    Corrupt: 500,
    Unavailable: 503,
    Full: 503,
}
RETRY_SECONDS = 5  # what a client that gets 503 is asked to wait
_DETAIL_LIMIT = 2000  # characters
_JSON_TYPES = {"*/*", "application/*", "application/json", "application/problem+json"}


def status_of(error: Datas3tError) -> int:
    """Return the status a client gets for *error*; 500 for one that nobody should have raised."""
    return next((STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES), 500)


def answer_error(error: Exception, accept: str | None) -> Response:
    """Return what a client is told of *error*; log what it is not told, or cannot help."""
    plain = _plain(error)
    if isinstance(plain, HTTPException):
        return answer_problem(plain.status_code, plain.detail, accept, plain.headers)
    if not isinstance(plain, Datas3tError):
        log.error("unexpected failure; please report it", exc_info=error)
        return answer_problem(500, "internal error; the server's log says more", accept)
    status = status_of(plain)
    if status >= 500:
        log.log(logging.WARNING if status == 503 else logging.ERROR, "%s", printable(str(plain)))
    return answer_problem(status, str(plain), accept)


def answer_problem(
    status: int, detail: str, accept: str | None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a problem in the form that a client with this Accept header (None: it sent none) takes."""
    shown = "".join(printable(detail[at : at + 100]) for at in range(0, min(len(detail), _DETAIL_LIMIT), 100))
    sent = dict(headers or {})
    if status == 503:
        sent.setdefault("Retry-After", str(RETRY_SECONDS))
    if accepts_json(accept):
        problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=shown)
        return Response(problem.model_dump_json(), status, sent, "application/problem+json")
    return Response(shown + "\n", status, sent, "text/plain; charset=utf-8")


def accepts_json(accept: str | None) -> bool:
    """Say whether an Accept header lets JSON in; one that is missing or empty does (RFC 9110, 12.5.1)."""
    if accept is None or not accept.strip():
        return True
    return any(_is_json(one) for one in accept.split(","))


def _is_json(media_range: str) -> bool:
    name, *parameters = (part.strip().lower() for part in media_range.split(";"))
    pairs = [one.partition("=") for one in parameters]
    weights = [value.strip() for key, _, value in pairs if key.strip() == "q"]
    is_excluded = bool(weights) and weights[0].rstrip("0") in ("", ".", "0.")
    return name in _JSON_TYPES and not is_excluded


def _plain(error: BaseException) -> BaseException:
    """Return the first of a group of errors of ours, which nurseries make, or *error* as it is."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    leaves = [_plain(inner) for inner in error.exceptions]
    return leaves[0] if all(isinstance(leaf, Datas3tError) for leaf in leaves) else error
