"""What every SharedStore, PartStore and Listing of ports must do: the memory twins, and S3 on two servers.

The test plays the client that was given the URLs: with urllib3, or with the twin's own methods.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest
import urllib3

from datas3tfs.core.counters import Counters
from datas3tfs.core.model import Bucket, BucketId, Part
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid, NotFound
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.stores import S3Stores, open_stores
from datas3tfs.ports import Stores, WholeStore, WholeStores
from tests.harness.memory_objects import FailingStore, MemoryStore, MemoryStores, Refused, tag_of
from tests.harness.s3 import S3Server

MIB = 1 << 20
KEY = "datas3t/some-set/dataranges/00000000000000000000-00000000000000000009.tar"
BODY = bytes(range(256)) * 40
LEAST = 5 * MIB  # S3's smallest part, but for the last
SETTINGS = S3Settings(io_timeout=20.0, page=3)


@dataclass
class Client:
    """Whoever was given a URL."""

    twin: MemoryStore | None
    pool: urllib3.PoolManager

    def put(self, url: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """PUT and return status and ETag."""
        if self.twin is None:
            answer = self.pool.request("PUT", url, body=body, headers=headers)
            return answer.status, answer.headers.get("ETag", "")
        try:
            return 200, self.twin.client_put(url, body)
        except Refused as refused:
            return refused.status, ""

    def get(self, url: str, span: Span | None = None) -> tuple[int, bytes]:
        """GET and return status (206 as 200) and body, if it is one."""
        if self.twin is None:
            headers = {} if span is None else {"Range": f"bytes={span.start}-{span.last}"}
            answer = self.pool.request("GET", url, headers=headers)
            return (200, answer.data) if answer.status in (200, 206) else (answer.status, b"")
        try:
            return 200, self.twin.client_get(url, span)
        except Refused as refused:
            return refused.status, b""


@pytest.fixture(params=["memory", "failing", "moto", "rclone"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> S3Server | None:
    if kind in ("memory", "failing"):
        return None
    found: S3Server = request.getfixturevalue(f"{kind}_server")
    return found


@pytest.fixture
def twin(server: S3Server | None) -> MemoryStore | None:
    return MemoryStore() if server is None else None


@pytest.fixture
def client(twin: MemoryStore | None) -> Iterator[Client]:
    with urllib3.PoolManager(retries=False) as pool:
        yield Client(twin, pool)


@pytest.fixture
async def store(kind: str, server: S3Server | None, twin: MemoryStore | None) -> AsyncIterator[WholeStore]:
    if twin is not None:
        yield twin if kind == "memory" else FailingStore(twin)
        return
    assert server is not None
    async with open_stores(_nothing_registered, SETTINGS, Counters()) as stores:
        yield stores.of(server.spec())


async def _nothing_registered(bucket_id: BucketId) -> Bucket:
    raise NotFound(f"bucket {bucket_id}: not registered")


def gone(kind: str) -> int:
    """Return the status of a part for an upload that is no more: moto gives 500, all others are right."""
    return 500 if kind == "moto" else 404


def noise(size: int) -> bytes:
    return hashlib.shake_128(size.to_bytes(8)).digest(size)


def for_mounts_and_servers(stores: S3Stores | MemoryStores) -> tuple[Stores, WholeStores]:
    return stores, stores  # mypy is who checks this


# URLs


async def test_a_get_url_gives_the_object_and_any_range_of_it(store: WholeStore, client: Client) -> None:
    await store.put(KEY, BODY)
    url = await store.get_url(KEY)
    assert client.get(url) == (200, BODY)
    for start, stop in [(0, 1), (700, 1500), (0, len(BODY)), (len(BODY) - 1, len(BODY))]:
        assert client.get(url, Span(start, stop)) == (200, BODY[start:stop])
    assert client.get(url, Span(len(BODY) + 1, len(BODY) + 2))[0] == 416


async def test_a_get_url_may_come_before_its_object(store: WholeStore, client: Client) -> None:
    url = await store.get_url(KEY)
    assert client.get(url) == (404, b"")
    await store.put(KEY, BODY)
    assert client.get(url) == (200, BODY)


@pytest.mark.parametrize("body", [b"", BODY])
async def test_a_put_url_stores_an_object(store: WholeStore, client: Client, body: bytes) -> None:
    url = await store.put_url(KEY)
    assert client.put(url, b"something else")[0] == 200
    assert client.put(url, body) == (200, tag_of(body))
    assert await store.get(KEY, len(BODY)) == body


async def test_a_url_takes_whatever_headers_a_client_sends(store: WholeStore, client: Client) -> None:
    headers = {"Content-Type": "text/x-odd", "User-Agent": "Go-http-client/1.1", "X-Other": "1"}
    assert client.put(await store.put_url(KEY), BODY, headers)[0] == 200
    multipart = await store.begin_multipart(KEY)
    [url] = await store.part_urls(KEY, multipart, [1])
    assert client.put(url, BODY, headers)[0] == 200


async def test_keys_with_unusual_characters(store: WholeStore, client: Client) -> None:
    key = "datas3t/a b+c%20ü&=?/~x"
    assert client.put(await store.put_url(key), b"here")[0] == 200
    assert client.get(await store.get_url(key), Span(1, 3)) == (200, b"er")
    assert [(found.key, found.size) async for found in store.listed("datas3t/a b+c%20ü")] == [(key, 4)]
    multipart = await store.begin_multipart(key)
    [url] = await store.part_urls(key, multipart, [1])
    tag = client.put(url, b"there")[1]
    assert await store.parts(key, multipart) == [Part(1, 5, tag)]
    await store.complete_multipart(key, multipart, [(1, tag)], 5)
    assert await store.get(key, 9) == b"there"


async def test_the_twin_refuses_urls_that_are_dead_or_for_something_else() -> None:
    # What the adapter's URLs do is in test_object_urls.py.
    store = MemoryStore()
    await store.put(KEY, BODY)
    get, put = await store.get_url(KEY), await store.put_url(KEY)
    refused: list[Callable[[], object]] = [lambda: store.client_get(put), lambda: store.client_put(get, b"")]
    for call in refused:
        with pytest.raises(Refused, match="403"):
            call()
    assert store.client_get(get) == BODY
    store.expire_urls()
    refused += [lambda: store.client_get(get), lambda: store.client_put(put, b"")]
    for call in refused:
        with pytest.raises(Refused, match="403"):
            call()
    assert store.objects == {KEY: BODY}
    assert store.client_get(await store.get_url(KEY)) == BODY


# Multipart uploads


async def test_parts_become_an_object(
    store: WholeStore, server: S3Server | None, kind: str, client: Client
) -> None:
    body = noise(2 * LEAST + 1000)
    multipart = await store.begin_multipart(KEY)
    urls = await store.part_urls(KEY, multipart, [1, 2, 3])
    pieces = [body[:LEAST], body[LEAST : 2 * LEAST], body[2 * LEAST :]]
    tags = [(3, client.put(urls[2], pieces[2])[1]), (1, client.put(urls[0], pieces[0])[1])]
    with pytest.raises(NotFound):
        await store.size(KEY)
    tags = sorted([*tags, (2, client.put(urls[1], pieces[1])[1])])
    assert tags == [(number, tag_of(piece)) for number, piece in enumerate(pieces, start=1)]

    await store.complete_multipart(KEY, multipart, tags, len(body))
    assert await store.get(KEY, len(body)) == body
    with pytest.raises(NotFound, match=r"some-set.*no such multipart upload"):
        await store.parts(KEY, multipart)
    assert client.put(urls[0], b"late")[0] == gone(kind)
    assert await store.size(KEY) == len(body)
    if server is not None:
        assert server.unfinished() == []


async def test_the_parts_that_arrived_are_listed_page_by_page(
    store: WholeStore, kind: str, client: Client
) -> None:
    multipart = await store.begin_multipart(KEY)
    assert await store.parts(KEY, multipart) == []
    numbers = [5, 1, 7, 3, 4, 2, 6]  # a page is 3
    if kind != "moto":  # which miscounts if there are gaps
        numbers += [10_000, 20, 100]
    for number, url in zip(numbers, await store.part_urls(KEY, multipart, numbers), strict=True):
        for _ in range(2):  # as after a lost answer
            assert client.put(url, b"%d" % number) == (200, tag_of(b"%d" % number))
    listed = [Part(number, len(b"%d" % number), tag_of(b"%d" % number)) for number in sorted(numbers)]
    assert await store.parts(KEY, multipart) == listed


async def test_listed_parts_are_enough_to_complete(store: WholeStore, client: Client) -> None:
    body = noise(LEAST + 5)
    multipart = await store.begin_multipart(KEY)
    for url, piece in zip(
        await store.part_urls(KEY, multipart, [1, 2]), [body[:LEAST], body[LEAST:]], strict=True
    ):
        client.put(url, piece)
    parts = await store.parts(KEY, multipart)
    assert sum(part.size for part in parts) == len(body)
    tags = [(part.number, part.tag.strip('"')) for part in parts]  # some clients drop the quotes
    await store.complete_multipart(KEY, multipart, tags, len(body))
    assert await store.get(KEY, len(body)) == body


async def test_completing_again_does_nothing(store: WholeStore) -> None:
    multipart = await store.begin_multipart(KEY)
    tags = [(1, await store.put_part(KEY, multipart, 1, BODY))]
    for _ in range(3):
        await store.complete_multipart(KEY, multipart, tags, len(BODY))
    assert await store.get(KEY, len(BODY)) == BODY


async def test_an_object_of_another_size_is_not_what_was_completed(store: WholeStore, kind: str) -> None:
    if kind == "moto":
        pytest.skip("moto answers 500 where there is no such upload")
    multipart = await store.begin_multipart(KEY)
    tags = [(1, await store.put_part(KEY, multipart, 1, BODY))]
    await store.abort_multipart(KEY, multipart)
    for body in (None, BODY[1:]):
        if body is not None:
            await store.put(KEY, body)
        with pytest.raises(NotFound, match=r"some-set.*no such multipart upload"):
            await store.complete_multipart(KEY, multipart, tags, len(BODY))


@pytest.mark.parametrize("wrong", ["tag", "missing", "order", "none"])
async def test_refused_parts_are_invalid_and_can_be_put_right(
    store: WholeStore, kind: str, wrong: str
) -> None:
    body = noise(LEAST + 7)
    multipart = await store.begin_multipart(KEY)
    first = (1, await store.put_part(KEY, multipart, 1, body[:LEAST]))
    second = (2, await store.put_part(KEY, multipart, 2, body[LEAST:]))
    tags = {
        "tag": [first, (2, first[1])],
        "missing": [first, second, (3, second[1])],
        "order": [second, first],
        "none": [],
    }[wrong]
    with pytest.raises(Invalid, match="some-set"):
        await store.complete_multipart(KEY, multipart, tags, len(body))
    with pytest.raises(NotFound):
        await store.size(KEY)
    if kind == "rclone":
        return  # it drops an upload whose parts it refuses
    await store.complete_multipart(KEY, multipart, [first, second], len(body))
    assert await store.get(KEY, len(body)) == body


async def test_a_part_too_small_is_invalid(store: WholeStore, kind: str) -> None:
    if kind == "rclone":
        pytest.skip("rclone's server takes parts of any size")
    multipart = await store.begin_multipart(KEY)
    tags = [(number, await store.put_part(KEY, multipart, number, BODY)) for number in (1, 2)]
    with pytest.raises(Invalid, match="some-set"):
        await store.complete_multipart(KEY, multipart, tags, 2 * len(BODY))


async def test_what_was_aborted_is_gone(
    store: WholeStore, server: S3Server | None, kind: str, client: Client
) -> None:
    multipart = await store.begin_multipart(KEY)
    [url] = await store.part_urls(KEY, multipart, [1])
    tag = client.put(url, BODY)[1]
    await store.abort_multipart(KEY, multipart)
    await store.abort_multipart(KEY, multipart)
    assert client.put(url, BODY)[0] == gone(kind)
    with pytest.raises(NotFound, match="some-set"):
        await store.parts(KEY, multipart)
    if kind == "moto":
        return  # it answers 500 to the rest
    with pytest.raises(NotFound, match="some-set"):
        await store.put_part(KEY, multipart, 1, BODY)
    with pytest.raises(NotFound, match="some-set"):
        await store.complete_multipart(KEY, multipart, [(1, tag)], len(BODY))
    if server is not None:
        assert server.unfinished() == []


async def test_deleting_a_key_ends_its_multipart_uploads(
    store: WholeStore, kind: str, client: Client
) -> None:
    multipart, other = await store.begin_multipart(KEY), await store.begin_multipart(KEY + "2")
    [url] = await store.part_urls(KEY, multipart, [1])
    client.put(url, BODY)
    await store.delete(KEY)
    assert client.put(url, BODY)[0] == gone(kind)
    with pytest.raises(NotFound):
        await store.parts(KEY, multipart)
    assert await store.parts(KEY + "2", other) == []


async def test_unfinished_uploads_of_a_key_end_and_the_object_stays(store: WholeStore) -> None:
    await store.put(KEY, b"the object")
    left = [await store.begin_multipart(KEY) for _ in range(3)]
    other = await store.begin_multipart(KEY + "2")
    await store.abort_unfinished(KEY)
    for multipart in left:
        with pytest.raises(NotFound):
            await store.parts(KEY, multipart)
    assert await store.parts(KEY + "2", other) == []
    assert await store.get(KEY, 99) == b"the object"
    await store.abort_unfinished(KEY)  # there may be none


async def test_uploads_of_one_key_do_not_meet(store: WholeStore) -> None:
    left, right = await store.begin_multipart(KEY), await store.begin_multipart(KEY)
    tags = [(1, await store.put_part(KEY, left, 1, b"left"))]
    await store.put_part(KEY, right, 1, b"the right")
    await store.abort_multipart(KEY, right)
    await store.complete_multipart(KEY, left, tags, 4)
    assert await store.get(KEY, 9) == b"left"


# Parts from elsewhere


@pytest.mark.parametrize("knows", [True, False])
async def test_a_part_is_copied_or_can_be_put(
    store: WholeStore, server: S3Server | None, twin: MemoryStore | None, knows: bool
) -> None:
    if twin is not None:
        twin.can_copy = knows
    source, body = KEY + ".source", noise(LEAST + 3000)
    await store.put_stream(source, _chunks(body), len(body))
    multipart = await store.begin_multipart(KEY)
    tags = []
    for number, span in enumerate([Span(512, 512 + LEAST), Span(LEAST, LEAST + 100)], start=1):
        tag = await store.copy_part(KEY, multipart, number, source, span)
        tag = tag or await store.put_part(KEY, multipart, number, body[span.start : span.stop])
        tags.append((number, tag))
    assert [part.size for part in await store.parts(KEY, multipart)] == [LEAST, 100]
    if server is not None:
        assert server.unfinished() == [KEY]
    await store.complete_multipart(KEY, multipart, tags, LEAST + 100)
    assert await store.get(KEY, LEAST + 100) == body[512 : 512 + LEAST] + body[LEAST : LEAST + 100]


async def test_amazons_way_is_to_copy_and_rclones_is_not(
    moto_server: S3Server, rclone_server: S3Server
) -> None:
    for server, knows in ((moto_server, True), (rclone_server, False)):
        async with open_stores(_nothing_registered, SETTINGS, Counters()) as stores:
            store = stores.of(server.spec())
            await store.put(KEY + ".source", bytes(LEAST + 1))
            multipart = await store.begin_multipart(KEY)
            tag = await store.copy_part(KEY, multipart, 1, KEY + ".source", Span(0, LEAST))
            assert (tag is not None) == knows


async def test_a_copy_from_or_to_what_is_not_there_is_not_found(store: WholeStore, kind: str) -> None:
    multipart = await store.begin_multipart(KEY)
    if await store.copy_part(KEY, multipart, 1, await _large(store), Span(0, LEAST)) is None:
        return  # this server cannot copy at all, and the adapter knows it now
    if kind == "moto":
        return  # it answers 404 without saying what is not there, or 500
    with pytest.raises(NotFound, match="some-set"):
        await store.copy_part(KEY, multipart, 1, KEY + ".absent", Span(0, LEAST))
    await store.abort_multipart(KEY, multipart)
    with pytest.raises(NotFound, match="some-set"):
        await store.copy_part(KEY, multipart, 1, KEY + ".large", Span(0, LEAST))


async def _large(store: WholeStore) -> str:
    await store.put(KEY + ".large", bytes(LEAST + 1))
    return KEY + ".large"


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    yield body


# Listings


async def test_objects_are_listed_by_key_page_by_page(store: WholeStore) -> None:
    names = ["a-b/x", "a/1", "a/10", "a/2", "a/b/c", "ab", "b", "ü/x"]  # a page is 3
    for number, name in enumerate(names):
        await store.put(f"datas3t/{name}", bytes(number))
    await store.put("elsewhere", b"")
    begun = time.time_ns()

    async def listed(prefix: str) -> list[tuple[str, int]]:
        return [(found.key, found.size) async for found in store.listed(prefix)]

    everything = sorted((f"datas3t/{name}", number) for number, name in enumerate(names))
    for prefix in (
        "datas3t/",
        "datas3t/a",
        "datas3t/a/",
        "datas3t/a/1",
        "datas3t/b",
        "datas3t/ü",
        "datas3t/no",
    ):
        assert await listed(prefix) == [one for one in everything if one[0].startswith(prefix)], prefix
    assert await listed("") == [*everything, ("elsewhere", 0)]
    if not isinstance(store, MemoryStore | FailingStore):
        async for found in store.listed(""):
            assert abs(found.modified_ns - begun) < 60 * 10**9


async def test_unfinished_uploads_are_not_listed(store: WholeStore) -> None:
    multipart = await store.begin_multipart(KEY)
    await store.put_part(KEY, multipart, 1, BODY)
    assert [found.key async for found in store.listed("datas3t/")] == []
