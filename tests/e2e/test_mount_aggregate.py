"""A mount goes on while its dataranges are merged and their objects deleted at once, with no grace at all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from datas3tfs.catalog import open_catalog
from datas3tfs.core.counters import Counters
from datas3tfs.engine.sweeper import sweep
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.stores import open_stores
from tests.e2e.test_mount_reading import drop_pages
from tests.harness.archives import key_name, samples, write_folder
from tests.harness.faultproxy import Fault, FaultProxy, Kind
from tests.harness.mounts import ROOT, Mount, Stack, refusal, until

MIB = 1 << 20
SIZES = [0, 1, 700, 300_000, 6 * MIB, 12, 0, 11 * MIB, 7]


def bury(stack: Stack) -> None:
    """Delete at once what is to be deleted some time."""
    stack.sql("UPDATE objects_to_delete SET delete_after = now() - interval '1 second'")

    async def work() -> None:
        counters = Counters()
        async with (
            open_catalog(stack.db_url, stack.encryption_key, counters) as catalog,
            open_stores(catalog.reader.bucket, S3Settings(), counters) as stores,
        ):
            while await sweep(catalog.uploads, catalog.leases, catalog.graveyard, stores):
                pass

    trio.run(work)


def check_tidy(stack: Stack) -> None:
    """S3 has what the catalog names, and nothing else."""
    named = stack.sql(
        "SELECT data_object_key FROM dataranges UNION ALL SELECT index_object_key FROM dataranges"
    )
    assert sorted(stack.objects()) == sorted(named.splitlines())
    assert not stack.s3.unfinished()


@contextmanager
def reading(folder: Path, digests: dict[str, str]) -> Iterator[list[str]]:
    """Read all files again and again, from S3, in three threads; yield what was wrong."""
    wrong: list[str] = []
    is_over = threading.Event()

    def read_on(seed: int) -> None:
        chance = random.Random(seed)
        names = sorted(digests)
        while not is_over.wait(0.05):  # leaves the processor to the others
            name = chance.choice(names)
            try:
                drop_pages(folder / name)
                with (folder / name).open("rb") as file:
                    got = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as exc:
                got = str(exc)
            if got != digests[name]:
                wrong.append(f"{name}: {got}")

    threads = [threading.Thread(target=read_on, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def filled(stack: Stack, home: Path) -> dict[str, str]:
    """A dataset with a datarange for each file; return name → digest."""
    made = samples(SIZES)
    stack.register("photos")
    stack.ingest("photos", write_folder(home / "sources", made), datarange_bytes=1)
    assert stack.sql("SELECT count(*) FROM dataranges") == str(len(SIZES))
    return {one.name: hashlib.sha256(one.content).hexdigest() for one in made}


@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_readers_go_on_while_their_dataranges_are_merged(
    new_stack: Callable[..., Stack], kind: str, tmp_path: Path
) -> None:
    stack = new_stack(kind)
    digests = filled(stack, tmp_path)
    small = {"DATAS3TFS_MEMORY_BUDGET": str(MIB)}  # so that next to nothing is kept
    with stack.mount(cold=True, env=small) as mount:
        folder = mount.path / "photos"
        held = {name: os.open(folder / name, os.O_RDONLY) for name in digests}
        with reading(folder, digests) as wrong:
            for first, last in [(0, 3), (0, 4), (5, 8)]:
                stack.run("aggregate", "photos", "--first", str(first), "--last", str(last))
                bury(stack)
            (done,) = stack.json("optimize", "photos", "--target-size", "15MiB")
            assert (done["first_key"], done["last_key"], done["dataranges"]) == (0, 8, 2)
            bury(stack)
            assert stack.json("optimize", "--all") == []
        assert not wrong
        for name, descriptor in held.items():
            with os.fdopen(descriptor, "rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == digests[name]
        assert sorted(os.listdir(folder)) == sorted(digests)
        check_log(mount)
    assert len(stack.json("datarange", "list", "photos")) == 1
    check_tidy(stack)


def test_what_was_open_before_is_read_to_its_end(stack: Stack, tmp_path: Path) -> None:
    digests = filled(stack, tmp_path)
    with stack.mount(cold=True, env={"DATAS3TFS_MEMORY_BUDGET": str(MIB)}) as mount:
        folder = mount.path / "photos"
        name = sorted(digests)[7]
        with (folder / name).open("rb", buffering=0) as file:
            digest = hashlib.sha256(file.read(100_000))
            stack.run("aggregate", "photos", "--first", "0", "--last", "8")
            bury(stack)
            while chunk := file.read(MIB):
                digest.update(chunk)
        assert digest.hexdigest() == digests[name]
        assert mount.counters().get("read.moved") >= 1
        check_log(mount)


def test_plans_are_shown_and_nothing_done_and_what_makes_no_sense_is_refused(
    stack: Stack, tmp_path: Path
) -> None:
    filled(stack, tmp_path)
    dry, merge, *others = stack.run_each(
        [
            ["optimize", "--all", "--dry-run", "--target-size", "15MiB", "--json"],
            ["aggregate", "photos", "--first", "0", "--last", "3", "--json"],
            ["aggregate", "photos", "--first", "1", "--last", "2"],
            ["aggregate", "photos", "--first", "4", "--last", "50"],
            ["aggregate", "photos", "--first", "5", "--last", "4"],
            ["aggregate", "elsewhere", "--first", "5", "--last", "6"],
            ["optimize", "elsewhere"],
            ["optimize", "photos", "--target-size", "3GiB"],
            ["optimize", "photos", "--target-size", "much"],
        ]
    )
    (planned,) = json.loads(dry.stdout)
    assert (planned["dataset"], planned["done"]) == ("photos", False)
    assert planned["bytes"] >= 15 * MIB
    made = json.loads(merge.stdout)
    assert (made["first_key"], made["last_key"]) == (0, 3)
    assert stack.sql("SELECT count(*) FROM dataranges") == str(len(SIZES) - 3), "the plan has changed nothing"
    said = ["at least two", "not fully covered", "not a range", "elsewhere", "elsewhere", "twice", "much"]
    for done, words in zip(others, said, strict=True):
        assert words in refusal(done)
    assert "--all" in stack.refused("optimize", code=2)


def test_memory_is_flat_however_much_is_streamed(stack: Stack, tmp_path: Path) -> None:
    """rclone's server cannot copy: 300 MiB pass through the process, which takes no more than for little."""
    stack.register("little", "much")
    stack.ingest("little", write_folder(tmp_path / "little", samples([1000] * 3)), datarange_bytes=1)
    folder = tmp_path / "much"
    folder.mkdir()
    for key in range(3):
        with (folder / key_name(key)).open("wb") as file:
            file.truncate(100 * MIB)
    stack.ingest("much", folder, datarange_bytes=1)
    little, much = (
        peak_of(stack, "aggregate", name, "--first", "0", "--last", "2") for name in ("little", "much")
    )
    assert much - little < 100 * MIB


