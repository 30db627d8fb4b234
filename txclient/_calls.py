"""The operations that have no answer yet: what waits, what was sent, what is sent again. No I/O.

Everything that waits goes into one frame (natural batching); results are matched by the frame's number. A lost connection loses answers,
never decisions: every operation is idempotent by id or token, so what is unanswered goes out again in the order it was first given.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from msgspec import Raw

from . import _wire
from .errors import Busy, HalfmsgError, TransportError, api_error

MAX_CALLS: Final = 10_000
MAX_BYTES: Final = 64 * 1024 * 1024
MAX_FRAME_BYTES: Final = 1024 * 1024


class Call:
    """One operation: its encoded form, who waits for it and until when (loop time)."""

    __slots__ = ("alone", "bytes", "deadline", "future", "once", "raw", "sent")

    def __init__(self, raw: Raw, future: asyncio.Future[Any], deadline: float, once: bool) -> None:
        self.raw = raw
        self.bytes = len(memoryview(raw))
        self.future = future
        self.deadline = deadline
        self.once = once
        self.sent = False
        self.alone = False


class Calls:
    """At most MAX_CALLS operations and MAX_BYTES without an answer; past it a new one is refused, and none of the old ones is hurt."""

    def __init__(self, *, max_calls: int = MAX_CALLS, max_bytes: int = MAX_BYTES, max_frame_bytes: int = MAX_FRAME_BYTES) -> None:
        self._waiting: deque[Call] = deque()
        self._flights: dict[int, list[Call]] = {}
        self._limits = (max_calls, max_bytes)
        self._max_frame_bytes = max_frame_bytes
        self._count = 0
        self._bytes = 0
        self._n = 0

    def __len__(self) -> int:
        return self._count

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    @property
    def in_flight(self) -> bool:
        return bool(self._flights)

    def wanted(self) -> bool:
        """Does anybody still wait for an answer?"""
        return any(not call.future.done() for call in self._all())

    def add(self, call: Call) -> None:
        """Raises Busy(client_queue_full): nothing was sent."""
        max_calls, max_bytes = self._limits
        if self._count >= max_calls or self._bytes + call.bytes > max_bytes:
            self._forget_given_up()
            if self._count >= max_calls or self._bytes + call.bytes > max_bytes:
                text = f"{self._count} operations ({self._bytes} bytes) have no answer yet; the coordinator is slow or away: send less at once"
                raise Busy("client_queue_full", text, status=429)
        self._count += 1
        self._bytes += call.bytes
        self._waiting.append(call)

    def frame(self) -> tuple[int, Sequence[Raw]] | None:
        """What goes out next: its number and operations; None when nothing may. What its caller gave up unsent is left out."""
        ops: list[Call] = []
        size = 0
        waiting = self._waiting
        while waiting and len(ops) < _wire.MAX_ITEMS:
            call = waiting[0]
            if call.future.done():
                self._drop(waiting.popleft())
                continue
            if ops and (call.alone or size + call.bytes > self._max_frame_bytes):
                break
            if call.alone and self._flights:
                return None
            ops.append(waiting.popleft())
            size += call.bytes
            call.sent = True
            if call.alone:
                break
        if not ops:
            return None
        self._n += 1
        self._flights[self._n] = ops
        return self._n, [call.raw for call in ops]

    def answer(self, n: int, results: Sequence[_wire.Result]) -> None:
        """Hand each result to who waits for it. Raises TransportError(protocol) where they do not match what was sent."""
        calls = self._flights.pop(n, None)
        if calls is None or len(calls) != len(results):
            sent = "none" if calls is None else len(calls)
            self._waiting.extendleft(reversed(calls or ()))
            raise TransportError("protocol", f"the coordinator answered frame {n} with {len(results)} results; sent were {sent}")
        for call, result in zip(calls, results, strict=True):
            self._drop(call)
            if not call.future.done():
                if result.error is None:
                    call.future.set_result(result.ok)
                else:
                    call.future.set_exception(api_error(result.error))

    def lost(self, error: HalfmsgError) -> None:
        """The connection is gone: what was sent waits again, in its old order and before the rest; who wanted one try only gets `error`."""
        for call in self._all():
            if call.once and call.sent and not call.future.done():
                call.future.set_exception(error)
        self._waiting = deque(self._all())
        self._flights.clear()

    def poisoned(self, error: HalfmsgError) -> None:
        """The coordinator closed the connection over something that was sent. One suspect gets `error`; several go out one by one."""
        suspects = [call for _, calls in sorted(self._flights.items()) for call in calls]
        for call in suspects:
            call.alone = True
        if len(suspects) == 1 and not suspects[0].future.done():
            suspects[0].future.set_exception(error)
        self.lost(error)

    def fail(self, error: HalfmsgError, which: Callable[[Call], bool] = lambda call: True) -> None:
        """Give those who wait, and are meant, this answer."""
        for call in self._all():
            if not call.future.done() and which(call):
                call.future.set_exception(error)
        self._forget_given_up()

    def expire(self, now: float, error: Callable[[Call], HalfmsgError]) -> float | None:
        """End those whose deadline has come; the next deadline, None if nobody waits."""
        following: float | None = None
        for call in self._all():
            if call.future.done():
                continue
            if call.deadline <= now:
                call.future.set_exception(error(call))
            elif following is None or call.deadline < following:
                following = call.deadline
        self._forget_given_up()
        return following

    def _all(self) -> Iterator[Call]:
        """In the order first given: numbers of frames only grow, and what waits came later than what was sent."""
        for n in sorted(self._flights):
            yield from self._flights[n]
        yield from self._waiting

    def _forget_given_up(self) -> None:
        """Only what waits: a sent one keeps its place in its frame until the results come."""
        gone = [call for call in self._waiting if call.future.done()]
        if gone:
            self._waiting = deque(call for call in self._waiting if not call.future.done())
            for call in gone:
                self._drop(call)

    def _drop(self, call: Call) -> None:
        self._count -= 1
        self._bytes -= call.bytes
