"""Put every file of a directory as an object of its own: the data of those who have no TARs.

python object_puts.py     (a JSON object on standard input: bucket, prefix, directory; S3 from DATAS3TFS_S3_*)
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clients


def main() -> None:
    job = json.load(sys.stdin)
    client = clients.s3()

    def put(path: Path) -> None:
        client.put_object(Bucket=job["bucket"], Key=f"{job['prefix']}/{path.name}", Body=path.read_bytes())

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, sorted(Path(job["directory"]).iterdir())))


if __name__ == "__main__":
    main()
