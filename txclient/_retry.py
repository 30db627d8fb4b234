"""When a call or a connection may be tried again, and after how long (tenacity). A call's bound is its deadline, a connection's is need."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from . import _clock
from .errors import Busy, HalfmsgError, TransportError

T = TypeVar("T")
LOCAL_LIMIT = "client_queue_full"
_JITTERED = wait_random_exponential(multiplier=0.1, max=5.0)
_RECONNECT = wait_random_exponential(multiplier=0.1, max=2.0)
"""A coordinator that restarts is back within a second or two; consumers that sleep longer are its latency."""


def may_repeat(error: BaseException) -> bool:
    """Ids and tokens make every call repeatable; worth repeating is what had no answer, or was told to wait by the coordinator."""
    if isinstance(error, Busy):
        return error.code != LOCAL_LIMIT
    return isinstance(error, TransportError) and error.code == "unreachable"


async def repeat(call: Callable[[], Awaitable[T]], deadline: float, first: HalfmsgError | None = None) -> T:
    """Call until it succeeds, or what it raises may not be repeated, or the next try would begin after `deadline` (monotonic).

    `first` is the failure of a try made before: so the happy path of a hot call costs nothing here.
    """
    left = [first] if first is not None else []

    async def once() -> T:
        if left:
            raise left.pop()
        return await call()

    def too_late(state: RetryCallState) -> bool:
        return _clock.monotonic() + state.upcoming_sleep >= deadline

    retrying = AsyncRetrying(retry=retry_if_exception(may_repeat), wait=_wait, stop=too_late, sleep=_clock.pause, reraise=True)
    return await retrying(once)


async def reconnect(connect: Callable[[], Awaitable[T]], wanted: Callable[[HalfmsgError], bool]) -> T:
    """Call `connect` until it succeeds; `wanted` hears of each failure and says whether to go on. Else the last failure is raised."""

    def unwanted(state: RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        return not (isinstance(error, HalfmsgError) and wanted(error))

    retry = retry_if_exception(lambda error: isinstance(error, HalfmsgError))
    return await AsyncRetrying(retry=retry, wait=_RECONNECT, stop=unwanted, sleep=_clock.pause, reraise=True)(connect)


def _wait(state: RetryCallState) -> float:
    """What the coordinator asked for and a little more, so that not all come back in the same instant."""
    error = state.outcome.exception() if state.outcome else None
    jitter = _JITTERED(state)
    return error.retry_after + jitter * 0.1 if isinstance(error, Busy) else jitter
