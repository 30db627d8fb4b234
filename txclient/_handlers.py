"""A handler of either colour: which it is, and how a blocking one is called in a thread, so that its end is never mistaken."""

from __future__ import annotations

from collections.abc import Callable


def call_blocking(handler: Callable[..., object], *given: object) -> None:
    """Call it, in a thread. What it raises comes out."""
    try:
        handler(*given)
    except StopIteration as error:  # a future cannot carry it: who awaits one would wait for ever, and the lease be renewed for ever
        raise RuntimeError("the handler raised StopIteration; did a next() find nothing?") from error
