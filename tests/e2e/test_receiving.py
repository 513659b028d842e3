"""Uploads by URLs, and downloads, on a real Postgres and two real S3 servers, over plain HTTP."""

import io
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio
import urllib3

from datas3tfs.app.services import Services, open_services
from datas3tfs.config import load
from datas3tfs.core.model import Datarange, UploadId
from datas3tfs.core.spans import Span
from datas3tfs.engine.granting import Grant
from datas3tfs.engine.locating import locate
from datas3tfs.engine.receiving import Receiver
from datas3tfs.engine.sweeper import sweep
from datas3tfs.errors import Conflict, Invalid, NotFound
from tests.harness.archives import key_name, noise
from tests.harness.mounts import Stack, open_stack
from tests.harness.postgres import PostgresServer
from tests.harness.s3 import ServerProcess, fresh_bucket
from tests.harness.uploading import MIB, Archive, archive_of

PART = 5 * MIB


@pytest.fixture(params=["rclone", "moto"])
def stack(
    request: pytest.FixtureRequest, embedded_postgres: PostgresServer, tmp_path: Path
) -> Iterator[Stack]:
    """A database and a bucket with a dataset in it."""
    process: ServerProcess = request.getfixturevalue(f"{request.param}_server_process")
    with open_stack(embedded_postgres, fresh_bucket(process), tmp_path) as opened:
        opened.register("photos")
        yield opened


@pytest.fixture
async def services(stack: Stack) -> AsyncIterator[Services]:
    """All that a server has."""
    settings = load(
        db_url=stack.db_url, encryption_key=stack.encryption_key, cache_dir=stack.home / "cache", url_life=60
    )
    async with open_services(settings) as opened:
        yield opened


@pytest.fixture
def receiver(services: Services) -> Receiver:
    """A receiver on them."""
    catalog = services.catalog
    return Receiver(catalog.reader, catalog.uploads, services.stores, services.indices)


def send(url: str, body: bytes) -> tuple[int, str]:
    """PUT as a stranger: nothing but the URL is known. Return status and ETag."""
    with urllib3.PoolManager() as pool:
        answer = pool.request("PUT", url, body=body, retries=False)
        return answer.status, answer.headers.get("ETag", "")


async def put(grant: Grant, archive: Archive, index: bytes, *, only: set[int] | None = None) -> list[str]:
    """PUT TAR (of its parts, *only* some) and index; return the parts' tags."""

    def work() -> list[str]:
        assert send(grant.index_url, index)[0] == 200
        if grant.put_url is not None:
            assert send(grant.put_url, archive.body)[0] == 200
            return []
        tags = []
        for number, url in enumerate(grant.part_urls, 1):
            if only is None or number in only:
                start = (number - 1) * grant.part_size
                status, tag = send(url, archive.body[start : start + grant.part_size])
                assert status == 200
                tags.append(tag)
        return tags

    return await trio.to_thread.run_sync(work)


async def read(services: Services, keys: Span) -> dict[str, bytes]:
    """Download *keys* as a stranger and let GNU tar and tarfile look at what that is."""

    def work() -> dict[str, bytes]:
        with urllib3.PoolManager() as pool:
            ranges = [(one.url, {"Range": f"bytes={one.span.start}-{one.span.last}"}) for one in found]
            body = b"".join(pool.request("GET", url, headers=headers).data for url, headers in ranges)
        body += bytes(1024)
        listed = subprocess.run(["tar", "-tf", "-"], input=body, check=True, capture_output=True, timeout=60)
        assert not listed.stderr
        with tarfile.open(fileobj=io.BytesIO(body)) as opened:
            contents = {info.name: opened.extractfile(info).read() for info in opened}  # type: ignore[union-attr]  # regular files only
        assert listed.stdout.decode().split() == list(contents)
        return contents

    found = await locate(services.catalog.reader, services.indices, services.stores, "photos", keys)
    return await trio.to_thread.run_sync(work)


async def swept(services: Services) -> None:
    catalog = services.catalog
    await sweep(catalog.uploads, catalog.leases, catalog.graveyard, services.stores)


def named(archive: Archive) -> dict[str, bytes]:
    return {key_name(key): content for key, content in enumerate(archive.contents, archive.first)}


SMALL = archive_of([b"zero", b"", b"two" * 700])
LARGE = archive_of([noise(3 * MIB, key) for key in range(4)], 10)
LARGE_KEYS = Span(10, 14)


async def test_a_stranger_uploads_and_downloads(services: Services, receiver: Receiver, stack: Stack) -> None:
    grant = await receiver.start("photos", Span(0, 3), len(SMALL.body))
    await put(grant, SMALL, SMALL.go_index)
    await receiver.complete(grant.upload.id)
    large = await receiver.start("photos", LARGE_KEYS, len(LARGE.body), PART)
    tags = await put(large, LARGE, LARGE.go_index)
    datarange = await receiver.complete(large.upload.id, tags)
    assert await receiver.complete(large.upload.id, tags) == datarange
    assert await read(services, Span(1, 13)) == {
        name: body for name, body in (named(SMALL) | named(LARGE)).items() if 1 <= int(name[:20]) < 13
    }
    assert send(large.part_urls[0], b"x" * PART)[0] >= 400, "nothing can be changed any more"
    assert not stack.s3.unfinished()


