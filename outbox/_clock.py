"""The only place of this package that reads a clock. No promise rests on it: it names relay leases and inbox ages, and counts pauses."""

from __future__ import annotations

import time

monotonic = time.monotonic


def wall_ms() -> int:
    return time.time_ns() // 1_000_000
