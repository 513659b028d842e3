"""A memory twin of ports.IndexCache; `entries` may be looked at and damaged."""

from __future__ import annotations

import trio


class MemoryIndexCache:
    """An index cache as a dict."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}

    async def get(self, key: str) -> memoryview | None:
        """See ports.IndexCache."""
        await trio.lowlevel.checkpoint()
        return memoryview(self.entries[key]) if key in self.entries else None

    async def put(self, key: str, content: bytes) -> memoryview:
        """See ports.IndexCache."""
        await trio.lowlevel.checkpoint()
        self.entries[key] = bytes(content)
        return memoryview(self.entries[key])

    async def discard(self, key: str) -> None:
        """See ports.IndexCache."""
        await trio.lowlevel.checkpoint()
        self.entries.pop(key, None)
