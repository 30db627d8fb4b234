"""Five orders, and what can happen to one: it goes well, its local transaction fails, and each of the three processes dies under it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import aiohttp

from .csvbook import Invoice
from .screen import Screen
from .shop import Failed, Shop, until

ORDERS: Final = 5
LINES_MAX: Final = 20  # of the order whose last line is hit: the reader should see it in one glance


class Story:
    """Each scene takes an order that was not placed before, and says on the screen what became of it. Raises Failed."""

    def __init__(self, shop: Shop, screen: Screen) -> None:
        self.shop = shop
        self.screen = screen

    async def tell(self, invoices: Sequence[Invoice]) -> None:
        happy, failing, lost, offline, *others = invoices
        twice = next((order for order in others if 2 <= len(order.lines) <= LINES_MAX), others[0])
        await self.happy(happy)
        await self.rollback(failing)
        await self.lost_commit(lost)
        await self.coordinator_down(offline)
        await self.duplicate(twice)

    async def happy(self, order: Invoice) -> None:
        start = _now()
        await self._placed(order)
        await self.shop.complete(order)
        self._say(order, "prepared -> committed -> stock reserved", _now() - start)

    async def rollback(self, order: Invoice) -> None:
        start = _now()
        status, halves = await self.shop.place(order, fail=True)
        if status != 422 or not halves:
            raise Failed(f"order {order.number} was to fail and was answered {status}")

        async def rolled_back() -> bool:
            return all([(await self.shop.transaction(half))["state"] == "rolled_back" for half in halves])

        await until(rolled_back, f"the half message of order {order.number} to be rolled back")
        self._say(order, "prepared -> local transaction failed -> rolled back", _now() - start)

    async def lost_commit(self, order: Invoice) -> None:
        """The order service dies between its own commit and telling the coordinator: only a check-back can know."""
        start = _now()
        await self.shop.arm("orders", "after_commit")
        await self._dies(order)
        self._say(order, "prepared -> order service KILLED after its commit")
        doubtful = await self.shop.in_doubt()
        id = doubtful[0]["id"] if doubtful else ""
        if not id:
            raise Failed(f"order {order.number}: the coordinator has nothing in doubt")
        await self._asked_in_vain(id)
        self._say(order, f"in doubt {_now() - start:.1f} s, check-back: nobody there to ask; order service started again")
        await self.shop.trio.orders.start(self.shop.web)

        async def committed() -> bool:
            return bool((await self.shop.transaction(id))["state"] == "committed")

        await until(committed, f"the check-back of order {order.number}")
        found = await self.shop.transaction(id)
        if found.get("decided_by") != "check_back":
            raise Failed(f"order {order.number} was decided by {found.get('decided_by')}, not by a check-back")
        await self.shop.complete(order)
        self._say(order, "check-back: committed -> stock reserved", _now() - start)

    async def coordinator_down(self, order: Invoice) -> None:
        start = _now()
        await self.shop.trio.coordinator.kill()
        await self._placed(order)
        self._say(order, "coordinator KILLED; the order is taken all the same", _now() - start)
        await self.shop.trio.coordinator.start(self.shop.web)
        await self.shop.complete(order)
        self._say(order, "coordinator back -> handed over -> stock reserved", _now() - start)

    async def duplicate(self, order: Invoice) -> None:
        """The inventory dies inside the transaction of the order's last line: what it held is delivered again."""
        start = _now()
        await self.shop.arm("inventory", "in_effect", passes=len(order.lines) - 1)
        await self._placed(order)
        await self.shop.trio.inventory.gone()
        self._say(order, "committed -> inventory KILLED in mid-effect; started again")
        await self.shop.trio.inventory.start(self.shop.web)
        await self.shop.complete(order)
        moved = await self.shop.moves(order)
        if (moved["moves"], moved["lines"]) != (len(order.lines), len(order.lines)):
            raise Failed(f"order {order.number} has {len(order.lines)} lines and moved stock {moved['moves']} times")
        self._say(order, f"delivered again -> {len(order.lines)} lines, {moved['moves']} moves: no double", _now() - start)

    async def _placed(self, order: Invoice) -> None:
        status, _ = await self.shop.place(order)
        if status != 201:
            raise Failed(f"order {order.number} was answered {status}")

    async def _dies(self, order: Invoice) -> None:
        try:
            status, _ = await self.shop.place(order)
        except aiohttp.ClientError:
            await self.shop.trio.orders.gone()
            return
        raise Failed(f"the order service was to die under order {order.number} and answered {status}")

    async def _asked_in_vain(self, id: str) -> None:
        """Wait until the coordinator has tried to ask and put the next question off."""
        first = (await self.shop.transaction(id)).get("next_check_at")

        async def put_off() -> bool:
            found = await self.shop.transaction(id)
            if found["state"] != "prepared":
                raise Failed(f"transaction {id} is {found['state']}, though nobody could be asked")
            return found.get("next_check_at") != first

        await until(put_off, "the first check-back")

    def _say(self, order: Invoice, what: str, took: float | None = None) -> None:
        self.screen.event(f"order {order.number}  {what}", took)


def _now() -> float:
    return asyncio.get_running_loop().time()
