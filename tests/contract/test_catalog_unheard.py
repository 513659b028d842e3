"""Calls whose COMMIT the server did, or did not, get: each is done once, whatever the client heard of it.

Of uploads with their own keys, leases and empty datasets see test_catalog_faults.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from uuid import UUID

import pytest

from datas3tfs.catalog import Catalog, CatalogSettings, generate_key, open_catalog
from datas3tfs.core.counters import Counters
from datas3tfs.core.model import Datarange, DatasetId, Token, Upload, UploadIntent
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, NotFound
from tests.harness.catalogs import SPEC
from tests.harness.pgproxy import CommitsLost, CommitsUnheard, open_pgproxy
from tests.harness.postgres import PostgresServer

# What is doomed is due at once, and URLs are dead as soon as they are made.
SETTINGS = CatalogSettings(operation_limit=20, presigned_lifetime=0, grace=0)
DIGEST = hashlib.sha256(b"token").digest()


@dataclass
class Scene:
    """A catalog behind a proxy, with a dataset and three dataranges in it."""

    catalog: Catalog
    unheard: CommitsUnheard
    lost: CommitsLost
    server: PostgresServer
    database: str
    dataset_id: DatasetId
    sources: list[Datarange]

    async def visible(self) -> list[Datarange]:
        """Return the dataset's dataranges."""
        return await self.catalog.reader.dataranges(self.dataset_id)

    async def doomed(self) -> int:
        """Return how many objects are to be deleted."""
        return len(await self.catalog.graveyard.doomed(100))

    def sql(self, script: str) -> str:
        """Run *script* past the proxy."""
        return self.server.sql(self.database, script)

    def count(self, table: str) -> int:
        """Return how many rows *table* has."""
        return int(self.sql(f"SELECT count(*) FROM {table}"))

    def somebody_commits(self, start: int, stop: int) -> None:
        """Commit keys past the proxy, at once."""
        cats, keys = self.dataset_id, f"{start}, {stop - 1}"
        self.sql(
            f"""
            WITH claim AS (
                INSERT INTO key_claims (dataset_id, first_key, last_key) VALUES ({cats}, {keys}) RETURNING id
            )
            INSERT INTO dataranges (dataset_id, claim_id, data_object_key, index_object_key,
                                    min_datapoint_key, max_datapoint_key, size_bytes)
            SELECT {cats}, id, 'somebody-{start}.tar', 'somebody-{start}.index.zst', {keys}, 1 FROM claim
            """
        )

    def intent(self, start: int, stop: int, *replaced: Datarange, presigned: bool = False) -> UploadIntent:
        """Return an intent for the dataset."""
        replaces = tuple(item.id for item in replaced)
        return UploadIntent(self.dataset_id, Span(start, stop), 1, presigned=presigned, replaces=replaces)


@pytest.fixture
async def scene(embedded_postgres: PostgresServer, pg_url: str) -> AsyncIterator[Scene]:
    unheard, lost = CommitsUnheard(), CommitsLost()
    async with (
        open_pgproxy(pg_url) as proxy,
        open_catalog(proxy.url, generate_key(), Counters(), SETTINGS) as catalog,
    ):
        await catalog.registry.add_bucket(SPEC)
        cats = await catalog.registry.add_dataset("cats", "store")
        sources = []
        for start in (0, 10, 20):
            upload = await catalog.uploads.begin(UploadIntent(cats, Span(start, start + 10), 1))
            sources.append(await catalog.uploads.publish(upload.id))
        proxy.judge, proxy.witness = unheard, lost
        database = pg_url.rpartition("/")[2]
        yield Scene(catalog, unheard, lost, embedded_postgres, database, cats, sources)


