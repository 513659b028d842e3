"""Which waiting files become which dataranges."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core.batches import plan_batches


@dataclass(frozen=True)
class File:
    key: int
    size: int = 1


def plan(
    files: list[File],
    *,
    bytes_limit: int = 100,
    count_limit: int = 100,
    unfinished: set[int] | None = None,
    forced: set[File] | None = None,
) -> list[list[int]]:
    batches = plan_batches(
        files,
        bytes_limit=bytes_limit,
        count_limit=count_limit,
        unfinished=unfinished or set(),
        forced=forced or set(),
    )
    return [[file.key for file in batch] for batch in batches]


def files(*keys: int, size: int = 1) -> list[File]:
    return [File(key, size) for key in keys]


def test_a_gap_starts_another_batch() -> None:
    assert plan(files(0, 1, 2, 5, 7, 8)) == [[0, 1, 2], [5], [7, 8]]
    assert plan([]) == []


def test_key_zero_is_a_key_like_any_other() -> None:
    assert plan(files(0)) == [[0]]
    assert plan(files(0, 1)) == [[0, 1]]
    assert plan(files(1), unfinished={0}) == []


def test_a_batch_ends_when_it_is_full_of_bytes_or_of_files() -> None:
    assert plan(files(0, 1, 2, 3, 4, size=40)) == [[0, 1, 2], [3, 4]]
    assert plan(files(0, 1, 2, 3, 4), count_limit=2) == [[0, 1], [2, 3], [4]]
    assert plan([File(0, 1000), File(1), File(2)]) == [[0], [1, 2]]


def test_what_follows_an_unfinished_file_waits_for_it_unless_forced() -> None:
    ready = files(3, 4, 8, 9)
    assert plan(ready, unfinished={2, 10}) == [[8, 9]]
    assert plan(ready, unfinished={2, 7}) == []
    assert plan(ready, unfinished={2, 7}, forced={ready[1]}) == [[3, 4]]
    assert plan(ready, unfinished={2, 7}, forced=set(ready)) == [[3, 4], [8, 9]]


@given(
    st.dictionaries(st.integers(0, 40), st.integers(0, 50), max_size=40),
    st.integers(1, 100),
    st.integers(1, 10),
    st.sets(st.integers(0, 40)),
)
def test_every_file_is_in_one_batch_or_waits_for_its_neighbour(
    sizes: dict[int, int], bytes_limit: int, count_limit: int, unfinished: set[int]
) -> None:
    ready = [File(key, sizes[key]) for key in sorted(sizes) if key not in unfinished]
    batches = plan(ready, bytes_limit=bytes_limit, count_limit=count_limit, unfinished=unfinished)
    for batch in batches:
        assert batch == list(range(batch[0], batch[0] + len(batch))), "contiguous"
        assert len(batch) <= count_limit
        assert sum(sizes[key] for key in batch[:-1]) < bytes_limit or len(batch) == 1
    planned = [key for batch in batches for key in batch]
    assert planned == sorted(set(planned))
    for key in {file.key for file in ready} - set(planned):
        first = key
        while first - 1 in sizes and first - 1 not in unfinished:
            first -= 1
        assert first - 1 in unfinished
