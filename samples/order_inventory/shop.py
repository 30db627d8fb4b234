"""The demo as a customer of the two services and an onlooker of the coordinator, over plain HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import aiohttp

from .csvbook import Invoice
from .processes import Trio, ask

T = TypeVar("T")
LIMIT_S: Final = 30.0
POST_S: Final = 15.0
POLL_S: Final = 0.02
TOPICS: Final[Mapping[str, Mapping[str, Any]]] = {"stock.move": {"kind": "sequence", "lanes": 64}, "stock.reserved": {"kind": "unordered"}}
GROUPS: Final = {"inventory": "stock.move", "orders": "stock.reserved"}
PRODUCERS: Final = ("orders", "inventory")


class Failed(Exception):
    """What the demo promised did not happen; the text says what."""


class Shop:
    def __init__(self, web: aiohttp.ClientSession, trio: Trio) -> None:
        self.web = web
        self.trio = trio

    async def furnish(self) -> None:
        """Make the producers, topics and groups, by name and on purpose. A failing move is tried for ever: stock must not be forgotten."""
        for producer in PRODUCERS:
            await self._put(f"/v1/producers/{producer}", {})
        for topic, kind in TOPICS.items():
            await self._put(f"/v1/topics/{topic}", kind)
        for group, topic in GROUPS.items():
            backoff = {"first_s": 0.2, "max_s": 2}
            await self._put(f"/v1/groups/{group}", {"topics": [{"topic": topic}], "lease_s": 2, "max_attempts": None, "backoff": backoff})

    async def _put(self, path: str, body: Mapping[str, Any]) -> None:
        async with self.web.put(self.trio.coordinator.url + path, json=body) as answer:
            if answer.status not in (200, 201):
                raise Failed(f"PUT {path} was answered {answer.status}: {await answer.text()}")

    async def place(self, invoice: Invoice, *, fail: bool = False) -> tuple[int, Sequence[str]]:
        """(status, its half messages). Raises aiohttp.ClientError where the order service died before it answered."""
        body = invoice.as_json() | ({"fail": True} if fail else {})
        async with self.web.post(f"{self.trio.orders.url}/invoices", json=body, timeout=aiohttp.ClientTimeout(total=POST_S)) as answer:
            found = await answer.json() if answer.content_type == "application/json" else {}
            return answer.status, found.get("transactions", ())

    async def arm(self, service: str, at: str, passes: int = 0) -> None:
        """Tell a service where to die."""
        url = (self.trio.orders if service == "orders" else self.trio.inventory).url
        async with self.web.post(f"{url}/crash", json={"at": at, "passes": passes}) as answer:
            if answer.status != 200:
                raise Failed(f"{service} does not take a crash point: {answer.status} {await answer.text()}")

    async def complete(self, invoice: Invoice) -> None:
        """Wait until each of its lines is answered."""

        async def answered() -> bool:
            shown = await ask(self.web, f"{self.trio.orders.url}/invoices/{invoice.number}")
            return shown is not None and bool(shown["complete"])

        await until(answered, f"order {invoice.number} to be answered by the inventory")

    async def moves(self, invoice: Invoice) -> Mapping[str, Any]:
        found = await ask(self.web, f"{self.trio.inventory.url}/moves/{invoice.number}")
        if found is None:
            raise Failed("the inventory does not answer")
        return found

    async def transaction(self, id: str) -> Mapping[str, Any]:
        found = await ask(self.web, f"{self.trio.coordinator.url}/v1/transactions/{id}")
        if found is None:
            raise Failed(f"the coordinator does not know transaction {id}")
        return found

    async def in_doubt(self) -> Sequence[Mapping[str, Any]] | None:
        """The transactions that wait for a decision; None where the coordinator is down."""
        found = await ask(self.web, f"{self.trio.coordinator.url}/v1/transactions?state=prepared&limit=1000")
        return None if found is None else found["items"]


async def until(holds: Callable[[], Awaitable[bool]], what: str, limit_s: float = LIMIT_S) -> None:
    """Look again and again until it holds. Raises Failed past the limit."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    while not await holds():
        if loop.time() > deadline:
            raise Failed(f"waited {limit_s:g} s for {what}")
        await asyncio.sleep(POLL_S)
