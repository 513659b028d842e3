"""Keeping web pages out of a server that asks nobody for a token.

Such a server trusts whoever can connect, which a browser on the same machine can, on behalf of any page: with
a form or a simple request (CSRF), or under a name of the page's own that suddenly leads here (DNS rebinding).
Where a token is asked for, none of this matters: no browser adds one by itself. Pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit


def reason_to_refuse(headers: Mapping[str, str], *, only_loopback: bool) -> str | None:
    """Return why a request may be a web page's, None if there is no reason. *only_loopback*: nobody but this
    machine can have meant this server, so that it must have been called by a name of this machine."""
    host = headers.get("host", "")
    if only_loopback and not is_loopback(_host_of(f"//{host}")):
        return "the Host is not a name of this machine (it may be any where tokens are asked for)"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return "a web page of another site has sent this"
    origin = headers.get("origin")
    if origin is not None and _netloc_of(origin) != host.lower():
        return "a web page of another origin has sent this"
    return None


def is_loopback(host: str) -> bool:
    """Say whether *host*, a name or an address without brackets, is this machine and nothing else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _netloc_of(url: str) -> str:
    """Return host and port of *url* as they are written, "" if it is none."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _host_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").rstrip(".")
    except ValueError:
        return ""
