"""What only Postgres can get wrong: the schema's own rules, hostile rows, secrets, versions."""

from __future__ import annotations

import asyncio
import logging
import traceback
from functools import partial
from pathlib import Path

import asyncpg
import pytest
import trio

from datas3tfs.catalog import SCHEMA_VERSION, generate_key, migrate, open_catalog, schema_text
from datas3tfs.catalog.background import in_background, run_asyncio
from datas3tfs.core.counters import Counters
from datas3tfs.core.model import BucketSpec, Datarange, DatasetId, Token, UploadId, UploadIntent
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, Invalid, Unavailable
from tests.harness.catalogs import ME
from tests.harness.postgres import PostgresServer

KEY = generate_key()
SPEC = BucketSpec("store", "127.0.0.1:9000", "bucket-1", "the-access-key", "the-secret-key")
VERSION_1 = Path(__file__).with_name("schema-1.sql")
VERSION_2 = Path(__file__).with_name("schema-2.sql")
CLAIM = "INSERT INTO key_claims (dataset_id, first_key, last_key) VALUES"
COUNT = "SELECT count(*) FROM"


def database_of(url: str) -> str:
    return url.rpartition("/")[2]


async def published(url: str, *ranges: tuple[int, int]) -> tuple[DatasetId, list[Datarange]]:
    """Fill the database with a dataset "cats" of these dataranges."""
    async with open_catalog(url, KEY, Counters()) as catalog:
        await catalog.registry.add_bucket(SPEC)
        cats = await catalog.registry.add_dataset("cats", "store")
        made = []
        for start, stop in ranges:
            upload = await catalog.uploads.begin(UploadIntent(cats, Span(start, stop), 10))
            made.append(await catalog.uploads.publish(upload.id))
    return cats, made


async def listed(url: str, dataset_id: DatasetId) -> list[Datarange]:
    async with open_catalog(url, KEY, Counters()) as catalog:
        return await catalog.reader.dataranges(dataset_id)


async def test_fifty_connections_insert_overlapping_claims_and_one_wins(
    postgres: PostgresServer, db_url: str
) -> None:
    cats, _ = await published(db_url)

    async def insert(connection: asyncpg.Connection[asyncpg.Record], number: int) -> str:
        try:
            await connection.execute(f"{CLAIM} ({cats}, {50 - number}, {60 + number})")
        except (asyncpg.ExclusionViolationError, asyncpg.DeadlockDetectedError):
            return "refused"
        return "done"

    async def contend() -> list[str]:
        connections = [await asyncpg.connect(db_url) for _ in range(50)]
        try:
            return await asyncio.gather(*(insert(con, number) for number, con in enumerate(connections)))
        finally:
            for connection in connections:
                await connection.close()

    async with in_background(run_asyncio) as loop:
        outcomes = await loop.run_aio_coroutine(contend())
    assert sorted(outcomes) == ["done"] + ["refused"] * 49
    assert postgres.sql(database_of(db_url), f"{COUNT} key_claims") == "1"


@pytest.mark.parametrize(
    "statement",
    [
        f"{CLAIM} (1, -1, 5)",
        f"{CLAIM} (1, 6, 5)",
        f"{CLAIM} (1, 15, 25)",
        "DELETE FROM key_claims",
        "UPDATE dataranges SET max_datapoint_key = 20",
        "UPDATE key_claims SET last_key = 20",
        "DELETE FROM datasets",
        "DELETE FROM s3_buckets",
        "INSERT INTO datasets (name, s3_bucket_id) VALUES ('a/b', 1)",
        "UPDATE dataranges SET size_bytes = -1",
        "INSERT INTO schema_info (version) VALUES (1)",
    ],
)
async def test_the_schema_itself_refuses(postgres: PostgresServer, db_url: str, statement: str) -> None:
    await published(db_url, (10, 20))
    with pytest.raises(RuntimeError, match="violates"):
        postgres.sql(database_of(db_url), statement)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM lease_holders",
        "DELETE FROM key_leases; DELETE FROM lease_holders",
        "DELETE FROM datarange_uploads; DELETE FROM lease_holders",
        "DELETE FROM key_claims WHERE first_key = 30",
        "UPDATE key_leases SET last_key = 35",
        "UPDATE key_leases SET claim_id = (SELECT claim_id FROM datarange_uploads)",
        "UPDATE lease_holders SET place = ''",
        f"{CLAIM} (1, 39, 45)",
    ],
)
async def test_the_schema_itself_protects_leases(
    postgres: PostgresServer, db_url: str, statement: str
) -> None:
    cats, _ = await published(db_url)
    async with open_catalog(db_url, KEY, Counters()) as catalog:
        await catalog.leases.enrol(ME, "here:/journal")
        await catalog.leases.take(ME, cats, Span(30, 40))
        await catalog.uploads.begin(UploadIntent(cats, Span(50, 60), 1, ME))
    with pytest.raises(RuntimeError, match="violates"):
        postgres.sql(database_of(db_url), statement)


