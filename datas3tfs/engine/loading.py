"""Blocks straight from the stores, checked in this process. Elsewhere: worker/, which does both in another.

Concurrency: the event loop's; the many pieces of a large block are checked in a worker thread.
"""

from __future__ import annotations

import trio

from datas3tfs.core.checking import find_problems
from datas3tfs.core.index import Index
from datas3tfs.core.model import BucketId
from datas3tfs.core.spans import Span
from datas3tfs.ports import Stores

_AT_ONCE = 512 * 1024  # bytes checked on the event loop: 0.1 ms, as long as a thread takes to be woken


class StoreBlocks:
    """ports.BlockSource over *stores*."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    async def load(self, bucket_id: BucketId, key: str, span: Span, total: int, ahead: bool) -> memoryview:
        """See ports.BlockSource."""
        store = await self._stores.store(bucket_id)
        return memoryview(await store.get_range(key, span, total))

    async def problems(self, index: Index, span: Span, data: memoryview) -> dict[int, str]:
        """See ports.BlockSource."""
        return await check_block(index, span, data)


async def check_block(index: Index, span: Span, data: memoryview) -> dict[int, str]:
    """Return what is wrong with *data*, the bytes *span* of an object; see ports.BlockSource."""

    def find() -> dict[int, str]:
        return {one.start: one.text for one in find_problems(index, span, data)}

    return await trio.to_thread.run_sync(find) if span.length > _AT_ONCE else find()
