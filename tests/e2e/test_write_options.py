"""What the options of a mount that can be written to do: batches, buckets; and what its stats say."""

from __future__ import annotations

import errno
import os

from tests.e2e.writing import state
from tests.harness.archives import key_name, noise
from tests.harness.arena import check_left_tidy, committed_keys, flush
from tests.harness.faultproxy import Fault, FaultProxy, Kind
from tests.harness.mounts import BUCKET, Stack, refusing, until
from tests.harness.s3 import ServerProcess, fresh_bucket

KIB = 1 << 10
LATER = ("--batch-age", "3600")  # nothing is committed for its age


def spans(stack: Stack) -> list[tuple[int, int]]:
    """Return first and last key of each datarange, of the only dataset."""
    rows = stack.sql("SELECT min_datapoint_key, max_datapoint_key FROM dataranges ORDER BY 1").splitlines()
    return [(int(first), int(last)) for first, last in (row.split("|") for row in rows)]


def test_a_batch_is_committed_when_it_has_so_many_bytes(stack: Stack) -> None:
    stack.register("ds")
    content = {key: noise(100 * KIB, key) for key in range(8)}
    with stack.mount(*LATER, "--batch-bytes", "256KiB", write=True) as mount:
        folder = mount.path / "ds"
        (folder / key_name(100)).write_bytes(b"small")
        assert not spans(stack)
        (folder / key_name(200)).write_bytes(noise(300 * KIB))
        until(lambda: committed_keys(stack) == {100, 200}, 30, "committing, as there is enough")
        for key, body in content.items():
            (folder / key_name(key)).write_bytes(body)
        until(lambda: len(committed_keys(stack)) > 2, 30, "committing those that have come first")
        flush(mount.path)
        several = [last - first + 1 for first, last in spans(stack) if last < 100]
        assert sum(several) == len(content)
        assert max(several) <= 3, "no more than it takes to have 256 KiB"
    with stack.mount(cold=True) as mount:
        for key, body in content.items():
            assert (mount.path / "ds" / key_name(key)).read_bytes() == body
    check_left_tidy(stack)


def test_of_several_buckets_mkdir_uses_the_one_that_is_named(
    stack: Stack, rclone_server_process: ServerProcess
) -> None:
    stack.register()
    other = fresh_bucket(rclone_server_process)
    words = "--endpoint", other.endpoint, "--bucket", other.bucket
    stack.run("bucket", "add", "second", *words)
    with stack.mount(*LATER, write=True) as mount, refusing(errno.EIO):
        (mount.path / "nowhere").mkdir()
    assert "2 buckets are registered: say which one with mount --bucket" in mount.log
    for number, bucket in enumerate(("second", BUCKET)):
        name = f"set{number}"
        with stack.mount(*LATER, "--bucket", bucket, write=True) as mount:
            (mount.path / name).mkdir()
            (mount.path / name / key_name(7)).write_bytes(b"content")
            flush(mount.path)
            assert (mount.path / name / key_name(7)).read_bytes() == b"content"
    listed = {dataset["name"]: dataset["bucket"] for dataset in stack.json("dataset", "list")}
    assert listed == {"set0": "second", "set1": BUCKET}
    keys = [found["Key"] for found in other.client().list_objects_v2(Bucket=other.bucket)["Contents"]]
    assert all(key.startswith("datas3t/set0/") for key in keys)
    assert all(key.startswith("datas3t/set1/") for key in stack.objects())


def test_the_stats_say_what_is_open_journaled_committing_and_committed(
    stack: Stack, proxy: FaultProxy
) -> None:
    stack.register("ds", endpoint=proxy.endpoint)
    with stack.mount(*LATER, "--batch-bytes", "300KiB", write=True) as mount:

        def told(*names: str) -> list[object]:
            journal = mount.stats()["journal"]
            return [journal[name] for name in names]

        folder = mount.path / "ds"
        for key in range(2):
            (folder / key_name(key)).write_bytes(noise(100 * KIB, key))
        (folder / ".temporary").write_bytes(b"x")
        file = os.open(folder / key_name(9), os.O_WRONLY | os.O_CREAT)
        assert told("open", "journaled", "temporary", "committing", "committed") == [1, 2, 1, 0, 0]
        proxy.add(Fault(Kind.STALL_HEAD, method="PUT"))
        (folder / key_name(2)).write_bytes(noise(100 * KIB, 2))
        until(lambda: told("committing") == [3], 30, "committing")
        assert told("open", "journaled", "temporary", "committed") == [1, 0, 1, 0]
        assert state(folder / key_name(0)) == "committing"
        proxy.clear()
        until(lambda: told("committed") == [3], 60, "being committed")
        assert told("open", "journaled", "temporary", "committing") == [1, 0, 1, 0]
        assert state(folder / key_name(0)) == "committed"
        os.close(file)
        (folder / ".temporary").unlink()
        flush(mount.path)
        assert told("committed") == [4]
    check_left_tidy(stack)