async def test_a_datarange_that_goes_frees_its_keys_and_is_noticed(
    postgres: PostgresServer, db_url: str
) -> None:
    cats, (first, second) = await published(db_url, (0, 10), (10, 20))
    postgres.sql(database_of(db_url), f"DELETE FROM dataranges WHERE id = {first.id}")
    assert postgres.sql(database_of(db_url), f"{COUNT} key_claims") == "1"
    async with open_catalog(db_url, KEY, Counters()) as catalog:
        assert (await catalog.reader.datasets())[0].version == 3
        again = await catalog.uploads.begin(UploadIntent(cats, Span(0, 10), 1))
        assert again.data_key != first.data_key
        assert await catalog.reader.dataranges(cats) == [second]
    postgres.sql(database_of(db_url), "DELETE FROM dataranges; DELETE FROM datarange_uploads")
    postgres.sql(database_of(db_url), "DELETE FROM key_claims; DELETE FROM datasets")


@pytest.mark.parametrize(
    "change",
    [
        "replaces = NULL",
        "claim_id = (SELECT id FROM key_claims WHERE first_key = 0)",
        f"lease_holder = '{ME}'",
        "number_of_datapoints = 0",
        "data_size = -1",
        "dataset_id = 99",
    ],
)
async def test_the_schema_itself_protects_aggregates(
    postgres: PostgresServer, db_url: str, change: str
) -> None:
    cats, sources = await published(db_url, (0, 10), (10, 20))
    async with open_catalog(db_url, KEY, Counters()) as catalog:
        await catalog.leases.enrol(ME, "here:/journal")
        replaces = tuple(source.id for source in sources)
        await catalog.uploads.begin(UploadIntent(cats, Span(0, 20), 1, replaces=replaces))
    with pytest.raises(RuntimeError, match="violates"):
        postgres.sql(database_of(db_url), f"UPDATE datarange_uploads SET {change}")
    postgres.sql(database_of(db_url), "DELETE FROM dataranges")
    with pytest.raises(RuntimeError, match="violates"):
        postgres.sql(database_of(db_url), "DELETE FROM datasets")


async def test_the_schema_itself_knows_an_attempt_once(postgres: PostgresServer, db_url: str) -> None:
    cats, _ = await published(db_url)
    async with open_catalog(db_url, KEY, Counters()) as catalog:
        for start in (0, 10):
            await catalog.uploads.begin(UploadIntent(cats, Span(start, start + 10), 1))
    with pytest.raises(RuntimeError, match="violates"):
        postgres.sql(database_of(db_url), f"UPDATE datarange_uploads SET attempt = '{ME}'")


@pytest.mark.parametrize(
    "values",
    [
        "'a', ''",
        "'a', sha256('x') || 'y'",
        "'a b', sha256('x')",
        "'there', sha256('x')",
        "'a', sha256('there')",
    ],
)
async def test_the_schema_itself_protects_tokens(postgres: PostgresServer, db_url: str, values: str) -> None:
    add = "INSERT INTO api_tokens (can_write, name, digest) VALUES (true, {})"
    postgres.sql(database_of(db_url), add.format("'there', sha256('there')"))
    with pytest.raises(RuntimeError, match="violates"):
        postgres.sql(database_of(db_url), add.format(values))


