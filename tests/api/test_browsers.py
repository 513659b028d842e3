"""Web pages are kept out of a server that asks nobody for a token."""

import pytest

from datas3tfs.api.browsers import is_loopback, reason_to_refuse


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8765", "127.0.0.1:1", "127.8.9.1", "[::1]:8765", "LOCALHOST:1", "localhost."],
)
def test_names_of_this_machine_pass(host: str) -> None:
    assert reason_to_refuse({"host": host}, only_loopback=True) is None


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:8765",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "evil.example@127.0.0.1.nip.io",
        "10.0.0.1:8765",
        "[::2]:1",
        "[",
    ],
)
def test_other_names_do_not(host: str) -> None:
    assert reason_to_refuse({"host": host}, only_loopback=True)
    assert reason_to_refuse({}, only_loopback=True)


def test_where_others_can_connect_the_host_may_be_any() -> None:
    assert reason_to_refuse({"host": "data.example"}, only_loopback=False) is None


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"origin": "http://localhost:8765"}, True),
        ({"origin": "http://localhost:9999"}, False),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://["}, False),
        ({"origin": ""}, False),
    ],
)
@pytest.mark.parametrize("only_loopback", [True, False])
def test_pages_of_other_sites_do_not_pass(headers: dict[str, str], passes: bool, only_loopback: bool) -> None:
    reason = reason_to_refuse({"host": "localhost:8765", **headers}, only_loopback=only_loopback)
    assert (reason is None) == passes


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.255.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, is_local: bool) -> None:
    assert is_loopback(host) == is_local
