"""ports.Uploads on Postgres: each method is one transaction, and may be repeated when its outcome is unknown.

Locks are taken in the order of claims.py. No state.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from datas3tfs.catalog import aggregates, claims, objectkeys, rows
from datas3tfs.catalog.database import Database, Row, Session
from datas3tfs.core.model import (
    BucketId,
    Datarange,
    HolderId,
    PendingUpload,
    Upload,
    UploadId,
    UploadIntent,
)
from datas3tfs.core.names import index_object_key, staged_index_key
from datas3tfs.errors import Conflict, Invalid, NotFound

_SWEEP_AT_ONCE = 100  # uploads per transaction of abandon_expired

_RECORD = """
    INSERT INTO datarange_uploads (dataset_id, claim_id, data_object_key, index_object_key,
                                   first_datapoint_index, number_of_datapoints, data_size, expires_at,
                                   lease_holder, staged_index_key, replaces, attempt)
    VALUES ($1, $2, $3, $4, $5, $6, $7, now() + $8, $9, $10, $11, $12) RETURNING id
"""
_RENEW_ATTEMPT = """
    UPDATE datarange_uploads u SET expires_at = now() + $2 FROM datasets d
    WHERE u.attempt = $1 AND d.id = u.dataset_id RETURNING u.*, d.s3_bucket_id
"""
_ATTEMPT = """
    SELECT u.*, d.s3_bucket_id FROM datarange_uploads u JOIN datasets d ON d.id = u.dataset_id
    WHERE u.attempt = $1
"""
_STANDS = "SELECT true FROM datarange_uploads WHERE id = $1"
_PENDING = """
    SELECT u.*, d.s3_bucket_id FROM datarange_uploads u JOIN datasets d ON d.id = u.dataset_id WHERE u.id = $1
"""
_PUBLISHED = """
    SELECT * FROM dataranges WHERE datarange_upload_id = $1
    UNION ALL
    SELECT r.* FROM merged_uploads m JOIN dataranges r ON r.id = m.datarange_id WHERE m.upload_id = $1
"""
_FATE = f"""
    SELECT $1 <= pg_sequence_last_value(pg_get_serial_sequence('datarange_uploads', 'id')::regclass) AS begun,
           EXISTS ({_PUBLISHED}) AS published
"""
_REMEMBER = (
    "UPDATE datarange_uploads SET upload_id = coalesce(upload_id, $2) WHERE id = $1 RETURNING upload_id"
)
_CONFIRM = "UPDATE datarange_uploads SET confirmed = true WHERE id = $1 RETURNING true"
_RENEW = """
    UPDATE datarange_uploads
    SET expires_at = now() + CASE WHEN staged_index_key IS NULL THEN $2::interval ELSE $3::interval END
    WHERE id = $1 RETURNING true
"""
# When to delete what somebody may put through a URL: now, and again when none is valid any more.
_TIMES = """
    unnest(CASE WHEN staged_index_key IS NULL OR expires_at <= now() THEN ARRAY[now()]
                ELSE ARRAY[now(), expires_at] END) AS due
"""
_TAKE_INTENT = f"""
    WITH gone AS (
        DELETE FROM datarange_uploads WHERE id = $1 AND (replaces IS NOT NULL) = $2 RETURNING *
    ), doomed AS (
        INSERT INTO objects_to_delete (s3_bucket_id, object_key, delete_after)
        SELECT d.s3_bucket_id, staged_index_key, due
        FROM gone JOIN datasets d ON d.id = dataset_id CROSS JOIN LATERAL {_TIMES}
        WHERE staged_index_key IS NOT NULL
    )
    SELECT * FROM gone
"""
_PUBLISH = """
    INSERT INTO dataranges (dataset_id, claim_id, datarange_upload_id, data_object_key, index_object_key,
                            min_datapoint_key, max_datapoint_key, size_bytes)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING *
