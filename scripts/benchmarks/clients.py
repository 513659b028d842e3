"""The boto3 client that everything here uses. A plain function."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import boto3
from botocore.config import Config


def s3(env: Mapping[str, str] = os.environ, endpoint: str | None = None) -> Any:
    """Return a client of the S3 server that DATAS3TFS_S3_* name, or of another address of it."""
    config = Config(
        s3={"addressing_style": "path"},
        signature_version="s3v4",
        request_checksum_calculation="when_required",
        max_pool_connections=64,
    )
    return boto3.client(
        "s3",
        endpoint_url=endpoint or env["DATAS3TFS_S3_ENDPOINT"],
        aws_access_key_id=env["DATAS3TFS_S3_ACCESS_KEY"],
        aws_secret_access_key=env["DATAS3TFS_S3_SECRET_KEY"],
        region_name="us-east-1",
        config=config,
    )
