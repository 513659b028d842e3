"""`datas3tfs serve`: open everything, listen, answer until told to stop, finish what runs, end.

The first signal stops accepting, lets what runs finish for a while, and closes idle connections; the second
ends at once. Concurrency: connections and the sweeper are tasks of one nursery.
"""

from __future__ import annotations

import logging
import signal
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from datas3tfs.app.daemon import Readiness
from datas3tfs.app.listening import accept, bind, url_of
from datas3tfs.app.services import Services, open_services
from datas3tfs.app.serving import build_application
from datas3tfs.config import Settings, read_private
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.engine.sweeper import sweeping
from datas3tfs.errors import Invalid

log = logging.getLogger(__name__)


async def serve_api(
    settings: Settings, readiness: Readiness, show: Callable[[str], None], *, sweeps: bool
) -> None:
    """Serve until SIGTERM or SIGINT; *show* is given the URL when it answers.

    Raises Invalid (settings, schema), Unavailable (the address is taken, Postgres is away)."""
    tls = _tls(settings)
    async with open_services(settings, settings.io_timeout) as services:
        await _check_schema(services)
        application = build_application(services, settings)
        with bind(*settings.listen_at()) as listener:
            async with _told_to_stop(readiness) as told, background_nursery() as background:
                if sweeps:
                    catalog = services.catalog
                    swept = (catalog.uploads, catalog.leases, catalog.graveyard, services.stores)
                    background.start_soon(sweeping, *swept)
                show(url_of(listener, tls))  # whoever connects waits until it is accepted
                readiness.ready()
                await accept(listener, tls, application, told.wait)
    log.info("stopped")


async def _check_schema(services: Services) -> None:
    """Ask for what only the right schema has, so that what is wrong is said at once. Raises Invalid,
    Unavailable."""
    await services.catalog.registry.installation()
    await services.catalog.tokens.all()


@asynccontextmanager
async def _told_to_stop(readiness: Readiness) -> AsyncIterator[trio.Event]:
    """Set the event at the first signal, cancel the block at the second."""
    told = trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                async for number in signals:
                    log.info("stopping on %s", signal.Signals(number).name)
                    if told.is_set():
                        nursery.cancel_scope.cancel()
                    told.set()
                    readiness.stopping()

            nursery.start_soon(watch)
            yield told
            nursery.cancel_scope.cancel()


def _tls(settings: Settings) -> ssl.SSLContext | None:
    """Return what TLS needs, None for plain HTTP. Raises Invalid (the files)."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    read_private(settings.tls_key)  # a key that others may read is none
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (ssl.SSLError, OSError):
        raise Invalid(f"{settings.tls_cert}, {settings.tls_key}: not a certificate and its key") from None
    return context
