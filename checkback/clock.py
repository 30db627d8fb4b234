"""The system's clocks, as defaults of injected ones. The only file of this package that reads the time."""

from __future__ import annotations

import time


def unix_s() -> float:
    """Seconds since 1970, for the time stamps of signatures only: nothing here is decided by it."""
    return time.time()


def monotonic_s() -> float:
    """Seconds from anywhere, never backwards, for measuring how long something took."""
    return time.monotonic()
