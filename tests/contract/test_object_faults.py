"""The S3 adapter before a server that misbehaves: right bytes or a right error in time, never wrong bytes.

Two faults cannot be seen at this layer: a server that sends other bytes of the object under the
Content-Range asked for, and one that flips a bit. Length and position are all that S3 tells; the
reader layer holds the checksums (last two tests: they show what this layer lets through).
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import trio

from datas3tfs.core.counters import Counters
from datas3tfs.core.model import Bucket, BucketId
from datas3tfs.core.spans import Span
from datas3tfs.errors import Corrupt, Datas3tError, NotFound, Unavailable
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.store import RetryingStore
from datas3tfs.objects.stores import check_bucket, open_stores
from tests.harness.faultproxy import Fault, FaultProxy, Kind
from tests.harness.s3 import S3Server

MIB = 1 << 20
KEY = "datas3t/some-set/dataranges/00000000000000000000-00000000000000000009.tar"
BODY = bytes(range(256)) * 40
SPAN = Span(1000, 9000)
# Times far below the defaults. 8 MiB/s: a tenth of what moto does.
SETTINGS = S3Settings(io_timeout=1.5, slowest_rate=8 * MIB, first_pause=0.01, part_size=5 * MIB)
SLACK = 1.0  # seconds a loaded machine may be late


@dataclass
class Bench:
    server: S3Server
    proxy: FaultProxy
    store: RetryingStore
    counters: Counters


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.process.port) as proxy:
        yield proxy


@pytest.fixture
async def bench(s3_server: S3Server, proxy: FaultProxy) -> AsyncIterator[Bench]:
    counters = Counters()
    async with open_stores(nothing_registered, SETTINGS, counters, random=lambda: 0.5) as stores:
        store = stores.of(s3_server.spec(proxy.endpoint))
        await store.put(KEY, BODY)
        yield Bench(s3_server, proxy, store, counters)


async def nothing_registered(bucket_id: BucketId) -> Bucket:
    raise NotFound(f"bucket {bucket_id}: not registered")


FAULTS = [
    Fault(Kind.TRUNCATE),
    Fault(Kind.RESET),
    Fault(Kind.STALL_BODY),
    Fault(Kind.STALL_HEAD),
    Fault(Kind.DRIBBLE),
    Fault(Kind.STATUS, status=500),
    Fault(Kind.STATUS, status=503),
    Fault(Kind.STATUS, status=429),
    Fault(Kind.STATUS, status=403),
    Fault(Kind.PAGE),
    Fault(Kind.PAGE_404),
    Fault(Kind.LOSE_ANSWER),
]
RANGE_FAULTS = [*FAULTS, Fault(Kind.IGNORE_RANGE), Fault(Kind.SHIFT)]


def name(fault: Fault) -> str:
    return f"{fault.kind.name}{fault.status if fault.kind is Kind.STATUS else ''}"


def once(fault: Fault) -> Fault:
    return replace(fault, times=1, path=KEY)


@pytest.mark.parametrize("fault", RANGE_FAULTS, ids=name)
async def test_a_range_survives_one_fault(bench: Bench, fault: Fault) -> None:
    before = bench.counters.get("s3.retry")
    bench.proxy.add(once(fault))
    with trio.fail_after(SETTINGS.io_timeout + SLACK):
        assert await bench.store.get_range(KEY, SPAN, len(BODY)) == BODY[SPAN.start : SPAN.stop]
    retried = bench.counters.get("s3.retry") - before
    assert retried >= 1  # once, unless this machine stood still for as long as an attempt may take
    assert bench.proxy.requests("GET", KEY) == 1 + retried


async def test_a_whole_object_survives_one_fault(bench: Bench) -> None:
    async def read(fault: Fault) -> None:
        key = await spoilt(bench, replace(fault, times=1))
        with trio.fail_after(SETTINGS.io_timeout + SLACK):
            assert await bench.store.get(key, 1 * MIB) == BODY, fault

    await all_at_once(read, FAULTS)
    assert bench.counters.get("s3.retry") >= len(FAULTS)


async def test_lasting_faults_are_unavailable_in_time(bench: Bench) -> None:
    async def read(fault: Fault) -> None:
        key = await spoilt(bench, fault)
        with trio.fail_after(SETTINGS.io_timeout + SLACK), pytest.raises(Unavailable) as caught:
            await bench.store.get_range(key, SPAN, len(BODY))
        check_message(caught.value)

    await all_at_once(read, RANGE_FAULTS)
    bench.proxy.clear()
    assert await bench.store.get_range(KEY, SPAN, len(BODY)) == BODY[SPAN.start : SPAN.stop]


async def test_lasting_faults_never_yield_a_part_of_an_object(bench: Bench) -> None:
    async def read(fault: Fault) -> None:
        key = await spoilt(bench, fault)
        with trio.fail_after(SETTINGS.io_timeout + SLACK), pytest.raises(Unavailable) as caught:
            await bench.store.get(key, 1 * MIB)
        check_message(caught.value)

    await all_at_once(read, FAULTS)


async def spoilt(bench: Bench, fault: Fault) -> str:
    """Store BODY under a key of its own, reading which meets *fault*; return the key."""
    key = f"datas3t/some-set/{name(fault)}.tar"
    await bench.store.put(key, BODY)
    bench.proxy.add(replace(fault, path=key))
    return key


async def all_at_once(work: Callable[[Fault], Awaitable[None]], faults: list[Fault]) -> None:
    async with trio.open_nursery() as nursery:
        for fault in faults:
            nursery.start_soon(work, fault)


async def test_a_denied_address_is_signed_anew_without_a_retry(bench: Bench) -> None:
    await bench.store.get_range(KEY, SPAN, len(BODY))
    bench.proxy.add(Fault(Kind.STATUS, 1, status=403))
    await bench.store.get_range(KEY, SPAN, len(BODY))
    assert bench.counters.get("s3.retry") == 0
    assert bench.counters.get("s3.get") == 3


async def test_an_address_is_signed_once(bench: Bench) -> None:
    for _ in range(5):
        await bench.store.get_range(KEY, SPAN, len(BODY))
    queries = {path for _, path in bench.proxy._requests if "X-Amz-Signature" in path}
    assert len(queries) == 1


async def test_a_cancelled_read_frees_its_thread_at_once(s3_server: S3Server, proxy: FaultProxy) -> None:
    patient = S3Settings(io_timeout=300.0, parallel_gets=1)
    async with open_stores(nothing_registered, patient, Counters()) as stores:
        store = stores.of(s3_server.spec(proxy.endpoint))
        await store.put(KEY, BODY)
        proxy.add(Fault(Kind.STALL_BODY, 1))
        with trio.move_on_after(0.3) as scope:
            await store.get_range(KEY, SPAN, len(BODY))
        assert scope.cancelled_caught
        with trio.fail_after(3):  # there is but one thread to read with
            assert await store.get_range(KEY, SPAN, len(BODY)) == BODY[SPAN.start : SPAN.stop]


async def test_an_outage_ends_in_time_and_is_over_when_it_is_over(bench: Bench) -> None:
    await bench.store.get_range(KEY, SPAN, len(BODY))
    bench.proxy.stop()

    async def fails(call: Callable[[], Awaitable[object]]) -> None:
        with trio.fail_after(SETTINGS.io_timeout + SLACK), pytest.raises(Unavailable) as caught:
            await call()
        check_message(caught.value)

    store = bench.store
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails, lambda: store.get_range(KEY, SPAN, len(BODY)))
        nursery.start_soon(fails, lambda: store.size(KEY))
        nursery.start_soon(fails, lambda: store.put(KEY, b""))
        nursery.start_soon(fails, lambda: store.delete(KEY))
    bench.proxy.start()
    assert await bench.store.get_range(KEY, SPAN, len(BODY)) == BODY[SPAN.start : SPAN.stop]


async def test_a_server_killed_and_started_again_still_has_the_object(rclone_server: S3Server) -> None:
    async with open_stores(nothing_registered, SETTINGS, Counters()) as stores:
        store = stores.of(rclone_server.spec())
        await store.put(KEY, BODY)
        rclone_server.kill()
        with pytest.raises(Unavailable):
            await store.get_range(KEY, SPAN, len(BODY))
        rclone_server.start()
        assert await store.get_range(KEY, SPAN, len(BODY)) == BODY[SPAN.start : SPAN.stop]


WRITE_FAULTS = [
    Fault(Kind.STATUS, method="PUT", status=500),
    Fault(Kind.STATUS, method="PUT", status=503),
    Fault(Kind.STALL_HEAD, method="PUT"),
    Fault(Kind.PAGE_404, method="PUT"),
    Fault(Kind.LOSE_ANSWER, method="PUT"),
]


@pytest.mark.parametrize("fault", WRITE_FAULTS, ids=name)
async def test_a_put_survives_one_fault(bench: Bench, fault: Fault) -> None:
    bench.proxy.add(once(fault))
    await bench.store.put(KEY, b"other")
    assert await bench.store.get(KEY, 10) == b"other"


@pytest.mark.parametrize("fault", WRITE_FAULTS, ids=name)
async def test_a_stream_survives_a_fault_of_a_part(bench: Bench, fault: Fault) -> None:
    bench.proxy.add(once(fault))
    await bench.store.put_stream(KEY, stream(12 * MIB), 12 * MIB)
    assert await bench.store.size(KEY) == 12 * MIB
    assert bench.server.unfinished() == []
    assert bench.counters.get("s3.retry") >= 1


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_a_stream_that_fails_for_good_leaves_nothing(bench: Bench, method: str) -> None:
    key = KEY + "2"
    bench.proxy.add(Fault(Kind.STATUS, None, "uploadId", method))
    with pytest.raises(Unavailable) as caught:
        await bench.store.put_stream(key, stream(12 * MIB), 12 * MIB)
    check_message(caught.value)
    assert bench.server.unfinished() == []
    with pytest.raises(NotFound):
        await bench.store.size(key)


async def test_a_lost_answer_to_the_last_request_is_looked_up(bench: Bench) -> None:
    key = KEY + "2"
    bench.proxy.add(Fault(Kind.LOSE_ANSWER, 1, "uploadId", "POST"))
    await bench.store.put_stream(key, stream(12 * MIB), 12 * MIB)
    assert await bench.store.size(key) == 12 * MIB
    assert bench.server.unfinished() == []
    assert bench.proxy.requests("POST", "uploadId") == 1


async def test_what_a_lost_answer_to_the_first_request_left_is_deleted(bench: Bench) -> None:
    bench.proxy.add(Fault(Kind.LOSE_ANSWER, 1, "uploads", "POST"))
    await bench.store.put_stream(KEY, stream(12 * MIB), 12 * MIB)
    assert bench.server.unfinished() == [KEY]
    await bench.store.delete(KEY)
    assert bench.server.unfinished() == []
    with pytest.raises(NotFound):
        await bench.store.size(KEY)


async def test_a_stream_cancelled_while_the_server_stalls_returns_soon(bench: Bench) -> None:
    key = KEY + "2"
    bench.proxy.add(Fault(Kind.STALL_HEAD, None, "partNumber", "PUT"))
    with trio.fail_after(3):
        with trio.move_on_after(0.3) as scope:
            await bench.store.put_stream(key, stream(12 * MIB), 12 * MIB)
        assert scope.cancelled_caught
    assert bench.server.unfinished() == []


async def test_size_and_delete_survive_one_fault(bench: Bench) -> None:
    bench.proxy.add(Fault(Kind.STATUS, 1, KEY, "HEAD"), Fault(Kind.STATUS, 1, KEY, "DELETE"))
    assert await bench.store.size(KEY) == len(BODY)
    await bench.store.delete(KEY)
    assert bench.counters.get("s3.retry") >= 2  # a loaded machine may need more


async def test_a_server_that_cannot_list_uploads_is_tolerated(bench: Bench) -> None:
    bench.proxy.add(Fault(Kind.STATUS, None, "?uploads", "GET", status=501))
    await bench.store.delete(KEY)
    with pytest.raises(NotFound):
        await bench.store.size(KEY)


async def test_a_bucket_check_does_not_retry(bench: Bench) -> None:
    bench.proxy.add(Fault(Kind.STATUS, None, "list-type"))
    with pytest.raises(Unavailable, match="503 InjectedFault"):
        await check_bucket(bench.server.spec(bench.proxy.endpoint), S3Settings(), Counters())
    assert bench.proxy.requests("GET", "list-type") == 1


async def test_neither_logs_nor_tracebacks_hold_a_signature(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[Unavailable] = []

    async def read(fault: Fault) -> None:
        key = await spoilt(bench, fault)
        with pytest.raises(Unavailable) as caught:
            await bench.store.get_range(key, SPAN, len(BODY))
        errors.append(caught.value)

    async def write() -> None:
        bench.proxy.add(Fault(Kind.STATUS, None, "refused", "PUT"))
        with pytest.raises(Unavailable) as caught:
            await bench.store.put("refused", b"")
        errors.append(caught.value)

    with caplog.at_level(logging.DEBUG):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            nursery.start_soon(all_at_once, read, RANGE_FAULTS)
        bench.proxy.stop()
        with pytest.raises(Unavailable) as caught:
            await bench.store.get_range(KEY, SPAN, len(BODY))
        errors.append(caught.value)
    told = caplog.text + "".join(line for error in errors for line in traceback.format_exception(error))
    assert KEY in told
    for secret in ("X-Amz", "Signature=", bench.server.access_key, bench.server.secret_key):
        assert secret not in told


async def test_a_lie_about_the_position_passes_here_unless_it_leads_beyond_the_end(bench: Bench) -> None:
    bench.proxy.add(Fault(Kind.LIE, 1, shift=512))
    assert await bench.store.get_range(KEY, Span(0, 1000), len(BODY)) == BODY[512:1512]
    bench.proxy.add(Fault(Kind.LIE, None, shift=len(BODY)))
    with pytest.raises(Corrupt):
        await bench.store.get_range(KEY, Span(0, 1000), len(BODY))


async def test_a_flipped_bit_passes_here(bench: Bench) -> None:
    bench.proxy.add(Fault(Kind.CORRUPT, 1))
    got = await bench.store.get_range(KEY, SPAN, len(BODY))
    wrong = [place for place in range(SPAN.length) if got[place] != BODY[SPAN.start + place]]
    assert wrong == [SPAN.length // 2]


def check_message(error: Datas3tError) -> None:
    text = str(error)
    assert "datas3t/some-set/" in text
    assert "attempt" in text
    assert "\n" not in text
    assert "X-Amz" not in text


async def stream(size: int) -> AsyncIterator[bytes]:
    for start in range(0, size, MIB):
        await trio.lowlevel.checkpoint()
        yield bytes(min(MIB, size - start))
