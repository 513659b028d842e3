"""Exporting ranges as TARs and re-reading datasets."""

import io
import tarfile
from contextlib import aclosing

import pytest

from datas3tfs.core.checksums import CHUNK
from datas3tfs.core.spans import Span
from datas3tfs.engine.export import export_tar
from datas3tfs.engine.snapshot import Snapshot
from datas3tfs.engine.verify import Problem, Progress, Verified, verify
from datas3tfs.errors import Corrupt, NotFound
from tests.engine.test_reader import damage
from tests.harness.world import Mounted, World, new_world, open_mounted

CONTENTS = [b"a" * 10, b"", b"c" * (3 * CHUNK + 5), b"d" * 511]


async def exported(mounted: Mounted, keys: Span) -> bytes:
    dataset = await mounted.world.dataset()
    snapshot = Snapshot.of(dataset, await mounted.world.catalog.dataranges(dataset.id))
    async with aclosing(export_tar(snapshot, keys, mounted.indices, mounted.world.stores)) as chunks:
        return b"".join([chunk async for chunk in chunks])


def members(data: bytes) -> dict[int, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), errorlevel=2) as archive:
        files = {int(member.name[:20]): archive.extractfile(member) for member in archive}
        return {key: file.read() for key, file in files.items() if file is not None}


async def filled() -> World:
    world = await new_world()
    await world.commit(CONTENTS, 0)
    await world.commit(CONTENTS, 10)
    return world


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (Span(0, 2**63), [0, 1, 2, 3, 10, 11, 12, 13]),
        (Span(1, 3), [1, 2]),
        (Span(2, 12), [2, 3, 10, 11]),
        (Span(3, 4), [3]),
        (Span(1, 2), [1]),
    ],
)
async def test_any_range_is_a_valid_tar_of_what_exists_in_it(keys: Span, expected: list[int]) -> None:
    async with open_mounted(await filled()) as mounted:
        data = await exported(mounted, keys)
    assert members(data) == {key: CONTENTS[key % 10] for key in expected}
    assert len(data) % 512 == 0
    assert data.endswith(bytes(1024))


async def test_a_whole_datarange_comes_back_byte_for_byte() -> None:
    world = await filled()
    (first, _) = await world.catalog.dataranges((await world.dataset()).id)
    async with open_mounted(world) as mounted:
        assert await exported(mounted, first.keys) == world.store.objects[first.data_key]


async def test_nothing_in_the_range_is_an_error() -> None:
    async with open_mounted(await filled()) as mounted:
        with pytest.raises(NotFound):
            await exported(mounted, Span(4, 10))


async def test_a_damaged_datapoint_is_not_exported() -> None:
    world = await filled()
    (first, _) = await world.catalog.dataranges((await world.dataset()).id)
    damage(world, first.data_key, 515)
    async with open_mounted(world) as mounted:
        with pytest.raises(Corrupt, match=r"00000000000000000000\.bin"):
            await exported(mounted, Span(0, 2))


async def reports(world: World) -> tuple[list[Problem], int, int]:
    dataset = await world.dataset()
    snapshot = Snapshot.of(dataset, await world.catalog.dataranges(dataset.id))
    problems, read, done = [], 0, 0
    async with (
        open_mounted(world) as mounted,
        aclosing(verify(snapshot, mounted.indices, world.stores)) as found,
    ):
        async for report in found:
            if isinstance(report, Problem):
                problems.append(report)
            elif isinstance(report, Progress):
                read += report.read
            elif isinstance(report, Verified):
                done += 1
    return problems, read, done


async def test_a_sound_dataset_verifies() -> None:
    world = await filled()
    problems, read, done = await reports(world)
    assert problems == []
    assert done == 2
    assert read >= 2 * sum(map(len, CONTENTS))


@pytest.mark.parametrize(("position", "key"), [(10, 0), (520, 0), (1540, 2), (3 * CHUNK + 515, 2)])
async def test_every_damaged_byte_is_found_and_its_datapoint_named(position: int, key: int) -> None:
    world = await filled()
    (first, _) = await world.catalog.dataranges((await world.dataset()).id)
    offsets = {0: 0, 2: 1536}
    damage(world, first.data_key, position if position < 3000 else offsets[2] + position)
    problems, _, done = await reports(world)
    assert {(problem.object_key, problem.key) for problem in problems} == {(first.data_key, key)}
    assert done == 2


async def test_a_missing_object_or_index_is_a_problem_of_the_datarange() -> None:
    world = await filled()
    first, second = await world.catalog.dataranges((await world.dataset()).id)
    del world.store.objects[first.data_key]
    del world.store.objects[second.index_key]
    problems, _, done = await reports(world)
    assert [(problem.object_key, problem.key) for problem in problems] == [
        (first.data_key, None),
        (second.data_key, None),
    ]
    assert done == 0
