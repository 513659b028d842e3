"""Between the client and S3, and between the client and the server, everything goes wrong that can."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from datas3tfs.client import AsyncClient, Tuning
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, NotFound, Unavailable
from tests.client.conftest import QUICK, Run, Site
from tests.client.test_client import content_of, everything, packed
from tests.harness.archives import Sample, samples
from tests.harness.faultproxy import Fault, Kind, Moment
from tests.harness.mounts import until

MIB = 1 << 20
SIGNED = "X-Amz-Signature"
HASTY = dataclasses.replace(QUICK, patience=1.0, silence=0.7)
MADE = samples([100_000, 0, 3 * MIB, 10, 700_000])


@pytest.fixture(scope="module")
def filled(shared_site: Site, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset that holds MADE; its name."""
    archive, dataset = packed(tmp_path_factory.mktemp("filled"), MADE), shared_site.dataset()

    async def work() -> None:
        async with shared_site.client() as client:
            await client.upload(dataset, archive)

    anyio.run(work)
    return dataset


def downloads_right(site: Site, run: Run[None], dataset: str, path: Path, tuning: Tuning = QUICK) -> None:
    async def work() -> None:
        async with site.client(dataclasses.replace(tuning, piece=MIB)) as client:
            await client.download_tar(dataset, 0, 100, path)

    run(work)
    assert content_of(path.read_bytes()) == {one.name: one.content for one in MADE}


async def drain(client: AsyncClient, dataset: str, into: list[bytes]) -> None:
    async with aclosing(client.iterate(dataset, 0, 100)) as found:
        async for one in found:
            into.append(one.read())  # noqa: PERF401 - what came before it fails is looked at


# -- downloads -------------------------------------------------------------------------------------

PASSING = {
    "truncated": Fault(Kind.TRUNCATE, times=4),
    "reset": Fault(Kind.RESET, times=4),
    "stalled": Fault(Kind.STALL_BODY, times=2),
    "not answered": Fault(Kind.STALL_HEAD, times=2),
    "busy": Fault(Kind.STATUS, times=4, status=503),
    "failing": Fault(Kind.STATUS, times=4, status=500),
    "too many requests": Fault(Kind.STATUS, times=4, status=429),
    "an error page": Fault(Kind.PAGE, times=4),
    "a page that says 404": Fault(Kind.PAGE_404, times=1),
    "the whole object": Fault(Kind.IGNORE_RANGE, times=2),
    "another range": Fault(Kind.SHIFT, times=2),
    "another range that says it is the right one": Fault(Kind.LIE, times=1),
    "a flipped bit": Fault(Kind.CORRUPT, times=1),
    "an expired URL": Fault(Kind.STATUS, times=1, status=403),
    "no answer": Fault(Kind.LOSE_ANSWER, times=4),
}


@pytest.mark.parametrize("what", PASSING)
def test_a_download_survives_what_passes(
    site: Site, run: Run[None], filled: str, what: str, tmp_path: Path
) -> None:
    site.s3.add(dataclasses.replace(PASSING[what], path=SIGNED))
    downloads_right(site, run, filled, tmp_path / "out.tar", dataclasses.replace(QUICK, silence=1.0))


LASTING = {
    "a flipped bit": (Fault(Kind.CORRUPT), Corrupt, "fails its checksum"),
    "wrong bytes": (Fault(Kind.LIE), Corrupt, "datapoint 0000000000000000000"),
    "an error page": (Fault(Kind.PAGE), Unavailable, "Content-Range"),
    "busy": (Fault(Kind.STATUS, status=503), Unavailable, "503"),
    "refused": (Fault(Kind.STATUS, status=403), Unavailable, "403"),
    "no answer": (Fault(Kind.STALL_HEAD), Unavailable, "silent"),
}


