"""What a worker does: fetch blocks, check them, push files of them into the page cache.

    configure  settings (S3Settings)
    device     a copy of the mount's /dev/fuse comes with it
    get        address, key, span, total, block: fetch into memory that comes with it, or, without a block,
               answer with the bytes
    check      block, span; the index of what lies there: answer what is wrong (core/checking.py)
    push       block; rows of (inode, start, length): put these files into the page cache; if they are the
               last, let go of the block
    forget     directory entries: have the kernel forget them
    widen      mount point: let the kernel read further ahead (fs/readahead.py)
    off        the fetch with that number is not wanted any more
    drop       so is the block

Concurrency: one thread reads the requests; each fetch has a thread, checks have two, pushes and what is to be
forgotten one each. Telling the kernel may wait for a READ under way, and that READ for a fetch: so they hold
up nothing but their like. Answers go out under a lock.
"""

from __future__ import annotations

import array
import itertools
import logging
import mmap
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from datas3tfs.core.checking import find_problems
from datas3tfs.core.index import IndexHeader, open_index
from datas3tfs.core.spans import Span
from datas3tfs.errors import Datas3tError
from datas3tfs.fs.notifier import Notifier
from datas3tfs.fs.readahead import widen_read_ahead
from datas3tfs.objects.fetching import Fetcher, Flight
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.translate import quiet_libraries
from datas3tfs.worker.frames import Frames, Words, frame

log = logging.getLogger(__name__)

_RECEIVED = 1 << 18  # bytes taken at once
_DESCRIPTORS = 64  # likewise
_CHECKERS = 2
_FIRST = 4  # files pushed; if the kernel knows none of them it is not asked for the rest
_MEMINFO = Path("/proc/meminfo")
_LOOK_SECONDS = 0.05
_SPARE = 16  # of memory, one part in so many must be available for pushes to go on


def serve(connection: socket.socket) -> None:
    """Do what is asked until the other side hangs up."""
    quiet_libraries()
    server = _Server(connection)
    frames, descriptors = Frames(), array.array("i")
    while True:
        try:
            data, ancillary, _, _ = connection.recvmsg(_RECEIVED, socket.CMSG_SPACE(_DESCRIPTORS * 4))
        except ConnectionError:  # answers that it had not taken
            return
        if not data:
            return
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
        for words, payload in frames.feed(data):
            server.take(words, payload, lambda: descriptors.pop(0))


