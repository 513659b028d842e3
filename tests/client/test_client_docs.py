"""What docs/CLIENT.md shows is run, literally."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.client.conftest import Site
from tests.harness.mounts import ROOT

SAYS = """\
0 00000000000000000000.jpg 5 b'a cat'
1 00000000000000000001.jpg 5 b'a dog'
b'a dog' [0, 1]
00000000000000000000.jpg b'a cat'
00000000000000000001.jpg b'a dog'
"""


def test_the_examples_do_what_they_say(new_site: Callable[..., Site], tmp_path: Path) -> None:
    site = new_site("rclone")
    site.dataset()  # registers the bucket
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "CLIENT.md").read_text(), re.M | re.S)
    assert len(blocks) == 2
    said = ""
    for program in [
        *blocks,
        blocks[1]
        .replace("import trio  #", "import asyncio  #")
        .replace("trio.run(main)", "asyncio.run(main())"),
    ]:
        assert "http://127.0.0.1:8765" in program
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program.replace("http://127.0.0.1:8765", site.server.url)],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), program
        said += done.stdout
    assert said == SAYS + "".join(SAYS.splitlines(keepends=True)[-2:])
