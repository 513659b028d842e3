"""Wrong tokens are limited by address, for a while, in bounded memory."""

import trio
import trio.testing

from datas3tfs.api.failures import Failures


async def test_ten_a_minute_then_nothing_until_the_minute_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failures = Failures()
    for _ in range(9):
        failures.add("192.0.2.1")
    assert failures.wait("192.0.2.1") == 0
    await trio.sleep(20)
    failures.add("192.0.2.1")
    assert failures.wait("192.0.2.1") == 40
    assert failures.wait("192.0.2.2") == 0
    await trio.sleep(39.5)
    assert failures.wait("192.0.2.1") == 1
    await trio.sleep(0.5)
    assert failures.wait("192.0.2.1") == 0
    failures.add("192.0.2.1")
    assert failures.wait("192.0.2.1") == 0  # a new minute, one so far


async def test_a_host_has_many_ipv6_addresses_and_may_hide_behind_none(
    autojump_clock: trio.testing.MockClock,
) -> None:
    failures = Failures()
    for number in range(10):
        failures.add(f"2001:db8::{number:x}")
        failures.add(f"::ffff:192.0.2.{9}")
        failures.add(f"unix:{number}")
    assert failures.wait("2001:db8::ffff") == 60
    assert failures.wait("2001:db8:0:1::1") == 0
    assert failures.wait("192.0.2.9") == 60
    assert failures.wait("") == 60


async def test_memory_is_bounded_and_the_oldest_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    failures = Failures()
    for number in range(25_000):
        failures.add(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(failures._seen) == 10_000
