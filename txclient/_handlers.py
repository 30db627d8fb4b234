"""A handler of either colour: which it is, and how a blocking one is called in a thread, so that its end is never mistaken."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .errors import UsageError


def is_async(handler: Any) -> bool:
    """An `async def`, or an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(handler.__call__)


def check(handler: Callable[..., object]) -> None:
    """At decoration. Raises UsageError(wrong_colour) for a generator: calling one runs nothing."""
    if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
        raise UsageError("wrong_colour", f"{handler!r} has a yield, so calling it runs nothing; a handler is a plain `def` or `async def`")


def call_blocking(handler: Callable[..., object], *given: object) -> None:
    """Call it, in a thread. What it raises comes out.

    Raises UsageError(wrong_colour) where it only made something to be awaited or iterated: its work is not done, and must not be acked.
    """
    try:
        made = handler(*given)
    except StopIteration as error:  # a future cannot carry it: who awaits one would wait for ever, and the lease be renewed for ever
        raise RuntimeError("the handler raised StopIteration; did a next() find nothing?") from error
    if inspect.iscoroutine(made):
        made.close()
    if inspect.isawaitable(made) or inspect.isgenerator(made) or inspect.isasyncgen(made):
        raise UsageError("wrong_colour", f"{handler!r} ran as a `def` and gave a {type(made).__name__}, which does nothing; make it `async def`")
