"""Keys passing from hand to hand, inside a transaction: locks, claims, leases. No state.

Order of locks, for every transaction on these tables, so that none waits in a circle: a holder's row, then
uploads' rows, then datasets' rows (each ascending), then aggregates' rows (uploads without a claim of their
own), then dataranges, then leases, then claims. Whoever inserts a claim, or takes dataranges away, holds
its dataset's row, as inserting waits for those who are just deleting an overlapping one. So whoever deletes
claims must have all its locks by then; a sweeper, which has no dataset's, waits for nothing: SKIP LOCKED.
"""

from __future__ import annotations

from datas3tfs.catalog.database import Row, Session
from datas3tfs.core.model import DatasetId, HolderId
from datas3tfs.core.spans import Span
from datas3tfs.errors import NotFound

# A writer frozen between two statements must not keep a row locked for ever.
_BOUND_IDLENESS = "SELECT set_config('idle_in_transaction_session_timeout', '60s', true)"
# One change of a dataset's claims at a time: otherwise overlapping ones deadlock in the exclusion constraint
# and cost a deadlock_timeout each. Also: whoever holds this row sees the outcome of every one before it.
_LOCK_DATASET = "SELECT name, s3_bucket_id FROM datasets WHERE id = $1 FOR NO KEY UPDATE"
# What every row that points to the holder needs anyway; it does not keep the holder from being renewed.
_LOCK_HOLDER = "SELECT true FROM lease_holders WHERE id = $1 FOR KEY SHARE"

_CLAIM = "INSERT INTO key_claims (dataset_id, first_key, last_key) VALUES ($1, $2, $3) RETURNING id"
_LEASE = """
    WITH claim AS (
        INSERT INTO key_claims (dataset_id, first_key, last_key) VALUES ($1, $2, $3) RETURNING id
    )
    INSERT INTO key_leases (dataset_id, claim_id, first_key, last_key, holder, accepted)
    SELECT $1, id, $2, $3, $4, $5 FROM claim RETURNING id
"""
# Leases of dataset $1 that overlap the keys $2 to $3. They do not overlap one another, so of those that begin
# before $2 only the last can: an index finds them all, however many leases there are.
OVERLAPPING = """
    l.dataset_id = $1 AND l.last_key >= $2 AND l.first_key <= $3 AND l.first_key >= coalesce(
        (SELECT max(first_key) FROM key_leases WHERE dataset_id = $1 AND first_key <= $2), $2)
"""
_CUT = f"""
    WITH gone AS (
        DELETE FROM key_leases l WHERE {OVERLAPPING} AND l.holder = $4
        RETURNING claim_id, first_key, last_key, accepted
    ), freed AS (
        DELETE FROM key_claims WHERE id IN (SELECT claim_id FROM gone)
    )
    SELECT first_key, last_key, accepted FROM gone
"""


async def bound_idleness(session: Session) -> None:
    """Let the server end this transaction if it stands still; before anything is locked."""
    await session.value(_BOUND_IDLENESS)


async def lock_holder(session: Session, holder: HolderId) -> bool:
    """Keep *holder* from vanishing; False if it is not known."""
    return bool(await session.value(_LOCK_HOLDER, holder))


async def lock_known_holder(session: Session, holder: HolderId) -> None:
    """Keep *holder* from vanishing. Raises NotFound."""
    if not await lock_holder(session, holder):
        raise NotFound(f"journal {holder}: it is not enrolled")


async def lock_dataset(session: Session, dataset_id: DatasetId) -> Row | None:
    """Keep others from changing the dataset's claims; return its name and bucket, None if it is gone."""
    return await session.row(_LOCK_DATASET, dataset_id)


async def lock_known_dataset(session: Session, dataset_id: DatasetId) -> Row:
    """Keep others from changing the dataset's claims; return its name and bucket. Raises NotFound."""
    dataset = await lock_dataset(session, dataset_id)
    if dataset is None:
        raise NotFound(f"dataset {dataset_id}: there is none of this id")
    return dataset


async def claim(session: Session, dataset_id: DatasetId, keys: Span) -> int:
    """Claim *keys*, for a row that will point to the claim; return its id. The dataset is locked."""
    made: int = await session.value(_CLAIM, dataset_id, keys.start, keys.last)
    return made


async def lease(
    session: Session, holder: HolderId, dataset_id: DatasetId, keys: Span, *, accepted: bool
) -> None:
    """Claim *keys* for a lease. Holder and dataset are locked."""
    await session.value(_LEASE, dataset_id, keys.start, keys.last, holder, accepted)


async def carve(session: Session, holder: HolderId, dataset_id: DatasetId, keys: Span) -> None:
    """Free what *holder* leases of *keys*; what its leases hold besides stays.

    Holder and dataset are locked. What the sweeper drops at this moment is free as well.
    """
    for row in await session.rows(_CUT, dataset_id, keys.start, keys.last, holder):
        for rest in remnants(Span(row["first_key"], row["last_key"] + 1), keys):
            await lease(session, holder, dataset_id, rest, accepted=row["accepted"])


def remnants(whole: Span, cut: Span) -> list[Span]:
    """Return what is left of *whole* without *cut*, which overlaps it: up to two spans."""
    return [rest for rest in (_before(whole, cut), _after(whole, cut)) if rest]


def _before(whole: Span, cut: Span) -> Span:
    return Span(whole.start, max(whole.start, cut.start))


def _after(whole: Span, cut: Span) -> Span:
    return Span(min(whole.stop, cut.stop), whole.stop)
