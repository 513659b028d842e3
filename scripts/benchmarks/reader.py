"""native/reader.c in Python, for machines without a C compiler: same options, same answer, slower.

python reader.py DIRECTORY [--names FILE] [--jobs N] [--limit N] [--seconds S] [--check] [--announce FILE]
python reader.py DIRECTORY --list
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time

PAGE = 4096


def wrong_pages(data: bytes, offset: int, key: int) -> int:
    wrong = 0
    for at in range(-offset % PAGE, len(data) - 7, PAGE):
        wrong += int.from_bytes(data[at : at + 8], "little") != key << 20 | (offset + at) // PAGE
    return wrong


def work(options: argparse.Namespace, names: list[str], gate, results) -> None:
    tally = {"files": 0, "bytes": 0, "wrong": 0, "errors": 0, "first": 0.0}
    times: list[float] = []
    gate.wait()
    begin = before = time.perf_counter()
    for name in names:
        offset = 0
        try:
            descriptor = os.open(os.path.join(options.directory, name), os.O_RDONLY)
            while data := os.read(descriptor, 1 << 20):
                if options.check:
                    tally["wrong"] += wrong_pages(data, offset, int(name[:20]))
                offset += len(data)
            os.close(descriptor)
            tally["files"] += 1
        except OSError:
            tally["errors"] += 1
        tally["bytes"] += offset
        after = time.perf_counter()
        times.append(after - before)
        tally["first"] = tally["first"] or after - begin
        before = after
        if options.seconds and after - begin > options.seconds:
            break
    results.put((tally, times))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory")
    parser.add_argument("--names")
    parser.add_argument("--announce")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seconds", type=float, default=0)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--list", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    begin = time.perf_counter()
    if options.names:
        with open(options.names) as file:
            names = file.read().split("\n")[:-1]
    else:
        names = sorted(entry.name for entry in os.scandir(options.directory) if entry.name[0] != ".")
    listing, listed = time.perf_counter() - begin, len(names)
    names = [] if options.list else names[: options.limit]
    context = multiprocessing.get_context("fork")
    gate, results = context.Event(), context.Queue()
    parts = [names[job :: options.jobs] for job in range(options.jobs)]
    children = [context.Process(target=work, args=(options, part, gate, results)) for part in parts]
    for child in children:
        child.start()
    begin = time.perf_counter()
    if options.announce:
        with open(options.announce, "w") as file:
            file.write("".join(name + "\n" for name in names))
    gate.set()
    found = [results.get() for _ in children]
    reading = time.perf_counter() - begin
    for child in children:
        child.join()
    times = sorted(one for _, part in found for one in part)
    total = {key: sum(tally[key] for tally, _ in found) for key in ("files", "bytes", "wrong", "errors")}
    total["first"] = min(tally["first"] for tally, _ in found)
    total |= {"listed": listed, "list": listing, "read": reading}
    total |= {f"p{part}": times[len(times) * part // 100] if times else 0 for part in (50, 99)}
    print(json.dumps(total))


if __name__ == "__main__":
    main()
