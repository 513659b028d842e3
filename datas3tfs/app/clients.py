"""The client that commands use: of a server if one is set, otherwise of one inside this process.

The latter is the same API over the database, called without a network; bulk bytes go to S3 directly in both
cases. Everything it takes is loaded when it is asked for: the command line starts without.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from datas3tfs.client import AsyncClient, Tuning
from datas3tfs.config import Settings, ledgers_dir

_SWEEP_SECONDS = 20.0  # the rest is left to the next command
_INSIDE = "http://in-process"


@asynccontextmanager
async def open_client(
    settings: Settings, *, needs_key: bool = True, writes: bool = False
) -> AsyncIterator[AsyncClient]:
    """Open a client. Without a server *needs_key* says whether the encryption key must be set. One that
    *writes* notes its uploads while they are under way, and first frees the keys that writers hold who have
    died: commands on this machine; without a server also all others, once they have expired.

    Raises Invalid (settings), Unavailable.
    """
    if settings.server_url is None:
        async with _open_inside(settings, needs_key, writes) as client:
            yield client
        return
    url = settings.server_url
    token = None if settings.server_token is None else settings.server_token.get_secret_value()
    tuning = Tuning(patience=max(Tuning().patience, settings.io_timeout))
    ledger = ledgers_dir() / re.sub(r"[^A-Za-z0-9.-]+", "_", url)
    ca_file = settings.server_ca_file
    async with AsyncClient(url, token=token, ca_file=ca_file, tuning=tuning, ledger=ledger) as client:
        if writes:
            await client.give_up_dead()
        yield client


@asynccontextmanager
async def _open_inside(settings: Settings, needs_key: bool, writes: bool) -> AsyncIterator[AsyncClient]:
    from httpx import ASGITransport

    from datas3tfs.app.services import open_services
    from datas3tfs.app.serving import build_application  # the web framework takes half a second to load
    from datas3tfs.engine.sweeper import sweep

    async with open_services(settings, needs_key=needs_key) as services:
        catalog, ledger = services.catalog, None
        if writes:
            ledger = ledgers_dir() / await catalog.registry.installation()
            with trio.move_on_after(_SWEEP_SECONDS):
                await sweep(catalog.uploads, catalog.leases, catalog.graveyard, services.stores)
        # What fails in there has been tried often enough.
        tuning = Tuning(patience=settings.io_timeout, server_patience=0.0)
        transport = ASGITransport(app=build_application(services, settings, trusted=True))
        async with AsyncClient(_INSIDE, tuning=tuning, ledger=ledger, transport=transport) as client:
            if writes:
                await client.give_up_dead()
            yield client
