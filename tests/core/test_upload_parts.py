"""Cutting a stream into parts: S3's limits, and no byte too many or too few."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from datas3tfs.errors import Invalid
from datas3tfs.objects.parts import Cutter, plan_parts

MIB = 1 << 20


@given(st.integers(0, 6 << 40), st.sampled_from([5 * MIB, 16 * MIB]))
def test_parts_tile_the_stream_within_s3s_limits(size: int, part_size: int) -> None:
    parts = plan_parts(size, part_size)
    assert 1 <= len(parts) <= 10_000
    assert (parts[0].start, parts[-1].stop) == (0, size)
    assert all(left.stop == right.start for left, right in itertools.pairwise(parts))
    assert len({part.length for part in parts[:-1]}) <= 1
    assert all(part.length >= part_size for part in parts[:-1])


def test_parts_are_not_larger_than_need_be() -> None:
    assert plan_parts(33 * MIB, 16 * MIB)[0].length == 16 * MIB
    assert plan_parts(10_000 * 16 * MIB, 16 * MIB)[0].length == 16 * MIB
    assert plan_parts(10_000 * 16 * MIB + 1, 16 * MIB)[0].length == 17 * MIB


@given(st.lists(st.binary(max_size=50), max_size=10), st.integers(1, 40), st.integers(-3, 3))
def test_a_cutter_gives_back_the_stream_or_says_invalid(chunks: list[bytes], step: int, wrong: int) -> None:
    body = b"".join(chunks)
    size = max(0, len(body) + wrong)

    async def source() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def cut() -> bytes:
        cutter = Cutter("key", source(), size)
        taken = [bytes(await cutter.take(min(step, size - start))) for start in range(0, size, step)]
        await cutter.end()
        return b"".join(taken)

    if size == len(body):
        assert trio.run(cut) == body
    else:
        with pytest.raises(Invalid, match="key"):
            trio.run(cut)
