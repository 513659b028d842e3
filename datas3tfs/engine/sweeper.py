"""Repair what writers left half-done: expire their intents, delete doomed objects.

Safe to run anywhere, any number of times, beside everything else: an intent's row is deleted before
its objects are, and a writer that is merely slow finds its intent gone and cannot publish.
"""

from __future__ import annotations

import logging

from datas3tfs.errors import Datas3tError
from datas3tfs.ports import Graveyard, Stores, Uploads

log = logging.getLogger(__name__)

_BATCH = 1000


async def sweep(uploads: Uploads, graveyard: Graveyard, stores: Stores) -> int:
    """Abandon expired intents and delete doomed objects; return how many objects went.

    An object that cannot be deleted now stays on the list. Raises Unavailable if Postgres is away.
    """
    await uploads.abandon_expired()
    deleted: list[int] = []
    for doomed in await graveyard.doomed(_BATCH):
        try:
            await (await stores.store(doomed.bucket_id)).delete(doomed.object_key)
        except Datas3tError as exc:
            log.warning("%s: could not be deleted, will be tried again: %s", doomed.object_key, exc)
            continue
        deleted.append(doomed.id)
    if deleted:
        await graveyard.buried(deleted)
    return len(deleted)
