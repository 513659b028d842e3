"""What the figures of `scripts/bench` rest on: the data, the goals' arithmetic, the relay's counting."""

import http.client
import http.server
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "scripts" / "benchmarks"


def load(name: str) -> ModuleType:
    """Import a module of the benchmark, which is no package."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", [1, 16, 511, 512, 4096, 10_000])
def test_the_data_are_tars_whose_files_say_which_they_are(tmp_path: Path, size: int) -> None:
    tars = load("tars")
    parts = tars.cut(300, size, 1 << 17)
    assert sum(part.count for part in parts) == 300
    for part in parts:
        tars.write(tmp_path / "a.tar", part)
        content = (tmp_path / "a.tar").read_bytes()
        assert len(content) == part.length
        with tarfile.open(tmp_path / "a.tar") as archive:
            for key, member in enumerate(archive, part.first):
                assert (member.name, member.size) == (f"{key:020d}.bin", size)
                start, stop = part.content(key)
                assert (member.offset_data, stop) == (start, start + size)
                for page in range(0, size - 7, 4096):
                    mark = int.from_bytes(content[start + page : start + page + 8], "little")
                    assert mark == key << 20 | page // 4096


def test_a_goal_compares_round_by_round_with_the_lower_of_several() -> None:
    book = load("book")
    row = book.Row("r", "title", "files/s", (book.Goal("a", ("b", "c"), least=0.8),))
    for mine, b, c in ((8.0, 10.0, 20.0), (30.0, 20.0, 15.0), (1.0, 4.0, 1.0)):
        row.add("a", {"rate": mine})
        row.add("b", {"rate": b})
        row.add("c", {"rate": c})
    [(goal, spread)] = row.verdicts()
    assert (spread.low, spread.median, spread.high) == (0.8, 1.0, 2.0)
    assert goal.reached(spread.median)
    assert not goal.reached(0.79)


def test_a_goal_over_somebody_absent_is_not_measured() -> None:
    book = load("book")
    row = book.Row("r", "title", "files/s", (book.Goal("a", ("b",), least=20), book.Goal("a", most=5)))
    row.add("a", {"rate": 5.0})
    assert [spread and spread.median for _, spread in row.verdicts()] == [None, 5.0]


class _Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.send_response(200)
        self.send_header("Content-Length", "300000")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(bytes(300_000))

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None: ...


@contextmanager
def serving() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no C compiler")
@pytest.mark.parametrize("milliseconds", [0, 2])
def test_the_relay_counts_requests_and_changes_nothing(tmp_path: Path, milliseconds: int) -> None:
    program = tmp_path / "relay"
    subprocess.run(["gcc", "-O1", "-o", program, BENCHMARKS / "native" / "relay.c"], check=True)
    with serving() as upstream:
        relay = load("relay").NativeRelay(program, upstream)
        relay.delay(milliseconds)
        for _ in range(2):
            client = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=20)
            for method, path, body in (
                ("GET", "/b/k", None),
                ("GET", "/b?list-type=2", None),
                ("GET", "/b/k?X-Amz-Signature=0", None),
                ("PUT", "/b/k", b"GET / HTTP/1.1\r\n\r\n" * 50_000),
                ("HEAD", "/b/k", None),
            ):
                client.request(method, path, body)
                answer = client.getresponse().read()
                assert answer == (b"" if method == "HEAD" else bytes(300_000))
            client.close()
        counts = relay.counts()
        relay.stop()
    requests = {"get": 4, "list": 2, "put": 2, "head": 2, "post": 0, "delete": 0, "other": 0}
    assert requests.items() <= counts.items()
    assert counts["down"] > 8 * 300_000
    assert counts["up"] > 2 * 18 * 50_000
