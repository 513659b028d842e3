"""Errors reach the writer, in time and by the right name; what was accepted is kept; all mends by itself."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.archives import key_name, noise
from tests.harness.arena import check_left_tidy, committed_keys, flush
from tests.harness.crashpoints import sql_point
from tests.harness.faultproxy import Fault, FaultProxy, Kind
from tests.harness.mounts import Stack, device_at, open_stack, refusal, refusing, unmount_lazily, until
from tests.harness.pgproxy import PgProxy, Statement, running_pgproxy
from tests.harness.postgres import PostgresServer
from tests.harness.s3 import S3Server

LIMIT = 2.0  # --io-timeout
MARGIN = 4.0  # for the machine, which runs other things as well
MENDED = 40.0  # until all is well again: pauses after failures are up to half a minute
LATER = ("--batch-age", "3600")  # commits when asked to only
MIB = 1 << 20


def write(path: Path, content: bytes, *, sync: bool = False, flags: int = os.O_EXCL) -> None:
    """Create a file, in small steps; what any of them fails of comes out, as from a careful program."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | flags)
    try:
        for at in range(0, len(content), 64 << 10):
            os.write(file, content[at : at + (64 << 10)])
        if sync:
            os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def in_time() -> Iterator[None]:
    """Fail if the block takes longer than a request may."""
    begun = time.monotonic()
    yield
    spent = time.monotonic() - begun
    assert spent < LIMIT + MARGIN, f"{spent:.1f} s"


@pytest.fixture
def ready(stack: Stack, proxy: FaultProxy) -> Iterator[Stack]:
    """A stack with the dataset "ds", behind the proxy."""
    stack.register("ds", endpoint=proxy.endpoint)
    yield stack
    proxy.clear()


def check_committed(stack: Stack, content: dict[str, bytes]) -> None:
    """Fail unless all of this is committed, as a mount with an empty cache sees it."""
    with stack.mount(cold=True) as other:
        assert {path.name: path.read_bytes() for path in (other.path / "ds").iterdir()} == content
    check_left_tidy(stack)


# -- no room ---------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs is root's")
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize("size", [100_000, MIB])
def test_a_full_disk_is_told_and_commits_all_the_same(ready: Stack, small_disk: Path, size: int) -> None:
    """Inline in the log, and in files of their own."""
    safe: dict[str, bytes] = {}
    with ready.mount(*LATER, "--journal-dir", str(small_disk / "j"), write=True) as mount:
        folder = mount.path / "ds"
        with refusing(errno.ENOSPC):
            for key in range(200):
                content = noise(size, key)
                write(folder / key_name(key), content)
                safe[key_name(key)] = content
        assert len(safe) * size > 4 * MIB
        for name, content in safe.items():
            assert (folder / name).read_bytes() == content
        with refusing(errno.ENOSPC):
            write(folder / key_name(300), noise(8 * MIB))
        for key in (len(safe), 300):
            (folder / key_name(key)).unlink(missing_ok=True)
        flush(mount.path)
        assert committed_keys(ready) == set(range(len(safe)))
        write(folder / key_name(300), b"there is room again")
        safe[key_name(300)] = b"there is room again"
    check_committed(ready, safe)


def test_a_full_journal_slows_writers_down_then_refuses_and_mends(ready: Stack, proxy: FaultProxy) -> None:
    proxy.add(Fault(Kind.STATUS, method="PUT"))
    limit = "--journal-size", "4MiB", "--batch-age", "0.2", "--io-timeout", f"{LIMIT:g}"
    safe: dict[str, bytes] = {}
    content = noise(64 << 10)
    with ready.mount(*limit, write=True) as mount:
        folder = mount.path / "ds"
        paces: list[float] = []
        with refusing(errno.ENOSPC):
            for key in range(200):
                begun = time.monotonic()
                write(folder / key_name(key), content)
                paces.append(time.monotonic() - begun)
                safe[key_name(key)] = content
        assert max(paces[-5:]) > 2 * sorted(paces[:20])[10], "writers were not slowed down before"
        assert mount.stats()["journal"]["used_bytes"] <= 4 * MIB
        (folder / key_name(len(safe))).unlink(missing_ok=True)
        proxy.clear()
        until(lambda: len(committed_keys(ready)) == len(safe), MENDED, "committing by itself")
        write(folder / key_name(300), content)
        safe[key_name(300)] = content
    check_committed(ready, safe)


