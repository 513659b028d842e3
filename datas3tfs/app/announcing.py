"""What announcements add to a mount: a way in (fs/control.py), and who fetches (engine/announcements.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from datas3tfs.app.services import Services
from datas3tfs.config import Settings
from datas3tfs.core.announced import AnnouncedLimits
from datas3tfs.engine.announcements import open_announcements
from datas3tfs.engine.blocks import BlockPool
from datas3tfs.engine.prefetcher import Prefetcher
from datas3tfs.engine.snapshot import Snapshots
from datas3tfs.fs.attributes import Ownership
from datas3tfs.fs.control import Control, open_control


@asynccontextmanager
async def open_announcing(
    settings: Settings,
    services: Services,
    snapshots: Snapshots,
    pool: BlockPool,
    prefetcher: Prefetcher,
    owner: Ownership,
) -> AsyncIterator[Control | None]:
    """Fetch ahead what is announced, from now on. None if nothing can be announced here."""
    # A batch that is read, the next that is fetched, half as much again of gaps in both: three quarters. So
    # much may be taken by what fits as a whole, too: it is read again and again, and stays.
    limits = AnnouncedLimits(settings.memory_budget // 4, settings.memory_budget // 4 * 3)
    async with (
        open_announcements(pool, services.indices, snapshots, limits, services.counters) as announcements,
        open_control(announcements, settings.pipes_dir(), owner) as control,
    ):
        prefetcher.is_announced = announcements.observe
        yield control
