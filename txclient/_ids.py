"""Ids: UUIDv7, so that the coordinator's inserts stay local; their time is never read (R19). The only place that makes them."""

from __future__ import annotations

import os
from collections.abc import Callable

from . import _clock

_VERSION = 0x7 << 76
_VARIANT = 0x2 << 62


class Ids:
    """A maker of ids; clock (wall ms) and randomness (n bytes) are handed in."""

    def __init__(self, clock: Callable[[], int] = _clock.wall_ms, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._clock = clock
        self._entropy = entropy

    def transaction(self) -> str:
        """A new transaction id: 48 bits of time, then 74 random ones (RFC 9562 §5.7)."""
        random = int.from_bytes(self._entropy(10), "big")
        bits = (self._clock() & (2**48 - 1)) << 80 | _VERSION | (random >> 62 & 0xFFF) << 64 | _VARIANT | random & (2**62 - 1)
        text = f"{bits:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def member(self) -> str:
        """A name for one consumer instance: 32 random hex digits."""
        return self._entropy(16).hex()
