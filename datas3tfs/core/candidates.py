"""Make dataranges of a bucket's listing: TARs and the indices beside them, put together if they overlap.

Pure; objects come in the order of their keys, so an index comes just before its TAR, and the TARs of a
dataset by their first key. Nothing is kept but the TARs that still may overlap one that comes. Not here:
whether a candidate is right (engine/importer.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from datas3tfs.core.model import Found
from datas3tfs.core.names import check_label, parse_data_object_key
from datas3tfs.core.spans import Span
from datas3tfs.core.uploadcheck import check_announced
from datas3tfs.errors import Invalid

_SUFFIXES = (".index.zst", ".index")  # of indices, the better one first: the other one may be staged


@dataclass(frozen=True, slots=True)
class Candidate:
    """A TAR that may become a datarange, or (*problem*) cannot, whatever is in it."""

    dataset: str
    keys: Span
    generation: int  # 0: the first
    data_key: str
    index_key: str
    size: int
    modified_ns: int
    problem: str = ""

    @property
    def age(self) -> tuple[int, int, int]:
        """The greater, the newer. Of the same moment (S3 tells seconds) the larger one: a merge made it."""
        return self.modified_ns, self.keys.length, self.generation


class Candidates:
    """Takes objects and hands out clusters: candidates that overlap, or are chained by others that do."""

    def __init__(self) -> None:
        self.clusters: list[list[Candidate]] = []  # to be taken away by the caller, as is …
        self.noise: list[tuple[str, str]] = []  # … (object key, what is wrong) of what is no datarange's
        self._open: list[Candidate] = []
        self._stop = 0  # of its keys
        self._stem = ""
        self._indices: dict[str, Found] = {}  # of that stem, by suffix

    def add(self, found: Found) -> None:
        """Take the next object."""
        suffix = next((one for one in _SUFFIXES if found.key.endswith(one)), "")
        if suffix:
            self._begin(found.key.removesuffix(suffix))
            self._indices[suffix] = found
        elif found.key.endswith(".tar"):
            self._begin(found.key.removesuffix(".tar"))
            self._offer(found, self._indices)
            self._indices = {}
        else:
            self.noise.append((found.key, "not an object of a datarange"))

    def finish(self) -> None:
        """There are no more objects."""
        self._begin("")
        self._close()

    def _begin(self, stem: str) -> None:
        if stem == self._stem:
            return
        for index in self._indices.values():
            self._offer(index, {}, "an index whose TAR is not there")
        self._stem, self._indices = stem, {}

    def _offer(self, found: Found, indices: Mapping[str, Found], problem: str = "") -> None:
        try:
            dataset, keys, generation = parse_data_object_key(self._stem + ".tar")
            check_label("dataset", dataset)
        except Invalid as exc:
            self.noise.append((found.key, str(exc)))
            return
        index = next((indices[one] for one in _SUFFIXES if one in indices), None)
        if index is None:
            index_key = ""
            problem = problem or "no index is beside it: unfinished, or lost (`upload-tar` needs none)"
        else:
            index_key, problem = index.key, _problem(keys, found.size)
        data_key = self._stem + ".tar"
        place = dataset, keys, generation or 0, data_key, index_key
        self._take(Candidate(*place, found.size, found.modified_ns, problem))

    def _take(self, one: Candidate) -> None:
        if one.problem:
            self.clusters.append([one])
            return
        if self._open and (one.dataset != self._open[0].dataset or one.keys.start >= self._stop):
            self._close()
        self._stop = max(self._stop, one.keys.stop) if self._open else one.keys.stop
        self._open.append(one)

    def _close(self) -> None:
        if self._open:
            self.clusters.append(self._open)
            self._open = []


def _problem(keys: Span, size: int) -> str:
    try:
        check_announced(keys, size)
    except Invalid as exc:
        return str(exc)
    return ""
