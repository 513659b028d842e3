"""Where datapoints lie: what is concatenated is a valid TAR of exactly those that exist."""

import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3tfs.core.checksums import crc32c
from datas3tfs.core.spans import Span
from datas3tfs.core.tar import END_OF_ARCHIVE
from datas3tfs.engine.indices import open_indices
from datas3tfs.engine.locating import Located, locate
from datas3tfs.errors import Corrupt, Invalid, NotFound, Unavailable
from tests.harness.memory_catalog import MemoryCatalog
from tests.harness.uploading import Archive, Plan, Stepped, archive_of, open_receiver, put
from tests.harness.world import World, new_world


async def located(world: World, keys: Span, *, checksums: bool = False) -> list[Located]:
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        return await locate(world.catalog, indices, world.stores, "photos", keys, checksums=checksums)


def downloaded(world: World, found: list[Located]) -> dict[str, bytes]:
    """What a client has that puts the segments one behind the other."""
    body = b"".join(world.store.client_get(one.url, one.span) for one in found) + END_OF_ARCHIVE
    with tarfile.open(fileobj=io.BytesIO(body), mode="r:") as opened:
        return {info.name: opened.extractfile(info).read() for info in opened if info.isreg()}  # type: ignore[union-attr]  # regular files have content


async def uploaded(world: World, archive: Archive) -> None:
    await world.dataset()
    async with open_receiver(world) as receiver:
        keys = Span(archive.first, archive.first + len(archive.contents))
        grant = await receiver.start("photos", keys, len(archive.body))
        put(world, grant, archive.body, archive.records)
        await receiver.complete(grant.upload.id)


FORMS = [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]
RANGES = [(0, 3, 1024), (3, 2, 10240), (9, 1, 512), (10, 4, 777), (20, 5, 1024)]  # first, count, end
ENTRIES = {
    f"{key:020d}.bin": bytes([key]) * (key * 199 % 1400)
    for first, count, _ in RANGES
    for key in range(first, first + count)
}


@asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    world = await new_world()
    for number, (first, count, end) in enumerate(RANGES):
        contents = [ENTRIES[f"{key:020d}.bin"] for key in range(first, first + count)]
        await uploaded(world, archive_of(contents, first, form=FORMS[number % 3], mtime=1.5, end=end))
    yield world


@given(st.integers(0, 26), st.integers(1, 27))
@settings(max_examples=60, deadline=None)
async def test_any_range_over_any_gaps_is_a_valid_tar(first: int, count: int) -> None:
    async with a_world() as world:
        keys = Span(first, first + count)
        expected = {name: body for name, body in ENTRIES.items() if int(name[:20]) in keys}
        if not expected:
            with pytest.raises(NotFound):
                await located(world, keys)
            return
        found = await located(world, keys)
        assert downloaded(world, found) == expected
        assert [one.keys.start for one in found] == sorted(one.keys.start for one in found)
        assert sum(one.keys.length for one in found) == len(expected)


async def test_a_whole_datarange_comes_without_the_end_of_its_archive() -> None:
    async with a_world() as world:
        found = await located(world, Span(0, 5))
        assert [one.span.stop for one in found] == [
            one.datarange.size - end for one, end in zip(found, (1024, 10240), strict=True)
        ]


async def test_checksums_are_given_where_they_are_known() -> None:
    world = await new_world()
    await world.commit([b"a", b"b"])
    bare = await world.commit([b"c", b"d"], 2)
    world.store.objects[bare.index_key] = archive_of([b"c", b"d"], 2).go_index
    found = await located(world, Span(1, 4), checksums=True)
    assert [one.crcs for one in found] == [[crc32c(b"b")], [None, None]]
    assert [one.crcs for one in await located(world, Span(1, 4))] == [None, None]


async def test_what_does_not_exist() -> None:
    world = await new_world()
    with pytest.raises(NotFound):
        await located(world, Span(0, 10))
    await world.dataset()
    assert await located(world, Span(0, 10)) == []
    await world.commit([b"a"], 5)
    with pytest.raises(NotFound, match="no dataranges found for datapoints 6-9 in photos"):
        await located(world, Span(6, 10))
    async with open_indices(world.cache, world.stores, world.counters) as indices:
        with pytest.raises(Invalid):
            await locate(world.catalog, indices, world.stores, "../etc", Span(0, 1))


async def test_unfinished_uploads_are_not_there() -> None:
    world = await new_world()
    await world.dataset()
    async with open_receiver(world) as receiver:
        archive = archive_of([b"a"])
        grant = await receiver.start("photos", Span(0, 1), len(archive.body))
        put(world, grant, archive.body, archive.go_index)
        assert await located(world, Span(0, 1)) == []
        await receiver.complete(grant.upload.id)
    assert len(await located(world, Span(0, 1))) == 1


async def test_one_question_to_the_catalog_however_much_is_asked_for() -> None:
    async with a_world() as world:
        plan = Plan()
        catalog: MemoryCatalog = Stepped(world.catalog, plan)  # type: ignore[assignment]  # by getattr
        async with open_indices(world.cache, world.stores, world.counters) as indices:
            found = await locate(catalog, indices, world.stores, "photos", Span(0, 100))
        assert len(found) == len(RANGES)
        assert plan.seen == ["overlap"]


async def test_indices_come_from_the_cache() -> None:
    async with a_world() as world:
        await located(world, Span(0, 100))
        world.store.gets.clear()
        assert len(await located(world, Span(0, 100))) == len(RANGES)
        assert world.store.gets == []


async def test_an_index_that_is_damaged_or_away_is_said_as_it_is() -> None:
    async with a_world() as world:
        world.failing.fail("get", world.failing.calls["get"] + 1, Unavailable("away"))
        with pytest.raises(Unavailable):
            await located(world, Span(0, 2))
        (one,) = await located(world, Span(0, 2))
        world.store.objects[one.datarange.index_key] = b"junk"
        world.cache.entries.clear()
        with pytest.raises(Corrupt):
            await located(world, Span(0, 2))


async def test_no_url_shows() -> None:
    async with a_world() as world:
        assert "signature=" not in repr(await located(world, Span(0, 2)))
