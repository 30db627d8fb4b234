"""A producer and a consumer of the restore test, as processes of their own: business rows with an outbox, effects with an inbox."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sqlite3
from pathlib import Path

import aiosqlite

from halfmsg import Client, Consumer, Delivery, Inbox, Outbox
from tests.kill import load

TOPICS = {"orders": "sequence", "notes": "unordered"}
KEYS = ("a", "b", "c", "d")
SOLD = "CREATE TABLE IF NOT EXISTS sold (message TEXT, topic TEXT, key TEXT, sequence INTEGER, body BLOB)"
EFFECT = "CREATE TABLE IF NOT EXISTS effect (n INTEGER PRIMARY KEY AUTOINCREMENT, message TEXT, topic TEXT, key TEXT, sequence INTEGER, body BLOB)"


def table(path: Path, ddl: str) -> None:
    conn = sqlite3.connect(path)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute(ddl)
    conn.close()


async def produce(folder: Path, url: str, seed: int) -> None:
    dice, stop, ended = random.Random(seed), asyncio.Event(), asyncio.Event()
    path = folder / "producer.db"
    table(path, SOLD)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, stop.set)
    loop.add_signal_handler(signal.SIGTERM, lambda: (stop.set(), ended.set()))
    async with Client(url) as client, Outbox(client, "shop", f"sqlite:///{path}") as outbox:
        load.tell(folder, "producer", "ready")
        while not stop.is_set():
            async with outbox.transaction() as tx:
                topic = dice.choice(tuple(TOPICS))
                key = dice.choice(KEYS) if topic == "orders" else None
                body = dice.randbytes(50)
                receipt = await tx.publish(topic, body, key=key) if key else await tx.publish(topic, body)
                await tx.conn.execute("INSERT INTO sold VALUES (?, ?, ?, ?, ?)", (receipt.message_id, topic, key, receipt.sequence, body))
            await load.pause(dice.expovariate(100))
        load.tell(folder, "producer", "idle")
        await ended.wait()


def consume(folder: Path, url: str) -> None:
    path = folder / "consumer.db"
    table(path, EFFECT)
    consumer = Consumer(Client(url), "stock", inbox=Inbox(f"sqlite:///{path}"), lease=2.0)

    async def effect(delivery: Delivery, conn: aiosqlite.Connection) -> None:
        row = (delivery.id, delivery.topic, delivery.key, delivery.sequence, delivery.body)
        await conn.execute("INSERT INTO effect (message, topic, key, sequence, body) VALUES (?, ?, ?, ?, ?)", row)

    for topic in TOPICS:
        consumer.on(topic)(effect)
    load.tell(folder, "consumer", "ready")
    consumer.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("produce", "consume"))
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.role == "produce":
        asyncio.run(produce(given.folder, given.url, given.seed))
    else:
        consume(given.folder, given.url)