async def test_migrating_again_and_by_many_at_once(postgres: PostgresServer) -> None:
    with postgres.database(migrated=False) as url:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(migrate, url)
        facts = "SELECT version, installation, applied_at FROM schema_info"
        before = postgres.sql(database_of(url), facts)
        await published(url, (0, 10))
        assert await migrate(url) == SCHEMA_VERSION
        postgres.sql(database_of(url), schema_text())
        assert postgres.sql(database_of(url), facts) == before
        assert before.startswith(f"{SCHEMA_VERSION}|")


def structure(postgres: PostgresServer, url: str) -> str:
    """Return columns, constraints, indexes, functions and triggers, in an order of their own."""
    return postgres.sql(
        database_of(url),
        """
        SELECT table_name, column_name, data_type, is_nullable, column_default, generation_expression
        FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2;
        SELECT conrelid::regclass, conname, pg_get_constraintdef(oid)
        FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1::text, 2;
        SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1;
        SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY 1;
        SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1;
        """,
    )


VERSION_1_ROWS = """
    INSERT INTO s3_buckets (name, endpoint, bucket, access_key, secret_key)
    VALUES ('store', 'h:1', 'b', '', '');
    INSERT INTO datasets (name, s3_bucket_id) VALUES ('cats', 1);
    INSERT INTO key_claims (dataset_id, first_key, last_key) VALUES (1, 0, 9), (1, 10, 19), (1, 30, 39);
    INSERT INTO dataranges (dataset_id, claim_id, data_object_key, index_object_key, min_datapoint_key,
                            max_datapoint_key, size_bytes) VALUES (1, 1, 'a.tar', 'a.index.zst', 0, 9, 5);
    INSERT INTO datarange_uploads (dataset_id, claim_id, data_object_key, index_object_key,
                                   first_datapoint_index, number_of_datapoints, data_size, expires_at)
    VALUES (1, 2, 'b.tar', 'b.index.zst', 10, 10, 5, now() + '1 hour'),
           (1, 3, 'c.tar', 'c.index.zst', 30, 10, 5, now() - interval '1 hour');
"""


async def test_a_database_of_version_1_is_brought_to_this_one(postgres: PostgresServer, db_url: str) -> None:
    with postgres.database(migrated=False) as url:
        postgres.sql(database_of(url), VERSION_1.read_text() + VERSION_1_ROWS)
        facts = "SELECT version, installation FROM schema_info"
        before = postgres.sql(database_of(url), facts)
        async with open_catalog(url, KEY, Counters()) as catalog:
            with pytest.raises(Invalid, match=r"has version 1, .*datas3tfs migrate"):
                await catalog.reader.datasets()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(migrate, url)
        assert postgres.sql(database_of(url), facts) == before.replace("1|", f"{SCHEMA_VERSION}|", 1)
        assert structure(postgres, url) == structure(postgres, db_url)
        async with open_catalog(url, KEY, Counters()) as catalog:
            cats = DatasetId(1)
            assert await catalog.uploads.abandon_expired() == 1
            await catalog.uploads.publish(UploadId(1))
            assert [made.keys for made in await catalog.reader.dataranges(cats)] == [
                Span(0, 10),
                Span(10, 20),
            ]
            await catalog.leases.enrol(ME, "here:/journal")
            assert (await catalog.leases.take(ME, cats, Span(20, 99))).keys == Span(20, 99)
            upload = await catalog.uploads.begin(UploadIntent(cats, Span(25, 35), 1, ME))
            await catalog.uploads.abandon(upload.id)
            assert len(await catalog.leases.held(ME)) == 3


VERSION_2_ROWS = (
    VERSION_1_ROWS
    + f"""
    INSERT INTO lease_holders (id, place, expires_at) VALUES ('{ME}', 'here:/journal', now() + '1 hour');
    INSERT INTO key_claims (dataset_id, first_key, last_key) VALUES (1, 50, 59), (1, 60, 69);
    INSERT INTO key_leases (dataset_id, claim_id, first_key, last_key, holder, accepted)
    VALUES (1, 4, 50, 59, '{ME}', true);
    INSERT INTO datarange_uploads (dataset_id, claim_id, data_object_key, index_object_key,
                                   first_datapoint_index, number_of_datapoints, data_size, expires_at,
                                   confirmed, lease_holder)
    VALUES (1, 5, 'd.tar', 'd.index.zst', 60, 10, 5, now() + '1 hour', true, '{ME}');
    INSERT INTO objects_to_delete (s3_bucket_id, object_key) VALUES (1, 'old.tar');
"""
)


