"""The stream's limits: credit, the door of the store, slow readers, how many streams; and who is asked over which."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from halfmsg.coordinator.settings import Settings, Storage, Streams
from tests.support.serving import DEADLINE_S, Served, eventually, heard, say, settings, started


@asynccontextmanager
async def standing(given: Settings) -> AsyncIterator[Served]:
    """A coordinator with an unordered topic and a group on it."""
    one = await started(given)
    try:
        async with aiohttp.ClientSession() as session:
            served = Served(one, session)
            await served.call("PUT", "/v1/topics/plain", {"kind": "unordered"})
            await served.call("PUT", "/v1/groups/g", {"topics": [{"topic": "plain"}]})
            yield served
    finally:
        await one.stop()


def submit(number: int, body: Any = 1) -> dict[str, Any]:
    return {"op": "submit", "id": f"018f0000-0000-7000-8000-{number:012}", "messages": [{"topic": "plain", "data": body}]}


async def test_p9_stream_sends_no_more_than_the_credit(tmp_path: Path) -> None:
    """Two credits: two of five messages; then exactly as many as are added."""
    async with standing(settings(tmp_path)) as coordinator:
        ws = await coordinator.stream()
        await say(ws, {"type": "ops", "n": 1, "ops": [submit(n) for n in range(5)]})
        assert all("ok" in each for each in (await heard(ws))["results"])
        await say(ws, {"type": "subscribe", "group": "g", "member": "m", "credits": 2})
        sent = [len((await heard(ws))["deliveries"])]
        for add in (1, 2):
            await say(ws, {"type": "credit", "group": "g", "add": add})
            sent.append(len((await heard(ws))["deliveries"]))
        assert sent == [2, 1, 2]
        await ws.close()


async def test_p2_member_whose_loop_stands_still_is_handed_no_more_until_it_says_a_word(tmp_path: Path) -> None:
    """Its connection stands all the while. Its lease ends, and what it has goes to the other one, not back to it; a word, and it is there again."""
    async with standing(settings(tmp_path)) as coordinator:
        await coordinator.call("PUT", "/v1/topics/keyed", {"kind": "arrival", "lanes": 2})
        await coordinator.call("PUT", "/v1/groups/ordered", {"topics": [{"topic": "keyed"}]})
        still, other = await coordinator.stream(), await coordinator.stream()
        for ws, member in ((still, "still"), (other, "other")):
            await say(ws, {"type": "subscribe", "group": "ordered", "member": member, "credits": 100, "lease_s": 3})

        async def lanes() -> dict[int, str]:
            places = await coordinator.coordinator.engine.read(lambda tx: tx.places(tx.group("ordered")[0].id))
            return {place.lane: place.owner for place in places}

        await eventually(lambda: _both(lanes), "a lane each")
        owners = await lanes()
        for key in KEYS:
            await coordinator.call("POST", "/v1/topics/keyed/messages", {"data": 1, "key": key})
        mine = {each["lane"] for each in (await heard(still))["deliveries"]}
        assert {owners[lane] for lane in mine} == {"still"}
        got: set[int] = set()
        while len(got) < len(KEYS):
            frame = await heard(other)
            if frame["type"] == "deliver":
                got |= {each["offset"] + 100 * each["lane"] for each in frame["deliveries"]}
                tokens = [{"token": each["token"]} for each in frame["deliveries"]]
                await say(other, {"type": "ops", "n": 1, "ops": [{"op": "ack", "group": "ordered", "deliveries": tokens}]})
        assert set((await lanes()).values()) == {"other"}
        await say(still, {"type": "credit", "group": "ordered", "add": 1})
        await eventually(lambda: _both(lanes), "its share again")
        await still.close()
        await other.close()


async def test_p2_member_that_was_heard_is_not_silenced_by_a_lease_that_ended_late(tmp_path: Path) -> None:
    """The writer stood (a disk) until a lease was over. The member had spoken meanwhile: it is handed on at once, not after a minute."""
    async with standing(settings(tmp_path)) as coordinator:
        engine = coordinator.coordinator.engine
        ws = await coordinator.stream()
        await say(ws, {"type": "subscribe", "group": "g", "member": "m", "credits": 100, "lease_s": 1})
        await coordinator.call("POST", "/v1/topics/plain/messages", {"data": 1})
        assert (await heard(ws))["type"] == "deliver"
        handed_out, disk = engine.clock.monotonic(), threading.Event()
        held = asyncio.ensure_future(engine._writer.outside(lambda: disk.wait(DEADLINE_S)))
        await say(ws, {"type": "credit", "group": "g", "add": 1})
        await eventually(lambda: engine.clock.monotonic() > handed_out + 1.5, "the end of the lease")
        disk.set()
        await held
        async with asyncio.timeout(DEADLINE_S):
            frame = await heard(ws)
        assert [each["attempt"] for each in frame["deliveries"]] == [2]
        await ws.close()


KEYS = [f"k{n}" for n in range(10)]
"""Some of them in each of two lanes."""


async def _both(lanes: Callable[[], Any]) -> bool:
    return set((await lanes()).values()) == {"still", "other"}


@asynccontextmanager
async def held(coordinator: Served) -> AsyncIterator[Callable[[], None]]:
    """The store's writer waits until the given function is called, or to the end."""
    go, reached = threading.Event(), threading.Event()

    def wait() -> None:
        reached.set()
        go.wait(20)

    waiting = asyncio.ensure_future(coordinator.coordinator.engine._writer.outside(wait))
    await eventually(reached.is_set, "the writer's thread at the gate")
    try:
        yield go.set
    finally:
        go.set()
        await waiting


