"""A plain parallel multipart upload of SIZE bytes with boto3: the ceiling for writing one large file.

python upload.py KEY SIZE        (the S3 server from DATAS3TFS_S3_*; prints seconds as JSON)
"""

from __future__ import annotations

import io
import json
import os
import sys
import time

import clients
from boto3.s3.transfer import TransferConfig

PART = 8 * 1024 * 1024  # as datas3tfs begins
AT_ONCE = 4


class Source(io.RawIOBase):
    """The same random mebibyte again and again."""

    def __init__(self, size: int) -> None:
        self.left, self.piece = size, os.urandom(1 << 20)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = min(len(buffer), self.left, len(self.piece))
        buffer[:count] = self.piece[:count]
        self.left -= count
        return count


def main() -> None:
    key, size = sys.argv[1], int(sys.argv[2])
    client = clients.s3()
    config = TransferConfig(multipart_chunksize=PART, max_concurrency=AT_ONCE)
    begin = time.perf_counter()
    client.upload_fileobj(Source(size), os.environ["DATAS3TFS_S3_BUCKET"], key, Config=config)
    print(json.dumps({"seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    main()
