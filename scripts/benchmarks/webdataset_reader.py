"""Stream samples from TARs with webdataset, in one process; runs in the environment of the peers.

python webdataset_reader.py     (a JSON object on standard input: urls, seconds)
"""

from __future__ import annotations

import json
import sys
import time

import webdataset


def main() -> None:
    job = json.load(sys.stdin)
    files = total = 0
    begin = time.perf_counter()
    for sample in webdataset.WebDataset(job["urls"], shardshuffle=False):
        total += len(sample["bin"])
        files += 1
        if not files % 64 and time.perf_counter() - begin > job["seconds"]:
            break
    print(json.dumps({"files": files, "bytes": total, "seconds": time.perf_counter() - begin}), flush=True)


if __name__ == "__main__":
    main()
