"""Beginning an upload, inside a transaction: who gets the keys, and what its objects are called.

Locks are taken in the order of claims.py.
"""

from __future__ import annotations

from datetime import timedelta

from datas3tfs.catalog import aggregates, claims, objectkeys, rows
from datas3tfs.catalog.abandoning import ABANDON_OVERLAPPING
from datas3tfs.catalog.database import Row, Session
from datas3tfs.core.model import BucketId, HolderId, Upload, UploadId, UploadIntent
from datas3tfs.core.names import index_object_key, staged_index_key
from datas3tfs.errors import Conflict

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


class Begin:
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
        await session.value(ABANDON_OVERLAPPING, holder, self._intent.dataset_id, keys.start, keys.last)
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
