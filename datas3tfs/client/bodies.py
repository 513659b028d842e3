"""Where the bytes of an upload come from: a file that can be read again, or a TAR composed on the way.

Concurrency: `part` is called by one task, in order; what it returns is read by another, as often as it takes
to store it.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

from anyio import lowlevel, to_thread

from datas3tfs.client.scanning import ScannedTar
from datas3tfs.client.sources import Batch
from datas3tfs.client.storage import Body
from datas3tfs.core.compose import compose
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.indexfile import encode_index_file
from datas3tfs.core.layout import plan_layout
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid


class UploadBody(Protocol):
    """The TAR of an upload, and its index."""

    @property
    def keys(self) -> Span: ...
    @property
    def size(self) -> int: ...
    @property
    def label(self) -> str: ...

    async def part(self, span: Span) -> Body:
        """Return what gives the bytes *span*; to be called for one part after the other."""
        ...

    async def index(self) -> bytes:
        """Return the index object, once all parts were taken. Raises Invalid if the source has changed."""
        ...


class InMemory:
    """Bytes that are there."""

    def __init__(self, content: bytes | bytearray) -> None:
        self._content = content
        self.size = len(content)

    async def read(self, at: int, size: int) -> bytes:
        """See storage.Body."""
        await lowlevel.checkpoint()
        return bytes(self._content[at : at + size])


class _FilePart:
    """Part of a file."""

    def __init__(self, file: FileBody, span: Span) -> None:
        self._file = file
        self._span = span
        self.size = span.length

    async def read(self, at: int, size: int) -> bytes:
        """See storage.Body."""
        return await to_thread.run_sync(self._file.read, self._span.start + at, size)


class FileBody:
    """A TAR that lies in a file, read from there whenever it is needed."""

    def __init__(self, scanned: ScannedTar) -> None:
        self.keys = scanned.keys
        self.size = scanned.size
        self.label = scanned.label
        self._scanned = scanned
        self._lock = threading.Lock()  # an open file has one position for all
        self._opened: BinaryIO | None = None

    def __enter__(self) -> FileBody:
        if isinstance(self._scanned.file, Path):
            try:
                self._opened = self._scanned.file.open("rb", buffering=0)
            except OSError as exc:
                raise Invalid(f"{self.label}: {exc.strerror}") from exc
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._opened is not None:
            self._opened.close()

    async def part(self, span: Span) -> Body:
        """See UploadBody."""
        await to_thread.run_sync(self._scanned.check)
        return _FilePart(self, span)

    async def index(self) -> bytes:
        """See UploadBody."""
        await to_thread.run_sync(self._scanned.check)
        return await to_thread.run_sync(encode_index_file, self._scanned.flat_index)

    def read(self, at: int, size: int) -> bytes:
        """Return exactly *size* bytes from *at* on; blocks. Raises Invalid."""
        try:
            data = self._read_once(at, size)
            while 0 < len(data) < size and (more := self._read_once(at + len(data), size - len(data))):
                data += more
        except OSError as exc:
            raise Invalid(f"{self.label}: {exc.strerror}") from exc
        if len(data) != size:
            raise Invalid(f"{self.label}: has changed while it was uploaded")
        return data

    def _read_once(self, at: int, size: int) -> bytes:
        if self._opened is not None:
            return os.pread(self._opened.fileno(), size, at)
        file = self._scanned.file
        assert not isinstance(file, Path)
        with self._lock:
            file.seek(at)
            return file.read(size)


class ComposedBody:
    """A TAR made of a batch of sources. A part is held in memory until it is stored."""

    def __init__(self, batch: Batch) -> None:
        layout = plan_layout(batch.plan)
        self.keys = layout.keys
        self.size = layout.size
        self.label = f"keys {layout.keys.start} to {layout.keys.last}"
        self._builder = IndexBuilder()
        sources = batch.sources
        self._blocks = compose(layout, lambda i: sources[i].chunks(), self._builder)
        self._rest = b""

    async def part(self, span: Span) -> Body:
        """See UploadBody."""
        return InMemory(await to_thread.run_sync(self._take, span.length))

    async def index(self) -> bytes:
        """See UploadBody."""
        return await to_thread.run_sync(self._index)

    def _take(self, length: int) -> bytearray:
        part = bytearray(self._rest)
        while len(part) < length and (block := next(self._blocks, None)) is not None:
            part += block
        self._rest = bytes(part[length:])
        del part[length:]
        return part

    def _index(self) -> bytes:
        for _ in self._blocks:  # the end of the last block is where changed sources are noticed
            pass
        return encode_index_file(self._builder.finish(first=self.keys.start, object_size=self.size))
