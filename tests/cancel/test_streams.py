"""The stream's handler cancelled at each of its awaits, in the middle of each kind of frame and operation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, get_args

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import WSMsgType, web

from halfmsg.coordinator import wire
from tests.cancel.rows import LONGEST_S, World
from tests.cancel.test_routes import Watch, goes_on, nothing_is_lost
from tests.clocks.life import BACKOFF_S, LEASE_S, PRODUCER, living
from tests.outbox.faults import cancel_at
from tests.support.clock import WildClock
from tests.support.serving import heard, say

CANCELS_MAX, NEVER = 60, 10_000
Script = Callable[[World], Awaitable[list[Any]]]
SUBSCRIBE = {"type": "subscribe", "group": "u", "credits": 10, "member": "s"}


class Cuts:
    """A server of the same streams, whose handler is cancelled at its k-th await."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.k = 0
        self.reached = False
        self.ended = asyncio.Event()

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/stream", self._handle)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0][:2])
        self.session = aiohttp.ClientSession()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.reached, self.error = await cancel_at(self.world.life.served.coordinator.streams.handle(request), self.k)
        if request.transport is not None:
            request.transport.abort()
        self.ended.set()
        return web.Response()

    async def run(self, k: int, frames: list[Any]) -> bool:
        """One connection: hello, the frames, a beat; until the beat is answered or the connection is gone. Was the k-th await reached?"""
        self.k, self.reached = k, False
        self.ended.clear()
        try:
            ws = await self.session.ws_connect(self.url + "/v1/stream", protocols=("halfmsg.v1.json",), autoclose=False)
            for frame in [{"type": "hello", "client": "test"}, *frames, {"type": "beat"}]:
                await say(ws, frame)
                if frame["type"] == "hello" and await heard(ws) is None:
                    break
            wanted = {"beat", "deliver"} if any(frame["type"] == "subscribe" for frame in frames) else {"beat"}
            while wanted and (frame := await heard(ws)) is not None:
                wanted.discard(frame["type"])
            assert not wanted or self.k < NEVER, f"no {wanted} came"
            await ws.close()
        except (aiohttp.ClientError, ConnectionError):
            pass
        async with asyncio.timeout(10):
            await self.ended.wait()
        return self.reached

    async def stop(self) -> None:
        await self.session.close()
        await self._runner.cleanup()


@pytest_asyncio.fixture
async def cuts(folder: Path) -> AsyncIterator[Cuts]:
    async with living(folder, WildClock()) as life:
        one = Cuts(World(life))
        await one.start()
        yield one
        await one.stop()


def op(name: str, **fields: Any) -> Callable[[str], dict[str, Any]]:
    return lambda id: {"type": "ops", "n": 1, "ops": [{"op": name, "id": id} | fields]}


def of_id(name: str, **fields: Any) -> Script:
    async def script(world: World) -> list[Any]:
        return [op(name, **fields)(world.id())]

    return script


def of_half(name: str, *, digest: bool = False) -> Script:
    async def script(world: World) -> list[Any]:
        id = await world.half()
        more = {"digest": world.life.digests[id]} if digest else {}
        return [op(name, producer=PRODUCER, **more)(id)]

    return script


def of_given(name: str, more: dict[str, Any], whole: dict[str, Any]) -> Script:
    async def script(world: World) -> list[Any]:
        given = await world.given()
        if name in ("ack", "reject"):  # the others end nothing: it is owed as before
            world.owed.discard(given["data"])
        return [{"type": "ops", "n": 1, "ops": [{"op": name, "group": "u", "deliveries": [{"token": given["token"]} | more]} | whole]}]

    return script


def of_news(*frames: dict[str, Any]) -> Script:
    async def script(world: World) -> list[Any]:
        await world.sent()
        return list(frames)

    return script


async def broken_op(world: World) -> list[Any]:
    return [{"type": "ops", "n": 1, "ops": [{"op": "no such"}, {"op": "rollback", "id": world.id(), "producer": PRODUCER}]}]


