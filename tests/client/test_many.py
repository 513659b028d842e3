"""Many uploads and downloads at once: no error, and memory that does not grow with their number."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datas3tfs import Client
from tests.client.conftest import Site
from tests.harness.archives import noise
from tests.harness.mounts import ROOT

MIB = 1 << 20
MANY = 64
SIZE = 12 * MIB  # each: all of them are several times what may be used

_PROGRAM = """
import json, resource, sys
from functools import partial
from pathlib import Path
import anyio
from datas3tfs import AsyncClient

url, dataset, folder, many = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

async def main():
    async with AsyncClient(url) as client:
        await client.ingest(dataset, [("warm", bytes(100))], start=10**6)
        await client.get(dataset, 10**6)
        begun = peak()
        async with anyio.create_task_group() as tasks:
            for number in range(many):
                tasks.start_soon(partial(client.ingest, dataset, [folder / "data.bin"], start=number))
        async with anyio.create_task_group() as tasks:
            for number in range(many):
                target = folder / f"{number}.tar"
                tasks.start_soon(client.download_tar, dataset, number, number, target)
        return peak() - begun

print(json.dumps(anyio.run(main, backend=sys.argv[5])))
"""


@contextmanager
def watched(pid: int) -> Iterator[Callable[[], int]]:
    """Yield what tells how far the peak of a process's memory has risen since, in bytes."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak is measured anew (proc_pid_clear_refs(5))
    begun = peak(pid)
    yield lambda: peak(pid) - begun


def peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


@pytest.mark.parametrize("loop", ["trio", "asyncio"])
def test_sixty_four_at_once_in_flat_memory(new_site: Callable[..., Site], loop: str, tmp_path: Path) -> None:
    site = new_site("rclone")
    dataset, content = site.dataset(), noise(SIZE)
    (tmp_path / "data.bin").write_bytes(content)
    with watched(site.server.pid) as grown:
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM, site.server.url, dataset, str(tmp_path), str(MANY), loop],
            cwd=ROOT,
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
    assert site.leftovers() == []
