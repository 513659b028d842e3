"""The schema that this program knows, and bringing a database to it. The SQL itself is in schema.sql."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import asyncpg
import trio

from datas3tfs.catalog.background import in_background, run_asyncio
from datas3tfs.catalog.connecting import Connection, checked_url, connect
from datas3tfs.catalog.translate import NOT_MIGRATED, translated
from datas3tfs.errors import Invalid, Unavailable

SCHEMA_VERSION = 3  # of schema.sql, which says it twice

_MIGRATE_LIMIT = 120.0  # seconds; another migrate may have to finish first


def schema_text() -> str:
    """Return schema.sql: from the installed package, or from the root of the checkout."""
    packaged = resources.files("datas3tfs").joinpath("schema.sql")
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).resolve().parents[2] / "schema.sql").read_text(encoding="utf-8")


async def migrate(db_url: str, *, limit: float = _MIGRATE_LIMIT) -> int:
    """Bring the database to this program's schema; return its version. Does nothing if it is there.

    Safe to call from many places at once. Raises Invalid (the database is newer or another program's),
    Unavailable (not within *limit* seconds).
    """
    checked_url(db_url)
    with trio.move_on_after(limit):
        async with in_background(run_asyncio) as loop:
            with translated("migrate"):
                await loop.run_aio_coroutine(_apply(db_url, limit))
        return SCHEMA_VERSION
    raise Unavailable(f"migrate: Postgres did not answer within {limit:g} s")


async def check_version(connection: Connection) -> None:
    """Raise Invalid if the database behind a new connection does not have this program's schema."""
    try:
        version = await connection.fetchval("SELECT version FROM schema_info")
    except asyncpg.UndefinedTableError as exc:
        raise Invalid(NOT_MIGRATED) from exc
    if version is None:
        raise Invalid(NOT_MIGRATED)
    if version < SCHEMA_VERSION:
        raise Invalid(
            f"the schema has version {version}, {SCHEMA_VERSION} is needed: run `datas3tfs migrate`"
        )
    if version > SCHEMA_VERSION:
        raise Invalid(f"the schema has version {version}, known is {SCHEMA_VERSION}: upgrade datas3tfs")


async def _apply(db_url: str, limit: float) -> None:
    connection = await connect(db_url, timeout=limit)
    try:
        await connection.execute(schema_text())
    finally:
        connection.terminate()
