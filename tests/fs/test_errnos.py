"""What callers and operators are told of errors: the table is complete, the log is not flooded."""

import errno
import inspect
import logging

import pyfuse3
import pytest
import trio

from datas3tfs import errors
from datas3tfs.errors import Conflict, Corrupt, Datas3tError, Forbidden, Full, Invalid, NotFound, Unavailable
from datas3tfs.fs import errnos
from datas3tfs.fs.errnos import ERRNOS, Complaints, answers_errno, errno_of


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock for the test to set, and nothing logged before."""
    clock = Clock()
    monkeypatch.setattr(errnos, "time", clock)
    monkeypatch.setattr(errnos, "_complaints", Complaints())
    return clock


class Shell:
    """Stands for the class of handlers."""

    @answers_errno
    async def handle(self, result: int | BaseException) -> int:
        await trio.lowlevel.checkpoint()
        if isinstance(result, BaseException):
            raise result
        return result


def error_classes() -> list[type[Datas3tError]]:
    found = inspect.getmembers(errors, inspect.isclass)
    return [cls for _, cls in found if issubclass(cls, Datas3tError) and cls is not Datas3tError]


def test_every_branch_of_the_tree_has_exactly_one_errno() -> None:
    assert set(ERRNOS) == set(error_classes())
    assert set(Datas3tError.__subclasses__()) <= set(error_classes())
    for cls in error_classes():
        assert errno_of(cls("what")) == ERRNOS[cls]
        assert ERRNOS[cls] in errno.errorcode


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NotFound, errno.ENOENT),
        (Conflict, errno.EEXIST),
        (Invalid, errno.EINVAL),
        (Corrupt, errno.EIO),
        (Unavailable, errno.EIO),
        (Forbidden, errno.EPERM),
        (Full, errno.ENOSPC),
    ],
)
async def test_a_handler_answers_with_the_errno(error: type[Datas3tError], expected: int) -> None:
    class Finer(error):  # type: ignore[misc, valid-type]  # a class made of a parameter
        pass

    for raised in (error("what"), Finer("what")):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await Shell().handle(raised)
        assert caught.value.errno == expected


async def test_results_and_errnos_pass_through(caplog: pytest.LogCaptureFixture) -> None:
    assert await Shell().handle(7) == 7
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await Shell().handle(pyfuse3.FUSEError(errno.ENOSYS))
    assert caught.value.errno == errno.ENOSYS
    assert not caplog.records


async def test_only_what_ends_in_eio_or_enospc_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    for error in error_classes():
        with pytest.raises(pyfuse3.FUSEError):
            await Shell().handle(error(f"a case of {error.__name__}"))
    assert sorted(record.getMessage() for record in caplog.records) == [
        "a case of Corrupt",
        "a case of Full",
        "a case of Unavailable",
    ]
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


async def test_the_same_line_is_logged_once_a_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(message: str) -> None:
        with pytest.raises(pyfuse3.FUSEError):
            await Shell().handle(Corrupt(message))

    for clock.now in (0.0, 0.1, 59.9, 60.0, 100.0, 119.9, 120.0):
        await fail("this")
        await fail(f"that at {clock.now}")
    lines = [record.getMessage() for record in caplog.records]
    assert lines.count("this") == 3
    assert len(lines) == 3 + 7


def test_the_lines_remembered_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    for number in range(10_000):
        complaints.log(f"line {number}")
    assert len(caplog.records) == 10_000
    assert len(complaints._seen) <= 1024


@pytest.mark.parametrize(
    "bug",
    [
        KeyError("key"),
        OSError(errno.ENOENT, "not an answer to the caller"),
        StopAsyncIteration(),
        AssertionError(),
        ExceptionGroup("several", [Corrupt("one"), ValueError("two")]),
    ],
)
async def test_an_unexpected_failure_is_eio_with_a_traceback(
    bug: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await Shell().handle(bug)
    assert caught.value.errno == errno.EIO
    (record,) = caplog.records
    assert "handle" in record.getMessage()
    assert record.exc_info
    assert record.exc_info[1] is bug
    assert await Shell().handle(1) == 1


async def test_an_error_of_no_branch_is_eio(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await Shell().handle(Datas3tError("nobody should raise this"))
    assert caught.value.errno == errno.EIO
    assert "nobody should raise this" in caplog.text


async def test_cancellation_is_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await Shell().handle(1)
    assert scope.cancelled_caught
    assert not caplog.records