def test_many_open_files_are_not_promised_more_room_than_there_is(ready: Stack, proxy: FaultProxy) -> None:
    """What is open is in memory, and goes to the journal when it is closed: all must fit by then."""
    proxy.add(Fault(Kind.STATUS, method="PUT"))
    limit = "--journal-size", "4MiB", "--batch-age", "0.2", "--io-timeout", "0.5"
    content = noise(100_000)
    with ready.mount(*limit, write=True) as mount:
        folder = mount.path / "ds"
        files = {
            key_name(key): os.open(folder / key_name(key), os.O_WRONLY | os.O_CREAT) for key in range(200)
        }
        safe = dict.fromkeys(files, b"")
        with refusing(errno.ENOSPC):
            for name, file in files.items():
                os.write(file, content)
                safe[name] = content
        assert mount.stats()["journal"]["used_bytes"] <= 4 * MIB
        for file in files.values():
            os.close(file)
        assert mount.stats()["journal"]["used_bytes"] <= 4 * MIB
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == safe
        proxy.clear()
        until(lambda: len(committed_keys(ready)) == len(safe), MENDED, "committing by itself")
    assert 20 < sum(map(bool, safe.values())) < 42
    check_committed(ready, safe)


def test_who_waits_for_room_goes_on_when_there_is_some(ready: Stack, proxy: FaultProxy) -> None:
    proxy.add(Fault(Kind.STATUS, method="PUT"))
    limit = "--journal-size", "4MiB", "--batch-age", "0.2", "--io-timeout", "20"
    with ready.mount(*limit, write=True) as mount, ThreadPoolExecutor(1) as pool:
        content = noise(3 * MIB)
        write(mount.path / "ds" / key_name(0), content)
        waiting = pool.submit(write, mount.path / "ds" / key_name(1), content)
        until(lambda: mount.counters().get("journal.full"), what="somebody waiting")
        assert not waiting.done()
        proxy.clear()
        waiting.result(30)
    check_committed(ready, {key_name(0): content, key_name(1): content})


# -- S3 is away ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["refusing", "silent"])
def test_s3_may_be_away(ready: Stack, proxy: FaultProxy, how: str) -> None:
    content = {key_name(key): noise(50_000 * key, key) for key in range(6)}
    first, second, *others = content
    with ready.mount("--batch-age", "0.2", "--io-timeout", f"{LIMIT:g}", write=True) as mount:
        folder = mount.path / "ds"
        if how == "refusing":
            proxy.stop()
        else:
            proxy.add(Fault(Kind.STALL_HEAD, method=""))
        try:
            with in_time(), refusing(errno.EIO):
                write(folder / first, content[first], sync=True)
            assert any(first in line for line in mount.errors()), mount.log
            for name in (second, *others):
                with in_time():
                    write(folder / name, content[name])
            assert {path.name: path.read_bytes() for path in folder.iterdir()} == content
            assert not committed_keys(ready)
        finally:
            proxy.start() if how == "refusing" else proxy.clear()
        until(lambda: len(committed_keys(ready)) == len(content), MENDED, "committing by itself")
        assert not mount.stats()["journal"]["refused"]
    check_committed(ready, content)


def test_wrong_credentials_are_reported_and_nothing_is_lost(ready: Stack, proxy: FaultProxy) -> None:
    with ready.mount("--batch-age", "0.2", "--io-timeout", f"{LIMIT:g}", write=True) as mount:
        proxy.add(Fault(Kind.STATUS, method="PUT", status=403))
        with in_time(), refusing(errno.EIO):
            write(mount.path / "ds" / key_name(0), b"zero", sync=True)
        write(mount.path / "ds" / key_name(1), b"one")
        until(lambda: "403" in mount.log or "refused" in mount.log, what="a report")
        assert mount.terminate() == 1
        assert "2 datapoints stay in the journal" in mount.log
        mount.close()
    proxy.clear()
    with ready.mount("--batch-age", "0.2", write=True, path=mount.path) as mount:
        until(lambda: len(committed_keys(ready)) == 2, what="committing what was left")
    check_committed(ready, {key_name(0): b"zero", key_name(1): b"one"})


# -- Postgres is away ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_postgres(pg_server_factory: Callable[[], PostgresServer]) -> PostgresServer:
    """A server that may be stopped."""
    return pg_server_factory()


@pytest.fixture
def on_own_postgres(
    fuse: None, own_postgres: PostgresServer, rclone_server: S3Server, tmp_path: Path
) -> Iterator[Stack]:
    with open_stack(own_postgres, rclone_server, tmp_path) as opened:
        opened.register("ds")
        yield opened


