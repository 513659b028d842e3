"""The HTTP API to call, over memory twins in this process or over a server of its own, and S3's side of it.

Not for what the answers must be: tests/harness/conformance.py says that, for both kinds.
"""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx
from fastapi import FastAPI

from datas3tfs.api.application import make_application
from datas3tfs.api.backend import Backend
from datas3tfs.api.running import Places
from datas3tfs.api.tokens import Access, digest_of, new_token
from datas3tfs.core.counters import Counters
from datas3tfs.core.model import BucketId, BucketSpec, Token
from datas3tfs.core.spans import Span
from datas3tfs.engine.compactor import Compactor
from datas3tfs.engine.indices import open_indices
from datas3tfs.engine.receiving import Receiver
from datas3tfs.ports import WholeStore
from tests.harness.archives import go_record, key_name
from tests.harness.memory_cache import MemoryIndexCache
from tests.harness.memory_catalog import MemoryCatalog
from tests.harness.memory_objects import MemoryStore, Refused

Json = Any  # what a test takes apart itself


class Urls(Protocol):
    """What a client does with presigned URLs."""

    async def put(self, url: str, body: bytes) -> str:
        """PUT; return the ETag. Fails unless S3 says 200."""
        ...

    async def get(self, url: str, wanted: str | None) -> tuple[int, bytes]:
        """GET, with this Range header if any; return status and body."""
        ...


