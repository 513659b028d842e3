"""Download the datapoints of some keys as one TAR, perhaps after another process has begun to.

Concurrency: a task of the caller's for each download."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread

from datas3tfs.client.outputs import TarOutput, whole_or_not_at_all
from datas3tfs.client.partial import Progressed, going_on
from datas3tfs.client.reading import Reading
from datas3tfs.client.walking import Sink
from datas3tfs.core import tar
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict

_NOTED = 32 << 20  # bytes between notes of how far it is: what is fetched again after a kill, at most

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


async def go_on_downloading(
    reading: Reading, dataset: str, keys: Span, target: Path, state: Path, advance: Advance
) -> Downloaded:
    """Do the same, and go on where *state* says that a process before has come to; see partial.py. What
    fails stays as far as it is."""
    with going_on(target, state, Progressed.not_begun(dataset, keys)) as partial:
        before = partial.done
        advance(before.size)

        def reached(next_key: int, size: int, found: int) -> None:
            now = replace(
                before, next_key=next_key, size=before.size + size, datapoints=before.datapoints + found
            )
            if now.size - partial.done.size >= _NOTED:
                partial.note(now)

        with TarOutput(partial.file) as output:
            if await _is_all(reading, before):
                done = await _end(output, 0)
            else:
                done = await _write(reading, dataset, before.left, output, advance, reached)
    return Downloaded(before.size + done.bytes, before.datapoints + done.datapoints)


async def _is_all(reading: Reading, before: Progressed) -> bool:
    """Say whether the last datapoint had come already. Raises Conflict if what had come is there no more."""
    if not before.datapoints:
        return False
    there = [
        Span(one.min_datapoint_key, one.max_datapoint_key + 1)
        for one in await reading.server.dataranges(before.dataset)
    ]
    last = Span(before.next_key - 1, before.next_key)
    if not any(one.intersection(last) for one in there):
        raise Conflict(f"dataset {before.dataset} has changed since its download began: remove what has come")
    return not any(one.intersection(before.left) for one in there)


async def _write(
    reading: Reading,
    dataset: str,
    keys: Span,
    output: TarOutput,
    advance: Advance,
    reached: Callable[[int, int, int], None] | None = None,
) -> Downloaded:
    """Write *keys* and the end. *reached* is told, in a worker thread, of the next key, the bytes that are
    good, and the datapoints in them."""
    nowhere, found, told = _Nowhere(), 0, 0

    def make_sink(size: int) -> Sink:
        return nowhere

    async with aclosing(reading.walk(dataset, keys, make_sink)) as steps:
        async for step in steps:
            await to_thread.run_sync(output.take, step)
            found += len(step.found)
            if step.found and reached is not None:
                await to_thread.run_sync(reached, step.found[-1].key + 1, output.good, found)
            if output.written > told:
                advance(output.written - told)
                told = output.written
    return await _end(output, found)


async def _end(output: TarOutput, found: int) -> Downloaded:
    await to_thread.run_sync(output.end, tar.END_OF_ARCHIVE)
    return Downloaded(output.good, found)
