"""Extended attributes: where a datapoint's bytes really are (`getfattr -d FILE`)."""

from __future__ import annotations

from datas3tfs.core.model import Dataset
from datas3tfs.engine.entries import Entry, EntryState
from datas3tfs.engine.tree import OpenDatapoint

PREFIX = "user.datas3t."
STATS = PREFIX + "stats"  # of the mount's root: JSON, for `datas3tfs stats`; not listed
FLUSH = PREFIX + "flush"  # of the mount's root: setting it commits all; it says why that failed
PREFETCH = PREFIX + "prefetch."  # of a dataset, and the number of an announcement: JSON, what came of it


def entry_xattrs(entry: Entry) -> dict[str, str]:
    """Return the attributes of an uncommitted file, by full name."""
    values = {"size": str(entry.size), "state": entry.state.value if entry.key is not None else "temporary"}
    if entry.key is not None:
        values["key"] = str(entry.key)
    if entry.state is EntryState.JOURNALED and (entry.safe is None or entry.changed):
        values["state"] = "open"
    if entry.problem is not None:
        values["problem"] = str(entry.problem)
    return {PREFIX + name: value for name, value in sorted(values.items())}


def datapoint_xattrs(file: OpenDatapoint) -> dict[str, str]:
    """Return the attributes of a datapoint, by full name."""
    keys = file.datarange.keys
    values = {
        "key": str(file.entry.key),
        "datarange": f"{keys.start}-{keys.last}",
        "object": file.datarange.data_key,
        "offset": str(file.entry.content.start),
        "size": str(file.entry.size),
        "state": "committed",
    }
    if file.entry.crc is not None:
        values["crc32c"] = f"{file.entry.crc:08x}"
    return {PREFIX + name: value for name, value in sorted(values.items())}


def dataset_xattrs(dataset: Dataset) -> dict[str, str]:
    """Return the attributes of a dataset's directory, by full name."""
    return {
        PREFIX + "bytes": str(dataset.total_bytes),
        PREFIX + "datapoints": str(dataset.datapoints),
        PREFIX + "dataranges": str(dataset.dataranges),
        PREFIX + "dataset": dataset.name,
    }
