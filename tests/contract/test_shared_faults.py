"""Multipart uploads and listings before a server that misbehaves: what is right, or an error in time."""

from __future__ import annotations

import logging
import re
import threading
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from datas3tfs.core.counters import Counters
from datas3tfs.core.model import Bucket, BucketId, BucketSpec
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid, NotFound, Unavailable
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.store import RetryingStore
from datas3tfs.objects.stores import open_stores
from tests.harness.faultproxy import Fault, FaultProxy, Kind, Moment
from tests.harness.s3 import S3Server

MIB = 1 << 20
KEY = "datas3t/some-set/dataranges/00000000000000000000-00000000000000000009.tar"
BODY = bytes(range(256)) * 40
LEAST = 5 * MIB
SETTINGS = S3Settings(io_timeout=4.5, slowest_rate=8 * MIB, first_pause=0.01, page=2)
# Gives up after one attempt: what follows would come out the same, and take its time.
ONE_ATTEMPT = replace(SETTINGS, io_timeout=20.0, first_pause=60.0, longest_pause=60.0)


@dataclass
class Bench:
    server: S3Server
    proxy: FaultProxy
    store: RetryingStore
    once: RetryingStore  # the same, with one attempt
    counters: Counters


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.process.port) as proxy:
        yield proxy


@pytest.fixture
async def bench(s3_server: S3Server, proxy: FaultProxy) -> AsyncIterator[Bench]:
    counters = Counters()
    spec = s3_server.spec(proxy.endpoint)
    async with (
        open_stores(nothing_registered, SETTINGS, counters, random=lambda: 0.5) as stores,
        open_stores(nothing_registered, ONE_ATTEMPT, Counters(), random=lambda: 1.0) as stores_once,
    ):
        yield Bench(s3_server, proxy, stores.of(spec), stores_once.of(spec), counters)


async def nothing_registered(bucket_id: BucketId) -> Bucket:
    raise NotFound(f"bucket {bucket_id}: not registered")


def name(fault: Fault) -> str:
    return f"{fault.kind.name}{fault.status if fault.kind is Kind.STATUS else ''}"


POST_FAULTS = [
    Fault(Kind.STATUS, status=500),
    Fault(Kind.STATUS, status=503),
    Fault(Kind.STATUS, status=429),
    Fault(Kind.PAGE),
    Fault(Kind.PAGE_404),
    Fault(Kind.TRUNCATE),
    Fault(Kind.RESET),
    Fault(Kind.STALL_HEAD),
    Fault(Kind.LOSE_ANSWER),
]


async def begun(bench: Bench) -> tuple[str, list[tuple[int, str]]]:
    """Begin an upload of KEY and put its only part."""
    multipart = await bench.store.begin_multipart(KEY)
    return multipart, [(1, await bench.store.put_part(KEY, multipart, 1, BODY))]


@pytest.mark.parametrize("fault", POST_FAULTS, ids=name)
async def test_an_upload_survives_one_fault_of_each_step(bench: Bench, fault: Fault) -> None:
    once = replace(fault, times=1)
    bench.proxy.add(replace(once, method="POST", path="?uploads"))
    multipart, tags = await begun(bench)
    assert bench.counters.get("s3.retry") >= 1
    bench.proxy.add(replace(once, method="GET", path="uploadId"))
    assert [(part.number, part.tag) for part in await bench.store.parts(KEY, multipart)] == tags
    assert bench.counters.get("s3.retry") >= 2
    bench.proxy.add(replace(once, method="POST", path="uploadId"))
    await bench.store.complete_multipart(KEY, multipart, tags, len(BODY))
    assert bench.counters.get("s3.retry") >= 3
    assert await bench.store.get(KEY, len(BODY)) == BODY


@pytest.mark.parametrize("kind", [Kind.STATUS, Kind.LOSE_ANSWER, Kind.PAGE_404])
async def test_an_abort_survives_one_fault(bench: Bench, kind: Kind) -> None:
    multipart, _ = await begun(bench)
    bench.proxy.add(Fault(kind, 1, method="DELETE"))
    await bench.store.abort_multipart(KEY, multipart)
    assert bench.counters.get("s3.retry") >= 1
    assert bench.server.unfinished() == []


async def test_a_lost_answer_to_the_last_request_is_looked_up(bench: Bench) -> None:
    multipart, tags = await begun(bench)
    bench.proxy.add(Fault(Kind.LOSE_ANSWER, 1, "uploadId", "POST"))
    await bench.store.complete_multipart(KEY, multipart, tags, len(BODY))
    assert bench.proxy.requests("POST", "uploadId") == 1
    await bench.store.complete_multipart(KEY, multipart, tags, len(BODY))  # as after a crash


