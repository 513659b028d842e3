"""What every ports.IndexCache must do: the memory twin, and the one on disk with all that befalls disks."""

from __future__ import annotations

import errno
import gc
import hashlib
import logging
import mmap
import os
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, contextmanager
from pathlib import Path

import diskcache
import pytest
import trio

from datas3tfs.cache import indices
from datas3tfs.cache.indices import LAYOUT_VERSION, DiskIndexCache, open_index_cache
from datas3tfs.errors import Unavailable
from datas3tfs.ports import IndexCache
from tests.harness.memory_cache import MemoryIndexCache

ROOMY = 1 << 30
ENTRY = 100_000  # bytes of an entry in tests of the limit; SQLite's own file counts too, at some 50 kB

Open = Callable[[], AbstractAsyncContextManager[IndexCache]]


def content(key: str, size: int = ENTRY) -> bytes:
    return hashlib.shake_128(key.encode()).digest(size)


@pytest.fixture(params=["memory", "disk"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """A way to open one and the same cache, again and again."""
    twin = MemoryIndexCache()

    @asynccontextmanager
    async def memory() -> AsyncIterator[IndexCache]:
        yield twin

    return memory if request.param == "memory" else lambda: open_index_cache(tmp_path, ROOMY)


def directory(cache_dir: Path) -> Path:
    return cache_dir / f"indices-v{LAYOUT_VERSION}"


def files(cache_dir: Path) -> list[Path]:
    return sorted(directory(cache_dir).rglob("*.val"))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


async def got(cache: IndexCache, key: str) -> bytes | None:
    view = await cache.get(key)
    return None if view is None else bytes(view)


async def present(cache: IndexCache, keys: list[str]) -> set[str]:
    return {key for key in keys if await cache.get(key) is not None}


async def store(cache_dir: Path, keys: list[str]) -> None:
    async with open_index_cache(cache_dir, ROOMY) as cache:
        for key in keys:
            await cache.put(key, content(key))


async def fill(cache_dir: Path, keys: list[str]) -> None:
    await store(cache_dir, keys)
    gc.collect()  # closes the connections of worker threads, so that all is in the table's file
    assert sorted(path.name for path in directory(cache_dir).glob("*.db*")) == ["cache.db"]


# -- the contract -----------------------------------------------------------------------------------


async def test_what_was_put_is_got_until_it_is_discarded(reopen: Open) -> None:
    async with reopen() as cache:
        assert await cache.get("one") is None
        await cache.discard("one")
        assert bytes(await cache.put("one", content("one"))) == content("one")
        assert bytes(await cache.put("two", content("two"))) == content("two")
        assert await got(cache, "one") == content("one")
        await cache.discard("one")
        assert await cache.get("one") is None
        assert await got(cache, "two") == content("two")


async def test_the_last_content_put_under_a_key_counts(reopen: Open) -> None:
    async with reopen() as cache:
        before = await cache.put("key", b"old")
        assert bytes(await cache.put("key", b"newer")) == b"newer"
        assert await got(cache, "key") == b"newer"
        assert bytes(before) == b"old"


async def test_an_entry_cannot_be_written_to(reopen: Open) -> None:
    async with reopen() as cache:
        for view in (await cache.put("key", b"content"), await cache.get("key")):
            assert view is not None
            assert view.readonly
            with pytest.raises(TypeError):
                view[0] = 0


async def test_an_entry_survives_reopening_and_views_survive_everything(reopen: Open) -> None:
    async with reopen() as cache:
        views = [await cache.put("key", content("key"))]
    async with reopen() as cache:
        views.append(await cache.get("key") or memoryview(b""))
        await cache.discard("key")
    assert [bytes(view) == content("key") for view in views] == [True, True]


async def test_many_tasks_may_use_it_at_once(reopen: Open) -> None:
    async def use(cache: IndexCache, key: str) -> None:
        assert bytes(await cache.put(key, content(key))) == content(key)
        assert await got(cache, key) == content(key)

    async with reopen() as cache:
        async with trio.open_nursery() as nursery:
            for i in range(40):
                nursery.start_soon(use, cache, f"key {i % 10}")
        assert len(await present(cache, [f"key {i}" for i in range(10)])) == 10


# -- on disk: mapped, private, limited ---------------------------------------------------------------


async def test_entries_are_mapped_files(tmp_path: Path) -> None:
    async with open_index_cache(tmp_path, ROOMY) as cache:
        view = await cache.put("key", content("key"))
        again = await cache.get("key")
    assert again is not None
    assert isinstance(view.obj, mmap.mmap)
    assert isinstance(again.obj, mmap.mmap)
    assert [file.read_bytes() for file in files(tmp_path)] == [content("key")]


async def test_the_directory_is_private_also_if_it_was_not(tmp_path: Path) -> None:
    directory(tmp_path).mkdir(mode=0o755)
    for cache_dir in (tmp_path, tmp_path / "not" / "there" / "yet"):
        async with open_index_cache(cache_dir, ROOMY):
            assert stat.S_IMODE(directory(cache_dir).stat().st_mode) == 0o700


async def test_what_is_used_survives_under_the_limit(tmp_path: Path) -> None:
    limit = 30 * ENTRY
    used, unused = ["used 1", "used 2"], [f"unused {i}" for i in range(60)]
    async with open_index_cache(tmp_path, limit) as cache:
        for key in used:
            await cache.put(key, content(key))
        for key in unused:
            await cache.put(key, content(key))
            assert await present(cache, used) == set(used)
            assert sum(file.stat().st_size for file in files(tmp_path)) <= limit
        left = await present(cache, unused)
    assert unused[-1] in left
    assert len(left) > 10, "no more is thrown away than must be"
    assert unused[0] not in left


async def test_views_outlive_eviction(tmp_path: Path) -> None:
    async with open_index_cache(tmp_path, 5 * ENTRY) as cache:
        views = {f"key {i}": await cache.put(f"key {i}", content(f"key {i}")) for i in range(30)}
        assert len(files(tmp_path)) <= 5
    assert all(bytes(view) == content(key) for key, view in views.items())


@pytest.mark.parametrize(("before", "after"), [(ROOMY, 10 * ENTRY), (10 * ENTRY, ROOMY)])
async def test_the_limit_given_at_opening_counts(tmp_path: Path, before: int, after: int) -> None:
    keys = [f"key {i}" for i in range(20)]
    for limit in (before, after):
        async with open_index_cache(tmp_path, limit) as cache:
            stored = sum(file.stat().st_size for file in files(tmp_path))
            assert stored <= limit
            for key in keys:
                await cache.put(key, content(key))
            found = await present(cache, keys)
        assert (len(found) == len(keys)) == (limit == ROOMY)


async def test_an_entry_larger_than_the_limit_works_but_is_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_index_cache(tmp_path, 3 * ENTRY) as cache:
        assert bytes(await cache.put("large", content("large", 5 * ENTRY))) == content("large", 5 * ENTRY)
        assert await cache.get("large") is None
        assert files(tmp_path) == []
        assert bytes(await cache.put("small", content("small"))) == content("small")
        assert await got(cache, "small") == content("small")
    assert warnings(caplog) == []


# -- on disk: shared between processes ---------------------------------------------------------------

WORKER = """
import hashlib, logging, random, sys
from pathlib import Path
import trio
from datas3tfs.cache.indices import open_index_cache

logging.basicConfig()

def content(key):
    return hashlib.shake_128(key.encode()).digest(50_000)

async def main(cache_dir, seed):
    rng, views, hits = random.Random(seed), {}, 0
    async with open_index_cache(Path(cache_dir), 1_000_000) as cache:
        for _ in range(300):
            key, step = f"key {rng.randrange(25)}", rng.randrange(8)
            if step == 0:
                await cache.discard(key)
            elif step < 4:
                views[key] = await cache.put(key, content(key))
            elif (found := await cache.get(key)) is not None:
                views[key], hits = found, hits + 1
    assert all(view == content(key) for key, view in views.items())
    print(hits)

trio.run(main, sys.argv[1], int(sys.argv[2]))
"""


def test_several_processes_share_a_directory(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        assert int(out) > 10
    assert sum(file.stat().st_size for file in files(tmp_path)) <= 1_000_000


async def test_what_one_process_stores_another_finds(tmp_path: Path) -> None:
    async with open_index_cache(tmp_path, ROOMY) as one, open_index_cache(tmp_path, ROOMY) as two:
        await one.put("key", content("key"))
        assert await got(two, "key") == content("key")
        await two.discard("key")
        assert await one.get("key") is None


# -- on disk: what cannot be used ----------------------------------------------------------------------


async def test_a_directory_that_cannot_be_made_is_named_at_opening(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache_dir in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/self/none")):
        with pytest.raises(Unavailable, match=str(cache_dir)):
            async with open_index_cache(cache_dir, ROOMY):
                pass


async def test_a_table_that_cannot_be_opened_is_named_at_opening(tmp_path: Path) -> None:
    (directory(tmp_path) / "cache.db").mkdir(parents=True)
    with pytest.raises(Unavailable, match=str(directory(tmp_path))):
        async with open_index_cache(tmp_path, ROOMY):
            pass


async def test_the_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    myself = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: myself + 1)
    with pytest.raises(Unavailable, match="another user"):
        async with open_index_cache(tmp_path, ROOMY):
            pass


# -- on disk: what fails later -------------------------------------------------------------------------


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let writes beyond *size* fail as on a full disk (with EFBIG; Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_costs_one_warning_and_leaves_no_halves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = content("large", 3 << 20)
    async with open_index_cache(tmp_path, ROOMY) as cache:
        await cache.put("small", content("small"))
        with no_file_above(1 << 20):
            for key in ("one", "two"):
                assert bytes(await cache.put(key, large)) == large
                assert await cache.get(key) is None
        assert [file.stat().st_size for file in files(tmp_path)] == [ENTRY]
        assert await got(cache, "small") == content("small")
        assert bytes(await cache.put("one", large)) == large
        assert await got(cache, "one") == large
    assert len(warnings(caplog)) == 1
    assert str(tmp_path) in warnings(caplog)[0]


async def test_a_table_that_stays_locked_costs_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(indices, "_LOCK_SECONDS", 0.01)
    async with open_index_cache(tmp_path, ROOMY) as cache:
        await cache.put("key", content("key"))
        with closing(sqlite3.connect(directory(tmp_path) / "cache.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert bytes(await cache.put("other", content("other"))) == content("other")
            assert await cache.get("key") is None
            await cache.discard("key")
            other.execute("ROLLBACK")
        assert len(files(tmp_path)) == 1
        assert await got(cache, "key") == content("key")
    assert len(warnings(caplog)) == 1


async def test_a_process_without_mappings_left_reads_without_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> mmap.mmap:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    async with open_index_cache(tmp_path, ROOMY) as cache:
        with monkeypatch.context() as patch:
            patch.setattr(mmap, "mmap", refuse)
            assert bytes(await cache.put("key", content("key"))) == content("key")
            assert await cache.get("key") is None
        assert await got(cache, "key") == content("key")
    assert len(warnings(caplog)) == 1


# diskcache leaves a file it has just opened to the garbage collector when its transaction then fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_directory_that_vanishes_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(cache: DiskIndexCache, key: str) -> None:
        assert await got(cache, key) in (None, content(key))
        assert bytes(await cache.put(key, content(key))) == content(key)
        await cache.discard(key)

    async with open_index_cache(tmp_path, ROOMY) as cache:
        view = await cache.put("key", content("key"))
        shutil.rmtree(directory(tmp_path))
        async with trio.open_nursery() as nursery:
            for i in range(20):
                nursery.start_soon(use, cache, f"key {i}")
        assert bytes(view) == content("key")
        await cache.put("key", content("key"))
        assert await got(cache, "key") == content("key")
    assert len(warnings(caplog)) <= 1
    assert stat.S_IMODE(directory(tmp_path).stat().st_mode) == 0o700


# -- on disk: what is damaged --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damaged",
    [
        lambda table: b"garbage" * 1000,
        lambda table: b"",
        lambda table: table[:100],
        lambda table: table[: len(table) // 2],
        lambda table: table[:100] + b"\xff" * (len(table) - 100),
        lambda table: b"\0" * len(table),
    ],
)
async def test_a_damaged_table_is_begun_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: Callable[[bytes], bytes]
) -> None:
    await fill(tmp_path, ["one", "two"])
    table = directory(tmp_path) / "cache.db"
    table.write_bytes(damaged(table.read_bytes()))
    async with open_index_cache(tmp_path, ROOMY) as cache:
        assert await cache.get("one") is None
        assert bytes(await cache.put("one", content("one"))) == content("one")
        assert await got(cache, "one") == content("one")
    assert len(warnings(caplog)) == (table.stat().st_size > 0 and damaged(b"x" * 1000) != b"")
    assert os.listdir(tmp_path) == [directory(tmp_path).name], "nothing is left behind"
    assert stat.S_IMODE(directory(tmp_path).stat().st_mode) == 0o700


def spoil_page_of(table: Path, name: str) -> None:
    """Overwrite the first page of the index or table *name* inside the SQLite file."""
    with closing(sqlite3.connect(table)) as database:
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    with table.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


@pytest.mark.parametrize("name", ["Cache_key_raw", "Cache", "Settings"])
async def test_damage_that_opening_may_not_see_costs_one_warning_and_a_miss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    await fill(tmp_path, ["one", "two"])
    spoil_page_of(directory(tmp_path) / "cache.db", name)
    async with open_index_cache(tmp_path, ROOMY) as cache, open_index_cache(tmp_path, ROOMY) as other:
        assert await cache.get("one") is None
        assert bytes(await cache.put("two", content("two"))) == content("two")
        assert await got(cache, "two") == content("two")
        assert await got(other, "two") in (None, content("two"))
        assert bytes(await other.put("two", content("two"))) == content("two")
        assert await got(other, "two") == content("two")
    assert 1 <= len(warnings(caplog)) <= 2  # at most one for each of the two
    async with open_index_cache(tmp_path, ROOMY) as cache:
        assert await got(cache, "two") == content("two")


async def test_several_that_meet_the_damage_at_once_begin_one_table_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(cache: DiskIndexCache, key: str) -> None:
        assert await got(cache, key) in (None, content(key))
        assert bytes(await cache.put(key, content(key))) == content(key)

    keys = [f"key {i}" for i in range(20)]
    await fill(tmp_path, keys)
    spoil_page_of(directory(tmp_path) / "cache.db", "Cache_key_raw")
    async with open_index_cache(tmp_path, ROOMY) as cache:
        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(use, cache, key)
        for key in keys:
            await cache.put(key, content(key))
        assert await present(cache, keys) == set(keys)
    assert len([line for line in warnings(caplog) if "damaged" in line]) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE Cache SET filename = NULL",
        "UPDATE Cache SET filename = 7",
        "UPDATE Cache SET filename = x'00ff'",
        "UPDATE Cache SET filename = 'a' || char(0) || 'b'",
        "UPDATE Cache SET filename = ''",
        "UPDATE Cache SET mode = 1",
        "UPDATE Cache SET mode = 'x'",
        "UPDATE Cache SET size = 'x'",
        "DELETE FROM Settings",
        "UPDATE Settings SET value = 'x'",
        "INSERT INTO Settings VALUES ('disk_colour', 1)",
        "DROP TABLE Cache",
        "DROP TABLE Settings",
    ],
)
async def test_a_table_that_says_nonsense_is_never_more_than_a_miss(tmp_path: Path, statement: str) -> None:
    await fill(tmp_path, ["one", "two"])
    with closing(sqlite3.connect(directory(tmp_path) / "cache.db")) as database, database:
        database.execute(statement)
    async with open_index_cache(tmp_path, ROOMY) as cache:
        assert await got(cache, "one") in (None, content("one"))
        assert bytes(await cache.put("one", content("one"))) == content("one")
        await cache.discard("two")
        assert bytes(await cache.put("three", content("three"))) == content("three")
        assert await got(cache, "three") == content("three")


async def test_an_entry_whose_file_is_damaged_is_what_is_left_of_it(tmp_path: Path) -> None:
    await fill(tmp_path, ["key"])
    (file,) = files(tmp_path)
    damages: list[tuple[Callable[[], object], bytes | None]] = [
        (lambda: os.truncate(file, 50), content("key")[:50]),
        (lambda: os.truncate(file, 0), None),
        (lambda: file.unlink(), None),
        (lambda: file.mkdir(), None),
    ]
    for damage, expected in damages:
        damage()
        async with open_index_cache(tmp_path, ROOMY) as cache:
            assert await got(cache, "key") == expected
    async with open_index_cache(tmp_path, ROOMY) as cache:
        assert bytes(await cache.put("key", content("key"))) == content("key")
        assert await got(cache, "key") == content("key")


class Trap:
    """Whoever loads its pickle makes a directory."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.sprung),)


@pytest.mark.parametrize("inline_below", [0, 1 << 20])
async def test_a_pickle_is_never_loaded(tmp_path: Path, inline_below: int) -> None:
    sprung = tmp_path / "sprung"
    with diskcache.Cache(str(directory(tmp_path)), disk_min_file_size=inline_below) as planted:
        planted.set("value", Trap(sprung))
        planted.set(Trap(sprung), b"key")
        planted.set("text", "not bytes")
        planted.set("number", 7)
    async with open_index_cache(tmp_path, ROOMY) as cache:
        for key in ("value", "text", "number"):
            assert await cache.get(key) is None
        assert bytes(await cache.put("value", content("value"))) == content("value")
        assert await got(cache, "value") == content("value")
        await cache.discard("text")
    with diskcache.Cache(str(directory(tmp_path))) as planted:
        planted.set("value", Trap(sprung))
    async with open_index_cache(tmp_path, 1000) as cache:  # everything is evicted
        await cache.put("other", content("other"))
    assert not sprung.exists()
