"""The boto3 client of one bucket, made once, and the calls that sign in headers.

Not for the bytes that are read (download.py), not for retries (retries.py), not for judging.
Concurrency: every function here blocks and runs in worker threads; boto3 clients are thread-safe,
making one is not, hence the lock.
"""

from __future__ import annotations

import os
import threading
from typing import Any

import boto3.session
import botocore.loaders
import botocore.session
from botocore.config import Config

from datas3tfs.core.model import BucketSpec
from datas3tfs.errors import Invalid
from datas3tfs.objects.settings import S3Settings

# No profile, configuration or credentials but those of the BucketSpec: config.py is the only reader
# of the environment. A tuple is botocore's (name in its file, environment variable, default, cast).
_HERMETIC = {
    "profile": (None, None, None, None),
    "config_file": (None, None, os.devnull, None),
    "credentials_file": (None, None, os.devnull, None),
}

# Reading botocore's description of S3 takes 0.1 s; all clients share it. Used under _MAKING only.
_MODELS = botocore.loaders.create_loader()
_MAKING = threading.Lock()


class Client:
    """A boto3 client that comes into being at its first use; it bears *silence* seconds of silence."""

    def __init__(self, spec: BucketSpec, settings: S3Settings, silence: float) -> None:
        self._spec = spec
        self._settings = settings
        self._silence = silence
        self._client: Any = None  # boto3 makes its clients' methods at run time: there is no type

    def __call__(self) -> Any:
        """Return the client. Raises Invalid if the endpoint is not a URL."""
        with _MAKING:
            if self._client is None:
                self._client = self._make()
            return self._client

    def close(self) -> None:
        """Close its connections, if it was ever made."""
        with _MAKING:
            if self._client is not None:
                self._client.close()

    def _make(self) -> Any:
        core = botocore.session.Session(session_vars=_HERMETIC)
        core.register_component("data_loader", _MODELS)
        session = boto3.session.Session(botocore_session=core)
        try:
            return session.client(
                "s3",
                endpoint_url=self._spec.endpoint_url,
                region_name=self._spec.region,
                aws_access_key_id=self._spec.access_key,
                aws_secret_access_key=self._spec.secret_key,
                verify=self._settings.ca_bundle,
                config=_config(self._settings, self._silence),
            )
        except ValueError as exc:
            raise Invalid(f"bucket {self._spec.name}: endpoint is not a usable URL") from exc


def _config(settings: S3Settings, silence: float) -> Config:
    return Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        # Otherwise uploads go out in aws-chunked encoding with a trailer that many servers refuse.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1},  # ours are in retries.py
        connect_timeout=settings.connect_timeout,
        read_timeout=silence,
        max_pool_connections=settings.parallel_calls,
        proxies={},  # the data path knows none either
    )
