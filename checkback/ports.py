"""What the poller needs from the world: a store, ways to ask, a clock, chance. The coordinator gives the real ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .verdict import Ruling


@dataclass(frozen=True, slots=True)
class DueCheck:
    """One transaction in doubt that was claimed for asking."""

    n: int
    """The store's number of the transaction."""
    id: str
    mark: int
    producer_id: int
    producer: str
    source: str | None
    """The producer's database, 32 hex; None while no hello has bound one (R12)."""
    prepared_at_ms: int
    attempts: int
    """`unknown` answers so far."""
    topics: tuple[str, ...] = ()


Judged = tuple[DueCheck, Ruling, int]
"""A check, what came of it, and how long the question took in ms."""


class Store(Protocol):
    """The coordinator's store, as far as asking is concerned."""

    def sources_with_open(self) -> Iterable[int]:
        """The producers (`producer_id`) that may have undecided transactions; one too many is harmless, one too few is never asked."""
        ...

    async def claim_due_checks(self, limits: Mapping[int, int]) -> list[DueCheck]:
        """Claim what is due, oldest first, at most `limits[producer_id]` of each producer, none of a producer that is not named.

        A claim moves the check's time ahead by a lease longer than `PollerSettings.lease_min_s` (W9); what is not ruled
        by then, because a process died, is due again.
        """
        ...

    async def apply_rulings(self, rulings: list[Judged]) -> None:
        """Apply the rulings of one question, in one transaction of the store; durable when it returns (P3).

        A transaction that was decided meanwhile keeps its decision (P4). If it raises, nothing was applied and
        the leases bring the checks back.
        """
        ...


class Way(Protocol):
    """One way to ask one producer."""

    @property
    def kind(self) -> str:
        """`stream` or `http`."""
        ...

    async def ask(self, question: dict[str, Any], timeout_s: float) -> Mapping[str, Ruling]:
        """Ask, and give a ruling for each id. Failures are `no_answer` rulings; only CancelledError is raised."""
        ...


class Ways(Protocol):
    """Who can be asked now."""

    def ways(self, producer: str) -> Sequence[Way]:
        """The ways to ask a producer, best first: its streams from the youngest, then its URL; empty = nobody can be asked."""
        ...


class Clock(Protocol):
    """The coordinator's clock (P10)."""

    def now_ms(self) -> int: ...


class Random(Protocol):
    """A source of chance."""

    def random(self) -> float:
        """Drawn from [0, 1)."""
        ...