@pytest.mark.parametrize("what", LASTING)
def test_what_does_not_pass_ends_in_time_and_leaves_what_was_there(
    site: Site, run: Run[None], filled: str, what: str, tmp_path: Path
) -> None:
    fault, kind, says = LASTING[what]
    site.s3.add(dataclasses.replace(fault, path=SIGNED))
    (tmp_path / "out.tar").write_text("what was there")

    async def work() -> None:
        async with site.client(HASTY) as client:
            with pytest.raises(kind, match=says) as caught:
                await client.download_tar(filled, 0, 100, tmp_path / "out.tar")
            assert SIGNED not in str(caught.value)
            got: list[bytes] = []
            with pytest.raises(kind, match=says):
                await drain(client, filled, got)
            assert got == [one.content for one in MADE][: len(got)]

    run(work)
    assert [path.name for path in tmp_path.iterdir()] == ["out.tar"]
    assert (tmp_path / "out.tar").read_text() == "what was there"


def test_a_download_goes_on_after_the_last_good_byte(
    site: Site, run: Run[None], filled: str, tmp_path: Path
) -> None:
    # Half of what is left, each time: whoever began anew would never get to the end.
    site.s3.add(Fault(Kind.TRUNCATE, times=8, path=SIGNED))
    tuning = dataclasses.replace(QUICK, piece=8 * MIB)

    async def work() -> None:
        async with site.client(tuning) as client:
            await client.download_tar(filled, 0, 100, tmp_path / "out.tar")

    run(work)
    assert content_of((tmp_path / "out.tar").read_bytes()) == {one.name: one.content for one in MADE}


def test_a_dataset_that_is_merged_meanwhile_is_read_on(
    shared_site: Site, run: Run[None], tmp_path: Path
) -> None:
    site, dataset = shared_site, shared_site.dataset()

    async def work() -> None:
        async with site.client() as client:
            await client.ingest(dataset, [("a", bytes(3000))] * 20, datarange_bytes=8000)
            async with aclosing(client.iterate(dataset, 0, 100)) as found:
                first = (await anext(found)).key
                await client.aggregate(dataset, 0, 19)
                rest = [one.key async for one in found]
            assert [first, *rest] == list(range(20))

    run(work)


def test_a_dataset_that_is_cleared_meanwhile_is_not_taken_for_a_short_one(
    site: Site, run: Run[None], tmp_path: Path
) -> None:
    dataset = site.dataset()

    async def work() -> None:
        async with site.client() as client:
            await client.ingest(dataset, [("a", bytes(3000))] * 20, datarange_bytes=8000)
            async with aclosing(client.iterate(dataset, 0, 100)) as found:
                await anext(found)
                await client.clear_dataset(dataset)
                site.s3.add(Fault(Kind.STATUS, path=SIGNED, status=404))
                with pytest.raises(Conflict, match="has changed while it was read"):
                    [one async for one in found]

    run(work)


# -- uploads ---------------------------------------------------------------------------------------

UPLOADS: dict[str, tuple[Fault, list[Sample]]] = {
    f"{what}, {size}": (fault, made)
    for what, fault in {
        "busy": Fault(Kind.STATUS, times=3, status=503),
        "failing": Fault(Kind.STATUS, times=3, status=500),
        "an expired URL": Fault(Kind.STATUS, times=1, status=403),
        "a refusal of rclone's for an expired URL": Fault(Kind.STATUS, times=1, status=400),
        "the answer lost": Fault(Kind.LOSE_ANSWER, times=3),
        "not answered": Fault(Kind.STALL_HEAD, times=1),
        "a page instead of an answer": Fault(Kind.PAGE, times=1),
    }.items()
    for size, made in {"one PUT": samples([500_000]), "parts": samples([25 * MIB, 9])}.items()
}


