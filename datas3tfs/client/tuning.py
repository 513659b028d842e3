"""How patient and how parallel a client is. Not for addresses and tokens (aio.py). Concurrency: frozen."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Tuning:
    """Times in seconds, sizes in bytes."""

    patience: float = 60.0  # how long something is tried again without getting any further
    server_patience: float | None = None  # … calls of the server; None: the same
    first_pause: float = 0.2  # ceiling of the first back-off pause; doubles with each attempt
    longest_pause: float = 10.0
    connect: float = 10.0  # until a connection has come about
    silence: float = 60.0  # until an answer that does not come, or does not go on, is given up
    slowest_rate: int = 128 << 10  # bytes a second: below, a transfer counts as stuck
    parallel: int = 6  # transfers in flight, over all calls; memory is this times a part of 20 MiB
    ahead: int = 4  # … of them for one download
    piece: int = 8 * MIB  # what a download asks for at once
    lone_piece: int = MIB  # … if others have all the places: each download goes on with one
    chunk: int = MIB  # what is read from a file, and handed to a connection, at once
    cancel_limit: float = 10.0  # for telling the server that an upload is off, when oneself is being stopped
    held: int = 32 * MIB  # a datapoint larger than this waits in an unnamed file, not in memory

    def allowance(self, size: int) -> float:
        """Return the seconds that one attempt to move *size* bytes may take."""
        return self.silence + size / self.slowest_rate
