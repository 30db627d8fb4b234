"""Pulling by hand, `Client.fetch` and `Inbox.claim`, over a connection that loses answers."""

from __future__ import annotations

import asyncio

from halfmsg import Client, Message
from halfmsg.coordinator.app import Coordinator

from .deliveries import inbox_of, take
from .faults import deaf_proxy
from .sides import Side


async def test_p2_p7_fetch_whose_answer_was_lost_is_not_overtaken(database: Side, coordinator: Coordinator, client: Client) -> None:
    """What the lost answer handed out comes back first. Else the inbox would take it for a repeat of what had come before it."""
    for number in range(1, 5):
        await client.submit([Message("s", number, key="k")], producer="orders", numbers=[number])
    done: list[int] = []
    async with deaf_proxy(f"http://{coordinator.address}") as (proxy, url), Client(url) as far, inbox_of(database) as inbox, asyncio.timeout(20):
        proxy.loses_answer_of = b"/fetch"
        while sum(done) < 10:
            for delivery in await far.fetch("g", max=2, wait=1, lease=1):
                done += [delivery.json()] if await take(database, inbox, delivery) else [-delivery.json()]
                await far.ack([delivery])
    assert done == [1, 2, 3, 4]
