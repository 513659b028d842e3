"""What can be set about the use of Postgres. Plain values; whoever reads the environment makes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CatalogSettings:
    """Limits and intervals, in seconds unless said otherwise."""

    operation_limit: float = 30.0  # of a whole operation, connecting and retrying included
    connections: int = 8  # at most, besides one for each subscription to changes
    upload_lifetime: float = 600.0  # how long an upload stands without being renewed
    # The same for one whose objects are put through presigned URLs: never shorter than those live, plus the
    # time from here to signing them.
    presigned_lifetime: float = 24 * 3600.0 + 300.0
    # From when a datarange is replaced or removed until its objects may go: longer than a URL for them lives.
    grace: float = 25 * 3600.0
    lease_lifetime: float = 600.0  # how long a journal's leases stand without its being enrolled again
    poll_proven: float = 15.0  # between polls while notifications are known to arrive
    poll_unproven: float = 1.0  # between polls otherwise: the port promises changes within a second
    reconnect_first: float = 0.1  # pause before connecting again, doubled each time …
    reconnect_last: float = 2.0  # … up to this
