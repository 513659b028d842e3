"""`AsyncClient`: everything a datas3tfs server can do, for programs that wait (trio or asyncio).

    async with AsyncClient("http://127.0.0.1:8765", token=…) as client:
        await client.upload("photos", Path("shard.tar"))

Concurrency: any number of tasks may use one client at once; they share its places for transfers, so that
memory stays bounded. Requests ahead of a reader run in a task group that the client owns.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import anyio
import httpx
from anyio import to_thread
from pyroaring import BitMap64

from datas3tfs.client.api import Api
from datas3tfs.client.bodies import ComposedBody, FileBody
from datas3tfs.client.connections import open_pool, quiet_libraries, trust_for_server, trust_for_storage
from datas3tfs.client.datapoints import Content, Datapoint
from datas3tfs.client.downloading import Downloaded, download_tar, go_on_downloading
from datas3tfs.client.flow import Flows, Places
from datas3tfs.client.ledger import Ledger
from datas3tfs.client.ranges import Ranges
from datas3tfs.client.reading import Reading
from datas3tfs.client.resumption import Pending, ResumeFile
from datas3tfs.client.retrying import Retrier
from datas3tfs.client.scanning import ScannedTar, scan_tar
from datas3tfs.client.server import Server
from datas3tfs.client.sources import Batch, Ingested, Ingestible, batches, numbered
from datas3tfs.client.storage import Storage
from datas3tfs.client.tuning import Tuning
from datas3tfs.client.uploading import Uploader
from datas3tfs.client.verifying import Report, verify
from datas3tfs.client.walking import Walked
from datas3tfs.core.names import KEY_LIMIT
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound
from datas3tfs.wire.answers import BucketInfo, Cleared, DatarangeInfo, DatasetInfo, Imported, UploadInfo

DATARANGE_BYTES = 256 << 20  # of a TAR that `ingest` makes, about

Progress = Callable[[int], None]
Committed = Callable[[DatarangeInfo, Sequence[Ingestible]], None]


def _ignore(amount: int) -> None:
    """Progress nobody looks at."""


@dataclass(frozen=True, slots=True)
class _Open:
    """What a client has while it is open."""

    stack: AsyncExitStack
    server: Server
    uploader: Uploader
    reading: Reading


class AsyncClient:
    """A client of the server at *url*, to be used as `async with AsyncClient(…) as client`.

    *token* is shown to that server and to nobody else. *ca_file*: certificates of authorities to trust
    instead of the system's, as far as the server goes; for S3 besides them. *ledger*: a directory to note
    uploads in while they are under way, for `give_up_dead`. *transport* replaces the network (for a server
    in this process).
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca_file: Path | None = None,
        tuning: Tuning | None = None,
        ledger: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = _checked_url(url)
        self._headers = _credentials(token)
        self._ca_file = ca_file
        self._tuning = tuning or Tuning()
        self._ledger = Ledger(ledger)
        self._transport = transport
        self._opened: _Open | None = None

    def __repr__(self) -> str:
        return f"AsyncClient({self._url})"

    async def __aenter__(self) -> AsyncClient:
        quiet_libraries()
        tuning = self._tuning
        patience = tuning.patience if tuning.server_patience is None else tuning.server_patience
        async with AsyncExitStack() as stack:
            trust, storage_trust = trust_for_server(self._ca_file), trust_for_storage(self._ca_file)
            pool = open_pool(
                tuning, trust, base_url=self._url, headers=self._headers, transport=self._transport
            )
            storage_pool = open_pool(tuning, storage_trust)
            await stack.enter_async_context(pool)
            await stack.enter_async_context(storage_pool)
            tasks = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(tasks.cancel_scope.cancel)
            places = Places(tuning.parallel)
            server = Server(Api(pool, Retrier(tuning, patience), tuning, self._url))
            ranges = Ranges(tuning, storage_trust)
            stack.callback(ranges.close)
            storage = Storage(storage_pool, ranges, Retrier(tuning, tuning.patience), tuning)
            uploader = Uploader(server, storage, places, tuning, self._ledger)
            reading = Reading(server, Flows(storage, tasks, places, tuning))
            self._opened = _Open(stack.pop_all(), server, uploader, reading)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        opened, self._opened = self._open, None
        # Without the block's error: the task group would wrap it, although it has nothing to do with it.
        await opened.stack.aclose()

    @property
    def _open(self) -> _Open:
        if self._opened is None:
            raise RuntimeError("use the client as a context: async with AsyncClient(…) as client")
        return self._opened

    # -- the catalog -------------------------------------------------------------------------------

    async def buckets(self) -> list[BucketInfo]:
        """Return the registered buckets, without their credentials."""
        return await self._open.server.buckets()

    async def add_bucket(
        self,
        name: str,
        *,
        endpoint: str,
        bucket: str,
        access_key: str,
        secret_key: str,
        region: str = "us-east-1",
    ) -> None:
        """Register a bucket that S3 says can be used. Raises Conflict (name, or bucket, taken), Invalid."""
        await self._open.server.add_bucket(
            name=name,
            endpoint=endpoint,
            bucket=bucket,
            access_key=access_key,
            secret_key=secret_key,
            region=region,
        )

    async def datasets(self) -> list[DatasetInfo]:
        """Return all datasets and what they hold."""
        return await self._open.server.datasets()

    async def add_dataset(self, name: str, bucket: str) -> None:
        """Create an empty dataset in a registered bucket. Raises Conflict, NotFound (bucket), Invalid."""
        await self._open.server.add_dataset(name, bucket)

    async def clear_dataset(self, name: str) -> Cleared:
        """Remove all dataranges of a dataset. Raises NotFound."""
        return await self._open.server.clear_dataset(name)

    async def delete_dataset(self, name: str) -> None:
        """Remove an empty dataset. Raises Conflict (it holds something), NotFound."""
        await self._open.server.delete_dataset(name)

    async def import_bucket(self, bucket: str) -> Imported:
        """Commit the dataranges that lie in a registered bucket and the catalog does not know."""
        return await self._open.server.import_bucket(bucket)

    async def dataranges(self, dataset: str) -> list[DatarangeInfo]:
        """Return the dataranges of a dataset, by key. Raises NotFound."""
        return await self._open.server.dataranges(dataset)

    async def delete_datarange(self, dataset: str, first: int, last: int) -> None:
        """Remove the datarange of exactly the keys *first* to *last*. Raises NotFound."""
        await self._open.server.delete_datarange(dataset, _keys(first, last))

    async def aggregate(self, dataset: str, first: int, last: int) -> DatarangeInfo:
        """Merge the dataranges of exactly the keys *first* to *last* into one, which is returned.

        Raises Invalid (they are not whole dataranges), Conflict (they have changed meanwhile), NotFound."""
        return await self._open.server.aggregate(dataset, _keys(first, last))

    async def bitmap(self, dataset: str) -> BitMap64:
        """Return the keys of all datapoints of a dataset. Raises NotFound."""
        return BitMap64.deserialize(await self._open.server.bitmap(dataset))

    # -- writing -----------------------------------------------------------------------------------

    async def upload(
        self,
        dataset: str,
        tar: str | Path | BinaryIO | ScannedTar,
        *,
        progress: Progress = _ignore,
        resume: Path | None = None,
    ) -> DatarangeInfo:
        """Upload a TAR as it is, as one datarange; it is read and checked before anything is sent.

        *tar* is a path, a seekable binary file, or what `scan_tar` returned. *progress* is called with the
        number of bytes sent since the last call. *resume* names a small file that another process can go on
        with: what fails or is interrupted then stays begun, and the same call sends what is missing.
        Raises Conflict (a key is taken), NotFound (dataset), Invalid (no TAR of datapoints), Unavailable.
        """
        opened = self._open
        scanned = await _scanned(tar)
        kept = None if resume is None else ResumeFile(Path(resume), Pending.of(dataset, scanned))
        try:
            with FileBody(scanned) as body:
                return await opened.uploader.upload(dataset, body, progress, kept)
        except Conflict as exc:
            raise Conflict(f"{scanned.label}: {exc}") from exc

    async def ingest(
        self,
        dataset: str,
        things: Iterable[Ingested],
        *,
        start: int | None = None,
        datarange_bytes: int = DATARANGE_BYTES,
        progress: Progress = _ignore,
        committed: Committed | None = None,
    ) -> list[DatarangeInfo]:
        """Number *things* and pack them into new dataranges; return those.

        A thing is a path (of a directory: all files in it, by path), an `Item`, or a tuple (name, content)
        or (key, name, content), where content is bytes or a path. Keys go on after the highest of the
        dataset, or from *start*. Each datarange of about *datarange_bytes* is committed by itself, and
        *committed* is told of it and of what it was made from: what it was told stays if the rest fails.
        Raises Conflict (a key is taken), NotFound (dataset), Invalid (a file has changed), Unavailable.
        """
        first = await self.first_key(dataset, start)
        done: list[DatarangeInfo] = []
        for batch in batches(numbered(things, first), datarange_bytes):
            done.append(await self.commit(dataset, batch, progress=progress))
            if committed is not None:
                committed(done[-1], batch.sources)
        return done

    async def first_key(self, dataset: str, start: int | None = None) -> int:
        """Return the key that an ingest begins with: *start*, or the one after the highest."""
        found = await self._open.server.dataset(dataset)
        if start is not None:
            return start
        return found.highest_datapoint + 1 if found.total_datapoints else 0

    async def commit(self, dataset: str, batch: Batch, *, progress: Progress = _ignore) -> DatarangeInfo:
        """Commit one batch of an ingest. Raises as `ingest`."""
        body = ComposedBody(batch)
        return await self._open.uploader.upload(dataset, body, progress)

    async def uploads(self, dataset: str) -> list[UploadInfo]:
        """Return the uploads in flight to a dataset, by key: those that hold keys, and merges that clients
        make. Raises NotFound."""
        return await self._open.server.uploads(dataset)

    async def cancel_upload(self, upload_id: int) -> None:
        """Give up an upload in flight, or a merge that a client makes, whoever has begun it: its keys are
        free, and what it has stored goes. It may be gone. Raises Conflict (it is published), NotFound."""
        server = self._open.server
        try:
            await server.cancel(upload_id)
        except NotFound:
            await server.cancel_aggregate(upload_id)

    async def give_up_dead(self) -> int:
        """Give up the uploads that processes of this machine with the same *ledger* have left behind: they
        were killed, and nobody works on them any more. Return how many."""
        return await self._open.uploader.give_up_dead()

    # -- reading -----------------------------------------------------------------------------------

    async def download_tar(
        self,
        dataset: str,
        first: int,
        last: int,
        target: str | Path | BinaryIO,
        *,
        progress: Progress = _ignore,
        resume: Path | None = None,
    ) -> Downloaded:
        """Write the datapoints from *first* to *last* that exist as one TAR; each is checked.

        A file at a path appears when it is whole. *resume* names a small file that another process can go on
        with: what has come stays then, beside the target, and the same call fetches what is missing.
        Raises NotFound (there is none), Corrupt, Unavailable, Conflict (somebody else goes on with it).
        """
        keys, place = _keys(first, last), Path(target) if isinstance(target, str) else target
        reading = self._open.reading
        if resume is None:
            return await download_tar(reading, dataset, keys, place, progress)
        if not isinstance(place, Path):
            raise Invalid("only a download to a path can be resumed")
        return await go_on_downloading(reading, dataset, keys, place, Path(resume), progress)

    async def iterate(self, dataset: str, first: int, last: int) -> AsyncGenerator[Datapoint, None]:
        """Yield the datapoints from *first* to *last* that exist, in order, a few read ahead.

        Raises as `download_tar`. Whoever stops early should close it (`contextlib.aclosing`).
        """
        async with aclosing(self.iterate_batches(dataset, first, last)) as found:
            async for batch in found:
                for datapoint in batch:
                    yield datapoint

    async def iterate_batches(
        self, dataset: str, first: int, last: int
    ) -> AsyncGenerator[list[Datapoint], None]:
        """Yield what `iterate` does, as many at once as there are."""
        limit = self._tuning.held

        def make_content(size: int) -> Content:
            return Content(size, limit)

        async with aclosing(self._open.reading.walk(dataset, _keys(first, last), make_content)) as steps:
            async for step in steps:
                if step.found:
                    yield [_datapoint(one) for one in step.found]

    async def get(self, dataset: str, key: int) -> Datapoint:
        """Return one datapoint. Raises NotFound, Corrupt, Unavailable."""
        async with aclosing(self.iterate(dataset, key, key)) as found:
            return await anext(found)

    async def verify(self, dataset: str) -> AsyncGenerator[Report, None]:
        """Re-read everything; yield `Bad` for what cannot be read as it was written, `Verified` for each
        datarange that was read to its end, `Read` on the way. Raises NotFound, Conflict (the dataset has
        changed meanwhile), Unavailable."""
        async with aclosing(verify(self._open.reading, dataset)) as reports:
            async for report in reports:
                yield report


