"""Wire the adapters together, for commands and for the mount. Nothing here computes or waits by itself."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from datas3tfs.cache.indices import open_index_cache
from datas3tfs.catalog import Catalog, CatalogSettings, open_catalog
from datas3tfs.config import Settings
from datas3tfs.core.counters import Counters
from datas3tfs.engine.indices import Indices, open_indices
from datas3tfs.engine.snapshot import Snapshot
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.stores import S3Stores, open_stores

_SIGNING_SECONDS = (
    600.0  # from an answer of Postgres until the last URL that follows from it is signed, and more
)


@dataclass(frozen=True, slots=True)
class Services:
    """What every command that touches data needs."""

    catalog: Catalog
    stores: S3Stores
    indices: Indices
    counters: Counters


@asynccontextmanager
async def open_services(
    settings: Settings, patience: float = math.inf, *, needs_key: bool = True
) -> AsyncIterator[Services]:
    """Open the catalog, the stores and the index cache; *patience* is for indices, in seconds. What reads no
    credentials of buckets *needs_key* not.

    Raises Invalid (settings), Unavailable (cache)."""
    counters = Counters()
    catalog_settings = _catalog_settings(settings)
    s3_settings = S3Settings(io_timeout=settings.io_timeout, url_life=settings.url_life)
    async with (
        open_catalog(
            settings.require_db_url(), _encryption_key(settings, needs_key), counters, catalog_settings
        ) as catalog,
        open_stores(catalog.reader.bucket, s3_settings, counters) as stores,
        open_index_cache(settings.cache_dir, settings.cache_size) as cache,
        open_indices(cache, stores, counters, patience) as indices,
    ):
        yield Services(catalog, stores, indices, counters)


@asynccontextmanager
async def open_registry(settings: Settings) -> AsyncIterator[Catalog]:
    """Open the catalog alone, for commands that touch no data. Raises Invalid (settings)."""
    key = _encryption_key(settings, is_needed=False)
    async with open_catalog(
        settings.require_db_url(), key, Counters(), _catalog_settings(settings)
    ) as catalog:
        yield catalog


def _encryption_key(settings: Settings, is_needed: bool) -> str | None:
    has_key = settings.encryption_key is not None or settings.encryption_key_file is not None
    return settings.require_encryption_key() if has_key or is_needed else None


def _catalog_settings(settings: Settings) -> CatalogSettings:
    return CatalogSettings(
        operation_limit=settings.io_timeout,
        presigned_lifetime=settings.url_life + _SIGNING_SECONDS,
        grace=settings.url_life + _SIGNING_SECONDS,
    )


async def load_snapshot(catalog: Catalog, name: str) -> Snapshot:
    """Return the present snapshot of the dataset called *name*. Raises NotFound, Unavailable."""
    dataset = await catalog.reader.dataset(name)
    return Snapshot.of(dataset, await catalog.reader.dataranges(dataset.id))
