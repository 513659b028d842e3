"""A worker, here a thread, asked over a real socket, fetching from a real S3 server."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import trio

from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.compose import compose
from datas3tfs.core.counters import Counters
from datas3tfs.core.index import Index, open_index
from datas3tfs.core.indexbuild import IndexBuilder
from datas3tfs.core.layout import Planned, plan_layout
from datas3tfs.core.model import Bucket, BucketId
from datas3tfs.core.reads import cut
from datas3tfs.core.spans import Span
from datas3tfs.errors import Corrupt, Datas3tError, NotFound, Unavailable
from datas3tfs.fs import messages
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.stores import open_stores
from datas3tfs.worker import serving
from datas3tfs.worker.blocks import WorkerBlocks
from datas3tfs.worker.frames import Words
from datas3tfs.worker.link import Gone, Link, open_link
from datas3tfs.worker.memory import Area, Loan
from tests.harness.faultproxy import Fault, FaultProxy, Kind
from tests.harness.mounts import until
from tests.harness.s3 import S3Server

KEY = "datas3t/photos/dataranges/0-9.tar"
SETTINGS = S3Settings(io_timeout=3.0, first_pause=0.01)
CONTENTS = [bytes([key]) * size for key, size in enumerate([10, 0, 5000, CHUNK + 3, 3 * CHUNK, 700] * 4)]
BUCKET = BucketId(1)


async def make_tar() -> tuple[bytes, Index]:
    """Return a TAR of CONTENTS and its index."""
    layout = plan_layout([Planned(key, "bin", len(content), 0) for key, content in enumerate(CONTENTS)])
    builder = IndexBuilder()
    body = b"".join(compose(layout, lambda i: [CONTENTS[i]], builder))
    flat = builder.finish(first=0, object_size=layout.size)
    return body, open_index(memoryview(flat), first=0, count=len(CONTENTS), object_size=layout.size)


@contextmanager
def worker() -> Iterator[socket.socket]:
    """Yield the socket to a worker; it ends when that is closed."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serving.serve, args=(theirs,))
    thread.start()
    with ours:
        yield ours
    thread.join(10)
    assert not thread.is_alive()
    theirs.close()


@dataclass
class Bench:
    proxy: FaultProxy
    server: S3Server
    link: Link
    blocks: WorkerBlocks
    counters: Counters
    body: bytes
    index: Index
    hang_up: Callable[[], None]

    async def load(self, span: Span, *, ahead: bool = True) -> memoryview:
        return await self.blocks.load(BUCKET, KEY, span, len(self.body), ahead)


@pytest.fixture
async def bench(rclone_server: S3Server) -> AsyncIterator[Bench]:
    body, index = await make_tar()
    rclone_server.client().put_object(Bucket=rclone_server.bucket, Key=KEY, Body=body)
    async with opened(rclone_server, body, index) as made:
        yield made


@asynccontextmanager
async def opened(server: S3Server, body: bytes, index: Index) -> AsyncIterator[Bench]:
    counters = Counters()

    async def lookup(bucket_id: BucketId) -> Bucket:
        return Bucket(bucket_id, server.spec(proxy.endpoint))

    with FaultProxy(server.process.port) as proxy, worker() as connection:
        async with open_stores(lookup, SETTINGS, counters) as stores, open_link(connection, SETTINGS) as link:

            def hang_up() -> None:
                connection.shutdown(socket.SHUT_RDWR)

            yield Bench(proxy, server, link, WorkerBlocks(stores, link), counters, body, index, hang_up)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("length", [1, 700, 300_000])
async def test_bytes_come_as_they_are(bench: Bench, ahead: bool, length: int) -> None:
    for start in (0, 513, 100_000):
        data = await bench.load(Span(start, start + length), ahead=ahead)
        assert bytes(data) == bench.body[start : start + length]
        assert bench.link.is_shared(data) == (ahead or length > CHUNK)
    assert bench.counters.get("s3.get") == 3
    assert bench.counters.get("s3.get_bytes") == 3 * length


async def test_what_is_wrong_is_found_wherever_it_is_and_nothing_else(bench: Bench) -> None:
    spans = cut(bench.index, Span(0, len(bench.body)), 600_000)
    assert len(spans) > 3
    for span in spans:
        data = await bench.load(span)
        assert await bench.blocks.problems(bench.index, span, data) == {}
    entry = bench.index.entry(9)  # CHUNK + 3 bytes: its second piece is the last three
    wrong = bytearray(bench.body)
    wrong[entry.content.stop - 1] ^= 1
    bench.server.client().put_object(Bucket=bench.server.bucket, Key=KEY, Body=bytes(wrong))
    found: dict[int, str] = {}
    for span in spans:
        found |= await bench.blocks.problems(bench.index, span, await bench.load(span))
    assert list(found) == [entry.content.start + CHUNK]
    assert entry.name in found[entry.content.start + CHUNK]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(Kind.STATUS, status=503), Unavailable),
        (Fault(Kind.STALL_HEAD), Unavailable),
        (Fault(Kind.STALL_BODY), Unavailable),
        (Fault(Kind.TRUNCATE), Unavailable),
        (Fault(Kind.PAGE), Unavailable),
    ],
    ids=lambda value: value.kind.name if isinstance(value, Fault) else "",
)
@pytest.mark.parametrize("ahead", [True, False])
async def test_faults_are_what_they_are_without_a_worker(
    bench: Bench, fault: Fault, error: type[Datas3tError], ahead: bool
) -> None:
    bench.proxy.add(fault)
    with pytest.raises(error), trio.fail_after(10):
        await bench.load(Span(0, 5000), ahead=ahead)
    bench.proxy.clear()
    bench.proxy.add(replace(fault, times=1))
    assert bytes(await bench.load(Span(0, 5000), ahead=ahead)) == bench.body[:5000], "tried again"