async def test_what_could_not_be_completed_can_be_later(bench: Bench) -> None:
    multipart, tags = await begun(bench)
    bench.proxy.add(Fault(Kind.STATUS, None, "uploadId", "POST"))
    with pytest.raises(Unavailable, match="503") as caught:
        await bench.once.complete_multipart(KEY, multipart, tags, len(BODY))
    assert KEY in str(caught.value)
    bench.proxy.clear()
    await bench.store.complete_multipart(KEY, multipart, tags, len(BODY))
    assert await bench.store.get(KEY, len(BODY)) == BODY


async def test_whether_it_was_completed_is_not_guessed(rclone_server: S3Server) -> None:
    with FaultProxy(rclone_server.process.port) as proxy:
        async with open_stores(nothing_registered, ONE_ATTEMPT, Counters(), random=lambda: 1.0) as stores:
            store = stores.of(rclone_server.spec(proxy.endpoint))
            multipart = await store.begin_multipart(KEY)
            tags = [(1, await store.put_part(KEY, multipart, 1, BODY))]
            await store.complete_multipart(KEY, multipart, tags, len(BODY))
            proxy.add(Fault(Kind.STATUS, None, KEY, "HEAD"))
            with pytest.raises(Unavailable, match="503"):  # not NotFound
                await store.complete_multipart(KEY, multipart, tags, len(BODY))
            proxy.clear()
            await store.complete_multipart(KEY, multipart, tags, len(BODY))


async def test_refused_parts_are_not_tried_again(bench: Bench) -> None:
    multipart, _ = await begun(bench)
    with pytest.raises(Invalid, match=r"some-set.*InvalidPart"):
        await bench.store.complete_multipart(KEY, multipart, [(1, '"' + "0" * 32 + '"')], len(BODY))
    assert bench.proxy.requests("POST", "uploadId") == 1


async def test_a_stream_whose_upload_somebody_aborted_is_unavailable(rclone_server: S3Server) -> None:
    client, bucket = rclone_server.client(), rclone_server.bucket

    def abort(moment: Moment, method: str, path: str) -> bool:
        if (moment, method) == (Moment.ASKED, "POST") and "uploadId" in path:  # all parts have arrived
            [upload] = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
            client.abort_multipart_upload(Bucket=bucket, Key=KEY, UploadId=upload["UploadId"])
        return False

    async def stream() -> AsyncIterator[bytes]:
        yield bytes(LEAST + 1)

    settings = replace(ONE_ATTEMPT, part_size=LEAST)
    with FaultProxy(rclone_server.process.port) as proxy:
        proxy.witness = abort
        async with open_stores(nothing_registered, settings, Counters(), random=lambda: 1.0) as stores:
            store = stores.of(rclone_server.spec(proxy.endpoint))
            with pytest.raises(Unavailable, match=r"some-set.*dropped"):  # not NotFound
                await store.put_stream(KEY, stream(), LEAST + 1)


# Copies


async def copied(store: RetryingStore, multipart: str) -> str | None:
    return await store.copy_part(KEY, multipart, 1, KEY + ".source", Span(3, LEAST + 3))


@pytest.mark.parametrize(
    "fault", [fault for fault in POST_FAULTS if fault.kind is not Kind.STALL_HEAD], ids=name
)
async def test_a_copy_survives_one_fault(moto_server: S3Server, fault: Fault) -> None:
    with FaultProxy(moto_server.process.port) as proxy:
        async with open_stores(nothing_registered, SETTINGS, Counters(), random=lambda: 0.5) as stores:
            store = stores.of(moto_server.spec(proxy.endpoint))
            await store.put(KEY + ".source", b"abc" + bytes(LEAST))
            multipart = await store.begin_multipart(KEY)
            tag: str | None = None
            for asked in (3, 5):  # at first, whether the server copies at all is asked
                proxy.add(replace(fault, times=1, method="PUT", path="uploadId"))
                tag = await copied(store, multipart)
                assert proxy.requests("PUT", "uploadId") >= asked
            assert moto_server.unfinished() == [KEY]
            assert tag is not None
            await store.complete_multipart(KEY, multipart, [(1, tag)], LEAST)
            assert await store.get(KEY, LEAST) == bytes(LEAST)


