"""Plan a TAR before a byte of it exists: every offset, and so its whole size, from names and sizes.

The plan makes the upload's length known beforehand (the intent and S3 want it) and lets the TAR be
streamed: headers are built again, identically, when their turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datas3tfs.core import tar
from datas3tfs.core.names import KEY_LIMIT, datapoint_name, parse_datapoint_name
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid


@dataclass(frozen=True, slots=True)
class Planned:
    """One datapoint to be written. *mtime_ns* is cut to whole seconds, as TAR headers are."""

    key: int
    extension: str
    size: int
    mtime_ns: int

    @property
    def name(self) -> str:
        """Its file name."""
        return datapoint_name(self.key, self.extension)

    @property
    def header(self) -> bytes:
        """Its TAR header blocks."""
        return tar.build_header(self.name, self.size, self.mtime_ns)

    @property
    def footprint(self) -> int:
        """Bytes it takes in the TAR: headers, content, padding."""
        return tar.header_length(self.name, self.size, self.mtime_ns) + tar.padded(self.size)


@dataclass(frozen=True, slots=True)
class Layout:
    """The planned TAR: its datapoints in key order, where each starts, and the size of it all."""

    members: Sequence[Planned]
    offsets: Sequence[int]
    size: int

    @property
    def keys(self) -> Span:
        """The keys it holds."""
        return Span(self.members[0].key, self.members[-1].key + 1)


def plan_layout(members: Sequence[Planned]) -> Layout:
    """Lay *members* out one after the other. Raises Invalid for bad names, gaps or an empty plan."""
    if not members:
        raise Invalid("a datarange needs at least one datapoint")
    offsets: list[int] = []
    position = 0
    for expected, member in enumerate(members, members[0].key):
        if member.key != expected or not 0 <= member.key < KEY_LIMIT:
            raise Invalid(f"{member.key}: keys must be contiguous and below 2^63, expected {expected}")
        parse_datapoint_name(member.name)
        offsets.append(position)
        position += member.footprint
    return Layout(members, offsets, position + len(tar.END_OF_ARCHIVE))
