"""Everybody changes a dataset at once: uploads, aggregates, adoptions, removals. Nothing is lost or left."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from functools import partial

import pytest
import trio

from datas3tfs.core.model import Datarange, Upload, UploadIntent
from datas3tfs.core.names import staged_index_key
from datas3tfs.core.spans import Span
from tests.harness.catalogs import World, outcome

SEED = 4711
TASKS, STEPS = 8, 30
BLOCK, BLOCKS = 10, 12  # keys come in blocks: so dataranges often are neighbours


class Chaos:
    """Servers that do whatever they may, over both sets of connections; what S3 would have is kept."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.outcomes: Counter[str] = Counter()
        self.put: set[str] = set()  # keys of all objects that may lie in the bucket
        self._numbers = itertools.count()

    async def server(self, seed: int) -> None:
        """Do random things."""
        rng = random.Random(seed)
        acts = {
            "upload": self.upload,
            "aggregate": self.aggregate,
            "adopt": self.adopt,
            "remove": self.remove,
            "clear": self.clear,
            "sweep": self.sweep,
        }
        for _ in range(STEPS):
            (word,) = rng.choices(list(acts), weights=[8, 8, 3, 3, 0.4, 1])
            self.outcomes[f"{word} {await outcome(partial(acts[word], rng))}"] += 1

    def _keys(self, rng: random.Random) -> Span:
        start = rng.randrange(BLOCKS)
        stop = min(BLOCKS, start + rng.randrange(1, 4))
        return Span(start * BLOCK, stop * BLOCK)

    async def upload(self, rng: random.Random) -> None:
        """Upload some keys, to whatever end."""
        presigned = rng.random() < 0.5
        intent = UploadIntent(self.world.dataset_id, self._keys(rng), 1, presigned=presigned)
        await self._finish(rng, intent)

    async def aggregate(self, rng: random.Random) -> None:
        """Merge dataranges that are adjacent when they are looked at."""
        found = (await self.world.there.reader.overlap("cats", self._keys(rng))).dataranges
        run = found[:1]
        for item in found[1:]:
            if item.keys.start == run[-1].keys.stop:
                run.append(item)
        keys = Span(run[0].keys.start, run[-1].keys.stop) if run else Span(0, 1)
        replaces = tuple(item.id for item in run)
        if len(replaces) >= 2:
            presigned = rng.random() < 0.5
            intent = UploadIntent(self.world.dataset_id, keys, 0, presigned=presigned, replaces=replaces)
            await self._finish(rng, intent)

    async def _finish(self, rng: random.Random, intent: UploadIntent) -> None:
        uploads = rng.choice((self.world.here, self.world.there)).uploads
        upload = await uploads.begin(intent)
        await uploads.confirm(upload.id)
        self._objects_of(upload)
        try:
            if rng.random() < 0.1:
                self.world.expire(upload.id)  # … and it publishes nevertheless, if the sweeper is late
            if rng.random() < 0.8:
                await uploads.publish(upload.id, 9)
        finally:
            await self.world.there.uploads.abandon(upload.id)

    def _objects_of(self, upload: Upload) -> None:
        self.put |= {upload.data_key, upload.index_key}
        if upload.intent.presigned:
            self.put.add(staged_index_key(upload.data_key))

    async def adopt(self, rng: random.Random) -> None:
        """Adopt an object of another's."""
        name = f"found/{rng.choice((next(self._numbers), 1))}"
        keys = self._keys(rng)
        dataranges = self.world.here.dataranges
        made = await dataranges.adopt(self.world.dataset_id, keys, f"{name}.tar", f"{name}.index", 1)
        self.put |= {made.data_key, made.index_key}

    async def remove(self, rng: random.Random) -> None:
        """Remove a datarange that was there a moment ago."""
        visible = await self.world.visible()
        if visible:
            await self.world.there.dataranges.remove(self.world.dataset_id, rng.choice(visible).keys)

    async def clear(self, _: random.Random) -> None:
        """Remove all."""
        await self.world.there.dataranges.clear(self.world.dataset_id)

    async def sweep(self, _: random.Random) -> None:
        """Abandon what has expired."""
        await self.world.here.uploads.abandon_expired()


def objects_of(dataranges: list[Datarange]) -> set[str]:
    return {key for item in dataranges for key in (item.data_key, item.index_key)}


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
async def test_whatever_is_done_at_once_every_object_is_shown_or_deleted(world: World, seed: int) -> None:
    chaos = Chaos(world)
    async with trio.open_nursery() as nursery:
        for task in range(TASKS):
            nursery.start_soon(chaos.server, 100 * seed + task)
    kinds = {text.rpartition(" ")[2] for text in chaos.outcomes}
    assert kinds <= {"done", "Conflict", "NotFound"}
    for word in ("upload", "aggregate", "adopt", "remove"):
        assert chaos.outcomes[f"{word} done"] > 0, chaos.outcomes
    assert world.counters.get("sql.retry") == 0
    await world.here.uploads.abandon_expired()
    visible = await world.visible()
    world.fall_due()
    doomed = set(await world.due())
    assert not doomed & objects_of(visible), "what is shown is never deleted"
    assert chaos.put == doomed | objects_of(visible), "what is not shown is deleted"
    await world.there.dataranges.clear(world.dataset_id)
    everything = UploadIntent(world.dataset_id, Span(0, BLOCK * BLOCKS), 1)
    await world.here.uploads.begin(everything)  # no claim was left behind
