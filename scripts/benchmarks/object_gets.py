"""Read one object per file with boto3, one after the other: what a program does without anything better.

python object_gets.py     (a JSON object on standard input: bucket, keys, seconds; S3 from DATAS3TFS_S3_*)
"""

from __future__ import annotations

import json
import sys
import time

import clients


def main() -> None:
    job = json.load(sys.stdin)
    client = clients.s3()
    files = total = 0
    begin = time.perf_counter()
    for key in job["keys"]:
        total += len(client.get_object(Bucket=job["bucket"], Key=key)["Body"].read())
        files += 1
        if time.perf_counter() - begin > job["seconds"]:
            break
    print(json.dumps({"files": files, "bytes": total, "seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    main()
