"""Postgres away, frozen, restarted, cut off during COMMIT, or silent: what the catalog makes of it."""

from __future__ import annotations

import itertools
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import trio

from datas3tfs.catalog import Catalog, CatalogSettings, generate_key, migrate, open_catalog
from datas3tfs.core.counters import Counters
from datas3tfs.core.model import BucketSpec, DatasetId, Lease, UploadIntent
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, NotFound, Unavailable
from tests.harness.catalogs import ME
from tests.harness.pgproxy import CommitsUnheard, Fate, Judge, open_pgproxy
from tests.harness.postgres import PostgresServer

KEY = generate_key()
SPEC = BucketSpec("store", "127.0.0.1:9000", "bucket-1", "access", "secret")
BRISK = CatalogSettings(operation_limit=5, reconnect_first=0.01, reconnect_last=0.05)


@pytest.fixture(scope="module")
def own(pg_server_factory: Callable[[], PostgresServer]) -> PostgresServer:
    """A server that no other module uses; own_url puts it right after each test."""
    return pg_server_factory()


@pytest.fixture
def own_url(own: PostgresServer) -> Iterator[str]:
    with own.database() as url:
        yield url


@pytest.fixture
async def catalog(own_url: str) -> AsyncIterator[Catalog]:
    async with open_catalog(own_url, KEY, Counters(), BRISK) as opened:
        await opened.registry.add_bucket(SPEC)
        await opened.registry.add_dataset("cats", "store")
        yield opened


async def names(catalog: Catalog) -> list[str]:
    return [dataset.name for dataset in await catalog.reader.datasets()]


async def begin(catalog: Catalog, start: int, stop: int) -> UploadIntent:
    cats = (await catalog.reader.datasets())[0]
    return UploadIntent(cats.id, Span(start, stop), 1)


async def test_opening_needs_no_server_and_its_arrival_is_noticed(own: PostgresServer, own_url: str) -> None:
    own.stop()
    async with open_catalog(own_url, KEY, Counters(), BRISK) as catalog:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await catalog.reader.datasets()
        with pytest.raises(Unavailable):
            await catalog.registry.add_bucket(SPEC)
        own.start()
        assert await names(catalog) == []


async def test_a_restart_between_two_reads_is_not_noticed(own: PostgresServer, catalog: Catalog) -> None:
    for again in (own.stop, own.crash):
        again()
        own.start()
        assert await names(catalog) == ["cats"]


async def test_a_restart_between_begin_and_publish_is_not_noticed(
    own: PostgresServer, catalog: Catalog
) -> None:
    upload = await catalog.uploads.begin(await begin(catalog, 0, 10))
    own.stop()
    own.start()
    made = await catalog.uploads.publish(upload.id)
    assert await catalog.reader.dataranges(made.dataset_id) == [made]


async def test_a_frozen_server_costs_the_limit_and_no_more(own: PostgresServer, own_url: str) -> None:
    limit = 0.3
    settings = CatalogSettings(operation_limit=limit)
    async with open_catalog(own_url, KEY, Counters(), settings) as catalog:
        await names(catalog)
        own.freeze()
        for _ in range(2):  # over the pooled connection, then over a new one
            started = trio.current_time()
            with pytest.raises(Unavailable, match=r"within 0\.3 s"):
                await names(catalog)
            assert trio.current_time() - started < 5 * limit
        own.thaw()
        assert await names(catalog) == []


def freezing(server: PostgresServer, words: int) -> Judge:
    """Let the server say so many *words*, not counting a dozen ParameterStatus, and freeze it."""
    heard = itertools.count()

    def judge(kind: bytes, body: bytes) -> Fate:
        if kind == b"S" or next(heard) < words:
            return Fate.PASS
        server.freeze()
        return Fate.LOSE

    return judge


async def test_a_server_that_freezes_anywhere_in_a_transaction_costs_the_limit(
    own: PostgresServer, own_url: str
) -> None:
    """At its first word to a new connection, at its second, … at the answer to COMMIT."""
    limit = 0.25
    async with open_pgproxy(own_url) as proxy, open_catalog(own_url, KEY, Counters(), BRISK) as steady:
        await steady.registry.add_bucket(SPEC)
        await steady.registry.add_dataset("cats", "store")
        intents = [await begin(steady, 10 * at, 10 * at + 10) for at in range(100)]
        for words in itertools.count():
            proxy.judge = freezing(own, words)
            try:
                with trio.fail_after(10 * limit):
                    async with open_catalog(proxy.url, KEY, Counters(), CatalogSettings(limit)) as catalog:
                        await catalog.uploads.begin(intents[words])
                break
            except Unavailable:
                own.thaw()
        assert words > 15
    own.thaw()


async def test_closing_does_not_wait_for_a_frozen_server(own: PostgresServer, own_url: str) -> None:
    with trio.fail_after(10):
        async with open_catalog(own_url, KEY, Counters(), BRISK) as catalog, catalog.reader.changes():
            await names(catalog)
            own.freeze()
    own.thaw()


