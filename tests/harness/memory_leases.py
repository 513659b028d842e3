"""Who holds which keys before they are committed, in memory: the part of the catalog's twin behind Leases.

Not for what else takes keys: the twin (memory_catalog.py) asks for the ranges before it calls. Plain
functions on plain lists, so each is one transaction.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import UUID

from datas3tfs.core.model import DatasetId, Holder, HolderId, Lease
from datas3tfs.core.names import printable
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound


@dataclass(slots=True)
class _Known:
    place: str
    renewed_ns: int
    expires_at: float  # by the twin's clock


@dataclass(frozen=True, slots=True)
class Held:
    """A lease and whose it is."""

    holder: HolderId
    lease: Lease


class LeaseBook:
    """Holders and their leases; never two leases of one key."""

    def __init__(self, lifetime: float, clock: Callable[[], float]) -> None:
        self.lifetime = lifetime  # seconds of *clock*
        self.known: dict[HolderId, _Known] = {}
        self.held: list[Held] = []
        self._clock = clock

    def enrol(self, holder: HolderId, place: str, *, alone: bool) -> None:
        """Make *holder* known or put off its expiry. Raises Invalid; *alone*: Conflict (alive elsewhere)."""
        check_holder(holder)
        if not place:
            raise Invalid(f"journal {holder}: it has no place")
        if alone and holder in self.known and not self.is_at(holder, place) and not self.expired(holder):
            raise Conflict(f"it was in use as {self.known[holder].place} within the last minutes")
        self.known[holder] = _Known(printable(place), time.time_ns(), self._clock() + self.lifetime)

    def is_at(self, holder: HolderId, place: str) -> bool:
        """Say whether *holder* is known as being at *place*."""
        return holder in self.known and self.known[holder].place == printable(place)

    def check(self, holder: HolderId) -> None:
        """Raise NotFound if *holder* is not known, Invalid if it is no UUID."""
        check_holder(holder)
        if holder not in self.known:
            raise NotFound(f"journal {holder}: it is not enrolled")

    def expired(self, holder: HolderId) -> bool:
        """Say whether *holder* was not enrolled again in time."""
        return self.known[holder].expires_at < self._clock()

    def at(self, dataset_id: DatasetId, key: int) -> Held | None:
        """Return what holds *key*."""
        found = self.overlapping(dataset_id, Span(key, key + 1))
        return found[0] if found else None

    def overlapping(self, dataset_id: DatasetId, keys: Span) -> list[Held]:
        """Return what holds any of *keys*."""
        return [
            item
            for item in self.held
            if item.lease.dataset_id == dataset_id and item.lease.keys.intersection(keys)
        ]

    def add(self, holder: HolderId, lease: Lease) -> Lease:
        """Note a lease of keys that are free."""
        self.held.append(Held(holder, lease))
        return lease

    def accept(self, item: Held) -> Lease:
        """Make a lease accepted."""
        lease = replace(item.lease, accepted=True)
        self.held[self.held.index(item)] = Held(item.holder, lease)
        return lease

    def carve(self, holder: HolderId, dataset_id: DatasetId, keys: Span) -> None:
        """Cut *keys* out of what *holder* leases."""
        for item in self.overlapping(dataset_id, keys):
            if item.holder == holder:
                self.held.remove(item)
                for rest in _remnants(item.lease.keys, keys):
                    self.add(holder, replace(item.lease, keys=rest))

    def take_over(self, holder: HolderId, dataset_id: DatasetId, keys: Span) -> None:
        """Drop what holders that expired lease of *keys*, unaccepted, for *holder*."""
        for item in self.overlapping(dataset_id, keys):
            if item.holder != holder and self._lapsed(item):
                self.held.remove(item)

    def _lapsed(self, item: Held) -> bool:
        return not item.lease.accepted and self.expired(item.holder)

    def check_free(self, dataset_id: DatasetId, key: int) -> None:
        """Raise Conflict if *key* is leased and may not be taken over."""
        item = self.at(dataset_id, key)
        if item is not None and not self._lapsed(item):
            place = self.known[item.holder].place
            hint = (
                ", whose mount is not running: `datas3tfs journal release` frees them knowingly"
                if self.expired(item.holder)
                else ""
            )
            raise Conflict(f"key {key} of dataset {dataset_id}: it is leased by {place}{hint}")

    def of(self, holder: HolderId) -> list[Lease]:
        """Return the leases of *holder*, by dataset and key."""
        found = [item.lease for item in self.held if item.holder == holder]
        return sorted(found, key=lambda lease: (lease.dataset_id, lease.keys))

    def holders(self) -> list[Holder]:
        """Return all holders, by place."""
        found = [self._summary(holder) for holder in self.known]
        return sorted(found, key=lambda item: (item.place, item.id))

    def _summary(self, holder: HolderId) -> Holder:
        known, leases = self.known[holder], self.of(holder)
        return Holder(
            id=holder,
            place=known.place,
            expired=self.expired(holder),
            renewed_ns=known.renewed_ns,
            leases=len(leases),
            keys=sum(lease.keys.length for lease in leases),
            accepted_keys=sum(lease.keys.length for lease in leases if lease.accepted),
        )

    def forget(self, holder: HolderId) -> None:
        """Drop all leases of *holder*, and itself."""
        self.held = [item for item in self.held if item.holder != holder]
        self.known.pop(holder, None)

    def drop_expired(self, busy: set[HolderId]) -> int:
        """Drop expired unaccepted leases, and expired holders without any and not *busy*; return how many
        keys went."""
        gone = [item for item in self.held if self._lapsed(item)]
        self.held = [item for item in self.held if item not in gone]
        needed = busy | {item.holder for item in self.held}
        for holder in list(self.known):
            if holder not in needed and self.expired(holder):
                del self.known[holder]
        return sum(item.lease.keys.length for item in gone)

    def expire(self, holder: HolderId) -> None:
        """Let time pass until *holder* counts as dead."""
        self.known[holder].expires_at = self._clock() - 1


def check_holder(holder: HolderId) -> None:
    """Raise Invalid if *holder* is not a UUID in its usual form."""
    check_uuid(holder, "the id of a journal")


def check_uuid(text: str, what: str) -> None:
    """Raise Invalid if *text* is not a UUID in its usual form."""
    try:
        usual: str | None = str(UUID(text))
    except ValueError:
        usual = None
    if usual != text:
        raise Invalid(f"{printable(text)}: not {what}")


def _remnants(whole: Span, cut: Span) -> list[Span]:
    common = whole.intersection(cut)
    return [rest for rest in (Span(whole.start, common.start), Span(common.stop, whole.stop)) if rest]
