"""`datas3tfs serve`: open everything, listen, answer until told to stop, finish what runs, end.

The first signal stops accepting, lets what runs finish for a while, and closes idle connections; the second
ends at once. Concurrency: hypercorn's connections and the sweeper are tasks of one nursery.
"""

from __future__ import annotations

import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio import serve

from datas3tfs.app.daemon import Readiness
from datas3tfs.app.services import Services, open_services
from datas3tfs.app.serving import build_application
from datas3tfs.config import Settings, read_private
from datas3tfs.engine.nurseries import background_nursery
from datas3tfs.engine.sweeper import sweeping
from datas3tfs.errors import Invalid, Unavailable

log = logging.getLogger(__name__)

_FINISH_SECONDS = 30.0  # for what runs when told to stop; what takes longer can be asked for again
_HEAD_SECONDS = 20  # for a request's head to arrive, and for an idle connection
_SILENT_SECONDS = 60  # for a client to take what is sent to it
_BACKLOG = 1024  # connections that may wait to be accepted; the kernel may allow fewer


async def serve_api(
    settings: Settings, readiness: Readiness, show: Callable[[str], None], *, sweeps: bool
) -> None:
    """Serve until SIGTERM or SIGINT; *show* is given the URL when it answers.

    Raises Invalid (settings, schema), Unavailable (the address is taken, Postgres is away)."""
    config = _config(settings)
    async with open_services(settings, settings.io_timeout) as services:
        await _check_schema(services)
        application: Any = build_application(services, settings)  # hypercorn has types of its own for ASGI
        async with _told_to_stop(readiness) as told, background_nursery() as background:
            if sweeps:
                catalog, stores = services.catalog, services.stores
                background.start_soon(sweeping, catalog.uploads, catalog.leases, catalog.graveyard, stores)
            run = partial(serve, application, config, shutdown_trigger=told.wait, mode="asgi")
            async with trio.open_nursery() as nursery:
                for url in await nursery.start(run):
                    show(url)
                readiness.ready()
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


class _Listening(Config):
    """hypercorn's settings, with sockets that do not wait for ever for a client that takes nothing."""

    def create_sockets(self) -> Sockets:
        """Bind. Raises Unavailable."""
        try:
            sockets = super().create_sockets()
        except OSError as exc:
            raise Unavailable(f"{self.bind[0]}: cannot listen there: {exc.strerror}") from exc
        for one in (*sockets.secure_sockets, *sockets.insecure_sockets):
            # Connections inherit it (tcp(7)); it covers a peer whose window stays closed, too.
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _SILENT_SECONDS * 1000)
        return sockets


def _config(settings: Settings) -> Config:
    host, port = settings.listen_at()
    config = _Listening()
    config.bind = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"]
    config.backlog = _BACKLOG
    config.alpn_protocols = ["http/1.1"]  # one connection is one request at a time: what is limited is known
    config.h2_max_concurrent_streams = 16  # for who insists without TLS
    config.keep_alive_timeout = _HEAD_SECONDS
    config.graceful_timeout = _FINISH_SECONDS
    config.include_server_header = False
    config.accesslog = None  # api/observing.py writes one
    config.errorlog = logging.getLogger("hypercorn.error")
    config.errorlog.setLevel(logging.WARNING)  # or it says where it listens, and to press Ctrl-C
    if settings.tls_cert is not None and settings.tls_key is not None:
        read_private(settings.tls_key)  # a key that others may read is none
        config.certfile, config.keyfile = str(settings.tls_cert), str(settings.tls_key)
        try:
            config.create_ssl_context()
        except (ssl.SSLError, OSError):
            raise Invalid(f"{settings.tls_cert}, {settings.tls_key}: not a certificate and its key") from None
    return config
