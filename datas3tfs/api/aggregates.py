"""Aggregates: one datarange in the place of several, merged by the client or here."""

from __future__ import annotations

from datas3tfs.api.operations import LONG, VERY_LONG, Call, Operation, Scope
from datas3tfs.api.shapes import aggregate_grant, datarange_info, inclusive
from datas3tfs.core.model import UploadId
from datas3tfs.wire import answers, requests


async def _start(call: Call, given: requests.Aggregate) -> answers.AggregateGrant:
    keys = inclusive(given.first_datapoint_index, given.last_datapoint_index)
    return aggregate_grant(await call.backend.receiver.start_aggregate(given.datas3t_name, keys))


async def _complete(call: Call, given: requests.CompleteAggregate) -> None:
    receiver = call.backend.receiver
    await receiver.complete_aggregate(UploadId(given.aggregate_upload_id), given.upload_ids or None)


async def _cancel(call: Call, given: requests.AggregateReference) -> None:
    await call.backend.receiver.cancel_aggregate(UploadId(given.aggregate_upload_id))


async def _run(call: Call, given: requests.Aggregate) -> answers.DatarangeInfo:
    keys = inclusive(given.first_datapoint_index, given.last_datapoint_index)
    return datarange_info(await call.backend.compactor.aggregate(given.datas3t_name, keys))


OPERATIONS = (
    Operation(
        method="POST",
        paths=("/api/v1/aggregate",),
        summary="Begin to merge dataranges: say where they lie, and where to put the result.",
        takes=requests.Aggregate,
        run=_start,
        scope=Scope.DATASET,
        names="datas3t_name",
        changes=True,
        gives=answers.AggregateGrant,
        errors=(404, 409),
    ),
    Operation(
        method="POST",
        paths=("/api/v1/aggregate/complete",),
        summary="Check a merged datarange, and put it in the place of its sources.",
        takes=requests.CompleteAggregate,
        run=_complete,
        scope=Scope.UPLOAD,
        names="aggregate_upload_id",
        changes=True,
        errors=(404, 409),
        seconds=LONG,
        is_heavy=True,
    ),
    Operation(
        method="POST",
        paths=("/api/v1/aggregate/cancel",),
        summary="Give a merged datarange up; its sources stay.",
        takes=requests.AggregateReference,
        run=_cancel,
        scope=Scope.UPLOAD,
        names="aggregate_upload_id",
        changes=True,
        errors=(404, 409),
    ),
    Operation(
        method="POST",
        paths=("/api/v1/aggregate/run",),
        summary="Merge dataranges, here: no byte passes the client.",
        takes=requests.Aggregate,
        run=_run,
        scope=Scope.DATASET,
        names="datas3t_name",
        changes=True,
        gives=answers.DatarangeInfo,
        errors=(404, 409),
        seconds=VERY_LONG,
        is_heavy=True,
    ),
)