@pytest.mark.parametrize("what", UPLOADS)
def test_an_upload_survives_what_passes(site: Site, run: Run[None], what: str, tmp_path: Path) -> None:
    fault, made = UPLOADS[what]
    archive, dataset = packed(tmp_path, made), site.dataset()
    site.s3.add(dataclasses.replace(fault, method="PUT", path=SIGNED))
    told = list[int]()

    async def work() -> None:
        async with site.client() as client:
            await client.upload(dataset, archive, progress=told.append)
            site.s3.clear()
            assert [one.read() for one in await everything(client, dataset)] == [one.content for one in made]

    run(work)
    assert sum(told) == archive.stat().st_size
    assert site.leftovers() == []


@pytest.mark.parametrize("size", [500_000, 25 * MIB])
def test_an_upload_that_fails_leaves_nothing(site: Site, run: Run[None], size: int, tmp_path: Path) -> None:
    archive, dataset = packed(tmp_path, samples([size])), site.dataset()
    site.s3.add(Fault(Kind.STATUS, method="PUT", path=SIGNED, status=503))

    async def work() -> None:
        async with site.client(HASTY) as client:
            with pytest.raises(Unavailable, match="503") as caught:
                await client.upload(dataset, archive)
            assert SIGNED not in str(caught.value)
            assert await client.dataranges(dataset) == []
            site.s3.clear()
            await client.upload(dataset, archive)

    run(work)
    assert site.leftovers() == []


@pytest.mark.parametrize("size", [500_000, 25 * MIB])
def test_bytes_that_are_mangled_on_the_way_up_are_not_committed(
    site: Site, run: Run[None], size: int, tmp_path: Path
) -> None:
    """The source changes without anybody's noticing: what S3 has is not what was scanned."""
    archive, dataset = packed(tmp_path, samples([size, 10])), site.dataset()

    async def work() -> None:
        async with site.client() as client:
            with archive.open("rb") as file:

                def witness(moment: Moment, method: str, path: str) -> bool:
                    if moment is Moment.ASKED and method == "POST" and path.endswith("/upload-datarange"):
                        with archive.open("r+b") as other:
                            other.seek(600)
                            other.write(b"other")
                    return False

                site.api.witness = witness
                try:
                    with pytest.raises(Datas3tError):
                        await client.upload(dataset, file)
                finally:
                    site.api.witness = lambda moment, method, path: False
            assert await client.dataranges(dataset) == []

    run(work)
    assert site.leftovers() == []


def test_cancellation_leaves_nothing_in_a_bounded_time(site: Site, run: Run[None], tmp_path: Path) -> None:
    archive = packed(tmp_path, samples([45 * MIB]))
    datasets = [site.dataset() for _ in range(3)]
    site.s3.add(Fault(Kind.STALL_HEAD, method="PUT", path=SIGNED))

    async def work() -> None:
        async with site.client(dataclasses.replace(QUICK, silence=60.0)) as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.upload, datasets[0], archive)
                tasks.start_soon(client.ingest, datasets[1], [tmp_path / "packed"])
                tasks.start_soon(client.ingest, datasets[2], [("small", b"")])
                await to_thread.run_sync(until, lambda: site.s3.requests("PUT", SIGNED) >= 5, 30)
                tasks.cancel_scope.cancel()
            for dataset in datasets:
                assert await client.dataranges(dataset) == []

    run(work)
    site.s3.clear()
    assert site.leftovers() == []


def test_a_start_that_is_cancelled_before_its_answer_leaves_nothing(
    site: Site, run: Run[None], tmp_path: Path
) -> None:
    archive, dataset = packed(tmp_path, samples([25 * MIB])), site.dataset()
    begun, over = threading.Event(), threading.Event()

    def witness(moment: Moment, method: str, path: str) -> bool:
        if moment is Moment.ANSWERED and path.endswith("/api/v1/upload-datarange") and not begun.is_set():
            begun.set()
            over.wait(30)
        return False

    async def work() -> None:
        async with site.client(dataclasses.replace(QUICK, silence=60.0)) as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.upload, dataset, archive)
                await to_thread.run_sync(begun.wait, 30)
                assert len(await client.uploads(dataset)) == 1
                tasks.cancel_scope.cancel()
            assert await client.uploads(dataset) == []

    site.api.witness = witness
    try:
        run(work)
    finally:
        over.set()
        site.api.witness = lambda moment, method, path: False
    assert site.leftovers() == []


