"""Small real stand-ins for the poller's ports: a store in memory, scripted ways, a clock moved by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from halfmsg.checkback import ports, verdict
from halfmsg.checkback.ports import DueCheck, Judged
from halfmsg.checkback.verdict import Result, Ruling

SOURCE = "5" * 32
SECRET = "whsec_" + "QUJD" * 8  # base64 of 24 bytes
OTHER_SECRET = "whsec_" + "WFla" * 8


class Clock:
    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        return self.ms

    def unix_s(self) -> float:
        return self.ms / 1000

    def advance(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)


class NoChance:
    def random(self) -> float:
        return 0.0


def due(n: int, *, producer: str = "orders", producer_id: int = 1, source: str | None = SOURCE) -> DueCheck:
    return DueCheck(n, f"id-{n}", n * 10, producer_id, producer, source, 1_699_999_990_123, attempts=0, topics=("order.placed",))


class Store:
    """Gives out what is queued, within the limits, and keeps what is ruled."""

    def __init__(self, *checks: DueCheck) -> None:
        self.waiting = list(checks)
        self.limits: list[dict[int, int]] = []
        self.applied: list[list[Judged]] = []
        self.broken: Exception | None = None

    def sources_with_open(self) -> Iterable[int]:
        return sorted({check.producer_id for check in self.waiting})

    async def claim_due_checks(self, limits: Mapping[int, int]) -> list[DueCheck]:
        self.limits.append(dict(limits))
        left = dict(limits)
        claimed = []
        for check in self.waiting:
            if left.get(check.producer_id, 0) > 0:
                left[check.producer_id] -= 1
                claimed.append(check)
        self.waiting = [check for check in self.waiting if check not in claimed]
        return claimed

    async def apply_rulings(self, rulings: list[Judged]) -> None:
        if self.broken:
            raise self.broken
        self.applied.append(rulings)

    @property
    def results(self) -> dict[str, Result]:
        return {check.id: ruling.result for batch in self.applied for check, ruling, _ in batch}

    @property
    def details(self) -> dict[str, str]:
        return {check.id: ruling.detail for batch in self.applied for check, ruling, _ in batch}


Says = Callable[[list[str]], Mapping[str, Ruling]]


class Way:
    """Answers as scripted; `gate`, while set, holds the answers back."""

    def __init__(self, says: Says, kind: str = "http") -> None:
        self.says, self.kind = says, kind
        self.questions: list[dict[str, Any]] = []
        self.gate: asyncio.Event | None = None
        self.asked_at_once = self.most_at_once = 0

    async def ask(self, question: dict[str, Any], timeout_s: float) -> Mapping[str, Ruling]:
        self.questions.append(question)
        self.asked_at_once += 1
        self.most_at_once = max(self.most_at_once, self.asked_at_once)
        try:
            if self.gate:
                await self.gate.wait()
            return self.says([transaction["id"] for transaction in question["transactions"]])
        finally:
            self.asked_at_once -= 1


def says(result: Result, detail: str = "") -> Says:
    return lambda ids: {id_: Ruling(result, detail=detail) for id_ in ids}


def silent(detail: str = "timed out") -> Says:
    return lambda ids: verdict.no_answers(ids, detail)


class Ways:
    def __init__(self, **ways: Sequence[ports.Way]) -> None:
        self.by_producer = ways

    def ways(self, producer: str) -> Sequence[ports.Way]:
        return self.by_producer.get(producer, ())