class _Server:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()  # held while an answer is sent
        self._settings = S3Settings()
        self._fetchers: dict[str, Fetcher] = {}  # by scheme and host
        self._blocks: dict[int, mmap.mmap] = {}
        self._fetches: dict[int, Flight] = {}
        self._notifier: Notifier | None = None
        self._is_short, self._look_again_at = False, 0.0
        self._getting = ThreadPoolExecutor(self._settings.parallel_gets, "get")
        self._checking = ThreadPoolExecutor(_CHECKERS, "check")
        self._pushing = ThreadPoolExecutor(1, "push")
        self._forgetting = ThreadPoolExecutor(1, "forget")

    def take(self, words: Words, payload: bytes, descriptor: Callable[[], int]) -> None:
        """Begin what one message asks for."""
        what, number = words["do"], words.get("id", 0)
        if what == "get":
            target = None
            if words["block"] is not None:
                target = self._blocks[words["block"]] = _mapped(descriptor(), words["stop"] - words["start"])
            flight = self._fetches[number] = Flight()
            self._begin(self._getting, number, lambda: self._get(number, words, target, flight))
        elif what == "check":
            block = self._blocks[words["block"]]
            self._begin(self._checking, number, lambda: _check(words, payload, block))
        elif what == "push":
            block = self._blocks.pop(words["block"]) if words["last"] else self._blocks[words["block"]]
            self._begin(self._pushing, number, lambda: self._push(payload, block))
        elif what == "forget":
            self._begin(self._forgetting, number, lambda: self._forget(words))
        elif what == "off":
            if (found := self._fetches.get(number)) is not None:
                found.call_off()
        elif what == "drop":
            self._blocks.pop(words["block"], None)
        elif what == "device":
            self._notifier = Notifier(descriptor())
        elif what == "widen":
            self._checking.submit(widen_read_ahead, Path(words["mountpoint"]))
        elif what == "configure":
            self._settings = S3Settings(**words["settings"])

    def _begin(self, pool: ThreadPoolExecutor, number: int, work: Callable[[], tuple[Words, bytes]]) -> None:
        def run() -> None:
            try:
                words, payload = work()
            except Datas3tError as exc:
                words, payload = {"error": type(exc).__name__, "text": str(exc)}, b""
            except Exception as exc:
                log.exception("unexpected failure; please report it")
                words, payload = (
                    {"error": "Unavailable", "text": f"unexpected failure ({type(exc).__name__})"},
                    b"",
                )
            with self._lock, suppress(OSError):  # it has hung up
                self._connection.sendall(frame(words | {"id": number}, payload))

        pool.submit(run)

    def _get(
        self, number: int, words: Words, target: mmap.mmap | None, flight: Flight
    ) -> tuple[Words, bytes]:
        span, key, url = Span(words["start"], words["stop"]), words["key"], words["url"]
        fetcher = self._fetcher(url)
        try:
            if target is None:
                return {}, fetcher.span(flight, url, key, span, words["total"])
            with memoryview(target) as view:
                fetcher.span_into(flight, url, key, span, words["total"], view)
            return {}, b""
        finally:
            del self._fetches[number]

    def _fetcher(self, url: str) -> Fetcher:
        parts = urlsplit(url)
        place = f"{parts.scheme}://{parts.netloc}"
        with self._lock:
            if place not in self._fetchers:
                self._fetchers[place] = Fetcher(self._settings, tls=parts.scheme == "https")
            return self._fetchers[place]

    def _forget(self, words: Words) -> tuple[Words, bytes]:
        entries = ((parent, os.fsencode(name), inode) for parent, name, inode in words["entries"])
        if self._notifier is not None:
            self._notifier.forget(entries)
        return {}, b""

    def _push(self, rows: bytes, block: mmap.mmap) -> tuple[Words, bytes]:
        """Push the files in *rows*, three numbers of 8 bytes each, in their order."""
        files, size = 0, 0
        if not rows or self._notifier is None or self._memory_is_short():
            return {"files": 0, "bytes": 0}, b""
        table = np.frombuffer(rows, "=u8").reshape(-1, 3).tolist()
        with memoryview(block) as view:
            for place, (inode, start, length) in enumerate(table):
                if place == _FIRST and not files:
                    break
                with view[start : start + length] as content:
                    try:
                        self._notifier.store(inode, content)
                    except OSError:
                        continue  # most often the kernel does not know the file
                files, size = files + 1, size + length
        return {"files": files, "bytes": size}, b""

    def _memory_is_short(self) -> bool:
        """Say whether the machine has better uses for its memory, or had a moment ago."""
        now = time.monotonic()
        if now > self._look_again_at:
            self._is_short, self._look_again_at = _is_spare_memory_gone(), now + _LOOK_SECONDS
        return self._is_short


def _mapped(descriptor: int, length: int) -> mmap.mmap:
    """Map shared memory, all of it at once: a page at a time costs more."""
    try:
        return mmap.mmap(descriptor, length, mmap.MAP_SHARED | mmap.MAP_POPULATE)
    finally:
        os.close(descriptor)


def _check(words: Words, flat: bytes, block: mmap.mmap) -> tuple[Words, bytes]:
    header = IndexHeader.decode(flat[:64])
    index = open_index(
        memoryview(flat), first=header.first, count=header.count, object_size=header.object_size
    )
    with memoryview(block) as view:
        found = find_problems(index, Span(words["start"], words["stop"]), view)
    return {"problems": [[one.start, one.text] for one in found]}, b""


def _is_spare_memory_gone() -> bool:
    """Say whether the machine has better uses for its memory than files that nobody may read."""
    figures = {}
    for line in itertools.islice(_MEMINFO.read_text().splitlines(), 3):  # MemTotal, MemFree, MemAvailable
        name, _, rest = line.partition(":")
        figures[name] = int(rest.split()[0])
    return figures.get("MemAvailable", 1) * _SPARE < figures.get("MemTotal", 1)
