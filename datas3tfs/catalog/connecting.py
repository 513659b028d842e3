"""One connection to Postgres, from a URL whose password shows nowhere, and its transactions.
asyncio-flavoured."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import asyncpg

from datas3tfs.catalog.translate import URL_INVALID
from datas3tfs.errors import Invalid

T = TypeVar("T")
# Both are generic in the stubs only.
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
PooledConnection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

# pgbouncer refuses other start-up parameters unless told not to.
_SERVER_SETTINGS = {"application_name": "datas3tfs"}


def checked_url(db_url: str) -> str:
    """Return *db_url* if it is a postgres:// or postgresql:// URL. Raises Invalid, not quoting it."""
    if not db_url.startswith(("postgres://", "postgresql://")):
        raise Invalid("the database URL does not begin with postgresql://")
    return db_url


async def connect(db_url: str, **options: Any) -> Connection:
    """Connect as asyncpg.connect does; the caller sets the deadline.

    Raises Invalid, unchained and without quoting it, if the URL is malformed: parts of a password may be
    anywhere in it, and asyncpg quotes what it does not understand.
    """
    settings = {**_SERVER_SETTINGS, **(options.pop("server_settings", None) or {})}
    try:
        connection: Connection = await asyncpg.connect(db_url, server_settings=settings, **options)
    except OSError:  # some of ssl's errors are ValueErrors, too
        raise
    except ValueError:
        raise Invalid(URL_INVALID) from None
    return connection


async def in_transaction(connection: Connection | PooledConnection, work: Callable[[], Awaitable[T]]) -> T:
    """Run *work* in a transaction. If that is cancelled, nothing is said to the server: asyncpg's own block
    would wait for its answer, for ever if it is silent. The caller hangs up, which rolls back as well."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        result = await work()
    except Exception:
        await transaction.rollback()
        raise
    await transaction.commit()
    return result
