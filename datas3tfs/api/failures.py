"""How often somebody may come with a wrong token: a few times a minute from one address, in bounded memory.

Tokens are too long to be guessed; this keeps guessers from costing a query of the catalog each. Behind a
reverse proxy all clients have its address. Concurrency: the event loop's; nothing waits.
"""

from __future__ import annotations

import ipaddress
import math

import trio

_ALLOWED = 10  # wrong tokens …
_SECONDS = 60.0  # … in so long
_REMEMBERED = 10_000  # addresses, about 200 bytes each


class Failures:
    """Counts wrong tokens by address."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, int]] = {}  # address → (since when, how many), oldest first

    def add(self, address: str) -> None:
        """Count one."""
        now, name = trio.current_time(), _place(address)
        begun, count = self._seen.pop(name, (now, 0))
        if now - begun >= _SECONDS:
            begun, count = now, 0
        if len(self._seen) >= _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        self._seen[name] = (begun, count + 1)

    def wait(self, address: str) -> int:
        """Return for how many seconds *address* is not to be listened to; 0: it may try."""
        begun, count = self._seen.get(_place(address), (-math.inf, 0))
        left = begun + _SECONDS - trio.current_time()
        return math.ceil(left) if count >= _ALLOWED and left > 0 else 0


def _place(address: str) -> str:
    """Return what counts as one client: an IPv4 address, or an IPv6 network of the size that hosts get."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "?"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or ipaddress.ip_network((int(parsed), 64), strict=False))
