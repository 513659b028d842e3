"""The worlds that the catalog's contract is tested in: the memory twin, and Postgres in its embedded and its
system's version. Each has a bucket and a dataset in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import cast

import pytest

from datas3tfs.catalog import Catalog, CatalogSettings, generate_key, open_catalog
from datas3tfs.core.counters import Counters
from datas3tfs.core.model import (
    BucketSpec,
    Datarange,
    DatasetId,
    HolderId,
    Lease,
    Upload,
    UploadId,
    UploadIntent,
)
from datas3tfs.core.spans import Span
from datas3tfs.errors import Datas3tError
from tests.harness.memory_catalog import MemoryCatalog
from tests.harness.postgres import PostgresServer

SPEC = BucketSpec("store", "http://127.0.0.1:9000", "bucket-1", "ACCESS", "SECRET", region="eu-central-1")


ME = HolderId("11111111-1111-4111-8111-111111111111")
OTHER = HolderId("22222222-2222-4222-8222-222222222222")


@dataclass(frozen=True, slots=True)
class World:
    """A catalog, seen over two sets of connections, with a bucket and a dataset in it."""

    here: Catalog
    there: Catalog
    dataset_id: DatasetId
    expire: Callable[[UploadId], None]
    expire_holder: Callable[[HolderId], None]
    fall_due: Callable[[], None]  # lets all that is doomed be so now
    counters: Counters

    async def begin(
        self, start: int, stop: int, *, fresh: bool = False, holder: HolderId | None = None
    ) -> Upload:
        """Begin an upload of keys to the dataset."""
        intent = UploadIntent(self.dataset_id, Span(start, stop), 512, holder)
        return await self.here.uploads.begin(intent, fresh=fresh)

    async def begin_presigned(self, start: int, stop: int) -> Upload:
        """Begin and confirm an upload of keys whose objects somebody else puts."""
        intent = UploadIntent(self.dataset_id, Span(start, stop), 512, presigned=True)
        upload = await self.here.uploads.begin(intent)
        await self.here.uploads.confirm(upload.id)
        return upload

    async def commit(self, start: int, stop: int) -> Datarange:
        """Commit keys of the dataset."""
        return await self.here.uploads.publish((await self.begin(start, stop)).id)

    async def aggregate(self, *sources: Datarange, presigned: bool = False) -> Upload:
        """Begin and confirm an aggregate of adjacent dataranges of the dataset."""
        keys = Span(sources[0].keys.start, sources[-1].keys.stop)
        replaces = tuple(source.id for source in sources)
        intent = UploadIntent(self.dataset_id, keys, 1024, presigned=presigned, replaces=replaces)
        upload = await self.here.uploads.begin(intent)
        await self.here.uploads.confirm(upload.id)
        return upload

    async def visible(self) -> list[Datarange]:
        """Return the dataranges of the dataset, seen from elsewhere."""
        return await self.there.reader.dataranges(self.dataset_id)

    async def due(self) -> list[str]:
        """Return the keys of the objects to delete now, in order, seen from elsewhere."""
        return sorted(item.object_key for item in await self.there.graveyard.doomed(10_000))

    async def take(self, holder: HolderId, start: int, stop: int, *, accepted: bool = False) -> Lease:
        """Lease keys of the dataset."""
        return await self.here.leases.take(holder, self.dataset_id, Span(start, stop), accepted=accepted)

    async def held(self, holder: HolderId) -> list[tuple[int, int, bool]]:
        """Return the leases of *holder* in the dataset, seen from elsewhere: start, stop, accepted."""
        leases = await self.there.leases.held(holder)
        assert {lease.dataset_id for lease in leases} <= {self.dataset_id}
        return [(lease.keys.start, lease.keys.stop, lease.accepted) for lease in leases]


async def outcome(call: Callable[[], Awaitable[object]]) -> str:
    """Return "done", or what kind of error *call* raised."""
    try:
        await call()
    except Datas3tError as exc:
        return type(exc).__name__
    return "done"


@pytest.fixture(params=["memory", "embedded", "system"])
def catalog_place(request: pytest.FixtureRequest) -> Iterator[tuple[PostgresServer, str] | None]:
    """A server and the URL of a fresh database there, on either server in turn; None for the twin."""
    if request.param == "memory":
        yield None
        return
    server = cast("PostgresServer", request.getfixturevalue(f"{request.param}_postgres"))
    with server.database() as url:
        yield server, url


@pytest.fixture
async def world(catalog_place: tuple[PostgresServer, str] | None) -> AsyncIterator[World]:
    """Every catalog in turn."""
    counters = Counters()
    async with AsyncExitStack() as stack:
        if catalog_place is None:
            memory = MemoryCatalog()
            here = there = memory.ports()
            expire, expire_holder = memory.expire, memory.expire_holder
            fall_due = memory.let_graves_fall_due
        else:
            server, url = catalog_place
            key = generate_key()
            # Only notifications can bring news: the first poll is also the last.
            settings = CatalogSettings(poll_proven=3600, poll_unproven=3600)
            here, there = [
                await stack.enter_async_context(open_catalog(url, key, counters, settings)) for _ in range(2)
            ]

            def expire_row(table: str, row_id: object) -> None:
                past = "now() - interval '1 second'"
                server.sql(
                    url.rpartition("/")[2], f"UPDATE {table} SET expires_at = {past} WHERE id = '{row_id}'"
                )

            def fall_due() -> None:
                server.sql(url.rpartition("/")[2], "UPDATE objects_to_delete SET delete_after = now()")

            expire, expire_holder = (
                partial(expire_row, "datarange_uploads"),
                partial(expire_row, "lease_holders"),
            )
        await here.registry.add_bucket(SPEC)
        cats = await here.registry.add_dataset("cats", "store")
        yield World(here, there, cats, expire, expire_holder, fall_due, counters)
