"""What the allocator keeps free goes back to the system (P9): a real heap of a real process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

HEAP = """
import psutil
from halfmsg.coordinator import memory

resident = lambda: psutil.Process().memory_info().rss // 2**20
pieces = [bytes(2000) for _ in range(50_000)]
pieces = pieces[-1:]  # the heap ends in what is used, so that the allocator alone gives nothing back
print(resident(), memory.give_back(), resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives back on request")
def test_p9_free_memory_within_a_heap_goes_back_to_the_system() -> None:
    """A hundred MB in the middle of a heap are free: they stay resident until they are given back."""
    said = subprocess.run([sys.executable, "-c", HEAP], capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert said[1] == "True"
    assert int(said[0]) > 100 > 50 > int(said[2])
