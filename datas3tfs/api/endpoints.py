"""Which S3 endpoints may be registered over HTTP: whoever registers a bucket makes the server connect to it.

An endpoint that the operator names is allowed, whatever it is. "*", or a server that only this machine can
reach and that asks nobody for a token, allows all but those that no S3 has and that give secrets away:
link-local and other special addresses, and clouds' metadata services. Everybody else may use what is
registered already.

Names are resolved here and once more when S3 is asked: whoever rules over the name's DNS can answer
differently. That is why a server that strangers can reach allows nothing by itself.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import trio

from datas3tfs.core.names import printable
from datas3tfs.errors import Forbidden, Invalid

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS = {"http": 80, "https": 443}
_SPECIAL = [
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this network" (RFC 1122): connects to this machine
        "169.254.0.0/16",  # link-local, and most clouds' metadata
        "224.0.0.0/3",  # multicast, reserved, broadcast
        "100.100.100.200/32",  # Alibaba's metadata
        "168.63.129.16/32",  # Azure's
        "192.0.0.192/32",  # Oracle's
        "::/128",
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local, deprecated
        "ff00::/8",  # multicast
        "fd00:ec2::/32",  # Amazon's metadata
        "fd20:ce::/32",  # Google's
    )
]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address in the last 32 bits
_COMPATIBLE = ipaddress.ip_network("::/96")  # the same, deprecated; ::1 is in there, too


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one connects to."""

    host: str  # lower case, no brackets
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_endpoint(url: str) -> Endpoint:
    """Take the URL of an endpoint apart. Raises Invalid if it is one that no S3 needs."""
    shown = printable(url.rpartition("@")[2])  # what is before may be a password
    if not url.isprintable() or " " in url or "\\" in url or not url.isascii():
        raise Invalid(f"endpoint {shown}: has characters that an address cannot have")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise Invalid(f"endpoint {shown}: not a URL") from None
    if parts.scheme not in _PORTS or not host:
        raise Invalid(f"endpoint {shown}: not an http or https URL")
    if "@" in url or parts.query or parts.fragment or "?" in url or "#" in url:
        raise Invalid(f"endpoint {shown}: has credentials, a query or a fragment in it")
    return Endpoint(host.rstrip("."), _PORTS[parts.scheme] if port is None else port)


def is_named(endpoint: Endpoint, allowed: Iterable[str]) -> bool:
    """Say whether *allowed* (host, host:port) names *endpoint*."""
    names = {endpoint.host, f"[{endpoint.host}]", str(endpoint)}
    return any(one.lower().rstrip(".") in names for one in allowed)


def is_special(address: Address) -> bool:
    """Say whether no S3 can be at *address*, in whatever form the address is wrapped."""
    return any(address.version == net.version and address in net for net in _SPECIAL) or any(
        is_special(inner) for inner in _wrapped(address)
    )


async def refuse_special(endpoint: Endpoint) -> None:
    """Raise Forbidden if *endpoint*, or one of the addresses its name has, is special; Invalid if it
    has none."""
    for address in await _addresses(endpoint):
        if is_special(address):
            raise Forbidden(
                f"endpoint {printable(str(endpoint))}: leads to an address ({address}) that may not be "
                "registered over HTTP (--allow-endpoint with its name allows it)"
            )


async def _addresses(endpoint: Endpoint) -> set[Address]:
    try:
        found = await trio.socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise Invalid(f"endpoint {printable(str(endpoint))}: its name has no address") from None
    return {ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found}


def _wrapped(address: Address) -> list[Address]:
    """Return the IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in found if one is not None]