HALF = {"producer": PRODUCER, "messages": [{"topic": "u", "data": 0}]}
OPS: dict[type, Script] = {
    wire.Prepare: of_id("prepare", **HALF),
    wire.Submit: of_id("submit", messages=[{"topic": "a", "data": 0, "key": "k"}]),
    wire.Commit: of_half("commit", digest=True),
    wire.Rollback: of_half("rollback"),
    wire.Ack: of_given("ack", {}, {}),
    wire.Nack: of_given("nack", {"reason": "no"}, {}),
    wire.Reject: of_given("reject", {"reason": "no"}, {}),
    wire.Extend: of_given("extend", {}, {"by_s": LONGEST_S}),
}
FRAMES: dict[type, list[Script]] = {
    wire.HelloFrame: [of_news({"type": "hello", "client": "again", "producers": [{"name": PRODUCER}]})],
    wire.OpsFrame: [broken_op],
    wire.SubscribeFrame: [of_news(SUBSCRIBE), of_news(SUBSCRIBE, SUBSCRIBE)],
    wire.UnsubscribeFrame: [of_news(SUBSCRIBE, {"type": "unsubscribe", "group": "u"}, SUBSCRIBE)],
    wire.CreditFrame: [of_news(SUBSCRIBE | {"credits": 0}, {"type": "credit", "group": "u", "add": 5})],
    wire.VerdictsFrame: [of_news({"type": "verdicts", "n": 1, "verdicts": []})],
    wire.BeatFrame: [of_news({"type": "beat", "producers": [{"name": PRODUCER, "beats": ["a"]}]})],
}
CASES = [(kind.__name__, script) for kind, script in OPS.items()] + [(kind.__name__, each) for kind, some in FRAMES.items() for each in some]


def test_every_frame_and_operation_has_a_row() -> None:
    """A new one without a row fails here."""
    assert set(OPS) == set(get_args(wire.Op))
    assert set(FRAMES) == set(get_args(wire.ClientFrame))


@pytest.mark.parametrize(("name", "script"), CASES, ids=[f"{name}-{number}" for number, (name, _) in enumerate(CASES)])
async def test_p3_stream_cancelled_at_every_await_leaves_nothing_behind(cuts: Cuts, name: str, script: Script) -> None:
    """No connection, subscription, waiter, task or open transaction stays; what was handed out to nobody comes again."""
    world = cuts.world
    streams = world.life.served.coordinator.streams
    before = set(streams.connections)
    await cuts.run(NEVER, await script(world))
    for k in range(1, CANCELS_MAX):
        frames = await script(world)
        watch = Watch(world.life)
        reached = await cuts.run(k, frames)
        assert set(streams.connections) == before
        await watch.nothing_is_left()
        await goes_on(world)
        if not reached:
            break
    else:
        raise AssertionError("it never came to its end")
    assert k > 3, f"only {k} awaits were found: the script did not run"
    await nothing_is_lost(world)


@pytest.mark.parametrize("topic", ["a", "u"])
async def test_p7_subscription_whose_connection_is_cancelled_gives_its_lanes_back(cuts: Cuts, topic: str) -> None:
    """Wherever it was cut: after its lease another member gets everything, in order."""
    life = cuts.world.life
    sent: list[int] = []
    for k in range(1, CANCELS_MAX):
        sent.append(k)
        await life.send(topic, k)
        reached = await cuts.run(k, [SUBSCRIBE | {"group": topic, "member": f"m{k}"}])
        await life.written()
        await life.later(LEASE_S + 1)
        life.clock.advance(BACKOFF_S + 1)  # one that travelled alone is charged, and waits
        if not reached:
            break
    got: list[int] = []
    async with asyncio.timeout(10):
        while len(got) < len(sent):
            given = await life.fetch(topic, member="last")
            assert set(await life.settle("ack", topic, *given)) <= {""}
            got += [each["data"] for each in given]
            life.clock.advance(LEASE_S + 1)
            await life.turn()
    assert len(sent) > 5
    assert (got if topic == "a" else sorted(got)) == sent
    await life.is_sound()


async def test_p3_peer_that_says_nothing_leaves_nothing_behind(cuts: Cuts) -> None:
    """A TCP connection that upgrades and is cut off before its hello."""
    watch = Watch(cuts.world.life)
    ws = await cuts.session.ws_connect(cuts.world.life.served.url + "/v1/stream", protocols=("halfmsg.v1.json",))
    ws._response.connection.transport.abort()  # type: ignore[union-attr]
    assert (await ws.receive()).type in (WSMsgType.CLOSED, WSMsgType.ERROR, WSMsgType.CLOSING)
    await watch.nothing_is_left()