@pytest.mark.parametrize("status", [501, 405, None])
async def test_a_server_that_cannot_copy_is_asked_once(
    moto_server: S3Server, rclone_server: S3Server, status: int | None
) -> None:
    server = moto_server if status else rclone_server  # rclone's stores a part without content instead
    with FaultProxy(server.process.port) as proxy:
        if status:
            proxy.add(Fault(Kind.STATUS, None, "uploadId", "PUT", status=status))
        async with open_stores(nothing_registered, ONE_ATTEMPT, Counters(), random=lambda: 1.0) as stores:
            store = stores.of(server.spec(proxy.endpoint))
            await store.put(KEY + ".source", bytes(LEAST + 3))
            multipart = await store.begin_multipart(KEY)
            assert [await copied(store, multipart) for _ in range(3)] == [None, None, None]
            assert proxy.requests("PUT", "uploadId") == 1
            assert await store.parts(KEY, multipart) == []
            assert server.unfinished() == [KEY]


# Listings


async def each(store: RetryingStore, prefix: str, tell: Callable[[str], None]) -> None:
    """Tell the keys as they come."""
    async for found in store.listed(prefix):
        tell(found.key)


@pytest.mark.parametrize("fault", POST_FAULTS, ids=name)
async def test_a_listing_survives_one_fault_of_any_page(bench: Bench, fault: Fault) -> None:
    keys = [f"datas3t/{number}" for number in range(5)]
    for key in keys:
        await bench.store.put(key, b"")
    seen: list[str] = []
    async for found in bench.store.listed("datas3t/"):
        if len(seen) % 2 == 0:  # a page is 2
            bench.proxy.add(replace(fault, times=1, path="list-type"))
        seen.append(found.key)
    assert seen == keys
    assert bench.counters.get("s3.retry") >= 2


async def test_a_listing_that_fails_for_good_says_so(bench: Bench) -> None:
    for number in range(3):
        await bench.store.put(f"datas3t/{number}", b"")
    seen: list[str] = []

    def fault(key: str) -> None:
        bench.proxy.add(Fault(Kind.STATUS, None, "list-type"))
        seen.append(key)

    with pytest.raises(Unavailable, match=r"datas3t/.*503"):
        await each(bench.once, "datas3t/", fault)
    assert seen == ["datas3t/0", "datas3t/1"]


def entry(key: str, *, size: str = "<Size>1</Size>", when: str = "2026-01-01T00:00:00.000Z") -> str:
    return f"<Contents><Key>{key}</Key>{size}<LastModified>{when}</LastModified></Contents>"


def page(*entries: str, token: str | None = None, bucket: str = "<Name>pictures</Name>") -> str:
    more = "<IsTruncated>false</IsTruncated>"
    if token is not None:
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
    return f"<ListBucketResult>{bucket}{more}{''.join(entries)}</ListBucketResult>"


HOSTILE = {
    "other keys": [page(entry("p/a"), entry("q/a"))],
    "descending": [page(entry("p/b"), entry("p/a"))],
    "twice": [page(entry("p/a"), entry("p/a"))],
    "descending pages": [page(entry("p/b"), token="1"), page(entry("p/a"))],
    "the same page again": [page(entry("p/a"), token="1"), page(entry("p/a"), token="2")],
    "the same page after an empty one": [
        page(entry("p/a"), token="1"),
        page(token="2"),
        page(entry("p/a"), token="3"),
    ],
    "the same token again": [page(entry("p/a"), token="1"), page(entry("p/b"), token="1")],
    "empty pages without end": [page(token=str(number)) for number in range(200)],
    "no token": [page(entry("p/a")).replace("false", "true")],
    "no size": [page(entry("p/a", size=""))],
    "a word for a size": [page(entry("p/a", size="<Size>many</Size>"))],
    "a negative size": [page(entry("p/a", size="<Size>-1</Size>"))],
    "a word for a time": [page(entry("p/a", when="yesterday"))],
    "no key": [page(entry("p/a").replace("Key", "Clef"))],
    "no name": [page(bucket="")],
    "a page": ["<html><body>It works!</body></html>"],
    "nothing": [""],
    "half": [page(entry("p/a"))[:-30]],
}


