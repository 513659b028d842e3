"""Compile the C programs of native/ if there is a compiler; what cannot be is None. Plain functions."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

NATIVE = Path(__file__).resolve().parent / "native"


@dataclass(frozen=True, slots=True)
class Programs:
    """Where the compiled programs are."""

    relay: Path | None
    reader: Path | None
    nullfs: Path | None  # needs libfuse's headers, too


def compile_all(directory: Path) -> Programs:
    fuse = _fuse_flags()
    return Programs(
        relay=_compile(directory, "relay"),
        reader=_compile(directory, "reader"),
        nullfs=_compile(directory, "nullfs", fuse) if fuse else None,
    )


def _fuse_flags() -> list[str]:
    """Return what libfuse's headers and library need; nothing if they are not there."""
    if shutil.which("pkg-config") is None:
        return []
    command = ["pkg-config", "--cflags", "--libs", "fuse3"]
    return shlex.split(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


def _compile(directory: Path, name: str, flags: list[str] | None = None) -> Path | None:
    if shutil.which("gcc") is None:
        return None
    target = directory / name
    command = ["gcc", "-O2", "-o", str(target), str(NATIVE / f"{name}.c"), *(flags or [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return target if done.returncode == 0 else None
