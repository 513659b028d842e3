"""The front loop between a kernel and a pyfuse3 that are sockets here: what goes through, what does not."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pyfuse3
import pytest
import trio

from datas3tfs.fs import messages
from datas3tfs.fs.frontloop import front_loop
from datas3tfs.fs.messages import Opcode

LOOKUP = 1
CONTENT = os.urandom(1 << 20)


@dataclass
class Files:
    """Every file has the same content; *slow* ones have to be waited for, those in *errors* fail."""

    slow: set[int] = field(default_factory=set)
    errors: dict[int, int] = field(default_factory=dict)
    released: trio.Event = field(default_factory=trio.Event)
    asked: list[tuple[int, int, int]] = field(default_factory=list)

    def read_at_hand(self, inode: int, offset: int, size: int) -> bytes | memoryview | None:
        self.asked.append((inode, offset, size))
        if inode in self.slow or inode in self.errors:
            return None
        return memoryview(CONTENT)[offset : offset + size]

    async def read_inode(self, inode: int, offset: int, size: int) -> bytes | memoryview:
        if inode in self.errors:
            raise pyfuse3.FUSEError(self.errors[inode])
        await self.released.wait()
        return CONTENT[offset : offset + size]


@dataclass
class Ends:
    """What the test has: the kernel's side of /dev/fuse, and libfuse's of the socket pair."""

    kernel: trio.socket.SocketType
    session: trio.socket.SocketType
    files: Files
    is_over: trio.Event

    async def ask(self, opcode: int, unique: int, inode: int = 1, body: bytes = b"") -> None:
        header = messages.REQUEST.pack(messages.REQUEST.size + len(body), opcode, unique, inode, 0, 0, 0, 0)
        await self.kernel.send(header + body)

    async def ask_read(self, unique: int, inode: int, offset: int, size: int) -> None:
        body = struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0)
        await self.ask(Opcode.READ, unique, inode, body)

    async def answer(self) -> tuple[int, int, bytes]:
        """Return (unique, errno, content) of what the kernel is answered next."""
        with trio.fail_after(10):
            message = await self.kernel.recv(4 << 20)
        length, error, unique = messages.ANSWER.unpack_from(message)
        assert length == len(message)
        return unique, -error, message[messages.ANSWER.size :]

    async def passed_on(self) -> bytes:
        """Return the next message that libfuse gets."""
        with trio.fail_after(10):
            return await self.session.recv(4 << 20)


@asynccontextmanager
async def running(monkeypatch: pytest.MonkeyPatch, files: Files) -> AsyncIterator[Ends]:
    is_over = trio.Event()
    monkeypatch.setattr(pyfuse3, "terminate", is_over.set)
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (kernel, device):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    with kernel, device, front_loop(device.fileno()) as (loop, descriptor):
        kernel.setblocking(False)
        with socket.socket(fileno=descriptor) as session:
            session.setblocking(False)
            wrap = trio.socket.from_stdlib_socket
            async with trio.open_nursery() as nursery:
                nursery.start_soon(loop.run, files)
                yield Ends(wrap(kernel), wrap(session), files, is_over)
                nursery.cancel_scope.cancel()


async def test_a_read_is_answered_from_memory_and_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, Files()) as ends:
        for unique, (offset, size) in enumerate([(0, 4096), (4096, 100), (0, 1 << 20), (1 << 20, 10)], 2):
            await ends.ask_read(unique, 77, offset, size)
            assert await ends.answer() == (unique, 0, CONTENT[offset : offset + size])
        assert ends.files.asked[0] == (77, 0, 4096)
        await ends.ask(LOOKUP, 99, body=b"name\0")
        assert messages.REQUEST.unpack_from(await ends.passed_on())[2] == 99, "the first that is"


async def test_a_read_that_waits_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, Files(slow={5})) as ends:
        await ends.ask_read(2, 5, 0, 10)
        await ends.ask_read(4, 6, 0, 10)
        assert await ends.answer() == (4, 0, CONTENT[:10])
        ends.files.released.set()
        assert await ends.answer() == (2, 0, CONTENT[:10])


async def test_a_read_that_fails_gives_the_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, Files(errors={5: errno.EIO, 6: errno.ESTALE})) as ends:
        for unique, inode in ((2, 5), (4, 6)):
            await ends.ask_read(unique, inode, 0, 10)
            assert await ends.answer() == (unique, ends.files.errors[inode], b"")


@pytest.mark.parametrize("opcode", [Opcode.OPEN, Opcode.FLUSH, Opcode.INTERRUPT])
async def test_what_the_kernel_shall_not_send_is_refused_for_ever(
    monkeypatch: pytest.MonkeyPatch, opcode: Opcode
) -> None:
    async with running(monkeypatch, Files()) as ends:
        await ends.ask(opcode, 8, 5, bytes(8))
        assert await ends.answer() == (8, errno.ENOSYS, b"")


async def test_everything_else_goes_through_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = {Opcode.READ, Opcode.OPEN, Opcode.FLUSH, Opcode.INTERRUPT, Opcode.INIT}
    async with running(monkeypatch, Files()) as ends:
        for opcode in sorted(set(range(1, 60)) - refused):
            body = os.urandom(opcode * 100)
            await ends.ask(opcode, 2 * opcode, opcode, body)
            message = await ends.passed_on()
            assert messages.REQUEST.unpack_from(message)[:4] == (len(message), opcode, 2 * opcode, opcode)
            assert message[messages.REQUEST.size :] == body
            answer = messages.answer(2 * opcode, len(body)) + body
            await ends.session.send(answer)
            assert await ends.answer() == (2 * opcode, 0, body)
        large = os.urandom((1 << 20) + 16)
        await ends.session.send(messages.answer(500, len(large)) + large)
        assert await ends.answer() == (500, 0, large)


async def test_the_answer_to_init_allows_more_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    told = struct.pack("=IIIIHHI", 7, 31, 131072, 1, 12, 9, 1 << 20) + bytes(40)
    wide = struct.pack("=IIIIHHI", 7, 31, 131072, 1, 64, 48, 1 << 20) + bytes(40)
    async with running(monkeypatch, Files()) as ends:
        await ends.ask(Opcode.INIT, 2, 0, bytes(64))
        await ends.passed_on()
        await ends.session.send(messages.answer(2, len(told)) + told)
        assert await ends.answer() == (2, 0, wide)
        await ends.ask(LOOKUP, 4, body=b"name\0")
        await ends.passed_on()
        await ends.session.send(messages.answer(4, len(told)) + told)
        assert await ends.answer() == (4, 0, told), "of that one only"


async def test_an_init_that_fails_or_is_cut_short_is_left_alone() -> None:
    for answer in (messages.answer(2, 40, errno.EPROTO) + bytes(40), messages.answer(2, 4) + bytes(4)):
        changed = bytearray(answer)
        messages.widened(changed, 64)
        assert changed == answer


async def test_nonsense_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, Files()) as ends:
        await ends.kernel.send(b"x" * 10)
        await ends.session.send(messages.answer(123456, 0, 5000))
        assert await ends.answer() == (123456, 5000, b"")
        await ends.ask_read(2, 77, 0, 10)
        assert await ends.answer() == (2, 0, CONTENT[:10])


async def test_when_the_mount_is_gone_pyfuse3_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, Files(slow={5})) as ends:
        await ends.ask_read(2, 5, 0, 10)  # a read under way holds nothing up
        ends.kernel.close()
        with trio.fail_after(10):
            await ends.is_over.wait()


async def test_many_at_once_are_all_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, Files(slow={5})) as ends:
        answered: set[int] = set()
        async with trio.open_nursery() as nursery:

            async def collect() -> None:
                while len(answered) < 400:
                    answered.add((await ends.answer())[0])

            nursery.start_soon(collect)
            for unique in range(400):
                await ends.ask_read(unique, 5 if unique % 3 else 6, unique, 100)
            ends.files.released.set()
        assert answered == set(range(400))
