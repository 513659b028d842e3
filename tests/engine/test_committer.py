"""Committing: what shares a datarange, when, and what happens when it fails."""

from __future__ import annotations

from pathlib import Path

from tests.harness.world import new_world
from tests.harness.writing import assert_tidy, committed, open_host


async def test_what_is_closed_is_committed_and_leaves_nothing_behind(tmp_path: Path) -> None:
    world = await new_world()
    contents = {key: b"%d" % key * key for key in range(50)}
    contents[50] = bytes(300_000)
    async with open_host(world, tmp_path) as host:
        for key, content in contents.items():
            await host.put(key, content)
        await host.committer.commit_closed()
        await host.emptied()
        assert await committed(world) == contents
    await assert_tidy(world)
