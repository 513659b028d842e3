"""ports.Uploads on Postgres: each method is one transaction, and may be repeated when its outcome is unknown.

Locks are taken in the order of claims.py. No state.
"""

from __future__ import annotations

from datetime import timedelta

from datas3tfs.catalog import claims, rows
from datas3tfs.catalog.database import Database, Row, Session
from datas3tfs.core.model import BucketId, Datarange, HolderId, Upload, UploadId, UploadIntent
from datas3tfs.core.names import KEY_LIMIT, data_object_key, index_object_key
from datas3tfs.errors import Conflict, Invalid

_SWEEP_AT_ONCE = 100  # uploads per transaction of abandon_expired

_TAKE_NAME = """
    INSERT INTO object_names (s3_bucket_id, object_key) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true
"""
_GENERATION = "SELECT nextval('object_generations')"
_RECORD = """
    INSERT INTO datarange_uploads (dataset_id, claim_id, data_object_key, index_object_key,
                                   first_datapoint_index, number_of_datapoints, data_size, expires_at,
                                   lease_holder)
    VALUES ($1, $2, $3, $4, $5, $6, $7, now() + $8, $9) RETURNING id
"""
_STANDS = "SELECT true FROM datarange_uploads WHERE id = $1"
_CONFIRM = "UPDATE datarange_uploads SET confirmed = true WHERE id = $1 RETURNING true"
_RENEW = "UPDATE datarange_uploads SET expires_at = now() + $2 WHERE id = $1 RETURNING true"
_TAKE_INTENT = "DELETE FROM datarange_uploads WHERE id = $1 RETURNING *"
_PUBLISH = """
    INSERT INTO dataranges (dataset_id, claim_id, datarange_upload_id, data_object_key, index_object_key,
                            min_datapoint_key, max_datapoint_key, size_bytes)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING *
"""
_PUBLISHED = "SELECT * FROM dataranges WHERE datarange_upload_id = $1"
# Keys with a holder stay claimed throughout: in one statement, the lease takes over the upload's claim.
_ABANDON = """
    WITH gone AS (
        DELETE FROM datarange_uploads u USING datasets d
        WHERE d.id = u.dataset_id AND u.id IN ({which})
        RETURNING u.*, d.s3_bucket_id
    ), kept AS (
        INSERT INTO key_leases (dataset_id, claim_id, first_key, last_key, holder, accepted)
        SELECT dataset_id, claim_id, first_datapoint_index, last_datapoint_index, lease_holder, true
        FROM gone WHERE lease_holder IS NOT NULL
    ), freed AS (
        DELETE FROM key_claims WHERE id IN (SELECT claim_id FROM gone WHERE lease_holder IS NULL)
    ), doomed AS (
        INSERT INTO objects_to_delete (s3_bucket_id, object_key)
        SELECT s3_bucket_id, unnest(ARRAY[data_object_key, index_object_key]) FROM gone WHERE confirmed
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
        dataset = await claims.lock_known_dataset(session, intent.dataset_id)
        if self._made is not None and await session.value(_STANDS, self._made.id):
            return self._made
        if intent.holder is not None:
            await self._pass_keys(session, intent.holder)
        claim_id = await claims.claim(session, intent.dataset_id, intent.keys)
        data_key = await self._name(session, dataset)
        self._made = await self._record(session, dataset, claim_id, data_key)
        return self._made

    async def _pass_keys(self, session: Session, holder: HolderId) -> None:
        """Free what the holder has of the keys.

        A journal uploads a key once at a time. So an upload of its own that has one is from a begin()
        whose outcome it never learnt, and nobody works on it. The dataset is locked already, against the
        order of locks; but of those who may have that upload locked, the sweeper wants no dataset.
        """
        keys = self._intent.keys
        await session.value(_ABANDON_OVERLAPPING, holder, self._intent.dataset_id, keys.start, keys.last)
        await claims.carve(session, holder, self._intent.dataset_id, keys)

    async def _name(self, session: Session, dataset: Row) -> str:
        bucket_id = dataset["s3_bucket_id"]
        plain = data_object_key(dataset["name"], self._intent.keys, None)
        # A fresh one is for a plain name whose object exists: taken by somebody unknown, hence for good.
        unused = await session.value(_TAKE_NAME, bucket_id, plain)
        if unused and not self._fresh:
            return plain
        while True:
            generation = await session.value(_GENERATION)
            numbered = data_object_key(dataset["name"], self._intent.keys, generation)
            if await session.value(_TAKE_NAME, bucket_id, numbered):
                return numbered

    async def _record(self, session: Session, dataset: Row, claim_id: int, data_key: str) -> Upload:
        intent, index_key = self._intent, index_object_key(data_key)
        what = intent.keys.start, intent.keys.length, intent.size
        upload_id = await session.value(
            _RECORD, intent.dataset_id, claim_id, data_key, index_key, *what, self._lifetime, intent.holder
        )
        return Upload(UploadId(upload_id), intent, BucketId(dataset["s3_bucket_id"]), data_key, index_key)


class PostgresUploads:
    """From intent to published datarange; see ports.Uploads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lifetime = timedelta(seconds=database.settings.upload_lifetime)

    async def begin(self, intent: UploadIntent, *, fresh: bool = False) -> Upload:
        """Record *intent*: claim its keys and name two objects never used before in that bucket.

        Keys that the intent's holder has leased pass from the leases to the upload; an upload of its own
        that overlaps is abandoned. Raises Conflict (a key is committed or claimed), NotFound (dataset,
        holder), Invalid (keys that cannot be).
        """
        keys = intent.keys
        if not keys or keys.start < 0 or keys.stop > KEY_LIMIT or keys.length >= KEY_LIMIT:
            raise Invalid(f"keys from {keys.start} to before {keys.stop} cannot be uploaded")
        if not 0 <= intent.size < 2**63:
            raise Invalid(f"{intent.size} is not the size of an object")
        if intent.holder is not None:
            rows.check_holder(intent.holder)
        what = f"keys {keys.start} to {keys.last} of dataset {intent.dataset_id}"
        return await self._database.change(what, _Begin(intent, fresh, self._lifetime), repeat=True)

    async def confirm(self, upload_id: UploadId) -> None:
        """Record that what lies at its object names from now on is its own. Raises Conflict if it is gone."""

        async def work(session: Session) -> bool:
            return bool(await session.value(_CONFIRM, upload_id))

        if not await self._database.change(f"upload {upload_id}", work, repeat=True):
            raise _gone(upload_id)

    async def renew(self, upload_id: UploadId) -> None:
        """Put off the upload's expiry. Raises Conflict if it is gone."""

        async def work(session: Session) -> bool:
            return bool(await session.value(_RENEW, upload_id, self._lifetime))

        if not await self._database.change(f"upload {upload_id}", work, repeat=True):
            raise _gone(upload_id)

    async def publish(self, upload_id: UploadId) -> Datarange:
        """Make the datarange visible and forget the intent. Raises Conflict if the intent is gone.

        Publishing what is published already returns it: so a commit whose outcome is unknown is repeated.
        The dataset's version and the notification are the doing of schema.sql's triggers.
        """

        async def work(session: Session) -> Row | None:
            await claims.bound_idleness(session)
            intent = await session.row(_TAKE_INTENT, upload_id)
            if intent is None:
                return await session.row(_PUBLISHED, upload_id)
            return await session.row(
                _PUBLISH,
                intent["dataset_id"],
                intent["claim_id"],
                intent["id"],
                intent["data_object_key"],
                intent["index_object_key"],
                intent["first_datapoint_index"],
                intent["last_datapoint_index"],
                intent["data_size"],
            )

        row = await self._database.change(f"upload {upload_id}", work, repeat=True)
        if row is None:
            raise _gone(upload_id)
        return rows.datarange(row)

    async def abandon(self, upload_id: UploadId) -> None:
        """Forget the intent, free its keys or give them back to its holder, as one accepted lease, and, if
        it was confirmed, doom both objects.

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
        """Return the datarange that came from the upload; None if there is none. Raises Corrupt."""

        async def work(session: Session) -> Row | None:
            return await session.row(_PUBLISHED, upload_id)

        row = await self._database.read(f"upload {upload_id}", work)
        return None if row is None else rows.datarange(row)


def _gone(upload_id: UploadId) -> Conflict:
    return Conflict(f"upload {upload_id}: it was abandoned, or has expired and was swept")
