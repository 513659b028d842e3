"""The disk cache of indices: diskcache holds them as files, LRU, shared by any number of processes.

diskcache is a SQLite table of entries and one file per value; several processes may use a directory
at once. Entries are mapped, not read: the kernel shares the pages between processes and gives them
back under pressure, and a mapping outlives the eviction of its file. Content is not checked here:
whoever opens an index checks it whole (core/index.py), and calls `discard` on a damaged one.
A cache that fails is a cache that misses: it costs a warning and a download, never a read.

Blocking calls run in worker threads; diskcache is thread-safe.
"""

from __future__ import annotations

import io
import logging
import mmap
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import diskcache
import trio

from datas3tfs.errors import Unavailable

log = logging.getLogger(__name__)

# The layout of the directory and of what is in it. Another version uses another directory, so that
# old and new programs can run side by side.
LAYOUT_VERSION = 1
_LOCK_SECONDS = 10.0  # how long SQLite waits for another process's transaction


class _PlainDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache publishes no types
    """Values are files of bytes. Never a pickle: loading one would run what somebody put there."""

    def fetch(self, mode: int, filename: str, value: Any, read: bool) -> Any:
        if mode != diskcache.core.MODE_BINARY:
            raise OSError("not an entry of this cache")
        return super().fetch(mode, filename, value, read)

    def get(self, key: Any, raw: bool) -> Any:
        if not raw:
            raise OSError("not a key of this cache")
        return super().get(key, raw)


class DiskIndexCache:
    """Implements ports.IndexCache; made by `open_index_cache`."""

    def __init__(self, directory: Path, size_limit: int) -> None:
        self._directory = directory
        self._size_limit = size_limit
        self._cache: Any = None
        self._warned = False

    async def get(self, key: str) -> memoryview | None:
        """Return the entry, mapped and read-only, or None."""
        return await trio.to_thread.run_sync(self._get, key)

    async def put(self, key: str, content: bytes) -> memoryview:
        """Store *content* and return it mapped; as it is, with a warning, if that fails."""
        return await trio.to_thread.run_sync(self._put, key, content)

    async def discard(self, key: str) -> None:
        """Forget an entry; it may be absent."""
        await trio.to_thread.run_sync(self._discard, key)

    def close(self) -> None:
        """Close the database's connections of this thread."""
        if self._cache is not None:
            self._cache.close()

    def open(self) -> None:
        """Make the directory, private, and open it. Raises Unavailable, naming it."""
        path = self._directory / f"indices-v{LAYOUT_VERSION}"
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            if path.stat().st_uid != os.geteuid():
                raise Unavailable(f"{path}: the cache belongs to another user; choose another --cache-dir")
            path.chmod(0o700)
            self._cache = diskcache.Cache(
                str(path),
                timeout=_LOCK_SECONDS,
                disk=_PlainDisk,
                disk_min_file_size=0,
                size_limit=self._size_limit,
                eviction_policy="least-recently-used",
                cull_limit=1,
            )
            # diskcache keeps the limit of whoever made the directory; the present one counts.
            self._cache.reset("size_limit", self._size_limit)
            self._cache.cull()
        except (OSError, sqlite3.Error, diskcache.Timeout) as exc:
            raise Unavailable(f"{path}: the cache cannot be used ({exc})") from exc

    def _get(self, key: str) -> memoryview | None:
        try:
            found = self._cache.get(key, read=True)
        except (OSError, sqlite3.Error, diskcache.Timeout) as exc:
            self._warn(exc)
            return None
        if found is None:
            return None
        with found:
            return _mapped(found)

    def _put(self, key: str, content: bytes) -> memoryview:
        try:
            if not self._cache.set(key, io.BytesIO(content), read=True):
                raise OSError("entry was refused")
            # `set` evicts one entry, which is exact as long as entries are alike; `cull` takes ten at
            # a time until there is room, so it is for when one large entry displaces many.
            if self._cache.volume() > self._size_limit:
                self._cache.cull()
        except (OSError, sqlite3.Error, diskcache.Timeout) as exc:
            self._warn(exc)
            return memoryview(content)
        mapped = self._get(key)
        return memoryview(content) if mapped is None else mapped  # evicted at once: larger than the limit

    def _discard(self, key: str) -> None:
        try:
            self._cache.delete(key)
        except (OSError, sqlite3.Error, diskcache.Timeout) as exc:
            self._warn(exc)

    def _warn(self, exc: Exception) -> None:
        if not self._warned:
            self._warned = True
            log.warning("%s: the cache fails, going on without it (%s)", self._directory, exc)


def _mapped(file: io.BufferedReader) -> memoryview | None:
    """Map *file* read-only; None if it is empty, which no index is."""
    if os.fstat(file.fileno()).st_size == 0:
        return None
    return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


@asynccontextmanager
async def open_index_cache(directory: Path, size_limit: int) -> AsyncIterator[DiskIndexCache]:
    """Open the cache in *directory*, at most about *size_limit* bytes. Raises Unavailable."""
    cache = DiskIndexCache(directory, size_limit)
    await trio.to_thread.run_sync(cache.open)
    try:
        yield cache
    finally:
        cache.close()