async def test_an_aggregate_is_begun_and_published_once(scene: Scene) -> None:
    uploads, intent = scene.catalog.uploads, scene.intent(0, 30, *scene.sources)
    for how in (scene.unheard.during, scene.lost.during):
        upload: Upload = await how(uploads.begin(intent))
        assert scene.count("datarange_uploads") == 1
        await how(uploads.confirm(upload.id))
        await how(uploads.abandon(upload.id))
        assert await scene.doomed() == 2
        await scene.catalog.graveyard.buried([item.id for item in await scene.catalog.graveyard.doomed(9)])
    upload = await scene.unheard.during(uploads.begin(intent))
    made = await scene.unheard.during(uploads.publish(upload.id, 5))
    assert (made.keys, made.size) == (Span(0, 30), 5)
    assert await scene.visible() == [made]
    assert await scene.doomed() == 6
    assert scene.count("merged_uploads") == 3


async def test_a_lost_commit_of_an_aggregate_is_done_again(scene: Scene) -> None:
    uploads = scene.catalog.uploads
    upload = await scene.lost.during(uploads.begin(scene.intent(0, 30, *scene.sources)))
    made = await scene.lost.during(uploads.publish(upload.id))
    assert await scene.visible() == [made]
    assert await scene.doomed() == 6
    assert scene.count("key_claims") == 1


async def test_a_publish_that_is_repeated_finds_the_aggregate_that_has_replaced_it(scene: Scene) -> None:
    uploads = scene.catalog.uploads
    upload = await uploads.begin(scene.intent(30, 40))

    def merge() -> None:  # as an aggregate of the last two does, in one transaction
        cats = scene.dataset_id
        scene.sql(
            f"""
            BEGIN;
            DELETE FROM dataranges WHERE dataset_id = {cats} AND min_datapoint_key >= 20;
            INSERT INTO key_claims (dataset_id, first_key, last_key) VALUES ({cats}, 20, 39);
            INSERT INTO dataranges (dataset_id, claim_id, data_object_key, index_object_key,
                                    min_datapoint_key, max_datapoint_key, size_bytes)
            SELECT {cats}, id, 'merged.tar', 'merged.index.zst', 20, 39, 1
            FROM key_claims WHERE first_key = 20;
            INSERT INTO merged_uploads
            SELECT {upload.id}, id FROM dataranges WHERE min_datapoint_key = 20;
            COMMIT;
            """
        )

    made = await scene.unheard.during(uploads.publish(upload.id), merge)
    assert made.keys == Span(20, 40)
    assert await uploads.published(upload.id) == made


async def test_a_presigned_upload_is_begun_and_published_once(scene: Scene) -> None:
    uploads = scene.catalog.uploads
    for number, how in enumerate((scene.unheard.during, scene.lost.during)):
        start = 100 + 10 * number
        intent = replace(scene.intent(start, start + 10, presigned=True), attempt=str(UUID(int=number)))
        upload: Upload = await how(uploads.begin(intent))
        assert await how(uploads.begin(intent)) == upload
        assert scene.count("datarange_uploads") == 1
        assert await how(uploads.remember_multipart(upload.id, "2~multipart")) == "2~multipart"
        await how(uploads.renew(upload.id))
        assert (await uploads.pending(upload.id)).multipart == "2~multipart"
        made: Datarange = await how(uploads.publish(upload.id, 4711))
        assert made.size == 4711
        assert await scene.doomed() == number + 1, "the staged index, once"
        assert (await scene.visible())[-1] == made


async def test_an_adoption_is_done_once(scene: Scene) -> None:
    adopt = scene.catalog.dataranges.adopt
    for number, how in enumerate((scene.unheard.during, scene.lost.during)):
        keys = Span(100 + number, 101 + number)
        made: Datarange = await how(adopt(scene.dataset_id, keys, f"{number}.tar", f"{number}.index", 7))
        assert (made.keys, made.size) == (keys, 7)
        assert await scene.visible() == [*scene.sources, made]
        with pytest.raises(Conflict):
            await adopt(scene.dataset_id, Span(200, 201), f"{number}.tar", f"{number}.index", 7)
        await scene.catalog.dataranges.remove(scene.dataset_id, keys)


