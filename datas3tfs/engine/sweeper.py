"""Repair what writers left half-done: expire their intents and leases, delete doomed objects.

Safe to run anywhere, any number of times, beside everything else: an intent's row is deleted before
its objects are, and a writer that is merely slow finds its intent gone and cannot publish.
"""

from __future__ import annotations

import logging

import trio

from datas3tfs.core.model import BucketId
from datas3tfs.errors import Datas3tError
from datas3tfs.ports import Graveyard, Leases, Stores, Uploads

log = logging.getLogger(__name__)

_BATCH = 1000
_RECORD_SECONDS = 5.0  # to strike off what was deleted when the sweep itself is cut short


async def sweep(uploads: Uploads, leases: Leases, graveyard: Graveyard, stores: Stores) -> int:
    """Abandon expired intents, drop expired leases, delete doomed objects; return how many objects went.

    An object that cannot be deleted now stays on the list. Raises Unavailable if Postgres is away.
    """
    await uploads.abandon_expired()
    await leases.drop_expired()
    deleted: list[int] = []
    away: set[BucketId] = set()
    try:
        for doomed in await graveyard.doomed(_BATCH):
            if doomed.bucket_id in away:
                continue
            try:
                await (await stores.store(doomed.bucket_id)).delete(doomed.object_key)
                deleted.append(doomed.id)
            except Datas3tError as exc:
                # The bucket is left alone for this time: its next object would take as long to fail.
                away.add(doomed.bucket_id)
                log.warning("%s: could not be deleted, will be tried again: %s", doomed.object_key, exc)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _RECORD_SECONDS):
            if deleted:
                await graveyard.buried(deleted)
    return len(deleted)