"""
# Keys with a holder stay claimed throughout: in one statement, the lease takes over the upload's claim.
_ABANDON = f"""
    WITH gone AS (
        DELETE FROM datarange_uploads u USING datasets d
        WHERE d.id = u.dataset_id AND u.id IN ({{which}})
        RETURNING u.*, d.s3_bucket_id
    ), kept AS (
        INSERT INTO key_leases (dataset_id, claim_id, first_key, last_key, holder, accepted)
        SELECT dataset_id, claim_id, first_datapoint_index, last_datapoint_index, lease_holder, true
        FROM gone WHERE lease_holder IS NOT NULL
    ), freed AS (
        DELETE FROM key_claims WHERE id IN (SELECT claim_id FROM gone WHERE lease_holder IS NULL)
    ), doomed AS (
        INSERT INTO objects_to_delete (s3_bucket_id, object_key, delete_after)
        SELECT s3_bucket_id, key, due
        FROM gone CROSS JOIN LATERAL {_TIMES}
            CROSS JOIN LATERAL unnest(ARRAY[data_object_key, index_object_key, staged_index_key]) AS key
        WHERE confirmed AND key IS NOT NULL
    )
    SELECT count(*) FROM gone
"""
_ABANDON_ONE = _ABANDON.format(which="$1")
_ABANDON_EXPIRED = _ABANDON.format(
    which="""
        SELECT id FROM datarange_uploads
        WHERE expires_at < now() AND (lease_holder IS NULL OR lease_holder = ANY($2::uuid[]))
        ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
    """
)
_ABANDON_OVERLAPPING = _ABANDON.format(
    which="""
        SELECT id FROM datarange_uploads
        WHERE lease_holder = $1 AND dataset_id = $2
            AND first_datapoint_index <= $4 AND last_datapoint_index >= $3 FOR UPDATE
    """
)
_ABANDON_ALL = _ABANDON.format(
    which="SELECT id FROM datarange_uploads WHERE lease_holder = $1 ORDER BY id FOR UPDATE"
)
# For registry.py, when the dataset is locked and has no claims: all its uploads are aggregates.
ABANDON_AGGREGATES = _ABANDON.format(
    which="SELECT id FROM datarange_uploads WHERE dataset_id = $1 FOR UPDATE"
)
ABANDON_THESE = _ABANDON.format(which="SELECT unnest($1::bigint[])")  # for leases.py, which has the locks
_LOCK_ITS_HOLDER = """
    SELECT true FROM lease_holders WHERE id = (SELECT lease_holder FROM datarange_uploads WHERE id = $1)
    FOR KEY SHARE
"""
_LOCK_HOLDERS_OF_EXPIRED = """
    SELECT id FROM lease_holders
    WHERE id IN (SELECT lease_holder FROM datarange_uploads WHERE expires_at < now())
    FOR KEY SHARE SKIP LOCKED
