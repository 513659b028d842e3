"""Datasets: list, create, empty, delete."""

from __future__ import annotations

from datas3tfs.api.operations import Call, Operation, Scope
from datas3tfs.core.model import Dataset
from datas3tfs.core.names import check_label
from datas3tfs.errors import Conflict, NotFound
from datas3tfs.wire import answers, requests


async def _list(call: Call, _: requests.Nothing) -> list[answers.DatasetInfo]:
    shown = call.caller.datasets
    found = [one for one in await call.backend.reader.datasets() if shown is None or one.name in shown]
    return [_info(dataset) for dataset in sorted(found, key=lambda dataset: dataset.name)]


def _info(dataset: Dataset) -> answers.DatasetInfo:
    return answers.DatasetInfo(
        datas3t_name=dataset.name,
        dataset_name=dataset.name,
        bucket_name=dataset.bucket_name,
        datarange_count=dataset.dataranges,
        total_datapoints=dataset.datapoints,
        lowest_datapoint=dataset.lowest_key or 0,
        highest_datapoint=dataset.highest_key or 0,
        total_bytes=dataset.total_bytes,
    )


async def _add(call: Call, given: requests.AddDataset) -> None:
    await call.backend.registry.add_dataset(given.name, given.bucket)


async def _clear(call: Call, given: requests.DatasetReference) -> answers.Cleared:
    dataset = await call.backend.reader.dataset(given.name)
    removed = await call.backend.dataranges.clear(dataset.id)
    return answers.Cleared(dataranges_deleted=removed, objects_scheduled=2 * removed)


async def _delete(call: Call, given: requests.DatasetReference) -> answers.Deleted:
    """Delete an empty dataset; the words of the refusals are those that the Go command line looks for."""
    what = f"cannot delete datas3t {check_label('dataset', given.name)}"
    try:
        dataset = await call.backend.reader.dataset(given.name)
    except NotFound as exc:
        raise NotFound(f"{what}: it does not exist") from exc
    if dataset.dataranges:
        raise Conflict(f"{what}: it contains {dataset.dataranges} dataranges; clear it first")
    try:
        await call.backend.registry.remove_dataset(dataset.id)
    except Conflict as exc:
        raise Conflict(f"{what}: it contains keys that uploads or journals hold") from exc
    return answers.Deleted()


OPERATIONS = (
    Operation(
        method="GET",
        paths=("/api/v1/datas3ts",),
        summary="List the datasets and what they hold.",
        takes=requests.Nothing,
        run=_list,
        scope=Scope.ANY,
        gives=list[answers.DatasetInfo],
    ),
    Operation(
        method="POST",
        paths=("/api/v1/datas3ts", "/api/datas3t"),
        summary="Create an empty dataset.",
        takes=requests.AddDataset,
        run=_add,
        scope=Scope.ALL,
        changes=True,
        status=204,
        errors=(404, 409),
    ),
    Operation(
        method="POST",
        paths=("/api/v1/datas3ts/clear",),
        summary="Remove all dataranges of a dataset.",
        takes=requests.DatasetReference,
        run=_clear,
        scope=Scope.DATASET,
        names="name",
        changes=True,
        gives=answers.Cleared,
        errors=(404,),
    ),
    Operation(
        method="DELETE",
        paths=("/api/v1/datas3ts",),
        summary="Delete an empty dataset.",
        takes=requests.DatasetReference,
        run=_delete,
        scope=Scope.ALL,
        changes=True,
        gives=answers.Deleted,
        errors=(404, 409),
    ),
)
