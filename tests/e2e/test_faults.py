"""Whatever S3, Postgres or the network do: the right bytes or EIO, in time, and it mends by itself."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.harness.archives import key_name, samples, write_folder
from tests.harness.faultproxy import Fault, FaultProxy, Kind
from tests.harness.mounts import Mount, Stack, open_stack, refusing, until
from tests.harness.postgres import PostgresServer
from tests.harness.s3 import S3Server

LIMIT = 2.0  # --io-timeout
MARGIN = 3.0  # for the machine, which runs other things as well
MENDED = 20.0  # until all is well again: back-off pauses are a few seconds

MADE = samples([0, 1, 700, 5000, 300_000, 1_500_000])
CONTENT = {sample.name: sample.content for sample in MADE}


def read(path: Path) -> bytes | int:
    """Return a file's content, or the errno. Fails if a call takes longer than it may."""
    try:
        begun = time.monotonic()
        handle = os.open(path, os.O_RDONLY)
        try:
            content = b""
            while True:
                assert time.monotonic() - begun < LIMIT + MARGIN
                begun = time.monotonic()
                if not (part := os.read(handle, 1 << 20)):
                    return content
                content += part
        finally:
            os.close(handle)
    except OSError as exc:
        assert time.monotonic() - begun < LIMIT + MARGIN
        return exc.errno or -1


def read_all(folder: Path) -> dict[str, bytes | int]:
    """Read all files there must be at once, as `read` does."""
    with ThreadPoolExecutor(len(CONTENT)) as pool:
        return dict(zip(CONTENT, pool.map(read, [folder / name for name in CONTENT]), strict=True))


def is_mended(folder: Path) -> bool:
    return read_all(folder) == CONTENT


# In groups, all of which are tried at once: each takes the whole limit and then the time to mend.
GROUPS = {
    "broken transfers": {
        "truncated": Fault(Kind.TRUNCATE),
        "reset": Fault(Kind.RESET),
        "stalled": Fault(Kind.STALL_BODY),
        "silent": Fault(Kind.STALL_HEAD),
        "dribbling": Fault(Kind.DRIBBLE),
        "connection-lost": Fault(Kind.LOSE_ANSWER),
    },
    "refusals and pages": {
        "500": Fault(Kind.STATUS, status=500),
        "503": Fault(Kind.STATUS, status=503),
        "403": Fault(Kind.STATUS, status=403),
        "200-with-a-page": Fault(Kind.PAGE),
        "404-with-a-page": Fault(Kind.PAGE_404),
    },
    "wrong bytes": {
        "range-ignored": Fault(Kind.IGNORE_RANGE),
        "range-shifted": Fault(Kind.SHIFT),
        "range-shifted-by-much": Fault(Kind.SHIFT, shift=100_000),
        "range-shifted-and-lied": Fault(Kind.LIE),
        "range-shifted-a-byte-and-lied": Fault(Kind.LIE, shift=1),
        "bit-flipped": Fault(Kind.CORRUPT),
    },
}
FAULTS = {name: fault for group in GROUPS.values() for name, fault in group.items()}
# These spoil whatever they meet, also an index: then it stays corrupt for half a minute, or is waited for
# as long as a large one. What becomes of such indices is in test_mount_indices.py.
DATA_ONLY = {"bit-flipped", "dribbling"}
PHASES = ("once", "cold", "warm")


@dataclass(frozen=True, slots=True)
class Faulty:
    """A mount whose S3 requests go through the proxy; three datasets for every fault, all alike."""

    mount: Mount
    proxy: FaultProxy


