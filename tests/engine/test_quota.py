"""What counts as used of a journal's room: also what is open and not in the log yet. It is a bound."""

from __future__ import annotations

import random
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from datas3tfs.core.journalcodec import NOTE_LIMIT, encode, note_bytes, seal_of
from datas3tfs.core.journalrecords import Accepted, EntryId, Renamed
from datas3tfs.core.model import DatasetId, HolderId
from datas3tfs.core.names import NAME_LIMIT, is_temporary
from datas3tfs.engine.committer import BatchLimits
from datas3tfs.engine.draft import INLINE_LIMIT
from datas3tfs.engine.entries import Entry, EntryState
from datas3tfs.errors import Datas3tError, Full, Unavailable
from tests.harness.world import new_world
from tests.harness.writing import Host, called, committed, open_host

ON_DEMAND = BatchLimits(64 << 20, 1e6)  # nothing is committed unless somebody asks
SMALL = bytes(100_000)  # goes into the log
ACTS = ["create", "create", "write", "write", "cut", "touch", "close", "close", "open", "unlink", "rename",
        "commit"]  # fmt: skip


@pytest.fixture
def jumping_clock() -> MockClock:
    """Time passes when nobody has anything to do, see `let_time_pass`."""
    return MockClock()


def counted(host: Host) -> int:
    """Return what is used, in the opinion of somebody who counts everything again."""
    entries = list(host.entries)
    large = sum(entry.size for entry in entries if entry.draft.is_own_file)
    small = sum(entry.size for entry in entries if entry.changed and not entry.draft.is_own_file)
    notes = sum(entry.changed + is_temporary(entry.name) for entry in entries)
    return host.store.log_bytes + large + small + notes * NOTE_LIMIT


async def test_open_files_count_before_they_are_closed(tmp_path: Path, jumping_clock: MockClock) -> None:
    """Small ones are in memory until then: closing them all must not find the journal too small."""
    world, limit = await new_world(), 4_000_000
    async with open_host(
        world, tmp_path, limits=ON_DEMAND, size=limit, segment_bytes=250_000, patience=1.0
    ) as host:
        host.gate.away["begin"] = Unavailable("away")
        entries = [await host.create(key) for key in range(300)]
        refused = 0
        for entry in entries:
            try:
                await host.journal.write(entry, 0, SMALL)
            except Full:
                refused += 1
            assert host.journal.quota.used == counted(host) <= limit
        assert refused > 250
        for entry in entries:
            await host.close(entry)
            assert host.journal.quota.used == counted(host) <= limit
        host.gate.away.clear()
        await host.committer.commit_closed()
        await host.emptied()
        assert host.journal.quota.used < limit // 4
    sizes = [len(content) for content in (await committed(world)).values()]
    assert (len(sizes), sizes.count(len(SMALL))) == (300, 300 - refused)


