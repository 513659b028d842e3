"""The composition of this adapter: one database, seven ports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from datas3tfs.catalog.background import in_background, run_asyncio
from datas3tfs.catalog.connecting import checked_url
from datas3tfs.catalog.crypto import Cipher
from datas3tfs.catalog.database import Database
from datas3tfs.catalog.dataranges import PostgresDataranges
from datas3tfs.catalog.graveyard import PostgresGraveyard
from datas3tfs.catalog.leases import PostgresLeases
from datas3tfs.catalog.reader import PostgresReader
from datas3tfs.catalog.registry import PostgresRegistry
from datas3tfs.catalog.settings import CatalogSettings
from datas3tfs.catalog.tokens import PostgresTokens
from datas3tfs.catalog.uploads import PostgresUploads
from datas3tfs.core.counters import Counters
from datas3tfs.ports import CatalogReader, Dataranges, Graveyard, Leases, Registry, Tokens, Uploads


@dataclass(frozen=True, slots=True)
class Catalog:
    """The catalog by its ports."""

    reader: CatalogReader
    registry: Registry
    uploads: Uploads
    leases: Leases
    graveyard: Graveyard
    dataranges: Dataranges
    tokens: Tokens


@asynccontextmanager
async def open_catalog(
    db_url: str,
    encryption_key: str | None,
    counters: Counters,
    settings: CatalogSettings | None = None,
) -> AsyncIterator[Catalog]:
    """Open the catalog for the length of the block. Postgres may be away: it is asked at first use.

    *encryption_key* may be None where no credentials are read or stored. Raises Invalid (URL, key).
    """
    cipher = Cipher(encryption_key)
    checked_url(db_url)
    async with in_background(run_asyncio) as loop:
        database = Database(db_url, loop, counters, settings or CatalogSettings())
        try:
            yield Catalog(
                PostgresReader(database, cipher),
                PostgresRegistry(database, cipher),
                PostgresUploads(database),
                PostgresLeases(database),
                PostgresGraveyard(database),
                PostgresDataranges(database),
                PostgresTokens(database),
            )
        finally:
            await database.close()
