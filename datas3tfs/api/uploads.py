"""Uploads by presigned URLs: list, start, go on, complete, cancel. The bytes pass this server by."""

from __future__ import annotations

from datas3tfs.api.operations import LONG, Call, Operation, Scope
from datas3tfs.api.shapes import counted, datarange_info, upload_grant, upload_info
from datas3tfs.core.model import UploadId
from datas3tfs.core.names import KEY_LIMIT
from datas3tfs.core.spans import Span
from datas3tfs.errors import NotFound
from datas3tfs.wire import answers, requests


async def _start(call: Call, given: requests.StartUpload) -> answers.UploadGrant:
    keys = counted(given.first_datapoint_index, given.number_of_datapoints)
    name, size, part_size = given.datas3t_name, given.data_size, given.part_size
    return upload_grant(await call.backend.receiver.start(name, keys, size, part_size, attempt=given.attempt))


async def _resume(call: Call, given: requests.UploadReference) -> answers.UploadGrant:
    grant = await call.backend.receiver.resume(UploadId(given.datarange_upload_id))
    return upload_grant(grant, again=True)


async def _complete(call: Call, given: requests.CompleteUpload) -> answers.DatarangeInfo | None:
    tags = given.upload_ids or None
    made = await call.backend.receiver.complete(UploadId(given.datarange_upload_id), tags)
    return datarange_info(made) if given.describe else None


async def _cancel(call: Call, given: requests.UploadReference) -> None:
    await call.backend.receiver.cancel(UploadId(given.datarange_upload_id))


async def _list(call: Call, given: requests.DatasetQuery) -> answers.UploadList:
    try:
        dataset = await call.backend.reader.dataset(given.datas3t_name)
    except NotFound:
        if given.must_exist:
            raise
        return answers.UploadList(uploads=[])
    found = await call.backend.uploads.in_flight(dataset.id, Span(0, KEY_LIMIT))
    return answers.UploadList(uploads=[upload_info(one) for one in found])


OPERATIONS = (
    Operation(
        method="GET",
        paths=("/api/v1/uploads",),
        summary="List the uploads in flight to a dataset, by key.",
        takes=requests.DatasetQuery,
        run=_list,
        scope=Scope.DATASET,
        names="datas3t_name",
        gives=answers.UploadList,
        errors=(404,),
    ),
    Operation(
        method="POST",
        paths=("/api/v1/upload-datarange", "/api/datarange/upload/start"),
        summary="Begin to upload a datarange: claim its keys, say where to put it.",
        takes=requests.StartUpload,
        run=_start,
        scope=Scope.DATASET,
        names="datas3t_name",
        changes=True,
        gives=answers.UploadGrant,
        errors=(404, 409),
    ),
    Operation(
        method="POST",
        paths=("/api/v1/upload-datarange/complete", "/api/datarange/upload/complete"),
        summary="Check what was put, and commit it. Doing it again does nothing.",
        takes=requests.CompleteUpload,
        run=_complete,
        scope=Scope.UPLOAD,
        names="datarange_upload_id",
        changes=True,
        gives=answers.DatarangeInfo,
        errors=(404, 409),
        seconds=LONG,
        is_heavy=True,
    ),
    Operation(
        method="POST",
        paths=("/api/v1/upload-datarange/cancel",),
        summary="Give an upload up. Doing it again does nothing.",
        takes=requests.UploadReference,
        run=_cancel,
        scope=Scope.UPLOAD,
        names="datarange_upload_id",
        changes=True,
        errors=(404, 409),
    ),
    Operation(
        method="POST",
        paths=("/api/v1/upload-datarange/resume",),
        summary="Go on with an upload: new URLs, and which parts have arrived.",
        takes=requests.UploadReference,
        run=_resume,
        scope=Scope.UPLOAD,
        names="datarange_upload_id",
        changes=True,
        gives=answers.UploadGrant,
        errors=(404, 409),
    ),
)
