"""The mount: open everything, mount, serve until told to stop, take everything away again."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyfuse3
import trio

from datas3tfs import __version__
from datas3tfs.app.announcing import open_announcing
from datas3tfs.app.daemon import Readiness
from datas3tfs.app.ending import Ending
from datas3tfs.app.fusemount import fuse_mount
from datas3tfs.app.journals import unattended
from datas3tfs.app.mountpoint import prepare
from datas3tfs.app.services import Services, open_services
from datas3tfs.app.writing import Written, journal_options, open_writing
from datas3tfs.config import Settings, journals_dir
from datas3tfs.core.prefetch import PrefetchLimits
from datas3tfs.engine.blocks import BlockPool, open_pool
from datas3tfs.engine.datasets import Datasets
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.engine.prefetcher import Prefetcher, open_prefetcher
from datas3tfs.engine.reader import Reader
from datas3tfs.engine.snapshot import Removed, Snapshots, open_snapshots
from datas3tfs.engine.tree import Tree
from datas3tfs.errors import Datas3tError, Unavailable
from datas3tfs.fs.attributes import Attributes, Ownership
from datas3tfs.fs.frontloop import FrontLoop, front_loop
from datas3tfs.fs.invalidate import Invalidator
from datas3tfs.fs.notifier import Notifier, cloned
from datas3tfs.fs.operations import Operations
from datas3tfs.fs.readwrite import ReadWriteOperations, Writing
from datas3tfs.worker.blocks import WorkerBlocks
from datas3tfs.worker.link import Link, open_link

log = logging.getLogger(__name__)

# The interpreter hands the lock over only this often by itself. At the default 5 ms a thread that
# checks or unpacks bytes costs the FUSE loop a factor of ten (measured: PRODUCT section 4).
_SWITCH_INTERVAL = 100e-6


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What to show, where, and to whom."""

    mountpoint: Path
    dataset: str | None  # show only this one, at the root
    ownership: Ownership
    allow_other: bool
    journal_dir: Path | None  # None: read-only
    bucket: str | None  # where mkdir makes datasets; None: in the only one there is
    express: bool  # stand before pyfuse3, where that is possible (fs/frontloop.py)
    force: bool = False  # take the journal even if it may be in use elsewhere


async def serve_mount(
    settings: Settings, options: MountOptions, readiness: Readiness, worker: socket.socket
) -> None:
    """Mount and serve until unmounted from outside or told to stop by SIGTERM or SIGINT; *worker* leads to a
    process of our own (worker/).

    Raises NotFound (no such dataset), Conflict, Invalid (mount point), Unavailable.
    """
    mountpoint = prepare(options.mountpoint)
    async with (
        open_services(settings, settings.io_timeout) as services,
        open_snapshots(services.catalog.reader, settings.io_timeout) as snapshots,
        open_link(worker, services.stores.settings) as link,
        open_pool(
            blocks := WorkerBlocks(services.stores, link), settings.memory_budget, services.counters
        ) as pool,
        open_prefetcher(pool, services.indices, _limits(settings)) as prefetcher,
        open_announcing(settings, services, snapshots, pool, prefetcher, options.ownership) as control,
    ):
        only = None if options.dataset is None else snapshots.named(options.dataset).id
        tree = Tree(snapshots, services.indices)
        reader = Reader(tree, pool, prefetcher, settings.io_timeout, services.counters)
        attributes = Attributes(options.ownership, writable=options.journal_dir is not None)
        stats = _stats(services, pool, prefetcher, mountpoint, options.dataset)
        shell = _Shell(services, snapshots, tree, pool, blocks, link)
        sys.setswitchinterval(_SWITCH_INTERVAL)
        gc.freeze()  # what was made so far stays: looking through it for garbage would halt the loop for long
        if options.journal_dir is None:
            operations = Operations(tree, reader, attributes, services.counters, stats, only)
            operations.control = control
            await _serve(shell, operations, mountpoint, options, readiness, None)
            return
        kept = journal_options(settings, options.journal_dir, force=options.force)
        async with open_writing(services, snapshots, kept) as written, background_nursery() as nursery:
            nursery.start_soon(_warn_of_others, options.journal_dir)
            datasets = Datasets(services.catalog.registry, snapshots, options.bucket, settings.io_timeout)
            writing = Writing(written.journal, written.committer, datasets, settings.fsync == "commit")
            operations = ReadWriteOperations(
                tree,
                reader,
                attributes,
                services.counters,
                lambda: stats() | {"journal": written.stats()},
                only,
                writing,
            )
            operations.control = control
            await _serve(shell, operations, mountpoint, options, readiness, written)


@dataclass(frozen=True, slots=True)
class _Shell:
    """What stands between the handlers and the rest of the world."""

    services: Services
    snapshots: Snapshots
    tree: Tree
    pool: BlockPool
    blocks: WorkerBlocks
    link: Link


