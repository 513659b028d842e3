"""Downloads: where datapoints lie, as presigned URLs and ranges of bytes. The bytes pass this server by."""

from __future__ import annotations

from datas3tfs.api.operations import Call, Operation, Scope
from datas3tfs.api.shapes import inclusive, segment
from datas3tfs.engine.locating import locate
from datas3tfs.wire import answers, requests


async def _download(call: Call, given: requests.Download) -> answers.DownloadGrant:
    backend = call.backend
    keys = inclusive(given.first_datapoint, given.last_datapoint)
    found = await locate(
        backend.reader, backend.indices, backend.stores, given.datas3t_name, keys, checksums=given.checksums
    )
    return answers.DownloadGrant(download_segments=[segment(one) for one in found])


OPERATIONS = (
    Operation(
        method="POST",
        paths=("/api/v1/download", "/api/download/presign"),
        summary="Say where the datapoints that exist of a range lie.",
        takes=requests.Download,
        run=_download,
        scope=Scope.DATASET,
        names="datas3t_name",
        gives=answers.DownloadGrant,
        errors=(404,),
    ),
)
