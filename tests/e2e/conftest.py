"""Stacks for the end-to-end tests, and the sample datapoints most of them show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.harness.archives import Sample, key_name, samples, write_folder
from tests.harness.faultproxy import FaultProxy
from tests.harness.mounts import Mount, Stack, check_fuse, open_stack
from tests.harness.postgres import PostgresServer
from tests.harness.s3 import ServerProcess, fresh_bucket


@pytest.fixture(scope="session")
def fuse() -> None:
    """The kernel's FUSE; its absence is an error."""
    if problem := check_fuse():
        pytest.fail(problem)


@pytest.fixture
def stack(
    fuse: None, embedded_postgres: PostgresServer, rclone_server_process: ServerProcess, tmp_path: Path
) -> Iterator[Stack]:
    """A database and a bucket (rclone) of its own, nothing registered."""
    with open_stack(embedded_postgres, fresh_bucket(rclone_server_process), tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def new_stack(
    fuse: None,
    embedded_postgres: PostgresServer,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., Stack]]:
    """Makes stacks for a whole module; `new_stack("moto")` uses the other S3 server."""
    with ExitStack() as opened:

        def make(kind: str = "rclone") -> Stack:
            process: ServerProcess = request.getfixturevalue(f"{kind}_server_process")
            home = tmp_path_factory.mktemp("stack")
            return opened.enter_context(open_stack(embedded_postgres, fresh_bucket(process), home))

        yield make


@pytest.fixture
def proxy(stack: Stack) -> Iterator[FaultProxy]:
    """A well-behaved proxy before the stack's S3 server."""
    with FaultProxy(stack.s3.process.port) as opened:
        yield opened


# -- what most tests of the mount read --------------------------------------------------------------

CHUNK = 256 * 1024  # what is checksummed, and at most fetched, at once
SIZES = (0, 1, 511, 512, 513, CHUNK - 1, CHUNK, CHUNK + 1, 0, 3 * CHUNK + 77, 5_000_000)
SECOND_START = 100  # of dataset "sizes"; there is a gap before
SMALL = 1000
LARGE = 40 << 20
NEEDLE, NEEDLE_KEY = "a needle in the haystack", 517  # in dataset "small"


@dataclass(frozen=True, slots=True)
class Library:
    """A stack nobody writes to, with four datasets, and the files they were made from.

    `sizes`: two dataranges with a gap, lengths around every border · `small`: 1,000 × 4 KiB in one
    datarange · `large`: one file of 40 MiB · `empty`: no datapoint. *proxy* sees every S3 request.
    """

    stack: Stack
    proxy: FaultProxy
    sources: dict[str, dict[str, Sample]]

    def content(self, dataset: str) -> dict[str, bytes]:
        """Return name → content of a dataset."""
        return {name: sample.content for name, sample in self.sources[dataset].items()}


@pytest.fixture(scope="session")
def library(
    fuse: None,
    embedded_postgres: PostgresServer,
    rclone_server_process: ServerProcess,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Library]:
    """The library; made once, in two seconds."""
    home = tmp_path_factory.mktemp("library")
    made = {
        "sizes": [
            *samples(SIZES, extension="bin"),
            *samples([2000, 0, 700], first=SECOND_START, extension="txt"),
        ],
        "small": [_with_needle(one) for one in samples([4096] * SMALL)],
        "large": samples([LARGE]),
        "empty": [],
    }
    with (
        open_stack(embedded_postgres, fresh_bucket(rclone_server_process), home) as opened,
        FaultProxy(opened.s3.process.port) as proxy,
    ):
        opened.register(*made, endpoint=proxy.endpoint)
        for dataset, datapoints in made.items():
            folder = write_folder(home / "sources" / dataset, datapoints)
            if dataset == "sizes":
                files = sorted(folder.iterdir())
                opened.ingest(dataset, *files[: len(SIZES)])
                opened.ingest(dataset, *files[len(SIZES) :], start=SECOND_START)
            elif datapoints:
                opened.ingest(dataset, folder)
        yield Library(opened, proxy, {name: {one.name: one for one in every} for name, every in made.items()})


def _with_needle(sample: Sample) -> Sample:
    if sample.name != key_name(NEEDLE_KEY):
        return sample
    return replace(sample, content=NEEDLE.encode() + sample.content[len(NEEDLE) :])


@pytest.fixture(scope="module")
def mount(library: Library) -> Iterator[Mount]:
    """A mount of the library, shared by a module's tests."""
    with library.stack.mount() as opened:
        yield opened
