"""What halfmsg.outbox and the sample may use of a client beyond the public API. Not for users; may change with any release."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

from ._delivery import Delivery
from .errors import HalfmsgError


class NotBegun(HalfmsgError):
    """The inbox could not begin: its database is away or locked. No attempt was made."""


class Attached(Protocol):
    """A producer that answers for its database. Of one name and source there may be several: any of them may be asked."""

    @property
    def name(self) -> str: ...
    @property
    def source(self) -> str | None:
        """32 hex digits; read at each hello and beat, so it may be learnt late."""

    async def answer(self, question: Mapping[str, Any], /) -> Mapping[str, Any]:
        """`{type, producer, source, transactions, holders?}` -> `{source?, verdicts, holders?}`. An exception is logged and not answered;
        what takes longer than the coordinator waits is cancelled.
        """
        ...

    def beat(self) -> Mapping[str, Any] | Awaitable[Mapping[str, Any]]:
        """`{beats?, clean_before?}`, asked when it is attached, with each connection and each 15 s; name and source are filled in. One that
        takes longer than 5 s is cancelled, and left out of this beat.
        """
        ...


class Claims(Protocol):
    """What a Consumer needs of an inbox. It calls `identity` once when serving begins and `aclose` once when it has ended."""

    def check(self, handler: Any, /) -> None:
        """At decoration. Raises UsageError(wrong_colour)."""

    async def identity(self) -> str:
        """32 hex digits: the inbox's database (R29)."""
        ...

    async def run(self, delivery: Delivery, handler: Any, /) -> None:
        """Claim, run the handler, commit: one transaction. A duplicate returns without running; what the handler raised is raised again.

        Raises NotBegun(inbox_away) where the handler was not called: it is asked again, and that costs the message no attempt.
        """

    async def aclose(self) -> None: ...


class Internal(Protocol):
    """The client's inner surface."""

    @property
    def timeout_s(self) -> float:
        """How long an operation may take if nothing else is said."""

    @property
    def time_ms(self) -> int | None:
        """The newest coordinator time seen by this process, for marks (R3)."""

    @property
    def connected(self) -> bool: ...
    @property
    def settled_before(self) -> Mapping[str, int]:
        """producer -> what the coordinator told in its last beat (R3)."""
        ...

    async def attach(self, producer: Attached) -> None:
        """Say hello for it and serve its questions, on this loop's connection, which is opened and kept open; waits for no other producer.

        Raises UsageError(bad_request) for the 65th of this loop: give it a Client of its own.
        """

    async def detach(self, producer: Attached) -> None: ...
    async def op(self, op: Any, *, timeout: float | None = None, retry: bool = True) -> Any:
        """One operation of the batch vocabulary (a mapping or struct; `data` of its messages is bytes) -> its `ok`, as plain values.

        `retry=False`: one try; fails at once where the last attempt to connect failed, and when the connection is lost under it.
        """

    async def get(self, path: str) -> Any: ...
    async def topics(self) -> Mapping[str, Mapping[str, Any]]: ...
    async def put_topic(self, name: str, **fields: Any) -> Mapping[str, Any]: ...
    async def put_group(self, name: str, **fields: Any) -> Mapping[str, Any]: ...
