"""ports.ChangeFeed on Postgres: LISTEN, and polling for when LISTEN does not work.

LISTEN may fail silently (pgbouncer in transaction mode, a connection dead without a word), so it counts
only while it is proven: each poll sends a notification over another connection, and it must arrive on
ours. Then polls are rare, otherwise frequent enough to keep the port's promise on their own.
Both halves run in the subscription's own background task and never raise.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from datas3tfs.catalog.background import in_background
from datas3tfs.catalog.database import Database, Session
from datas3tfs.errors import Datas3tError
from datas3tfs.ports import ChangeFeed

_log = logging.getLogger(__name__)

CHANNEL = "datas3tfs"  # schema.sql notifies it

_POLL = """
    SELECT coalesce(md5(string_agg(id || ':' || version || ':' || name, ',' ORDER BY id)), '') AS fingerprint,
           pg_notify($1, $2) IS NULL
    FROM datasets
"""


class _Feed:
    """One subscription: what its two loops and its reader share."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._settings = database.settings
        self._changed = trio.Event()
        self._probe_channel = f"{CHANNEL}_probe_{secrets.token_hex(8)}"  # only we listen to it
        self._probe = ""  # the text last sent on it
        self._probe_heard = trio.Event()
        self._lost = trio.Event()  # set while there is no listening connection
        self._lost.set()
        self._away = False

    async def wait(self) -> None:
        """Return when something may have changed since the last return; see ports.ChangeFeed."""
        changed = self._changed
        await changed.wait()
        if self._changed is changed:
            self._changed = trio.Event()

    async def run(self, task_status: trio.TaskStatus[ChangeFeed]) -> None:
        """Listen and poll until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_listening)
            nursery.start_soon(self._keep_polling)
            task_status.started(self)

    async def _keep_listening(self) -> None:
        pause = self._settings.reconnect_first
        while True:
            try:
                async with self._database.listening([CHANNEL, self._probe_channel], self._heard) as lost:
                    self._lost = lost
                    pause = self._settings.reconnect_first
                    self._changed.set()  # what happened before we listened was not heard
                    await lost.wait()
            except Datas3tError as exc:
                _log.debug("not listening for changes: %s", exc)  # polling warns if Postgres is away
            await trio.sleep(pause)
            pause = min(pause * 2, self._settings.reconnect_last)

    def _heard(self, channel: str, text: str) -> None:
        if channel == CHANNEL:
            self._changed.set()
        elif text == self._probe:
            self._probe_heard.set()

    async def _keep_polling(self) -> None:
        known: str | None = None
        proven_at = trio.current_time()
        while True:
            started = trio.current_time()
            interval = self._settings.poll_unproven
            lost = self._lost
            fingerprint = await self._poll()
            if fingerprint is not None:
                if fingerprint != known:
                    self._changed.set()
                known = fingerprint
                if await self._proven(started + interval):
                    proven_at = trio.current_time()
                    interval = self._settings.poll_proven
                elif trio.current_time() > proven_at + self._settings.poll_proven:
                    proven_at = trio.current_time()
                    lost.set()  # deaf for long while Postgres answers: listen on a new connection
            if self._lost.is_set():  # perhaps just after it was proven: then nothing would wake us
                interval = self._settings.poll_unproven
            await self._sleep_until(started + interval)

    async def _poll(self) -> str | None:
        """Return the catalog's fingerprint and send a probe; None while Postgres is away."""
        self._probe, self._probe_heard = secrets.token_hex(8), trio.Event()

        async def work(session: Session) -> str:
            fingerprint: str = await session.value(_POLL, self._probe_channel, self._probe)
            return fingerprint

        try:
            fingerprint = await self._database.read("polling for changes", work)
        except Datas3tError as exc:
            if not self._away:
                self._away = True
                _log.warning("changes are not seen for now: %s", exc)
            return None
        if self._away:
            self._away = False
            _log.info("changes are seen again")
        return fingerprint

    async def _proven(self, deadline: float) -> bool:
        with trio.move_on_at(deadline):
            await self._probe_heard.wait()
        return self._probe_heard.is_set()

    async def _sleep_until(self, deadline: float) -> None:
        """Wait for the next poll's time, or for the listening connection to be lost if there is one."""
        with trio.move_on_at(deadline):
            if self._lost.is_set():
                await trio.sleep_forever()
            await self._lost.wait()


@asynccontextmanager
async def open_feed(database: Database) -> AsyncIterator[ChangeFeed]:
    """Subscribe for the length of the block; Postgres may be away."""
    async with in_background(_Feed(database).run) as feed:
        yield feed