async def test_a_database_of_version_2_is_brought_to_this_one(postgres: PostgresServer, db_url: str) -> None:
    with postgres.database(migrated=False) as url:
        postgres.sql(database_of(url), VERSION_2.read_text() + VERSION_2_ROWS)
        kept = "key_claims, key_leases, dataranges, lease_holders, objects_to_delete, datasets, s3_buckets"
        rows = ";".join(f"TABLE {table} ORDER BY 1" for table in kept.split(", "))
        before = postgres.sql(database_of(url), rows)
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(migrate, url)
            assert postgres.sql(database_of(url), "SELECT version FROM schema_info") == str(SCHEMA_VERSION)
            assert structure(postgres, url) == structure(postgres, db_url)
            assert postgres.sql(database_of(url), rows) == before
        await uploads_of_version_2_go_on(url)


async def uploads_of_version_2_go_on(url: str) -> None:
    """Publish, abandon, sweep what an older version began; then make an aggregate with what it committed."""
    cats = DatasetId(1)
    async with open_catalog(url, KEY, Counters()) as catalog:
        of_journal = await catalog.uploads.pending(UploadId(3))
        assert of_journal.upload.intent == UploadIntent(cats, Span(60, 70), 5, ME)
        await catalog.uploads.abandon(UploadId(3))
        assert [lease.keys for lease in await catalog.leases.held(ME)] == [Span(50, 60), Span(60, 70)]
        assert {item.object_key for item in await catalog.graveyard.doomed(9)} == {
            "old.tar", "d.tar", "d.index.zst",
        }  # fmt: skip
        assert await catalog.uploads.abandon_expired() == 1
        await catalog.uploads.renew(UploadId(1))
        await catalog.uploads.publish(UploadId(1))
        sources = await catalog.reader.dataranges(cats)
        assert [source.keys for source in sources] == [Span(0, 10), Span(10, 20)]
        replaces = tuple(source.id for source in sources)
        upload = await catalog.uploads.begin(UploadIntent(cats, Span(0, 20), 1, replaces=replaces))
        made = await catalog.uploads.publish(upload.id)
        assert await catalog.uploads.published(UploadId(1)) == made


async def test_migrating_again_does_not_wait_for_who_only_reads(pg_url: str) -> None:
    async with in_background(run_asyncio) as loop:
        connection = await loop.run_aio_coroutine(asyncpg.connect(pg_url))
        tables = (
            "datarange_uploads, datasets, dataranges, key_claims, key_leases, lease_holders, merged_uploads"
        )
        await loop.run_aio_coroutine(connection.execute(f"BEGIN; LOCK TABLE {tables} IN ACCESS SHARE MODE"))
        assert await migrate(pg_url, limit=10) == SCHEMA_VERSION
        connection.terminate()


async def test_a_holder_in_a_hostile_place_is_shown_harmless(postgres: PostgresServer, db_url: str) -> None:
    await published(db_url)
    async with open_catalog(db_url, KEY, Counters()) as catalog:
        await catalog.leases.enrol(ME, "here:/journal")
        postgres.sql(database_of(db_url), r"UPDATE lease_holders SET place = E'x\x1b[2J\n'")
        assert [holder.place for holder in await catalog.leases.holders()] == [r"x\x1b[2J\x0a"]


async def test_an_unmigrated_database_says_what_to_do(postgres: PostgresServer) -> None:
    with postgres.database(migrated=False) as url:
        async with open_catalog(url, KEY, Counters()) as catalog:
            with pytest.raises(Invalid, match="datas3tfs migrate"):
                await catalog.reader.datasets()
            await migrate(url)
            assert await catalog.reader.datasets() == []


async def test_another_schema_version_is_refused(postgres: PostgresServer, db_url: str) -> None:
    for version, hint in ((SCHEMA_VERSION + 1, "upgrade datas3tfs"), (0, "datas3tfs migrate")):
        postgres.sql(database_of(db_url), f"UPDATE schema_info SET version = {version}")
        async with open_catalog(db_url, KEY, Counters()) as catalog:
            with pytest.raises(Invalid, match=hint):
                await catalog.reader.datasets()
        if version:
            with pytest.raises(Invalid, match=hint):
                await migrate(db_url)


