"""Make one datarange of several adjacent ones, bytes and all, while readers go on with the old ones.

    begin (an intent that names the sources; it claims nothing) → put the TAR together → check it against the
      merged index → PUT the index → publish (one transaction; the sources must still be exactly those)

Where S3 can copy, large stretches of the sources do not pass through here; the rest is streamed, each
datapoint checked on the way. Whatever fails, the sources stay as they are. What lies in S3 by then is named
by the intent: it is abandoned here or expires, and the sweeper deletes it. Not here: what to merge
(core/compaction.py), and aggregates that a client makes (receiving.py).

Concurrency: any number of compactors anywhere; of two that merge the same datarange, one publishes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import trio

from datas3tfs.core import tar
from datas3tfs.core.checking import check_piece
from datas3tfs.core.compaction import CopiedPart, Fragment, MergedPart, MergePlan, check_sources, plan_merge
from datas3tfs.core.index import HAS_CRC, Index, open_index
from datas3tfs.core.indexbuild import merge_indices
from datas3tfs.core.indexfile import encode_index_file
from datas3tfs.core.model import BucketId, Datarange, Overlap, Upload, UploadIntent
from datas3tfs.core.reads import piece, piece_at
from datas3tfs.core.spans import Span
from datas3tfs.engine.indices import Indices
from datas3tfs.engine.inspection import scan_object
from datas3tfs.engine.nurseries import side_by_side
from datas3tfs.engine.stream import Section, Stretch, fetch_checked, open_sections
from datas3tfs.engine.writer import Writer
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, Invalid, NotFound
from datas3tfs.ports import CatalogReader, Uploads, WholeStore, WholeStores

_SMALL = 16 << 20  # bytes; up to there one PUT is quicker than a multipart upload
_LARGEST_COPY = 512 << 20  # several of these at once are quicker than one of 5 GiB; 10,000 make 5 TiB
_PARTS_AT_ONCE = 4  # memory: each up to twice the least part if it is not copied
_INDICES_AT_ONCE = 8
_SPREAD = 64  # seams looked at in the merged object, and as many places all over it; 256 KiB each at most
_SAMPLES_AT_ONCE = 8
_ATTEMPTS = 3  # at a sample that fails its checks: it may have been mangled on the way
_ABORT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Merge:
    """All about a datarange to be."""

    sections: list[Section]  # the sources, whole
    plan: MergePlan
    index: Index
    index_file: bytes


class _CannotCopy(Exception):
    """This store has no copying."""


class Compactor:
    """Merges dataranges."""

    def __init__(
        self, reader: CatalogReader, uploads: Uploads, stores: WholeStores, indices: Indices
    ) -> None:
        self._reader = reader
        self._uploads = uploads
        self._stores = stores
        self._indices = indices
        self._writer = Writer(uploads, stores)
        self._without_copy: set[BucketId] = set()

    async def aggregate(self, dataset: str, keys: Span) -> Datarange:
        """Make one datarange of those that hold exactly *keys*; return it. If one does already, that.

        Raises NotFound (dataset), Invalid (*keys* are not those of at least two adjacent dataranges),
        Conflict (they have changed meanwhile), Corrupt, Unavailable; all is as before then.
        """
        found = await self._reader.overlap(dataset, keys)
        if [one.keys for one in found.dataranges] == [keys]:
            return found.dataranges[0]
        check_sources(dataset, keys, found.dataranges)
        try:
            return await self._replace(found, keys, await self._prepare(found))
        except (NotFound, Corrupt) as exc:
            # Objects of what was replaced or removed meanwhile may be gone; then it is nobody's fault.
            if (await self._reader.overlap(dataset, keys)).dataranges != found.dataranges:
                raise Conflict(f"dataset {dataset}: its dataranges have changed meanwhile ({exc})") from exc
            raise Corrupt(str(exc)) from exc

    async def _prepare(self, found: Overlap) -> _Merge:
        """Plan the merged TAR and make its index."""
        load = partial(self._indices.of, found.bucket_id)
        indices = await side_by_side(load, found.dataranges, _INDICES_AT_ONCE)
        if any(_has_crcs(index) for index in indices):
            # One without checksums would cost all others theirs.
            for number, datarange in enumerate(found.dataranges):
                if not _has_crcs(indices[number]):
                    indices[number] = await self._scanned(found.bucket_id, datarange, indices[number])
        sections = [
            Section(datarange, index, Span(0, index.count))
            for datarange, index in zip(found.dataranges, indices, strict=True)
        ]
        plan = plan_merge([section.span for section in sections], largest_copy=_LARGEST_COPY)
        return await trio.to_thread.run_sync(_merged, sections, plan, abandon_on_cancel=True)

    async def _scanned(self, bucket_id: BucketId, datarange: Datarange, known: Index) -> Index:
        """Return the index with checksums, from reading all of the TAR. Raises Corrupt if that is another."""
        store = await self._stores.store(bucket_id)
        try:
            index = await scan_object(store, datarange.data_key, datarange.keys, datarange.size)
        except Invalid as exc:
            raise Corrupt(f"{datarange.data_key}: {exc}") from exc
        if index.records != known.records:
            raise Corrupt(f"{datarange.index_key}: says otherwise than the TAR")
        return index

    async def _replace(self, found: Overlap, keys: Span, merge: _Merge) -> Datarange:
        replaced = tuple(datarange.id for datarange in found.dataranges)
        intent = UploadIntent(found.dataset_id, keys, merge.plan.size, replaces=replaced)
        upload = await self._writer.begin(intent, found.bucket_id)
        try:
            async with self._writer.kept_alive(upload.id):
                store = await self._stores.store(upload.bucket_id)
                await self._assemble(store, upload, merge)
                await _check(store, upload.data_key, merge)
                await store.put(upload.index_key, merge.index_file)
            return await self._uploads.publish(upload.id)
        except BaseException:
            await self._writer.abandon(upload)
            raise

    async def _assemble(self, store: WholeStore, upload: Upload, merge: _Merge) -> None:
        """Put the merged TAR together: by copying if that is worth it and can be done, else by streaming."""
        parts, size = merge.plan.parts, merge.plan.size
        if (
            size > _SMALL
            and upload.bucket_id not in self._without_copy
            and parts is not None
            and any(isinstance(part, CopiedPart) for part in parts)
        ):
            try:
                await _copy(store, upload.data_key, merge, parts)
                return
            except _CannotCopy:
                self._without_copy.add(upload.bucket_id)
        async with open_sections(store, merge.sections) as stretches:
            await store.put_stream(upload.data_key, _body(merge.sections, stretches), size)


def _has_crcs(index: Index) -> bool:
    return bool(index.header.flags & HAS_CRC)


def _merged(sections: Sequence[Section], plan: MergePlan) -> _Merge:
    """Make the index; it takes a while for a million datapoints: call it in a thread."""
    flat = merge_indices([section.index for section in sections], plan.starts, plan.size)
    keys = Span(sections[0].datarange.keys.start, sections[-1].datarange.keys.stop)
    index = open_index(memoryview(flat), first=keys.start, count=keys.length, object_size=plan.size)
    return _Merge(list(sections), plan, index, encode_index_file(flat))


# -- by streaming -----------------------------------------------------------------------------------


async def _body(
    sections: Sequence[Section], stretches: AsyncIterator[Stretch]
) -> AsyncGenerator[bytes, None]:
    """Yield the merged TAR. Raises Corrupt if a datapoint is not right."""
    async for stretch in stretches:
        section = sections[stretch.section]
        for _, problem in stretch.problems:
            raise Corrupt(f"{section.datarange.data_key}: {problem}")
        yield stretch.data
        if stretch.span.stop == section.span.stop:
            yield bytes(-section.span.length % tar.BLOCK)
    yield tar.END_OF_ARCHIVE


# -- by copying -------------------------------------------------------------------------------------


async def _copy(store: WholeStore, key: str, merge: _Merge, parts: Sequence[MergedPart]) -> None:
    """Make the object *key* of *parts*. Raises _CannotCopy; nothing is left open then."""
    multipart = await store.begin_multipart(key)

    async def make(numbered: tuple[int, MergedPart]) -> tuple[int, str]:
        number, part = numbered
        return number, await _part(store, (key, multipart, number), merge.sections, part)

    try:
        tags = await side_by_side(make, enumerate(parts, 1), _PARTS_AT_ONCE)
        await store.complete_multipart(key, multipart, tags, merge.plan.size)
    except BaseException:
        # Should this fail, too: the sweeper aborts it when it deletes the object.
        with trio.move_on_after(_ABORT_SECONDS, shield=True), suppress(Datas3tError):
            await store.abort_multipart(key, multipart)
        raise


async def _part(
    store: WholeStore, to: tuple[str, str, int], sections: Sequence[Section], part: MergedPart
) -> str:
    if isinstance(part, CopiedPart):
        tag = await store.copy_part(*to, sections[part.source].datarange.data_key, part.span)
        if tag is None:
            raise _CannotCopy
        return tag
    pieces = await side_by_side(partial(_fragment, store, sections), part.fragments, _PARTS_AT_ONCE)
    return await store.put_part(*to, b"".join(pieces))


async def _fragment(store: WholeStore, sections: Sequence[Section], fragment: Fragment) -> bytes:
    if fragment.source is None:
        return bytes(fragment.span.length)
    return await fetch_checked(store, sections[fragment.source], fragment.span)


# -- is it right? -----------------------------------------------------------------------------------


async def _check(store: WholeStore, key: str, merge: _Merge) -> None:
    """Raise Corrupt unless the object is as long as planned and a sample of it is what it must be."""
    size = await store.size(key)
    if size != merge.plan.size:
        raise Corrupt(f"{key}: {size} bytes long, must be {merge.plan.size}")
    await side_by_side(partial(_check_one, store, key, merge.index), _sample(merge), _SAMPLES_AT_ONCE)


def _sample(merge: _Merge) -> list[tuple[int, int]]:
    """Return (slot, piece) of what to look at: on both sides of where sources or parts meet, and all over."""
    lengths = [part.length for part in merge.plan.parts or ()]
    seams = sorted({0, merge.plan.size, *merge.plan.starts, *accumulate(lengths)})
    positions = {near for seam in _spread(seams) for near in (max(0, seam - 1), seam)}
    positions.update(_spread(range(merge.plan.size)))
    found = (piece_at(merge.index, position) for position in positions)
    return sorted({(slot, piece.number) for slot, _, piece in found})


def _spread(positions: Sequence[int]) -> Sequence[int]:
    """Return at most _SPREAD of *positions*, evenly, the first and the last among them."""
    if len(positions) <= _SPREAD:
        return positions
    return [positions[(len(positions) - 1) * number // (_SPREAD - 1)] for number in range(_SPREAD)]


async def _check_one(store: WholeStore, key: str, index: Index, sample: tuple[int, int]) -> None:
    slot, number = sample
    entry = index.entry(slot)
    wanted = piece(entry, number)
    for attempt in range(1, _ATTEMPTS + 1):
        data = await store.get_range(key, wanted.span, index.object_size)
        try:
            check_piece(index, slot, entry, wanted, memoryview(data))
            return
        except Corrupt as exc:
            if attempt == _ATTEMPTS:
                raise Corrupt(f"{key}: put together wrongly: {exc}") from exc
