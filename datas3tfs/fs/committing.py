"""Commits that a request waits for, and what the one that `datas3tfs flush` asked for has failed of."""

from __future__ import annotations

from collections.abc import Awaitable

from datas3tfs.engine.committer import Committer
from datas3tfs.errors import Datas3tError, Full, Unavailable
from datas3tfs.fs.xattrs import FLUSH


async def committing(work: Awaitable[None]) -> None:
    """Await *work*; whatever a commit fails of is an input/output error to who asked for it."""
    try:
        await work
    except (Full, Unavailable):
        raise
    except Datas3tError as exc:
        raise Unavailable(str(exc)) from exc


class Flush:
    """The commit of all that is closed. An errno does not say why it failed: an attribute does."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer
        self._problem: str | None = None

    async def __call__(self) -> None:
        """Commit. Raises Unavailable."""
        try:
            await committing(self._committer.commit_closed())
        except Unavailable as exc:
            self._problem = str(exc)
            raise
        self._problem = None

    def xattrs(self) -> dict[str, str]:
        """Return what the root says of the last one, if it has failed."""
        return {} if self._problem is None else {FLUSH: self._problem}
