"""What every catalog must do with tokens: who may use the HTTP API."""

from __future__ import annotations

import hashlib
import time
from collections import Counter

import pytest
import trio

from datas3tfs.core.model import Token
from datas3tfs.errors import Conflict, Invalid, NotFound
from tests.harness.catalogs import World, outcome


def token(name: str, *, can_write: bool = False, datasets: frozenset[str] | None = None) -> Token:
    return Token(name, can_write, datasets, created_ns=0)


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def test_a_token_is_found_by_its_digest_as_it_was_added(world: World) -> None:
    before = time.time_ns()
    added = [
        token("reader"),
        token("Writer", can_write=True),
        token("some", datasets=frozenset({"cats", "dogs"})),
        token("none", datasets=frozenset()),
    ]
    for one in added:
        await world.here.tokens.add(one, digest(one.name))
    for one in added:
        found = await world.there.tokens.find(digest(one.name))
        assert found is not None
        assert (found.name, found.can_write, found.datasets) == (one.name, one.can_write, one.datasets)
        assert abs(found.created_ns - before) < 60e9
    listed = await world.there.tokens.all()
    assert [one.name for one in listed] == ["Writer", "none", "reader", "some"]
    assert listed[3].datasets == frozenset({"cats", "dogs"})


async def test_nobody_else_is_let_in(world: World) -> None:
    assert await world.here.tokens.all() == []
    await world.here.tokens.add(token("reader"), digest("secret"))
    for wrong in (digest("Secret"), b"secret", b"", digest("secret")[:31], digest("secret") + b"\0"):
        assert await world.there.tokens.find(wrong) is None


async def test_a_name_means_one_token(world: World) -> None:
    await world.here.tokens.add(token("reader"), digest("one"))
    for other in ("one", "two"):
        with pytest.raises(Conflict, match="reader"):
            await world.there.tokens.add(token("reader", can_write=True), digest(other))
    with pytest.raises(Conflict):
        await world.there.tokens.add(token("another"), digest("one"))
    found = await world.here.tokens.find(digest("one"))
    assert found is not None
    assert (found.name, found.can_write) == ("reader", False)
    assert await world.here.tokens.find(digest("two")) is None


async def test_a_removed_token_lets_nobody_in(world: World) -> None:
    for name in ("one", "two"):
        await world.here.tokens.add(token(name), digest(name))
    await world.there.tokens.remove("one")
    assert await world.here.tokens.find(digest("one")) is None
    assert [one.name for one in await world.here.tokens.all()] == ["two"]
    with pytest.raises(NotFound, match="one"):
        await world.here.tokens.remove("one")
    await world.here.tokens.add(token("one", can_write=True), digest("new"))
    found = await world.there.tokens.find(digest("new"))
    assert found is not None
    assert found.can_write


async def test_impossible_tokens_are_refused_without_quoting_the_digest(world: World) -> None:
    for name in ("", "a b", "a/b", "ä", "x" * 201, "a\n"):
        with pytest.raises(Invalid):
            await world.here.tokens.add(token(name), digest("x"))
    with pytest.raises(Invalid):
        await world.here.tokens.add(token("fine", datasets=frozenset({"../x"})), digest("x"))
    for wrong in (b"", digest("x")[:31], digest("x") + b"\0"):
        with pytest.raises(Invalid) as caught:
            await world.here.tokens.add(token("fine"), wrong)
        assert not wrong or repr(wrong)[2:10] not in str(caught.value)
    assert await world.here.tokens.all() == []


async def test_of_many_that_add_a_name_one_succeeds(world: World) -> None:
    outcomes: Counter[str] = Counter()

    async def contend(number: int) -> None:
        catalog = world.here if number % 2 else world.there
        outcomes[await outcome(lambda: catalog.tokens.add(token("me"), digest(str(number))))] += 1

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(contend, number)
    assert outcomes == {"done": 1, "Conflict": 9}
    assert len(await world.here.tokens.all()) == 1
