"""Several producers on one client: what hangs in one's database is nobody else's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from halfmsg.txclient import Client
from tests.support.serving import eventually

from .stub_server import Signal, StubServer


class Producer:
    """One whose database can be made to answer nothing."""

    def __init__(self, name: str, source: str | None = None) -> None:
        self.name, self.source = name, source
        self.there = asyncio.Event()
        self.asked, self.beaten = Signal(), Signal()

    async def answer(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        await self.asked.add(question)
        await self.there.wait()
        return {"verdicts": []}

    async def beat(self) -> Mapping[str, Any]:
        await self.beaten.add(None)
        await self.there.wait()
        return {"beats": [self.name]}


def sick(name: str = "sick") -> Producer:
    return Producer(name)


def well(name: str = "well", source: str | None = None) -> Producer:
    one = Producer(name, source)
    one.there.set()
    return one


def question(n: int, producer: str) -> dict[str, Any]:
    return {"type": "check", "n": n, "producer": producer, "transactions": [{"id": f"t{n}", "mark": 1}]}


async def beat_of(server: StubServer, names: set[str], after: int = 0) -> dict[str, Any]:
    """The first beat behind the first `after` frames that reports exactly these."""
    while True:
        for frame in (await server.other.reach(after + 1))[after:]:
            after += 1
            if frame["type"] == "beat" and {each["name"] for each in frame["producers"]} == names:
                return dict(frame)


async def answered(server: StubServer, n: int) -> None:
    seen = 0
    while not any(frame["type"] == "verdicts" and frame["n"] == n for frame in await server.other.reach(seen)):
        seen = len(server.other) + 1


async def test_outbox_opens_and_closes_whatever_its_neighbours_database_does(server: StubServer, client: Client) -> None:
    """A producer is attached and detached without a word from the others."""
    away, other = sick(), well()
    await client.attach(away)
    await away.beaten.reach(1)
    async with asyncio.timeout(3):
        await client.attach(other)
        await client.detach(other)
    assert [[each["name"] for each in hello["producers"]] for hello in await server.hellos.reach(3)] == [["sick"], ["sick", "well"], ["sick"]]
    await beat_of(server, {"well"})


async def test_producer_that_does_not_report_is_left_out_and_asked_with_the_next_beat(
    server: StubServer, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others' beat goes out without it; when its database is back it is in. Said once, not with each beat."""
    monkeypatch.setattr("halfmsg.txclient._stream.BEAT_S", 0.01)
    monkeypatch.setattr("halfmsg.txclient._producers.BEAT_TIMEOUT_S", 0.05, raising=False)
    away, other = sick(), well()
    for each in (away, other):
        await client.attach(each)
    async with asyncio.timeout(10):
        await beat_of(server, {"well"})
        await away.beaten.reach(3)
        assert [record.levelno for record in caplog.records if "beat" in record.getMessage()].count(logging.WARNING) == 1
        away.there.set()
        await beat_of(server, {"sick", "well"}, len(server.other))


async def test_producers_of_one_database_are_one_in_a_beat_too(server: StubServer, client: Client) -> None:
    """Two outboxes of one name and database: one hello, one report, as the frame has 64 places."""
    twins = [well("shop", "a" * 32), well("shop", "a" * 32)]
    for each in twins:
        await client.attach(each)
    frame = await beat_of(server, {"shop"})
    assert len(frame["producers"]) == len(server.hellos[0]["producers"]) == 1


async def test_p2_producer_whose_database_hangs_takes_the_places_of_no_other(server: StubServer, client: Client) -> None:
    """However many questions it leaves open, its neighbour's are answered."""
    away, other = sick(), well()
    for each in (away, other):
        await client.attach(each)
    await server.connections.reach(1)
    for n in range(80):
        await server.connections[0].send(question(n, "sick"))
    await away.asked.reach(8)
    await server.connections[0].send(question(100, "well"))
    async with asyncio.timeout(5):
        await answered(server, 100)
    assert len(away.asked) == 8


async def test_p2_answer_that_does_not_come_frees_its_place(
    server: StubServer, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever asked has given up: it is no answer, and what is asked next gets one."""
    monkeypatch.setattr("halfmsg.txclient._producers.ANSWER_S", 0.05, raising=False)
    away = sick("orders")
    await client.attach(away)
    await server.connections.reach(1)
    for n in range(8):
        await server.connections[0].send(question(n, "orders"))
    await away.asked.reach(8)
    async with asyncio.timeout(5):
        await eventually(lambda: sum("no answer" in record.getMessage() for record in caplog.records) == 8, "each is said to have no answer")
        away.there.set()
        await server.connections[0].send(question(8, "orders"))
        await answered(server, 8)
    assert [frame["n"] for frame in server.other if frame["type"] == "verdicts"] == [8]