async def _warn_of_others(own: Path) -> None:
    """Say where files of mounts that are gone wait for somebody to commit them."""
    with suppress(Datas3tError):
        found = await trio.to_thread.run_sync(unattended, own, journals_dir(), abandon_on_cancel=True)
        if found:
            where = f" {found[0]}" if len(found) == 1 else ""
            log.warning(
                "files wait to be committed in %s no mount looks after: run `datas3tfs journal replay%s`",
                "a journal that" if where else f"{len(found)} journals that",
                where,
            )


def _limits(settings: Settings) -> PrefetchLimits:
    """Windows that leave room in the budget for several readers."""
    standard = PrefetchLimits()
    return PrefetchLimits(
        min(standard.first_window, settings.memory_budget // 32),
        min(standard.largest_window, settings.memory_budget // 8),
        settings.memory_budget // 2,
    )


@asynccontextmanager
async def _following(shell: _Shell, operations: Operations, *, heartbeats: bool) -> AsyncIterator[None]:
    """Keep the snapshots up to date, the kernel informed of what has gone, and its page cache ahead of the
    readers, in the background."""
    # Without limit: who waits for a refresh must never wait for the kernel, which may wait for that very one.
    sender, receiver = trio.open_memory_channel[Removed](math.inf)
    services, snapshots = shell.services, shell.snapshots
    invalidator = Invalidator(snapshots, shell.tree, services.indices, operations, shell.blocks.forget)
    shell.pool.when_ahead = operations.pusher.offer
    async with services.catalog.reader.changes() as feed, background_nursery() as nursery:
        nursery.start_soon(partial(snapshots.follow, feed, sender, settles=True))
        nursery.start_soon(invalidator.run, receiver)
        nursery.start_soon(partial(operations.pusher.run, shell.blocks.push, heartbeats=heartbeats))
        if isinstance(operations, ReadWriteOperations):
            nursery.start_soon(operations.refused.drop)
        yield


async def _serve(
    shell: _Shell,
    operations: Operations,
    mountpoint: Path,
    options: MountOptions,
    readiness: Readiness,
    written: Written | None,
) -> None:
    """Serve until the end; then commit what is left. Raises Unavailable if that fails."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals, ExitStack() as mounting:
        ending = Ending(written, pyfuse3.terminate)
        device = mounting.enter_context(fuse_mount(mountpoint, _fuse_options(options)))
        shell.blocks.notifier = Notifier(device)
        shell.link.tell({"do": "device"}, cloned(device))
        front = _front_loop(mounting, device, options)
        session = os.dup(device) if front is None else front[1]
        try:
            pyfuse3.init(operations, f"/dev/fd/{session}", set(pyfuse3.default_options))
        except RuntimeError as exc:
            raise Unavailable(f"{mountpoint}: cannot be mounted (the reason is on the lines before)") from exc
        async with background_nursery() as nursery:
            nursery.start_soon(ending.on_signals, signals)
            try:
                # What follows the catalog talks to the kernel: it ends before the session does.
                async with _following(shell, operations, heartbeats=front is not None):
                    if front is not None:
                        nursery.start_soon(front[0].run, operations)
                    shell.link.tell({"do": "widen", "mountpoint": str(mountpoint)})
                    readiness.ready()
                    log.info("%s: mounted", mountpoint)
                    with ending.serving:
                        await pyfuse3.main()
            finally:
                readiness.stopping()
                mounting.close()
                pyfuse3.close(unmount=False)
                log.info("%s: unmounted", mountpoint)
            await ending.drain()


def _front_loop(mounting: ExitStack, device: int, options: MountOptions) -> tuple[FrontLoop, int] | None:
    """Return the loop to stand before pyfuse3 and the descriptor for that, if there shall and can be one."""
    if options.journal_dir is not None or not options.express:
        return None
    try:
        return mounting.enter_context(front_loop(device))
    except OSError as exc:
        log.warning("%s: reads go the slower way: %s", options.mountpoint, exc.strerror)
        return None


def _fuse_options(options: MountOptions) -> set[str]:
    chosen = {"default_permissions"}  # the kernel looks at modes
    chosen |= {"nosuid", "nodev", "fsname=datas3tfs", "subtype=datas3tfs"}
    if options.journal_dir is None:
        chosen.add("ro")
    elif _is_owners_alone(options):
        # It would change nothing, and after every create, rename and unlink the kernel would ask for the
        # attributes of the directory again before the next.
        chosen.discard("default_permissions")
    if options.allow_other:
        chosen.add("allow_other")
    return chosen


def _is_owners_alone(options: MountOptions) -> bool:
    """Say whether the kernel lets nobody into the mount but one user, who owns all and may do all to it."""
    owner, mounter = options.ownership, {os.getuid(), os.geteuid()}
    return not options.allow_other and mounter == {owner.uid} and not owner.umask & stat.S_IRWXU


def _stats(
    services: Services, pool: BlockPool, prefetcher: Prefetcher, mountpoint: Path, dataset: str | None
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
            "ahead_bytes": prefetcher.ahead,
            "counters": services.counters.snapshot(),
        }

    return stats
