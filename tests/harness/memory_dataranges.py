"""ports.Dataranges and ports.Tokens in memory: parts of the catalog's twin.

No method waits but at trio's checkpoint, so each is one transaction.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import trio

from datas3tfs.core.model import BucketId, Datarange, DatarangeId, DatasetId, Token, UploadId
from datas3tfs.core.names import check_label, printable
from datas3tfs.core.spans import Span
from datas3tfs.errors import Conflict, Invalid, NotFound
from tests.harness.memory_state import MemoryState, check_keys, check_size


class MemoryDataranges:
    """See ports.Dataranges."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    async def handed_out(self, bucket_id: BucketId, data_keys: Sequence[str]) -> set[str]:
        """Return which of *data_keys* were ever given to an upload, or adopted."""
        await trio.lowlevel.checkpoint()
        return {key for key in data_keys if (bucket_id, key) in self._state.used_names}

    async def adopt(
        self, dataset_id: DatasetId, keys: Span, data_key: str, index_key: str, size: int
    ) -> Datarange:
        """Commit objects that lie in the dataset's bucket already. Raises Conflict, NotFound, Invalid."""
        await trio.lowlevel.checkpoint()
        check_keys(keys, "adopted")
        check_size(size)
        for key in (data_key, index_key):
            if not 0 < len(key.encode("utf-8", "surrogatepass")) <= 1024 or not key.isprintable():
                raise Invalid(f"{printable(key)}: not a valid object key")
        state = self._state
        dataset = state.known_dataset(dataset_id)
        if (dataset.bucket.id, data_key) in state.used_names:
            raise Conflict(f"{data_key}: this catalog has handed it out itself")
        if any(keys.intersection(taken) for taken in state.claims(dataset_id)):
            what = f"keys {keys.start} to {keys.last} of dataset {dataset_id}"
            raise Conflict(f"{what}: some of these keys are taken already")
        state.used_names.add((dataset.bucket.id, data_key))
        state.touch(dataset)
        made = Datarange(
            DatarangeId(next(state.ids)), dataset_id, keys, data_key, index_key, size, dataset.updated_ns
        )
        state.committed[UploadId(-made.id)] = made
        return made

    async def remove(self, dataset_id: DatasetId, keys: Span) -> Datarange:
        """Remove the datarange of exactly *keys*; return it. Raises NotFound."""
        await trio.lowlevel.checkpoint()
        self._state.known_dataset(dataset_id)
        for datarange in self._state.dataranges_of(dataset_id):
            if datarange.keys == keys:
                self._take_away([datarange])
                return datarange
        what = f"keys {keys.start} to {keys.last} of dataset {dataset_id}"
        raise NotFound(f"{what}: there is no datarange of exactly these keys")

    async def clear(self, dataset_id: DatasetId) -> int:
        """Remove all dataranges of a dataset; return how many. Raises NotFound."""
        await trio.lowlevel.checkpoint()
        self._state.known_dataset(dataset_id)
        gone = self._state.dataranges_of(dataset_id)
        self._take_away(gone)
        return len(gone)

    def _take_away(self, gone: list[Datarange]) -> None:
        self._state.take_away(gone)
        for datarange in gone:
            self._state.doom_datarange(datarange)


class MemoryTokens:
    """See ports.Tokens."""

    def __init__(self) -> None:
        self._by_digest: dict[bytes, Token] = {}

    async def add(self, token: Token, digest: bytes) -> None:
        """Let whoever knows what *digest* was made from in. Raises Conflict, Invalid."""
        await trio.lowlevel.checkpoint()
        check_label("token", token.name)
        for name in token.datasets or ():
            check_label("dataset", name)
        if len(digest) != 32:
            raise Invalid(f"token {token.name}: a digest has 32 bytes")
        if digest in self._by_digest or any(token.name == one.name for one in self._by_digest.values()):
            raise Conflict(f"token {token.name}: a token of this name exists already")
        self._by_digest[digest] = replace(token, created_ns=time.time_ns())

    async def all(self) -> list[Token]:
        """Return all tokens by name."""
        await trio.lowlevel.checkpoint()
        return sorted(self._by_digest.values(), key=lambda token: token.name)

    async def find(self, digest: bytes) -> Token | None:
        """Return whose digest this is."""
        await trio.lowlevel.checkpoint()
        return self._by_digest.get(digest)

    async def remove(self, name: str) -> None:
        """Forget a token. Raises NotFound."""
        await trio.lowlevel.checkpoint()
        for digest, token in list(self._by_digest.items()):
            if token.name == name:
                del self._by_digest[digest]
                return
        raise NotFound(f"token {printable(name)}: there is none of this name")
