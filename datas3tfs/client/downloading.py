"""Download the datapoints of some keys as one TAR. Concurrency: a task of the caller's for each download."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread

from datas3tfs.client.outputs import TarOutput, whole_or_not_at_all
from datas3tfs.client.reading import Reading
from datas3tfs.client.walking import Sink
from datas3tfs.core import tar
from datas3tfs.core.spans import Span

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What a download has written."""

    bytes: int
    datapoints: int


class _Nowhere:
    """Takes content that is written elsewhere, with all around it."""

    def write(self, data: bytes) -> None:
        """Forget it."""


async def download_tar(
    reading: Reading, dataset: str, keys: Span, target: Path | BinaryIO, advance: Advance
) -> Downloaded:
    """Write the datapoints of *keys* that exist to *target*: a path, where the file appears when it is
    whole, or an open file. *advance* hears of bytes. Raises as `Reading.walk`, Invalid (no such place)."""
    if not isinstance(target, Path):
        with TarOutput(target) as output:
            return await _write(reading, dataset, keys, output, advance)
    with whole_or_not_at_all(target) as file, TarOutput(file) as output:
        return await _write(reading, dataset, keys, output, advance)


async def _write(
    reading: Reading, dataset: str, keys: Span, output: TarOutput, advance: Advance
) -> Downloaded:
    nowhere, found, told = _Nowhere(), 0, 0

    def make_sink(size: int) -> Sink:
        return nowhere

    async with aclosing(reading.walk(dataset, keys, make_sink)) as steps:
        async for step in steps:
            await to_thread.run_sync(output.take, step)
            found += len(step.found)
            if output.written > told:
                advance(output.written - told)
                told = output.written
    await to_thread.run_sync(output.end, tar.END_OF_ARCHIVE)
    return Downloaded(output.good, found)
