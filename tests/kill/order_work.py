"""The processes of the order test: a load that publishes on 100 keys, and a member whose effects are rows beside its inbox.

Each message carries the load's own count of its key, so the order is judged by numbers that the library never saw. A local transaction
that is undone takes its counts back.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from halfmsg import Client, Consumer, Delivery, Inbox, Message, Outbox, Retry
from tests.kill import load

TOPIC: Final = "ledger"
GROUP: Final = "books"
PRODUCERS: Final = ("east", "west")
KEYS: Final = [f"account-{n:03}" for n in range(100)]
LEASE_S: Final = 1.0
CONCURRENCY: Final = 2
"""Each effect is a commit of the one database that all members share, so more of them would only wait for its lock."""
BACKLOG_MAX: Final = 4_000
PAUSE_S: Final = 0.02
DDL: Final = (
    "CREATE TABLE effect (n INTEGER PRIMARY KEY AUTOINCREMENT, producer TEXT NOT NULL, key TEXT NOT NULL, number INTEGER NOT NULL,"
    " sequence INTEGER NOT NULL)"
)
INSERT: Final = "INSERT INTO effect (producer, key, number, sequence) VALUES (?, ?, ?, ?)"


class Halt(Exception):
    """The service undoes its local transaction."""


def make_database(folder: Path) -> None:
    with closing(sqlite3.connect(load.database(folder, GROUP))) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute(DDL)


def count_effects(folder: Path) -> int:
    with closing(sqlite3.connect(f"{load.database(folder, GROUP).as_uri()}?mode=ro", uri=True, timeout=30)) as conn:
        return int(conn.execute("SELECT coalesce(max(n), 0) FROM effect").fetchone()[0])


# --- load ---


async def publish(given: argparse.Namespace) -> None:
    """`effects` messages in local transactions of 1 to 60, never more than BACKLOG_MAX ahead of the effects; then tell the counts."""
    chance = random.Random(f"{given.seed} {given.process}")
    counts = dict.fromkeys(KEYS, 0)
    async with Client(given.url) as client, Outbox(client, given.process, f"sqlite:///{load.database(given.folder, given.process)}") as outbox:
        load.tell(given.folder, given.process, "ready")
        while (done := sum(counts.values())) < given.effects:
            while done * len(PRODUCERS) > count_effects(given.folder) + BACKLOG_MAX:  # noqa: ASYNC110 - the effects are another process's
                await asyncio.sleep(PAUSE_S)
            counts = await _transaction(outbox, chance, counts, min(chance.randint(1, 60), given.effects - done))
        (given.folder / f"{given.process}.counts").write_text(json.dumps(counts))
        load.tell(given.folder, given.process, "idle")
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        await stopped.wait()


async def _transaction(outbox: Outbox, chance: random.Random, counts: dict[str, int], size: int) -> dict[str, int]:
    after, messages = dict(counts), []
    for key in chance.choices(KEYS, k=size):
        after[key] += 1
        messages.append(Message(TOPIC, {"number": after[key]}, key=key))
    undone = chance.random() < 0.08
    try:
        async with outbox.transaction() as tx:
            await tx.publish_many(messages)
            if undone:
                raise Halt
    except Halt:
        return counts
    return after


# --- member ---


def fate(chance: random.Random, delivery: Delivery) -> str:
    """Most succeed; a few are put off, or break after their effect is written, for their first attempts."""
    at = chance.random()
    if delivery.attempt > 3:
        return "done"
    return "retry" if at < 0.004 else "break" if at < 0.008 else "slow" if at < 0.0082 else "done"


def consume(given: argparse.Namespace) -> None:
    chance = random.Random(f"{given.seed} {given.process} {time.time_ns()}")
    inbox = Inbox(f"sqlite:///{load.database(given.folder, GROUP)}")
    consumer = Consumer(Client(given.url), GROUP, inbox=inbox, lease=LEASE_S, concurrency=CONCURRENCY)

    @consumer.on(TOPIC)
    def book(delivery: Delivery, conn: sqlite3.Connection) -> None:
        what = fate(chance, delivery)
        if what == "retry":
            raise Retry("not yet", delay=0.02)
        conn.execute(INSERT, (delivery.producer, delivery.key, json.loads(delivery.body)["number"], delivery.sequence))
        if what == "break":
            raise RuntimeError("after the effect")
        if what == "slow":
            time.sleep(LEASE_S * 1.2)

    load.tell(given.folder, given.process, "ready")
    consumer.run()


def main() -> Any:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--process", required=True)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--effects", type=int, default=0, help="publish so many; 0: be a member of the group")
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    given = parser.parse_args()
    return asyncio.run(publish(given)) if given.effects else consume(given)


if __name__ == "__main__":
    main()
