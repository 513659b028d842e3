"""When the one retry place tries again, how long it waits, and when it gives up. Time is simulated."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from datas3tfs.core.counters import Counters
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, Invalid, NotFound, Unavailable
from datas3tfs.objects.retries import Retrier
from datas3tfs.objects.settings import S3Settings

SETTINGS = S3Settings(io_timeout=30.0, slowest_rate=1 << 20)


def failing(times: int, error: Datas3tError) -> tuple[Callable[[], Awaitable[str]], list[float]]:
    """Return an attempt that raises *error* so many times, and the list of when it was called."""
    calls: list[float] = []

    async def attempt() -> str:
        calls.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if len(calls) <= times:
            raise error
        return "done"

    return attempt, calls


async def test_unavailable_is_tried_again_with_growing_pauses(
    autojump_clock: trio.testing.MockClock,
) -> None:
    counters = Counters()
    attempt, calls = failing(8, Unavailable("away"))
    assert await Retrier(SETTINGS, counters, lambda: 1.0).run("read x", attempt) == "done"
    pauses = [right - left for left, right in itertools.pairwise(calls)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert counters.snapshot() == {"s3.error": 8, "s3.retry": 8}


async def test_jitter_is_full(autojump_clock: trio.testing.MockClock) -> None:
    attempt, calls = failing(3, Unavailable("away"))
    await Retrier(SETTINGS, Counters(), lambda: 0.0).run("read x", attempt)
    assert calls[0] == calls[-1]


@pytest.mark.parametrize("kind", [NotFound, Corrupt, Invalid, Conflict])
async def test_nothing_else_is_tried_again(kind: type[Datas3tError]) -> None:
    attempt, calls = failing(1, kind("x: no"))
    with pytest.raises(kind, match="x: no"):
        await Retrier(SETTINGS, Counters(), lambda: 1.0).run("read x", attempt)
    assert len(calls) == 1


async def test_it_gives_up_in_time_and_says_what_was_tried(autojump_clock: trio.testing.MockClock) -> None:
    attempt, _ = failing(1000, Unavailable("x: S3 answered 503"))
    begun = trio.current_time()
    with pytest.raises(Unavailable, match=r"read x: gave up after \d+ attempts in \d+\.\d s; .*503"):
        await Retrier(SETTINGS, Counters(), lambda: 1.0).run("read x", attempt)
    assert 20 < trio.current_time() - begun <= 30


@pytest.mark.parametrize(("volume", "limit"), [(0, 30.0), (10 << 20, 40.0)])
async def test_hanging_attempts_end_one_by_one_and_all_together(
    autojump_clock: trio.testing.MockClock, volume: int, limit: float
) -> None:
    counters = Counters()
    begun = trio.current_time()
    with pytest.raises(Unavailable, match="no answer within"):
        await Retrier(SETTINGS, counters, lambda: 1.0).run("read x", trio.sleep_forever, volume)
    assert trio.current_time() - begun <= limit
    assert counters.get("s3.error") == (3 if volume == 0 else 2)


async def test_cancellation_is_not_taken_for_a_timeout(autojump_clock: trio.testing.MockClock) -> None:
    counters = Counters()
    with trio.move_on_after(1) as scope:
        await Retrier(SETTINGS, counters, lambda: 1.0).run("read x", trio.sleep_forever)
    assert scope.cancelled_caught
    assert counters.get("s3.error") == 0
