"""Publishing an upload, inside a transaction: the intent goes, the datarange comes.

Locks are taken in the order of claims.py.
"""

from __future__ import annotations

from datetime import timedelta

from datas3tfs.catalog import aggregates, claims
from datas3tfs.catalog.abandoning import DUE
from datas3tfs.catalog.database import Row, Session
from datas3tfs.core.model import UploadId

PUBLISHED = """
    SELECT * FROM dataranges WHERE datarange_upload_id = $1
    UNION ALL
    SELECT r.* FROM merged_uploads m JOIN dataranges r ON r.id = m.datarange_id WHERE m.upload_id = $1
"""
_TAKE_INTENT = f"""
    WITH gone AS (
        DELETE FROM datarange_uploads WHERE id = $1 AND (replaces IS NOT NULL) = $2 RETURNING *
    ), doomed AS (
        INSERT INTO objects_to_delete (s3_bucket_id, object_key, delete_after)
        SELECT d.s3_bucket_id, staged_index_key, due
        FROM gone JOIN datasets d ON d.id = dataset_id CROSS JOIN LATERAL {DUE}
        WHERE staged_index_key IS NOT NULL
    )
    SELECT * FROM gone
"""
_PUBLISH = """
    INSERT INTO dataranges (dataset_id, claim_id, datarange_upload_id, data_object_key, index_object_key,
                            min_datapoint_key, max_datapoint_key, size_bytes)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING *
"""


class Publish:
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
        return await session.row(PUBLISHED, self._upload_id)

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
