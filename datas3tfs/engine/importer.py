"""Commit what lies in a bucket and the catalog does not know: the way back when a database is gone.

Every TAR under `datas3t/` with an index beside it is a candidate, in the forms of the Go servers as well.
It is looked at as closely as an upload is, and adopted as it is: neither object is rewritten. (An index that
was staged by a client, `.index`, beside the one made of it, `.index.zst`, counts for nothing.) Of candidates
that overlap, the newest that is right is taken: one made by a merge is newer than what it was made of. What
the catalog has handed out itself is left alone: it is committed, in flight, or to be deleted. An import that
was interrupted can be done again.

Not for buckets that another installation uses: it would go on to replace and delete what was adopted here.

Concurrency: a few candidates at a time; memory is that of a batch of the listing, and of as many candidates
as overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from datas3tfs.core.candidates import Candidate, Candidates
from datas3tfs.core.indexfile import index_file_limit
from datas3tfs.core.model import Bucket, Dataset, DatasetId
from datas3tfs.core.names import printable
from datas3tfs.core.uploadcheck import InspectionLimits
from datas3tfs.engine.inspection import inspect_object
from datas3tfs.engine.nurseries import side_by_side
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, Invalid, NotFound, Unavailable
from datas3tfs.ports import CatalogReader, Dataranges, Registry, WholeStore, WholeStores

_PREFIX = "datas3t/"
_AT_ONCE = 4  # candidates looked at; each takes a few requests of 8 MiB
_BATCH = 500  # objects the catalog is asked about at once
_LISTED = 1000  # skipped objects named in the report; the others are counted
_FAILURES = 8  # candidates in a row that could not be read: then S3 is away


@dataclass
class ImportReport:
    """What an import has done."""

    datasets: list[str] = field(default_factory=list)  # those that got a datarange, by name
    dataranges: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)  # (object key, why), the first of them
    skipped_count: int = 0

    def skip(self, key: str, why: str) -> None:
        """Take note of an object that is not imported."""
        self.skipped_count += 1
        if len(self.skipped) < _LISTED:
            self.skipped.append((printable(key), why))

    def adopted(self, dataset: str) -> None:
        """Take note of a datarange that is."""
        self.dataranges += 1
        if dataset not in self.datasets:
            self.datasets = sorted([*self.datasets, dataset])


async def import_bucket(
    reader: CatalogReader, registry: Registry, dataranges: Dataranges, stores: WholeStores, bucket_name: str
) -> ImportReport:
    """Commit every datarange in the registered bucket that is right and that the catalog does not know.

    Datasets are created as needed. Raises NotFound (bucket), Unavailable; what was adopted by then stays.
    """
    bucket = await _bucket_named(registry, bucket_name)
    store = await stores.store(bucket.id)
    work = _Import(reader, registry, dataranges, store, bucket)
    candidates = Candidates()
    listing = store.listed(_PREFIX)
    try:
        async for found in listing:
            candidates.add(found)
            if len(candidates.clusters) + len(candidates.noise) >= _BATCH:
                await work.take(candidates)
    finally:
        close = getattr(listing, "aclose", None)  # a generator keeps its connection until closed
        if close is not None:
            await close()
    candidates.finish()
    await work.take(candidates)
    return work.report


async def _bucket_named(registry: Registry, name: str) -> Bucket:
    for bucket in await registry.buckets():
        if bucket.spec.name == name:
            return bucket
    raise NotFound(f"bucket {printable(name)}: there is none of this name")


class _Import:
    def __init__(
        self,
        reader: CatalogReader,
        registry: Registry,
        dataranges: Dataranges,
        store: WholeStore,
        bucket: Bucket,
    ) -> None:
        self.report = ImportReport()
        self._reader = reader
        self._registry = registry
        self._dataranges = dataranges
        self._store = store
        self._bucket = bucket
        self._failures = 0  # in a row

    async def take(self, candidates: Candidates) -> None:
        """Adopt what can be adopted of what *candidates* has; report the rest."""
        for key, why in candidates.noise:
            self.report.skip(key, why)
        clusters, candidates.clusters, candidates.noise = candidates.clusters, [], []
        keys = [one.data_key for cluster in clusters for one in cluster]
        ours: set[str] = set()
        for start in range(0, len(keys), _BATCH):
            ours |= await self._dataranges.handed_out(self._bucket.id, keys[start : start + _BATCH])
        unknown = [[one for one in cluster if one.data_key not in ours] for cluster in clusters]
        await side_by_side(self._take_cluster, unknown, _AT_ONCE)

    async def _take_cluster(self, cluster: list[Candidate]) -> None:
        taken: list[Candidate] = []
        for one in sorted(cluster, key=lambda one: one.age, reverse=True):
            if one.problem:
                self.report.skip(one.data_key, one.problem)
                continue
            newer = next((other for other in taken if other.keys.intersection(one.keys)), None)
            if newer is not None:
                self.report.skip(one.data_key, f"overlaps {newer.data_key}, which is newer")
                continue
            try:
                await self._adopt(one)
            except (NotFound, Conflict, Invalid, Corrupt) as exc:
                self.report.skip(one.data_key, str(exc))
                continue
            taken.append(one)
            self.report.adopted(one.dataset)

    async def _adopt(self, one: Candidate) -> None:
        dataset = await self._dataset(one.dataset)
        if dataset is not None and dataset.bucket_id != self._bucket.id:
            raise Conflict(f"dataset {one.dataset} is in bucket {dataset.bucket_name}")
        if dataset is not None and (await self._reader.overlap(one.dataset, one.keys)).dataranges:
            raise Conflict(f"overlaps what is in dataset {one.dataset} already")
        await self._inspect(one)
        dataset_id = await self._create(one.dataset) if dataset is None else dataset.id
        await self._dataranges.adopt(dataset_id, one.keys, one.data_key, one.index_key, one.size)

    async def _inspect(self, one: Candidate) -> None:
        """Raise Invalid, Corrupt, NotFound unless both objects are right; Unavailable if S3 seems away."""
        try:
            raw = await self._store.get(one.index_key, index_file_limit(one.keys.length, one.size))
            await inspect_object(self._store, one.data_key, one.keys, one.size, raw, InspectionLimits())
        except Unavailable as exc:
            self._failures += 1
            if self._failures >= _FAILURES:
                raise
            raise Corrupt(f"could not be read, import again later: {exc}") from exc
        except Datas3tError:
            self._failures = 0
            raise
        self._failures = 0

    async def _dataset(self, name: str) -> Dataset | None:
        try:
            return await self._reader.dataset(name)
        except NotFound:
            return None

    async def _create(self, name: str) -> DatasetId:
        try:
            return await self._registry.add_dataset(name, self._bucket.spec.name)
        except Conflict:  # somebody else has, meanwhile: another of our own tasks, most likely
            dataset = await self._reader.dataset(name)
            if dataset.bucket_id != self._bucket.id:
                raise
            return dataset.id
