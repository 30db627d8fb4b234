"""What a consumer gets, and the two words that a handler says by raising: Retry (not now) and Reject (never)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from ._body import JSON_TYPE
from ._units import Seconds

T = TypeVar("T")


class Retry(Exception):
    """Raise from a handler: not now. Rolls back and delivers again after `delay`; `counts=False` costs no attempt."""

    def __init__(self, reason: str = "", *, delay: Seconds | None = None, counts: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay = delay
        self.counts = counts


class Reject(Exception):
    """Raise from a handler: never. Rolls back; the message goes straight to the dead letters with this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Fields(msgspec.Struct, frozen=True, kw_only=True, rename={"age": "age_s"}):
    """D of the wire without its body, whose form depends on the codec."""

    id: str
    transaction_id: str
    topic: str
    lane: int
    offset: int
    time: datetime
    group: str = ""
    token: str = ""
    lease_until: datetime | None = None
    generation: int = 1
    attempt: int = 1
    age: float = 0.0
    key: str | None = None
    sequence: int | None = None
    tag: str | None = None
    attributes: Mapping[str, str] = {}
    content_type: str = JSON_TYPE
    traceparent: str | None = None
    producer: str | None = None
    source: str | None = None
    missed: Sequence[int] = ()
    redriven: bool = False
    forced: bool = False


class Delivery(Fields, frozen=True, kw_only=True, rename={"body": "data"}):
    """A message in this consumer's hand until `lease_until`. `body` is bytes as sent; decoding is the handler's act.

    `age` counts seconds since the group's first hand-out of it; `missed` names the numbers of its key that were passed over (R6).
    """

    body: bytes = b""

    def json(self) -> Any:
        """The body as JSON. What is not JSON never will be: raises Reject, so it goes to the dead letters and not round in circles."""
        return self.decode(Any)

    def decode(self, type: type[T]) -> T:
        """The body as a value of `type`, by msgspec's rules. A failure raises Reject."""
        try:
            return msgspec.json.decode(self.body, type=type)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise Reject(f"the body does not decode: {error}") from error
