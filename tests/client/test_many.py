"""Many uploads and downloads at once: no error, and memory that does not grow with their number."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

from datas3tfs import Client
from datas3tfs.errors import Unavailable
from tests.client.conftest import QUICK, Site
from tests.e2e.test_api_crashes import check_nothing_is_left, swept
from tests.harness.archives import noise
from tests.harness.faultproxy import Fault, Kind
from tests.harness.mounts import ROOT, until
from tests.harness.server import memory_watched

MIB = 1 << 20
MANY = 64
SIZE = 12 * MIB  # each: all of them are several times what may be used

_PROGRAM = """
import json, sys
from functools import partial
from pathlib import Path
import anyio
from datas3tfs import AsyncClient

url, dataset, folder, many = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

async def main():
    async with AsyncClient(url) as client:
        await client.ingest(dataset, [folder / "data.bin"], start=10**6)
        await client.get(dataset, 10**6)
        Path("/proc/self/clear_refs").write_text("5")
        begun = peak()
        async with anyio.create_task_group() as tasks:
            for number in range(many):
                target = folder / f"{number}.tar"
                tasks.start_soon(partial(client.ingest, dataset, [folder / "data.bin"], start=number))
                tasks.start_soon(client.download_tar, dataset, 10**6, 10**6, target)
        return peak() - begun

print(json.dumps(anyio.run(main, backend=sys.argv[5])))
"""


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
def test_sixty_four_at_once_in_flat_memory(new_site: Callable[..., Site], loop: str, tmp_path: Path) -> None:
    site = new_site("rclone")
    dataset, content = site.dataset(), noise(SIZE)
    (tmp_path / "data.bin").write_bytes(content)
    with memory_watched(site.server.pid) as grown:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, site.server.url, dataset, str(tmp_path), str(MANY), loop],
            cwd=ROOT,
            # What is held is measured, not what glibc keeps of each thread's that was freed.
            env={**os.environ, "MALLOC_ARENA_MAX": "1"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert grown() < 250 * MIB
    assert json.loads(done.stdout) < 250 * MIB
    for number in range(MANY):
        raw = (tmp_path / f"{number}.tar").read_bytes()
        assert raw[512 : 512 + SIZE] == content
    with Client(site.server.url) as client:
        assert [one.min_datapoint_key for one in client.dataranges(dataset)] == [*range(MANY), 10**6]
        assert [one.read() == content for one in client.iterate(dataset, 0, MANY)] == [True] * MANY
    assert site.leftovers() == []


# -- the server is killed in the middle of it ------------------------------------------------------


def content_of(number: int) -> bytes:
    """Return the only datapoint of upload *number*; every sixteenth goes in parts."""
    return noise(21 * MIB if number % 16 == 15 else 50_000 + number, number)


@pytest.mark.timeout(300)
def test_sixty_four_up_and_down_outlive_a_server_that_is_killed(
    new_site: Callable[..., Site], tmp_path: Path
) -> None:
    """… or say that it is away; nobody sees anything half done, and nothing is left over."""
    site = new_site("rclone")
    up, down = site.dataset(), site.dataset()
    site.api.latency = 0.03
    with Client(site.server.url) as client:
        given = [("x.bin", content_of(number)) for number in range(MANY)]
        client.ingest(down, given, datarange_bytes=1)
    patient = dataclasses.replace(QUICK, patience=40.0)
    with Client(site.api.endpoint, tuning=patient) as client, ThreadPoolExecutor(2 * MANY) as threads:

        def upload(number: int) -> None:
            client.ingest(up, [("x.bin", content_of(number))], start=number)

        def download(number: int) -> bool:
            return client.get(down, number).read() == content_of(number)

        site.s3.add(Fault(Kind.STATUS, times=1, method="PUT", path="X-Amz-Signature", status=403))
        uploads, downloads = [], []
        for number in range(MANY):
            uploads.append(threads.submit(upload, number))
            downloads.append(threads.submit(download, number))
        until(lambda: site.stack.sql(f"SELECT count(*) >= {MANY + 10} FROM dataranges") == "t", 60, "ten")
        site.server.kill()
        unfinished = [one for one in uploads + downloads if not one.done()]
        site.server.start()
        ends = [one.exception(120) for one in uploads + downloads]
        assert [end for end in ends if end is not None and not isinstance(end, Unavailable)] == []
        assert all(one.result() for one in downloads if one.exception() is None)
        assert sum(end is None for end in ends[:MANY]) >= 10
        done = {number for number in range(MANY) if ends[number] is None}
        seen = {one.min_datapoint_key for one in client.dataranges(up)}
        assert done <= seen
        for number in seen:
            assert client.get(up, number).read() == content_of(number)
    assert unfinished
    assert site.api.requests("POST", "/resume") >= 1, "a URL that was refused is renewed"
    trio.run(swept, site.stack)
    check_nothing_is_left(site.stack, set(range(len(seen) + MANY)))
    assert site.leftovers() == []
