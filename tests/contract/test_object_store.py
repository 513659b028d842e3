"""What every ports.ObjectStore and ports.Stores must do: the memory twin, and the adapter on two servers."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace

import pytest
import trio

from datas3tfs.core.counters import Counters
from datas3tfs.core.model import Bucket, BucketId
from datas3tfs.core.spans import Span
from datas3tfs.errors import Corrupt, Invalid, NotFound, Unavailable
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.stores import check_bucket, create_bucket, open_stores
from datas3tfs.ports import ObjectStore, Stores
from tests.harness.memory_objects import FailingStore, MemoryStore, MemoryStores
from tests.harness.s3 import S3Server

MIB = 1 << 20
KEY = "datas3t/some-set/dataranges/00000000000000000000-00000000000000000009.tar"
BODY = bytes(range(256)) * 40
SETTINGS = S3Settings(io_timeout=20.0, part_size=5 * MIB)  # S3's smallest part: multipart at 5 MiB


@pytest.fixture(params=["memory", "moto", "rclone"])
def server(request: pytest.FixtureRequest) -> S3Server | None:
    if request.param == "memory":
        return None
    found: S3Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
async def stores(server: S3Server | None) -> AsyncIterator[Stores]:
    if server is None:
        yield MemoryStores({BucketId(1): MemoryStore()})
        return
    spec = server.spec()

    async def lookup(bucket_id: BucketId) -> Bucket:
        await trio.lowlevel.checkpoint()
        if bucket_id != 1:
            raise NotFound(f"bucket {bucket_id}: not registered")
        return Bucket(bucket_id, spec)

    async with open_stores(lookup, SETTINGS, Counters()) as made:
        yield made


@pytest.fixture
async def store(stores: Stores) -> ObjectStore:
    return await stores.store(BucketId(1))


async def stream(chunks: Iterable[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await trio.lowlevel.checkpoint()
        yield chunk


def noise(size: int) -> bytes:
    return hashlib.shake_128(size.to_bytes(8)).digest(size)


async def test_a_range_is_exactly_the_bytes_asked_for(store: ObjectStore) -> None:
    await store.put(KEY, BODY)
    for start, stop in [(0, 1), (0, len(BODY)), (700, 1500), (len(BODY) - 1, len(BODY)), (5, 5)]:
        assert await store.get_range(KEY, Span(start, stop), len(BODY)) == BODY[start:stop]


async def test_a_range_of_an_object_of_another_length_is_corrupt(store: ObjectStore) -> None:
    await store.put(KEY, BODY)
    for total in (len(BODY) - 1, len(BODY) + 1):
        with pytest.raises(Corrupt, match="some-set"):
            await store.get_range(KEY, Span(10, 20), total)
    with pytest.raises(Corrupt, match="some-set"):  # beyond what is there: status 416
        await store.get_range(KEY, Span(len(BODY) + 10, len(BODY) + 20), len(BODY) + 100)


async def test_a_range_beyond_the_announced_end_is_corrupt(store: ObjectStore) -> None:
    await store.put(KEY, BODY)
    with pytest.raises(Corrupt):
        await store.get_range(KEY, Span(10, len(BODY) + 1), len(BODY))


async def test_what_is_not_there_is_not_found(store: ObjectStore) -> None:
    with pytest.raises(NotFound, match="some-set"):
        await store.get_range(KEY, Span(0, 10), 10)
    with pytest.raises(NotFound, match="some-set"):
        await store.get(KEY, 10)
    with pytest.raises(NotFound, match="some-set"):
        await store.size(KEY)


@pytest.mark.parametrize("body", [b"", b"x", BODY])
async def test_put_get_size(store: ObjectStore, body: bytes) -> None:
    await store.put(KEY, body)
    assert await store.get(KEY, len(body)) == body
    assert await store.get(KEY, 1 << 40) == body
    assert await store.size(KEY) == len(body)


async def test_get_refuses_what_is_longer_than_its_limit(store: ObjectStore) -> None:
    await store.put(KEY, BODY)
    with pytest.raises(Corrupt, match="some-set"):
        await store.get(KEY, len(BODY) - 1)


async def test_keys_with_unusual_characters(store: ObjectStore) -> None:
    key = "datas3t/a b+c%20ü&=?/x"
    await store.put(key, b"here")
    assert await store.get(key, 4) == b"here"
    assert await store.get_range(key, Span(1, 3), 4) == b"er"
    assert await store.size(key) == 4
    await store.delete(key)
    with pytest.raises(NotFound):
        await store.size(key)


@pytest.mark.parametrize(
    ("size", "chunk"),
    [(0, 1), (1, 1), (5 * MIB, 3 * MIB), (5 * MIB + 1, 1 << 16), (12 * MIB, 7 * MIB)],
)
async def test_put_stream_stores_what_was_streamed(store: ObjectStore, size: int, chunk: int) -> None:
    body = noise(size)
    pieces = [body[start : start + chunk] for start in range(0, size, chunk)]
    await store.put_stream(KEY, stream([b"", *pieces, b""]), size)
    assert await store.size(KEY) == size
    assert await store.get(KEY, size) == body


@pytest.mark.parametrize("size", [100, 11 * MIB])
@pytest.mark.parametrize("wrong_by", [-1, 1])
async def test_a_stream_of_another_length_is_invalid_and_leaves_nothing(
    store: ObjectStore, server: S3Server | None, size: int, wrong_by: int
) -> None:
    body = noise(size + wrong_by)
    with pytest.raises(Invalid, match="some-set"):
        await store.put_stream(KEY, stream([body[:70], body[70:]]), size)
    await nothing_is_left(store, server)


class Broken(Exception):
    pass


@pytest.mark.parametrize("size", [100, 11 * MIB])
async def test_what_the_stream_raises_comes_out_as_it_is(
    store: ObjectStore, server: S3Server | None, size: int
) -> None:
    closed = []

    async def breaking() -> AsyncIterator[bytes]:
        try:
            yield bytes(size - 1)
            raise Broken
        finally:
            closed.append(True)

    with pytest.raises(Broken):
        await store.put_stream(KEY, breaking(), size)
    assert closed
    await nothing_is_left(store, server)


async def test_a_cancelled_stream_leaves_nothing(store: ObjectStore, server: S3Server | None) -> None:
    size = 12 * MIB
    with trio.CancelScope() as scope:

        async def cancelling() -> AsyncIterator[bytes]:
            yield bytes(size - MIB)
            scope.cancel()
            await trio.sleep_forever()

        await store.put_stream(KEY, cancelling(), size)
    assert scope.cancelled_caught
    await nothing_is_left(store, server)


async def test_delete_is_idempotent(store: ObjectStore) -> None:
    await store.put(KEY, BODY)
    await store.delete(KEY)
    await store.delete(KEY)
    with pytest.raises(NotFound):
        await store.get(KEY, len(BODY))


async def test_delete_drops_unfinished_uploads_of_exactly_that_key(s3_server: S3Server) -> None:
    client = s3_server.client()
    asked = {"Bucket": s3_server.bucket}
    for key in (KEY, KEY, KEY + ".other"):
        client.create_multipart_upload(**asked, Key=key)
    async with open_stores(_nothing_registered, SETTINGS, Counters()) as stores:
        await stores.of(s3_server.spec()).delete(KEY)
    assert s3_server.unfinished() == [KEY + ".other"]


async def test_many_reads_at_once(store: ObjectStore) -> None:
    await store.put(KEY, BODY)

    async def read(start: int) -> None:
        assert await store.get_range(KEY, Span(start, start + 100), len(BODY)) == BODY[start : start + 100]

    async with trio.open_nursery() as nursery:
        for start in range(0, 10_000, 100):
            nursery.start_soon(read, start)


async def test_an_unregistered_bucket_is_not_found(stores: Stores) -> None:
    with pytest.raises(NotFound):
        await stores.store(BucketId(2))


async def test_a_bucket_has_one_store_however_often_it_is_asked_for(stores: Stores) -> None:
    found: list[ObjectStore] = []

    async def ask() -> None:
        found.append(await stores.store(BucketId(1)))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert len({id(store) for store in found}) == 1


async def test_a_failing_store_fails_the_call_it_was_told_to() -> None:
    store = FailingStore(MemoryStore())
    store.fail("put", 2, Unavailable("away"))
    store.fail("put", 3, Unavailable("answer lost"), after=True)
    await store.put("a", b"1")
    with pytest.raises(Unavailable, match="away"):
        await store.put("b", b"2")
    with pytest.raises(Unavailable, match="lost"):
        await store.put("c", b"3")
    with pytest.raises(NotFound):
        await store.get("b", 9)
    assert await store.get("c", 9) == b"3"


async def test_requests_and_bytes_are_counted(s3_server: S3Server) -> None:
    counters = Counters()
    async with open_stores(_nothing_registered, SETTINGS, counters) as stores:
        store = stores.of(s3_server.spec())
        await store.put(KEY, BODY)
        await store.put_stream(KEY + "2", stream([bytes(6 * MIB)]), 6 * MIB)
        await store.get_range(KEY, Span(10, 30), len(BODY))
        await store.get(KEY, len(BODY))
        await store.size(KEY)
        await store.delete(KEY)
    assert counters.snapshot() == {
        "s3.delete": 1,
        "s3.get": 2,
        "s3.get_bytes": 20 + len(BODY),
        "s3.head": 1,
        "s3.list": 1,
        "s3.multipart": 2,
        "s3.put": 3,
        "s3.put_bytes": len(BODY) + 6 * MIB,
    }


async def test_a_bucket_is_checked_and_created(s3_server: S3Server) -> None:
    spec = s3_server.spec()
    await check_bucket(spec, SETTINGS, Counters())
    await create_bucket(spec, SETTINGS, Counters())  # it is there already
    other = replace(spec, bucket=spec.bucket + "-2")
    with pytest.raises(Unavailable, match="NoSuchBucket"):
        await check_bucket(other, SETTINGS, Counters())
    await create_bucket(other, SETTINGS, Counters())
    await check_bucket(other, SETTINGS, Counters())


async def test_wrong_credentials_are_told_at_once(rclone_server: S3Server) -> None:
    spec = replace(rclone_server.spec(), secret_key="w" * 40)
    with pytest.raises(Unavailable, match="403"):
        await check_bucket(spec, SETTINGS, Counters())


async def _nothing_registered(bucket_id: BucketId) -> Bucket:
    raise NotFound(f"bucket {bucket_id}: not registered")


async def nothing_is_left(store: ObjectStore, server: S3Server | None) -> None:
    with pytest.raises(NotFound):
        await store.size(KEY)
    if server is not None:
        assert server.unfinished() == []