@pytest.mark.parametrize("pages", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_listing_that_makes_no_sense_is_unavailable(pages: list[str]) -> None:
    async with hostile(pages) as store:
        seen: list[str] = []
        with pytest.raises(Unavailable, match=r"^list p/: gave up after 1 attempt ") as caught:
            await each(store, "p/", seen.append)
        assert not re.search("no answer|connection", str(caught.value))  # it was the answer
        assert seen == sorted({"p/a", "p/b"} & set(seen))


async def test_empty_pages_are_borne() -> None:
    empty = [page(token=str(number)) for number in range(180)]
    pages = [*empty[:90], page(entry("p/a"), token="a"), *empty[90:], page(entry("p/b"))]
    async with hostile(pages) as store:
        assert [found.key async for found in store.listed("p/")] == ["p/a", "p/b"]


def part(number: int, *, size: str = "<Size>1</Size>", tag: str = '<ETag>"t"</ETag>') -> str:
    return f"<Part><PartNumber>{number}</PartNumber>{size}{tag}</Part>"


def parts(*entries: str, more: bool = False) -> str:
    return (
        f"<ListPartsResult><UploadId>u</UploadId><IsTruncated>{str(more).lower()}</IsTruncated>"
        f"<NextPartNumberMarker>1</NextPartNumberMarker>{''.join(entries)}</ListPartsResult>"
    )


HOSTILE_PARTS = {
    "descending": [parts(part(2), part(1))],
    "twice": [parts(part(1), part(1))],
    "from nought": [parts(part(0))],
    "the same page again": [parts(part(1), more=True)] * 5,
    "empty pages without end": [parts(more=True)] * 5,
    "no size": [parts(part(1, size=""))],
    "no tag": [parts(part(1, tag=""))],
    "a word for a size": [parts(part(1, size="<Size>many</Size>"))],
    "a page": ["<html><body>It works!</body></html>"],
    "nothing": [""],
}


@pytest.mark.parametrize("pages", HOSTILE_PARTS.values(), ids=HOSTILE_PARTS.keys())
async def test_a_list_of_parts_that_makes_no_sense_is_unavailable(pages: list[str]) -> None:
    async with hostile(pages) as store:
        with pytest.raises(Unavailable, match=r"^list parts of k: gave up after 1 attempt ") as caught:
            await store.parts("k", "u")
        assert not re.search("no answer|connection", str(caught.value))


@asynccontextmanager
async def hostile(pages: list[str]) -> AsyncIterator[RetryingStore]:
    """Yield a store on a server that answers with *pages*: the first, or the one after the token's."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = parse_qs(urlsplit(self.path).query).get("continuation-token")
            tokens = [f"<NextContinuationToken>{token[0]}<" in page for page in pages] if token else []
            body = pages[tokens.index(True) + 1 if token else 0].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        spec = BucketSpec("test", f"http://127.0.0.1:{server.server_port}", "pictures", "AK" * 8, "s" * 40)
        try:
            async with open_stores(nothing_registered, ONE_ATTEMPT, Counters(), random=lambda: 1.0) as stores:
                yield stores.of(spec)
        finally:
            server.shutdown()
            thread.join()


# Secrets


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_asking_whether_copies_are_made_leaves_nothing_if_cancelled(
    rclone_server: S3Server, method: str
) -> None:
    scope = trio.CancelScope()
    trio_token = trio.lowlevel.current_trio_token()

    def cancel(moment: Moment, asked: str, path: str) -> bool:
        if moment is Moment.ASKED and asked == method and "upload" in path:
            trio_token.run_sync_soon(scope.cancel)
        return False

    with FaultProxy(rclone_server.process.port) as proxy:
        async with open_stores(nothing_registered, ONE_ATTEMPT, Counters()) as stores:
            store = stores.of(rclone_server.spec(proxy.endpoint))
            await store.put(KEY + ".source", bytes(LEAST + 3))
            multipart = await store.begin_multipart(KEY)
            proxy.witness = cancel
            with scope:
                await copied(store, multipart)
            assert scope.cancelled_caught
            await store.abort_multipart(KEY, multipart)
            assert not rclone_server.unfinished()


async def test_neither_logs_nor_tracebacks_hold_a_signature(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    store = bench.once
    multipart, tags = await begun(bench)
    bench.proxy.add(Fault(Kind.STATUS, None, "", "", status=403))
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.begin_multipart(KEY),
        lambda: store.parts(KEY, multipart),
        lambda: store.complete_multipart(KEY, multipart, tags, 1),
        lambda: store.abort_multipart(KEY, multipart),
        lambda: store.put_part(KEY, multipart, 1, BODY),
        lambda: store.copy_part(KEY, multipart, 1, KEY, Span(0, 1)),
        lambda: anext(aiter(store.listed("datas3t/some-set"))),
    ]
    told: list[str] = []

    async def fail(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(Unavailable, match="some-set") as caught:
            await call()
        told.extend(traceback.format_exception(caught.value))

    with caplog.at_level(logging.DEBUG):
        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(fail, call)
    everything = caplog.text + "".join(told)
    for secret in ("X-Amz", "Signature=", bench.server.access_key, bench.server.secret_key):
        assert secret not in everything
