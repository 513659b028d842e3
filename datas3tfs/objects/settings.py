"""How patient and how parallel the S3 adapter is.

Not for credentials (core.model.BucketSpec) and not for reading the environment (config.py).
Concurrency: frozen.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Times in seconds, sizes in bytes."""

    io_timeout: float = 30.0  # one operation with all its attempts; then Unavailable
    # A transfer gets size/slowest_rate seconds more than that: several streams share a slow line, and
    # a 16 MiB part over 8 Mbit/s is progress, not an outage. Silence is still noticed after `silence`.
    slowest_rate: int = 256 << 10  # bytes a second
    first_pause: float = 0.1  # ceiling of the first back-off pause; doubles with each attempt
    longest_pause: float = 5.0
    parallel_gets: int = 64  # worker threads (and connections) reading, over all buckets
    parallel_calls: int = 16  # worker threads for everything else, over all buckets
    part_size: int = 16 * MIB  # up to this size one PUT; S3 wants parts of at least 5 MiB
    page: int = 1000  # entries that a listing asks for at once; S3 gives no more
    parts_in_flight: int = 4  # memory of an upload: this many parts …
    parts_at_once: int = 8  # … and of all uploads together
    url_life: int = 24 * 3600  # seconds a URL for others is valid; S3 knows no more than 7 days
    presign_life: int = 3600  # … and one for ourselves, which is signed anew after half of it
    presigned_limit: int = 4096  # signed addresses kept, about 600 bytes each
    ca_bundle: str | None = None  # PEM file of trusted authorities; None: those the libraries know

    @property
    def attempt_timeout(self) -> float:
        """How long one attempt may take: two more must fit into io_timeout."""
        return self.io_timeout / 3

    @property
    def silence(self) -> float:
        """How long a socket may be silent; below attempt_timeout, so that the error says "silent"."""
        return self.attempt_timeout * 0.8

    @property
    def connect_timeout(self) -> float:
        """How long a connection may take to come about."""
        return self.attempt_timeout / 2

    def allowance(self, size: int) -> float:
        """Return the seconds a transfer of *size* bytes gets on top of a timeout."""
        return size / self.slowest_rate
