"""The server's routes as methods: requests and answers of wire/, nothing more.

A call whose answer was lost is repeated, and what the repetition finds is understood: a dataset that exists
already was perhaps made by the first attempt. Concurrency: any number of calls at once.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from datas3tfs.client.api import Api
from datas3tfs.client.retrying import Tries
from datas3tfs.client.tuning import MIB
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound
from datas3tfs.wire import answers, requests
from datas3tfs.wire.values import MOST_PARTS, PART_SIZE, Request

R = TypeVar("R", bound=Request)

_BUCKETS = TypeAdapter(list[answers.BucketInfo])
_DATASETS = TypeAdapter(list[answers.DatasetInfo])
_DATARANGE = TypeAdapter(answers.DatarangeInfo)
_DATARANGES = TypeAdapter(answers.DatarangeList)
_UPLOAD = TypeAdapter(answers.UploadGrant)
_UPLOADS = TypeAdapter(answers.UploadList)
_DOWNLOAD = TypeAdapter(answers.DownloadGrant)
_IMPORTED = TypeAdapter(answers.Imported)
_CLEARED = TypeAdapter(answers.Cleared)

# Seconds until an answer is given up; a little longer than the server gives itself.
_COMPLETING = 16 * 60.0  # S3 joins parts, the server looks through them
_LONG = 61 * 60.0  # merging, importing


class Server:
    """What a datas3tfs server can be asked."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def buckets(self) -> list[answers.BucketInfo]:
        """Return the registered buckets."""
        return await self._api.ask("GET", "/api/v1/buckets", _BUCKETS)

    async def add_bucket(self, **values: object) -> None:
        """Register a bucket: the fields of requests.AddBucket."""
        tries, body = Tries(), _made(requests.AddBucket, **values)
        try:
            await self._api.fetch("POST", "/api/v1/buckets", body, tries=tries)
        except Conflict:
            if not (tries.lost and any(_is_same(found, body) for found in await self.buckets())):
                raise

    async def datasets(self) -> list[answers.DatasetInfo]:
        """Return all datasets."""
        return await self._api.ask("GET", "/api/v1/datas3ts", _DATASETS)

    async def dataset(self, name: str) -> answers.DatasetInfo:
        """Return one of them. Raises NotFound."""
        for found in await self.datasets():
            if found.datas3t_name == name:
                return found
        raise NotFound(f"dataset {name}: there is none of this name")

    async def add_dataset(self, name: str, bucket: str) -> None:
        """Create a dataset."""
        tries = Tries()
        try:
            body = _made(requests.AddDataset, name=name, bucket=bucket)
            await self._api.fetch("POST", "/api/v1/datas3ts", body, tries=tries)
        except Conflict:
            if not (tries.lost and (await self.dataset(name)).bucket_name == bucket):
                raise

    async def clear_dataset(self, name: str) -> answers.Cleared:
        """Remove all dataranges of a dataset."""
        body = _made(requests.DatasetReference, name=name)
        return await self._api.ask("POST", "/api/v1/datas3ts/clear", _CLEARED, body)

    async def delete_dataset(self, name: str) -> None:
        """Remove an empty dataset."""
        tries = Tries()
        try:
            body = _made(requests.DatasetReference, name=name)
            await self._api.fetch("DELETE", "/api/v1/datas3ts", body, tries=tries)
        except NotFound:
            if not tries.lost:
                raise

    async def import_bucket(self, bucket: str) -> answers.Imported:
        """Commit what lies in a bucket and the catalog does not know."""
        body = _made(requests.ImportBucket, bucket_name=bucket)
        return await self._api.ask("POST", "/api/v1/datas3ts/import", _IMPORTED, body, silence=_LONG)

    async def dataranges(self, dataset: str) -> list[answers.DatarangeInfo]:
        """Return the dataranges of a dataset, by key. Raises NotFound."""
        params = _existing(dataset)
        return (await self._api.ask("GET", "/api/v1/dataranges", _DATARANGES, params=params)).dataranges

    async def delete_datarange(self, dataset: str, keys: Span) -> None:
        """Remove the datarange of exactly *keys*."""
        tries = Tries()
        body = _made(
            requests.DeleteDatarange,
            datas3t_name=dataset,
            first_datapoint_key=keys.start,
            last_datapoint_key=keys.last,
        )
        try:
            await self._api.fetch("POST", "/api/v1/datarange/delete", body, tries=tries)
        except NotFound:
            if not tries.lost:
                raise

    async def bitmap(self, dataset: str) -> bytes:
        """Return the keys of a dataset as a serialized 64-bit roaring bitmap. Raises NotFound."""
        return await self._api.fetch("GET", "/api/v1/datapoints-bitmap", params=_existing(dataset))

    async def aggregate(self, dataset: str, keys: Span) -> answers.DatarangeInfo:
        """Let the server merge the dataranges of *keys*."""
        body = _made(
            requests.Aggregate,
            datas3t_name=dataset,
            first_datapoint_index=keys.start,
            last_datapoint_index=keys.last,
        )
        return await self._api.ask("POST", "/api/v1/aggregate/run", _DATARANGE, body, silence=_LONG)

    async def locate(self, dataset: str, keys: Span, *, checksums: bool) -> list[answers.Segment]:
        """Return where the datapoints of *keys* that exist lie. Raises NotFound if none does."""
        missing = NotFound(f"dataset {dataset} has no datapoint from {keys.start} to {keys.last}")
        body = _made(
            requests.Download,
            datas3t_name=dataset,
            first_datapoint=keys.start,
            last_datapoint=keys.last,
            checksums=checksums,
        )
        try:
            found = (await self._api.ask("POST", "/api/v1/download", _DOWNLOAD, body)).download_segments
        except NotFound as exc:
            if "no dataranges found" in str(exc):
                raise missing from None
            raise
        if not found:
            raise missing
        return found

    async def uploads(self, dataset: str) -> list[answers.UploadInfo]:
        """Return the uploads in flight to a dataset, by key. Raises NotFound."""
        params = _existing(dataset)
        return (await self._api.ask("GET", "/api/v1/uploads", _UPLOADS, params=params)).uploads

    async def start(
        self, dataset: str, keys: Span, size: int, attempt: str, *, tries: Tries | None = None
    ) -> answers.UploadGrant:
        """Begin an upload of *keys* in *size* bytes. Raises Conflict if one of them is taken.

        Asked again because the answer was lost, the server knows the *attempt* (a UUID) and returns the same
        upload."""
        body = _made(
            requests.StartUpload,
            datas3t_name=dataset,
            first_datapoint_index=keys.start,
            number_of_datapoints=keys.length,
            data_size=size,
            part_size=_part_size(size),
            attempt=attempt,
        )
        return await self._api.ask("POST", "/api/v1/upload-datarange", _UPLOAD, body, tries=tries)

    async def resume(self, upload_id: int) -> answers.UploadGrant:
        """Return fresh URLs for an upload, and what has arrived of it. Raises Conflict or NotFound if it
        is published or gone."""
        body = requests.UploadReference(datarange_upload_id=upload_id)
        return await self._api.ask("POST", "/api/v1/upload-datarange/resume", _UPLOAD, body)

    async def complete(self, upload_id: int, tags: list[str] | None) -> answers.DatarangeInfo:
        """Commit an upload; repeating it does no harm. Return the datarange. Raises Conflict or NotFound if
        it is gone."""
        body = _made(requests.CompleteUpload, datarange_upload_id=upload_id, upload_ids=tags, describe=True)
        path = "/api/v1/upload-datarange/complete"
        return await self._api.ask("POST", path, _DATARANGE, body, silence=_COMPLETING)

    async def cancel(self, upload_id: int) -> None:
        """Give an upload up; it may be gone. Raises Conflict if it is published."""
        body = requests.UploadReference(datarange_upload_id=upload_id)
        await self._api.fetch("POST", "/api/v1/upload-datarange/cancel", body)

    async def cancel_aggregate(self, upload_id: int) -> None:
        """Give up a merge that a client makes; it may be gone. Raises Conflict if it is published."""
        body = requests.AggregateReference(aggregate_upload_id=upload_id)
        await self._api.fetch("POST", "/api/v1/aggregate/cancel", body)

    async def take_back(self, dataset: str, keys: Span, size: int, attempt: str) -> None:
        """Give up an upload that may have begun, of which only the attempt is known; it may be gone."""
        try:
            grant = await self.start(dataset, keys, size, attempt)
            await self.cancel(grant.datarange_upload_id)
        except (Conflict, NotFound):
            pass  # it has not begun, and cannot any more; or is published


def _part_size(size: int) -> int | None:
    """Return how long parts must be so that S3 takes *size* bytes in so many; None: as the server likes."""
    if size <= MOST_PARTS * PART_SIZE:
        return None
    return -(-size // MOST_PARTS // MIB) * MIB


def _made(kind: type[R], **values: object) -> R:
    """Return a request with *values*. Raises Invalid, without them: one may be a secret."""
    try:
        return kind.model_validate(values)
    except ValidationError as exc:
        problem = exc.errors(include_input=False, include_url=False, include_context=False)[0]
        raise Invalid(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}") from None


def _existing(dataset: str) -> dict[str, str]:
    # Without must_exist an unknown dataset is an empty one, as to the Go servers.
    return {"datas3t_name": dataset, "must_exist": "true"}


def _is_same(found: answers.BucketInfo, wanted: requests.AddBucket) -> bool:
    def place(of: answers.BucketInfo | requests.AddBucket) -> tuple[str, str, str]:
        return of.name, of.endpoint.partition("://")[2] or of.endpoint, of.bucket

    return place(found) == place(wanted)
