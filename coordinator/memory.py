"""Memory that is free inside the process and not yet the system's again."""

from __future__ import annotations

import ctypes


def give_back() -> bool:
    """Return the allocator's free pages to the system; True where some were. Blocks its caller for milliseconds, without the GIL.

    glibc gives back by itself only what is free at the end of a heap, so under a steady load that leaks nothing the resident size of a
    process creeps upwards for days, as fragments move. Other allocators (musl, macOS) have no such call: False.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and trim(ctypes.c_size_t(0)) == 1
