"""Durations as people give them: seconds or a timedelta."""

from __future__ import annotations

import math
from datetime import timedelta

from .errors import UsageError

Seconds = float | timedelta


def seconds(value: Seconds) -> float:
    """A duration in seconds. Raises UsageError(bad_request) for what is none."""
    number = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not math.isfinite(number) or number < 0:
        raise UsageError("bad_request", f"{value!r} is not a duration: a number of seconds >= 0, or a timedelta")
    return number
