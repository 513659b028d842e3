"""Candidates: every TAR once, with its index, beside all that may overlap it, and nothing kept for long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.core.candidates import Candidate, Candidates
from datas3tfs.core.model import Found
from datas3tfs.core.names import data_object_key, index_object_key, staged_index_key
from datas3tfs.core.spans import Span

drawn = st.lists(
    st.tuples(
        st.sampled_from(["a", "a-b", "a_b"]),
        st.integers(0, 30),
        st.integers(1, 6),
        st.none() | st.integers(0, 3),
        st.booleans(),
        st.booleans(),
    ),
    max_size=30,
    unique_by=lambda one: one[:4],
)


def listing(objects: list[tuple[str, int]]) -> list[Found]:
    return [Found(key, size, 0) for key, size in sorted(objects)]


def sorted_out(found: list[Found]) -> Candidates:
    candidates = Candidates()
    for one in found:
        candidates.add(one)
    candidates.finish()
    return candidates


@given(drawn)
def test_every_tar_is_in_one_cluster_and_overlaps_nothing_in_another(
    made: list[tuple[str, int, int, int | None, bool, bool]],
) -> None:
    objects: list[tuple[str, int]] = []
    for dataset, first, count, generation, has_final, has_staged in made:
        key = data_object_key(dataset, Span(first, first + count), generation)
        objects.append((key, 10_000))
        objects += [(index_object_key(key), 16)] * has_final + [(staged_index_key(key), 16)] * has_staged
    result = sorted_out(listing(objects))
    assert result.noise == []
    everyone = [one for cluster in result.clusters for one in cluster]
    assert sorted(one.data_key for one in everyone) == sorted(
        key for key, _ in objects if key.endswith(".tar")
    )
    for one in everyone:
        wanted = [index_object_key(one.data_key), staged_index_key(one.data_key)]
        there = {key for key, _ in objects}
        assert one.index_key == next((key for key in wanted if key in there), "")
        assert bool(one.problem) == (one.index_key == "")
    good = [[one for one in cluster if not one.problem] for cluster in result.clusters]
    for number, cluster in enumerate(good):
        for other in good[number + 1 :]:
            assert not any(overlaps(one, two) for one in cluster for two in other)
        assert all(any(overlaps(one, two) for two in cluster if two is not one) for one in cluster[1:])


def overlaps(one: Candidate, two: Candidate) -> bool:
    return one.dataset == two.dataset and bool(one.keys.intersection(two.keys))


def test_what_cannot_be_a_datarange_keeps_nobody_waiting() -> None:
    """A TAR that claims all keys there are, but has no index, or is much too short."""
    candidates = Candidates()
    everything = data_object_key("photos", Span(0, 2**63), None)
    for key, size in [(everything, 10**6), (data_object_key("photos", Span(0, 10**6), None), 10**6)]:
        candidates.add(Found(index_object_key(key), 16, 0))
        candidates.add(Found(key, size, 0))
    for first in range(1, 100):
        key = data_object_key("photos", Span(first, first + 1), None)
        candidates.add(Found(index_object_key(key), 16, 0))
        candidates.add(Found(key, 2048, 0))
        assert len(candidates.clusters) == 2 + first - 1
    candidates.finish()
    assert [bool(cluster[0].problem) for cluster in candidates.clusters] == [True] * 2 + [False] * 99
