"""Which endpoints may be registered over HTTP: none that lets a stranger reach what only the server can."""

import ipaddress
import socket
from typing import Any

import pytest
import trio

from datas3tfs.api.endpoints import Endpoint, is_named, is_special, parse_endpoint, refuse_special
from datas3tfs.errors import Forbidden, Invalid


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://s3.test:9000", Endpoint("s3.test", 9000)),
        ("https://S3.Test", Endpoint("s3.test", 443)),
        ("http://s3.test./", Endpoint("s3.test", 80)),
        ("http://[::1]:9000", Endpoint("::1", 9000)),
        ("http://127.0.0.1:80/prefix", Endpoint("127.0.0.1", 80)),
        ("HTTP://s3.test:0", Endpoint("s3.test", 0)),
    ],
)
def test_an_endpoint_is_host_and_port(url: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(url) == endpoint


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://",
        "http:///x",
        "ftp://s3.test",
        "file:///etc/passwd",
        "gopher://s3.test:70/_x",
        "http://user:hunter2@s3.test",
        "http://allowed.test@169.254.169.254",
        "http://s3.test#@169.254.169.254",
        "http://s3.test/#x",
        "http://s3.test/?x=y",
        "http://s3.test?",
        "http://s3.test/#",
        "http://s3.test\\@evil.test",
        "http://s3.test:99999",
        "http://s3.test:x",
        "http://s3 .test",
        "http://s3.test\r\nHost: evil",
        "http://s3.test\x00",
        "http://ſ3.test",
        "http://１２７.0.0.1",
        "http://[::1",
    ],
)
def test_what_no_endpoint_needs_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_endpoint(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("allowed", "named"),
    [
        (["s3.test"], True),
        (["S3.TEST:9000"], True),
        (["s3.test:9001"], False),
        (["3.test"], False),
        (["evil.s3.test"], False),
        (["*"], False),  # which is no name
        ([], False),
    ],
)
def test_the_operator_names_hosts_or_hosts_with_ports(allowed: list[str], named: bool) -> None:
    assert is_named(Endpoint("s3.test", 9000), allowed) == named


def test_addresses_of_ipv6_are_named_with_brackets_or_without() -> None:
    endpoint = Endpoint("::1", 9000)
    assert is_named(endpoint, ["[::1]:9000"])
    assert is_named(endpoint, ["::1"])
    assert is_named(endpoint, ["[::1]"])


SPECIAL = [
    *("169.254.169.254", "169.254.170.2", "169.254.0.1"),
    *("0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1"),
    *("100.100.100.200", "168.63.129.16", "192.0.0.192"),
    *("::", "fe80::1", "ff02::1", "fec0::1", "fd00:ec2::254"),
    *("::ffff:169.254.169.254", "::ffff:0.0.0.0", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "::a9fe:a9fe"),
]
ORDINARY = ["127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "8.8.8.8", "::1", "fd12::1", "2001:db8::1"]


@pytest.mark.parametrize("address", SPECIAL)
def test_special_addresses_in_every_dress(address: str) -> None:
    assert is_special(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ORDINARY)
def test_ordinary_addresses_are_none(address: str) -> None:
    assert not is_special(ipaddress.ip_address(address))


class Names(trio.abc.HostnameResolver):
    """A DNS that answers what the test says."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def getaddrinfo(self, *args: object, **others: object) -> list[Any]:
        await trio.lowlevel.checkpoint()
        if not self._addresses:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in self._addresses]

    async def getnameinfo(self, sockaddr: object, flags: int) -> tuple[str, str]:
        raise NotImplementedError


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1%eth0", "::ffff:169.254.169.254"])
async def test_a_name_with_one_special_address_is_refused(address: str) -> None:
    trio.socket.set_custom_hostname_resolver(Names("10.0.0.1", address))
    with pytest.raises(Forbidden, match="--allow-endpoint"):
        await refuse_special(Endpoint("innocent.test", 80))


async def test_a_name_with_ordinary_addresses_passes_and_one_without_is_wrong() -> None:
    trio.socket.set_custom_hostname_resolver(Names("10.0.0.1", "2001:db8::1"))
    await refuse_special(Endpoint("innocent.test", 80))
    trio.socket.set_custom_hostname_resolver(Names())
    with pytest.raises(Invalid, match="no address"):
        await refuse_special(Endpoint("nowhere.test", 80))


@pytest.mark.parametrize("host", ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "0"])
async def test_addresses_in_the_forms_of_inet_aton_are_seen_through(host: str) -> None:
    with pytest.raises((Forbidden, Invalid)):
        await refuse_special(Endpoint(host, 80))