async def test_a_database_of_another_program_is_left_alone(postgres: PostgresServer) -> None:
    with postgres.database(migrated=False) as url:
        postgres.sql(database_of(url), "CREATE TABLE datasets (id int)")
        with pytest.raises(Invalid, match="another program"):
            await migrate(url)
        assert postgres.sql(database_of(url), "SELECT to_regclass('schema_info') IS NULL") == "t"


async def test_a_dataset_with_a_hostile_name_is_left_out(
    postgres: PostgresServer, db_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await published(db_url)
    postgres.sql(database_of(db_url), "ALTER TABLE datasets DROP CONSTRAINT datasets_name_valid")
    postgres.sql(
        database_of(db_url),
        r"INSERT INTO datasets (name, s3_bucket_id) SELECT E'../\x1b[2J', id FROM s3_buckets",
    )
    async with open_catalog(db_url, KEY, Counters()) as catalog:
        for _ in range(2):
            assert [dataset.name for dataset in await catalog.reader.datasets()] == ["cats"]
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        "min_datapoint_key = -1",
        "min_datapoint_key = 15, max_datapoint_key = 12",
        "size_bytes = -5",
        r"data_object_key = E'a\nb'",
        r"index_object_key = ''",
        "data_object_key = repeat('x', 1025)",
        "max_datapoint_key = 25",  # into the next one
    ],
)
async def test_hostile_dataranges_are_corrupt(postgres: PostgresServer, db_url: str, change: str) -> None:
    cats, (first, _) = await published(db_url, (10, 20), (20, 30))
    names = "claimed", "size_valid", "data_key_valid", "index_key_valid"
    drops = ", ".join(f"DROP CONSTRAINT dataranges_{name}" for name in names)
    postgres.sql(database_of(db_url), f"ALTER TABLE dataranges {drops}")
    postgres.sql(database_of(db_url), f"UPDATE dataranges SET {change} WHERE id = {first.id}")
    with pytest.raises(Corrupt):
        await listed(db_url, cats)
    async with open_catalog(db_url, KEY, Counters()) as catalog:
        with pytest.raises(Corrupt):
            await catalog.reader.overlap("cats", Span(0, 100))


@pytest.mark.parametrize(
    "change",
    [
        "first_datapoint_index = -1",
        r"data_object_key = E'a\nb'",
        "index_object_key = repeat('x', 1025)",
        r"upload_id = E'\x1b[2J'",
        "upload_id = ''",
    ],
)
async def test_hostile_uploads_are_corrupt(postgres: PostgresServer, db_url: str, change: str) -> None:
    cats, _ = await published(db_url)
    async with open_catalog(db_url, KEY, Counters()) as catalog:
        upload = await catalog.uploads.begin(UploadIntent(cats, Span(10, 20), 10, presigned=True))
        await catalog.uploads.pending(upload.id)
        postgres.sql(
            database_of(db_url),
            f"""
            ALTER TABLE datarange_uploads DROP CONSTRAINT datarange_uploads_claimed;
            UPDATE datarange_uploads SET {change}
            """,
        )
        with pytest.raises(Corrupt) as caught:
            await catalog.uploads.pending(upload.id)
        assert str(caught.value).isprintable()
        if "upload_id" in change:
            with pytest.raises(Corrupt):
                await catalog.uploads.remember_multipart(upload.id, "2~mine")


@pytest.mark.parametrize("change", [r"name = E'\x1b[2J'", r"datasets = ARRAY['cats', E'a\nb']"])
async def test_hostile_tokens_are_corrupt(postgres: PostgresServer, db_url: str, change: str) -> None:
    digest = bytes(range(32))
    async with open_catalog(db_url, KEY, Counters()) as catalog:
        await catalog.tokens.add(Token("mine", can_write=True, datasets=None, created_ns=0), digest)
        drop = "ALTER TABLE api_tokens DROP CONSTRAINT api_tokens_name_valid"
        postgres.sql(database_of(db_url), f"{drop}; UPDATE api_tokens SET {change}")
        for call in (catalog.tokens.all, partial(catalog.tokens.find, digest)):
            with pytest.raises(Corrupt) as caught:
                await call()
            assert str(caught.value).isprintable()