@dataclass
class Api:
    """An API, as a Go client sees it."""

    http: httpx.AsyncClient
    urls: Urls
    bucket: dict[str, Json]  # endpoint, bucket and keys of a bucket that can be used

    async def send(
        self,
        method: str,
        path: str,
        body: Json = None,
        *,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send as Go's client does: JSON without saying so, no Accept header."""
        named = dict(headers or {})
        content = raw if body is None else httpx.Request("POST", "http://x", json=body).content
        request = self.http.build_request(method, path, content=content, headers=named)
        if "accept" not in named:
            del request.headers["accept"]
        return await self.http.send(request)

    async def done(self, method: str, path: str, body: Json = None, status: int = 200) -> Json:
        """Send what must succeed with *status*; return the JSON, None if the answer is empty."""
        answer = await self.send(method, path, body)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json() if answer.content else None

    async def add_bucket(self, name: str = "main", path: str = "/api/v1/buckets") -> None:
        """Register the bucket."""
        await self.done("POST", path, {"name": name, **self.bucket}, 201)

    async def add_dataset(self, name: str | None = None, bucket: str = "main") -> str:
        """Create a dataset; return its name."""
        name = name or f"set-{secrets.token_hex(6)}"
        await self.done("POST", "/api/v1/datas3ts", {"name": name, "bucket": bucket}, 204)
        return name

    async def upload(self, dataset: str, first: int, contents: Sequence[bytes]) -> Json:
        """Upload as the Go clients do; return what start answered."""
        tar, index = go_archive(first, contents)
        grant = await self.start(dataset, first, len(contents), len(tar))
        tags = await self.put(grant, tar, index)
        await self.complete(grant, tags)
        return grant

    async def start(self, dataset: str, first: int, count: int, size: int) -> Json:
        """Begin an upload."""
        numbers = {"first_datapoint_index": first, "number_of_datapoints": count, "data_size": size}
        return await self.done("POST", "/api/v1/upload-datarange", {"datas3t_name": dataset, **numbers})

    async def put(self, grant: Json, tar: bytes, index: bytes) -> list[str]:
        """Put both objects where *grant* says; return the parts' ETags, [] if there are none."""
        tags: list[str] = []
        if grant["use_direct_put"]:
            await self.urls.put(grant["presigned_data_put_url"], tar)
        else:
            where = grant["presigned_multipart_upload_urls"]
            tags = [
                await self.urls.put(url, part)
                for url, part in zip(where, even_shares(tar, len(where)), strict=True)
            ]
        await self.urls.put(grant["presigned_index_put_url"], index)
        return tags

    async def complete(self, grant: Json, tags: Sequence[str] = ()) -> None:
        """Commit an upload; the id goes back under the other name."""
        body: Json = {"datarange_upload_id": grant["datarange_id"]} | ({"upload_ids": tags} if tags else {})
        await self.done("POST", "/api/v1/upload-datarange/complete", body)

    async def download(self, dataset: str, first: int, last: int) -> dict[str, bytes]:
        """Return name → content of what exists of some datapoints, every segment read as a TAR of its own."""
        asked = {"datas3t_name": dataset, "first_datapoint": first, "last_datapoint": last}
        found = await self.done("POST", "/api/v1/download", asked)
        contents: dict[str, bytes] = {}
        for segment in found["download_segments"]:
            status, body = await self.urls.get(segment["presigned_url"], segment["range"])
            assert status == 206
            contents |= members(body + bytes(1024))
        return contents


def even_shares(tar: bytes, count: int) -> list[bytes]:
    """Cut a TAR as the first generation of Go clients does: even shares, rounded down, and the last is what
    is left."""
    step = len(tar) // count
    return [tar[number * step : (number + 1) * step] for number in range(count - 1)] + [
        tar[(count - 1) * step :]
    ]


def go_archive(first: int, contents: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the TAR and the index that the Go programs make."""
    out = io.BytesIO()
    records = []
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as opened:
        for number, content in enumerate(contents, first):
            info = tarfile.TarInfo(key_name(number, "txt"))
            info.size, info.mode, info.mtime = len(content), 0o644, 1_700_000_000
            records.append(go_record(opened.offset, len(content)))
            opened.addfile(info, io.BytesIO(content))
        end = opened.offset
    return out.getvalue()[:end] + bytes(1024), b"".join(records)


def members(tar: bytes) -> dict[str, bytes]:
    """Return name → content of a TAR."""
    with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as opened:
        found = {}
        for info in opened:
            file = opened.extractfile(info)
            assert file is not None
            found[info.name] = file.read()
        return found


# -- in this process ----------------------------------------------------------------------------------


class MemoryUrls:
    """URLs of memory stores."""

    def __init__(self, stores: GrowingStores) -> None:
        self._stores = stores

    async def put(self, url: str, body: bytes) -> str:
        """See Urls."""
        return self._stores.of_url(url).client_put(url, body)

    async def get(self, url: str, wanted: str | None) -> tuple[int, bytes]:
        """See Urls."""
        if wanted is None:
            return 200, self._stores.of_url(url).client_get(url)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        return 206, self._stores.of_url(url).client_get(url, Span(int(first), int(last) + 1))


class GrowingStores:
    """ports.WholeStores with an empty store for each bucket that is asked for."""

    def __init__(self, catalog: MemoryCatalog) -> None:
        self._catalog = catalog
        self.stores: dict[BucketId, MemoryStore] = {}

    async def store(self, bucket_id: BucketId) -> WholeStore:
        """See ports.WholeStores."""
        await self._catalog.bucket(bucket_id)
        return self.stores.setdefault(bucket_id, MemoryStore())

    def of_url(self, url: str) -> MemoryStore:
        """Return the store that has handed out *url*."""
        for store in self.stores.values():
            if url in store._permits:
                return store
        raise Refused(403, "AccessDenied")


@dataclass
class MemoryApi(Api):
    """The application over memory twins; what is behind it may be looked at."""

    app: FastAPI = field(kw_only=True)
    catalog: MemoryCatalog = field(kw_only=True)
    stores: GrowingStores = field(kw_only=True)
    tried: list[BucketSpec] = field(kw_only=True)  # the buckets that were connected to

    async def add_token(self, name: str, *, can_write: bool = True, datasets: Sequence[str] = ()) -> str:
        """Let somebody in; return the token."""
        token = new_token()
        whose = Token(name, can_write, frozenset(datasets) if datasets else None, 0)
        await self.catalog.tokens.add(whose, digest_of(token))
        return token


OPEN = Access("none", is_loopback=True)
TRUSTED = Access("auto", is_loopback=True, is_trusted=True)


@asynccontextmanager
async def open_memory_api(
    access: Access = OPEN,
    *,
    allow: tuple[str, ...] = (),
    known: tuple[str, ...] = (),
    places: Places | None = None,
    try_bucket: Callable[[BucketSpec], Awaitable[None]] | None = None,
    host: str = "localhost:8765",
    client: tuple[str, int] = ("127.0.0.1", 50_000),
) -> AsyncIterator[MemoryApi]:
    """Open the application over empty twins."""
    catalog, counters, tried = MemoryCatalog(), Counters(), list[BucketSpec]()
    stores = GrowingStores(catalog)

    async def trial(spec: BucketSpec) -> None:
        tried.append(spec)
        if try_bucket is not None:
            await try_bucket(spec)

    async with open_indices(MemoryIndexCache(), stores, counters, 30.0) as indices:
        backend = Backend(
            reader=catalog,
            registry=catalog,
            uploads=catalog,
            dataranges=catalog.ranges,
            tokens=catalog.tokens,
            stores=stores,
            indices=indices,
            receiver=Receiver(catalog, catalog, stores, indices),
            compactor=Compactor(catalog, catalog, stores, indices),
            counters=counters,
            try_bucket=trial,
            allow_endpoints=allow,
            known_endpoints=known,
        )
        app = make_application(backend, access, places)
        transport = httpx.ASGITransport(app=app, client=client)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as http:
            bucket = {
                "endpoint": "http://127.0.0.1:9000",
                "bucket": "bucket-1",
                "access_key": "AKIA-NEVER-SHOWN",
                "secret_key": "hunter2-never-shown",
            }
            yield MemoryApi(
                http, MemoryUrls(stores), bucket, app=app, catalog=catalog, stores=stores, tried=tried
            )
