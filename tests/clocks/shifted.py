"""Run a module in a process whose wall clock is wrong: `python -m tests.clocks.shifted SECONDS MODULE ARGUMENT…`.

Whatever reads the time through `time` sees it, the libraries too (a tidy test keeps the packages from any other way); the monotonic
clock is right, as it is on a real machine.
"""

from __future__ import annotations

import runpy
import sys
import time


def shift(seconds: int) -> None:
    time_s, time_ns = time.time, time.time_ns
    time.time = lambda: time_s() + seconds
    time.time_ns = lambda: time_ns() + seconds * 1_000_000_000


if __name__ == "__main__":
    shift(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
