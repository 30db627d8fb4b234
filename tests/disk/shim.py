"""Building the shim that is preloaded into a coordinator, and what it needs in its environment."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

SOURCE: Final = Path(__file__).with_name("shim.c")
ON_LINUX: Final = sys.platform == "linux"


@functools.cache
def build() -> Path:
    """The compiled shim, once a process. Raises CalledProcessError with the compiler's words in its output."""
    folder = Path(tempfile.mkdtemp(prefix="halfmsg-shim-"))
    made = folder / "shim.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"], check=True, timeout=60)
    return made


def is_here() -> bool:
    return ON_LINUX and shutil.which("gcc") is not None


def needed() -> Path:
    """The shim, or the test is skipped: never where CI promises a compiler and one is there but does not build it."""
    if not is_here():
        pytest.skip("the disk's calls are recorded by a preloaded C shim: needs Linux and gcc")
    try:
        return build()
    except (subprocess.SubprocessError, OSError) as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"gcc does not build the shim here: {error}")


@dataclass(frozen=True, slots=True)
class Fault:
    """The `n`-th call of this kind on the store's files fails; `on`: and every later one. `errno` 0 is a short write or read."""

    kind: str
    n: int
    errno: int
    on: bool = False

    def __str__(self) -> str:
        name = errno.errorcode.get(self.errno, "short")
        return f"{self.kind} {self.n}{' and on' if self.on else ''}: {name}"

    @property
    def spec(self) -> str:
        return f"{self.kind},{self.n},{self.errno},{'on' if self.on else 'once'}"


def environment(store: Path, *, log: Path | None = None, data: bool = False, fault: Fault | None = None, full: Path | None = None) -> dict[str, str]:
    """What `shim_arm` reads. `full`: while that file is there the disk is full (for the file it names: d, w or s)."""
    found = {"SHIM_STORE": str(store.resolve())}
    if log is not None:
        found["SHIM_LOG"] = str(log)
    if data:
        found["SHIM_DATA"] = "1"
    if fault is not None:
        found["SHIM_FAULT"] = fault.spec
    if full is not None:
        found["SHIM_FULL"] = str(full)
    return found