@pytest.mark.parametrize("how", ["stop", "freeze"])
def test_postgres_may_be_away(on_own_postgres: Stack, how: str) -> None:
    stack = on_own_postgres
    content = {key_name(key): noise(30_000 * (key + 1), key) for key in range(3)}
    with stack.mount("--batch-age", "0.2", "--io-timeout", f"{LIMIT:g}", write=True) as mount:
        folder = mount.path / "ds"
        write(folder / key_name(0), content[key_name(0)], sync=True)
        kept = os.open(folder / key_name(1), os.O_RDWR | os.O_CREAT)
        os.write(kept, content[key_name(1)][:10_000])
        os.close(os.dup(kept))  # a close: the lease is accepted from here on
        getattr(stack.postgres, how)()
        try:
            with in_time(), refusing(errno.EIO):
                write(folder / key_name(2), content[key_name(2)])
            assert any("create" in line or "Postgres" in line for line in mount.errors()), mount.log
            with in_time():
                os.write(kept, content[key_name(1)][10_000:])
                os.close(kept)
            assert (folder / key_name(0)).read_bytes() == content[key_name(0)]
            assert (folder / key_name(1)).read_bytes() == content[key_name(1)]
        finally:
            stack.postgres.thaw()
            stack.postgres.start()
        until(lambda: committed_keys(stack) == {0, 1}, MENDED, "committing by itself")
        write(folder / key_name(2), content[key_name(2)], flags=os.O_TRUNC)
    check_committed(stack, content)


def write_twice(path: Path, content: bytes) -> int | None:
    """Write a file, a second time if the first fails; return the errno of the first."""
    try:
        write(path, content)
    except OSError as exc:
        write(path, content, flags=os.O_TRUNC)
        return exc.errno
    return None


@pytest.fixture
def pgproxy(stack: Stack) -> Iterator[PgProxy]:
    """A proxy before the stack's database."""
    with running_pgproxy(stack.db_url) as opened:
        yield opened


@pytest.mark.parametrize(
    "point", ["take:answered", "accept:answered", "begin:answered", "confirm:answered", "publish:answered"]
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_lost_answer_loses_nothing(stack: Stack, pgproxy: PgProxy, point: str, times: int) -> None:
    """Once, it is not noticed; if the second try's is lost as well, some call fails, and it mends."""
    left = times

    def lose(statement: Statement) -> bool:
        nonlocal left
        if left and (sql_point(statement) or "").replace("-again", "") == point:
            left -= 1
            return True
        return False

    stack.register("ds")
    content = {key_name(key): noise(1000 * key, key) for key in range(4)}
    with stack.mount(
        "--batch-age", "0.2", "--io-timeout", f"{LIMIT:g}", write=True, env={"DATAS3TFS_DB_URL": pgproxy.url}
    ) as mount:
        pgproxy.witness = lose
        for name, body in content.items():
            failure = write_twice(mount.path / "ds" / name, body)
            assert failure is None or (failure == errno.EIO and times > 1)
        until(lambda: len(committed_keys(stack)) == len(content), MENDED, "committing")
        while left:  # its outcome was looked up instead of trying it again: the next one is lost, then
            key = len(content)
            content[key_name(key)] = noise(1000 + key, key)
            write_twice(mount.path / "ds" / key_name(key), content[key_name(key)])
            until(lambda: len(committed_keys(stack)) == len(content), MENDED, "committing")
        assert not mount.stats()["journal"]["refused"]
    check_committed(stack, content)


# -- the journal cannot be used --------------------------------------------------------------------


def mount_refused(stack: Stack, *words: str | Path, env: Mapping[str, str] | None = None) -> str:
    path = stack.new_mountpoint()
    try:
        return refusal(stack.run("mount", path, "--io-timeout", "1", *words, env=env, check=False))
    finally:
        if device_at(path) is not None:
            unmount_lazily(path)


def test_a_journal_has_one_daemon(ready: Stack, tmp_path: Path) -> None:
    journal = tmp_path / "j"
    with ready.mount("--journal-dir", str(journal), write=True) as mount:
        done = ready.run(
            "mount", ready.new_mountpoint(), "--io-timeout", "1", "--journal-dir", journal, check=False
        )
        assert done.returncode == 1
        *warnings, last = done.stderr.splitlines()
        assert last.startswith("datas3tfs: error: ")
        assert str(journal) in last
        assert str(mount.pid) in last
        assert all(" WARNING " in line and "waiting" in line for line in warnings), warnings
        write(mount.path / "ds" / key_name(0), b"still alive", sync=True)
    assert committed_keys(ready) == {0}


def test_a_journal_of_somebody_else_is_refused(ready: Stack, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a directory away is root's")
    journal = tmp_path / "j"
    journal.mkdir()
    os.chown(journal, 12345, 12345)
    assert "belongs to another user" in mount_refused(ready, "--journal-dir", journal)
    assert "/dev/null" in mount_refused(ready, "--journal-dir", "/dev/null")


def test_a_journal_of_another_installation_is_refused(ready: Stack, tmp_path: Path) -> None:
    journal = tmp_path / "j"
    with ready.mount("--journal-dir", str(journal), write=True):
        pass
    with ready.postgres.database(migrated=False) as other:
        env = {"DATAS3TFS_DB_URL": other}
        ready.run("migrate", env=env)
        assert "another installation" in mount_refused(ready, "--journal-dir", journal, env=env)
