"""ports.Tokens on Postgres: who may use the HTTP API, by digests of their tokens. No state.

No token ever comes here, and no digest leaves: neither in an answer, nor in an error, nor in a log.
"""

from __future__ import annotations

from datas3tfs.catalog import rows
from datas3tfs.catalog.database import Database, Row, Session
from datas3tfs.core.model import Token
from datas3tfs.core.names import check_label
from datas3tfs.errors import Invalid, NotFound

_DIGEST_BYTES = 32  # SHA-256's

_ADD = "INSERT INTO api_tokens (name, digest, can_write, datasets) VALUES ($1, $2, $3, $4) RETURNING id"
_STANDS = "SELECT true FROM api_tokens WHERE id = $1"
_ALL = 'SELECT name, can_write, datasets, created_at FROM api_tokens ORDER BY name COLLATE "C"'
_FIND = "SELECT name, can_write, datasets, created_at FROM api_tokens WHERE digest = $1"
_LOCK = "SELECT id FROM api_tokens WHERE name = $1 FOR UPDATE"
_REMOVE = "DELETE FROM api_tokens WHERE id = $1"


class _Add:
    """The work of add(). Run again after a lost connection, it finds the row it may have committed."""

    def __init__(self, token: Token, digest: bytes) -> None:
        names = None if token.datasets is None else sorted(token.datasets)
        self._values = token.name, digest, token.can_write, names
        self._made: int | None = None

    async def __call__(self, session: Session) -> None:
        if self._made is None or not await session.value(_STANDS, self._made):
            self._made = await session.value(_ADD, *self._values)


class _Remove:
    """The work of remove(). Run again after a lost connection, it leaves a newer token of that name alone."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._removed: int | None = None

    async def __call__(self, session: Session) -> bool:
        """Say whether there was one."""
        found = await session.value(_LOCK, self._name)
        if self._removed is not None and found != self._removed:
            return True
        self._removed = found
        if found is not None:
            await session.value(_REMOVE, found)
        return found is not None


class PostgresTokens:
    """Who may use the HTTP API; see ports.Tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, token: Token, digest: bytes) -> None:
        """Let whoever knows what *digest* was made from in. Raises Conflict (name taken), Invalid."""
        check_label("token", token.name)
        for name in token.datasets or ():
            check_label("dataset", name)
        if len(digest) != _DIGEST_BYTES:
            raise Invalid(f"token {token.name}: a digest has {_DIGEST_BYTES} bytes")
        await self._database.change(f"token {token.name}", _Add(token, digest), repeat=True)

    async def all(self) -> list[Token]:
        """Return all tokens by name. Raises Corrupt."""

        async def work(session: Session) -> list[Row]:
            return await session.rows(_ALL)

        return [rows.token(row) for row in await self._database.read("tokens", work)]

    async def find(self, digest: bytes) -> Token | None:
        """Return whose digest this is; None if it is nobody's. Raises Corrupt."""

        async def work(session: Session) -> Row | None:
            return await session.row(_FIND, digest)

        row = await self._database.read("a token", work)
        return None if row is None else rows.token(row)

    async def remove(self, name: str) -> None:
        """Forget a token. Raises NotFound, Invalid (no name for a token)."""
        check_label("token", name)
        if not await self._database.change(f"token {name}", _Remove(name), repeat=True):
            raise NotFound(f"token {name}: there is none of this name")
