"""The one place where exceptions of botocore and urllib3 become ours.

Not for judging answers that did arrive (answers.py). No message from here holds an address's query,
a signature or a key: urllib3's texts may carry the signed address, so its exceptions are not chained
into view (`from None`); botocore signs in headers, its exceptions are chained.
Concurrency: used in worker threads; no state.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import botocore.exceptions as boto
import urllib3.exceptions as net

from datas3tfs.errors import Unavailable
from datas3tfs.objects.answers import refusal

_TOKEN = re.compile(r"[A-Za-z0-9.]{1,64}", re.ASCII)


@contextmanager
def translated(subject: str) -> Iterator[None]:
    """Turn what boto3 or urllib3 raise into NotFound, Corrupt or Unavailable about *subject*."""
    try:
        yield
    except boto.ClientError as exc:
        raise refusal(subject, status_of(exc), code_of(exc)) from exc
    except (boto.BotoCoreError, boto.HTTPClientError) as exc:
        raise Unavailable(f"{subject}: {_reason(exc)}") from exc
    except (net.HTTPError, OSError) as exc:
        raise Unavailable(f"{subject}: {_reason(exc)}") from None
    except ValueError as exc:  # botocore's parser: a word where a number should be
        raise Unavailable(f"{subject}: the answer makes no sense") from exc


def status_of(exc: boto.ClientError) -> int:
    """Return the HTTP status of a refused request."""
    return int(exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(exc: boto.ClientError) -> str:
    """Return S3's error code of a refused request, "" if it does not look like one.

    botocore gives the status for a code if there is no document to take it from. Only the answer to a
    HEAD has none by right; else it was not S3 that answered.
    """
    code = str(exc.response.get("Error", {}).get("Code", ""))
    if code.isdecimal() and exc.operation_name != "HeadObject":
        return ""
    return code if _TOKEN.fullmatch(code) else ""


def quiet_libraries() -> None:
    """Keep the libraries from logging addresses with signatures, and request headers.

    urllib3 logs every address at DEBUG and, with unparsable headers, at WARNING; botocore logs the
    strings it signs at DEBUG.
    """
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    logging.getLogger("botocore").setLevel(logging.INFO)


def _reason(exc: Exception) -> str:
    if isinstance(exc, boto.ConnectTimeoutError | net.ConnectTimeoutError):
        return "no connection in time"
    if isinstance(exc, boto.ReadTimeoutError | net.ReadTimeoutError | TimeoutError):
        return "the server went silent"
    if isinstance(exc, boto.SSLError | net.SSLError):
        return "no trusted TLS connection"
    if isinstance(exc, boto.EndpointConnectionError | net.NewConnectionError):
        return "no connection"
    if isinstance(exc, boto.ConnectionClosedError | net.ProtocolError | ConnectionError):
        return "the connection broke"
    return f"request failed ({type(exc).__name__})"
