"""A thread that sees when the event loop or the writer's thread is stuck, and says where: nothing that is stuck can say so itself.

It changes nothing. Whoever has a delivery keeps it for the length of its lease and no longer, however long the coordinator was stuck;
that is judged when a transaction begins, not when it was asked for.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable

from .clock import SystemClock

log = logging.getLogger("halfmsg.watchdog")

LOOKS = 4
"""How often it looks in the time after which something counts as stuck."""
FRAMES = 30


class Part:
    """Something that must go on. `progress`: changes with each step, None while there is nothing to do."""

    __slots__ = ("for_s", "name", "progress", "said", "seen", "thread")

    def __init__(self, name: str, thread: int, progress: Callable[[], int | None]) -> None:
        self.name, self.thread, self.progress = name, thread, progress
        self.seen: int | None = None
        self.for_s = 0.0
        self.said = False


class Watchdog:
    """`on_stall(part)` is called once each time that a part is found stuck, in the watchdog's thread."""

    def __init__(self, stuck_s: float, on_stall: Callable[[str], None]) -> None:
        self._stuck_s, self._on_stall = stuck_s, on_stall
        self._parts: list[Part] = []
        self._end = threading.Event()
        self._clock = SystemClock()
        self._thread = threading.Thread(target=self._run, name="halfmsg-watchdog", daemon=True)

    def watch(self, name: str, thread: int, progress: Callable[[], int | None]) -> None:
        self._parts.append(Part(name, thread, progress))

    def watch_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop of the calling thread: it must answer."""
        self.watch("loop", threading.get_ident(), _Pings(loop).progress)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def stuck(self) -> tuple[str, ...]:
        """The names of those that are stuck now."""
        return tuple(part.name for part in self._parts if part.said)

    def _run(self) -> None:
        pause_s = self._stuck_s / LOOKS
        before = self._clock.monotonic()
        while not self._end.wait(pause_s):
            now = self._clock.monotonic()
            self.look(min(now - before, 2 * pause_s))  # longer: this thread was stopped too, with the whole process
            before = now

    def look(self, passed_s: float) -> None:
        """One look, `passed_s` after the last."""
        for part in self._parts:
            now = part.progress()
            if now is None or now != part.seen:
                if part.said:
                    log.warning("the %s goes on; it was stuck for about %.1f s", part.name, part.for_s)
                part.seen, part.for_s, part.said = now, 0.0, False
                continue
            part.for_s += passed_s
            if part.for_s >= self._stuck_s and not part.said:
                part.said = True
                self._on_stall(part.name)
                log.error("the %s has been stuck for %.1f s, here:\n%s", part.name, part.for_s, _where(part.thread))


class _Pings:
    """Asks the loop for a sign of life, one at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asked = self._answered = 0

    def progress(self) -> int | None:
        if self._asked == self._answered:
            self._asked += 1
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:  # closed
                self._answered = self._asked
                return None
        return self._asked

    def _answer(self) -> None:
        self._answered = self._asked


def _where(thread: int) -> str:
    frame = sys._current_frames().get(thread)
    return "(the thread has ended)" if frame is None else "".join(traceback.format_stack(frame, FRAMES)).rstrip()
