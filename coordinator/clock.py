"""Time, handed down from the entry point. Only the coordinator's clock decides (P10)."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol


class Clock(Protocol):
    def now_ms(self) -> int:
        """Wall clock, whole milliseconds since 1970."""

    def monotonic(self) -> float:
        """Seconds that never go back; for waits and measured durations."""


class SystemClock:
    def now_ms(self) -> int:
        return int(time.time() * 1000)

    def monotonic(self) -> float:
        return time.monotonic()


def rfc3339(ms: int) -> str:
    """UTC with milliseconds: `2026-11-21T10:00:00.123Z`."""
    return f"{_to_the_second(ms // 1000)}.{ms % 1000:03d}Z"


@lru_cache(maxsize=4_096)
def _to_the_second(seconds: int) -> str:
    """Cached: most times of an answer lie within the same second, and strftime is dear."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
