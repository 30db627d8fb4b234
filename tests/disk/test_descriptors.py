"""Descriptors run out: a real coordinator with a small RLIMIT_NOFILE, and more connections than it can have."""

from __future__ import annotations

import asyncio
import functools
import resource
import socket
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.disk import power
from tests.disk.load import PLAIN, PRODUCER
from tests.disk.processes import Running, Zygote
from tests.disk.responder import Responder
from tests.support.serving import eventually, heard, say

LIMIT = 64
WATCHED_S = 3.0


class Crowd:
    """More connections than the coordinator has descriptors for; they say nothing."""

    def __init__(self, port: int) -> None:
        self.sockets = []
        for _ in range(LIMIT * 2):
            one = socket.create_connection(("127.0.0.1", port), timeout=5)
            self.sockets.append(one)

    def leave(self) -> None:
        for one in self.sockets:
            one.close()


def open_files(one: Running) -> int:
    return len(list(Path(f"/proc/{one.pid}/fd").iterdir()))


async def ask(session: aiohttp.ClientSession, port: int, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    async with session.request(method, f"http://127.0.0.1:{port}{path}", json=body) as answer:
        return answer.status, await answer.json()


def half(id: int, **more: Any) -> dict[str, Any]:
    return {"id": f"{id:032x}", "producer": PRODUCER, "messages": [{"topic": PLAIN, "data": 1}], **more}


async def test_p9_coordinator_without_descriptors_serves_whom_it_has(zygote: Zygote, folder: Path) -> None:
    """Newcomers wait in the kernel's queue, told of in a few log lines, at no cost of CPU; who is connected is served, and what is acknowledged
    is stored; a check-back that cannot connect is `no_answer` and decides nothing; when descriptors come free all goes on by itself."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > LIMIT * 4, "the test itself needs descriptors"
    one = zygote.start(folder / "store.db", "--set", "check.first_delay_s=300", descriptors=LIMIT)
    assert one.wait_up()
    responder = Responder()
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(connector=connector) as session, aiohttp.ClientSession() as streaming:
        await ask(session, one.port, "PUT", f"/v1/topics/{PLAIN}", {"kind": "unordered", "allow_no_group": True})
        responder.secret = (await ask(session, one.port, "PUT", f"/v1/producers/{PRODUCER}", {"check_url": responder.url}))[1]["secret"]
        ws = await streaming.ws_connect(f"http://127.0.0.1:{one.port}/v1/stream", protocols=("halfmsg.v1.json",))
        await say(ws, {"type": "hello", "client": "test"})
        assert (await heard(ws))["type"] == "hello"
        digest = (await ask(session, one.port, "POST", "/v1/transactions", half(1)))[1]["digest"]
        responder.verdicts["00000000-0000-0000-0000-000000000001"] = {"verdict": "committed", "digest": digest}
        crowd = await asyncio.to_thread(Crowd, one.port)
        try:
            await eventually(lambda: open_files(one) >= LIMIT, "all descriptors used")
            await _is_served(one, session, ws)
            status, asked = await ask(session, one.port, "POST", f"/v1/transactions/{1:032x}/check")
            assert (status, asked["items"][0]["verdict"], responder.asked) == (202, "no_answer", 0)
            assert (await ask(session, one.port, "GET", f"/v1/transactions/{1:032x}"))[1]["state"] == "prepared"
        finally:
            crowd.leave()
        await eventually(lambda: open_files(one) < LIMIT - 10, "descriptors free")
        async with aiohttp.ClientSession() as newcomer:
            assert (await ask(newcomer, one.port, "GET", "/v1/info"))[0] == 200
        asked = (await ask(session, one.port, "POST", f"/v1/transactions/{1:032x}/check"))[1]
        assert asked["items"][0]["verdict"] == "committed"
        assert (await ask(session, one.port, "GET", f"/v1/transactions/{1:032x}"))[1]["state"] == "committed"
        await ws.close()
    responder.close()
    assert await asyncio.to_thread(one.stop) == 0
    made = {uuid.UUID(int=1).bytes: True} | {uuid.UUID(int=id).bytes: False for id in range(1_000, 2_000)}
    assert power.judge(one.store, [], made) == []


async def _is_served(one: Running, session: aiohttp.ClientSession, ws: aiohttp.ClientWebSocketResponse) -> None:
    """For a few seconds the stream and the open connection are answered, at next to no cost, and the log tells it once in a while."""
    process, loop = psutil.Process(one.pid), asyncio.get_running_loop()
    lines, used, started = len(one.said().splitlines()), sum(process.cpu_times()[:2]), loop.time()
    rounds = 0
    while (took := loop.time() - started) < WATCHED_S:
        rounds += 1
        await say(ws, {"type": "ops", "n": rounds, "ops": [{"op": "prepare", **half(1_000 + rounds)}]})
        assert "ok" in (await heard(ws))["results"][0]
        assert (await ask(session, one.port, "GET", f"/v1/transactions/{1_000 + rounds:032x}"))[1]["state"] == "prepared"
        beat = loop.time() + 0.1
        await eventually(functools.partial(lambda until: loop.time() > until, beat), "the next look")
    used = (sum(process.cpu_times()[:2]) - used) / took
    said = one.said().splitlines()[lines:]
    assert rounds > 5
    assert used < 0.5, f"{used:.0%} of a CPU"
    assert len(said) <= 5, f"{len(said)} lines in {took:.0f} s: {said[:2]}"
    assert not any("Traceback" in line for line in said), said[:1]
