"""What a token is good for: reading or writing, every dataset or some. Whatever is not allowed here is not.

Raises HTTPException 403. No state.
"""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException

from datas3tfs.api.backend import Backend
from datas3tfs.api.operations import Operation, Scope
from datas3tfs.core.model import DatasetId, Token, UploadId
from datas3tfs.core.names import printable
from datas3tfs.errors import Conflict, NotFound


def check_rights(caller: Token, operation: Operation[Any]) -> None:
    """Refuse what a token is no good for, whatever the request says."""
    if operation.changes and not caller.can_write:
        raise HTTPException(403, f"token {printable(caller.name)}: only for reading")
    if operation.scope is Scope.ALL and caller.datasets is not None:
        raise HTTPException(403, f"token {printable(caller.name)}: only for some datasets, this needs all")


async def check_dataset(backend: Backend, caller: Token, operation: Operation[Any], given: object) -> None:
    """Refuse a dataset, or an upload to one, that a token for some datasets is not for.

    Raises Unavailable besides."""
    if caller.datasets is None or operation.scope not in (Scope.DATASET, Scope.UPLOAD):
        return
    named = getattr(given, operation.names)
    name = named if operation.scope is Scope.DATASET else await _dataset_of(backend, UploadId(named))
    if name is not None and name not in caller.datasets:
        raise HTTPException(403, f"token {printable(caller.name)}: not for this dataset")


async def _dataset_of(backend: Backend, upload_id: UploadId) -> str | None:
    """Return the name of the dataset that an upload is for; None if there is no such upload (any more): what
    is done to it is answered as such."""
    dataset_id = await _dataset_id_of(backend, upload_id)
    names = {dataset.id: dataset.name for dataset in await backend.reader.datasets()}
    return None if dataset_id is None else names.get(dataset_id)


async def _dataset_id_of(backend: Backend, upload_id: UploadId) -> DatasetId | None:
    published = await backend.uploads.published(upload_id)
    if published is not None:
        return published.dataset_id
    try:
        return (await backend.uploads.pending(upload_id)).upload.intent.dataset_id
    except (NotFound, Conflict):
        return None
