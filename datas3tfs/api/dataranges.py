"""Dataranges: list, delete, and the bitmap of all keys."""

from __future__ import annotations

import trio
from pyroaring import BitMap64
from starlette.responses import Response

from datas3tfs.api.operations import Call, Operation, Scope
from datas3tfs.api.shapes import datarange_info, inclusive
from datas3tfs.core.model import Datarange
from datas3tfs.errors import NotFound
from datas3tfs.wire import answers, requests

_BITMAP = "application/octet-stream"


async def _list(call: Call, given: requests.DatasetQuery) -> answers.DatarangeList:
    return answers.DatarangeList(dataranges=[datarange_info(one) for one in await _dataranges(call, given)])


async def _dataranges(call: Call, given: requests.DatasetQuery) -> list[Datarange]:
    try:
        dataset = await call.backend.reader.dataset(given.datas3t_name)
    except NotFound:
        if given.must_exist:
            raise
        return []  # as the Go servers answer; the command line of theirs counts on it
    return await call.backend.reader.dataranges(dataset.id)


async def _delete(call: Call, given: requests.DeleteDatarange) -> None:
    keys = inclusive(given.first_datapoint_key, given.last_datapoint_key)
    dataset = await call.backend.reader.dataset(given.datas3t_name)
    try:
        await call.backend.dataranges.remove(dataset.id, keys)
    except NotFound as exc:  # the Go command line looks for these words
        where = f"of datapoints {keys.start}-{keys.last} in {dataset.name}"
        raise NotFound(f"failed to find datarange {where}: none has exactly these") from exc


async def _bitmap(call: Call, given: requests.DatasetQuery) -> Response:
    found = await _dataranges(call, given)
    return Response(await trio.to_thread.run_sync(_serialized, found), media_type=_BITMAP)


def _serialized(dataranges: list[Datarange]) -> bytes:
    """Return all keys in the portable format of 64-bit Roaring bitmaps."""
    keys = BitMap64()
    for datarange in dataranges:
        keys.add_range(datarange.keys.start, datarange.keys.stop)
    keys.run_optimize()
    return bytes(keys.serialize())


OPERATIONS = (
    Operation(
        method="GET",
        paths=("/api/v1/dataranges",),
        summary="List the dataranges of a dataset, by key.",
        takes=requests.DatasetQuery,
        run=_list,
        scope=Scope.DATASET,
        names="datas3t_name",
        gives=answers.DatarangeList,
        errors=(404,),
    ),
    Operation(
        method="POST",
        paths=("/api/v1/datarange/delete",),
        summary="Delete the datarange of exactly these keys.",
        takes=requests.DeleteDatarange,
        run=_delete,
        scope=Scope.DATASET,
        names="datas3t_name",
        changes=True,
        errors=(404,),
    ),
    Operation(
        method="GET",
        paths=("/api/v1/datapoints-bitmap",),
        summary="All keys of a dataset, as a 64-bit Roaring bitmap (portable format).",
        takes=requests.DatasetQuery,
        run=_bitmap,
        scope=Scope.DATASET,
        names="datas3t_name",
        media_type=_BITMAP,
        gives=bytes,
        errors=(404,),
    ),
)
