"""What the engine needs from the outside world, in words of the product.

Adapters (catalog/, objects/, cache/, journal/) implement these Protocols; tests bring in-memory twins.
Every method is a coroutine that may wait, is cancellable, and raises errors of datas3tfs.errors only:
Unavailable whenever Postgres, S3 or the disk did not answer in time or refused. JournalStore alone is
different: a local write takes less time than a switch to a thread.
"""

from __future__ import annotations

from datas3tfs.ports.catalog import (
    CatalogReader,
    ChangeFeed,
    Dataranges,
    Graveyard,
    Leases,
    Registry,
    Tokens,
    Uploads,
)
from datas3tfs.ports.journal import JournalContent, JournalStore
from datas3tfs.ports.objects import (
    BlockSource,
    IndexCache,
    Listing,
    ObjectStore,
    PartStore,
    SharedStore,
    Stores,
    WholeStore,
    WholeStores,
)

__all__ = [
    "BlockSource",
    "CatalogReader",
    "ChangeFeed",
    "Dataranges",
    "Graveyard",
    "IndexCache",
    "JournalContent",
    "JournalStore",
    "Leases",
    "Listing",
    "ObjectStore",
    "PartStore",
    "Registry",
    "SharedStore",
    "Stores",
    "Tokens",
    "Uploads",
    "WholeStore",
    "WholeStores",
]
