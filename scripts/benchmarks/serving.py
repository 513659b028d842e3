"""`datas3tfs serve`, for as long as something is measured. For one thread."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from world import PROGRAM, World


@contextmanager
def served(world: World) -> Iterator[str]:
    """Run the server; yield its address."""
    command = [*PROGRAM, "serve", "--addr", "127.0.0.1:0"]
    process = subprocess.Popen(command, env=world.env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield line[line.index("http://") :].split()[0]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
