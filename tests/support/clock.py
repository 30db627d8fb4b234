"""A clock that a test moves by hand."""

from __future__ import annotations

START_MS = 1_790_000_000_000
"""Some moment in 2026; nothing reads it but as a number."""


class ManualClock:
    """Wall and monotonic time move together, and only when told."""

    def __init__(self, now_ms: int = START_MS) -> None:
        self._now_ms = now_ms
        self._monotonic_ms = 1_000

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic(self) -> float:
        return self._monotonic_ms / 1000

    def advance(self, seconds: float) -> None:
        self._now_ms += round(seconds * 1000)
        self._monotonic_ms += round(seconds * 1000)


class WildClock(ManualClock):
    """A wall clock that can be set apart from the monotonic one, or stand still."""

    def __init__(self, now_ms: int = START_MS) -> None:
        super().__init__(now_ms)
        self.frozen = False

    def advance(self, seconds: float) -> None:
        before = self._now_ms
        super().advance(seconds)
        if self.frozen:
            self._now_ms = before

    def jump(self, seconds: float) -> None:
        """What an operator or a time server does: the wall clock alone."""
        self._now_ms += round(seconds * 1000)
