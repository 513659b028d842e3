"""What a client is given to upload with: URLs. Signed anew whenever somebody goes on with an upload.

Not for deciding who may upload what (receiving.py). No state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from datas3tfs.core.model import Datarange, Part, PendingUpload, Upload
from datas3tfs.core.names import staged_index_key
from datas3tfs.core.parts import part_count
from datas3tfs.ports import WholeStore


@dataclass(frozen=True, slots=True)
class Grant:
    """Where to put an upload: the TAR to *put_url*, or every *part_size* bytes of it to one of *part_urls*,
    and the index to *index_url*. The URLs are secrets."""

    upload: Upload
    put_url: str | None = field(repr=False)
    part_urls: list[str] = field(repr=False)
    index_url: str = field(repr=False)
    part_size: int
    done: list[Part]  # what has arrived already
    expires_ns: int  # from then on all this is of no use, nanoseconds since the epoch


@dataclass(frozen=True, slots=True)
class Source:
    """A datarange to be merged, and where to get it."""

    datarange: Datarange
    data_url: str = field(repr=False)
    index_url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class AggregateGrant:
    """What to merge, and where to put the result."""

    grant: Grant
    sources: list[Source]


async def sign_grant(
    store: WholeStore, pending: PendingUpload, size: int, part_size: int, done: Sequence[Part] = ()
) -> Grant:
    """Return the URLs for an upload of about *size* bytes. Raises Unavailable."""
    key, put_url, part_urls = pending.upload.data_key, None, []
    if pending.multipart is None:
        put_url = await store.put_url(key)
    else:
        numbers = range(1, part_count(size, part_size) + 1)
        part_urls = await store.part_urls(key, pending.multipart, numbers)
    index_url = await store.put_url(staged_index_key(key))
    return Grant(pending.upload, put_url, part_urls, index_url, part_size, list(done), pending.expires_ns)


async def sign_source(store: WholeStore, datarange: Datarange) -> Source:
    """Return the URLs of a datarange's objects. Raises Unavailable."""
    return Source(
        datarange, await store.get_url(datarange.data_key), await store.get_url(datarange.index_key)
    )
