"""The library's own connections: what holds a lock, what falls silent, what the server has ended, and how many there are."""

from __future__ import annotations

import asyncio
import threading

from halfmsg import Client, Outbox
from halfmsg.outbox.effects import Begin, Commit, Steps

from .sides import Side, closing


async def test_p9_steps_of_ours_hold_no_lock_while_the_loop_stands_still(file: Side) -> None:
    """SQLite: a sync block in the loop's thread waits for the write lock. Who holds it must come to its end without the loop."""
    begun, ended = threading.Event(), threading.Event()

    def steps() -> Steps[None]:
        yield Begin()
        begun.set()
        yield Commit()
        ended.set()

    async with closing(file.outbox()) as outbox:
        running = asyncio.create_task(outbox._home.run(steps()))
        await asyncio.to_thread(begun.wait, 5)
        assert ended.wait(5)  # the loop stands still meanwhile, as under a sync block
        await running


async def test_p9_sync_blocks_beside_the_relay_on_its_loop(file: Side, client: Client) -> None:
    """An `async def` endpoint that uses sqlite3, on the loop of the relay: each block commits, none waits for a lock whose holder waits for it."""
    async with Outbox(client, "orders", file.url) as outbox:
        for n in range(50):
            with outbox.transaction() as tx:
                tx.publish("u", n)
            await client.ack(await client.fetch("g", wait=5))
        outbox._home.close_sync()
