"""What clients and operators are told of errors: the table is complete, nothing unexpected shows."""

import inspect
import json
import logging

import pytest
from starlette.exceptions import HTTPException

from datas3tfs import errors
from datas3tfs.api.problems import STATUSES, accepts_json, answer_error, answer_problem, status_of
from datas3tfs.errors import (
    Conflict,
    Corrupt,
    Datas3tError,
    Forbidden,
    Full,
    Invalid,
    NotFound,
    Unavailable,
)


def error_classes() -> list[type[Datas3tError]]:
    found = inspect.getmembers(errors, inspect.isclass)
    return [cls for _, cls in found if issubclass(cls, Datas3tError) and cls is not Datas3tError]


def test_every_branch_of_the_tree_has_exactly_one_status() -> None:
    assert set(STATUSES) == set(error_classes())
    for cls in error_classes():
        assert status_of(cls("what")) == STATUSES[cls]


@pytest.mark.parametrize(
    ("error", "status", "level"),
    [
        (NotFound("it"), 404, None),
        (Conflict("it"), 409, None),
        (Invalid("it"), 422, None),
        (Forbidden("it"), 403, None),
        (Corrupt("it"), 500, logging.ERROR),
        (Unavailable("it"), 503, logging.WARNING),
        (Full("it"), 503, logging.WARNING),
        (HTTPException(413, "it"), 413, None),
    ],
)
def test_a_problem_says_what_is_wrong_and_operators_hear_what_they_must(
    error: Exception, status: int, level: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    answer = answer_error(error, None)
    body = json.loads(bytes(answer.body))
    assert (answer.status_code, body["status"], body["detail"]) == (status, status, "it")
    assert answer.headers["content-type"] == "application/problem+json"
    assert ("retry-after" in answer.headers) == (status == 503)
    assert [record.levelno for record in caplog.records] == ([] if level is None else [level])


def test_a_bug_shows_to_the_operator_only(caplog: pytest.LogCaptureFixture) -> None:
    answer = answer_error(KeyError("hunter2"), None)
    assert answer.status_code == 500
    assert b"hunter2" not in bytes(answer.body)
    assert "hunter2" in caplog.text
    caplog.clear()
    mixed = answer_error(ExceptionGroup("several", [NotFound("it"), ValueError("hunter2")]), None)
    assert mixed.status_code == 500
    assert b"hunter2" not in bytes(mixed.body)
    caplog.clear()


def test_of_a_group_of_our_errors_the_first_counts() -> None:
    group = ExceptionGroup("several", [ExceptionGroup("inner", [NotFound("it")]), Conflict("that")])
    assert answer_error(group, None).status_code == 404


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        (None, True),
        ("", True),
        ("*/*", True),
        ("application/*;q=0.1", True),
        ("text/html, application/json", True),
        ("application/problem+json", True),
        ("APPLICATION/JSON", True),
        ("text/plain", False),
        ("text/*", False),
        ("application/xml", False),
        ("application/json;q=0, text/plain", False),
        ("application/json;q=0.000", False),
        (";;;,", False),
    ],
)
def test_json_unless_the_client_excludes_it(accept: str | None, is_json: bool) -> None:
    assert accepts_json(accept) == is_json
    answer = answer_problem(404, "not here", accept)
    if is_json:
        assert json.loads(bytes(answer.body))["title"] == "Not Found"
    else:
        assert bytes(answer.body) == b"not here\n"
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_detail_drives_no_terminal_and_has_an_end() -> None:
    answer = answer_problem(404, "\x1b[2J" + "x" * 10_000, "text/plain")
    assert b"\x1b" not in bytes(answer.body)
    assert len(bytes(answer.body)) < 3000
