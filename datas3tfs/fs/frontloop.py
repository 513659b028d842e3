"""Stand between the kernel and pyfuse3, and answer by ourselves what pyfuse3 cannot answer well.

The trick: libfuse takes `/dev/fd/N` for a mount point and then speaks FUSE on descriptor N, leaving the
mounting to us. It gets one end of a SEQPACKET socket pair (a message each, as from /dev/fuse); the other
end and the real /dev/fuse are here:

    kernel ── /dev/fuse ── front loop ── socket pair ── libfuse, pyfuse3 ── handlers
                               │
                               └── READ, by inode: from memory at once, else by a task of its own

What that gains: OPEN and FLUSH are answered ENOSYS, once each, and the kernel never sends them again
(FUSE_NO_OPEN_SUPPORT), nor RELEASE. A file in the page cache is then read without any request; one that is
not costs a READ. pyfuse3 alone cannot do that: a READ without an open file has no handle, and it passes on
nothing but the handle. All other requests go through to pyfuse3 and its answers back, as they are; the
answer to INIT is widened (messages.py).

For mounts that cannot be written to. With OPEN refused once, the kernel opens nothing at our door any more,
whatever for. That costs writers too much (tried with a file system that notes what it is asked): O_TRUNC is
lost, as the kernel leaves it to the OPEN that never comes; a committed file that root opens for writing is
refused at the first write only; and without RELEASE nobody knows which of several FLUSHes is the last, after
which a file is whole.

Not for notifications: those go straight to /dev/fuse, from another process (notifier.py). INTERRUPT is
answered ENOSYS, too: a READ ends within the time limit anyway, pyfuse3 heeds none, and programs with timers
do not expect EINTR from files. Concurrency: the event loop's; nothing blocks it, for all descriptors are
non-blocking.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol

import pyfuse3
import trio

from datas3tfs.fs import messages
from datas3tfs.fs.messages import Opcode

_ROOM = 64 << 10  # bytes that a message has beyond the largest content
_LARGEST = 4 << 20  # bytes of content in a message; the kernel's limit is 1 MiB unless somebody raised it
_LEAST = 192 << 10  # bytes that must fit into a message between us and libfuse, which are mostly listings
_IN_TURN = 16  # requests answered before others on the event loop get theirs
_BACKGROUND = 64  # requests that nobody waits for (read-ahead) at a time
_UNSUPPORTED = frozenset({Opcode.OPEN, Opcode.FLUSH, Opcode.INTERRUPT})
# asm-generic/socket.h; root only. The socket module does not have them.
_SNDBUFFORCE, _RCVBUFFORCE = 32, 33


class Files(Protocol):
    """Who knows contents by inode."""

    def read_at_hand(self, inode: int, offset: int, size: int) -> bytes | memoryview | None:
        """Return the bytes if that needs no waiting."""
        ...

    def read_inode(self, inode: int, offset: int, size: int) -> Awaitable[bytes | memoryview]:
        """Return the bytes. Raises FUSEError."""
        ...


class FrontLoop:
    """Relays one mount's requests; made by `front_loop`."""

    def __init__(self, device: int, session: socket.socket) -> None:
        self._device = device
        self._session = session
        self._init = 0  # unique of the INIT under way
        self._is_widened = False

    async def run(self, files: Files) -> None:
        """Relay until the mount is gone; then pyfuse3 is told to end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._answers)
            await self._requests(files, nursery)
            nursery.cancel_scope.cancel()
        pyfuse3.terminate()

    async def _requests(self, files: Files, nursery: trio.Nursery) -> None:
        buffer = bytearray(_LARGEST + _ROOM)
        view = memoryview(buffer)
        in_turn = 0
        while True:
            try:
                length = os.readv(self._device, [buffer])
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._device)
                in_turn = 0
                continue
            except OSError as exc:
                if exc.errno in (errno.EINTR, errno.ENOENT):  # interrupted while it was read
                    continue
                return  # ENODEV: unmounted; ECONNABORTED
            if not length:
                return
            if length < messages.REQUEST.size:
                continue  # not from a kernel
            _, opcode, unique, inode, *_ = messages.REQUEST.unpack_from(buffer)
            if opcode == Opcode.READ:
                _, offset, size = messages.READ_BODY.unpack_from(buffer, messages.REQUEST.size)
                content = files.read_at_hand(inode, offset, size)
                if content is None:
                    nursery.start_soon(self._read, files, unique, inode, offset, size)
                else:
                    self._answer(unique, content)
            elif opcode in _UNSUPPORTED:
                self._refuse(unique, errno.ENOSYS)
            else:
                if opcode == Opcode.INIT:
                    self._init = unique
                await self._pass_on(view[:length])
            in_turn += 1
            if in_turn >= _IN_TURN:
                await trio.lowlevel.checkpoint()
                in_turn = 0

    async def _read(self, files: Files, unique: int, inode: int, offset: int, size: int) -> None:
        try:
            content = await files.read_inode(inode, offset, size)
        except pyfuse3.FUSEError as exc:
            self._refuse(unique, exc.errno)
        else:
            self._answer(unique, content)

    async def _pass_on(self, message: memoryview) -> None:
        while True:
            try:
                self._session.send(message)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._session)
            else:
                return

    async def _answers(self) -> None:
        """Pass on what pyfuse3 answers."""
        buffer = bytearray(_LARGEST + _ROOM)
        view = memoryview(buffer)
        while True:
            try:
                length = self._session.recv_into(buffer)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._session)
                continue
            if length < messages.ANSWER.size:
                return  # libfuse has closed its end
            if not self._is_widened and messages.ANSWER.unpack_from(buffer)[2] == self._init:
                self._is_widened = True
                messages.widened(view[:length], _BACKGROUND)
            self._write([view[:length]])

    def _answer(self, unique: int, content: bytes | memoryview) -> None:
        self._write([messages.answer(unique, len(content)), content])

    def _refuse(self, unique: int, number: int) -> None:
        self._write([messages.answer(unique, 0, number)])

    def _write(self, parts: Sequence[bytes | memoryview]) -> None:
        # ENOENT: the kernel has given up on the request. Anything else: the mount is gone, as reading tells.
        with suppress(OSError):
            os.writev(self._device, parts)


@contextmanager
def front_loop(device: int) -> Iterator[tuple[FrontLoop, int]]:
    """Return a loop for the mount behind *device*, and the descriptor for libfuse, which closes it.

    Raises OSError if messages of the size needed are not allowed here (net.core.wmem_max)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            for end in (ours, theirs):
                _widen(end)
            descriptor = theirs.detach()
        ours.setblocking(False)
        os.set_blocking(device, False)
        yield FrontLoop(device, ours), descriptor


def _widen(end: socket.socket) -> None:
    for forced, plain in ((_SNDBUFFORCE, socket.SO_SNDBUF), (_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            end.setsockopt(socket.SOL_SOCKET, forced, _LARGEST + _ROOM)
        except PermissionError:
            end.setsockopt(socket.SOL_SOCKET, plain, _LARGEST + _ROOM)
    if end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < _LEAST:
        raise OSError(errno.EMSGSIZE, "messages of that size are not allowed here (net.core.wmem_max)")
