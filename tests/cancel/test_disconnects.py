"""Clients that close their TCP connection in the middle: of a long poll, a body, a call, a stream."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_writer import StreamWriter
from aiohttp.test_utils import make_mocked_request

from tests.cancel.rows import World
from tests.cancel.test_routes import Watch, goes_on, nothing_is_lost
from tests.clocks.life import LEASE_S, PRODUCER, Life, living
from tests.support.clock import WildClock
from tests.support.serving import eventually, heard, say


@pytest_asyncio.fixture
async def world(folder: Path) -> AsyncIterator[World]:
    async with living(folder, WildClock()) as life:
        yield World(life)


async def connected(life: Life) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = life.served.coordinator.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


def request(method: str, path: str, body: Any, *, length: int | None = None) -> bytes:
    data = msgspec.json.encode(body)
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length or len(data)}\r\n\r\n"
    return head.encode() + data


async def test_p2_long_poll_whose_client_is_gone_takes_nothing(world: World) -> None:
    """What comes afterwards goes to who is there, at once, as a first attempt; not to the gone one for the length of a lease."""
    life = world.life
    hub = life.served.coordinator.engine.hub
    watch = Watch(life)
    _, writer = await connected(life)
    writer.write(request("POST", "/v1/groups/u/fetch", {"max": 10, "wait_s": 30}))
    await eventually(lambda: hub._waiters, "the waiter")
    writer.transport.abort()
    await eventually(lambda: not hub._waiters, "the end of the waiter", deadline_s=2)
    await watch.nothing_is_left()
    number = await world.sent()
    [given] = await life.fetch("u")
    assert (given["data"], given.get("attempt", 1)) == (number, 1)
    assert await life.settle("ack", "u", given) == [""]
    await life.is_sound()


async def test_client_gone_before_its_stream_is_answered_is_no_error(world: World) -> None:
    """Its request was read whole, and its connection is gone before the upgrade is written (simulation, seed 111)."""
    streams = world.life.served.coordinator.streams
    before, loop = list(streams.connections), asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.close()
    transport, protocol = await loop.create_connection(lambda: BaseProtocol(loop), sock=ours)
    transport.abort()
    await eventually(lambda: protocol.transport is None, "the end of the connection")
    head = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    request = make_mocked_request("GET", "/v1/stream", head, writer=StreamWriter(protocol, loop))
    assert not (await streams.handle(request)).prepared
    assert list(streams.connections) == before


@pytest.mark.parametrize("half", [True, False], ids=["half_a_body", "whole_body"])
async def test_p3_client_gone_in_the_middle_of_a_call_leaves_nothing_behind(world: World, half: bool) -> None:
    """Half a body stores nothing; a whole one is done or not, and never in part."""
    life = world.life
    for _ in range(10):
        id = world.id()
        body = {"id": id, "producer": PRODUCER, "messages": [{"topic": "u", "data": 0}] * 3}
        watch = Watch(life)
        _, writer = await connected(life)
        writer.write(request("POST", "/v1/transactions", body, length=100_000 if half else None))
        await writer.drain()
        writer.transport.abort()
        await watch.nothing_is_left()
        status, found = await life.served.call("GET", f"/v1/transactions/{id}")
        assert status == 404 or (not half and found["state"] == "prepared" and len(found["messages"]) == 3)
        await goes_on(world)
    await life.is_sound()


async def test_p2_stream_gone_with_deliveries_in_hand_loses_nothing(world: World) -> None:
    """No subscription and no waiter stays; what it had comes to another after the lease, in order."""
    life = world.life
    watch = Watch(life)
    await life.send("a", 1, 2, 3)
    ws = await life.served.stream()
    await say(ws, {"type": "subscribe", "group": "a", "credits": 2, "member": "gone"})
    frame = await heard(ws)
    assert [each["data"] for each in frame["deliveries"]] == [1, 2]
    ws._response.connection.transport.abort()  # type: ignore[union-attr]
    await eventually(lambda: len(life.served.coordinator.streams.connections) == 1, "the end of the connection", deadline_s=2)
    await watch.nothing_is_left()
    assert await life.fetch("a", member="other") == []
    await life.later(LEASE_S + 1)
    await life.drained("a", [1, 2, 3], member="other")
    await life.is_sound()


async def test_p2_many_clients_that_come_and_go_leave_nothing_behind(world: World) -> None:
    """Long polls, some cut before and some after news has come: each message is acked once in the end."""
    life = world.life
    watch = Watch(life)
    for number in range(20):
        _, writer = await connected(life)
        writer.write(request("POST", "/v1/groups/u/fetch", {"max": 1, "wait_s": 30}))
        await writer.drain()
        if number % 2:
            await world.sent()
        writer.transport.abort()
    await watch.nothing_is_left()
    await nothing_is_lost(world)
