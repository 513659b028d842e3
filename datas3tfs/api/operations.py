"""What the API can do, as data: each route's paths, words, rights and limits. running.py runs them all.

Not for what they do: that is in a module for each noun. Frozen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from starlette.requests import Request as HttpRequest

from datas3tfs.api.backend import Backend
from datas3tfs.core.model import Token
from datas3tfs.wire.values import Request

B = TypeVar("B", bound=Request)

SHORT = 60.0  # seconds: what asks Postgres a few things
LONG = 15 * 60.0  # … what reads an object, or has S3 join its parts
VERY_LONG = 60 * 60.0  # … what copies objects, or goes through a bucket


class Scope(Enum):
    """Whose business an operation is, which decides who may do it."""

    OPEN = "anybody's; no token is asked for"
    ANY = "everybody's who has a token, whatever for; it shows them nothing but what is theirs"
    DATASET = "one dataset's, which the request names"
    UPLOAD = "the dataset's of the upload that the request names"
    ALL = "theirs only who may use every dataset"


@dataclass(frozen=True, slots=True)
class Call:
    """Who wants something done, and what with."""

    backend: Backend
    caller: Token
    is_trusted: bool  # the caller is this very process
    is_private: bool  # only this machine can connect, and nobody is asked for a token
    http: HttpRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation(Generic[B]):
    """A route, under all its paths."""

    method: str
    paths: tuple[str, ...]
    summary: str
    takes: type[B]  # the body; of a GET the query
    run: Callable[[Call, B], Awaitable[object]]
    scope: Scope
    names: str = ""  # the field of *takes* with the dataset's name or the upload's id
    changes: bool = False  # a read-only token does not do
    gives: Any = None  # the model of the answer, or a list of it; None: the answer is empty
    status: int = 200
    media_type: str = "application/json"  # of the answer, empty or not, as the Go servers say
    errors: tuple[int, ...] = ()  # besides those that any operation can answer
    seconds: float = SHORT  # for all of it, the reading of the body included
    is_heavy: bool = False  # it reads or copies objects: only a few at once