def _datapoint(walked: Walked) -> Datapoint:
    assert isinstance(walked.sink, Content)
    return Datapoint(walked.key, walked.name, walked.size, walked.mtime_ns, walked.crc, walked.sink)


async def _scanned(tar: str | Path | BinaryIO | ScannedTar) -> ScannedTar:
    if isinstance(tar, ScannedTar):
        return tar
    return await to_thread.run_sync(scan_tar, Path(tar) if isinstance(tar, str) else tar)


def _keys(first: int, last: int) -> Span:
    if not 0 <= first <= last < KEY_LIMIT:
        raise Invalid(f"{first} to {last}: not a range of keys")
    return Span(first, last + 1)


def _checked_url(text: str) -> str:
    """Return the server's address. Raises Invalid, without it: somebody may have put a secret there."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise Invalid("the server's address is not one") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise Invalid("the server's address must begin with http:// or https:// and a host")
    if url.userinfo or url.query or url.fragment:
        raise Invalid("the server's address may have no user, query or fragment")
    return str(url).rstrip("/")


def _credentials(token: str | None) -> dict[str, str]:
    """Return the header that shows *token*. Raises Invalid, without it, if it cannot be one."""
    if token is None:
        return {}
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise Invalid("the token is not one: it is printable ASCII without spaces")
    return {"Authorization": f"Bearer {token}"}
