"""ports.CatalogReader on Postgres: the committed state, word of its changes. No state but warnings given."""

from __future__ import annotations

import logging
from contextlib import AbstractAsyncContextManager

import trio

from datas3tfs.catalog import rows
from datas3tfs.catalog.changes import open_feed
from datas3tfs.catalog.crypto import Cipher
from datas3tfs.catalog.database import Database, Row, Session
from datas3tfs.core.model import Bucket, BucketId, Datarange, Dataset, DatasetId, Overlap
from datas3tfs.core.names import KEY_LIMIT, check_label
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid, NotFound
from datas3tfs.ports import ChangeFeed

_log = logging.getLogger(__name__)

_ROWS_AT_ONCE = 1000  # 5 ms of work, then others have a turn

# numeric: the sums of bigints would be, and a hostile row must not overflow the listing of all others.
_DATASETS = """
    SELECT d.id, d.name, d.s3_bucket_id, b.name AS bucket_name, d.version, d.updated_at,
           count(r.id) AS dataranges,
           coalesce(sum(r.max_datapoint_key::numeric - r.min_datapoint_key + 1), 0) AS datapoints,
           coalesce(sum(r.size_bytes), 0) AS total_bytes,
           min(r.min_datapoint_key) AS lowest_key, max(r.max_datapoint_key) AS highest_key
    FROM datasets d JOIN s3_buckets b ON b.id = d.s3_bucket_id LEFT JOIN dataranges r ON r.dataset_id = d.id
"""
_ALL_DATASETS = _DATASETS + " GROUP BY d.id, b.id ORDER BY d.id"
_ONE_DATASET = _DATASETS + " WHERE d.name = $1 GROUP BY d.id, b.id"
_DATARANGES = """
    SELECT id, dataset_id, data_object_key, index_object_key, min_datapoint_key, max_datapoint_key,
           size_bytes, created_at
    FROM dataranges WHERE dataset_id = $1 ORDER BY min_datapoint_key, id
"""
# Dataranges do not overlap one another, so of those that begin before $2 only the last can have a key from
# $2 to $3: an index finds them all. One statement, so that all of it was true at one moment.
_OVERLAP = """
    SELECT d.id AS dataset, d.s3_bucket_id, r.*,
           NOT EXISTS (SELECT FROM dataranges WHERE dataset_id = d.id) AS is_empty
    FROM datasets d LEFT JOIN dataranges r
        ON r.dataset_id = d.id
            AND r.max_datapoint_key >= $2 AND r.min_datapoint_key <= $3
            AND r.min_datapoint_key >= coalesce(
                (SELECT max(min_datapoint_key) FROM dataranges
                 WHERE dataset_id = d.id AND min_datapoint_key <= $2), $2)
    WHERE d.name = $1 ORDER BY r.min_datapoint_key, r.id
"""
_BUCKET = """
    SELECT id, name, endpoint, bucket, access_key, secret_key, use_tls, region FROM s3_buckets WHERE id = $1
"""


class PostgresReader:
    """What is committed. Its answers are checked values; see ports.CatalogReader."""

    def __init__(self, database: Database, cipher: Cipher) -> None:
        self._database = database
        self._cipher = cipher
        self._warned: set[int] = set()  # ids of datasets skipped, so as to say it once

    async def datasets(self) -> list[Dataset]:
        """Return all datasets, ascending by id; one whose name is not valid is left out with a warning."""

        async def work(session: Session) -> list[Row]:
            return await session.rows(_ALL_DATASETS)

        found = await self._database.read("datasets", work)
        return [dataset for dataset in map(self._checked, found) if dataset is not None]

    def _checked(self, row: Row) -> Dataset | None:
        try:
            return rows.dataset(row)
        except Invalid as exc:
            if row["id"] not in self._warned:
                self._warned.add(row["id"])
                _log.warning("dataset %d is not shown: %s", row["id"], exc)
            return None

    async def dataset(self, name: str) -> Dataset:
        """Return the dataset called *name*. Raises NotFound, Invalid (it cannot be a name)."""
        check_label("dataset", name)

        async def work(session: Session) -> Row | None:
            return await session.row(_ONE_DATASET, name)

        row = await self._database.read(f"dataset {name}", work)
        if row is None:
            raise NotFound(f"dataset {name}: there is none of this name")
        return rows.dataset(row)

    async def dataranges(self, dataset_id: DatasetId) -> list[Datarange]:
        """Return the committed dataranges of a dataset, ascending by key. Raises Corrupt."""

        async def work(session: Session) -> list[Row]:
            return await session.rows(_DATARANGES, dataset_id)

        found = await self._database.read(f"dataranges of dataset {dataset_id}", work)
        return await _dataranges(found)

    async def overlap(self, name: str, keys: Span) -> Overlap:
        """Return the committed dataranges of the dataset called *name* that have one of *keys*, as they are
        at this moment. Raises NotFound, Invalid (it cannot be a name), Corrupt."""
        check_label("dataset", name)
        there = keys.intersection(Span(0, KEY_LIMIT)) or Span(0, 0)  # 0 to -1: no datarange is there

        async def work(session: Session) -> list[Row]:
            return await session.rows(_OVERLAP, name, there.start, there.last)

        found = await self._database.read(f"dataset {name}", work)
        if not found:
            raise NotFound(f"dataset {name}: there is none of this name")
        made = await _dataranges([row for row in found if row["id"] is not None])
        row = found[0]
        return Overlap(DatasetId(row["dataset"]), BucketId(row["s3_bucket_id"]), made, row["is_empty"])

    async def bucket(self, bucket_id: BucketId) -> Bucket:
        """Return a bucket with its credentials. Raises NotFound, Invalid (wrong encryption key), Corrupt."""

        async def work(session: Session) -> Row | None:
            return await session.row(_BUCKET, bucket_id)

        row = await self._database.read(f"bucket {bucket_id}", work)
        if row is None:
            raise NotFound(f"bucket {bucket_id}: there is none of this id")
        try:
            keys = self._cipher.decrypt(row["access_key"]), self._cipher.decrypt(row["secret_key"])
        except Invalid as exc:
            raise Invalid(f"bucket {bucket_id}: {exc}") from None
        return rows.bucket(row, *keys)

    def changes(self) -> AbstractAsyncContextManager[ChangeFeed]:
        """Subscribe to changes made anywhere; see changes.py."""
        return open_feed(self._database)


async def _dataranges(found: list[Row]) -> list[Datarange]:
    made: list[Datarange] = []
    for start in range(0, len(found), _ROWS_AT_ONCE):
        made += map(rows.datarange, found[start : start + _ROWS_AT_ONCE])
        await trio.lowlevel.checkpoint()
    return rows.ascending(made)
