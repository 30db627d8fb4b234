"""Memory that is free inside the process and not yet the system's again."""

from __future__ import annotations

import ctypes
from typing import Any, Final

_TRIM: Final[Any] = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> bool:
    """Return the allocator's free pages to the system; True where some were. Blocks its caller for milliseconds, without the GIL.

    glibc gives back by itself only what is free at the end of a heap, so under a steady load that leaks nothing the resident size of a
    process creeps upwards for hours, as fragments move. Other allocators (musl, macOS) have no such call: False.
    """
    return _TRIM is not None and _TRIM(ctypes.c_size_t(0)) == 1
