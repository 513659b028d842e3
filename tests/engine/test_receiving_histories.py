"""Whatever clients do in whatever order, wherever the server dies: nothing wrong shows, nothing is left."""

import itertools
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

from hypothesis import event, given, settings
from hypothesis import strategies as st

from datas3tfs.core.model import Datarange
from datas3tfs.core.spans import Span
from datas3tfs.core.uploadcheck import InspectionLimits
from datas3tfs.engine.granting import Grant
from datas3tfs.engine.receiving import Receiver
from datas3tfs.engine.sweeper import sweep
from datas3tfs.errors import Datas3tError, Unavailable
from tests.harness.archives import noise
from tests.harness.memory_objects import Refused
from tests.harness.uploading import Archive, Crash, Plan, archive_of, open_stepped_receiver
from tests.harness.world import World, new_world, open_mounted

# The first two want some of the same keys. What has 4 KiB is put in parts, and every header is looked at.
ARCHIVES = [
    archive_of([b"a", b"bb", b"ccc"]),
    archive_of([noise(3000, 1), noise(3000, 2)], 2),
    archive_of([b"d" * 700, b""], 10),
    archive_of([noise(9000, 3)], 12),
]
LIMITS = InspectionLimits(4096, 1 << 30)
ATTEMPT = UUID(int=7)


@dataclass
class Client:
    """One who uploads one archive, and keeps all that it was ever granted."""

    archive: Archive
    grants: list[Grant] = field(default_factory=list)

    @property
    def keys(self) -> Span:
        return Span(self.archive.first, self.archive.first + len(self.archive.contents))

    async def act(self, what: str, world: World, receiver: Receiver) -> None:
        """Do one thing with the grant got last, or put junk where an older one still lets it."""
        if what == "upload":
            for part in ("start", "put", "complete"):
                await self.act(part, world, receiver)
        elif what in ("start", "start again"):
            attempt = ATTEMPT if what == "start again" else None
            size = len(self.archive.body)
            self.grants.append(await receiver.start("photos", self.keys, size, attempt=attempt))
        elif self.grants:
            last = self.grants[-1]
            if what == "put":
                put(world, last, self.archive.body, self.archive.go_index)
            elif what == "put junk":
                put(world, last, b"junk" * (len(self.archive.body) // 4), self.archive.go_index)
            elif what == "put a wrong index":
                put(world, last, None, b"\0" * 16 * len(self.archive.contents))
            elif what == "put late":
                for grant in self.grants[:-1]:
                    if grant.upload != last.upload:
                        put(world, grant, b"late", b"late")
            elif what == "complete":
                await receiver.complete(last.upload.id)
            elif what == "cancel":
                await receiver.cancel(last.upload.id)
            elif what == "resume":
                self.grants.append(await receiver.resume(last.upload.id))


def put(world: World, grant: Grant, body: bytes | None, index: bytes) -> None:
    with suppress(Refused):
        for url in [grant.put_url] if grant.put_url is not None else grant.part_urls:
            if body is not None:
                world.store.client_put(url, body)
    with suppress(Refused):
        world.store.client_put(grant.index_url, index)


async def visible(world: World) -> list[Datarange]:
    return await world.catalog.dataranges((await world.dataset()).id)


async def check(world: World, junk: bool) -> None:
    """All that is shown is whole and is what its client meant, unless that put junk itself, afterwards."""
    shown = await visible(world)
    for one, other in itertools.pairwise(shown):
        assert one.keys.stop <= other.keys.start
    async with open_mounted(world) as mounted:
        for datarange in shown:
            (archive,) = [one for one in ARCHIVES if one.first == datarange.keys.start]
            for key, content in enumerate(archive.contents, archive.first):
                try:
                    assert await mounted.read(key) == content
                except Datas3tError:
                    assert junk


acts = st.sampled_from(
    ["upload"] * 6
    + ["start"] * 2
    + ["put"] * 4
    + ["complete"] * 6
    + ["start again", "put junk", "put a wrong index", "put late", "cancel", "resume", "sweep", "a day"]
)
steps = st.tuples(
    st.integers(0, len(ARCHIVES) - 1),
    acts,
    st.sampled_from([0] * 6 + list(range(1, 25))),  # the call that fails, if any
    st.booleans(),
    st.booleans(),
)


@given(st.lists(steps, min_size=2, max_size=25))
@settings(max_examples=300, deadline=None)
async def test_any_history(history: list[tuple[int, str, int, bool, bool]]) -> None:
    world, now = await new_world(), 0.0
    world.catalog.clock = lambda: now
    await world.dataset()
    clients = [Client(archive) for archive in ARCHIVES]
    junk = False
    for number, what, nth, after, crash in history:
        if what == "sweep":
            await sweep(world.catalog, world.catalog, world.catalog, world.stores)
        elif what == "a day":
            now += world.catalog.presigned_lifetime + 1
            world.store.expire_urls()
        error = Crash() if crash else Unavailable("away")
        async with open_stepped_receiver(world, Plan(nth, error, after=after), LIMITS) as receiver:
            junk |= what == "put junk"
            with suppress(Datas3tError):
                try:
                    await clients[number].act(what, world, receiver)
                except* Crash:
                    pass
        await check(world, junk)
    for _ in range(3):
        now += 10 * world.catalog.presigned_lifetime
        world.store.expire_urls()
        await sweep(world.catalog, world.catalog, world.catalog, world.stores)
    shown = await visible(world)
    event(f"{len(shown)} are shown in the end")
    assert set(world.store.objects) == {key for one in shown for key in (one.data_key, one.index_key)}
    assert not world.catalog.unpublished
    assert not world.store.multiparts
