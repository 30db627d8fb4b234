"""The only place of this package that reads a clock or waits for one.

Wall time goes into new ids alone, where nobody reads it back: no promise rests on a client's clock (P10). Leases and time-outs are
counted on the monotonic one.
"""

from __future__ import annotations

import asyncio
import time

monotonic = time.monotonic
pause = asyncio.sleep


def wall_ms() -> int:
    return time.time_ns() // 1_000_000
