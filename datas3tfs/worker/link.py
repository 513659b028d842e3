"""How a mount asks its worker: one task sends, one receives, whoever asks waits for the answer.

Should the worker die, everything under way raises `Gone`, and so does everything later. Concurrency: the
event loop's.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass, field

import trio

from datas3tfs.core.spans import Span
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.errors import Corrupt, Datas3tError, Invalid, NotFound, Unavailable
from datas3tfs.fs.notifier import Known
from datas3tfs.objects.fetching import Denied
from datas3tfs.objects.settings import S3Settings
from datas3tfs.worker.frames import Frames, Words, frame
from datas3tfs.worker.memory import Loan, SharedMemory

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
        self._memory = SharedMemory()
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
        self._drop_returned()
        self._last += 1
        loan = self._memory.lend(span.length, self._last)
        descriptor = self._memory.descriptor(loan)
        with _unclean_unless_answered(loan):
            await self._ask(_wanted(url, key, span, total, loan.block), descriptor=descriptor)
        return loan.data

    async def check(self, data: memoryview, span: Span, index: bytes) -> dict[int, str]:
        """Return what is wrong with *data* from `get_shared`, the bytes *span* of what *index* is of. Raises
        Gone."""
        loan = _loan(data)
        words = {"do": "check", "block": loan.block, "start": span.start, "stop": span.stop}
        with _unclean_unless_answered(loan):
            answer, _ = await self._ask(words, index)
        return dict(answer["problems"])

    async def push(self, data: memoryview, rows: bytes, last: bool) -> tuple[int, int]:
        """Push files in *data* from `get_shared`: *rows* of (inode, start in *data*, length), 8 bytes each.
        Return (files pushed, their bytes). After the *last* the worker lets go of *data*. Raises Gone."""
        loan = _loan(data)
        with _unclean_unless_answered(loan):
            answer, _ = await self._ask({"do": "push", "block": loan.block, "last": last}, rows)
        loan.is_shared = not last
        return answer["files"], answer["bytes"]

    async def forget(self, entries: Sequence[Known]) -> None:
        """Have the kernel forget directory entries. Raises Gone."""
        listed = [(parent, os.fsdecode(name), inode) for parent, name, inode in entries]
        await self._ask({"do": "forget", "entries": listed})

    def is_shared(self, data: memoryview) -> bool:
        """Say whether *data* came from `get_shared`."""
        return isinstance(data.obj, Loan) and data.obj.is_shared

    async def _ask(
        self, words: Words, payload: bytes = b"", descriptor: int | None = None
    ) -> tuple[Words, bytes]:
        if not self.is_alive:
            if descriptor is not None:
                os.close(descriptor)
            raise Gone
        self._drop_returned()
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

    def close(self) -> None:
        """Give up memory that nobody holds."""
        self._memory.close()

    async def send(self) -> None:
        """Send what is to be sent, for ever."""
        async for message, descriptor in self._to_send:
            rights = [] if descriptor is None else [_rights(descriptor)]
            try:
                with suppress(OSError):  # it has died, as receiving tells
                    sent = await self._connection.sendmsg([message], rights)
                    while sent < len(message):
                        sent += await self._connection.send(memoryview(message)[sent:])
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    def _drop_returned(self) -> None:
        for block in self._memory.returned():
            self.tell({"do": "drop", "block": block})

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


@contextmanager
def _unclean_unless_answered(loan: Loan) -> Iterator[None]:
    """Mark what the worker is at work on until it has answered."""
    loan.area.is_clean = False
    yield
    loan.area.is_clean = True


def _loan(data: memoryview) -> Loan:
    assert isinstance(data.obj, Loan)
    return data.obj


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
        try:
            yield link
        finally:
            link.close()
