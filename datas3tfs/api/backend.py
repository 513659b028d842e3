"""What the routes work with, given once. It owns nothing; whoever made its parts closes them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from datas3tfs.core.counters import Counters
from datas3tfs.core.model import BucketSpec
from datas3tfs.engine.compactor import Compactor
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.receiving import Receiver
from datas3tfs.ports import CatalogReader, Dataranges, Registry, Tokens, Uploads, WholeStores


@dataclass(frozen=True, slots=True)
class Backend:
    """The catalog's ports, the stores, and what the engine makes of them."""

    reader: CatalogReader
    registry: Registry
    uploads: Uploads
    dataranges: Dataranges
    tokens: Tokens
    stores: WholeStores
    indices: Indices
    receiver: Receiver
    compactor: Compactor
    counters: Counters
    # Ask S3 whether a bucket can be used. Raises Invalid (the spec), Unavailable (and why).
    try_bucket: Callable[[BucketSpec], Awaitable[None]]
    allow_endpoints: tuple[str, ...] = ()  # that may be registered over HTTP: host, host:port, "*"
    known_endpoints: tuple[str, ...] = ()  # URLs that may be as well, unless there are allow_endpoints
