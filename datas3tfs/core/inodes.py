"""Inode numbers, computed: no table grows with the files looked at.

A number is a *region* (upper 24 bits) and a low part (lower 40). Region 0 holds the root (1) and the
datasets (id + 1). Datapoints of dataset d with keys below 2^40 are in region d, for ids below 2^22:
these numbers are the same in every mount on every host. Region 2^22 holds uncommitted files by their
number in the journal: one that is removed and made again must not be taken for the old one, which somebody
may have open; committed, it gets its number as a datapoint. The region after it holds each dataset's hidden
directory and what is in there (fs/control.py). Other (dataset, key / 2^40) pairs, which are
as few as the ranges of keys in use, get one of the remaining regions when first met, for the life
of the mount. So do keys whose datapoints are gone (`retire`): should they come again, they are other
files, and a number never stands for other content than before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datas3tfs.core.journalrecords import EntryId
from datas3tfs.core.model import DatasetId
from datas3tfs.core.spans import Span
from datas3tfs.errors import Invalid

ROOT = 1
_LOW_BITS = 40
_LOW_MASK = (1 << _LOW_BITS) - 1
_FIXED_REGIONS = 1 << 22
_ENTRIES_REGION = _FIXED_REGIONS
_CONTROL_REGION = _ENTRIES_REGION + 1
_FIRST_REGION = _CONTROL_REGION + 1
_REGIONS = 1 << 24


@dataclass(frozen=True, slots=True)
class DatasetNode:
    """A dataset's directory."""

    dataset_id: DatasetId


@dataclass(frozen=True, slots=True)
class DatapointNode:
    """A datapoint's file."""

    dataset_id: DatasetId
    key: int


@dataclass(frozen=True, slots=True)
class EntryNode:
    """An uncommitted file."""

    entry: EntryId


@dataclass(frozen=True, slots=True)
class ControlNode:
    """A dataset's hidden directory, or the link in it through which one announces what will be read."""

    dataset_id: DatasetId
    is_link: bool


@dataclass(frozen=True, slots=True)
class RootNode:
    """The top directory."""


Node = RootNode | DatasetNode | DatapointNode | EntryNode | ControlNode
_Region = tuple[int, int, int]  # dataset, key / 2^40, life


class Inodes:
    """Both directions between nodes and numbers, for one mount."""

    def __init__(self) -> None:
        self._regions: dict[_Region, int] = {}
        self._known: list[_Region] = []
        # Spans of keys with the number of the last life that has ended there, newest first.
        self._retired: dict[int, list[tuple[Span, int]]] = {}

    def retire(self, dataset_id: DatasetId, keys: Span) -> None:
        """Take note that the datapoints *keys* are gone: their numbers are theirs for ever."""
        before = self._retired.get(dataset_id, [])
        lives = 1 + max((number for _, number in before), default=0)
        kept = [(span, number) for span, number in before if not keys.covers(span)]
        self._retired[dataset_id] = [(keys, lives), *kept]

    def number(self, node: Node) -> int:
        """Return the inode number of *node*. Raises Invalid if the regions are exhausted."""
        if isinstance(node, RootNode):
            return ROOT
        if isinstance(node, DatasetNode):
            return node.dataset_id + 1
        if isinstance(node, EntryNode):
            return self.uncommitted(node.entry)
        if isinstance(node, ControlNode):
            return _CONTROL_REGION << _LOW_BITS | (node.dataset_id << 1 | node.is_link) & _LOW_MASK
        return self.datapoint(node.dataset_id, node.key)

    def uncommitted(self, entry: EntryId) -> int:
        """Return the inode number of an uncommitted file."""
        return _ENTRIES_REGION << _LOW_BITS | entry & _LOW_MASK

    def datapoint(self, dataset_id: DatasetId, key: int) -> int:
        """Return the inode number of a datapoint; the fast way for listings."""
        life = self._life(dataset_id, key) if dataset_id in self._retired else 0
        if not life and key <= _LOW_MASK and 0 < dataset_id < _FIXED_REGIONS:
            return dataset_id << _LOW_BITS | key
        return self._region((dataset_id, key >> _LOW_BITS, life)) << _LOW_BITS | key & _LOW_MASK

    def datapoints(self, dataset_id: DatasetId, first: int, count: int) -> Sequence[int]:
        """Return the inode numbers of *count* consecutive keys from *first* on."""
        keys = Span(first, first + count)
        retired = self._retired.get(dataset_id, ())
        is_simple = not any(span.intersection(keys) for span, _ in retired)
        if is_simple and (first & _LOW_MASK) + count <= _LOW_MASK + 1:  # all in one region
            start = self.datapoint(dataset_id, first)
            return range(start, start + count)
        return [self.datapoint(dataset_id, key) for key in range(first, first + count)]

    def entry(self, number: int) -> EntryId | None:
        """Return which uncommitted file *number* stands for; None if it is of another kind."""
        return EntryId(number & _LOW_MASK) if number >> _LOW_BITS == _ENTRIES_REGION else None

    def node(self, number: int) -> Node:
        """Return what *number* stands for. Raises Invalid if this mount never gave it out, or it stands for
        a datapoint that is gone."""
        region, low = number >> _LOW_BITS, number & _LOW_MASK
        if region == 0:
            return RootNode() if low == ROOT else DatasetNode(DatasetId(low - 1))
        if region == _ENTRIES_REGION:
            return EntryNode(EntryId(low))
        if region == _CONTROL_REGION and low >> 1:
            return ControlNode(DatasetId(low >> 1), bool(low & 1))
        if region < _FIXED_REGIONS:
            dataset_id, key, life = region, low, 0
        elif 0 <= region - _FIRST_REGION < len(self._known):
            dataset_id, high, life = self._known[region - _FIRST_REGION]
            key = high << _LOW_BITS | low
        else:
            raise Invalid(f"inode {number} is unknown")
        if dataset_id in self._retired and self._life(dataset_id, key) != life:
            raise Invalid(f"inode {number} is that of a datapoint which is gone")
        return DatapointNode(DatasetId(dataset_id), key)

    def _life(self, dataset_id: int, key: int) -> int:
        return next((number for span, number in self._retired[dataset_id] if key in span), 0)

    def _region(self, wanted: _Region) -> int:
        region = self._regions.get(wanted)
        if region is None:
            region = _FIRST_REGION + len(self._known)
            if region >= _REGIONS:
                raise Invalid("too many ranges of keys for inode numbers")
            self._regions[wanted] = region
            self._known.append(wanted)
        return region
