"""Awaiting what must not be left half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


async def aside(call: Callable[[], T]) -> T:
    """In a thread of its own: the loop waits for nobody, and the loop's own threads may all be taken."""
    threads = ThreadPoolExecutor(1, thread_name_prefix="halfmsg-aside")
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, call)
    finally:
        threads.shutdown(wait=False)


async def finished(work: Coroutine[Any, Any, T], on_cancelled: Callable[[], object] = lambda: None) -> T:
    """Await to the end even when cancelled, then be cancelled: the work runs on in its thread, and nobody may use the connection meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        on_cancelled()
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()  # seen, so that it is no warning; the cancellation is what the caller hears
        raise