async def test_a_port_that_takes_connections_and_says_nothing(pg_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"postgresql://user:word@127.0.0.1:{mute.getsockname()[1]}/db"
        async with open_catalog(url, KEY, Counters(), CatalogSettings(operation_limit=0.2)) as catalog:
            with pytest.raises(Unavailable):
                await catalog.reader.datasets()
        with pytest.raises(Unavailable):
            await migrate(url, limit=0.2)


async def test_cancelling_an_operation_leaves_the_catalog_usable(
    own: PostgresServer, catalog: Catalog
) -> None:
    own.freeze()
    with trio.move_on_after(0.1) as scope:
        await names(catalog)
    assert scope.cancelled_caught
    own.thaw()
    assert await names(catalog) == ["cats"]


async def test_an_unknown_commit_is_looked_up(pg_url: str) -> None:
    """The server commits, and the connection dies before the client hears of it."""
    cuts: list[bytes] = []

    def cut_once(kind: bytes, body: bytes) -> Fate:
        if kind == b"C" and body == b"COMMIT\0" and len(cuts) < 1:
            cuts.append(body)
            return Fate.BREAK
        return Fate.PASS

    async with open_pgproxy(pg_url) as proxy, open_catalog(proxy.url, KEY, Counters(), BRISK) as catalog:
        await catalog.registry.add_bucket(SPEC)
        await catalog.registry.add_dataset("cats", "store")
        intent = await begin(catalog, 0, 10)
        proxy.judge = cut_once
        upload = await catalog.uploads.begin(intent)
        assert len(cuts) == 1
        cuts.clear()
        made = await catalog.uploads.publish(upload.id)
        assert len(cuts) == 1
        assert await catalog.reader.dataranges(intent.dataset_id) == [made]
        with pytest.raises(Conflict):
            await catalog.uploads.begin(intent)


async def held(catalog: Catalog) -> list[tuple[int, int, bool]]:
    leases = await catalog.leases.held(ME)
    return [(lease.keys.start, lease.keys.stop, lease.accepted) for lease in leases]


async def test_an_unknown_commit_of_leases_is_found_or_done_again(pg_url: str) -> None:
    judge = CommitsUnheard()
    async with open_pgproxy(pg_url) as proxy, open_catalog(proxy.url, KEY, Counters(), BRISK) as catalog:
        await catalog.registry.add_bucket(SPEC)
        cats = await catalog.registry.add_dataset("cats", "store")
        proxy.judge = judge
        leases, uploads = catalog.leases, catalog.uploads
        await judge.during(leases.enrol(ME, "here:/journal"))
        lease = await judge.during(leases.take(ME, cats, Span(0, 100)))
        assert lease == Lease(cats, Span(0, 100), accepted=False)
        await judge.during(leases.accept(ME, cats, 50))
        await judge.during(leases.release(ME, cats, Span(90, 100)))
        assert await held(catalog) == [(0, 90, True)]

        upload = await judge.during(uploads.begin(UploadIntent(cats, Span(10, 20), 1, ME)))
        assert await held(catalog) == [(0, 10, True), (20, 90, True)]
        await judge.during(uploads.confirm(upload.id))
        await judge.during(uploads.abandon(upload.id))
        assert await held(catalog) == [(0, 10, True), (10, 20, True), (20, 90, True)]
        assert len(await catalog.graveyard.doomed(10)) == 2

        upload = await judge.during(uploads.begin(UploadIntent(cats, Span(0, 90), 1, ME)))
        assert await held(catalog) == []
        made = await judge.during(uploads.publish(upload.id))
        assert await uploads.published(upload.id) == made
        assert await catalog.reader.dataranges(cats) == [made]

        await uploads.begin(UploadIntent(cats, Span(200, 210), 1, ME))
        await judge.during(uploads.abandon_all(ME))
        assert await held(catalog) == [(200, 210, True)]
        await judge.during(leases.dismiss(ME))
        assert await leases.holders() == []


async def test_an_unknown_removal_of_a_dataset_is_looked_up(pg_url: str) -> None:
    judge = CommitsUnheard()
    async with open_pgproxy(pg_url) as proxy, open_catalog(proxy.url, KEY, Counters(), BRISK) as catalog:
        await catalog.registry.add_bucket(SPEC)
        cats = await catalog.registry.add_dataset("cats", "store")
        proxy.judge = judge
        await judge.during(catalog.registry.remove_dataset(cats))
        with pytest.raises(NotFound):
            await catalog.registry.remove_dataset(cats)


async def test_leases_wait_for_postgres_in_bounds(own: PostgresServer, own_url: str) -> None:
    async with open_catalog(own_url, KEY, Counters(), CatalogSettings(operation_limit=0.3)) as catalog:
        await catalog.leases.enrol(ME, "here:/journal")
        own.freeze()
        started = trio.current_time()
        with pytest.raises(Unavailable):
            await catalog.leases.enrol(ME, "here:/journal")
        with pytest.raises(Unavailable):
            await catalog.leases.take(ME, DatasetId(1), Span(0, 1))
        assert trio.current_time() - started < 3
        own.thaw()


async def test_a_cut_before_the_commit_is_tried_again(pg_url: str) -> None:
    cuts: list[bytes] = []

    def cut_once(kind: bytes, body: bytes) -> Fate:
        if kind == b"D" and len(cuts) < 1:  # the first row of an answer
            cuts.append(body)
            return Fate.BREAK
        return Fate.PASS

    async with open_pgproxy(pg_url) as proxy, open_catalog(proxy.url, KEY, Counters(), BRISK) as catalog:
        await catalog.registry.add_bucket(SPEC)
        await catalog.registry.add_dataset("cats", "store")
        intent = await begin(catalog, 0, 10)
        proxy.judge = cut_once
        upload = await catalog.uploads.begin(intent)
        cuts.clear()
        await catalog.uploads.publish(upload.id)
        assert len(cuts) == 1
        cuts.clear()
        with pytest.raises(Unavailable):  # not known to have happened, and not to be repeated
            await catalog.registry.add_dataset("dogs", "store")


async def test_changes_survive_a_restart_with_one_warning(
    own: PostgresServer, own_url: str, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    settings = CatalogSettings(
        operation_limit=5, poll_unproven=0.02, reconnect_first=0.01, reconnect_last=0.02
    )
    counters = Counters()
    async with open_catalog(own_url, KEY, counters, settings) as watching, watching.reader.changes() as feed:
        with trio.fail_after(10):
            await feed.wait()
            own.stop()
            for _ in range(400):  # until the feed has noticed
                if "changes are not seen" in caplog.text:
                    break
                await trio.sleep(settings.poll_unproven)
            for _ in range(5):  # polls that fail meanwhile
                with pytest.raises(Unavailable):
                    await watching.reader.datasets()
                await trio.sleep(settings.poll_unproven)
            own.start()
            await catalog.registry.add_dataset("dogs", "store")
            while await names(watching) != ["cats", "dogs"]:
                await feed.wait()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "changes are not seen" in caplog.text


async def test_a_lost_listener_is_replaced(own: PostgresServer, own_url: str, catalog: Catalog) -> None:
    # No poll after the first: only LISTEN brings the news.
    settings = CatalogSettings(
        operation_limit=5, poll_proven=3600, poll_unproven=3600, reconnect_first=0.01, reconnect_last=0.02
    )
    listeners = "FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
    async with (
        open_catalog(own_url, KEY, Counters(), settings) as watching,
        watching.reader.changes() as feed,
    ):
        for number in range(2, 5):
            with trio.fail_after(5):
                while own.sql("postgres", f"SELECT count(*) {listeners}") != "1":
                    await feed.wait()
            own.sql("postgres", f"SELECT pg_terminate_backend(pid) {listeners}")
            await catalog.registry.add_dataset(f"set-{number}", "store")
            with trio.fail_after(1):
                while len(await watching.reader.datasets()) < number:
                    await feed.wait()


async def test_changes_are_polled_where_notifications_get_lost(pg_url: str) -> None:
    """As behind pgbouncer in transaction mode: LISTEN succeeds and nothing ever comes."""

    def deaf(kind: bytes, body: bytes) -> Fate:
        return Fate.LOSE if kind == b"A" else Fate.PASS

    settings = CatalogSettings(operation_limit=5, poll_proven=3600, poll_unproven=0.1)
    async with (
        open_pgproxy(pg_url) as proxy,
        open_catalog(pg_url, KEY, Counters(), BRISK) as writing,
        open_catalog(proxy.url, KEY, Counters(), settings) as watching,
    ):
        proxy.judge = deaf
        await writing.registry.add_bucket(SPEC)
        async with watching.reader.changes() as feed:
            with trio.fail_after(5):
                await feed.wait()
            for number in range(1, 4):
                await writing.registry.add_dataset(f"set-{number}", "store")
                with trio.fail_after(1):
                    while len(await watching.reader.datasets()) < number:
                        await feed.wait()


async def test_a_proven_listener_saves_polling(pg_url: str) -> None:
    counters = Counters()
    settings = CatalogSettings(operation_limit=5, poll_proven=3600, poll_unproven=0.2)
    async with (
        open_catalog(pg_url, KEY, Counters(), BRISK) as writing,
        open_catalog(pg_url, KEY, counters, settings) as watching,
        watching.reader.changes() as feed,
    ):
        await writing.registry.add_bucket(SPEC)
        with trio.fail_after(5):
            for number in range(20):
                await writing.registry.add_dataset(f"set-{number}", "store")
                await feed.wait()
        assert counters.get("sql.query") <= 5
