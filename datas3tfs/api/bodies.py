"""What clients send: a body of JSON, or the query of a GET, into a model of wire/.

The Content-Type is not looked at: `curl -d` says that it sends a form, and Go's clients say nothing. JSON
that cannot be read, a field that is missing or has the wrong type is 400, as in the Go servers; a value of
the right type that is out of its range is 422. Nothing of what was sent is repeated: it may be a secret.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest

from datas3tfs.core.names import printable

BODY_LIMIT = 2 * 2**20  # bytes; 10,000 ETags are half of it

M = TypeVar("M", bound=BaseModel)

# pydantic's names of "the type is right, the value is not".
_OUT_OF_RANGE = {
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "string_too_long",
    "string_too_short",
    "too_long",
    "int_parsing_size",
}


async def read_body(request: HttpRequest) -> bytes:
    """Return the request's body. Raises HTTPException 413 as soon as it is known to be too large."""
    if _announced(request) > BODY_LIMIT:
        raise _too_large()
    body = bytearray()
    async with aclosing(request.stream()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > BODY_LIMIT:
                raise _too_large()
    return bytes(body)


def parse_body(body: bytes, model: type[M]) -> M:
    """Return what a body says. Raises HTTPException 400 or 422."""
    if not body.strip():
        raise HTTPException(400, "the request has no body: a JSON object is needed")
    try:
        return model.model_validate_json(body)
    except ValidationError as exc:
        raise _refusal(exc) from None  # the error carries what was sent


def parse_query(request: HttpRequest, model: type[M]) -> M:
    """Return what a query says. Raises HTTPException 400 or 422."""
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as exc:
        raise _refusal(exc) from None


def _announced(request: HttpRequest) -> int:
    try:
        return int(request.headers.get("content-length", "0"))
    except ValueError:
        raise HTTPException(400, "the Content-Length is not a number") from None


def _too_large() -> HTTPException:
    return HTTPException(413, f"the request's body is longer than {BODY_LIMIT} bytes")


def _refusal(exc: ValidationError) -> HTTPException:
    problems = exc.errors(include_input=False, include_url=False, include_context=False)
    malformed = [problem for problem in problems if problem["type"] not in _OUT_OF_RANGE]
    first = (malformed or problems)[0]
    return HTTPException(400 if malformed else 422, _text(first))


def _text(problem: ErrorDetails) -> str:
    where = printable(".".join(str(part) for part in problem["loc"]))
    return f"{where}: {problem['msg']}" if where else f"the body is not what it must be: {problem['msg']}"
