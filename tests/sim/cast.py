"""Who plays: the producers and consumers of the kill test, as nodes of the world, and a consumer that asks for trouble."""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import aiosqlite

from halfmsg import Client, Consumer, Delivery, Inbox
from halfmsg.outbox import Fenced
from halfmsg.txclient import ApiError, HalfmsgError
from tests.kill import consumer as killed
from tests.kill import load
from tests.kill.producer import Shop

from .recorder import SimRecorder, Twice
from .seams import WORK

if TYPE_CHECKING:
    from .world import World

URL = "http://127.0.0.1:7610"
RAW = "raw"
"""A group that fetches without an inbox and acks late: its effects prove nothing, its tokens do."""
CANCELLED = 0.1
WORKERS = 2


class SimShop(Shop):
    """A producer's process; several may work on one database."""

    def __init__(self, world: World, name: str, process: str, seed: int) -> None:
        super().__init__(name, process, world.folder, URL, random.Random(seed), world.rate)
        self.world = world
        self.client = SimRecorder(URL, self.book, world, self.chance)
        self.outbox.client = self.client

    async def main(self) -> None:
        async with self.client, self.outbox:
            node = self.world.node_here()
            if node is not None and self.outbox._relay is not None:
                self.world.relays[self.outbox._relay._owner] = node
            await asyncio.gather(*(self._work() for _ in range(WORKERS)))
            await asyncio.Event().wait()

    async def _work(self) -> None:
        world = self.world
        while not world.healed:
            await asyncio.sleep(self.chance.expovariate(self.rate / WORKERS))
            context = copy_context()
            context.run(WORK.set, work := object())
            task = asyncio.create_task(self._one(), context=context)
            if self.chance.random() < CANCELLED:
                asyncio.get_running_loop().call_later(self.chance.uniform(0, 0.03), self._cancel, task, work)
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                if isinstance(error, Fenced):
                    world.mark("late_commit_fenced")
                self._note(error)

    def _cancel(self, task: asyncio.Task[None], work: object) -> None:
        node = self.world.node_here()
        if not task.done() and node is not None and node.is_committing(work):
            self.world.mark("cancel_in_commit")
        task.cancel()

    async def _half(self, conn: aiosqlite.Connection, way: str, end: str, items: Any) -> None:
        try:
            await super()._half(conn, way, end, items)
        finally:
            await self._look(items)

    async def _look(self, items: Any) -> None:
        """Bodies in the rows of a half message: it went by rows."""
        if self.world.marks["rows_instead_of_half"]:
            return
        with sqlite3.connect(self.path) as conn:
            sql = """SELECT 1 FROM work w JOIN halfmsg_out o ON hex(o.tx_id) = upper(replace(w.tx, '-', ''))
                WHERE w.way = 'prepared' AND o.body IS NOT NULL"""
            if conn.execute(sql).fetchone():
                self.world.mark("rows_instead_of_half")
        conn.close()


async def stock(world: World, group: str, process: str) -> None:
    """A member of a group, with an inbox."""
    inbox = Inbox(f"sqlite:///{load.database(world.folder, group)}")
    consumer = Consumer(Client(URL), group, inbox=inbox, lease=load.LEASE_S, concurrency=4)

    async def handle(delivery: Delivery, conn: aiosqlite.Connection) -> None:
        _note_flag(world, delivery)
        what = killed.fate(group, delivery)
        killed.before(what)
        await conn.execute(killed.INSERT, killed.row(process, delivery))
        if what == "slow":
            await asyncio.sleep(load.LEASE_S * 1.3)
        killed.after(what)

    for topic in world.topics:
        consumer.on(topic)(handle)
    await consumer.serve()


async def zombie(world: World, seed: int) -> None:
    """Fetches, thinks too long, and acks, nacks or rejects all the same; also twice, and out of order."""
    chance = random.Random(seed)
    client = Client(URL)
    if world.wide:
        client = Twice(URL)
        client.doubled_in(world, random.Random(seed))
    while True:
        try:
            found = await client.fetch(RAW, max=chance.randrange(1, 8), wait=1.0, lease=1.0)
            chance.shuffle(found) if chance.random() < 0.2 else None
            if chance.random() < 0.3:
                await asyncio.sleep(chance.uniform(0.5, 3.0))
            for delivery in found:
                _note_flag(world, delivery)
                world.book.add("handed", group=RAW, **killed.row("zombie", delivery) | {"at": world.loop.time()})
                await _settle(client, delivery, chance, world)
        except HalfmsgError:
            await asyncio.sleep(0.2)


def _note_flag(world: World, delivery: Delivery) -> None:
    (world.flagged if delivery.forced else world.unflagged).add(delivery.transaction_id)


async def _settle(client: Client, delivery: Delivery, chance: random.Random, world: World) -> None:
    try:
        match chance.random():
            case at if at < 0.15:
                await client.nack(delivery, reason="not now", delay=0.1)
            case at if at < 0.18:
                await client.reject(delivery, reason="never")
                world.answered["reject"].add(delivery.token)
            case at if at < 0.25:
                await client.ack([delivery, delivery])
            case at if at < 0.28:
                return
            case _:
                await client.ack([delivery])
                world.answered["ack"].add(delivery.token)
    except ApiError:
        return


class Ear(logging.Handler):
    """What the system says in its logs: who holds a missing number, and errors. No fault of a world is one, but a decision by hand that
    was wrong is, at the relay whose word it contradicts."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "holder", "nobody") != "nobody":
            self.world.mark("gap_question_answered")
        if record.levelno >= logging.ERROR and not any(id in record.getMessage() for id in self.world.forced):
            cause = record.exc_info[1] if record.exc_info else None
            self.world.wrong(f"log: {record.name}: {record.getMessage()}: {cause!r}")
