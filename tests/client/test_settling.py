"""What is told when the client's own queue is full: nothing was sent, so it is told again, in its order and not at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from halfmsg.txclient import Busy, Delivery, _clock
from halfmsg.txclient._hand import End, Settle
from halfmsg.txclient._settling import Settling
from halfmsg.txclient._wire import MAX_ITEMS

FULL = Busy("client_queue_full", "10,000 calls wait", status=429)


def delivery(token: str) -> Delivery:
    return Delivery(id="i-0", transaction_id="i", topic="t", lane=0, offset=0, time=datetime(2030, 1, 1, tzinfo=UTC), token=token)


class Told:
    """What reached the coordinator; the first `refused` calls find the queue full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refused: int) -> None:
        self.refused, self.pauses, self.calls = refused, 0, 0
        self.tokens: list[str] = []
        self.answers: list[tuple[str, bool]] = []
        self.settling = Settling(self.op, lambda: False, "g", lambda told, ok, _: self.answers.append((told.delivery.token, ok)))
        monkeypatch.setattr(_clock, "pause", self.pause)

    async def pause(self, _: float) -> None:
        self.pauses += 1
        if self.pauses == 1:
            self.settling.tell(Settle(End.ACK, delivery("late")))
        await asyncio.sleep(0)

    async def op(self, op: Any) -> dict[str, Any]:
        self.calls += 1
        if self.calls <= self.refused:
            raise FULL
        self.tokens += [item.token for item in op.deliveries]
        return {"results": [{"ok": {}} for _ in op.deliveries]}

    async def tell(self, end: End, *deliveries: Delivery) -> None:
        running = asyncio.create_task(self.settling.run())
        for one in deliveries:
            self.settling.tell(Settle(end, one))
        async with asyncio.timeout(10):
            await self.settling.idle()
        running.cancel()


async def test_p6_ack_that_was_never_sent_is_told_again_before_what_came_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lease is good: dropped, it would cost an attempt, and the next ack of its key would be out of order."""
    told = Told(monkeypatch, refused=1)
    await told.tell(End.ACK, delivery("first"))
    assert told.tokens == ["first", "late"]
    assert told.answers == [("first", True), ("late", True)]


async def test_p7_acks_behind_a_call_that_was_never_sent_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one call holds: the second, smaller one may find room where the first did not."""
    told, many = Told(monkeypatch, refused=1), [f"t{number}" for number in range(MAX_ITEMS + 1)]
    await told.tell(End.ACK, *map(delivery, many))
    assert told.tokens == [*many, "late"]


async def test_nack_that_was_never_sent_is_told_again_after_a_pause_each(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The queue says no at once: without a pause it would be asked as fast as a loop can, with a warning each time."""
    told = Told(monkeypatch, refused=6)
    with caplog.at_level("INFO"):
        await told.tell(End.NACK, delivery("first"))
    assert "first" in told.tokens
    assert told.pauses >= 3
    assert not caplog.records