async def test_without_tags_and_in_two_goes(services: Services, receiver: Receiver) -> None:
    grant = await receiver.start("photos", LARGE_KEYS, len(LARGE.body), PART)
    await put(grant, LARGE, LARGE.go_index, only={2})
    with pytest.raises(Conflict, match="have been uploaded"):
        await receiver.complete(grant.upload.id)
    again = await receiver.resume(grant.upload.id)
    assert (again.part_size, [part.number for part in again.done]) == (PART, [2])
    await put(again, LARGE, LARGE.go_index, only={1, 3})
    await receiver.complete(grant.upload.id)
    assert await read(services, LARGE_KEYS) == named(LARGE)


async def test_many_completes_at_once(services: Services, receiver: Receiver) -> None:
    grant = await receiver.start("photos", LARGE_KEYS, len(LARGE.body), PART)
    tags = await put(grant, LARGE, LARGE.go_index)
    results: list[Datarange] = []

    async def complete() -> None:
        results.append(await receiver.complete(grant.upload.id, tags))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(complete)
    assert len(set(results)) == 1
    assert await read(services, LARGE_KEYS) == named(LARGE)


async def test_what_is_refused_leaves_nothing(services: Services, receiver: Receiver, stack: Stack) -> None:
    pax = archive_of([noise(6 * MIB)], 10, form=tarfile.PAX_FORMAT, mtime=1.5)
    grant = await receiver.start("photos", Span(10, 11), len(pax.body), PART)
    tags = await put(grant, pax, pax.go_index)
    with pytest.raises(Invalid, match="--format=ustar"):
        await receiver.complete(grant.upload.id, tags)
    grant = await receiver.start("photos", Span(10, 11), len(pax.body), PART)
    tags = await put(grant, pax, pax.go_index)
    with pytest.raises(Invalid):
        await receiver.complete(grant.upload.id, [tags[0], '"00000000000000000000000000000000"'])
    await swept(services)
    assert stack.sql("SELECT count(*) FROM key_claims") == "0"
    assert stack.sql("SELECT count(*) FROM datarange_uploads") == "0"
    assert not stack.s3.unfinished()
    listed = stack.s3.client().list_objects_v2(Bucket=stack.s3.bucket)
    assert listed.get("Contents", []) == []


async def test_cancelled_in_the_middle(services: Services, receiver: Receiver, stack: Stack) -> None:
    grant = await receiver.start("photos", LARGE_KEYS, len(LARGE.body), PART)
    await put(grant, LARGE, LARGE.go_index, only={1})
    for _ in range(2):
        await receiver.cancel(grant.upload.id)
    with pytest.raises(NotFound):
        await receiver.cancel(UploadId(10**9))
    assert not stack.s3.unfinished()
    await swept(services)
    assert stack.s3.client().list_objects_v2(Bucket=stack.s3.bucket).get("Contents", []) == []
    await receiver.start("photos", LARGE_KEYS, len(LARGE.body))


async def test_a_larger_one_whose_headers_are_read(services: Services, receiver: Receiver) -> None:
    archive = archive_of([noise(100_000, key) for key in range(700)])
    grant = await receiver.start("photos", Span(0, 700), len(archive.body))
    assert len(grant.part_urls) == 4, "one for each 20 MiB"
    await put(grant, archive, archive.go_index)
    datarange = await receiver.complete(grant.upload.id)
    index = await services.indices.fresh(grant.upload.bucket_id, datarange)
    assert index.names(699, 1) == [key_name(699).encode()]
    assert index.crcs(0, 1) is None, "its client knew none, and it is too large to be read as a whole"
    assert await read(services, Span(350, 352)) == {
        key_name(key): archive.contents[key] for key in (350, 351)
    }
    wrong = archive_of([noise(100_000, key) for key in range(700)], 700)
    grant = await receiver.start("photos", Span(700, 1400), len(wrong.body))
    records = bytearray(wrong.go_index)
    records[16 * 321 + 15] ^= 1
    await put(grant, wrong, bytes(records))
    with pytest.raises(Invalid, match="wrong about datapoint 1021"):
        await receiver.complete(grant.upload.id)


async def test_an_aggregate_that_a_stranger_makes(services: Services, receiver: Receiver) -> None:
    for archive in (archive_of([b"a", b"b"]), archive_of([b"c"], 2)):
        grant = await receiver.start(
            "photos", Span(archive.first, archive.first + len(archive.contents)), len(archive.body)
        )
        await put(grant, archive, archive.go_index)
        await receiver.complete(grant.upload.id)
    lying, merged = archive_of([b"a", b"b", b"C"]), archive_of([b"a", b"b", b"c"])
    aggregate = await receiver.start_aggregate("photos", Span(0, 3))
    await put(aggregate.grant, lying, lying.go_index)
    with pytest.raises(Invalid, match="datapoint 2 is not what it was"):
        await receiver.complete_aggregate(aggregate.grant.upload.id)
    aggregate = await receiver.start_aggregate("photos", Span(0, 3))
    await put(aggregate.grant, merged, merged.go_index)
    datarange = await receiver.complete_aggregate(aggregate.grant.upload.id)
    assert await services.catalog.reader.dataranges(datarange.dataset_id) == [datarange]
    assert await read(services, Span(0, 10)) == named(merged)
