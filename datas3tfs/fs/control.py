"""The way in for announcements: `DATASET/.datas3tfs/prefetch`, hidden, to be written to.

Where a mount is read-only the kernel lets nobody write to a file of it, whatever we say. But it follows
links: `prefetch` is one, and leads to a named pipe outside of the mount, another each time somebody asks. So
mounts of both kinds can be written to with whatever can write to a file, each who opens it has a stream of
its own, and a writer that is too fast waits in its own pipe, where it can be interrupted, and not in a
request of ours. What a pipe cannot do is to answer: how many keys were accepted, an extended attribute of the
dataset tells, under the number in the pipe's name (`datas3tfs prefetch` asks for it).

The pipes belong to whom the files belong to, and nobody else can open them. Each is removed when the first
bytes have come, or nobody has opened it for `_OPEN_SECONDS`. All on the event loop.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import logging
import math
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyfuse3
import trio

from datas3tfs.core.announcing import LineReader
from datas3tfs.core.model import DatasetId
from datas3tfs.core.names import printable
from datas3tfs.engine.announcements import Announcement, Announcements
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.errors import Unavailable
from datas3tfs.fs.attributes import Ownership

log = logging.getLogger(__name__)

_PREFIX = "mount-"
_STREAMS = 64  # open at a time
_FINISHED = 64  # whose result is still known
_OPEN_SECONDS = 10.0  # from reading the link until it is opened: a moment, if the writer is not stopped
_READ = 16 * 1024  # bytes taken at once: some 700 lines, a third of a millisecond


@dataclass(slots=True)
class _Stream:
    """What one writer says. *announcement*: None until somebody has opened the pipe."""

    path: Path
    lines: LineReader = field(default_factory=LineReader)
    announcement: Announcement | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def result(self, *, ended: bool) -> dict[str, object]:
        found = self.announcement
        return {
            "accepted": found.known if found else 0,
            "unknown": found.unknown if found else 0,
            "dropped": found.dropped if found else 0,
            "bad": self.lines.bad,
            "example": self.lines.example,
            "ended": ended,
        }


class Control:
    """Makes pipes, and passes on what is written to them; made by `open_control`."""

    def __init__(
        self, nursery: trio.Nursery, announcements: Announcements, directory: Path, owner: Ownership
    ) -> None:
        self._nursery = nursery
        self._announcements = announcements
        self._directory = directory
        self._owner = owner
        self._numbers = itertools.count(1)
        self._open: dict[str, _Stream] = {}
        self._finished: OrderedDict[str, dict[str, object]] = OrderedDict()

    def new_pipe(self, dataset_id: DatasetId) -> bytes:
        """Make a pipe for announcements of a dataset; return its path. Raises FUSEError, Unavailable."""
        self._make_room()
        name = str(next(self._numbers))
        path = self._directory / name
        try:
            descriptor = self._make(path)
        except OSError as exc:
            raise Unavailable(f"{path}: no pipe for announcements can be made ({exc.strerror})") from exc
        stream = self._open[name] = _Stream(path)
        self._nursery.start_soon(self._serve, name, stream, dataset_id, descriptor)
        return os.fsencode(path)

    def result(self, name: str) -> dict[str, object] | None:
        """Return what came of the stream through the pipe of this name; None if it is unknown."""
        if name in self._open:
            return self._open[name].result(ended=False)
        return self._finished.get(name)

    def _make(self, path: Path) -> int:
        os.mkfifo(path, 0o600)
        try:
            if os.geteuid() == 0:
                os.chown(path, self._owner.uid, self._owner.gid)
            return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            path.unlink()
            raise

    def _make_room(self) -> None:
        """Give up the oldest pipe that nobody has opened. Raises FUSEError if there is none but should be."""
        if len(self._open) < _STREAMS:
            return
        idle = next((stream for stream in self._open.values() if stream.announcement is None), None)
        if idle is None:
            raise pyfuse3.FUSEError(errno.EAGAIN)
        idle.scope.cancel()
        self._open = {name: stream for name, stream in self._open.items() if stream is not idle}

    # -- one stream's task -----------------------------------------------------------------------------

    async def _serve(self, name: str, stream: _Stream, dataset_id: DatasetId, descriptor: int) -> None:
        try:
            with stream.scope:
                await self._listen(stream, dataset_id, descriptor)
        except Exception:  # a bug, or input nobody thought of; it must not end the mount
            log.exception("unexpected failure; please report it")
        finally:
            os.close(descriptor)
            stream.path.unlink(missing_ok=True)
            self._open.pop(name, None)
            if stream.announcement is not None:
                self._announcements.end(stream.announcement)
            self._finished[name] = stream.result(ended=True)
            if len(self._finished) > _FINISHED:
                self._finished.popitem(last=False)

    async def _listen(self, stream: _Stream, dataset_id: DatasetId, descriptor: int) -> None:
        """Pass on what is written until the last writer has closed."""
        data: bytes | None = None
        while data != b"":
            with trio.move_on_after(_OPEN_SECONDS if stream.announcement is None else math.inf):
                await trio.lowlevel.wait_readable(descriptor)
            try:
                data = os.read(descriptor, _READ)
            except BlockingIOError:
                data = None  # somebody has it open and says nothing
            if stream.announcement is None:
                if data == b"":
                    return  # nobody has opened it, or nothing was written
                stream.path.unlink(missing_ok=True)
                stream.announcement = self._announcements.begin(dataset_id)
            if data is not None:
                keys = stream.lines.feed(data) if data else stream.lines.finish()
                await self._announcements.add(stream.announcement, keys)
        if stream.lines.bad:
            log.warning(
                "%d announced lines are neither a key nor a name, the first: %s",
                stream.lines.bad,
                printable(stream.lines.example or ""),
            )


@asynccontextmanager
async def open_control(
    announcements: Announcements, parent: Path, owner: Ownership
) -> AsyncIterator[Control | None]:
    """Own the pipes, in a directory below *parent*; leaving removes them. None if there can be no pipes."""
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(_directory_in(parent))
        except OSError as exc:
            log.warning("%s: nothing can be announced to this mount (%s)", parent, exc.strerror)
            yield None
            return
        async with background_nursery() as nursery:
            yield Control(nursery, announcements, directory, owner)


@contextmanager
def _directory_in(parent: Path) -> Iterator[Path]:
    """Make a directory that is removed in the end; remove those of mounts that have died."""
    # Root's pipes are for whom the files belong to, who must get there.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    parent.mkdir(mode=mode, parents=True, exist_ok=True)
    with _locked(parent):  # so that nobody takes one for dead that is not locked yet
        for left in parent.glob(f"{_PREFIX}*"):
            with suppress(BlockingIOError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        made.chmod(mode)
        lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        os.close(lock)


@contextmanager
def _locked(directory: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold the lock of a directory, which ends with its holder. Raises BlockingIOError, OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)
