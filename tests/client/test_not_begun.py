"""An inbox whose database is away: what no handler has seen has not failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from halfmsg.txclient import Client, Consumer, Delivery, _clock
from halfmsg.txclient._internal import NotBegun
from tests.support.serving import eventually

from .delivering import deliver, frames, serving, told, wire
from .stub_server import Signal, StubServer, accept, refuse

AWAY_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


class AwayInbox:
    """Begins nothing for the first `away` times."""

    def __init__(self, away: int) -> None:
        self.away = away
        self.tried, self.paused = list[str](), Signal()
        self.due = asyncio.Event()

    def check(self, handler: Any) -> None: ...
    async def identity(self) -> str:
        return "b" * 32

    async def run(self, delivery: Delivery, handler: Any) -> None:
        self.tried.append(delivery.token)
        if len(self.tried) <= self.away:
            raise NotBegun("inbox_away", "database is locked")
        await handler(delivery, "connection")

    async def aclose(self) -> None: ...

    async def pause(self, seconds: float) -> None:
        """In place of the clock's: the waits for this inbox are noted, and end when they are due; all others are as they were."""
        if seconds not in AWAY_S:
            return await real_pause(seconds)
        await self.paused.add(seconds)
        await self.due.wait()


real_pause = _clock.pause


def consumer_of(client: Client, inbox: AwayInbox, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[Consumer, list[str]]:
    monkeypatch.setattr(_clock, "pause", inbox.pause)
    consumer, ran = Consumer(client, "g", inbox=inbox, **more), list[str]()

    @consumer.on("t")
    async def handle(delivery: Delivery, conn: Any) -> None:
        ran.append(delivery.token)

    return consumer, ran


async def test_p2_what_the_inbox_could_not_begin_waits_and_is_begun_again(
    server: StubServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """No attempt is spent and the key's order stands: it is tried again until it runs, and what follows it comes behind it."""
    inbox = AwayInbox(2)
    consumer, ran = consumer_of(client, inbox, monkeypatch)
    inbox.due.set()
    async with serving(server, consumer):
        await server.connections[0].send(deliver(wire(0), wire(1)))
        assert (await told(server, 1))[0] == "ack t0"
        assert await told(server, 2) == ["ack t0", "ack t1"]
    assert (ran, inbox.tried, list(inbox.paused)) == (["t0", "t1"], ["t0", "t0", "t0", "t1"], [1.0, 2.0])
    assert consumer.counts == {"acked": 2, "retried": 0, "rejected": 0}


async def test_waits_for_an_inbox_double_up_to_half_a_minute(server: StubServer, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is away for hours is not asked each second."""
    inbox = AwayInbox(7)
    consumer, _ = consumer_of(client, inbox, monkeypatch)
    inbox.due.set()
    async with serving(server, consumer):
        await server.connections[0].send(deliver(wire(0)))
        await told(server, 1)
    assert list(inbox.paused) == [*AWAY_S, 30.0]


async def test_p2_what_was_not_begun_is_given_back_at_stop(server: StubServer, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """As what waited in the hand: at once, and without cost."""
    inbox = AwayInbox(100)
    consumer, ran = consumer_of(client, inbox, monkeypatch)
    async with serving(server, consumer), asyncio.timeout(10):
        await server.connections[0].send(deliver(wire(0), wire(1), wire(2, "other")))
        await inbox.paused.reach(2)
        consumer.stop()
        assert set(await told(server, 2)) == {"nack t0", "nack t2"}
    items = [one for op in server.ops for one in op["deliveries"]]
    assert [(one["counts"], one["delay_s"]) for one in items] == [(False, 0.0)] * 2
    assert [frame["holding"] for frame in await frames(server, "unsubscribe", 2)][1] == []
    assert ran == []


async def test_p7_what_was_not_begun_and_has_lost_its_lease_is_not_begun(
    server: StubServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """It is in another hand by then: nobody is told, and it comes again under a new token."""
    inbox = AwayInbox(1)
    consumer, ran = consumer_of(client, inbox, monkeypatch, lease=0.3)
    lost = asyncio.Event()

    def answer(op: Mapping[str, Any]) -> dict[str, Any]:
        if op["op"] == "extend" and any(one["token"] == "t0" for one in op["deliveries"]):
            lost.set()
            return {"ok": {"results": [refuse("lease_lost", 409) for _ in op["deliveries"]]}}
        return accept(op)

    server.answer = answer
    async with serving(server, consumer), asyncio.timeout(10):
        await server.connections[0].send(deliver(wire(0)))
        await lost.wait()
        await client.send("t", "its answer comes behind the refusal")
        inbox.due.set()
        await eventually(lambda: consumer.counts["retried"], "the lost one is given up")
        await server.connections[0].send(deliver(wire(0, token="t0b")))
        while "ack t0b" not in [f"{op['op']} {one['token']}" for op in list(server.ops) for one in op.get("deliveries", ())]:
            await server.ops.reach(len(server.ops) + 1)
    assert ran == ["t0b"]
    assert not [op for op in server.ops if op["op"] == "nack"]


async def test_inbox_that_is_away_is_said_once_and_not_for_each_message(
    server: StubServer, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says what is wrong; thousands would hide it."""
    inbox = AwayInbox(12)
    consumer, ran = consumer_of(client, inbox, monkeypatch)
    inbox.due.set()
    async with serving(server, consumer):
        await server.connections[0].send(deliver(*(wire(n, f"k{n}") for n in range(6))))
        await told(server, 6)
    assert len(ran) == 6
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == 1 and "database is locked" in said[0]