async def test_a_file_whose_time_is_set_again_and_again_does_not_fill_the_disk(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    limit = 4_000_000
    async with open_host(
        await new_world(), tmp_path, limits=ON_DEMAND, size=limit, segment_bytes=250_000, patience=1.0
    ) as host:
        await host.put(".kept", b"keeps the oldest segment")
        entry = await host.put(".file", SMALL)  # could not be committed to make room
        for second in range(300):
            await host.journal.touch(entry, second * 1_000_000_000)
            await host.journal.accept_unless_open(entry)
            assert host.journal.quota.used == counted(host) <= limit


async def test_files_without_content_fill_a_journal_too(tmp_path: Path, jumping_clock: MockClock) -> None:
    """Creating them, and giving them other names."""
    limit = 200_000
    async with open_host(
        await new_world(), tmp_path, limits=ON_DEMAND, size=limit, segment_bytes=20_000, patience=1.0
    ) as host:
        host.gate.away["begin"] = Unavailable("away")
        with suppress(Full):
            for key in range(5_000):
                await host.put(key, b"")
                assert host.journal.quota.used <= limit
        assert 1_500 < len(host.entries) < 4_000
        entry = host.entry(0)
        with suppress(Full):
            for number in range(2_000):
                await host.journal.rename(entry, host.dataset(), called(10_000 + number % 2))
                assert host.journal.quota.used <= limit
        host.journal.compact()  # of records that are all needed: it comes to an end
        host.gate.away.clear()
        await host.committer.commit_closed()


async def test_a_journal_full_of_temporary_files_lets_them_be_renamed_and_committed(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    world, limit = await new_world(), 1_000_000
    names: list[str] = []
    async with open_host(
        world, tmp_path, limits=ON_DEMAND, size=limit, segment_bytes=60_000, patience=1.0
    ) as host:
        with suppress(Full):
            for number in range(5_000):
                await host.put(f".{number}.tmp", bytes(500))
                names.append(f".{number}.tmp")
        start = trio.current_time()
        for key, name in enumerate(names):
            await host.journal.rename(host.entry(name), host.dataset(), called(key))
            assert host.journal.quota.used <= limit
        assert trio.current_time() == start, "nobody had to wait"
        await host.committer.commit_closed()
    assert len(await committed(world)) == len(names)
    assert 400 < len(names) < 2_000


async def test_who_waits_while_others_write_does_not_exceed_the_limit(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    """Many are slowed down at once, and each finds room for itself."""
    limit = 4_000_000
    async with open_host(
        await new_world(), tmp_path, limits=ON_DEMAND, size=limit, segment_bytes=250_000, patience=1.0
    ) as host:
        host.gate.away["begin"] = Unavailable("away")
        entries = [await host.create(key) for key in range(100)]

        async def write(entry: Entry) -> None:
            with suppress(Full):
                await host.journal.write(entry, 0, SMALL)
            assert host.journal.quota.used <= limit

        async with trio.open_nursery() as nursery:
            for entry in entries:
                nursery.start_soon(write, entry)
        assert sum(entry.size > 0 for entry in entries) > 30


async def test_what_is_read_after_its_commit_keeps_nobody_from_writing(
    tmp_path: Path, jumping_clock: MockClock
) -> None:
    async with open_host(
        await new_world(), tmp_path, limits=ON_DEMAND, size=2_000_000, segment_bytes=100_000, patience=1.0
    ) as host:
        for key in range(60):
            entry = await host.put(key, SMALL)
            host.journal.opened(entry, writable=False)
            await host.committer.commit([entry])
        assert host.journal.quota.used <= 500_000
        assert host.journal.read(entry, 0, 1 << 20) == SMALL


@pytest.mark.parametrize("seed", range(12))
async def test_the_count_is_right_whatever_is_done(
    seed: int, tmp_path: Path, jumping_clock: MockClock
) -> None:
    rng, limit = random.Random(seed), 1_000_000
    async with open_host(
        await new_world(), tmp_path, limits=ON_DEMAND, size=limit, segment_bytes=60_000, patience=0.1
    ) as host:
        open_: list[Entry] = []

        async def act() -> None:
            entries = [e for e in host.entries if e.state is not EntryState.COMMITTED]
            what = rng.choice(ACTS)
            name = called(rng.randrange(40)) if rng.random() < 0.7 else f".{rng.randrange(10)}"
            if what == "create":
                open_.append(await host.create(name))
                await host.journal.write(open_[-1], 0, bytes(rng.choice([0, 500, 50_000])))
            elif what == "commit" and rng.random() < 0.3:
                await host.committer.commit_closed()
            elif what == "close" and open_:
                await host.close(open_.pop(rng.randrange(len(open_))))
            elif not entries:
                return
            else:
                await change(what, rng.choice(open_ if open_ and what == "write" else entries), name)

        async def change(what: str, entry: Entry, name: str) -> None:
            if what == "write" and entry in open_:
                size = rng.choice([10, 1_000, INLINE_LIMIT, 150_000])
                await host.journal.write(entry, rng.randrange(entry.size + 100), bytes(size))
            elif what == "cut":
                await host.journal.truncate(entry, rng.randrange(entry.size + 1_000))
                await host.journal.accept_unless_open(entry)
            elif what == "touch":
                await host.journal.touch(entry, rng.randrange(10**6) * 10**9)
                await host.journal.accept_unless_open(entry)
            elif what == "open":
                await host.reopen(entry)
                open_.append(entry)
            elif what == "unlink":
                await host.journal.unlink(entry)
            elif what == "rename":
                await host.journal.rename(entry, host.dataset(), name)

        for _ in range(400):
            with suppress(Datas3tError):
                await act()
            gone = sum(entry.size for entry in {*open_} if not entry.linked and entry.draft.is_own_file)
            assert host.journal.quota.used == counted(host) + gone
            assert host.journal.quota.used <= limit + 2_000, "more than some notes about commits"
        for entry in open_:
            await host.close(entry)
        assert host.journal.quota.used == counted(host)


def test_no_note_about_a_file_is_longer_than_the_room_kept_for_it() -> None:
    holder = HolderId("33333333-3333-4333-8333-333333333333")
    number, dataset_id, dataset, name = EntryId(2**63), DatasetId(2**62), "d" * 200, "ä" * 127 + "."
    accepted = Accepted(number, dataset_id, dataset, name, 0, 2**47, 1)
    renamed = Renamed(number, dataset_id, dataset, name, number)
    assert len(name.encode()) == NAME_LIMIT
    for record in (accepted, renamed):
        size = sum(map(len, encode(record, seal_of(1, holder), 100)))
        assert size <= NOTE_LIMIT
        assert size <= note_bytes(dataset, name)
    assert note_bytes(dataset, name) == sum(map(len, encode(accepted, seal_of(1, holder), 100)))
