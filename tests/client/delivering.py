"""What a test of consumers needs: deliveries as the stub hands them out, and what it was told of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from halfmsg.txclient import Consumer

from .stub_server import WHEN, StubServer


def wire(offset: int, key: str | None = "k", token: str | None = None) -> dict[str, Any]:
    content = {"id": f"i-{offset}", "transaction_id": "i", "topic": "t", "lane": 0, "offset": offset, "time": WHEN, "data": b"%d" % offset}
    return content | {"token": token or f"t{offset}"} | ({} if key is None else {"key": key})


def deliver(*deliveries: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "deliver", "group": "g", "deliveries": list(deliveries)}


async def frames(server: StubServer, kind: str, count: int = 1) -> list[dict[str, Any]]:
    seen = 0
    while True:
        found = [frame for frame in await server.other.reach(seen) if frame["type"] == kind]
        if len(found) >= count:
            return found
        seen = len(server.other) + 1


async def told(server: StubServer, count: int) -> list[str]:
    """What was acked, nacked or rejected, in short; waits until there are so many."""
    seen = 0
    while True:
        ops = [op for op in await server.ops.reach(seen) if op["op"] != "extend"]
        items = [f"{op['op']} {one['token']}" for op in ops for one in op["deliveries"]]
        if len(items) >= count:
            return items
        seen = len(server.ops) + 1


@asynccontextmanager
async def serving(server: StubServer, consumer: Consumer) -> AsyncIterator[None]:
    task = asyncio.create_task(consumer.serve())
    await asyncio.wait((task, asyncio.create_task(frames(server, "subscribe"))), return_when=asyncio.FIRST_COMPLETED)
    yield
    consumer.stop()
    await task
