"""Inode numbers, computed: no table grows with the files looked at.

A number is a *region* (upper 24 bits) and a low part (lower 40). Region 0 holds the root (1) and the
datasets (id + 1). Datapoints of dataset d with keys below 2^40 are in region d, for ids below 2^22:
these numbers are the same in every mount on every host. Region 2^22 holds uncommitted files by their
number in the journal: one that is removed and made again must not be taken for the old one, which somebody
may have open; committed, it gets its number as a datapoint. Other (dataset, key / 2^40) pairs, which are
as few as the ranges of keys in use, get one of the remaining regions when first met, for the life
of the mount.
"""

from __future__ import annotations

from dataclasses import dataclass

from datas3tfs.core.journalrecords import EntryId
from datas3tfs.core.model import DatasetId
from datas3tfs.errors import Invalid

ROOT = 1
_LOW_BITS = 40
_LOW_MASK = (1 << _LOW_BITS) - 1
_FIXED_REGIONS = 1 << 22
_ENTRIES_REGION = _FIXED_REGIONS
_FIRST_REGION = _ENTRIES_REGION + 1
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
class RootNode:
    """The top directory."""


Node = RootNode | DatasetNode | DatapointNode | EntryNode


class Inodes:
    """Both directions between nodes and numbers, for one mount."""

    def __init__(self) -> None:
        self._regions: dict[tuple[int, int], int] = {}
        self._pairs: list[tuple[int, int]] = []

    def number(self, node: Node) -> int:
        """Return the inode number of *node*. Raises Invalid if the regions are exhausted."""
        if isinstance(node, RootNode):
            return ROOT
        if isinstance(node, DatasetNode):
            return node.dataset_id + 1
        if isinstance(node, EntryNode):
            return self.uncommitted(node.entry)
        return self.datapoint(node.dataset_id, node.key)

    def uncommitted(self, entry: EntryId) -> int:
        """Return the inode number of an uncommitted file."""
        return _ENTRIES_REGION << _LOW_BITS | entry & _LOW_MASK

    def datapoint(self, dataset_id: DatasetId, key: int) -> int:
        """Return the inode number of a datapoint; the fast way for listings."""
        if key <= _LOW_MASK and 0 < dataset_id < _FIXED_REGIONS:
            return dataset_id << _LOW_BITS | key
        return self._region(dataset_id, key >> _LOW_BITS) << _LOW_BITS | key & _LOW_MASK

    def datapoints(self, dataset_id: DatasetId, first: int, count: int) -> range | list[int]:
        """Return the inode numbers of *count* consecutive keys from *first* on."""
        start = self.datapoint(dataset_id, first)
        if (first & _LOW_MASK) + count <= _LOW_MASK + 1:  # all in one region
            return range(start, start + count)
        return [self.datapoint(dataset_id, key) for key in range(first, first + count)]

    def entry(self, number: int) -> EntryId | None:
        """Return which uncommitted file *number* stands for; None if it is of another kind."""
        return EntryId(number & _LOW_MASK) if number >> _LOW_BITS == _ENTRIES_REGION else None

    def node(self, number: int) -> Node:
        """Return what *number* stands for. Raises Invalid if this mount never gave it out."""
        region, low = number >> _LOW_BITS, number & _LOW_MASK
        if region == 0:
            return RootNode() if low == ROOT else DatasetNode(DatasetId(low - 1))
        if region < _FIXED_REGIONS:
            return DatapointNode(DatasetId(region), low)
        if region == _ENTRIES_REGION:
            return EntryNode(EntryId(low))
        if region - _FIRST_REGION >= len(self._pairs):
            raise Invalid(f"inode {number} is unknown")
        dataset_id, high = self._pairs[region - _FIRST_REGION]
        return DatapointNode(DatasetId(dataset_id), high << _LOW_BITS | low)

    def _region(self, dataset_id: int, high: int) -> int:
        region = self._regions.get((dataset_id, high))
        if region is None:
            region = _FIRST_REGION + len(self._pairs)
            if region >= _REGIONS:
                raise Invalid("too many ranges of keys for inode numbers")
            self._regions[dataset_id, high] = region
            self._pairs.append((dataset_id, high))
        return region
