"""Seal the buckets' credentials anew: with another encryption key, or other credentials of a bucket.

For an administrator, beside whatever runs: programs that run keep the credentials they have read. Each
function is one transaction. No credential and no key gets into a message or a statement's text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from datas3tfs.catalog.background import in_background, run_asyncio
from datas3tfs.catalog.connecting import Connection, checked_url, connect, in_transaction
from datas3tfs.catalog.crypto import Cipher
from datas3tfs.catalog.schema import check_version
from datas3tfs.catalog.translate import translated
from datas3tfs.core.names import check_label
from datas3tfs.errors import Invalid, NotFound, Unavailable

T = TypeVar("T")

_LIMIT = 60.0  # seconds
_ALL = "SELECT id, name, access_key, secret_key FROM s3_buckets ORDER BY id FOR UPDATE"
_BY_ID = "UPDATE s3_buckets SET access_key = $2, secret_key = $3 WHERE id = $1"
_BY_NAME = "UPDATE s3_buckets SET access_key = $2, secret_key = $3 WHERE name = $1 RETURNING id"


async def reseal(db_url: str, old_key: str, new_key: str) -> int:
    """Seal all credentials with *new_key* instead of *old_key*; return how many buckets there are.

    All or none. Raises Invalid (a key is none, or *old_key* is not the one), Unavailable."""
    old, new = Cipher(old_key), Cipher(new_key)

    async def work(connection: Connection) -> int:
        rows = await connection.fetch(_ALL)
        for row in rows:
            try:
                plain = old.decrypt(row["access_key"]), old.decrypt(row["secret_key"])
            except Invalid as exc:
                raise Invalid(f"bucket {row['name']}: {exc}") from None
            await connection.execute(_BY_ID, row["id"], new.encrypt(plain[0]), new.encrypt(plain[1]))
        return len(rows)

    return await _changed(db_url, "rekey", work)


async def replace_credentials(db_url: str, key: str, name: str, access_key: str, secret_key: str) -> None:
    """Give a bucket other credentials. Raises NotFound, Invalid, Unavailable."""
    cipher = Cipher(key)
    sealed = cipher.encrypt(access_key), cipher.encrypt(secret_key)

    async def work(connection: Connection) -> None:
        if await connection.fetchval(_BY_NAME, check_label("bucket", name), *sealed) is None:
            raise NotFound(f"bucket {name}: there is none of this name")

    await _changed(db_url, f"bucket {name}", work)


async def _changed(db_url: str, what: str, work: Callable[[Connection], Awaitable[T]]) -> T:
    checked_url(db_url)

    async def transaction() -> T:
        connection = await connect(db_url, timeout=_LIMIT)
        try:
            await check_version(connection)
            return await in_transaction(connection, lambda: work(connection))
        finally:
            connection.terminate()

    with trio.move_on_after(_LIMIT):
        async with in_background(run_asyncio) as loop:
            with translated(what):
                done: T = await loop.run_aio_coroutine(transaction())
        return done
    raise Unavailable(f"{what}: Postgres did not answer within {_LIMIT:g} s")
