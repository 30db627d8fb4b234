"""A member of a group in the kill test. Its effects are rows of the database that its inbox is in, one commit with the inbox's row.

What a handler does to a message follows from the message and the group, so both members agree: most succeed, a few are rejected, always
fail, fail first after they have written, ask to be retried, or run past their lease.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import sqlite3
import time
from pathlib import Path
from typing import Any, Final

import aiosqlite

from halfmsg import Client, Consumer, Delivery, Inbox, Reject, Retry
from tests.kill import load
from tests.support import history

INSERT: Final = (
    "INSERT INTO effect (message, topic, key, sequence, producer, digest, generation, redriven, process, at)"
    " VALUES (:message, :topic, :key, :sequence, :producer, :digest, :generation, :redriven, :process, :at)"
)


def fate(group: str, delivery: Delivery) -> str:
    """In parts of 10,000."""
    at = int.from_bytes(hashlib.sha256(f"{group} {delivery.id}".encode()).digest()[:4], "big") % 10_000
    first = delivery.attempt == 1
    for limit, what in ((30, "reject"), (50, "fail"), (350, "retry" if delivery.attempt <= 2 else "done"), (650, "break" if first else "done")):
        if at < limit:
            return what
    return "slow" if at < 653 and first else "done"


def row(process: str, delivery: Delivery) -> dict[str, Any]:
    digest = history.content_digest(
        delivery.topic, delivery.key, delivery.tag, delivery.content_type, dict(delivery.attributes), delivery.body
    )  # fmt: skip
    return {
        "message": delivery.id, "topic": delivery.topic, "key": delivery.key, "sequence": delivery.sequence, "producer": delivery.producer,
        "digest": digest, "generation": delivery.generation, "redriven": delivery.redriven, "process": process, "at": time.time(),
    }  # fmt: skip


def before(what: str) -> None:
    if what == "reject":
        raise Reject("this one never")
    if what == "retry":
        raise Retry("not yet", delay=0.05)


def after(what: str) -> None:
    """The effect is written and not committed: it must go with the transaction."""
    if what in ("fail", "break"):
        raise RuntimeError(what)


def main(given: argparse.Namespace) -> None:
    inbox = Inbox(f"sqlite:///{load.database(given.folder, given.group)}")
    consumer = Consumer(Client(given.url), given.group, inbox=inbox, lease=load.LEASE_S, concurrency=8)

    @consumer.on(load.ORDERED)
    async def ordered(delivery: Delivery, conn: aiosqlite.Connection) -> None:
        what = fate(given.group, delivery)
        before(what)
        await conn.execute(INSERT, row(given.process, delivery))
        if what == "slow":
            await asyncio.sleep(load.LEASE_S * 1.3)
        after(what)

    @consumer.on(load.PLAIN)
    def plain(delivery: Delivery, conn: sqlite3.Connection) -> None:
        what = fate(given.group, delivery)
        before(what)
        conn.execute(INSERT, row(given.process, delivery))
        if what == "slow":
            time.sleep(load.LEASE_S * 1.3)
        after(what)

    load.tell(given.folder, given.process, "ready")
    consumer.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--group", required=True)
    parser.add_argument("--process", required=True)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--url", required=True)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    main(parser.parse_args())
