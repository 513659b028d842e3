"""Where a daemon can be killed, told from outside: by what it says to S3 and to Postgres.

A point is "WHAT:WHEN". Of S3 requests WHAT is tar, index, parts-begin, part, parts-complete; WHEN is asked
(S3 has not seen it), halfway, answered (S3 has done it, the daemon does not know). Of Postgres WHAT is the
transaction, named by the statement that only it has; WHEN is inside (all but COMMIT is done), asked (COMMIT
has not reached Postgres), answered. Nothing in the product knows of this. `Trigger` is for any thread.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

from tests.harness.faultproxy import Moment
from tests.harness.pgproxy import Statement

# The statement that only this transaction has; the first that is found counts.
_TRANSACTIONS = (
    ("dismiss", "DELETE FROM lease_holders WHERE id = $1"),
    ("publish", "INSERT INTO dataranges "),
    ("publish-again", "DELETE FROM datarange_uploads WHERE id = $1 RETURNING *"),  # finding that it is done
    ("begin", "INSERT INTO datarange_uploads"),
    ("begin-again", "SELECT true FROM datarange_uploads WHERE id = $1"),
    ("confirm", "SET confirmed = true"),
    ("abandon-all", "WHERE lease_holder = $1 ORDER BY id FOR UPDATE"),
    ("abandon-expired", "WHERE expires_at < now() AND (lease_holder"),
    ("abandon", "DELETE FROM datarange_uploads u USING datasets"),
    ("accept", "UPDATE key_leases l SET accepted"),
    ("take", "RETURNING l.claim_id"),
    ("release", "DELETE FROM key_leases l WHERE"),
    ("enrol", "INSERT INTO lease_holders"),
)
_READS = (("held", "SELECT dataset_id, first_key, last_key, accepted FROM key_leases"),)


def s3_point(moment: Moment, method: str, path: str) -> str | None:
    """Return the crash point of a request at *moment*; None if it is of no interest."""
    parts = urlsplit(path)
    what = None
    if method == "PUT":
        if "partNumber=" in parts.query:
            what = "part"
        elif re.search(r"\.tar$", parts.path):
            what = "tar"
        elif parts.path.endswith(".index.zst"):
            what = "index"
    elif method == "POST":
        what = "parts-complete" if "uploadId=" in parts.query else "parts-begin"
    return None if what is None else f"{what}:{moment.name.lower()}"


def sql_point(statement: Statement) -> str | None:
    """Return the crash point of a statement; None if it is of no interest."""
    answered = "answered" if statement.answered else "asked"
    if not statement.before:
        return next((f"{what}:{answered}" for what, sign in _READS if sign in statement.text), None)
    ends = statement.text.startswith("COMMIT")
    if not ends and not statement.answered:
        return None
    texts = "\n".join([*statement.before, statement.text])
    for what, sign in _TRANSACTIONS:
        if sign in texts:
            if ends:
                return f"{what}:{answered}"
            return f"{what}:inside" if sign in statement.text else None
    return None


class Trigger:
    """Calls *fire* when the armed point is reached; both proxies' witnesses ask it."""

    def __init__(self) -> None:
        self.fired = threading.Event()
        self.seen: Counter[str] = Counter()  # how often each point was passed
        self.hit: Counter[str] = Counter()  # … and fired at
        self._lock = threading.Lock()
        self._point: str | None = None
        self._fire: Callable[[], None] = lambda: None

    def arm(self, point: str, fire: Callable[[], None]) -> None:
        """Wait for *point*, once."""
        with self._lock:
            self.fired.clear()
            self._point, self._fire = point, fire

    def disarm(self) -> None:
        """Wait no longer."""
        with self._lock:
            self._point = None

    def on_s3(self, moment: Moment, method: str, path: str) -> bool:
        """Be a faultproxy's witness."""
        return self._see(s3_point(moment, method, path))

    def on_sql(self, statement: Statement) -> bool:
        """Be a pgproxy's witness."""
        return self._see(sql_point(statement))

    def _see(self, point: str | None) -> bool:
        if point is None:
            return False
        with self._lock:
            self.seen[point] += 1
            if point != self._point:
                return False
            self._point = None
            self.hit[point] += 1
            self._fire()
            self.fired.set()
            return True