async def test_a_doomed_row_that_names_no_object_is_passed_over(
    postgres: PostgresServer, db_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await published(db_url)
    insert = "INSERT INTO objects_to_delete (s3_bucket_id, object_key) SELECT id, '{}' FROM s3_buckets"
    postgres.sql(database_of(db_url), insert.format("") + ";" + insert.format("good"))
    async with open_catalog(db_url, KEY, Counters()) as catalog:
        for _ in range(2):
            assert [item.object_key for item in await catalog.graveyard.doomed(10)] == ["good"]
    assert len(caplog.records) == 1


async def test_credentials_need_the_right_key(db_url: str) -> None:
    await published(db_url)
    async with open_catalog(db_url, KEY, Counters()) as catalog:
        bucket = (await catalog.registry.buckets())[0]
    for key, hint in ((generate_key(), "not the one they were stored with"), (None, "no encryption key")):
        async with open_catalog(db_url, key, Counters()) as catalog:
            with pytest.raises(Invalid, match=hint):
                await catalog.reader.bucket(bucket.id)
    with pytest.raises(Invalid, match="base64"):
        async with open_catalog(db_url, "not base64!", Counters()):
            pass


async def test_no_secret_shows_anywhere(
    postgres: PostgresServer, db_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []

    async def use(url: str, key: str, add: bool) -> None:
        async with open_catalog(url, key, Counters()) as catalog:
            shown.append(repr(catalog))
            if add:
                await catalog.registry.add_bucket(SPEC)
            await catalog.reader.bucket((await catalog.registry.buckets())[0].id)

    async def fails(
        *branches: type[Datas3tError], url: str = db_url, key: str = KEY, add: bool = False
    ) -> None:
        with pytest.raises(branches) as caught:
            await use(url, key, add)
        shown.extend([repr(caught.value), *traceback.format_exception(caught.value)])

    await published(db_url)
    await use(db_url, KEY, add=False)
    shown.append(postgres.sql(database_of(db_url), "SELECT * FROM s3_buckets"))
    await fails(Conflict, add=True)
    await fails(Invalid, key=generate_key())
    postgres.sql(database_of(db_url), "TRUNCATE s3_buckets CASCADE")
    postgres.sql(database_of(db_url), "ALTER TABLE s3_buckets ADD CHECK (name <> 'store')")
    await fails(Invalid, add=True)
    secret = postgres.password
    for url in (
        f"postgresql://user:{secret}@127.0.0.1:1/db",
        f"postgresql://user:{secret}@127.0.0.1:{secret}/db",
        f"postgresql://user:1#{secret}@127.0.0.1/db",
        f"postgresql://user:a@{secret}@127.0.0.1:1/db",
        f"postgresql://user:{secret}@127.0.0.1/db?sslmode={secret}",
        f"mysql://user:{secret}@127.0.0.1/db",
        db_url.replace(secret, f"{secret}wrong"),
    ):
        await fails(Invalid, Unavailable, url=url)
    everything = "\n".join([*shown, caplog.text, repr(SPEC)])
    for text in (SPEC.access_key, SPEC.secret_key, secret, KEY):
        assert text not in everything


async def test_urls_of_every_form(postgres: PostgresServer, db_url: str) -> None:
    await published(db_url)
    tcp = f"127.0.0.1:{postgres.port}"
    socket_folder = str(postgres.socket_folder)
    database = database_of(db_url)
    forms = [
        db_url.replace("postgresql://", "postgres://"),
        f"{db_url}?sslmode=disable",
        f"{db_url}?sslmode=prefer",
        db_url.replace(tcp, f"{socket_folder.replace('/', '%2F')}:{postgres.port}"),
        db_url.replace(f"{tcp}/{database}", f"/{database}?host={socket_folder}&port={postgres.port}"),
    ]
    for url in forms:
        async with open_catalog(url, KEY, Counters()) as catalog:
            assert [dataset.name for dataset in await catalog.reader.datasets()] == ["cats"]


async def test_queries_are_counted(pg_url: str) -> None:
    await published(pg_url)
    counters = Counters()
    async with open_catalog(pg_url, KEY, counters) as catalog:
        assert counters.get("sql.query") == 0
        await catalog.reader.datasets()
        assert counters.get("sql.query") == 1
