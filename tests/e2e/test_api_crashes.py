"""SIGKILL the server in the middle of uploads; many clients at once: nothing half visible, nothing left."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import trio

from datas3tfs.catalog import open_catalog
from datas3tfs.core.counters import Counters
from datas3tfs.engine.sweeper import sweep
from datas3tfs.objects.settings import S3Settings
from datas3tfs.objects.stores import open_stores
from tests.harness.api import Api, Json, go_archive
from tests.harness.mounts import Stack, open_stack
from tests.harness.postgres import PostgresServer
from tests.harness.s3 import ServerProcess, fresh_bucket
from tests.harness.server import Server, memory_watched, serving

# httpx leaves a request's body to the garbage collector when its connection breaks.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")

CLIENTS = 12
ROUNDS = 6
DATASET = "photos"
MANY = 64
LARGE = 21 << 20  # bytes: two parts


@pytest.fixture(params=["rclone", "moto"])
def stack(
    request: pytest.FixtureRequest, embedded_postgres: PostgresServer, tmp_path: Path
) -> Iterator[Stack]:
    """A database and a bucket of its own with a dataset, on each kind of S3."""
    process: ServerProcess = request.getfixturevalue(f"{request.param}_server_process")
    with open_stack(embedded_postgres, fresh_bucket(process), tmp_path) as opened:
        opened.register(DATASET)
        yield opened


def contents_of(number: int) -> list[bytes]:
    """Return the five datapoints of upload *number*; of every fourth, one is large."""
    small = [b"datapoint %d of upload %d" % (key, number) for key in range(5)]
    return [*small[:4], bytes([number % 256]) * LARGE] if number % 4 == 3 else small


@dataclass
class Uploading:
    """Clients that upload; each finishes what it has begun when the server is back, or fails cleanly."""

    known: set[int] = field(default_factory=set)  # uploads that the server said are complete
    begun: set[int] = field(default_factory=set)
    gone: int = 0  # requests that the server's death has eaten
    tags: dict[int, list[str]] = field(default_factory=dict)  # of uploads all parts of which were put
    more: trio.Event = field(default_factory=trio.Event)  # set when one more has come through

    def _done(self, number: int) -> None:
        self.known.add(number)
        self.more.set()
        self.more = trio.Event()

    async def run(self, server: Server, numbers: list[int]) -> None:
        """Upload some, one after the other, until the server is gone."""
        async with server.api() as api:
            for number in numbers:
                if number in self.known:
                    continue
                try:
                    await self._upload(api, number)
                except httpx.TransportError:
                    self.gone += 1
                    return

    async def _upload(self, api: Api, number: int) -> None:
        tar, index = go_archive(number * 5, contents_of(number))
        asked = {
            "datas3t_name": DATASET,
            "first_datapoint_index": number * 5,
            "number_of_datapoints": 5,
            "data_size": len(tar),
            "attempt": f"00000000-0000-4000-8000-{number:012d}",
        }
        answer = await api.send("POST", "/api/v1/upload-datarange", asked)
        self.begun.add(number)
        if answer.status_code == 409:  # it was committed, and the answer was lost
            assert "overlaps" in answer.text
            self._done(number)
            return
        assert answer.status_code == 200, answer.text
        grant: Json = answer.json()
        # Once all are put they may have been put together, though the server died before it could say so:
        # then the parts are gone.
        if number not in self.tags:
            self.tags[number] = await api.put(grant, tar, index)
        tags = self.tags[number]
        body: Json = {"datarange_upload_id": grant["datarange_id"]} | ({"upload_ids": tags} if tags else {})
        answer = await api.send("POST", "/api/v1/upload-datarange/complete", body)
        assert answer.status_code == 200, answer.text
        self._done(number)


async def look(stack: Stack, server: Server, known: set[int]) -> set[int]:
    """Fail unless everything visible is whole, and everything known is visible; return what is visible."""
    async with server.api() as api:
        listed = await api.done("GET", f"/api/v1/dataranges?datas3t_name={DATASET}")
        seen = {one["min_datapoint_key"] // 5 for one in listed["dataranges"]}
        assert known <= seen
        for number in sorted(seen):
            found = await api.download(DATASET, number * 5, number * 5 + 4)
            assert list(found.values()) == contents_of(number), number
        return seen


async def swept(stack: Stack) -> None:
    """Let all time limits pass, and sweep."""
    stack.sql("UPDATE datarange_uploads SET expires_at = now() - interval '1 second'")
    counters = Counters()
    async with (
        open_catalog(stack.db_url, stack.encryption_key, counters) as catalog,
        open_stores(catalog.reader.bucket, S3Settings(), counters) as stores,
    ):
        for _ in range(3):
            stack.sql("UPDATE objects_to_delete SET delete_after = now() - interval '1 second'")
            await sweep(catalog.uploads, catalog.leases, catalog.graveyard, stores)


def check_nothing_is_left(stack: Stack, seen: set[int]) -> None:
    """Fail unless the bucket has two objects for each datarange, and nothing else."""
    listed = stack.sql("SELECT data_object_key, index_object_key FROM dataranges").split()
    named = {part for line in listed for part in line.replace("|", " ").split() if "/" in part}
    assert set(stack.objects()) == named
    assert len(named) == 2 * len(seen)
    assert stack.s3.unfinished() == []


@pytest.mark.timeout(400)
def test_killed_in_the_middle_of_uploads_nothing_is_half_visible_and_nothing_is_left(stack: Stack) -> None:
    rolls = random.Random(stack.s3.bucket)
    uploading = Uploading()
    numbers = list(range(CLIENTS * 4))
    for _ in range(ROUNDS):
        with serving(stack, "--no-sweep") as server:

            async def round_of(server: Server) -> None:
                async with trio.open_nursery() as nursery:
                    for client in range(CLIENTS):
                        nursery.start_soon(uploading.run, server, numbers[client::CLIENTS])
                    # Not after a time: after some have come through, wherever the others are then.
                    wanted = len(uploading.known) + rolls.randrange(1, 6)
                    while len(uploading.known) < min(wanted, len(numbers)):
                        await uploading.more.wait()
                    server.kill()

            trio.run(round_of, server)
    with serving(stack, "--no-sweep") as server:
        seen = trio.run(look, stack, server, set(uploading.known))
        trio.run(uploading.run, server, numbers)
        assert uploading.known == set(numbers)
        assert trio.run(look, stack, server, uploading.known) == set(numbers)
    assert uploading.gone > 0
    assert len(seen) < len(numbers)
    trio.run(swept, stack)
    check_nothing_is_left(stack, set(numbers))


@pytest.mark.timeout(400)
def test_what_was_never_completed_is_swept_without_a_trace(stack: Stack) -> None:
    async def begin(server: Server) -> None:
        async with server.api() as api:
            for number in range(8):
                tar, index = go_archive(number * 5, contents_of(number))
                grant = await api.start(DATASET, number * 5, 5, len(tar))
                if number % 2:
                    await api.put(grant, tar, index)
            assert await look(stack, server, set()) == set()

    with serving(stack) as server:
        trio.run(begin, server)
        server.kill()
    trio.run(swept, stack)
    check_nothing_is_left(stack, set())
    with serving(stack) as server:
        uploading = Uploading()
        trio.run(uploading.run, server, [0, 3])  # the keys are free again
        assert uploading.known == {0, 3}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_sixty_four_at_once_up_and_down_in_flat_memory(stack: Stack) -> None:
    """Half of them have been uploaded when the rest is: while the first come down, the others go up."""
    uploading = Uploading()

    async def up(server: Server, numbers: range) -> None:
        async with trio.open_nursery() as nursery:
            for number in numbers:
                nursery.start_soon(uploading.run, server, [number])

    async def down(server: Server, numbers: range) -> None:
        async with server.api() as api, trio.open_nursery() as nursery:

            async def one(number: int) -> None:
                found = await api.download(DATASET, number * 5, number * 5 + 4)
                assert list(found.values()) == contents_of(number)

            for number in numbers:
                nursery.start_soon(one, number)

    async def together(server: Server) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(down, server, range(MANY))
            nursery.start_soon(up, server, range(MANY, 2 * MANY))

    with serving(stack, "--no-sweep") as server:
        trio.run(uploading.run, server, [2 * MANY + 3])  # a large one, so that all is loaded
        with memory_watched(server.process.pid) as grown:
            trio.run(up, server, range(MANY))
            trio.run(together, server)
            assert uploading.known == {*range(2 * MANY), 2 * MANY + 3}
            # Of 16 × 21 MiB at once, and 64 clients each way.
            assert grown() < 200 << 20, f"{grown() >> 20} MiB"
