"""The real coordinator in this process, and small ways to talk to it as a stranger would: plain HTTP and a plain WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from halfmsg.coordinator.app import Coordinator
from halfmsg.coordinator.clock import Clock
from halfmsg.coordinator.settings import Check, Settings
from tests.support.stores import Dump, dump_file

DEADLINE_S = 10.0


async def eventually(holds: Callable[[], Awaitable[Any] | Any], what: str = "the condition", *, deadline_s: float = DEADLINE_S) -> Any:
    """Look until `holds` gives something true, and give that; fail with `what` after the deadline."""
    loop = asyncio.get_running_loop()
    until = loop.time() + deadline_s
    while True:
        found = holds()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return found
        if loop.time() > until:
            raise AssertionError(f"{what} did not come true in {deadline_s:g} s")
        await asyncio.sleep(0.005)


def settings(path: Path, **more: Any) -> Settings:
    """Port 0, a file of this test, and check-backs so far away that none comes by itself."""
    return Settings(listen="127.0.0.1:0", store=str(path / "halfmsg.db"), **({"check": Check(first_delay_s=300)} | more))


class Served:
    """A started coordinator with its address, its file and a client session."""

    def __init__(self, coordinator: Coordinator, session: aiohttp.ClientSession) -> None:
        self.coordinator, self.session = coordinator, session
        self.path = Path(coordinator.settings.store)
        self.url = f"http://{coordinator.address}"

    async def call(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """(status, decoded answer)."""
        data = raw if raw is not None else None if body is None else msgspec.json.encode(body)
        given = {"Content-Type": "application/json"} if headers is None else headers
        async with self.session.request(method, self.url + path, data=data, headers=given) as answer:
            text = await answer.read()
            return answer.status, msgspec.json.decode(text) if text else None

    def dump(self, *, without: tuple[str, ...] = ()) -> Dump:
        return dump_file(self.path, without=without)

    async def stream(self, protocol: str | None = "halfmsg.v1.json", *, hello: bool = True) -> aiohttp.ClientWebSocketResponse:
        ws = await self.session.ws_connect(self.url + "/v1/stream", protocols=(protocol,) if protocol else (), max_msg_size=0)
        if hello:
            await say(ws, {"type": "hello", "client": "test"})
            assert (await heard(ws))["type"] == "hello"
        return ws


async def say(ws: aiohttp.ClientWebSocketResponse, frame: Any) -> None:
    if ws.protocol == "halfmsg.v1.json":
        await ws.send_str(msgspec.json.encode(frame).decode())
    else:
        await ws.send_bytes(msgspec.msgpack.encode(frame))


async def heard(ws: aiohttp.ClientWebSocketResponse) -> Any:
    """The next frame, decoded; None when the stream was closed instead (`ws.close_code` says how)."""
    message = await asyncio.wait_for(ws.receive(), DEADLINE_S)
    if message.type is aiohttp.WSMsgType.TEXT:
        return msgspec.json.decode(message.data)
    if message.type is aiohttp.WSMsgType.BINARY:
        return msgspec.msgpack.decode(message.data)
    return None


async def started(given: Settings, clock: Clock | None = None) -> Coordinator:
    coordinator = Coordinator(given, clock)
    await coordinator.start()
    return coordinator
