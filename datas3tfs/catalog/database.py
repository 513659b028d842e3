"""Operations on Postgres: a lazy pool under trio, a time limit, retries, the product's errors.

Not for what the operations do (reader, registry, uploads, graveyard). A piece of work is an
asyncio-flavoured function of a Session; it runs inside the asyncio loop and must not touch trio. Any
number of tasks may call read() and change() at once; there is no state but the pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, cast

import asyncpg
import trio

from datas3tfs.catalog.background import AsyncioLoop
from datas3tfs.catalog.connecting import Connection, PooledConnection, connect, in_transaction
from datas3tfs.catalog.schema import check_version
from datas3tfs.catalog.settings import CatalogSettings
from datas3tfs.catalog.translate import CLIENT_ERRORS, ConnectionLost, is_loss, translated
from datas3tfs.core.counters import Counters
from datas3tfs.errors import Datas3tError, Unavailable

T = TypeVar("T")
Row = asyncpg.Record

_CLOSE_LIMIT = 2.0  # seconds for saying goodbye to Postgres
_COLLISIONS = 5  # attempts when Postgres picks us as the victim of a deadlock or a serialization failure


class Session:
    """One connection as a piece of work sees it: queries, counted."""

    def __init__(self, connection: PooledConnection, counters: Counters) -> None:
        self._connection = connection
        self._counters = counters

    async def rows(self, query: str, *args: object) -> list[Row]:
        """Return all rows of *query*."""
        self._counters.add("sql.query")
        return await self._connection.fetch(query, *args)

    async def row(self, query: str, *args: object) -> Row | None:
        """Return the first row of *query*, None if there is none."""
        self._counters.add("sql.query")
        return await self._connection.fetchrow(query, *args)

    async def value(self, query: str, *args: object) -> Any:
        """Return the first column of the first row of *query*, None if there is none."""
        self._counters.add("sql.query")
        return await self._connection.fetchval(query, *args)


Work = Callable[[Session], Awaitable[T]]


class Database:
    """One Postgres database, which may be away when this is made and at any time later."""

    def __init__(self, db_url: str, loop: AsyncioLoop, counters: Counters, settings: CatalogSettings) -> None:
        self.settings = settings
        self._url = db_url
        self._loop = loop
        self._counters = counters
        self._pool: asyncpg.Pool[Row] | None = None

    async def read(self, what: str, work: Work[T]) -> T:
        """Run *work* without a transaction; once more if a pooled connection turns out to be broken.

        *what* begins the message of every error.
        """
        return await self._within_limit(what, work, transaction=False, repeat=True)

    async def change(self, what: str, work: Work[T], *, repeat: bool) -> T:
        """Run *work* in a transaction; again if it collides with another.

        *repeat* says that work may also be run again after a lost connection, that is when nobody knows
        whether it was committed: it must recognise what it did itself.
        """
        return await self._within_limit(what, work, transaction=True, repeat=repeat)

    async def _within_limit(self, what: str, work: Work[T], *, transaction: bool, repeat: bool) -> T:
        limit = self.settings.operation_limit
        with trio.move_on_after(limit), translated(what):
            return await self._until_done(work, transaction=transaction, repeat=repeat)
        await self._distrust_connections()
        raise Unavailable(f"{what}: Postgres did not answer within {limit:g} s")

    async def _until_done(self, work: Work[T], *, transaction: bool, repeat: bool) -> T:
        collisions = losses = 0
        while True:
            try:
                return await self._loop.run_aio_coroutine(self._once(work, transaction=transaction))
            except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError):
                collisions += 1
                if collisions == _COLLISIONS:
                    raise
            except ConnectionLost:
                await self._distrust_connections()
                losses += 1
                if not repeat or losses == 2:
                    raise
            self._counters.add("sql.retry")

    async def _once(self, work: Work[T], *, transaction: bool) -> T:
        if self._pool is None:
            self._pool = self._new_pool()
            await self._pool
        async with self._pool.acquire() as connection:
            try:
                session = Session(connection, self._counters)
                if transaction:
                    return await in_transaction(connection, lambda: work(session))
                return await work(session)
            except (OSError, asyncpg.PostgresError, *CLIENT_ERRORS) as exc:
                if isinstance(exc, asyncpg.PostgresError) and not is_loss(exc):
                    raise
                _hang_up(connection)
                raise ConnectionLost from exc
            except Datas3tError:
                raise
            except BaseException:
                # Cancelled in the middle of a query. Hanging up at once keeps the caller's deadline:
                # asyncpg would ask the server to cancel, and wait for it.
                _hang_up(connection)
                raise

    def _new_pool(self) -> asyncpg.Pool[Row]:
        # min_size 0: the pool connects when used, never when made.
        pool: asyncpg.Pool[Row] = asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=self.settings.connections,
            timeout=self.settings.operation_limit,
            connect=cast("Any", connect),  # the stubs want every option spelt out
            init=_checked,
            reset=_nothing_to_reset,
        )
        return pool

    async def _distrust_connections(self) -> None:
        if self._pool is not None:
            await self._loop.run_aio_coroutine(self._pool.expire_connections())

    @asynccontextmanager
    async def listening(
        self, channels: Sequence[str], heard: Callable[[str, str], None]
    ) -> AsyncIterator[trio.Event]:
        """LISTEN on a connection of its own; gives an event that is set when that connection is lost.

        *heard* gets channel and payload of each notification, and must return at once.
        """
        lost = trio.Event()
        connection = await self._listener(channels, heard, lost)
        try:
            yield lost
        finally:
            connection.terminate()

    async def _listener(
        self, channels: Sequence[str], heard: Callable[[str, str], None], lost: trio.Event
    ) -> Connection:
        limit = self.settings.operation_limit

        async def start() -> Connection:
            connection = await connect(self._url, timeout=limit)
            try:
                connection.add_termination_listener(lambda _: lost.set())
                for channel in channels:
                    await connection.add_listener(channel, lambda _c, _pid, *what: heard(*what))
            except BaseException:
                connection.terminate()
                raise
            return connection

        with trio.move_on_after(limit), translated("listening for changes"):
            return await self._loop.run_aio_coroutine(start())
        raise Unavailable(f"listening for changes: Postgres did not answer within {limit:g} s")

    async def close(self) -> None:
        """Close all connections, without waiting long for Postgres."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        with trio.CancelScope(shield=True):
            with trio.move_on_after(_CLOSE_LIMIT):
                await self._loop.run_aio_coroutine(pool.close())
            pool.terminate()
            await self._loop.synchronize()


async def _checked(connection: Connection) -> None:
    """Check a new connection; cancelled, hang up, before asyncpg takes its leave and waits for an answer."""
    try:
        await check_version(connection)
    except asyncio.CancelledError:
        connection.terminate()
        raise


def _hang_up(connection: PooledConnection) -> None:
    with suppress(asyncpg.InterfaceError):  # the pool has taken it back: it was closed already
        connection.terminate()


async def _nothing_to_reset(connection: object) -> None:
    """Spare the round trip of asyncpg's reset: no work changes the state of its session."""
