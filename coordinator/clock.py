"""Time, handed down from the entry point. Only the coordinator's clock decides (P10)."""

from __future__ import annotations

import time
from datetime import UTC, datetime
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
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ms % 1000:03d}Z"
