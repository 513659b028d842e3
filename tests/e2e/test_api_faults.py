"""Between the server and S3 everything goes wrong that can: it is 503 or done, never the client's fault.

All cases of an S3 server are in flight at once, each with a dataset of its own that its faults are about:
most of their time is waiting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from tests.e2e.test_api_crashes import check_nothing_is_left, swept
from tests.harness.api import Api, Json, go_archive
from tests.harness.faultproxy import Fault, FaultProxy, Kind
from tests.harness.mounts import BUCKET, Stack, open_stack
from tests.harness.postgres import PostgresServer
from tests.harness.s3 import ServerProcess, fresh_bucket
from tests.harness.server import Server, serving

PATIENCE = {"DATAS3TFS_IO_TIMEOUT": "1.5"}
PART = 5 << 20
SMALL = [b"0", b"1" * 3000, b""]
LARGE = [bytes([key]) * (2 << 20) for key in range(3)]  # two parts; S3 gets the longer for larger ones
NAME = "dataranges/00000000000000000000-00000000000000000002"
COMPLETE = "/api/v1/upload-datarange/complete"

KINDS = {
    "busy": Fault(Kind.STATUS, status=503),
    "reset": Fault(Kind.RESET),
    "silent": Fault(Kind.STALL_HEAD),
    "unheard": Fault(Kind.LOSE_ANSWER),
}
STEPS = {  # of a complete: method, and what follows the dataset's name in the path
    "joining-the-parts": ("POST", f"{NAME}.tar?uploadId="),
    "looking-for-the-tar": ("HEAD", f"{NAME}.tar"),
    "reading-the-tar": ("GET", f"{NAME}.tar"),
    "reading-the-index": ("GET", f"{NAME}.index"),
    "storing-the-index": ("PUT", f"{NAME}.index.zst"),
}
CASES = {f"{step}-{kind}": (step, kind) for step in STEPS for kind in KINDS}


def contents_of(case: str) -> list[bytes]:
    return LARGE if CASES[case][0] == "joining-the-parts" else SMALL


def fault_for(case: str) -> Fault:
    step, kind = CASES[case]
    method, path = STEPS[step]
    # S3 gets a minute for the largest index that there could be: this passes before.
    times = 3 if step == "reading-the-index" else None
    return dataclasses.replace(KINDS[kind], method=method, path=f"/{case}/{path}", times=times)


@dataclass
class Site:
    """A server whose S3 is behind a proxy."""

    stack: Stack
    proxy: FaultProxy
    server: Server
    outcomes: dict[str, list[tuple[int, str]]] = field(default_factory=dict)  # of each call of a case


@pytest.fixture(scope="module", params=["rclone", "moto"])
def site(
    request: pytest.FixtureRequest,
    embedded_postgres: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Site]:
    """One on each kind of S3, after everything was completed: with its faults first, and without."""
    process: ServerProcess = request.getfixturevalue(f"{request.param}_server_process")
    home = tmp_path_factory.mktemp("site")
    with (
        open_stack(embedded_postgres, fresh_bucket(process), home) as stack,
        FaultProxy(process.port) as proxy,
    ):
        stack.register(*CASES, endpoint=proxy.endpoint)
        with serving(stack, "--no-sweep", env=PATIENCE) as server:
            opened = Site(stack, proxy, server)
            trio.run(complete_all, opened)
            yield opened


async def complete_all(site: Site) -> None:
    async with site.server.api() as api:
        grants = {dataset: await begun(api, dataset) for dataset in CASES}
        site.proxy.add(*map(fault_for, CASES))

        async def call(dataset: str) -> None:
            answer = await api.send("POST", COMPLETE, {"datarange_upload_id": grants[dataset]})
            site.outcomes.setdefault(dataset, []).append((answer.status_code, answer.text))

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for dataset in CASES:
                    nursery.start_soon(call, dataset)
            site.proxy.clear()


async def begun(api: Api, case: str) -> int:
    """Begin an upload to the dataset of a case and put everything; return its id."""
    tar, index = go_archive(0, contents_of(case))
    # S3's server refuses shorter parts than these, so not the Go client's even shares.
    asked = {"datas3t_name": case, "first_datapoint_index": 0, "number_of_datapoints": 3, "part_size": PART}
    grant = await api.done("POST", "/api/v1/upload-datarange", {**asked, "data_size": len(tar)})
    if grant["use_direct_put"]:
        await api.urls.put(grant["presigned_data_put_url"], tar)
    for number, url in enumerate(grant.get("presigned_multipart_upload_urls", ())):
        await api.urls.put(url, tar[number * PART : (number + 1) * PART])
    await api.urls.put(grant["presigned_index_put_url"], index)
    upload_id: int = grant["datarange_upload_id"]
    return upload_id


@pytest.mark.parametrize("case", CASES)
def test_a_complete_that_s3_fails_is_no_fault_of_the_client_and_can_be_repeated(
    site: Site, case: str
) -> None:
    (status, text), (again, _) = site.outcomes[case]
    assert status in (200, 503), text
    if status == 503:
        assert "X-Amz" not in text
        assert site.stack.s3.secret_key not in text
    assert again == 200

    async def read() -> dict[str, bytes]:
        async with site.server.api() as api:
            return await api.download(case, 0, 10)

    assert list(trio.run(read).values()) == contents_of(case)


def test_the_faults_have_hit(site: Site) -> None:
    """A step that is never answered cannot have been done, and one that is answered in the end has been."""
    for case, (step, kind) in CASES.items():
        if step == "reading-the-index":
            assert site.outcomes[case][0][0] == 200, case
        elif kind in ("busy", "silent") or step == "reading-the-tar":
            assert site.outcomes[case][0][0] == 503, case


def test_nothing_is_left_over(site: Site) -> None:
    trio.run(swept, site.stack)
    check_nothing_is_left(
        site.stack, {int(one) for one in site.stack.sql("SELECT id FROM dataranges").split()}
    )


# -- merging and importing -------------------------------------------------------------------------

Step = Callable[[Api], Awaitable[Json]]
MERGING = {
    "looking at what was made": Fault(Kind.STATUS, method="HEAD", path="00000000000000000000-"),
    # These pass: for how long S3 is asked again grows with what is to be moved.
    "reading sources": Fault(Kind.STATUS, times=4, method="GET", path=".tar"),
    "storing parts": Fault(Kind.STATUS, times=4, method="PUT", path="partNumber="),
    "storing": Fault(Kind.STATUS, method="PUT", path="00000000000000000000-"),
    "beginning": Fault(Kind.STATUS, method="POST", path="?uploads"),
    "joining": Fault(Kind.STATUS, method="POST", path="uploadId="),
    "not heard of": Fault(Kind.LOSE_ANSWER, method="POST"),
    "no answer": Fault(Kind.STALL_HEAD, method="POST"),
}


IMPORTING = {
    "listing": Fault(Kind.STATUS, method="GET", path="list-type="),
    "listing, no answer": Fault(Kind.STALL_HEAD, method="GET", path="list-type="),
    "listing, not heard of": Fault(Kind.LOSE_ANSWER, method="GET", path="list-type="),
    "reading indices": Fault(Kind.RESET, times=4, method="GET", path=".index"),
    "reading TARs": Fault(Kind.STATUS, method="GET", path="00000000000000000010-00000000000000000011.tar"),
}


@pytest.fixture(params=["rclone", "moto"])
def fresh(
    request: pytest.FixtureRequest, embedded_postgres: PostgresServer, tmp_path: Path
) -> Iterator[Site]:
    """A site with an empty dataset, everything well."""
    process: ServerProcess = request.getfixturevalue(f"{request.param}_server_process")
    with (
        open_stack(embedded_postgres, fresh_bucket(process), tmp_path) as stack,
        FaultProxy(process.port) as proxy,
    ):
        stack.register("photos", endpoint=proxy.endpoint)
        with serving(stack, "--no-sweep", env=PATIENCE) as server:
            yield Site(stack, proxy, server)


async def survived(site: Site, api: Api, faults: dict[str, Fault], path: str, body: Json) -> Json:
    """Call with every fault in turn, then with none; return what that answers."""
    failed = 0
    for what, fault in faults.items():
        site.proxy.add(fault)
        answer = await api.send("POST", path, body)
        assert answer.status_code in (200, 503), f"{what}: {answer.status_code} {answer.text}"
        failed += answer.status_code == 503
        site.proxy.clear()
    assert failed
    return await api.done("POST", path, body)


def test_a_merge_that_s3_fails_leaves_its_sources_and_can_be_repeated(fresh: Site) -> None:
    large = [b"a", bytes(6 << 20)]

    async def work() -> None:
        async with fresh.server.api() as api:
            for first in (0, 2, 4):
                await api.upload("photos", first, large)
            body = {"datas3t_name": "photos", "first_datapoint_index": 0, "last_datapoint_index": 5}
            made = await survived(fresh, api, MERGING, "/api/v1/aggregate/run", body)
            assert (made["min_datapoint_key"], made["max_datapoint_key"]) == (0, 5)
            assert list((await api.download("photos", 0, 10)).values()) == large * 3

    trio.run(work)
    trio.run(swept, fresh.stack)
    check_nothing_is_left(fresh.stack, {1})


def test_an_import_that_s3_fails_can_be_repeated(fresh: Site, tmp_path: Path) -> None:
    """What could not be read is reported as such, and taken the next time."""
    for first in (0, 10, 20):
        tar, index = go_archive(first, [b"a", b"b" * 3000])
        stem = f"datas3t/other/dataranges/{first:020d}-{first + 1:020d}"
        fresh.stack.put_object(f"{stem}.tar", tar)
        fresh.stack.put_object(f"{stem}.index", index)

    async def work() -> None:
        async with fresh.server.api() as api:
            await survived(fresh, api, IMPORTING, "/api/v1/datas3ts/import", {"bucket_name": BUCKET})
            found = await api.download("other", 0, 100)
            assert list(found.values()) == [b"a", b"b" * 3000] * 3

    trio.run(work)
