"""Places where a service can be told to die, as if the power failed there. Only with `--demo`; a real service has nothing like it."""

from __future__ import annotations

import os
import signal
from typing import Final

POINTS: Final = ("after_commit", "in_effect")


class Hooks:
    def __init__(self) -> None:
        self._point: str | None = None
        self._passes = 0

    def arm(self, point: str, passes: int = 0) -> None:
        """Die at `point`, after passing it `passes` times. Raises ValueError where there is no such point."""
        if point not in POINTS:
            raise ValueError(f"{point!r} is none of {', '.join(POINTS)}")
        self._point, self._passes = point, passes

    def reach(self, point: str) -> None:
        if point != self._point:
            return
        if not self._passes:
            os.kill(os.getpid(), signal.SIGKILL)
        self._passes -= 1