@pytest.fixture(scope="module")
def faulty(new_stack: Callable[..., Stack], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    stack = new_stack()
    folder = write_folder(tmp_path_factory.mktemp("faulty") / "src", MADE)
    datasets = [f"{phase}-{name}" for phase in PHASES for name in FAULTS]
    with FaultProxy(stack.s3.process.port) as proxy:
        stack.register(*datasets, endpoint=proxy.endpoint)
        stack.ingest_into_each(datasets, folder, datarange_bytes=1 << 20)
        with stack.mount(io_timeout=LIMIT) as opened:
            yield Faulty(opened, proxy)


def begin(faulty: Faulty, name: str, phase: str, times: int | None = None) -> Path:
    """Let a fault happen to the requests of its dataset for *phase*; return the dataset's directory."""
    folder = faulty.mount.path / f"{phase}-{name}"
    if phase == "warm" or name in DATA_ONLY:
        os.listdir(folder)  # its indices are known when trouble begins
    faulty.proxy.add(replace(FAULTS[name], path=f"/{folder.name}/dataranges/", times=times))
    return folder


@pytest.mark.parametrize("group", GROUPS)
def test_no_fault_of_s3_lets_a_wrong_byte_through(faulty: Faulty, group: str) -> None:
    folders = [begin(faulty, name, phase) for name in GROUPS[group] for phase in ("cold", "warm")]
    with ThreadPoolExecutor(len(folders)) as pool:
        try:
            outcomes = list(pool.map(read_all, folders))
        finally:
            faulty.proxy.clear()
        for folder, outcome in zip(folders, outcomes, strict=True):
            assert errno.EIO in outcome.values(), f"{folder.name}: the fault did not happen"
            for file, got in outcome.items():
                assert got in (CONTENT[file], errno.EIO), f"{folder.name}/{file}"
        until(lambda: all(pool.map(is_mended, folders)), MENDED, "mending")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_passes_is_not_noticed(faulty: Faulty, name: str) -> None:
    assert read_all(begin(faulty, name, "once", times=1)) == CONTENT


def test_what_could_not_be_read_is_logged_by_object_and_datapoint(faulty: Faulty) -> None:
    lines = [line for line in faulty.mount.errors() if "/warm-bit-flipped/" in line]
    assert lines
    for line in lines:
        assert ".tar" in line
        assert any(name in line for name in CONTENT), line
    assert len(lines) == len(set(lines))


# -- S3 is away ------------------------------------------------------------------------------------


def in_time(action: Callable[[], object]) -> None:
    """Fail unless *action* gives EIO before the limit."""
    begun = time.monotonic()
    with refusing(errno.EIO):
        action()
    assert time.monotonic() - begun < LIMIT + MARGIN


@pytest.fixture
def two(stack: Stack, tmp_path: Path) -> Stack:
    """A stack with two equal datasets, `seen` and `unseen`."""
    stack.register("seen", "unseen")
    stack.ingest_into_each(["seen", "unseen"], write_folder(tmp_path / "src", MADE))
    return stack


def test_s3_may_go_and_come_back(two: Stack) -> None:
    name = key_name(4)
    with two.mount(io_timeout=LIMIT) as opened:
        seen, unseen = opened.path / "seen", opened.path / "unseen"
        assert read(seen / name) == CONTENT[name]
        two.s3.stop()
        try:
            assert read(seen / name) == CONTENT[name]
            assert sorted(os.listdir(seen)) == sorted(CONTENT)
            assert (seen / key_name(5)).stat().st_size == len(CONTENT[key_name(5)])
            assert not (seen / key_name(99)).exists()
            assert sorted(os.listdir(opened.path)) == ["seen", "unseen"]
            in_time(lambda: os.pread(os.open(seen / key_name(5), os.O_RDONLY), 10, 1_000_000))
            in_time(lambda: os.listdir(unseen))
            in_time(lambda: os.stat(unseen / name))
        finally:
            two.s3.start()
        until(lambda: is_mended(seen), MENDED, "mending")
        until(lambda: is_mended(unseen), MENDED, "mending")


def test_a_mount_ends_at_once_when_told_although_s3_is_silent(
    stack: Stack, proxy: FaultProxy, tmp_path: Path
) -> None:
    stack.register("d", endpoint=proxy.endpoint)
    stack.ingest("d", write_folder(tmp_path / "src", MADE))
    with stack.mount() as opened, ThreadPoolExecutor(1) as pool:
        os.listdir(opened.path / "d")
        proxy.add(Fault(Kind.STALL_HEAD))
        before = proxy.requests("GET")
        reading = pool.submit((opened.path / "d" / key_name(5)).read_bytes)
        until(lambda: proxy.requests("GET") > before, what="the read asking S3")
        begun = time.monotonic()
        assert opened.terminate() == 0
        assert time.monotonic() - begun < 10
        assert isinstance(reading.exception(10), OSError)


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
        yield opened


@pytest.mark.parametrize("how", ["stop", "freeze"])
def test_postgres_may_go_and_come_back(on_own_postgres: Stack, tmp_path: Path, how: str) -> None:
    stack = on_own_postgres
    stack.register("seen", "unseen")
    stack.ingest_into_each(["seen", "unseen"], write_folder(tmp_path / "src", MADE))
    later = write_folder(tmp_path / "later", samples([20], first=50))
    with stack.mount(io_timeout=LIMIT) as opened:
        seen, unseen = opened.path / "seen", opened.path / "unseen"
        assert read(seen / key_name(2)) == CONTENT[key_name(2)]
        getattr(stack.postgres, how)()
        try:
            assert read_all(seen) == CONTENT  # from S3, which needs no Postgres
            assert sorted(os.listdir(seen)) == sorted(CONTENT)
            assert sorted(os.listdir(opened.path)) == ["seen", "unseen"]
            in_time(lambda: os.listdir(unseen))
            in_time(lambda: os.stat(unseen / key_name(2)))
        finally:
            stack.postgres.thaw()
            stack.postgres.start()
        until(lambda: is_mended(unseen), MENDED, "mending")
        stack.ingest("seen", later, start=50)
        # The port promises a second, once it has a connection again: pauses between attempts are up to 2 s.
        until(lambda: (seen / key_name(50)).exists(), 4.0, "the new one appearing")
        assert (seen / key_name(50)).read_bytes() == (later / key_name(50)).read_bytes()
