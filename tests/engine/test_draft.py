"""The content of an uncommitted file, against a bytearray, wherever it is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datas3tfs.core.checksums import crc32c
from datas3tfs.core.journalrecords import Accepted, EntryId
from datas3tfs.core.model import DatasetId
from datas3tfs.engine import draft as drafts
from datas3tfs.engine.draft import Draft
from datas3tfs.errors import Corrupt, Forbidden, Full, NotFound, Unavailable
from datas3tfs.journal.store import DiskJournal, open_journal
from tests.harness.writing import Gate, GatedJournal

ONE = EntryId(1)


@contextmanager
def opened(gate: Gate | None = None) -> Iterator[GatedJournal]:
    with tempfile.TemporaryDirectory() as directory, open_journal(Path(directory), str(uuid4())) as disk:
        assert list(disk.records()) == []
        store = GatedJournal(disk, gate or Gate())
        yield store
        store.close()


def put_to_rest(store: GatedJournal | DiskJournal, draft: Draft) -> None:
    content = draft.inline_content()
    if content is not None:
        record = Accepted(ONE, DatasetId(1), "d", "n", 0, len(content), crc32c(content), content)
        draft.rest_in_log(store.append(record))


LIMIT = 100  # in place of 128 KiB: the same code, with examples that can be read
STEPS = st.one_of(
    st.tuples(st.just("write"), st.integers(0, 250), st.binary(max_size=120)),
    st.tuples(st.just("append"), st.just(0), st.binary(max_size=60)),
    st.tuples(st.just("truncate"), st.integers(0, 300), st.just(b"")),
    st.tuples(st.just("rest"), st.just(0), st.just(b"")),
    st.tuples(st.just("learn"), st.just(0), st.just(b"")),
    st.tuples(st.just("full"), st.integers(0, 250), st.binary(min_size=1, max_size=120)),
    st.tuples(st.just("reopen"), st.just(0), st.just(b"")),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=25))
def test_it_behaves_as_a_bytearray(steps: list[tuple[str, int, bytes]]) -> None:
    gate, model = Gate(), bytearray()
    with pytest.MonkeyPatch.context() as patch, opened(gate) as store:
        patch.setattr(drafts, "INLINE_LIMIT", LIMIT)
        patch.setattr(drafts, "_PIECE", 64)
        draft = Draft(store, ONE)
        for step, at, data in steps:
            version = draft.version
            if step == "write":
                draft.write(at, data)
                grown(model, at, data)
            elif step == "append":
                grown(model, draft.size, data)
                draft.write(draft.size, data)
            elif step == "truncate":
                draft.truncate(at)
                model[at:] = b""
                model.extend(bytes(at - len(model)))
            elif step == "rest":
                put_to_rest(store, draft)
            elif step == "learn":
                draft.learn_crc(draft.checksum())
            elif step == "full":
                if not draft.is_own_file or at < draft.size:
                    continue  # what was overwritten half is anybody's guess
                half_written(store, draft, at, data)
            elif step == "reopen" and draft.is_own_file:
                known = draft.known_crc()
                draft = Draft.in_file(store, ONE, draft.size)
                if known is not None:
                    draft.learn_crc(known)
            if step == "truncate" or (data and step in ("write", "append")):
                assert draft.version > version, "a change is a change"
            assert draft.size == len(model)
            assert draft.read(0, 1000) == model
            assert draft.read(at, 50) == model[at : at + 50]
            assert b"".join(draft.pieces()) == model
            assert draft.checksum() == crc32c(bytes(model))
            if draft.is_own_file:
                assert draft.known_crc() in (None, crc32c(bytes(model)))
                assert draft.file_bytes == len(model)
        draft.close()
        draft.close()
        assert store.contents() == []


def grown(model: bytearray, at: int, data: bytes) -> None:
    if data and at > len(model):
        model.extend(bytes(at - len(model)))
    model[at : at + len(data)] = data


def half_written(store: GatedJournal, draft: Draft, at: int, data: bytes) -> None:
    """Let a write fail when half of it has been written, as on a full disk."""
    own = store.open_content(ONE)
    own.write(at, data[: (len(data) + 1) // 2])
    own.close()


def test_content_written_from_begin_to_end_has_its_checksum_without_being_read() -> None:
    with opened() as store:
        draft = Draft(store, ONE)
        pieces = [bytes([number]) * 100_000 for number in range(5)]
        for number, piece in enumerate(pieces):
            draft.write(number * 100_000, piece)
        assert draft.known_crc() == crc32c(b"".join(pieces))
        draft.write(7, b"x")
        assert draft.known_crc() is None, "it is not what was read any more"
        draft.truncate(0)
        assert draft.known_crc() == crc32c(b"")
        draft.close()


def test_a_write_that_fails_half_way_leaves_no_checksum_that_is_wrong() -> None:
    gate = Gate()
    with opened(gate) as store:
        draft = Draft(store, ONE)
        draft.write(0, bytes(200_000))
        gate.fail("content.write", 1, Full("the disk is full"), after=True)
        with pytest.raises(Full):
            draft.write(1000, b"x" * 1000)
        assert draft.known_crc() in (None, draft.checksum())
        gate.fail("content.truncate", 1, Unavailable("disk"), after=True)
        with pytest.raises(Unavailable):
            draft.truncate(500)
        assert draft.size in (500, 200_000)
        draft.close()


def test_a_file_that_cannot_be_made_leaves_the_content_where_it_was() -> None:
    gate = Gate()
    with opened(gate) as store:
        draft = Draft(store, ONE)
        draft.write(0, b"content")
        for failing in ("create_content", "content.write"):
            gate.fail(failing, 1, Full("the disk is full"))
            with pytest.raises(Full):
                draft.write(7, bytes(200_000))
            assert draft.read(0, 100) == b"content"
            assert store.contents() == []
        draft.write(7, bytes(200_000))
        assert draft.read(0, 1 << 20) == b"content" + bytes(200_000)
        draft.close()


def test_content_stays_readable_when_it_is_taken_off_the_disk() -> None:
    with opened() as store:
        small, large = Draft(store, ONE), Draft(store, EntryId(2))
        small.write(0, b"small")
        put_to_rest(store, small)
        large.write(0, b"large" * 50_000)
        for draft, content in ((small, b"small"), (large, b"large" * 50_000)):
            draft.detach()
            assert draft.read(0, 1 << 20) == content
            draft.write(0, b"L")
            assert draft.read(0, 2) == b"L" + content[1:2]
        assert store.contents() == []
        # One that has grown since is not left behind either.
        small.write(0, bytes(200_000))
        small.close()
        large.close()
        assert store.contents() == []


def test_the_log_may_move_content_but_not_what_was_changed_since() -> None:
    with opened() as store:
        draft = Draft(store, ONE)
        draft.write(0, b"old")
        place = store.append(Accepted(ONE, DatasetId(1), "d", "n", 0, 3, crc32c(b"old"), b"old"))
        draft.rest_in_log(place)
        moved = store.append(Accepted(ONE, DatasetId(1), "d", "n", 0, 3, crc32c(b"old"), b"old"))
        draft.moved_in_log(place, moved)
        store.drop(place)
        assert draft.read(0, 3) == b"old"
        draft.write(0, b"new")
        draft.moved_in_log(moved, place)
        assert draft.read(0, 3) == b"new"


def test_what_is_missing_or_short_is_noticed() -> None:
    with opened() as store:
        with pytest.raises(NotFound):
            Draft.in_file(store, ONE, 3)
        draft = Draft(store, ONE)
        draft.write(0, bytes(200_000))
        with pytest.raises(Corrupt):
            Draft.in_file(store, ONE, 200_001)
        again = Draft.in_file(store, ONE, 200_000)
        store.open_content(ONE).truncate(1000)
        with pytest.raises(Corrupt):
            again.checksum()
        assert Draft.in_file(store, ONE, None).size == 1000
        draft.close()


def test_nothing_grows_beyond_what_an_index_can_say() -> None:
    with opened() as store:
        draft = Draft(store, ONE)
        with pytest.raises(Forbidden):
            draft.write(2**48 - 1, b"x")
        with pytest.raises(Forbidden):
            draft.truncate(2**48)
        assert draft.size == 0
        with suppress(Unavailable):  # this disk may not know files as large
            draft.truncate(2**40)
            assert draft.size == 2**40
        draft.close()