@pytest.mark.parametrize(
    ("storage", "body", "fit"),
    [(Storage(queue_commands_max=4), "x", 3), (Storage(queue_bytes_max=10_000), "x" * 4_000, 2)],
    ids=["commands", "bytes"],
)
async def test_p9_full_queue_refuses_content_and_lets_decisions_in(tmp_path: Path, storage: Storage, body: str, fit: int) -> None:
    """While the store is busy so many submits wait; one more is overloaded at once, with its weight of bodies; a rollback still goes in."""
    async with standing(settings(tmp_path, storage=storage)) as coordinator:
        await coordinator.call("PUT", "/v1/producers/orders", {})
        ws = await coordinator.stream()
        told: dict[int, str] = {}

        async def hear() -> None:
            frame = await heard(ws)
            told[frame["n"]] = frame["results"][0].get("error", {}).get("code", "ok")

        async with held(coordinator) as go:
            for n in range(fit + 1):
                await say(ws, {"type": "ops", "n": n, "ops": [submit(n, body)]})
            await say(ws, {"type": "ops", "n": 50, "ops": [{"op": "rollback", "id": submit(50)["id"], "producer": "orders"}]})
            await say(ws, {"type": "ops", "n": 51, "ops": [{"op": "destroy"}]})  # answered without the store: so all before it were judged
            while 51 not in told:
                await hear()
            go()
            while len(told) < fit + 3:
                await hear()
        assert told == {n: "ok" for n in range(fit)} | {fit: "overloaded", 50: "ok", 51: "bad_request"}
        await ws.close()


async def test_p7_of_two_joins_under_way_the_later_one_stands(tmp_path: Path) -> None:
    """A member joins, hears nothing as the store is slow, and joins again over a new connection: the old one is handed nothing any more.

    Else a message may be lost on it while the next of its key goes out over the new one.
    """
    async with standing(settings(tmp_path)) as coordinator:
        old, new = await coordinator.stream(), await coordinator.stream()
        join = {"type": "subscribe", "group": "g", "member": "m", "credits": 3}
        queue = coordinator.coordinator.engine._writer
        async with held(coordinator) as go:
            for at, ws in enumerate((old, new), start=2):
                await say(ws, join)
                await eventually(lambda at=at: queue._calls_waiting >= at, "the join at the store")
            go()
        await say(new, {"type": "ops", "n": 1, "ops": [submit(n) for n in range(6)]})
        frames = [await heard(new) for _ in range(2)]
        assert [len(frame["deliveries"]) for frame in frames if frame["type"] == "deliver"] == [3]
        await say(old, {"type": "ops", "n": 2, "ops": [submit(6)]})
        assert (await heard(old))["type"] == "results"
        assert sorted(row[2:4] for row in coordinator.dump()["flight"]) == [(0, 2)]
        await old.close()
        await new.close()


async def test_p9_slow_reader_is_closed(tmp_path: Path) -> None:
    """What waits to be read has a limit: past it the stream is closed with 4408, and what was stored stays."""
    async with standing(settings(tmp_path, stream=Streams(unsent_bytes_max=5_000))) as coordinator:
        ws = await coordinator.stream()
        for n in (1, 2):
            await say(ws, {"type": "ops", "n": n, "ops": [submit(number) for number in range(100)]})
        last = await asyncio.wait_for(ws.receive(), DEADLINE_S)
        if last.type is aiohttp.WSMsgType.TEXT:  # what was on its way when the limit was passed
            last = await asyncio.wait_for(ws.receive(), DEADLINE_S)
        assert (last.type, last.data) == (aiohttp.WSMsgType.CLOSE, 4408)
        assert len(coordinator.dump()["log"]) == 100


async def test_p9_stream_past_the_limit_is_refused(tmp_path: Path) -> None:
    """The limit of streams is kept; when one ends there is room for another."""
    async with standing(settings(tmp_path, stream=Streams(connections_max=2))) as coordinator:
        first, second = await coordinator.stream(), await coordinator.stream()
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await coordinator.stream()
        assert refused.value.status == 503
        await first.close()
        await eventually(lambda: len(coordinator.coordinator.streams.connections) == 1, "the first stream's end")
        await (await coordinator.stream()).close()
        await second.close()


async def test_p5_only_a_stream_whose_hello_was_taken_is_asked(tmp_path: Path) -> None:
    """Another database under the name is connected later: the question still goes to the one that is bound (R7)."""
    async with standing(settings(tmp_path)) as coordinator:
        await coordinator.call("PUT", "/v1/producers/orders", {})
        streams = []
        for source in ("a" * 32, "b" * 32):
            ws = await coordinator.stream(hello=False)
            await say(ws, {"type": "hello", "client": "x", "producers": [{"name": "orders", "source": source}]})
            streams.append((ws, "refused" in await heard(ws)))
        assert [refused for _, refused in streams] == [False, True]
        asked = coordinator.coordinator.streams.of_producer("orders")
        assert [each.producers for each in asked] == [{"orders": "a" * 32}]
        for ws, _ in streams:
            await ws.close()
