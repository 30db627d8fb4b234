"""A producer of the kill test: local transactions on its own SQLite database, in all ways in, with all ways to end.

The business rows stand in the same transaction as what the library writes; after all kills they alone say what has committed.
`--answers-only` is a second process on the same database that publishes nothing: it answers check-backs and relays, also while the first
is stopped or dead. SIGUSR1 ends the load, which is told by a file, SIGTERM the process.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import signal
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import aiosqlite

from halfmsg import Client, Outbox
from halfmsg.outbox import Fenced
from halfmsg.txclient import ApiError, Busy, Conflict, TransportError
from tests.kill import load
from tests.support import history

WORKERS: Final = 4
WAYS: Final = ("required", "prepared", "published")
ENDS: Final = {"commit": 77, "raise": 8, "early": 5, "silent": 6, "late": 3, "long": 1}
CANCELLED: Final = 0.03
"""How a local transaction ends. early: raises before the fence; silent: rolled back without a word; late: the first check-back comes before
the transaction begins; long: it comes while the fence's row is locked. A few are cancelled at a random moment, perhaps in COMMIT (R1)."""
LATE_S: Final = load.FIRST_CHECK_S * 2.5
INSERT: Final = "INSERT INTO work (tx, message, way, topic, key, sequence, digest, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
log = logging.getLogger("kill.producer")


class Halt(Exception):
    """The service changed its mind inside its transaction."""


class Recorder(Client):
    """A client that writes down each answer it got about a transaction, and hides nothing."""

    def __init__(self, url: str, book: history.Writer) -> None:
        super().__init__(url)
        self._book = book

    async def op(self, op: Any, *, timeout: float | None = None, retry: bool = True) -> Any:
        what, id = _about(op)
        try:
            answer = await super().op(op, timeout=timeout, retry=retry)
        except Conflict as error:
            if error.transaction is not None:
                self._book.add("answered", transaction=error.transaction.id, state=error.transaction.state, what=what, code=error.code)
            raise
        if what in ("prepare", "submit", "commit", "rollback"):
            self._book.add("acknowledged", what=what, transaction=id, state=answer["state"])
        return answer


def _about(op: Any) -> tuple[str, str]:
    if isinstance(op, dict):
        return op["op"], op["id"]
    kind = type(op).__name__.lower()
    return "send" if kind == "submit" else kind, getattr(op, "id", "")


