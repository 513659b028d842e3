"""asyncpg's errors into those of datas3tfs.errors, at one place. No message in here shows a database URL.

What a constraint means to the caller is decided by the constraint's name in schema.sql.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from datas3tfs.core.names import printable
from datas3tfs.errors import Conflict, Datas3tError, Invalid, NotFound, Unavailable

URL_INVALID = "the database URL is not valid (special characters of a password are written %xx)"
NOT_MIGRATED = "the database has no datas3tfs schema yet: run `datas3tfs migrate`"

_BY_CONSTRAINT: dict[str, tuple[type[Datas3tError], str]] = {
    "key_claims_no_overlap": (Conflict, "some of these keys are taken already"),
    "s3_buckets_name_taken": (Conflict, "a bucket of this name is registered already"),
    "s3_buckets_bucket_taken": (Conflict, "this bucket of this endpoint is registered already"),
    "datarange_uploads_attempted_once": (Conflict, "this attempt has begun another upload"),
    "api_tokens_name_taken": (Conflict, "a token of this name exists already"),
    "datasets_name_taken": (Conflict, "a dataset of this name exists already"),
}
_BY_CLASS: list[tuple[type[asyncpg.PostgresError], type[Datas3tError], str]] = [
    (asyncpg.UndefinedTableError, Invalid, NOT_MIGRATED),
    (asyncpg.RaiseError, Invalid, ""),  # schema.sql's own refusals
    (asyncpg.UniqueViolationError, Conflict, "it exists already"),
    (asyncpg.ExclusionViolationError, Conflict, "it overlaps with another"),
    (asyncpg.ForeignKeyViolationError, NotFound, "what it refers to does not exist"),
    (asyncpg.IntegrityConstraintViolationError, Invalid, ""),
    (asyncpg.DataError, Invalid, "a value is out of range"),
]
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    ConnectionError,
)
# What asyncpg raises by itself. The second is what a query gets between the server's goodbye and the end of
# the stream (asyncpg 0.32): the connection is gone, and the library has not noticed.
CLIENT_ERRORS = (asyncpg.InterfaceError, asyncpg.InternalClientError)


class ConnectionLost(Exception):
    """A connection that worked broke in the middle of something; private to catalog/."""


def is_loss(exc: BaseException) -> bool:
    """Say whether *exc* means that the connection it came over is gone."""
    return isinstance(exc, _LOST)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise what the block raises as an error of the product that begins with *what* was attempted."""
    try:
        yield
    except asyncpg.PostgresError as exc:
        raise _from_server(what, exc) from exc
    except ConnectionLost as exc:
        raise Unavailable(f"{what}: the connection to Postgres broke") from exc
    except CLIENT_ERRORS as exc:
        raise Unavailable(f"{what}: Postgres cannot be used: {_one_line(exc)}") from exc
    except TimeoutError as exc:
        raise Unavailable(f"{what}: Postgres did not answer in time") from exc
    except OSError as exc:
        # Only the operating system's words: asyncpg's own may name more than the host.
        raise Unavailable(f"{what}: no connection to Postgres: {exc.strerror or type(exc).__name__}") from exc


def _from_server(what: str, exc: asyncpg.PostgresError) -> Datas3tError:
    named = _BY_CONSTRAINT.get(getattr(exc, "constraint_name", None) or "")
    if named is not None:
        return named[0](f"{what}: {named[1]}")
    for server_class, branch, text in _BY_CLASS:
        if isinstance(exc, server_class):
            return branch(f"{what}: {text or _one_line(exc)}")
    return Unavailable(f"{what}: Postgres refused: {_one_line(exc)}")


def _one_line(exc: BaseException) -> str:
    # args[0] is the bare message; str() of a server's error adds DETAIL, which quotes whole rows.
    lines = str(exc.args[0]).splitlines() if exc.args else []
    return printable(lines[0]) if lines else type(exc).__name__
