"""ports.Graveyard on Postgres: the list of objects to delete. No state but warnings given."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from datas3tfs.catalog import rows
from datas3tfs.catalog.database import Database, Row, Session
from datas3tfs.core.model import Doomed
from datas3tfs.errors import Corrupt

_log = logging.getLogger(__name__)

_DUE = """
    SELECT id, s3_bucket_id, object_key FROM objects_to_delete
    WHERE delete_after <= now() ORDER BY delete_after, id LIMIT $1
"""
_STRIKE = "DELETE FROM objects_to_delete WHERE id = ANY($1::bigint[])"


class PostgresGraveyard:
    """Objects that nothing refers to any more; see ports.Graveyard."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._warned: set[int] = set()  # ids of rows passed over, so as to say it once

    async def doomed(self, limit: int) -> list[Doomed]:
        """Return up to *limit* objects that are due; a row that names none is left out with a warning."""

        async def work(session: Session) -> list[Row]:
            return await session.rows(_DUE, limit)

        found = await self._database.read("objects to delete", work)
        return [item for item in map(self._checked, found) if item is not None]

    def _checked(self, row: Row) -> Doomed | None:
        try:
            return rows.doomed(row)
        except Corrupt as exc:
            if row["id"] not in self._warned:
                self._warned.add(row["id"])
                _log.warning("object to delete %d is passed over: %s", row["id"], exc)
            return None

    async def buried(self, ids: Sequence[int]) -> None:
        """Strike deleted objects off the list."""

        async def work(session: Session) -> None:
            await session.value(_STRIKE, list(ids))

        await self._database.change("objects to delete", work, repeat=True)
