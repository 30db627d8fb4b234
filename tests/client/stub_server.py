"""A small coordinator for the client's tests: real sockets, scripted answers, and signals instead of sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import msgspec
from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer

TIME_MS = 1_700_000_000_000
WHEN = "2026-01-01T00:00:00.000Z"


def transaction(op: Mapping[str, Any]) -> dict[str, Any]:
    """T as the coordinator would answer for this operation."""
    state = {"prepare": "prepared", "submit": "committed", "commit": "committed", "rollback": "rolled_back"}[op["op"]]
    messages = [{"id": f"{op['id']}-{index}", "topic": message["topic"]} for index, message in enumerate(op.get("messages", ()))]
    return {"id": op["id"], "state": state, "digest": "0" * 32, "prepared_at": WHEN, "attempts": 0, "messages": messages, "newer_field": 1}


def accept(op: Mapping[str, Any]) -> dict[str, Any]:
    """The answer that says yes to everything."""
    if "deliveries" in op:
        return {"ok": {"results": [{"ok": {"lease_until": WHEN}} for _ in op["deliveries"]]}}
    return {"ok": transaction(op)}


def refuse(code: str, status: int, **members: Any) -> dict[str, Any]:
    return {"error": {"code": code, "status": status, "detail": f"the stub says {code}", "title": code, **members}}


class Signal:
    """Counts what happened and lets a test wait for the n-th time."""

    def __init__(self) -> None:
        self._seen: list[Any] = []
        self._changed = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._seen)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._seen)

    def __getitem__(self, index: int) -> Any:
        return self._seen[index]

    async def add(self, what: Any) -> None:
        async with self._changed:
            self._seen.append(what)
            self._changed.notify_all()

    async def reach(self, count: int) -> list[Any]:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._seen) >= count)
            return list(self._seen)


class Connection:
    """One client's WebSocket, as the server sees it."""

    def __init__(self, ws: web.WebSocketResponse) -> None:
        self.ws = ws
        self.json = ws.ws_protocol == "halfmsg.v1.json"

    async def send(self, frame: Mapping[str, Any]) -> None:
        await (self.ws.send_str(msgspec.json.encode(frame).decode()) if self.json else self.ws.send_bytes(msgspec.msgpack.encode(frame)))

    async def kill(self, code: int = 1011) -> None:
        await self.ws.close(code=code)


class StubServer:
    """Answers hello and operations; `answer(op)` may be replaced, and `silent` keeps results back."""

    def __init__(self) -> None:
        self.answer: Callable[[Mapping[str, Any]], dict[str, Any]] = accept
        self.silent = False
        self.before_welcome: list[Mapping[str, Any]] = []
        self.at_hello: Callable[[], None] = lambda: None
        self.refuse_stream: int | None = None
        self.http: Callable[[web.Request, Any], tuple[int, Any]] = lambda request, body: (200, {})
        self.frames, self.ops, self.connections = Signal(), Signal(), Signal()
        self.refused: list[dict[str, str]] = []
        self.hellos, self.other, self.requests = Signal(), Signal(), Signal()
        self._server: TestServer | None = None
        self._port: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> Self:
        app = web.Application()
        app.router.add_get("/v1/stream", self._stream)
        app.router.add_route("*", "/{path:.*}", self._http)
        self._server = TestServer(app, host="127.0.0.1", port=self._port or 0)
        await self._server.start_server()
        self._port = self._server.port
        return self

    async def stop(self) -> None:
        for connection in self.connections:
            if not connection.ws.closed:
                await connection.kill()
        if self._server is not None:
            await self._server.close()

    async def _http(self, request: web.Request) -> web.Response:
        raw = await request.read()
        body = msgspec.json.decode(raw) if raw else None
        await self.requests.add((request.method, request.path_qs, body))
        status, answer = self.http(request, body)
        headers = {"Halfmsg-Time": str(TIME_MS + 5), "Halfmsg-Request-Id": "req-1"}
        kind = "application/json" if status < 400 else "application/problem+json"
        return web.Response(status=status, body=msgspec.json.encode(answer), content_type=kind, headers=headers)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        if self.refuse_stream is not None:
            return web.Response(status=self.refuse_stream)
        ws = web.WebSocketResponse(protocols=("halfmsg.v1.msgpack", "halfmsg.v1.json"), max_msg_size=8 * 1024 * 1024)
        await ws.prepare(request)
        connection = Connection(ws)
        async for message in ws:
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                break
            frame = msgspec.json.decode(message.data) if connection.json else msgspec.msgpack.decode(message.data)
            await self._frame(connection, frame)
        return ws

    async def _frame(self, connection: Connection, frame: Mapping[str, Any]) -> None:
        if frame["type"] == "hello":
            self.at_hello()
            for early in self.before_welcome:
                await connection.send(early)
            await connection.send({"type": "hello", "limits": {}, "server": "stub", "connection": "c", "time": TIME_MS, "refused": self.refused})
            await self.hellos.add(frame)
            if all(known is not connection for known in self.connections):
                await self.connections.add(connection)
        elif frame["type"] == "ops":
            await self.frames.add(frame)
            for op in frame["ops"]:
                await self.ops.add(op)
            if not self.silent:
                await connection.send({"type": "results", "n": frame["n"], "time": TIME_MS + 1, "results": [self.answer(op) for op in frame["ops"]]})
        else:
            await self.other.add(frame)
