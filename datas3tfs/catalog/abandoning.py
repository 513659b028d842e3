"""Abandoning uploads: statements that forget intents, free or give back their keys, and doom their objects.

Each gives how many uploads went. Whoever runs it has the locks that come before those of uploads (claims.py).
"""

from __future__ import annotations

# When to delete what somebody may put through a URL: now, and again when none is valid any more.
DUE = """
    unnest(CASE WHEN staged_index_key IS NULL OR expires_at <= now() THEN ARRAY[now()]
                ELSE ARRAY[now(), expires_at] END) AS due
"""
# Keys with a holder stay claimed throughout: in one statement, the lease takes over the upload's claim.
_ABANDON = f"""
    WITH gone AS (
        DELETE FROM datarange_uploads u USING datasets d
        WHERE d.id = u.dataset_id AND u.id IN ({{which}})
        RETURNING u.*, d.s3_bucket_id
    ), kept AS (
        INSERT INTO key_leases (dataset_id, claim_id, first_key, last_key, holder, accepted)
        SELECT dataset_id, claim_id, first_datapoint_index, last_datapoint_index, lease_holder, true
        FROM gone WHERE lease_holder IS NOT NULL
    ), freed AS (
        DELETE FROM key_claims WHERE id IN (SELECT claim_id FROM gone WHERE lease_holder IS NULL)
    ), doomed AS (
        INSERT INTO objects_to_delete (s3_bucket_id, object_key, delete_after)
        SELECT s3_bucket_id, key, due
        FROM gone CROSS JOIN LATERAL {DUE}
            CROSS JOIN LATERAL unnest(ARRAY[data_object_key, index_object_key, staged_index_key]) AS key
        WHERE confirmed AND key IS NOT NULL
    )
    SELECT count(*) FROM gone
"""
ABANDON_ONE = _ABANDON.format(which="$1")  # an upload's id
# Up to $1, those without a holder and of the holders $2, which are locked.
ABANDON_EXPIRED = _ABANDON.format(
    which="""
        SELECT id FROM datarange_uploads
        WHERE expires_at < now() AND (lease_holder IS NULL OR lease_holder = ANY($2::uuid[]))
        ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED
    """
)
# Of holder $1 in dataset $2 with a key from $3 to $4.
ABANDON_OVERLAPPING = _ABANDON.format(
    which="""
        SELECT id FROM datarange_uploads
        WHERE lease_holder = $1 AND dataset_id = $2
            AND first_datapoint_index <= $4 AND last_datapoint_index >= $3 FOR UPDATE
    """
)
# Of holder $1.
ABANDON_ALL = _ABANDON.format(
    which="SELECT id FROM datarange_uploads WHERE lease_holder = $1 ORDER BY id FOR UPDATE"
)
# For registry.py, when the dataset is locked and has no claims: all its uploads are aggregates.
ABANDON_AGGREGATES = _ABANDON.format(
    which="SELECT id FROM datarange_uploads WHERE dataset_id = $1 FOR UPDATE"
)
ABANDON_THESE = _ABANDON.format(which="SELECT unnest($1::bigint[])")  # for leases.py, which has the locks
