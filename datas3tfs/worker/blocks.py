"""The worker as the source of blocks (ports.BlockSource); without it, what engine/loading.py does.

Retries, addresses and their renewal stay in objects/: the worker is asked for one attempt at a time.
Concurrency: the event loop's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from datas3tfs.core.index import Index
from datas3tfs.core.indexbuild import flat_index
from datas3tfs.core.model import BucketId
from datas3tfs.core.reads import slots_in
from datas3tfs.core.spans import Span
from datas3tfs.engine.loading import StoreBlocks, check_block
from datas3tfs.fs.notifier import Known, Notifier
from datas3tfs.objects.stores import S3Stores
from datas3tfs.worker.link import Gone, Link

_INLINE = 256 << 10  # bytes: up to there a copy through the socket is cheaper than mapping memory twice


class WorkerBlocks:
    """Fetches, checks and pushes by *link*."""

    def __init__(self, stores: S3Stores, link: Link) -> None:
        self._stores = stores
        self._link = link
        self._alone = StoreBlocks(stores)
        self.notifier: Notifier | None = None  # for want of a worker

    async def load(self, bucket_id: BucketId, key: str, span: Span, total: int, ahead: bool) -> memoryview:
        """See ports.BlockSource. What comes ahead, or is large, comes into memory shared with the worker."""
        wants_shared = ahead or span.length > _INLINE

        async def get(url: str) -> memoryview:
            if wants_shared:
                with suppress(OSError):  # no more descriptors, or memory
                    return await self._link.get_shared(url, key, span, total)
            return await self._link.get(url, key, span, total)

        if self._link.is_alive and span:
            store = await self._stores.store(bucket_id)
            with suppress(Gone):
                return await store.get_range_by(key, span, total, get)
        return await self._alone.load(bucket_id, key, span, total, ahead)

    async def problems(self, index: Index, span: Span, data: memoryview) -> dict[int, str]:
        """See ports.BlockSource."""
        if self._link.is_alive and self._link.is_shared(data):
            slots = slots_in(index, span)
            part = flat_index(
                index.columns(slots), first=index.first + slots.start, object_size=index.object_size
            )
            try:
                return await self._link.check(data, span, part)
            except Gone:
                pass
        return await check_block(index, span, data)

    async def push(self, data: memoryview, rows: bytes, last: bool) -> tuple[int, int]:
        """Put files in *data* into the page cache: *rows* of (inode, start in *data*, length), 8 bytes each.
        After the *last* the worker lets go of *data*. Return (files pushed, their bytes): none if *data* did
        not come ahead, or without a worker."""
        if self._link.is_alive and self._link.is_shared(data):
            try:
                return await self._link.push(data, rows, last)
            except Gone:
                pass
        return 0, 0

    async def forget(self, entries: Sequence[Known]) -> None:
        """Have the kernel forget directory entries. Without a worker it is done by a thread."""
        try:
            await self._link.forget(entries)
        except Gone:
            if self.notifier is not None:
                await self.notifier.forget_here(entries)
