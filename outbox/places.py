"""How many connections user code has at one time: blocks and handlers beyond it wait in line, each for so long (P9)."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from halfmsg.txclient import HalfmsgError

LENT_MAX = 64
"""A loop's, and the threads' of a process. A burst must take neither all descriptors nor all connections of the server."""
WAIT_MAX_S = 30.0


class Places:
    """A place is taken before there is a connection, then bound to it, and freed by it once: by whoever gives it back, in whatever state."""

    def __init__(self) -> None:
        self._loops: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}
        self._lock = threading.Lock()
        self._threads = threading.Semaphore(LENT_MAX)
        self._lent: dict[object, asyncio.Semaphore | threading.Semaphore] = {}

    async def take(self) -> asyncio.Semaphore:
        """Raises HalfmsgError(no_connection)."""
        with self._lock:  # loops of other threads come and go too
            self._loops = {loop: places for loop, places in self._loops.items() if not loop.is_closed()}
            places = self._loops.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(LENT_MAX))
        try:
            async with asyncio.timeout(WAIT_MAX_S):
                await places.acquire()
        except TimeoutError as error:
            raise _none_free() from error
        return places

    def take_sync(self) -> threading.Semaphore:
        """Raises HalfmsgError(no_connection)."""
        if not self._threads.acquire(timeout=WAIT_MAX_S):
            raise _none_free()
        return self._threads

    def bind(self, adapter: Any, place: asyncio.Semaphore | threading.Semaphore) -> None:
        self._lent[adapter] = place

    def free(self, adapter: Any) -> None:
        """Nothing where it holds none: it was for the library's own use, or is a parent's after a fork."""
        place = self._lent.pop(adapter, None)
        if place is not None:
            place.release()


def _none_free() -> HalfmsgError:
    text = f"{LENT_MAX} blocks or handlers have a connection each, and none was given back in {WAIT_MAX_S:g} s; is each a block inside another?"
    return HalfmsgError("no_connection", text)
