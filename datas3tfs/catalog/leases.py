"""ports.Leases on Postgres: each method is one transaction, and may be repeated when its outcome is unknown.

Locks are taken in the order of claims.py. No state.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from datas3tfs.catalog import claims, rows
from datas3tfs.catalog.abandoning import ABANDON_THESE
from datas3tfs.catalog.database import Database, Row, Session
from datas3tfs.core.model import DatasetId, Holder, HolderId, Lease
from datas3tfs.core.names import KEY_LIMIT, printable
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid

# $4: only if it is not alive at another place; then nothing is returned.
_ENROL = """
    INSERT INTO lease_holders AS known (id, place, expires_at) VALUES ($1, $2, now() + $3)
    ON CONFLICT (id) DO UPDATE
        SET place = excluded.place, renewed_at = now(), expires_at = excluded.expires_at
        WHERE NOT $4 OR known.place = excluded.place OR known.expires_at < now()
    RETURNING true
"""
_PLACE = "SELECT place FROM lease_holders WHERE id = $1"
# The last claim that begins at or before the key, and what it is for.
_WHO = """
    SELECT c.first_key, c.last_key, l.id AS lease_id, l.holder, l.accepted, u.id AS upload_id,
           h.place, h.expires_at < now() AS expired
    FROM key_claims c
        LEFT JOIN key_leases l ON l.claim_id = c.id
        LEFT JOIN datarange_uploads u ON u.claim_id = c.id
        LEFT JOIN lease_holders h ON h.id = coalesce(l.holder, u.lease_holder)
    WHERE c.dataset_id = $1 AND c.first_key <= $2 ORDER BY c.first_key DESC LIMIT 1
"""
_ACCEPT_LEASE = "UPDATE key_leases SET accepted = true WHERE id = $1"
_TAKE_OVER = f"""
    WITH gone AS (
        DELETE FROM key_leases l USING lease_holders h
        WHERE {claims.OVERLAPPING} AND l.holder <> $4 AND NOT l.accepted
            AND h.id = l.holder AND h.expires_at < now()
        RETURNING l.claim_id
    )
    DELETE FROM key_claims WHERE id IN (SELECT claim_id FROM gone)
"""
_NEXT_CLAIM = """
    SELECT min(first_key) FROM key_claims WHERE dataset_id = $1 AND first_key > $2 AND first_key <= $3
"""
_ACCEPT = f"""
    UPDATE key_leases l SET accepted = true WHERE {claims.OVERLAPPING} AND l.holder = $4 RETURNING true
"""
_HELD = """
    SELECT dataset_id, first_key, last_key, accepted FROM key_leases
    WHERE holder = $1 ORDER BY dataset_id, first_key
"""
_HOLDERS = """
    SELECT h.id, h.place, h.expires_at < now() AS expired, h.renewed_at, count(l.id) AS leases,
           coalesce(sum(l.last_key::numeric - l.first_key + 1), 0) AS keys,
           coalesce(sum(l.last_key::numeric - l.first_key + 1) FILTER (WHERE l.accepted), 0) AS accepted_keys
    FROM lease_holders h LEFT JOIN key_leases l ON l.holder = h.id
    GROUP BY h.id ORDER BY h.place COLLATE "C", h.id
"""

# dismiss, statement by statement: all locks first, in order, as its deletions may be waited for.
_LOCK_FOR_GOOD = "SELECT true FROM lease_holders WHERE id = $1 AND place = coalesce($2, place) FOR UPDATE"
_DISOWN = "UPDATE datarange_uploads SET lease_holder = NULL WHERE lease_holder = $1 RETURNING id"
_LOCK_DATASETS = """
    SELECT id FROM datasets WHERE id IN (SELECT dataset_id FROM key_leases WHERE holder = $1)
    ORDER BY id FOR NO KEY UPDATE
"""
_FREE = """
    WITH gone AS (
        DELETE FROM key_leases WHERE holder = $1 RETURNING claim_id
    )
    DELETE FROM key_claims WHERE id IN (SELECT claim_id FROM gone)
