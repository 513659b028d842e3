"""Create files as a program would; print how long that took, as JSON.

    python writer.py DIRECTORY COUNT SIZE [--first KEY] [--fsync]

`create` is seconds for create + write + close of all files, `fsync` the median seconds of one fsync.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("count", type=int)
    parser.add_argument("size", type=int)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--fsync", action="store_true")
    options = parser.parse_args()
    piece = os.urandom(min(options.size, 1 << 20))
    waits: list[float] = []
    begin = time.perf_counter()
    for key in range(options.first, options.first + options.count):
        path = os.path.join(options.directory, f"{key:020d}.bin")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        left = options.size
        while left > 0:
            left -= os.write(descriptor, piece[:left])
        if options.fsync:
            waited = time.perf_counter()
            os.fsync(descriptor)
            waits.append(time.perf_counter() - waited)
        os.close(descriptor)
    seconds = time.perf_counter() - begin
    print(json.dumps({"create": seconds, "fsync": statistics.median(waits) if waits else None}))


if __name__ == "__main__":
    main()
