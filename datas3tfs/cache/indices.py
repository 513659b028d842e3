"""The disk cache of indices: diskcache holds them as files, LRU, shared by any number of processes.

diskcache is a SQLite table of entries and one file per value; several processes may use a directory
at once. Entries are mapped, not read: the kernel shares the pages between processes and gives them
back under pressure, and a mapping outlives the eviction of its file. Content is not checked here:
whoever opens an index checks it whole (core/index.py), and calls `discard` on a damaged one.
A cache that fails is a cache that misses: it costs a warning and a download, never a read. A damaged
table is thrown away with all its entries; they are copies.

Blocking calls run in worker threads; diskcache is thread-safe.
"""

from __future__ import annotations

import fcntl
import io
import logging
import mmap
import os
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
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
_WRITE_SIZE = 4 * 1024 * 1024


# diskcache believes whatever a damaged table says (TypeError, ValueError), and that all threads have the
# same file open, which is not so when somebody has removed it (AssertionError).
_DAMAGE = (sqlite3.DatabaseError, TypeError, ValueError, AssertionError)
_FAILURES = (OSError, sqlite3.Error, diskcache.Timeout, *_DAMAGE)


class _Content(io.BytesIO):
    """An entry on its way to the disk; *filename* is where it went, inside the cache."""

    filename: str | None = None


class _PlainDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache publishes no types
    """Values are files of bytes. Never a pickle: loading one would run what somebody put there."""

    def store(self, value: _Content, read: bool, key: Any = diskcache.UNKNOWN) -> tuple[int, int, str, None]:
        value.filename, path = self.filename(key, value)
        size = self._write(path, iter(partial(value.read, _WRITE_SIZE), b""), "xb")
        return size, diskcache.core.MODE_BINARY, value.filename, None

    def fetch(self, mode: int, filename: str, value: Any, read: bool) -> Any:
        if mode != diskcache.core.MODE_BINARY or not isinstance(filename, str):
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
        try:
            self._make_directory()
            try:
                self._cache = self._connect()
            except _DAMAGE as exc:
                if not _is_damage(exc):
                    raise
                self._replace(None, exc)
        except _FAILURES as exc:
            raise Unavailable(f"{self._path}: the cache cannot be used ({exc})") from exc

    @property
    def _path(self) -> Path:
        return self._directory / f"indices-v{LAYOUT_VERSION}"

    def _make_directory(self) -> None:
        self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._path.stat().st_uid != os.geteuid():
            raise Unavailable(f"{self._path}: the cache belongs to another user; choose another --cache-dir")
        self._path.chmod(0o700)

    def _connect(self) -> Any:
        cache = diskcache.Cache(
            str(self._path),
            timeout=_LOCK_SECONDS,
            disk=_PlainDisk,
            disk_min_file_size=0,
            size_limit=self._size_limit,
            eviction_policy="least-recently-used",
            cull_limit=1,
        )
        # diskcache keeps the limit of whoever made the directory; the present one counts.
        cache.reset("size_limit", self._size_limit)
        cache.cull()
        return cache

    def _replace(self, damaged: Any, reason: Exception) -> bool:
        """Open the cache again in place of *damaged*; say whether it had to be emptied for that."""
        with _alone(self._directory):
            if self._cache is not damaged:
                return True  # another thread has done it
            self._make_directory()
            emptied = not self._is_sound()  # it is if another process has replaced it
            if emptied:
                log.warning("%s: the cache is damaged, starting an empty one (%s)", self._path, reason)
                aside = tempfile.mkdtemp(prefix=f"{self._path.name}-damaged-", dir=self._directory)
                self._path.rename(Path(aside) / self._path.name)
                shutil.rmtree(aside, ignore_errors=True)
                self._make_directory()
            self._cache = self._connect()
            return emptied

    def _is_sound(self) -> bool:
        try:
            self._connect().close()
            with closing(sqlite3.connect(self._path / diskcache.core.DBNAME)) as database:
                return database.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]
        except _DAMAGE as exc:
            if not _is_damage(exc):
                raise
            return False

    def _get(self, key: str) -> memoryview | None:
        cache = self._cache
        try:
            found = cache.get(key, read=True)
            if found is None:
                return None
            with found:
                return _mapped(found)
        except _FAILURES as exc:
            self._failed(cache, exc)
            return None

    def _put(self, key: str, content: bytes) -> memoryview:
        cache, file = self._cache, _Content(content)
        try:
            cache.set(key, file, read=True)
            # `set` evicts one entry, which is exact as long as entries are alike; `cull` takes ten at
            # a time until there is room, so it is for when one large entry displaces many.
            if cache.volume() > self._size_limit:
                cache.cull()
        except _FAILURES as exc:
            if file.filename is not None:  # diskcache leaves it behind: a full disk would stay full
                cache.disk.remove(file.filename)
            self._failed(cache, exc)
            return memoryview(content)
        mapped = self._get(key)
        return memoryview(content) if mapped is None else mapped  # evicted at once: larger than the limit

    def _discard(self, key: str) -> None:
        cache = self._cache
        try:
            cache.delete(key)
        except _FAILURES as exc:
            self._failed(cache, exc)

    def _failed(self, cache: Any, exc: Exception) -> None:
        """Warn, once; if the table is damaged, go on with another."""
        with suppress(*_FAILURES, Unavailable):
            if _is_damage(exc):
                cache.close()  # this thread's connection may be left inside a transaction
                if self._replace(cache, exc):
                    return
        if not self._warned:
            self._warned = True
            log.warning("%s: the cache fails, going on without it (%s)", self._directory, exc)


def _is_damage(exc: Exception) -> bool:
    """Tell damage from what may pass, such as a lock or a full disk: SQLite calls that operational."""
    if isinstance(exc, sqlite3.OperationalError):
        return "no such table" in str(exc)
    return isinstance(exc, _DAMAGE)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keep other threads and processes out that want the same."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


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
