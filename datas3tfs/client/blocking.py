"""`Client`: the same as AsyncClient, for programs that do not wait themselves.

    with Client("http://127.0.0.1:8765", token=…) as client:
        for datapoint in client.iterate("photos", 100, 200):
            datapoint.read()

Concurrency: an event loop in a thread of its own, from entering the client to leaving it; any number of
threads may call. Ctrl-C in the calling thread cancels what it called and waits until that has cleaned up.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal
from pyroaring import BitMap64

from datas3tfs.client.aio import DATARANGE_BYTES, AsyncClient, Committed, Progress, _ignore
from datas3tfs.client.datapoints import Datapoint
from datas3tfs.client.downloading import Downloaded
from datas3tfs.client.scanning import ScannedTar
from datas3tfs.client.sources import Batch, Ingested, batches, numbered
from datas3tfs.client.tuning import Tuning
from datas3tfs.client.verifying import Report
from datas3tfs.wire.answers import BucketInfo, Cleared, DatarangeInfo, DatasetInfo, Imported, UploadInfo

T = TypeVar("T")

_CLEANING = 30.0  # seconds that what was cancelled may take to clean up


class Client(AbstractContextManager["Client"]):
    """A client of the server at *url*, to be used as `with Client(…) as client`; see AsyncClient."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca_file: Path | None = None,
        tuning: Tuning | None = None,
        ledger: Path | None = None,
    ) -> None:
        self._inner = AsyncClient(url, token=token, ca_file=ca_file, tuning=tuning, ledger=ledger)
        self._stack: ExitStack | None = None
        self._portal: BlockingPortal | None = None

    def __repr__(self) -> str:
        return repr(self._inner).removeprefix("Async")

    def __enter__(self) -> Client:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal("trio"))
            stack.enter_context(self._portal.wrap_async_context_manager(self._inner))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None
        self._stack.close()
        self._stack = self._portal = None

    # -- the catalog -------------------------------------------------------------------------------

    def buckets(self) -> list[BucketInfo]:
        """Return the registered buckets, without their credentials."""
        return self._call(self._inner.buckets)

    def add_bucket(
        self,
        name: str,
        *,
        endpoint: str,
        bucket: str,
        access_key: str,
        secret_key: str,
        region: str = "us-east-1",
    ) -> None:
        """See AsyncClient.add_bucket."""
        self._call(
            lambda: self._inner.add_bucket(
                name,
                endpoint=endpoint,
                bucket=bucket,
                access_key=access_key,
                secret_key=secret_key,
                region=region,
            )
        )

    def datasets(self) -> list[DatasetInfo]:
        """Return all datasets and what they hold."""
        return self._call(self._inner.datasets)

    def add_dataset(self, name: str, bucket: str) -> None:
        """See AsyncClient.add_dataset."""
        self._call(lambda: self._inner.add_dataset(name, bucket))

    def clear_dataset(self, name: str) -> Cleared:
        """See AsyncClient.clear_dataset."""
        return self._call(lambda: self._inner.clear_dataset(name))

    def delete_dataset(self, name: str) -> None:
        """See AsyncClient.delete_dataset."""
        self._call(lambda: self._inner.delete_dataset(name))

    def import_bucket(self, bucket: str) -> Imported:
        """See AsyncClient.import_bucket."""
        return self._call(lambda: self._inner.import_bucket(bucket))

    def dataranges(self, dataset: str) -> list[DatarangeInfo]:
        """See AsyncClient.dataranges."""
        return self._call(lambda: self._inner.dataranges(dataset))

    def delete_datarange(self, dataset: str, first: int, last: int) -> None:
        """See AsyncClient.delete_datarange."""
        self._call(lambda: self._inner.delete_datarange(dataset, first, last))

    def aggregate(self, dataset: str, first: int, last: int) -> DatarangeInfo:
        """See AsyncClient.aggregate."""
        return self._call(lambda: self._inner.aggregate(dataset, first, last))

    def bitmap(self, dataset: str) -> BitMap64:
        """See AsyncClient.bitmap."""
        return self._call(lambda: self._inner.bitmap(dataset))

    # -- writing -----------------------------------------------------------------------------------

    def upload(
        self,
        dataset: str,
        tar: str | Path | BinaryIO | ScannedTar,
        *,
        progress: Progress = _ignore,
        resume: Path | None = None,
    ) -> DatarangeInfo:
        """See AsyncClient.upload. *progress* is called in the client's thread."""
        return self._call(lambda: self._inner.upload(dataset, tar, progress=progress, resume=resume))

    def ingest(
        self,
        dataset: str,
        things: Iterable[Ingested],
        *,
        start: int | None = None,
        datarange_bytes: int = DATARANGE_BYTES,
        progress: Progress = _ignore,
        committed: Committed | None = None,
    ) -> list[DatarangeInfo]:
        """See AsyncClient.ingest. *things* are asked for, and *committed* called, by the calling thread."""
        first = self.first_key(dataset, start)
        done: list[DatarangeInfo] = []
        for batch in batches(numbered(things, first), datarange_bytes):
            done.append(self.commit(dataset, batch, progress=progress))
            if committed is not None:
                committed(done[-1], batch.sources)
        return done

    def first_key(self, dataset: str, start: int | None = None) -> int:
        """See AsyncClient.first_key."""
        return self._call(lambda: self._inner.first_key(dataset, start))

    def commit(self, dataset: str, batch: Batch, *, progress: Progress = _ignore) -> DatarangeInfo:
        """See AsyncClient.commit. *progress* is called in the client's thread."""
        return self._call(lambda: self._inner.commit(dataset, batch, progress=progress))

    def uploads(self, dataset: str) -> list[UploadInfo]:
        """See AsyncClient.uploads."""
        return self._call(lambda: self._inner.uploads(dataset))

    def cancel_upload(self, upload_id: int) -> None:
        """See AsyncClient.cancel_upload."""
        self._call(lambda: self._inner.cancel_upload(upload_id))

    def give_up_dead(self) -> int:
        """See AsyncClient.give_up_dead."""
        return self._call(self._inner.give_up_dead)

    # -- reading -----------------------------------------------------------------------------------

    def download_tar(
        self,
        dataset: str,
        first: int,
        last: int,
        target: str | Path | BinaryIO,
        *,
        progress: Progress = _ignore,
        resume: Path | None = None,
    ) -> Downloaded:
        """See AsyncClient.download_tar."""
        return self._call(
            lambda: self._inner.download_tar(dataset, first, last, target, progress=progress, resume=resume)
        )

    def iterate(self, dataset: str, first: int, last: int) -> Generator[Datapoint, None, None]:
        """See AsyncClient.iterate."""
        with closing(self._each(self._inner.iterate_batches(dataset, first, last))) as found:
            for batch in found:
                yield from batch

    def iterate_batches(self, dataset: str, first: int, last: int) -> Generator[list[Datapoint], None, None]:
        """See AsyncClient.iterate_batches."""
        yield from self._each(self._inner.iterate_batches(dataset, first, last))

    def verify(self, dataset: str) -> Generator[Report, None, None]:
        """See AsyncClient.verify."""
        yield from self._each(self._inner.verify(dataset))

    def _each(self, found: AsyncGenerator[T, None]) -> Generator[T, None, None]:
        """Yield what *found* yields."""
        try:
            while (one := self._call(lambda: anext(found, None))) is not None:
                yield one
        finally:
            if self._portal is not None:  # a generator may outlive its client
                self._call(found.aclose)

    def get(self, dataset: str, key: int) -> Datapoint:
        """See AsyncClient.get."""
        return self._call(lambda: self._inner.get(dataset, key))

    def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run *work* in the client's thread. If this thread is interrupted, stop it and wait for that."""
        if self._portal is None:
            raise RuntimeError("use the client as a context: with Client(…) as client")
        ended = threading.Event()

        async def run() -> T:
            try:
                return await work()
            finally:
                ended.set()

        future = self._portal.start_task_soon(run)
        try:
            return future.result()
        except BaseException:
            if not future.done() or future.cancelled():
                future.cancel()
                ended.wait(_CLEANING)
            raise
