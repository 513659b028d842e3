"""List a bucket's objects page by page, believing no page that does not fit to those before it.

Not for retries (store.py). A server may answer with other keys than asked for, with the same page again,
or without end: nothing of that may pass for the content of the bucket. Concurrency: the event loop's;
see calls.py.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from datas3tfs.core.counters import Counters
from datas3tfs.core.model import Found
from datas3tfs.errors import Unavailable
from datas3tfs.objects.calls import Calls, Reply, confirmed

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_EMPTY_PAGES = 100  # in a row; S3 may send some while it skips what is deleted


@dataclass(frozen=True, slots=True)
class Place:
    """How far a listing has come."""

    token: str | None = None  # S3's ContinuationToken; None: nothing has been asked yet
    last: str | None = None  # the last key seen
    empty: int = 0  # how many pages in a row held nothing


@dataclass(frozen=True, slots=True)
class Page:
    """Some objects by key, and where to go on; None: there are no more."""

    found: list[Found]
    then: Place | None


class Listings:
    """Single attempts."""

    def __init__(self, calls: Calls, counters: Counters, page: int) -> None:
        self._calls = calls
        self._counters = counters
        self._page = page  # how many at once

    async def page(self, prefix: str, place: Place) -> Page:
        """Return the objects from *place* on whose keys begin with *prefix*. Raises Unavailable."""
        self._counters.add("s3.list")
        subject = f"objects under {prefix}"
        asked: dict[str, Any] = {"ContinuationToken": place.token} if place.token else {}
        answer = await self._calls(subject, "list_objects_v2", Prefix=prefix, MaxKeys=self._page, **asked)
        confirmed(subject, answer, "Name")  # the bucket's: says that this is a listing at all
        found = [_found(subject, entry) for entry in answer.get("Contents", [])]
        _check_keys(subject, prefix, place.last, [one.key for one in found])
        if not answer.get("IsTruncated"):
            return Page(found, None)
        return Page(found, _next(subject, place, found, confirmed(subject, answer, "NextContinuationToken")))


def _next(subject: str, place: Place, found: list[Found], token: str) -> Place:
    empty = 0 if found else place.empty + 1
    if empty > _MOST_EMPTY_PAGES:  # pages that are not empty end, for their keys ascend
        raise Unavailable(f"{subject}: the server's list does not end")
    return Place(token, found[-1].key if found else place.last, empty)


def _found(subject: str, entry: Reply) -> Found:
    key, size, modified = entry.get("Key"), entry.get("Size"), entry.get("LastModified")
    if (
        not isinstance(key, str)
        or not isinstance(size, int)
        or not isinstance(modified, datetime)
        or modified.tzinfo is None
        or size < 0
    ):
        raise Unavailable(f"{subject}: the server's list makes no sense")
    return Found(key, size, (modified - _EPOCH) // timedelta(microseconds=1) * 1000)


def _check_keys(subject: str, prefix: str, last: str | None, keys: list[str]) -> None:
    """Raise Unavailable unless *keys* begin with *prefix* and ascend from *last* on. S3 orders keys by
    their UTF-8 bytes, which is the order of Python's strings."""
    if not all(key.startswith(prefix) for key in keys):
        raise Unavailable(f"{subject}: the server lists other keys than those asked for")
    seen = keys if last is None else [last, *keys]
    if any(left >= right for left, right in itertools.pairwise(seen)):
        raise Unavailable(f"{subject}: the server does not list by key")
