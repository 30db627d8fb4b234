"""The order service against a real coordinator: an order that is slower than its first check-back is taken all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from halfmsg.coordinator.settings import Check
from halfmsg.samples.order_inventory import db
from halfmsg.samples.order_inventory.order import MOVE, NAME, Orders
from halfmsg.samples.order_inventory.service import Options
from tests.support import serving
from tests.support.serving import Served, eventually

ORDER = {
    "invoice": "1", "at": "2010-12-01", "customer": "c", "country": "f",
    "lines": [{"code": "A", "description": "", "quantity": 2, "price": "1.0"}, {"code": "B", "description": "", "quantity": 3, "price": "1.0"}],
}  # fmt: skip


async def test_p2_order_slower_than_its_first_check_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aiohttp_client: Callable[[web.Application], Awaitable[Any]]
) -> None:
    """The check-back rules that the first attempt rolled back; the next goes beside the order's rows, where none can overtake it."""
    coordinator = await serving.started(serving.settings(tmp_path, check=Check(first_delay_s=0.05)))
    orders = Orders(Options(0, f"sqlite:///{tmp_path / 'orders.db'}", f"http://{coordinator.address}", False))
    async with aiohttp.ClientSession() as session:
        served = Served(coordinator, session)
        for path, body in ((f"topics/{MOVE}", {"kind": "sequence", "allow_no_group": True}), (f"producers/{NAME}", {})):
            assert (await served.call("PUT", f"/v1/{path}", body))[0] < 300

        async def in_state(state: str) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = (await served.call("GET", f"/v1/transactions?state={state}"))[1]["items"]
            return found

        begin, late = orders.database.transaction, [True]

        @asynccontextmanager
        async def transaction() -> AsyncIterator[db.Connection]:
            if late.pop() if late else False:
                await eventually(lambda: in_state("rolled_back"), "the check-back's ruling")
            async with begin() as conn:
                yield conn

        await orders.database.open(orders.tables)
        async with orders.outbox:
            monkeypatch.setattr(orders.database, "transaction", transaction)
            app = web.Application()
            app.add_routes(orders.routes())
            answer = await (await aiohttp_client(app)).post("/invoices", json=ORDER)
            assert (answer.status, (await answer.json())["transactions"]) == (201, []), "it was prepared a second time"
            [done] = await eventually(lambda: in_state("committed"), "the order's messages")
        assert [message["key"] for message in done["messages"]] == ["A", "B"]
        assert len(await in_state("rolled_back")) == 1
    await orders.client.aclose()
    await orders.database.close()
    await coordinator.stop()
