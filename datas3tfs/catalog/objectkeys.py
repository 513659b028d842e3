"""Object keys in buckets, inside a transaction: handed out once, doomed when nothing refers to them.

No state."""

from __future__ import annotations

from datetime import timedelta

from datas3tfs.catalog.database import Row, Session
from datas3tfs.core.model import DatarangeId, DatasetId
from datas3tfs.core.names import data_object_key
from datas3tfs.core.spans import Span

_TAKE = """
    INSERT INTO object_names (s3_bucket_id, object_key) VALUES ($1, $2) ON CONFLICT DO NOTHING RETURNING true
"""
_GENERATION = "SELECT nextval('object_generations')"

# Dataranges of dataset $1, in bucket $2, go; schema.sql's trigger frees their keys. Whoever looked them up
# before may still read their objects, for the time $3.
_TAKE_AWAY = """
    WITH gone AS (
        DELETE FROM dataranges WHERE dataset_id = $1 AND {which} RETURNING *
    ), doomed AS (
        INSERT INTO objects_to_delete (s3_bucket_id, object_key, delete_after)
        SELECT $2, unnest(ARRAY[data_object_key, index_object_key]), now() + $3 FROM gone
    )
    SELECT {what} FROM gone
"""
_TAKE_AWAY_EXACT = _TAKE_AWAY.format(which="min_datapoint_key = $4 AND max_datapoint_key = $5", what="*")
_TAKE_AWAY_THESE = _TAKE_AWAY.format(
    which="id = ANY($4::bigint[])", what="id, datarange_upload_id, min_datapoint_key, max_datapoint_key"
)
_TAKE_AWAY_ALL = _TAKE_AWAY.format(which="true", what="count(*)")


async def take_name(session: Session, bucket_id: int, data_key: str) -> bool:
    """Take *data_key* for a TAR, for ever; False if it was taken before."""
    return bool(await session.value(_TAKE, bucket_id, data_key))


async def new_name(session: Session, dataset: Row, keys: Span, *, fresh: bool) -> str:
    """Take and return a TAR's object key that was never handed out; *fresh*: one with a generation."""
    bucket_id = dataset["s3_bucket_id"]
    plain = data_object_key(dataset["name"], keys, None)
    # A fresh one is for a plain name whose object exists: taken by somebody unknown, hence for good.
    if await take_name(session, bucket_id, plain) and not fresh:
        return plain
    while True:
        numbered = data_object_key(dataset["name"], keys, await session.value(_GENERATION))
        if await take_name(session, bucket_id, numbered):
            return numbered


async def take_away_exact(
    session: Session, dataset_id: DatasetId, bucket_id: int, grace: timedelta, keys: Span
) -> Row | None:
    """Take the datarange of exactly *keys* away; return it, None if there is none. The dataset is locked."""
    return await session.row(_TAKE_AWAY_EXACT, dataset_id, bucket_id, grace, keys.start, keys.last)


async def take_away_these(
    session: Session,
    dataset_id: DatasetId,
    bucket_id: int,
    grace: timedelta,
    which: list[DatarangeId],
) -> list[Row]:
    """Take *which* away, as many as are there; return their ids, uploads
    and keys. The dataset is locked."""
    return await session.rows(_TAKE_AWAY_THESE, dataset_id, bucket_id, grace, which)


async def take_away_all(session: Session, dataset_id: DatasetId, bucket_id: int, grace: timedelta) -> int:
    """Take all dataranges of the dataset away; return how many. The dataset is locked."""
    count: int = await session.value(_TAKE_AWAY_ALL, dataset_id, bucket_id, grace)
    return count
