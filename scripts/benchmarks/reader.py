"""Read a directory as a program would: list it, then open, read and close every file in name order.

    python reader.py DIRECTORY

Prints one JSON object: files, bytes, seconds of listing and of reading.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    directory = sys.argv[1]
    begin = time.perf_counter()
    names = sorted(entry.name for entry in os.scandir(directory))
    listed = time.perf_counter()
    total = 0
    for name in names:
        descriptor = os.open(os.path.join(directory, name), os.O_RDONLY)
        while data := os.read(descriptor, 1 << 20):
            total += len(data)
        os.close(descriptor)
    done = time.perf_counter()
    print(json.dumps({"files": len(names), "bytes": total, "list": listed - begin, "read": done - listed}))


if __name__ == "__main__":
    main()