"""


class _Begin:
    """The work of begin(). Run again after a lost connection, it finds what it may have committed."""

    def __init__(self, intent: UploadIntent, fresh: bool, lifetime: timedelta) -> None:
        self._intent = intent
        self._fresh = fresh
        self._lifetime = lifetime
        self._made: Upload | None = None

    async def __call__(self, session: Session) -> Upload:
        intent = self._intent
        await claims.bound_idleness(session)
        if intent.holder is not None:
            await claims.lock_known_holder(session, intent.holder)
        # Here, as uploads come before datasets in the order of locks …
        if (begun := await self._begun(session, _RENEW_ATTEMPT, self._lifetime)) is not None:
            return begun
        dataset = await claims.lock_known_dataset(session, intent.dataset_id)
        if self._made is not None and await session.value(_STANDS, self._made.id):
            return self._made
        # … and again, as another begin may just have had the dataset.
        if (begun := await self._begun(session, _ATTEMPT)) is not None:
            return begun
        claim_id = await self._claim(session)
        data_key = await objectkeys.new_name(session, dataset, intent.keys, fresh=self._fresh)
        self._made = await self._record(session, dataset, claim_id, data_key)
        return self._made

    async def _begun(self, session: Session, query: str, *values: object) -> Upload | None:
        """Return what the same attempt has begun before. Raises Conflict if that was something else."""
        if self._intent.attempt is None:
            return None
        row = await session.row(query, self._intent.attempt, *values)
        if row is None:
            return None
        upload = rows.pending(row).upload
        if upload.intent != self._intent:
            raise Conflict(f"upload {upload.id}: this attempt has begun another upload")
        return upload

    async def _claim(self, session: Session) -> int | None:
        if self._intent.replaces:
            await aggregates.check_sources(session, self._intent)
            return None
        if self._intent.holder is not None:
            await self._pass_keys(session, self._intent.holder)
        return await claims.claim(session, self._intent.dataset_id, self._intent.keys)

    async def _pass_keys(self, session: Session, holder: HolderId) -> None:
        """Free what the holder has of the keys.

        A journal uploads a key once at a time. So an upload of its own that has one is from a begin()
        whose outcome it never learnt, and nobody works on it. The dataset is locked already, against the
        order of locks; but of those who may have that upload locked, the sweeper wants no dataset.
        """
        keys = self._intent.keys
        await session.value(_ABANDON_OVERLAPPING, holder, self._intent.dataset_id, keys.start, keys.last)
        await claims.carve(session, holder, self._intent.dataset_id, keys)

    async def _record(self, session: Session, dataset: Row, claim_id: int | None, data_key: str) -> Upload:
        intent, index_key = self._intent, index_object_key(data_key)
        what = intent.keys.start, intent.keys.length, intent.size
        staged = staged_index_key(data_key) if intent.presigned else None
        replaces = list(intent.replaces) or None
        kind = self._lifetime, intent.holder, staged, replaces, intent.attempt
        upload_id = await session.value(
            _RECORD, intent.dataset_id, claim_id, data_key, index_key, *what, *kind
        )
        return Upload(UploadId(upload_id), intent, BucketId(dataset["s3_bucket_id"]), data_key, index_key)


class _Publish:
    """The work of publish(). Run again after a lost connection, it finds the datarange it may have made."""

    def __init__(self, upload_id: UploadId, size: int | None, grace: timedelta) -> None:
        self._upload_id = upload_id
        self._size = size
        self._grace = grace

    async def __call__(self, session: Session) -> Row | None:
        """Return the datarange; None if the intent is gone and there is none."""
        await claims.bound_idleness(session)
        intent = await session.row(_TAKE_INTENT, self._upload_id, False)
        if intent is not None:
            return await self._insert(session, intent, intent["claim_id"])
        dataset = await aggregates.lock_its_dataset(session, self._upload_id)
        if dataset is not None:
            intent = await session.row(_TAKE_INTENT, self._upload_id, True)
            if intent is not None:
                bucket_id = dataset["s3_bucket_id"]
                replaced = await aggregates.take_over(session, bucket_id, intent, self._grace)
                made = await self._insert(session, intent, replaced.claim_id)
                await aggregates.remember(session, replaced, made["id"])
                return made
        return await session.row(_PUBLISHED, self._upload_id)

    async def _insert(self, session: Session, intent: Row, claim_id: int) -> Row:
        made = await session.row(
            _PUBLISH,
            intent["dataset_id"],
            claim_id,
            intent["id"],
            intent["data_object_key"],
            intent["index_object_key"],
            intent["first_datapoint_index"],
            intent["last_datapoint_index"],
            intent["data_size"] if self._size is None else self._size,
        )
        assert made is not None  # or it would have raised
        return made


class PostgresUploads:
    """From intent to published datarange; see ports.Uploads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lifetime = timedelta(seconds=database.settings.upload_lifetime)
        self._presigned_lifetime = timedelta(seconds=database.settings.presigned_lifetime)
        self._grace = timedelta(seconds=database.settings.grace)

    async def begin(self, intent: UploadIntent, *, fresh: bool = False) -> Upload:
        """Record *intent*: claim its keys and name two objects never used before in that bucket.

        Keys that the intent's holder has leased pass from the leases to the upload; an upload of its own
        that overlaps is abandoned. An aggregate claims nothing. An attempt that is in flight already is
        returned. Raises Conflict (a key is committed or
        claimed, or what an aggregate replaces is not there), NotFound (dataset, holder), Invalid.
        """
        keys = intent.keys
        rows.check_keys(keys, "uploaded")
        rows.check_size(intent.size)
        if intent.replaces:
            aggregates.check(intent)
        if intent.holder is not None:
            rows.check_holder(intent.holder)
        if intent.attempt is not None:
            rows.check_attempt(intent.attempt)
        what = f"keys {keys.start} to {keys.last} of dataset {intent.dataset_id}"
        lifetime = self._presigned_lifetime if intent.presigned else self._lifetime
        return await self._database.change(what, _Begin(intent, fresh, lifetime), repeat=True)

    async def pending(self, upload_id: UploadId) -> PendingUpload:
        """Return an upload in flight. Raises NotFound (no upload ever had that id), Conflict (it is
        published, was abandoned, or has expired and was swept), Corrupt."""

        async def work(session: Session) -> tuple[Row | None, Row | None]:
            found = await session.row(_PENDING, upload_id)
            return found, None if found else await session.row(_FATE, upload_id)

        row, fate = await self._database.read(f"upload {upload_id}", work)
        if row is not None:
            return rows.pending(row)
        assert fate is not None
        if upload_id < 1 or not fate["begun"]:
            raise NotFound(f"upload {upload_id}: there is none of this id")
        if fate["published"]:
            raise Conflict(f"upload {upload_id}: it is published")
        raise _gone(upload_id)

    async def remember_multipart(self, upload_id: UploadId, multipart: str) -> str:
        """Record S3's id of the upload's presigned multipart upload, if none is recorded yet; return the one
        that is. Raises Conflict if the upload is gone, Invalid (nothing that can be such an id), Corrupt."""
        if not multipart or not multipart.isprintable():
            raise Invalid(f"upload {upload_id}: that is not the id of a multipart upload")
        return rows.multipart(upload_id, await self._update(_REMEMBER, upload_id, multipart))

    async def confirm(self, upload_id: UploadId) -> None:
        """Record that what lies at its object names from now on is its own. Raises Conflict if it is gone."""
        await self._update(_CONFIRM, upload_id)

    async def renew(self, upload_id: UploadId) -> None:
        """Put off the upload's expiry. Raises Conflict if it is gone."""
        await self._update(_RENEW, upload_id, self._lifetime, self._presigned_lifetime)

    async def _update(self, query: str, upload_id: UploadId, *values: object) -> Any:
        """Return what *query* gives, which is never NULL. Raises Conflict if the upload is gone."""

        async def work(session: Session) -> Any:
            return await session.value(query, upload_id, *values)

        given = await self._database.change(f"upload {upload_id}", work, repeat=True)
        if given is None:
            raise _gone(upload_id)
        return given

    async def publish(self, upload_id: UploadId, size: int | None = None) -> Datarange:
        """Make the datarange visible and forget the intent; *size* replaces that of the intent. Raises
        Conflict if the intent is gone, or what it replaces is.

        Publishing what is published already returns it: so a commit whose outcome is unknown is repeated.
        The dataset's version and the notification are the doing of schema.sql's triggers.
        """
        if size is not None:
            rows.check_size(size)
        work = _Publish(upload_id, size, self._grace)
        row = await self._database.change(f"upload {upload_id}", work, repeat=True)
        if row is None:
            raise _gone(upload_id)
        return rows.datarange(row)

    async def abandon(self, upload_id: UploadId) -> None:
        """Forget the intent, free its keys or give them back to its holder, as one accepted lease, and, if
        it was confirmed, doom its objects.

        Does nothing if it is gone.
        """

        async def work(session: Session) -> None:
            await claims.bound_idleness(session)
            await session.value(_LOCK_ITS_HOLDER, upload_id)
            await session.value(_ABANDON_ONE, upload_id)

        await self._database.change(f"upload {upload_id}", work, repeat=True)

    async def abandon_expired(self) -> int:
        """Abandon every upload whose writer has stopped renewing it; return how many.

        One that is being renewed, published or swept by somebody else at this moment is passed over.
        """

        async def work(session: Session) -> int:
            await claims.bound_idleness(session)
            holders = [row["id"] for row in await session.rows(_LOCK_HOLDERS_OF_EXPIRED)]
            count: int = await session.value(_ABANDON_EXPIRED, _SWEEP_AT_ONCE, holders)
            return count

        total = 0
        while True:
            swept = await self._database.change("expired uploads", work, repeat=True)
            total += swept
            if swept < _SWEEP_AT_ONCE:
                return total

    async def abandon_all(self, holder: HolderId) -> int:
        """Abandon every upload of *holder*, expired or not; return how many."""
        rows.check_holder(holder)

        async def work(session: Session) -> int:
            await claims.bound_idleness(session)
            if not await claims.lock_holder(session, holder):
                return 0
            count: int = await session.value(_ABANDON_ALL, holder)
            return count

        return await self._database.change(f"uploads of journal {holder}", work, repeat=True)

    async def published(self, upload_id: UploadId) -> Datarange | None:
        """Return the datarange that came from the upload, or the aggregate that has replaced it; None if
        there is none. Raises Corrupt."""

        async def work(session: Session) -> Row | None:
            return await session.row(_PUBLISHED, upload_id)

        row = await self._database.read(f"upload {upload_id}", work)
        return None if row is None else rows.datarange(row)


def _gone(upload_id: UploadId) -> Conflict:
    return Conflict(f"upload {upload_id}: it was abandoned, or has expired and was swept")
