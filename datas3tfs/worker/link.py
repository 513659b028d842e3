"""How a mount asks its worker: one task sends, one receives, whoever asks waits for the answer.

Should the worker die, everything under way raises `Gone`, and so does everything later. Concurrency: the
event loop's.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import socket
import weakref
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field

import trio

from datas3tfs.core.spans import Span
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.errors import Corrupt, Datas3tError, Invalid, NotFound, Unavailable
from datas3tfs.fs.notifier import Known
from datas3tfs.objects.fetching import Denied
from datas3tfs.objects.settings import S3Settings
from datas3tfs.worker.frames import Frames, Words, frame

log = logging.getLogger(__name__)

_RECEIVED = 1 << 18  # bytes taken at once
_ERRORS = {one.__name__: one for one in (Corrupt, Denied, Invalid, NotFound, Unavailable)}


class Gone(Exception):
    """The worker has died."""


@dataclass(slots=True)
class _Asked:
    answered: trio.Event = field(default_factory=trio.Event)
    words: Words | None = None  # None: the worker has died
    payload: bytes = b""


class Link:
    """Asks a worker; made by `open_link`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = trio.socket.from_stdlib_socket(connection)
        self._asked: dict[int, _Asked] = {}
        self._last = 0
        self._blocks: weakref.WeakKeyDictionary[mmap.mmap, int] = weakref.WeakKeyDictionary()
        self._dropped: deque[int] = deque()  # blocks nobody has any more; the collector may run anywhere
        self._outgoing, self._to_send = trio.open_memory_channel[tuple[bytes, int | None]](math.inf)
        self.is_alive = True

    def tell(self, words: Words, descriptor: int | None = None) -> None:
        """Send what has no answer; *descriptor* is closed here when it is sent."""
        if self.is_alive:
            self._outgoing.send_nowait((frame(words), descriptor))
        elif descriptor is not None:
            os.close(descriptor)

    async def get(self, url: str, key: str, span: Span, total: int) -> memoryview:
        """Return exactly the bytes *span*. Raises NotFound, Corrupt, Unavailable, Denied, Gone."""
        _, payload = await self._ask(_wanted(url, key, span, total, None))
        return memoryview(payload)

    async def get_shared(self, url: str, key: str, span: Span, total: int) -> memoryview:
        """Do that into memory shared with the worker, which then can `check` and `push` it."""
        self._last += 1
        block, descriptor = self._last, os.memfd_create("datas3tfs")
        os.ftruncate(descriptor, span.length)
        area = mmap.mmap(descriptor, span.length, mmap.MAP_SHARED, mmap.PROT_READ)
        self._blocks[area] = block
        weakref.finalize(area, self._dropped.append, block).atexit = False
        await self._ask(_wanted(url, key, span, total, block), descriptor=descriptor)
        return memoryview(area)

    async def check(self, data: memoryview, span: Span, index: bytes) -> dict[int, str]:
        """Return what is wrong with *data* from `get_shared`, the bytes *span* of what *index* is of. Raises
        Gone."""
        words = {"do": "check", "block": self._block(data), "start": span.start, "stop": span.stop}
        answer, _ = await self._ask(words, index)
        return dict(answer["problems"])

    async def push(self, data: memoryview, rows: bytes, last: bool) -> tuple[int, int]:
        """Push parts of files in *data* from `get_shared`: *rows* of (inode, offset in the file, start in
        *data*, length), 8 bytes each. Return (parts pushed, their bytes). After the *last* the worker lets go
        of *data*. Raises Gone."""
        block = self._given_back(data) if last else self._block(data)
        answer, _ = await self._ask({"do": "push", "block": block, "last": last}, rows)
        return answer["parts"], answer["bytes"]

    async def forget(self, entries: Sequence[Known]) -> None:
        """Have the kernel forget directory entries. Raises Gone."""
        listed = [(parent, os.fsdecode(name), inode) for parent, name, inode in entries]
        await self._ask({"do": "forget", "entries": listed})

    def is_shared(self, data: memoryview) -> bool:
        """Say whether *data* came from `get_shared`."""
        return isinstance(data.obj, mmap.mmap) and data.obj in self._blocks

    def _given_back(self, data: memoryview) -> int:
        assert isinstance(data.obj, mmap.mmap)
        return self._blocks.pop(data.obj)

    def _block(self, data: memoryview) -> int:
        assert isinstance(data.obj, mmap.mmap)
        return self._blocks[data.obj]

    async def _ask(
        self, words: Words, payload: bytes = b"", descriptor: int | None = None
    ) -> tuple[Words, bytes]:
        if not self.is_alive:
            if descriptor is not None:
                os.close(descriptor)
            raise Gone
        self._last += 1
        number, asked = self._last, _Asked()
        self._asked[number] = asked
        self._outgoing.send_nowait((frame(words | {"id": number}, payload), descriptor))
        try:
            await asked.answered.wait()
        except trio.Cancelled:
            self.tell({"do": "off", "id": number})
            raise
        finally:
            self._asked.pop(number, None)
        if asked.words is None:
            raise Gone
        if "error" in asked.words:
            raise _ERRORS.get(asked.words["error"], Datas3tError)(asked.words["text"])
        return asked.words, asked.payload

    async def send(self) -> None:
        """Send what is to be sent, for ever."""
        async for asked, descriptor in self._to_send:
            message = self._drops() + asked
            rights = [] if descriptor is None else [_rights(descriptor)]
            try:
                with suppress(OSError):  # it has died, as receiving tells
                    sent = await self._connection.sendmsg([message], rights)
                    while sent < len(message):
                        sent += await self._connection.send(memoryview(message)[sent:])
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    def _drops(self) -> bytes:
        drops = b""
        while self._dropped:
            drops += frame({"do": "drop", "block": self._dropped.popleft()})
        return drops

    async def receive(self) -> None:
        """Take answers until the worker dies."""
        frames = Frames()
        with suppress(OSError):
            while data := await self._connection.recv(_RECEIVED):
                for words, payload in frames.feed(data):
                    asked = self._asked.get(words["id"])
                    if asked is not None:
                        asked.words, asked.payload = words, payload
                        asked.answered.set()
        log.warning("the process that fetches ahead has died; the mount goes on without, more slowly")
        self.is_alive = False
        for asked in self._asked.values():
            asked.answered.set()


def _wanted(url: str, key: str, span: Span, total: int, block: int | None) -> Words:
    where = {"start": span.start, "stop": span.stop, "total": total}
    return {"do": "get", "url": url, "key": key, "block": block} | where


def _rights(descriptor: int) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor.to_bytes(4, "little")


@asynccontextmanager
async def open_link(connection: socket.socket, settings: S3Settings) -> AsyncIterator[Link]:
    """Talk to the worker at the other end of *connection* for as long as the block runs."""
    link = Link(connection)
    link.tell({"do": "configure", "settings": asdict(settings)})
    async with background_nursery() as nursery:
        nursery.start_soon(link.send)
        nursery.start_soon(link.receive)
        yield link
