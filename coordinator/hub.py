"""Who waits for news of a topic, and waking them: after a group is durable, or when a retry is due."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from .clock import Clock

FALLBACK_S = 1.0
"""A waiter looks again after this long without news: a lane whose owner is gone makes no event."""

DECIDED = -1
"""No topic has this number: who waits for a decision waits here."""


class Waiter:
    """An event for several topics; cleared by the one who waits."""

    __slots__ = ("event", "topics")

    def __init__(self, topics: tuple[int, ...]) -> None:
        self.topics = topics
        self.event = asyncio.Event()

    async def wait(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self.event.wait()
        except TimeoutError:
            return
        finally:
            self.event.clear()


class Hub:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waiters: dict[int, dict[Waiter, None]] = {}  # in the order in which they came
        self._timers: dict[tuple[int, int], asyncio.TimerHandle] = {}

    def register(self, topics: Iterable[int]) -> Waiter:
        waiter = Waiter(tuple(topics))
        for topic in waiter.topics:
            self._waiters.setdefault(topic, {})[waiter] = None
        return waiter

    def unregister(self, waiter: Waiter) -> None:
        for topic in waiter.topics:
            waiters = self._waiters.get(topic)
            if waiters is not None:
                waiters.pop(waiter, None)
                if not waiters:
                    del self._waiters[topic]

    def wake(self, topic: int) -> None:
        for waiter in self._waiters.get(topic, ()):
            waiter.event.set()

    def wake_at(self, topic: int, due_ms: int) -> None:
        """Now if due; else by a timer, one for each 10 ms (or second, if far off), so that their number is bounded."""
        wait_ms = due_ms - self._clock.now_ms()
        if wait_ms <= 0:
            self.wake(topic)
            return
        step = 10 if wait_ms < 10_000 else 1_000
        bucket = (topic, -(-due_ms // step) * step)
        if bucket not in self._timers:
            delay = (bucket[1] - due_ms + wait_ms) / 1000
            self._timers[bucket] = asyncio.get_running_loop().call_later(delay, self._due, bucket)

    def _due(self, bucket: tuple[int, int]) -> None:
        self._timers.pop(bucket, None)
        self.wake(bucket[0])

    def wake_all(self) -> None:
        for topic in list(self._waiters):
            self.wake(topic)

    def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self.wake_all()