"""
_FORGET = "DELETE FROM lease_holders WHERE id = $1"

_LOCK_EXPIRED = "SELECT id FROM lease_holders WHERE expires_at < now() FOR UPDATE SKIP LOCKED"
_DROP = """
    WITH lapsed AS (
        SELECT id FROM key_leases WHERE holder = ANY($1::uuid[]) AND NOT accepted FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM key_leases WHERE id IN (SELECT id FROM lapsed) RETURNING claim_id
    ), freed AS (
        DELETE FROM key_claims WHERE id IN (SELECT claim_id FROM gone) RETURNING first_key, last_key
    )
    SELECT coalesce(sum(last_key::numeric - first_key + 1), 0) FROM freed
"""
_FORGET_IDLE = """
    DELETE FROM lease_holders h WHERE id = ANY($1::uuid[])
        AND NOT EXISTS (SELECT FROM key_leases WHERE holder = h.id)
        AND NOT EXISTS (SELECT FROM datarange_uploads WHERE lease_holder = h.id)
"""


class _Take:
    """The work of take(). Run again after a lost connection, it finds the lease it may have made."""

    def __init__(self, holder: HolderId, dataset_id: DatasetId, wanted: Span, accepted: bool) -> None:
        self._holder = holder
        self._dataset_id = dataset_id
        self._wanted = wanted
        self._accepted = accepted

    async def __call__(self, session: Session) -> Lease:
        await claims.bound_idleness(session)
        await claims.lock_known_holder(session, self._holder)
        await claims.lock_known_dataset(session, self._dataset_id)
        there = await self._who(session)
        if there is not None and there["holder"] is not None and str(there["holder"]) == self._holder:
            return await self._again(session, there)
        await session.value(_TAKE_OVER, self._dataset_id, self._wanted.start, self._wanted.last, self._holder)
        if there is not None and (there := await self._who(session)) is not None:
            raise Conflict(f"key {self._wanted.start} of dataset {self._dataset_id}: {_taken_by(there)}")
        span = self._wanted.start, self._wanted.last
        taken = await session.value(_NEXT_CLAIM, self._dataset_id, *span)
        keys = self._wanted if taken is None else Span(self._wanted.start, taken)
        await claims.lease(session, self._holder, self._dataset_id, keys, accepted=self._accepted)
        return Lease(self._dataset_id, keys, self._accepted)

    async def _who(self, session: Session) -> Row | None:
        """Return what has the first key; None if it is free."""
        row = await session.row(_WHO, self._dataset_id, self._wanted.start)
        return None if row is None or row["last_key"] < self._wanted.start else row

    async def _again(self, session: Session, there: Row) -> Lease:
        if self._accepted:
            await session.value(_ACCEPT_LEASE, there["lease_id"])
        found = rows.lease(self._dataset_id, there)
        return replace(found, accepted=found.accepted or self._accepted)


def _taken_by(there: Row) -> str:
    place = printable(there["place"] or "")
    if there["upload_id"] is not None:
        return f"it is being uploaded by {place}" if place else "it is being uploaded"
    if there["lease_id"] is None:
        return "it is committed"
    if there["expired"]:
        return (
            f"it is leased by {place}, whose mount is not running: `datas3tfs journal release` frees "
            "its keys knowingly"
        )
    return f"it is leased by {place}"


class PostgresLeases:
    """Keys that journals hold before they are committed; see ports.Leases."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lifetime = timedelta(seconds=database.settings.lease_lifetime)

    async def enrol(self, holder: HolderId, place: str, *, alone: bool = False) -> None:
        """Make the journal at *place* known as *holder*, or put off its expiry. Raises Invalid; *alone*:
        Conflict if it is alive at another place."""
        rows.check_holder(holder)

        async def work(session: Session) -> None:
            if not await session.value(_ENROL, holder, printable(place), self._lifetime, alone):
                raise Conflict(
                    f"it was in use as {await session.value(_PLACE, holder)} within the last minutes"
                )

        await self._database.change(f"journal {holder}", work, repeat=True)

    async def take(
        self, holder: HolderId, dataset_id: DatasetId, wanted: Span, *, accepted: bool = False
    ) -> Lease:
        """Lease the first key of *wanted* and as many of the following as are free, as one lease.

        If *holder* has the first key already, its lease is returned, made accepted if that is asked.
        Raises Conflict (the first key is taken by somebody else), NotFound (dataset, holder), Invalid.
        """
        rows.check_holder(holder)
        if not wanted or wanted.start < 0 or wanted.stop > KEY_LIMIT:
            raise Invalid(f"keys from {wanted.start} to before {wanted.stop} cannot be leased")
        what = f"keys {wanted.start} to {wanted.last} of dataset {dataset_id}"
        work = _Take(holder, dataset_id, wanted, accepted)
        return await self._database.change(what, work, repeat=True)

    async def accept(self, holder: HolderId, dataset_id: DatasetId, key: int) -> None:
        """Make the lease that holds *key* accepted. Raises Conflict if *holder* does not hold it.

        The dataset is locked: a lease that is just being split is not overlooked.
        """
        rows.check_holder(holder)
        what = f"key {key} of dataset {dataset_id}"

        async def work(session: Session) -> bool:
            await claims.bound_idleness(session)
            await claims.lock_dataset(session, dataset_id)
            return bool(await session.value(_ACCEPT, dataset_id, key, key, holder))

        if not await self._database.change(what, work, repeat=True):
            raise Conflict(f"{what}: journal {holder} does not lease it")

    async def release(self, holder: HolderId, dataset_id: DatasetId, keys: Span) -> None:
        """Free what *holder* leases of *keys*; parts of leases outside of them stay."""
        rows.check_holder(holder)
        there = keys.intersection(Span(0, KEY_LIMIT))
        if not there:
            return

        async def work(session: Session) -> None:
            await claims.bound_idleness(session)
            if await claims.lock_holder(session, holder) and await claims.lock_dataset(session, dataset_id):
                await claims.carve(session, holder, dataset_id, there)

        what = f"keys {there.start} to {there.last} of dataset {dataset_id}"
        await self._database.change(what, work, repeat=True)

    async def held(self, holder: HolderId) -> list[Lease]:
        """Return the leases of *holder*, by dataset and key; [] if it is unknown. Raises Corrupt."""
        rows.check_holder(holder)

        async def work(session: Session) -> list[Row]:
            return await session.rows(_HELD, holder)

        found = await self._database.read(f"leases of journal {holder}", work)
        return [rows.lease(DatasetId(row["dataset_id"]), row) for row in found]

    async def holders(self) -> list[Holder]:
        """Return all journals that are known, by place."""

        async def work(session: Session) -> list[Row]:
            return await session.rows(_HOLDERS)

        return [rows.holder(row) for row in await self._database.read("journals", work)]

    async def dismiss(self, holder: HolderId, place: str | None = None) -> None:
        """Free all that *holder* leases, accepted or not, and forget it, if it is known (at *place*).

        Its uploads in flight are abandoned, and their keys freed, too.
        """
        rows.check_holder(holder)

        async def work(session: Session) -> None:
            await claims.bound_idleness(session)
            if await session.value(_LOCK_FOR_GOOD, holder, None if place is None else printable(place)):
                uploads = [row["id"] for row in await session.rows(_DISOWN, holder)]
                await session.rows(_LOCK_DATASETS, holder)
                await session.value(ABANDON_THESE, uploads)
                await session.value(_FREE, holder)
                await session.value(_FORGET, holder)

        await self._database.change(f"journal {holder}", work, repeat=True)

    async def drop_expired(self) -> int:
        """Free expired leases that are not accepted, and forget expired holders without any; return how
        many keys were freed.

        A holder that is being renewed, or takes keys, at this moment is passed over.
        """

        async def work(session: Session) -> int:
            await claims.bound_idleness(session)
            expired = [row["id"] for row in await session.rows(_LOCK_EXPIRED)]
            if not expired:
                return 0
            freed = int(await session.value(_DROP, expired))
            await session.value(_FORGET_IDLE, expired)
            return freed

        return await self._database.change("expired leases", work, repeat=True)
