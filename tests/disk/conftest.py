"""One process that forks the coordinators of all tests here, and folders in memory for what is written once and read once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk import power, shim
from tests.disk.processes import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    shim.needed()
    with Zygote() as one:
        yield one


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="halfmsg-disk-", dir=power.memory()) as path:
        yield Path(path)
