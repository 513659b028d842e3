"""Postgres: the committed state, claims on keys, uploads in flight. The only place that knows asyncio."""

from datas3tfs.catalog.crypto import generate_key
from datas3tfs.catalog.opening import Catalog, open_catalog
from datas3tfs.catalog.schema import SCHEMA_VERSION, migrate, schema_text
from datas3tfs.catalog.settings import CatalogSettings

__all__ = [
    "SCHEMA_VERSION",
    "Catalog",
    "CatalogSettings",
    "generate_key",
    "migrate",
    "open_catalog",
    "schema_text",
]
