"""The mount: open everything, mount, serve until told to stop, take everything away again."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from datas3tfs import __version__
from datas3tfs.app.daemon import Readiness
from datas3tfs.app.mountpoint import prepare
from datas3tfs.app.services import Services, open_services
from datas3tfs.config import Settings
from datas3tfs.core.prefetch import PrefetchLimits
from datas3tfs.engine.blocks import BlockPool, open_pool
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.engine.prefetcher import open_prefetcher
from datas3tfs.engine.reader import Reader
from datas3tfs.engine.snapshot import Removed, Snapshots, open_snapshots
from datas3tfs.engine.tree import Tree
from datas3tfs.errors import Unavailable
from datas3tfs.fs.attributes import Attributes, Ownership
from datas3tfs.fs.invalidate import invalidate_removed
from datas3tfs.fs.operations import Operations

log = logging.getLogger(__name__)

# The interpreter hands the lock over only this often by itself. At the default 5 ms a thread that
# checks or unpacks bytes costs the FUSE loop a factor of ten (measured: PRODUCT section 4).
_SWITCH_INTERVAL = 100e-6
_LAST_ANSWERS_SECONDS = 2.0  # for requests under way when told to stop


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What to show, where, and to whom."""

    mountpoint: Path
    dataset: str | None  # show only this one, at the root
    ownership: Ownership
    allow_other: bool


async def serve_mount(settings: Settings, options: MountOptions, readiness: Readiness) -> None:
    """Mount and serve until unmounted from outside or told to stop by SIGTERM or SIGINT.

    Raises NotFound (no such dataset), Conflict, Invalid (mount point), Unavailable.
    """
    mountpoint = prepare(options.mountpoint)
    async with (
        open_services(settings, settings.io_timeout) as services,
        open_snapshots(services.catalog.reader, settings.io_timeout) as snapshots,
        open_pool(services.stores, settings.memory_budget, services.counters) as pool,
        open_prefetcher(pool, services.indices, _limits(settings)) as prefetcher,
    ):
        only = None if options.dataset is None else snapshots.named(options.dataset).id
        operations = Operations(
            Tree(snapshots, services.indices),
            Reader(pool, prefetcher, settings.io_timeout, services.counters),
            Attributes(options.ownership),
            services.counters,
            _stats(services, pool, mountpoint, options.dataset),
            only,
        )
        sys.setswitchinterval(_SWITCH_INTERVAL)
        following = _following(services, snapshots, operations)
        await _serve(operations, following, mountpoint, options, readiness)


def _limits(settings: Settings) -> PrefetchLimits:
    """Windows that leave room in the budget for several readers."""
    standard = PrefetchLimits()
    return PrefetchLimits(
        min(standard.first_window, settings.memory_budget // 32),
        min(standard.largest_window, settings.memory_budget // 8),
    )


@asynccontextmanager
async def _following(services: Services, snapshots: Snapshots, operations: Operations) -> AsyncIterator[None]:
    """Keep the snapshots up to date, and the kernel informed of what has gone, in the background."""
    sender, receiver = trio.open_memory_channel[Removed](16)
    async with services.catalog.reader.changes() as feed, background_nursery() as nursery:
        nursery.start_soon(snapshots.follow, feed, sender)
        nursery.start_soon(invalidate_removed, receiver, operations, services.indices)
        yield


async def _serve(
    operations: Operations,
    following: AbstractAsyncContextManager[None],
    mountpoint: Path,
    options: MountOptions,
    readiness: Readiness,
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        try:
            pyfuse3.init(operations, str(mountpoint), _fuse_options(options))
        except RuntimeError as exc:
            raise Unavailable(f"{mountpoint}: cannot be mounted{_hint(options)}") from exc
        try:
            # What follows the catalog talks to the kernel: it ends before the session does.
            async with background_nursery() as nursery, following:
                scope = trio.CancelScope()
                nursery.start_soon(_stop_on_signal, signals, scope)
                readiness.ready()
                log.info("%s: mounted", mountpoint)
                with scope:
                    await pyfuse3.main()
        finally:
            readiness.stopping()
            pyfuse3.close(unmount=True)
            log.info("%s: unmounted", mountpoint)


async def _stop_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    """Let requests under way finish, but not for long; then they are cut off with the mount."""
    async for number in signals:
        log.info("stopping on %s", signal.Signals(number).name)
        pyfuse3.terminate()
        scope.deadline = min(scope.deadline, trio.current_time() + _LAST_ANSWERS_SECONDS)


def _fuse_options(options: MountOptions) -> set[str]:
    chosen = set(pyfuse3.default_options)  # default_permissions among them: the kernel checks modes
    chosen |= {"ro", "nosuid", "nodev", "fsname=datas3tfs", "subtype=datas3tfs"}
    if options.allow_other:
        chosen.add("allow_other")
    return chosen


def _hint(options: MountOptions) -> str:
    if not os.path.exists("/dev/fuse"):
        return " (there is no /dev/fuse here: load the kernel's fuse module)"
    if options.allow_other and os.geteuid() != 0:
        return " (--allow-other needs `user_allow_other` in /etc/fuse.conf)"
    return " (the reason is on the lines before)"


def _stats(
    services: Services, pool: BlockPool, mountpoint: Path, dataset: str | None
) -> Callable[[], dict[str, object]]:
    started = trio.current_time()

    def stats() -> dict[str, object]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "mountpoint": str(mountpoint),
            "dataset": dataset,
            "uptime_seconds": round(trio.current_time() - started, 3),
            "memory_bytes": pool.used,
            "counters": services.counters.snapshot(),
        }

    return stats