async def test_an_object_that_is_not_there_or_another(bench: Bench) -> None:
    with pytest.raises(NotFound):
        await bench.blocks.load(BUCKET, KEY + ".absent", Span(0, 10), 100, True)
    with pytest.raises(Corrupt, match="bytes long"):
        await bench.blocks.load(BUCKET, KEY, Span(0, 10), 100, True)
    with pytest.raises(Corrupt, match="asked for"):
        await bench.blocks.load(BUCKET, KEY, Span(0, 101), 100, True)


async def test_who_gives_up_frees_the_thread(bench: Bench) -> None:
    """As many as the worker has threads, and all of them again at once."""
    bench.proxy.add(Fault(Kind.STALL_BODY))
    with trio.move_on_after(0.5):
        async with trio.open_nursery() as nursery:
            for _ in range(SETTINGS.parallel_gets):
                nursery.start_soon(bench.load, Span(0, 100_000))
    bench.proxy.clear()
    with trio.fail_after(5):
        assert bytes(await bench.load(Span(0, 100_000))) == bench.body[:100_000]


async def test_blocks_nobody_has_are_given_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    take = serving._Server.take

    def watched(server: serving._Server, words: Words, payload: bytes, descriptor: Callable[[], int]) -> None:
        take(server, words, payload, descriptor)
        held.append(len(server._blocks))

    monkeypatch.setattr(serving._Server, "take", watched)
    for _ in range(20):
        data = await bench.load(Span(0, 400_000))
        del data
        gc.collect()
    await bench.load(Span(0, 10))
    assert max(held) <= 3


async def test_memory_is_used_again_and_never_what_a_thread_may_still_be_writing_to(bench: Bench) -> None:
    def area(data: memoryview) -> Area:
        assert isinstance(data.obj, Loan)
        return data.obj.area

    length = 3 << 20
    assert len(bench.body) > length + 1000
    data = await bench.load(Span(0, length))
    first = area(data)
    del data
    data = await bench.load(Span(1000, length + 1000))
    assert area(data) is first
    assert bytes(data) == bench.body[1000 : length + 1000]
    del data
    bench.proxy.add(Fault(Kind.STALL_BODY, times=1))
    with trio.move_on_after(0.3) as scope:
        await bench.load(Span(0, length))
    assert scope.cancelled_caught
    assert not first.is_clean
    assert area(await bench.load(Span(0, length))) is not first


async def test_nothing_is_pushed_without_a_device_or_of_other_bytes(bench: Bench) -> None:
    rows = np.array([[1, 0, 10]], np.uint64).tobytes()
    assert await bench.blocks.push(await bench.load(Span(0, 1000)), rows, True) == (0, 0)
    assert await bench.blocks.push(memoryview(b"not shared"), rows, True) == (0, 0)


async def test_what_is_pushed_is_told_the_kernel_file_by_file(bench: Bench, tmp_path: Path) -> None:
    with (tmp_path / "device").open("wb") as device:
        bench.link.tell({"do": "device"}, os.dup(device.fileno()))
        data = await bench.load(Span(512, 400_512))
        rows = np.array([[7, 0, 10], [9, 50, 100]], np.uint64)
        assert await bench.blocks.push(data, rows.tobytes(), True) == (2, 110)
    contents = bench.body[512:522], bench.body[562:662]
    told = [messages.store(7, 10), contents[0], messages.store(9, 100), contents[1]]
    assert (tmp_path / "device").read_bytes() == b"".join(told)


async def test_nothing_is_pushed_while_memory_is_short(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = tmp_path / "meminfo"
    figures.write_text("MemTotal: 1600 kB\nMemFree: 0 kB\nMemAvailable: 99 kB\n")
    monkeypatch.setattr(serving, "_MEMINFO", figures)
    monkeypatch.setattr(serving, "_LOOK_SECONDS", 0.0)
    rows = np.array([[7, 0, 10]], np.uint64).tobytes()
    with (tmp_path / "device").open("wb") as device:
        bench.link.tell({"do": "device"}, os.dup(device.fileno()))
        data = await bench.load(Span(512, 400_512))
        assert await bench.blocks.push(data, rows, False) == (0, 0)
        figures.write_text("MemTotal: 1600 kB\nMemFree: 0 kB\nMemAvailable: 101 kB\n")
        assert await bench.blocks.push(data, rows, True) == (1, 10)


async def test_a_worker_that_dies_is_done_without(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    shared = await bench.load(Span(0, 500_000))
    bench.proxy.add(Fault(Kind.STALL_BODY, times=1))
    outcome: list[bytes] = []

    async def under_way() -> None:
        outcome.append(bytes(await bench.load(Span(0, 300_000))))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(under_way)
        before = bench.proxy.requests("GET")
        await trio.to_thread.run_sync(lambda: until(lambda: bench.proxy.requests("GET") > before))
        bench.hang_up()
    assert outcome == [bench.body[:300_000]], "begun with it, done without"
    data = await bench.load(Span(0, 300_000))
    assert bytes(data) == bench.body[:300_000]
    assert not bench.link.is_shared(data)
    span = cut(bench.index, Span(0, 500_000), 500_000)[0]
    part = shared[: span.length] if span.length <= len(shared) else await bench.load(span)
    assert await bench.blocks.problems(bench.index, Span(0, len(part)), part) is not None
    assert await bench.blocks.push(shared, b"", True) == (0, 0)
    with pytest.raises(Gone):
        await bench.link.forget([])
    (record,) = [one for one in caplog.records if "has died" in one.getMessage()]
    assert record.levelname == "WARNING"
