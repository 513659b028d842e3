"""ports.Uploads on Postgres: each method is one transaction, and may be repeated when its outcome is unknown.

Locks are taken in the order of claims.py. No state.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from datas3tfs.catalog import aggregates, claims, rows
from datas3tfs.catalog.abandoning import ABANDON_ALL, ABANDON_EXPIRED, ABANDON_ONE
from datas3tfs.catalog.beginning import Begin
from datas3tfs.catalog.database import Database, Row, Session
from datas3tfs.catalog.publishing import PUBLISHED, Publish
from datas3tfs.core.model import (
    Datarange,
    DatasetId,
    HolderId,
    PendingUpload,
    Upload,
    UploadId,
    UploadIntent,
)
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound

_SWEEP_AT_ONCE = 100  # uploads per transaction of abandon_expired

_PENDING = """
    SELECT u.*, d.s3_bucket_id FROM datarange_uploads u JOIN datasets d ON d.id = u.dataset_id WHERE u.id = $1
"""
_IN_FLIGHT = """
    SELECT u.*, d.s3_bucket_id FROM datarange_uploads u JOIN datasets d ON d.id = u.dataset_id
    WHERE u.dataset_id = $1 AND u.last_datapoint_index >= $2 AND u.first_datapoint_index <= $3
        AND u.staged_index_key IS NOT NULL
    ORDER BY u.first_datapoint_index, u.id
"""
_FATE = f"""
    SELECT $1 <= pg_sequence_last_value(pg_get_serial_sequence('datarange_uploads', 'id')::regclass) AS begun,
           EXISTS ({PUBLISHED}) AS published
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
_LOCK_ITS_HOLDER = """
    SELECT true FROM lease_holders WHERE id = (SELECT lease_holder FROM datarange_uploads WHERE id = $1)
    FOR KEY SHARE
"""
_LOCK_HOLDERS_OF_EXPIRED = """
    SELECT id FROM lease_holders
    WHERE id IN (SELECT lease_holder FROM datarange_uploads WHERE expires_at < now())
    FOR KEY SHARE SKIP LOCKED
"""


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
        return await self._database.change(what, Begin(intent, fresh, lifetime), repeat=True)

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

    async def in_flight(self, dataset_id: DatasetId, keys: Span) -> list[PendingUpload]:
        """Return the uploads through URLs, expired or not, that are to have one of *keys* of a dataset, by
        key. Raises Corrupt."""

        async def work(session: Session) -> list[Row]:
            return await session.rows(_IN_FLIGHT, dataset_id, keys.start, keys.last)

        found = await self._database.read(f"uploads to dataset {dataset_id}", work)
        return [rows.pending(row) for row in found]

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
        work = Publish(upload_id, size, self._grace)
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
            await session.value(ABANDON_ONE, upload_id)

        await self._database.change(f"upload {upload_id}", work, repeat=True)

    async def abandon_expired(self) -> int:
        """Abandon every upload whose writer has stopped renewing it; return how many.

        One that is being renewed, published or swept by somebody else at this moment is passed over.
        """

        async def work(session: Session) -> int:
            await claims.bound_idleness(session)
            holders = [row["id"] for row in await session.rows(_LOCK_HOLDERS_OF_EXPIRED)]
            count: int = await session.value(ABANDON_EXPIRED, _SWEEP_AT_ONCE, holders)
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
            count: int = await session.value(ABANDON_ALL, holder)
            return count

        return await self._database.change(f"uploads of journal {holder}", work, repeat=True)

    async def published(self, upload_id: UploadId) -> Datarange | None:
        """Return the datarange that came from the upload, or the aggregate that has replaced it; None if
        there is none. Raises Corrupt."""

        async def work(session: Session) -> Row | None:
            return await session.row(PUBLISHED, upload_id)

        row = await self._database.read(f"upload {upload_id}", work)
        return None if row is None else rows.datarange(row)


def _gone(upload_id: UploadId) -> Conflict:
    return Conflict(f"upload {upload_id}: it was abandoned, or has expired and was swept")
