"""Aggregates, inside a transaction: uploads that take the place of dataranges instead of claiming keys.

The row of an aggregate comes after its dataset's row in the order of locks (claims.py): publishing one wants
the dataset, removing a dataset wants them. No state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from datas3tfs.catalog import claims, objectkeys
from datas3tfs.catalog.database import Row, Session
from datas3tfs.core.model import DatarangeId, DatasetId, UploadId, UploadIntent
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid

_LEAST = 2  # merging fewer makes nothing better

_SOURCES = """
    SELECT id, min_datapoint_key, max_datapoint_key FROM dataranges
    WHERE dataset_id = $1 AND id = ANY($2::bigint[])
"""
_LOCK_ITS_DATASET = """
    SELECT d.id, d.s3_bucket_id FROM datasets d JOIN datarange_uploads u ON u.dataset_id = d.id
    WHERE u.id = $1 AND u.replaces IS NOT NULL FOR NO KEY UPDATE OF d
"""

_MERGED_BEFORE = "DELETE FROM merged_uploads WHERE datarange_id = ANY($1::bigint[]) RETURNING upload_id"
_REMEMBER = "INSERT INTO merged_uploads (upload_id, datarange_id) SELECT unnest($1::bigint[]), $2"


def check(intent: UploadIntent) -> None:
    """Raise Invalid if *intent* cannot be an aggregate's."""
    if len(set(intent.replaces)) < max(_LEAST, len(intent.replaces)):
        raise Invalid(f"{_what(intent)}: an aggregate is made of at least two dataranges, each once")
    if intent.holder is not None:
        raise Invalid(f"{_what(intent)}: no journal holds the keys of an aggregate")


async def check_sources(session: Session, intent: UploadIntent) -> None:
    """Raise Conflict unless the dataranges to replace are there and hold exactly the intent's keys.

    The dataset is locked; publishing looks again."""
    found = await session.rows(_SOURCES, intent.dataset_id, list(intent.replaces))
    if not _fit(found, intent.replaces, intent.keys):
        raise Conflict(f"{_what(intent)}: {_CHANGED}")


async def lock_its_dataset(session: Session, upload_id: UploadId) -> Row | None:
    """Lock the dataset of an aggregate; return its id and bucket, None if the aggregate is gone."""
    return await session.row(_LOCK_ITS_DATASET, upload_id)


@dataclass(frozen=True, slots=True)
class Replaced:
    """What the sources of an aggregate leave to it."""

    claim_id: int  # of their keys
    uploads: list[int]  # that they came from


async def take_over(session: Session, bucket_id: int, intent: Row, grace: timedelta) -> Replaced:
    """Take the sources of the aggregate *intent*, a row of datarange_uploads, away; claim their keys.

    The dataset is locked. Raises Conflict if they are not what they were when it was begun."""
    dataset_id = DatasetId(intent["dataset_id"])
    keys = Span(intent["first_datapoint_index"], intent["last_datapoint_index"] + 1)
    which = [DatarangeId(one) for one in intent["replaces"]]
    merged = await session.rows(_MERGED_BEFORE, which)
    gone = await objectkeys.take_away_these(session, dataset_id, bucket_id, grace, which)
    if not _fit(gone, which, keys):
        raise Conflict(f"upload {intent['id']}: {_CHANGED}")
    uploads = [row["upload_id"] for row in merged] + [row["datarange_upload_id"] for row in gone]
    known = [upload for upload in uploads if upload is not None]  # none was adopted from its bucket
    return Replaced(await claims.claim(session, dataset_id, keys), known)


async def remember(session: Session, replaced: Replaced, datarange_id: int) -> None:
    """Note that what came from the uploads of *replaced* is in the datarange now."""
    await session.value(_REMEMBER, replaced.uploads, datarange_id)


def _fit(found: list[Row], which: Sequence[DatarangeId], keys: Span) -> bool:
    """Say whether the dataranges *which*, in that order, are all *found* and hold exactly *keys*."""
    by_id = {row["id"]: row for row in found}
    reached = keys.start
    for one in which:
        if one not in by_id or by_id[one]["min_datapoint_key"] != reached:
            return False
        reached = by_id[one]["max_datapoint_key"] + 1
    return reached == keys.stop


_CHANGED = "the dataranges to replace are not all there any more, or hold other keys"


def _what(intent: UploadIntent) -> str:
    return f"keys {intent.keys.start} to {intent.keys.last} of dataset {intent.dataset_id}"