async def test_an_adoption_that_was_undone_meanwhile_is_not_repeated_in_silence(scene: Scene) -> None:
    adopt = scene.catalog.dataranges.adopt(scene.dataset_id, Span(100, 101), "a.tar", "a.index", 7)
    with pytest.raises(Conflict, match="handed it out"):
        await scene.unheard.during(adopt, lambda: scene.sql("DELETE FROM dataranges"))
    assert await scene.visible() == []


async def test_a_removal_is_done_once(scene: Scene) -> None:
    remove = scene.catalog.dataranges.remove
    for number, how in enumerate((scene.unheard.during, scene.lost.during)):
        gone: Datarange = await how(remove(scene.dataset_id, scene.sources[number].keys))
        assert gone == scene.sources[number]
        assert await scene.visible() == scene.sources[number + 1 :]
        assert await scene.doomed() == 2 * number + 2
        with pytest.raises(NotFound):
            await remove(scene.dataset_id, gone.keys)


async def test_a_removal_that_is_repeated_spares_what_has_come_meanwhile(scene: Scene) -> None:
    remove = scene.catalog.dataranges.remove(scene.dataset_id, Span(10, 20))
    gone = await scene.unheard.during(remove, lambda: scene.somebody_commits(10, 20))
    assert gone == scene.sources[1]
    assert [item.data_key for item in await scene.visible()][1] == "somebody-10.tar"
    assert await scene.doomed() == 2


async def test_a_dataset_is_cleared_once(scene: Scene) -> None:
    clear = scene.catalog.dataranges.clear
    assert await scene.lost.during(clear(scene.dataset_id)) == 3
    assert await scene.visible() == []
    assert await scene.doomed() == 6
    scene.somebody_commits(0, 10)
    count = await scene.unheard.during(clear(scene.dataset_id), lambda: scene.somebody_commits(10, 20))
    assert count == 1
    assert [item.keys for item in await scene.visible()] == [Span(10, 20)]
    assert await scene.doomed() == 8


async def test_clearing_what_is_gone_meanwhile_is_told_apart(scene: Scene) -> None:
    drop = f"DELETE FROM datasets WHERE id = {scene.dataset_id}"
    clear = scene.catalog.dataranges.clear(scene.dataset_id)
    assert await scene.unheard.during(clear, lambda: scene.sql(drop)) == 3
    with pytest.raises(NotFound):
        await scene.catalog.dataranges.clear(scene.dataset_id)


async def test_a_dataset_is_removed_once_with_its_aggregates(scene: Scene) -> None:
    uploads = scene.catalog.uploads
    upload = await uploads.begin(scene.intent(0, 30, *scene.sources))
    await uploads.confirm(upload.id)
    await scene.catalog.dataranges.clear(scene.dataset_id)
    await scene.unheard.during(scene.catalog.registry.remove_dataset(scene.dataset_id))
    assert scene.count("datarange_uploads") == 0
    assert await scene.doomed() == 6 + 2


async def test_a_token_is_added_and_removed_once(scene: Scene) -> None:
    tokens = scene.catalog.tokens
    mine = Token("mine", can_write=True, datasets=None, created_ns=0)
    for how in (scene.unheard.during, scene.lost.during):
        await how(tokens.add(mine, DIGEST))
        assert [one.name for one in await tokens.all()] == ["mine"]
        with pytest.raises(Conflict):
            await tokens.add(mine, DIGEST)
        await how(tokens.remove("mine"))
        assert await tokens.all() == []
        with pytest.raises(NotFound):
            await tokens.remove("mine")


async def test_a_removal_of_a_token_spares_the_one_that_was_added_meanwhile(scene: Scene) -> None:
    tokens = scene.catalog.tokens
    await tokens.add(Token("mine", can_write=True, datasets=None, created_ns=0), DIGEST)
    add = "INSERT INTO api_tokens (name, digest, can_write) VALUES ('mine', sha256('new'), false)"
    await scene.unheard.during(tokens.remove("mine"), lambda: scene.sql(add))
    found = await tokens.find(hashlib.sha256(b"new").digest())
    assert found is not None
    assert await tokens.find(DIGEST) is None
