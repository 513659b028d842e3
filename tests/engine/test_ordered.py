"""Doing several things at once, in order: bounded, cancelled when left, errors when their turn has come."""

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from datas3tfs.engine.ordered import open_ordered
from datas3tfs.errors import Unavailable


async def test_results_come_in_order_whatever_takes_how_long(autojump_clock: trio.testing.MockClock) -> None:
    async def after(seconds: int) -> int:
        await trio.sleep(seconds)
        return seconds

    calls = [partial(after, seconds) for seconds in (9, 1, 5, 0, 3)]
    async with open_ordered(calls, 3) as results:
        assert [result async for result in results] == [9, 1, 5, 0, 3]


async def test_no_more_than_allowed_is_under_way_or_waits_to_be_taken() -> None:
    begun = 0

    async def begin() -> int:
        nonlocal begun
        begun += 1
        await trio.lowlevel.checkpoint()
        return begun

    async with open_ordered([begin] * 10, 4) as results:
        await anext(results)
        await trio.testing.wait_all_tasks_blocked()
        assert begun == 4
        await anext(results)
        await trio.testing.wait_all_tasks_blocked()
        assert begun == 5


async def test_an_error_comes_out_when_its_turn_has_come() -> None:
    async def good() -> str:
        await trio.lowlevel.checkpoint()
        return "good"

    async def bad() -> str:
        await trio.lowlevel.checkpoint()
        raise Unavailable("away")

    calls: list[Callable[[], Awaitable[str]]] = [good, good, bad, good]
    async with open_ordered(calls, 4) as results:
        assert [await anext(results), await anext(results)] == ["good", "good"]
        with pytest.raises(Unavailable, match="away"):
            await anext(results)


async def test_leaving_cancels_what_is_under_way() -> None:
    cancelled = 0

    async def stuck() -> None:
        nonlocal cancelled
        try:
            await trio.sleep_forever()
        finally:
            cancelled += 1

    async def quick() -> None:
        await trio.lowlevel.checkpoint()

    calls: list[Callable[[], Awaitable[None]]] = [quick, stuck, stuck]
    async with open_ordered(calls, 3) as results:
        await anext(results)
    assert cancelled == 2


async def test_nothing_to_do() -> None:
    async with open_ordered(list[Callable[[], Awaitable[int]]](), 3) as results:
        assert [result async for result in results] == []