class Shop:
    def __init__(self, name: str, process: str, folder: Path, url: str, chance: random.Random, rate: float) -> None:
        self.name, self.chance, self.rate = name, chance, rate
        self.path = load.database(folder, name)
        self.book = history.Writer(folder / f"{name}.events", process)
        self.client = Recorder(url, self.book)
        self.outbox = Outbox(self.client, name, f"sqlite:///{self.path}")
        self.loaded = asyncio.Event()
        self.serial = 0

    async def work(self) -> None:
        """One worker: a local transaction now and then until the load ends."""
        while not self.loaded.is_set():
            await asyncio.sleep(self.chance.expovariate(self.rate / WORKERS))
            task = asyncio.create_task(self._one())
            if self.chance.random() < CANCELLED:
                asyncio.get_running_loop().call_later(self.chance.uniform(0, 0.03), task.cancel)
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()) is not None:
                self._note(error)

    def _end(self) -> str:
        return self.chance.choices(list(ENDS), weights=list(ENDS.values()))[0]

    def _note(self, error: BaseException) -> None:
        """What a service must expect; anything else is odd, and the harness shows it."""
        expected = isinstance(error, Halt | Fenced | TransportError | Busy) or (isinstance(error, ApiError) and error.code == "stale_mark")
        if isinstance(error, sqlite3.OperationalError) and "locked" in str(error):
            expected = True
        if not expected:
            log.error("odd", exc_info=error)
            self.book.add("odd", error=f"{type(error).__name__}: {error}")

    def _items(self) -> list[load.Item]:
        items = []
        for _ in range(self.chance.choice((1, 1, 1, 2, 3))):
            self.serial += 1
            items.append(load.item(self.chance, f"{self.name}-{time.time_ns()}-{self.serial}"))
        return items

    async def _one(self) -> None:
        """One local transaction in one of the ways; rarely a plain send, tied to no database."""
        if self.chance.random() < 0.03:
            await self._send()
            return
        way, end, items = self.chance.choice(WAYS), self._end(), self._items()
        conn = await aiosqlite.connect(self.path, isolation_level=None, timeout=15.0)
        try:
            await conn.execute("PRAGMA synchronous = FULL")
            if way != "published":
                await self._half(conn, way, end, items)
            else:
                match self.chance.randrange(4):
                    case 0:
                        await asyncio.to_thread(self._in_thread, end, items)
                    case 1:
                        await self._block(end, items)
                    case _:
                        await self._bare(conn, end, items)
        finally:
            await asyncio.shield(conn.close())

    async def _half(self, conn: aiosqlite.Connection, way: str, end: str, items: Sequence[load.Item]) -> None:
        async with self.outbox.prepared(*(item.message() for item in items), required=way == "required") as half:
            if end == "late":
                await asyncio.sleep(LATE_S)
            await conn.execute("BEGIN IMMEDIATE")
            if end == "early":
                await conn.rollback()
                raise Halt
            receipts = await half.fence(conn)
            await self._rows(conn, receipts, items, way)
            await self._finish(conn, end)

    async def _block(self, end: str, items: Sequence[load.Item]) -> None:
        async with self.outbox.transaction() as tx:
            if end == "early":
                raise Halt
            receipts = await tx.publish_many([item.message() for item in items])
            await self._rows(tx.conn, receipts, items, "published")
            if end == "long":
                await asyncio.sleep(LATE_S / 2)
            self._change_mind(end, receipts)

    def _in_thread(self, end: str, items: Sequence[load.Item]) -> None:
        """The same for code without a loop."""
        with self.outbox.transaction() as tx:
            if end == "early":
                raise Halt
            receipts = tx.publish_many([item.message() for item in items])
            for row in _rows_of(receipts, items, "published"):
                tx.conn.execute(INSERT, row)
            self._change_mind(end, receipts)

    def _change_mind(self, end: str, receipts: Sequence[Any]) -> None:
        if end in ("raise", "silent"):
            self.book.add("rolled_back", transaction=receipts[0].transaction_id, producer=self.name)
            raise Halt

    async def _bare(self, conn: aiosqlite.Connection, end: str, items: Sequence[load.Item]) -> None:
        """Each message a halfmsg transaction of its own; one inside a savepoint that is undone leaves nothing behind (R16)."""
        await conn.execute("BEGIN IMMEDIATE")
        for item in items:
            undone = self.chance.random() < 0.1
            await conn.execute("SAVEPOINT one")
            receipt = await self.outbox.publish(conn, item.topic, item.body, **item.options())
            await self._rows(conn, [receipt], [item], "published")
            if undone:
                await conn.execute("ROLLBACK TO one")
                self.book.add("rolled_back", transaction=receipt.transaction_id, producer=self.name)
            await conn.execute("RELEASE one")
        await self._finish(conn, end)

    async def _finish(self, conn: aiosqlite.Connection, end: str) -> None:
        if end == "long":
            await asyncio.sleep(LATE_S / 2)
        if end == "raise":
            raise Halt  # the connection is closed with its transaction open
        await (conn.rollback() if end == "silent" else conn.commit())

    async def _rows(self, conn: Any, receipts: Sequence[Any], items: Sequence[load.Item], way: str) -> None:
        for row in _rows_of(receipts, items, way):
            await conn.execute(INSERT, row)

    async def _send(self) -> None:
        item = load.item(self.chance, f"{self.name}-{time.time_ns()}-sent")
        item = load.Item(load.PLAIN, None, item.tag, item.attributes, item.content_type, item.body)
        id = self.client._ids.transaction()
        self.book.add("sent", transaction=id, message=f"{id}-0", topic=item.topic, key=None, sequence=None, digest=item.digest)
        sent = await self.client.send(item.topic, item.body, id=id, **item.options())
        self.book.add("acknowledged", what="send", transaction=sent.id, state=sent.state)


def _rows_of(receipts: Sequence[Any], items: Sequence[load.Item], way: str) -> Iterator[tuple[Any, ...]]:
    for receipt, item in zip(receipts, items, strict=True):
        yield receipt.transaction_id, receipt.message_id, way, item.topic, item.key, receipt.sequence, item.digest, time.time()


async def main(given: argparse.Namespace) -> None:
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    shop = Shop(given.name, given.process, given.folder, given.url, random.Random(given.seed), given.rate)
    loop.add_signal_handler(signal.SIGUSR1, shop.loaded.set)

    def end() -> None:
        shop.loaded.set()
        stopped.set()

    loop.add_signal_handler(signal.SIGTERM, end)
    async with shop.client, shop.outbox:
        load.tell(given.folder, given.process, "ready")
        if not given.answers_only:
            await asyncio.gather(*(shop.work() for _ in range(WORKERS)))
            load.tell(given.folder, given.process, "idle")
        await stopped.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--process", required=True)
    parser.add_argument("--folder", required=True, type=Path)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--answers-only", action="store_true")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(main(parser.parse_args()))
