"""When something is tried again: the pauses, their ceiling, what the other side asks for, and patience."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest
import trio
import trio.testing

from datas3tfs.client import AsyncClient, Tuning
from datas3tfs.client.retrying import Again, Retrier, Tries
from datas3tfs.errors import Unavailable

TUNING = Tuning(first_pause=0.5, longest_pause=6.0)


async def moments(
    jitter: float, failures: int, patience: float = 1000.0, after: float | None = None
) -> list[float]:
    """Return when each attempt was made, in seconds since the first, where *failures* fail."""
    begun, made = trio.current_time(), list[float]()

    async def attempt() -> None:
        await trio.lowlevel.checkpoint()
        made.append(round(trio.current_time() - begun, 6))
        if len(made) <= failures:
            raise Again("busy", after=after)

    await Retrier(TUNING, patience, lambda: jitter).run("it", attempt)
    return made


def between(made: list[float]) -> list[float]:
    return [round(later - sooner, 6) for sooner, later in itertools.pairwise(made)]


async def test_pauses_double_up_to_their_ceiling(autojump_clock: trio.testing.MockClock) -> None:
    assert between(await moments(1.0, 7)) == [0.5, 1.0, 2.0, 4.0, 6.0, 6.0, 6.0]
    assert between(await moments(0.5, 5)) == [0.25, 0.5, 1.0, 2.0, 3.0]
    assert await moments(0.0, 20) == [0.0] * 21


async def test_nothing_is_paused_for_if_nothing_fails(autojump_clock: trio.testing.MockClock) -> None:
    assert await moments(1.0, 0) == [0.0]


async def test_what_the_other_side_asks_for_is_the_least(autojump_clock: trio.testing.MockClock) -> None:
    assert between(await moments(0.0, 3, after=3.0)) == [3.0] * 3
    assert between(await moments(1.0, 5, after=3.0)) == [3.0, 3.0, 3.0, 4.0, 6.0]


async def test_patience_ends_before_a_pause_that_would_outlast_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    begun = trio.current_time()
    with pytest.raises(Unavailable, match=r"it: gave up after 4 attempts in 3\.5 s; last: busy"):
        await moments(1.0, 100, patience=7.5)
    assert trio.current_time() - begun == pytest.approx(3.5)
    with pytest.raises(Unavailable, match=r"gave up after 1 attempt in 0\.0 s"):
        await moments(1.0, 100, patience=10.0, after=60.0)
    with pytest.raises(Unavailable, match="1 attempt"):
        await moments(0.0, 100, patience=0.0)


async def test_an_attempt_that_takes_all_the_patience_is_not_the_last(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def attempt() -> None:
        await trio.sleep(60.0)
        raise Again("the server went silent")

    with pytest.raises(
        Unavailable, match=r"it: gave up after 2 attempts in 12\d\.\d s; last: the server went s"
    ):
        await Retrier(TUNING, 60.0).run("it", attempt)


async def test_patience_and_pauses_begin_anew_with_progress(autojump_clock: trio.testing.MockClock) -> None:
    begun, made, reached = trio.current_time(), list[float](), 0

    async def attempt() -> None:
        nonlocal reached
        await trio.lowlevel.checkpoint()
        made.append(round(trio.current_time() - begun, 6))
        reached += len(made) <= 30 and len(made) % 2 == 0
        raise Again("busy")

    with pytest.raises(Unavailable, match=r"gave up after 3 attempts in 1\.5 s"):
        await Retrier(TUNING, 2.0, lambda: 1.0).run("it", attempt, reached=lambda: reached)
    # Whoever gets further every other time is not given up on, and pauses as briefly as at first.
    assert len(made) == 32
    assert set(between(made)) == {0.5, 1.0}


async def test_other_errors_are_not_tried_again_and_what_may_have_happened_is_known(
    autojump_clock: trio.testing.MockClock,
) -> None:
    for undone in (True, False):
        tries, count = Tries(), 0

        async def attempt(undone: bool = undone) -> None:
            nonlocal count
            await trio.lowlevel.checkpoint()
            count += 1
            if count == 3:
                raise ZeroDivisionError
            raise Again("no connection", undone=undone)

        with pytest.raises(ZeroDivisionError):
            await Retrier(TUNING, 100.0, lambda: 1.0).run("it", attempt, tries=tries)
        assert tries.lost is not undone


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("status", "header", "least", "most"),
    [
        (503, lambda: "7", 7, 7.01),
        (429, lambda: "7", 7, 7.01),
        (503, lambda: "0", 0, 0.01),
        (503, lambda: in_seconds(30), 28, 30.01),
        (503, lambda: in_seconds(-1000), 0, 0.01),
        (503, lambda: "soon", 0, 0.01),
        (503, lambda: "-5", 0, 0.01),
        (503, lambda: "", 0, 0.01),
    ],
)
async def test_retry_after_is_a_number_or_a_date(
    autojump_clock: trio.testing.MockClock, status: int, header: Callable[[], str], least: float, most: float
) -> None:
    made = list[float]()

    async def answer(request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        made.append(trio.current_time())
        if len(made) == 1:
            return httpx.Response(status, headers={"Retry-After": header()})
        return httpx.Response(200, json=[])

    tuning = Tuning(patience=100.0, first_pause=0.0)
    async with AsyncClient("http://server", tuning=tuning, transport=httpx.MockTransport(answer)) as client:
        assert await client.buckets() == []
    (pause,) = between(made)
    assert least <= pause <= most