# -- the server ------------------------------------------------------------------------------------


async def all_calls(client: AsyncClient, dataset: str, archive: Path, out: Path) -> None:
    await client.upload(dataset, archive)
    await client.ingest(dataset, [("a", b"1"), ("b", b"2")], datarange_bytes=600)
    await client.aggregate(dataset, len(MADE), len(MADE) + 1)
    assert len(await everything(client, dataset)) == len(MADE) + 2
    await client.download_tar(dataset, 0, 3, out)
    await client.bitmap(dataset)
    await client.delete_datarange(dataset, len(MADE), len(MADE) + 1)
    await client.clear_dataset(dataset)
    await client.delete_dataset(dataset)
    await client.add_dataset(dataset, "main")
    await client.buckets()


SERVER_FAULTS: dict[str, Callable[[str], Fault]] = {
    "busy": lambda method: Fault(Kind.STATUS, times=1, method=method, status=503),
    "a gateway that finds nobody": lambda method: Fault(Kind.STATUS, times=1, method=method, status=502),
    "a gateway's page": lambda method: Fault(Kind.PAGE, times=1, method=method),
    "the answer cut": lambda method: Fault(Kind.TRUNCATE, times=1, method=method),
    "the answer lost": lambda method: Fault(Kind.LOSE_ANSWER, times=1, method=method),
    "not answered": lambda method: Fault(Kind.STALL_HEAD, times=1, method=method),
}
ROUTES = [
    ("POST", "/api/v1/upload-datarange"), ("POST", "/upload-datarange/complete"), ("POST", "/download"),
    ("POST", "/aggregate/run"), ("GET", "/dataranges?"), ("GET", "/datapoints-bitmap"), ("GET", "/buckets"),
    ("GET", "/datas3ts"), ("POST", "/datarange/delete"), ("POST", "/datas3ts/clear"),
    ("DELETE", "/datas3ts"), ("POST", "/api/v1/datas3ts"),
]  # fmt: skip


@pytest.mark.parametrize("what", SERVER_FAULTS)
def test_every_call_survives_a_server_that_answers_next_time(
    site: Site, run: Run[None], what: str, tmp_path: Path
) -> None:
    archive, dataset = packed(tmp_path, MADE), site.dataset()
    # These may take long: that they are not answered is noticed late, on purpose.
    slow = {"/upload-datarange/complete", "/aggregate/run"} if what == "not answered" else set()
    for method, path in [route for route in ROUTES if route[1] not in slow]:
        site.api.add(dataclasses.replace(SERVER_FAULTS[what](method), path=path))

    async def work() -> None:
        async with site.client(dataclasses.replace(QUICK, silence=1.0)) as client:
            await all_calls(client, dataset, archive, tmp_path / "out.tar")

    run(work)
    assert site.leftovers() == []


def test_what_is_not_a_datas3tfs_server_is_said_to_be_none(site: Site, run: Run[None]) -> None:
    async def work() -> None:
        async with AsyncClient(site.s3.endpoint, tuning=HASTY) as client:
            with pytest.raises(Datas3tError, match=r"not a datas3tfs server|gave up") as caught:
                await client.datasets()
            assert not isinstance(caught.value, NotFound)
        async with AsyncClient(f"{site.api.endpoint}/elsewhere", tuning=HASTY) as client:
            with pytest.raises(Datas3tError):
                await client.datasets()

    run(work)


def test_nobody_there_is_said_in_time(run: Run[None]) -> None:
    async def work() -> None:
        async with AsyncClient("http://127.0.0.1:9", tuning=HASTY) as client:
            with pytest.raises(Unavailable, match="no connection"):
                await client.datasets()

    run(work)
