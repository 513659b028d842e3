"""ports.Dataranges on Postgres: dataranges that come and go otherwise than by an upload.

Each method is one transaction, and may be repeated when its outcome is unknown. Locks are taken in the
order of claims.py. No state.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Generic, TypeVar

from datas3tfs.catalog import claims, objectkeys, rows
from datas3tfs.catalog.database import Database, Row, Session
from datas3tfs.core.model import BucketId, Datarange, DatasetId
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, NotFound

T = TypeVar("T")

_HANDED_OUT = "SELECT object_key FROM object_names WHERE s3_bucket_id = $1 AND object_key = ANY($2::text[])"
_THIS_TRANSACTION = "SELECT pg_current_xact_id()::text"
_WAS_COMMITTED = "SELECT pg_xact_status($1::text::xid8) = 'committed'"
_BY_ID = "SELECT * FROM dataranges WHERE id = $1"
_ADOPT = """
    INSERT INTO dataranges (dataset_id, claim_id, data_object_key, index_object_key,
                            min_datapoint_key, max_datapoint_key, size_bytes)
    VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING *
"""


class _Adopt:
    """The work of adopt(). Run again after a lost connection, it finds what it may have committed."""

    def __init__(self, dataset_id: DatasetId, keys: Span, data_key: str, index_key: str, size: int) -> None:
        self._dataset_id = dataset_id
        self._keys = keys
        self._objects = data_key, index_key
        self._size = size
        self._made: Row | None = None

    async def __call__(self, session: Session) -> Row:
        await claims.bound_idleness(session)
        dataset = await claims.lock_known_dataset(session, self._dataset_id)
        if self._made is not None and await session.row(_BY_ID, self._made["id"]):
            return self._made
        if not await objectkeys.take_name(session, dataset["s3_bucket_id"], self._objects[0]):
            raise Conflict(
                f"{self._objects[0]}: this catalog has handed it out itself: it is committed already, "
                "in flight, or to be deleted"
            )
        claim_id = await claims.claim(session, self._dataset_id, self._keys)
        values = *self._objects, self._keys.start, self._keys.last, self._size
        self._made = await session.row(_ADOPT, self._dataset_id, claim_id, *values)
        assert self._made is not None
        return self._made


class _Removal(Generic[T]):
    """The work of what takes dataranges of a dataset away, once: run again after a lost connection, it asks
    Postgres what became of the transaction before, and does nothing if that was committed."""

    def __init__(self, dataset_id: DatasetId, take_away: Callable[[Session, int], Awaitable[T]]) -> None:
        self._dataset_id = dataset_id
        self._take_away = take_away  # gets the bucket's id; the dataset is locked
        self._before: tuple[str, T] | None = None  # the transaction's id, and what it did

    async def __call__(self, session: Session) -> T:
        await claims.bound_idleness(session)
        # Whoever gets this lock knows that the transaction before, which had it, has ended.
        dataset = await claims.lock_dataset(session, self._dataset_id)
        if self._before is not None and await session.value(_WAS_COMMITTED, self._before[0]):
            return self._before[1]
        if dataset is None:
            raise NotFound(f"dataset {self._dataset_id}: there is none of this id")
        done = await self._take_away(session, dataset["s3_bucket_id"])
        self._before = await session.value(_THIS_TRANSACTION), done
        return done


class PostgresDataranges:
    """Committed dataranges that come and go otherwise than by an upload; see ports.Dataranges."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._grace = timedelta(seconds=database.settings.grace)

    async def handed_out(self, bucket_id: BucketId, data_keys: Sequence[str]) -> set[str]:
        """Return which of *data_keys* this catalog has ever given to an upload of its own, or adopted."""
        possible = [key for key in data_keys if key.isprintable()]  # no others are in there

        async def work(session: Session) -> list[Row]:
            return await session.rows(_HANDED_OUT, bucket_id, possible)

        return {row["object_key"] for row in await self._database.read("object names", work)}

    async def adopt(
        self, dataset_id: DatasetId, keys: Span, data_key: str, index_key: str, size: int
    ) -> Datarange:
        """Commit objects that lie in the dataset's bucket already. Raises Conflict (a key is taken, or the
        catalog has handed out *data_key* itself), NotFound (dataset), Invalid."""
        rows.check_keys(keys, "adopted")
        rows.check_size(size)
        for key in (data_key, index_key):
            rows.check_object_key(key)
        what = f"keys {keys.start} to {keys.last} of dataset {dataset_id}"
        work = _Adopt(dataset_id, keys, data_key, index_key, size)
        return rows.datarange(await self._database.change(what, work, repeat=True))

    async def remove(self, dataset_id: DatasetId, keys: Span) -> Datarange:
        """Remove the datarange of exactly *keys*; return it. Raises NotFound, Invalid.

        Its objects are doomed for when nobody reads them any more.
        """
        what = f"keys {keys.start} to {keys.last} of dataset {dataset_id}"
        rows.check_keys(keys, "removed")

        async def take_away(session: Session, bucket_id: int) -> Row | None:
            return await objectkeys.take_away_exact(session, dataset_id, bucket_id, self._grace, keys)

        row = await self._database.change(what, _Removal(dataset_id, take_away), repeat=True)
        if row is None:
            raise NotFound(f"{what}: there is no datarange of exactly these keys")
        return rows.datarange(row)

    async def clear(self, dataset_id: DatasetId) -> int:
        """Remove all dataranges of a dataset; return how many. Uploads in flight go on. Raises NotFound."""

        async def take_away(session: Session, bucket_id: int) -> int:
            return await objectkeys.take_away_all(session, dataset_id, bucket_id, self._grace)

        work = _Removal(dataset_id, take_away)
        return await self._database.change(f"dataset {dataset_id}", work, repeat=True)
