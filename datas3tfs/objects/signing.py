"""Presigned URLs: whoever has one may do one thing with one object, for a while, without credentials.

The signing itself is botocore's (S3SigV4QueryAuth); boto3's way to it, `generate_presigned_url`, builds a
whole request around it first and takes several times as long, which tells when an upload gets a URL
for each of its thousands of parts. Only the host is signed: no Range, no Content-Type, no checksum, so
that any client's headers go with a URL. A URL is a secret: it belongs into no log and no error.

Not for requests that are sent from here with credentials (client.py). Concurrency: plain functions
that block for as long as they compute; a Signer does not change.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from datas3tfs.core.model import BucketSpec
from datas3tfs.errors import Invalid

_PORTS = {"http": 80, "https": 443}


class Signer:
    """Signs for one bucket."""

    def __init__(self, spec: BucketSpec) -> None:
        self._spec = spec
        self._credentials = Credentials(spec.access_key, spec.secret_key)

    def url(self, method: str, key: str, life: int, query: Mapping[str, str] | None = None) -> str:
        """Return a URL for *method* on the object *key*, valid for *life* seconds from now.

        Raises Invalid if the endpoint is not a URL.
        """
        address = f"{_base(self._spec)}/{quote(self._spec.bucket)}/{quote(key)}"
        request = AWSRequest(method=method, url=address, params=dict(query or {}))
        S3SigV4QueryAuth(self._credentials, "s3", self._spec.region, expires=life).add_auth(request)
        return str(request.url)


def _base(spec: BucketSpec) -> str:
    """Return the endpoint as clients will repeat it in their Host header, which is what is signed: in
    lower case and without the port that goes without saying."""
    try:
        parts = urlsplit(spec.endpoint_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in _PORTS:
        raise Invalid(f"bucket {spec.name}: endpoint is not a usable URL")
    name = f"[{host}]" if ":" in host else host
    suffix = "" if port is None or port == _PORTS[parts.scheme] else f":{port}"
    return f"{parts.scheme}://{name}{suffix}{parts.path.rstrip('/')}"
