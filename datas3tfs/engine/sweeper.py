"""Repair what writers left half-done: expire their intents and leases, delete doomed objects.

Safe to run anywhere, any number of times, beside everything else: an intent's row is deleted before
its objects are, and a writer that is merely slow finds its intent gone and cannot publish. Servers run
`sweeping` for ever; several of them at once only do some of the work twice.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from datas3tfs.core.model import BucketId
from datas3tfs.errors import Datas3tError
from datas3tfs.ports import Graveyard, Leases, Stores, Uploads

log = logging.getLogger(__name__)

_BATCH = 1000
_MOST_LEFT = 20_000  # doomed objects of buckets that are away, looked past to find those of others
_RECORD_SECONDS = 5.0  # to strike off what was deleted when the sweep itself is cut short
_INTERVAL = 60.0  # between sweeps of a server; an intent expires after ten minutes anyway


@dataclass(slots=True)
class Trouble:
    """What could not be deleted the last time: reported once, and tried after everything else."""

    buckets: set[BucketId] = field(default_factory=set)
    objects: set[int] = field(default_factory=set)  # ids of Doomed, the first of each bucket in each sweep


async def sweep(
    uploads: Uploads,
    leases: Leases,
    graveyard: Graveyard,
    stores: Stores,
    trouble: Trouble | None = None,
) -> int:
    """Abandon expired intents, drop expired leases, delete doomed objects; return how many objects went.

    An object that cannot be deleted now stays on the list. *trouble* is what the last sweep had; it is
    brought up to date. Raises Unavailable if Postgres is away.
    """
    await uploads.abandon_expired()
    await leases.drop_expired()
    trouble = trouble or Trouble()
    failed: set[BucketId] = set()
    total, left = 0, 0
    while left <= _MOST_LEFT:
        looked_at, deleted = await _delete_some(graveyard, stores, left + _BATCH, trouble, failed)
        total += deleted
        if looked_at < left + _BATCH or not failed:
            break
        left = looked_at - deleted
    return total


async def sweeping(
    uploads: Uploads,
    leases: Leases,
    graveyard: Graveyard,
    stores: Stores,
    *,
    interval: float = _INTERVAL,
    jitter: Callable[[], float] = random.random,
) -> None:
    """Sweep for ever, every *interval* seconds on average: servers started together drift apart by *jitter*
    (from 0 to 1). While Postgres or a bucket is away, that is logged once."""
    trouble = Trouble()
    is_failing = False
    while True:
        deleted = 0
        try:
            deleted = await sweep(uploads, leases, graveyard, stores, trouble)
            is_failing = False
        except Datas3tError as exc:
            if not is_failing:
                log.warning("sweeping has failed, it will be tried again: %s", exc)
            is_failing = True
        except Exception:  # a bug, or an answer nobody thought of: it must not end the server
            log.exception("unexpected failure while sweeping; please report it")
        if deleted < _BATCH:  # else there is probably more
            await trio.sleep(interval * (0.5 + jitter()))


async def _delete_some(
    graveyard: Graveyard, stores: Stores, limit: int, trouble: Trouble, failed: set[BucketId]
) -> tuple[int, int]:
    """Delete up to *limit* doomed objects; return how many were looked at, and how many went."""
    deleted: list[int] = []
    found = await graveyard.doomed(limit)
    try:
        for doomed in sorted(found, key=lambda one: one.id in trouble.objects):
            if doomed.bucket_id in failed:
                continue
            try:
                await (await stores.store(doomed.bucket_id)).delete(doomed.object_key)
                deleted.append(doomed.id)
                trouble.buckets.discard(doomed.bucket_id)
                trouble.objects.discard(doomed.id)
            except Datas3tError as exc:
                # The bucket is left alone for this time: its next object would take as long to fail.
                failed.add(doomed.bucket_id)
                if doomed.bucket_id not in trouble.buckets:
                    log.warning("%s: could not be deleted, will be tried again: %s", doomed.object_key, exc)
                trouble.buckets.add(doomed.bucket_id)
                trouble.objects.add(doomed.id)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + _RECORD_SECONDS):
            if deleted:
                await graveyard.buried(deleted)
    return len(found), len(deleted)
