"""Read a dataset with `Client.iterate`, without a mount.

python iterate_reader.py URL DATASET COUNT SECONDS
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing

from datas3tfs import Client


def main() -> None:
    url, dataset, count, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    files = total = 0
    with Client(url) as client:
        begin = time.perf_counter()
        with closing(client.iterate(dataset, 0, count - 1)) as found:
            for datapoint in found:
                total += len(datapoint.read())
                files += 1
                if not files % 64 and time.perf_counter() - begin > seconds:
                    break
            took = time.perf_counter() - begin
    print(json.dumps({"files": files, "bytes": total, "seconds": took}))


if __name__ == "__main__":
    main()
