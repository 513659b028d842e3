"""ports.Registry on Postgres: registering buckets and datasets. No state."""

from __future__ import annotations

from datas3tfs.catalog import claims, rows
from datas3tfs.catalog.abandoning import ABANDON_AGGREGATES
from datas3tfs.catalog.crypto import Cipher
from datas3tfs.catalog.database import Database, Row, Session
from datas3tfs.core.model import Bucket, BucketId, BucketSpec, DatasetId
from datas3tfs.core.names import check_label
from datas3tfs.errors import Conflict, NotFound

_BUCKETS = 'SELECT id, name, endpoint, bucket, use_tls, region FROM s3_buckets ORDER BY name COLLATE "C"'
_ADD_BUCKET = """
    INSERT INTO s3_buckets (name, endpoint, bucket, access_key, secret_key, use_tls, region)
    VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id
"""
_ADD_DATASET = """
    INSERT INTO datasets (name, s3_bucket_id) SELECT $1, id FROM s3_buckets WHERE name = $2 RETURNING id
"""
# Whoever holds this row keeps everybody from claiming keys of the dataset, so what it sees next stays true.
_LOCK_FOR_GOOD = "SELECT true FROM datasets WHERE id = $1 FOR UPDATE"
_IS_CLAIMED = "SELECT EXISTS (SELECT FROM key_claims WHERE dataset_id = $1)"
_REMOVE_DATASET = "DELETE FROM datasets WHERE id = $1"
_INSTALLATION = "SELECT installation::text FROM schema_info"


class _Remove:
    """The work of remove_dataset(). Run again after a lost connection, it knows that it may have done it."""

    def __init__(self, dataset_id: DatasetId) -> None:
        self._dataset_id = dataset_id
        self._deleted = False

    async def __call__(self, session: Session) -> None:
        what = f"dataset {self._dataset_id}"
        await claims.bound_idleness(session)
        if not await session.value(_LOCK_FOR_GOOD, self._dataset_id):
            if self._deleted:  # no other dataset ever has this id
                return
            raise NotFound(f"{what}: there is none of this id")
        if await session.value(_IS_CLAIMED, self._dataset_id):
            raise Conflict(f"{what}: it is not empty")
        await session.value(ABANDON_AGGREGATES, self._dataset_id)  # without claims, there is nothing else
        await session.value(_REMOVE_DATASET, self._dataset_id)
        self._deleted = True


class PostgresRegistry:
    """Buckets and datasets as registered; see ports.Registry."""

    def __init__(self, database: Database, cipher: Cipher) -> None:
        self._database = database
        self._cipher = cipher

    async def buckets(self) -> list[Bucket]:
        """Return all buckets by name, credentials left empty. Raises Corrupt."""

        async def work(session: Session) -> list[Row]:
            return await session.rows(_BUCKETS)

        return [rows.bucket(row, "", "") for row in await self._database.read("buckets", work)]

    async def add_bucket(self, spec: BucketSpec) -> Bucket:
        """Register a bucket. Raises Conflict (name, or endpoint and bucket, taken), Invalid."""
        rows.check_spec(spec)
        # Encrypted out here: no credential gets into a frame that a library may log.
        sealed = self._cipher.encrypt(spec.access_key), self._cipher.encrypt(spec.secret_key)

        async def work(session: Session) -> int:
            plain = spec.name, spec.endpoint, spec.bucket
            found: int = await session.value(_ADD_BUCKET, *plain, *sealed, spec.use_tls, spec.region)
            return found

        bucket_id = await self._database.change(f"bucket {spec.name}", work, repeat=False)
        return Bucket(BucketId(bucket_id), spec)

    async def add_dataset(self, name: str, bucket_name: str) -> DatasetId:
        """Create an empty dataset. Raises Conflict (name taken), NotFound (bucket), Invalid."""
        check_label("dataset", name)
        check_label("bucket", bucket_name)

        async def work(session: Session) -> int | None:
            found: int | None = await session.value(_ADD_DATASET, name, bucket_name)
            return found

        dataset_id = await self._database.change(f"dataset {name}", work, repeat=False)
        if dataset_id is None:
            raise NotFound(f"bucket {bucket_name}: there is none of this name")
        return DatasetId(dataset_id)

    async def remove_dataset(self, dataset_id: DatasetId) -> None:
        """Remove an empty dataset. Raises Conflict (a key of it is committed, claimed or leased), NotFound.

        Aggregates begun in it are abandoned: their sources are gone. Whoever shows the catalog learns of
        it by schema.sql's trigger.
        """
        await self._database.change(f"dataset {dataset_id}", _Remove(dataset_id), repeat=True)

    async def installation(self) -> str:
        """Return the UUID that names this catalog for ever, in its usual form."""

        async def work(session: Session) -> str:
            found: str = await session.value(_INSTALLATION)
            return found

        return await self._database.read("installation", work)
