"""Time, handed down from the entry point. Only the coordinator's clock decides (P10)."""

from __future__ import annotations

import logging
import threading
import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

log = logging.getLogger("halfmsg.clock")

JUMP_MS = 60_000
"""A wall clock further ahead than this is not followed at once (R19)."""
AGREE_S = 3_600.0
"""After it has stood so, unmoved, for this long it is."""


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


class SteadyClock:
    """The coordinator's time (R19): never back, also over a restart, and no jump ahead; all times of the store are of this clock.

    It runs with the monotonic clock, from the wall clock or `floor_ms` (the newest time stored), whichever is later. A wall clock that
    is behind is not followed, so nothing waits for it to come back. One that is ahead is followed at once up to a minute; one that
    is further ahead only when it has kept that distance for an hour: a time server's mistake ends no lease and parks nothing.
    Safe from any thread.
    """

    def __init__(self, wall: Clock, floor_ms: int = 0) -> None:
        self._wall = wall
        self._lock = threading.Lock()
        self._at = wall.monotonic()
        self._ms = float(max(wall.now_ms(), floor_ms, 0))
        self._away: tuple[float, float] | None = None
        """While the wall clock is far ahead: by how many ms when that was first seen, and at which monotonic time."""
        if self.ahead_s() * 1000 > JUMP_MS:
            log.warning("the store's newest time is %.0f s ahead of the wall clock; the coordinator's time goes on from there", self.ahead_s())

    def now_ms(self) -> int:
        with self._lock:
            at, wall_ms = self._wall.monotonic(), self._wall.now_ms()
            self._ms += (at - self._at) * 1000
            self._at = at
            ahead = wall_ms - self._ms
            if ahead <= 0:
                self._away = None
            elif ahead <= JUMP_MS or self._agrees(ahead, at):
                self._ms = float(wall_ms)
                self._away = None
            return int(self._ms)

    def _agrees(self, ahead: float, at: float) -> bool:
        """Has the wall clock, which is far ahead, kept its distance for long enough?"""
        if self._away is None or abs(ahead - self._away[0]) > JUMP_MS:
            self._away = (ahead, at)
            log.warning("the wall clock is %.0f s ahead of the coordinator's time; it is followed if it stands so for an hour", ahead / 1000)
            return False
        return at - self._away[1] >= AGREE_S

    def monotonic(self) -> float:
        return self._wall.monotonic()

    def ahead_s(self) -> float:
        """How far this time is ahead of the wall clock; below 0, behind it."""
        return (self.now_ms() - self._wall.now_ms()) / 1000


LAST_MS = 253_402_300_799_999
"""The last millisecond of the year 9999."""


def rfc3339(ms: int) -> str:
    """UTC with milliseconds: `2026-11-21T10:00:00.123Z`. A time beyond the calendar, as of a flipped bit, is the calendar's end."""
    ms = min(max(ms, 0), LAST_MS)
    return f"{_to_the_second(ms // 1000)}.{ms % 1000:03d}Z"


@lru_cache(maxsize=64)
def _to_the_second(seconds: int) -> str:
    """Cached: most times of an answer lie within the same second, and strftime is dear. Few, since one that fills for an hour looks like a leak."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