def peak_of(stack: Stack, *words: str) -> int:
    """Run a command; return the most memory it had, in bytes."""
    process = subprocess.Popen([sys.executable, "-m", "datas3tfs", *words], env=stack.environ, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


@pytest.mark.parametrize("stalled", ["part", "complete", "index"])
@pytest.mark.parametrize("kind", ["rclone", "moto"])
def test_a_merge_that_is_killed_leaves_everything_as_it_was(
    new_stack: Callable[..., Stack], kind: str, stalled: str, tmp_path: Path
) -> None:
    """Killed while S3 is at it: after the sweeper there is no object too many, and no multipart upload."""
    stack = new_stack(kind)
    made = samples([11 * MIB, 100, 12 * MIB])
    folder = write_folder(tmp_path / "sources", made)
    with FaultProxy(stack.s3.process.port) as proxy:
        stack.register("photos", endpoint=proxy.endpoint)
        stack.ingest("photos", folder, datarange_bytes=1)
        before = stack.objects()
        proxy.forget()
        method = "POST" if stalled == "complete" else "PUT"
        path = {"part": "partNumber=2", "complete": "uploadId=", "index": ".index.zst"}[stalled]
        proxy.add(Fault(Kind.STALL_HEAD, method=method, path=path))
        with subprocess.Popen(
            [sys.executable, "-m", "datas3tfs", "aggregate", "photos", "--first", "0", "--last", "2"],
            env=stack.environ,
            cwd=ROOT,
        ) as process:
            until(lambda: proxy.requests(method, path), 60.0, "S3 being asked")
            process.kill()
        proxy.clear()
        assert stack.sql("SELECT count(*) FROM datarange_uploads") == "1"
        stack.sql("UPDATE datarange_uploads SET expires_at = now() - interval '1 second'")
        bury(stack)
        bury(stack)
        assert stack.objects() == before
        check_tidy(stack)
        stack.run("aggregate", "photos", "--first", "0", "--last", "2")
        bury(stack)
        check_tidy(stack)
        assert stack.run("verify", "photos").returncode == 0


def test_a_daemon_optimizes_what_comes_until_it_is_stopped(stack: Stack, tmp_path: Path) -> None:
    stack.register("photos")
    folder = write_folder(tmp_path / "sources", samples([3000] * 40))
    with subprocess.Popen(
        [sys.executable, "-m", "datas3tfs", "optimize", "--all", "--daemon", "--interval", "1", "--json"],
        env=stack.environ,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        try:
            stack.ingest("photos", folder, datarange_bytes=1)
            until(lambda: int(stack.sql("SELECT count(*) FROM dataranges")) <= 10, 60.0, "merging", 0.2)
        finally:
            daemon.send_signal(signal.SIGTERM)
            out, err = daemon.communicate(timeout=30)
    assert daemon.returncode == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    assert records
    assert all(record["done"] for record in records), records
    bury(stack)
    check_tidy(stack)


def check_log(mount: Mount) -> None:
    """Nobody was told of an error."""
    assert not mount.errors(), mount.log
