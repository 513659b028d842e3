"""HTTP connections, and what their failures mean.

Two pools: one for the server, which is shown the token, and one for S3, which is not. Redirects are
followed by neither, and the environment (proxies, netrc) has no say. Concurrency: httpx's own.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from datas3tfs.client.retrying import Again
from datas3tfs.client.tuning import Tuning
from datas3tfs.errors import Invalid, Unavailable

_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=10.0)
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def timeouts(tuning: Tuning, silence: float | None = None) -> httpx.Timeout:
    """Return the limits of a request; *silence* replaces how long its answer may take to come."""
    return httpx.Timeout(tuning.silence, connect=tuning.connect, read=silence or tuning.silence, pool=None)


def open_pool(
    tuning: Tuning,
    trust: ssl.SSLContext,
    *,
    base_url: str = "",
    headers: dict[str, str] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> httpx.AsyncClient:
    """Return a pool of connections, to be entered as a context."""
    return httpx.AsyncClient(
        base_url=base_url,
        headers=headers,
        timeout=timeouts(tuning),
        limits=_LIMITS,
        verify=trust,
        follow_redirects=False,
        trust_env=False,
        transport=transport,
    )


def trust_for_server(ca_file: Path | None) -> ssl.SSLContext:
    """Return whom to believe that they are the server: the authorities of *ca_file* alone, or the system's.
    Raises Invalid (the file)."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:  # ssl.SSLError is one
        reason = "not a file of certificates (PEM)" if isinstance(exc, ssl.SSLError) else exc.strerror
        raise Invalid(f"{ca_file}: {reason}") from None


def trust_for_storage(ca_file: Path | None) -> ssl.SSLContext:
    """Return whom to believe that they are S3: the system's authorities, and those of *ca_file*."""
    trust = ssl.create_default_context()
    if ca_file is not None:
        trust.load_verify_locations(ca_file)
    return trust


def quiet_libraries() -> None:
    """Keep httpx from logging addresses with signatures (INFO), and httpcore headers (DEBUG)."""
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("httpcore").setLevel(logging.WARNING)


@contextmanager
def translated() -> Iterator[None]:
    """Turn what httpx raises into Again, or into an error if trying again cannot help."""
    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        raise Invalid("not an address of a web server") from None
    except _NEVER_SENT as exc:
        if problem := _certificate_problem(exc):
            raise Unavailable(f"no trusted TLS connection: {problem}") from None
        raise Again("no connection", undone=True) from None
    except httpx.TimeoutException:
        raise Again("the server went silent") from None
    except httpx.LocalProtocolError:
        raise  # we have asked for something impossible
    except httpx.TransportError:
        raise Again("the connection broke") from None


def _certificate_problem(exc: BaseException | None) -> str | None:
    while exc is not None:
        if isinstance(exc, ssl.SSLCertVerificationError):
            return exc.verify_message
        exc = exc.__cause__ or exc.__context__
    return None
