"""Calling the user's `decide`, of either colour, within the responder's budget.

What fails or is late gives no answers, never "unknown" (R15): silence costs no attempt. A `decide` that is cut off may
still lay its fences; that is safe, as they are final and the next question finds them (P5).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from . import clock

log = logging.getLogger("halfmsg.checkback")

BUDGET_S = 4.5
"""Below half the question's time-out of 10 s (R28), and above the 4 s at which an outbox stops by itself and gives what it has:
cut at the same 4 s, a full budget would drop all that was found, at every question."""

K = TypeVar("K")
V = TypeVar("V")
A = TypeVar("A")
R = TypeVar("R")


async def call(function: Callable[[A], Mapping[K, V] | Awaitable[Mapping[K, V]]], argument: A, budget_s: float = BUDGET_S) -> Mapping[K, V]:
    """What `function` gives, from a running loop; empty if it fails or is late. A sync one runs in a thread."""
    try:
        async with asyncio.timeout(budget_s):
            return _mapping(await _called(function, argument))
    except TimeoutError:
        log.warning("check-back not answered: decide took longer than %s s", budget_s)
    except Exception:
        log.exception("check-back not answered: decide failed")
    return {}


async def _called(function: Callable[[A], R | Awaitable[R]], argument: A) -> R:
    if inspect.iscoroutinefunction(function):
        return await function(argument)  # type: ignore[no-any-return]
    # It may be sync, and read a database: not on this loop. If it only makes a coroutine, that is awaited here.
    result = await asyncio.to_thread(function, argument)
    return await result if inspect.isawaitable(result) else result


def call_sync(
    function: Callable[[A], Mapping[K, V] | Awaitable[Mapping[K, V]]],
    argument: A,
    budget_s: float = BUDGET_S,
    monotonic: Callable[[], float] = clock.monotonic_s,
) -> Mapping[K, V]:
    """The same without a loop. A sync one runs in the caller's thread, whose connections it may use and the framework closes.

    Nothing can cut a sync one short; if it comes back late, its answers are dropped all the same, as the asker has gone.
    """
    began = monotonic()
    try:
        result = function(argument)
        found = _mapping(_run(result, budget_s) if inspect.isawaitable(result) else result)
    except TimeoutError:
        log.warning("check-back not answered: decide took longer than %s s", budget_s)
        return {}
    except Exception:
        log.exception("check-back not answered: decide failed")
        return {}
    if monotonic() - began <= budget_s:
        return found
    log.warning("check-back not answered: decide took longer than %s s", budget_s)
    return {}


def _run(awaitable: Awaitable[R], budget_s: float) -> R:
    """Await in a thread of its own: the caller's may have a running loop."""
    with ThreadPoolExecutor(1, thread_name_prefix="halfmsg-check") as pool:
        return pool.submit(asyncio.run, _within(awaitable, budget_s)).result()


async def _within(awaitable: Awaitable[R], budget_s: float) -> R:
    async with asyncio.timeout(budget_s):
        return await awaitable


def _mapping(found: Mapping[K, V]) -> Mapping[K, V]:
    if not isinstance(found, Mapping):
        raise TypeError(f"decide must give a mapping from id to Answer, not {type(found).__name__}")
    return found
