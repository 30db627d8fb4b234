"""What the processes of the kill test agree on: names of topics and groups, the tables, and what a message looks like."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from halfmsg import Message
from halfmsg.txclient import MessageOptions
from tests.support import history

ORDERED: Final = "orders"
PLAIN: Final = "notes"
BULK: Final = "bulk"  # written to and rolled back by the harness alone, so that a checkpoint is due
TOPICS: Final = {ORDERED: "sequence", PLAIN: "unordered", BULK: "unordered"}
GROUPS: Final = ("billing", "stock")
PRODUCERS: Final = ("shop-a", "shop-b")
BULK_PRODUCER: Final = "bulk"
KEYS: Final = [f"kunde-{n:02}" if n % 7 else f"Kundin ü {n}" for n in range(50)]

HOT: Final = 0.2  # of the ordered messages are of the first key

LEASE_S: Final = 2.0
FIRST_CHECK_S: Final = 0.7
MAX_ATTEMPTS: Final = 8

_PRODUCER_DDL = """
CREATE TABLE work (n INTEGER PRIMARY KEY AUTOINCREMENT, tx TEXT NOT NULL, message TEXT NOT NULL, way TEXT NOT NULL, topic TEXT NOT NULL,
    key TEXT, sequence INTEGER, digest TEXT NOT NULL, at REAL NOT NULL)"""
_CONSUMER_DDL = """
CREATE TABLE effect (n INTEGER PRIMARY KEY AUTOINCREMENT, message TEXT NOT NULL, topic TEXT NOT NULL, key TEXT, sequence INTEGER, producer TEXT,
    digest TEXT NOT NULL, generation INTEGER NOT NULL, redriven INTEGER NOT NULL, process TEXT NOT NULL, at REAL NOT NULL)"""


@dataclass(frozen=True, slots=True)
class Item:
    """One message before it is handed in, and its digest of the harness's own."""

    topic: str
    key: str | None
    tag: str | None
    attributes: dict[str, str]
    content_type: str
    body: bytes

    @property
    def digest(self) -> str:
        return history.content_digest(self.topic, self.key, self.tag, self.content_type, self.attributes, self.body)

    def options(self) -> MessageOptions:
        found = MessageOptions(content_type=self.content_type, attributes=self.attributes)
        if self.key is not None:
            found["key"] = self.key
        if self.tag is not None:
            found["tag"] = self.tag
        return found

    def message(self) -> Message:
        return Message(self.topic, self.body, **self.options())


def item(chance: random.Random, serial: str) -> Item:
    """A message of either topic; bytes, JSON and text of several sizes, so that a mixed-up body shows."""
    topic = ORDERED if chance.random() < 0.65 else PLAIN
    size = chance.choice((0, 20, 200, 3_000))
    match chance.randrange(3):
        case 0:
            body, content_type = serial.encode() + chance.randbytes(size), "application/octet-stream"
        case 1:
            body, content_type = json.dumps({"serial": serial, "pad": "ß" * size}, ensure_ascii=False).encode(), "application/json"
        case _:
            body, content_type = f" {serial} {'.' * size}\n".encode(), "text/plain; charset=utf-8"
    key = None
    if topic == ORDERED:
        key = KEYS[0] if chance.random() < HOT else chance.choice(KEYS)
    tag = chance.choice((None, "a", "b"))
    return Item(topic, key, tag, {"serial": serial} if chance.random() < 0.5 else {}, content_type, body)


def make_databases(folder: Path) -> None:
    for name in PRODUCERS:
        _make(database(folder, name), _PRODUCER_DDL)
    for name in GROUPS:
        _make(database(folder, name), _CONSUMER_DDL)


def database(folder: Path, name: str) -> Path:
    return folder / f"{name}.db"


def _make(path: Path, ddl: str) -> None:
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute(ddl)


async def pause(seconds: float) -> None:
    """Between two transactions of a load."""
    await asyncio.sleep(seconds)


def tell(folder: Path, name: str, what: str) -> None:
    """Tell the harness that this process is `ready` or `idle`; the file names its pid."""
    path = folder / f"{name}.{what}"
    new = path.with_suffix(f".{what}-new")
    new.write_text(str(os.getpid()))
    new.rename(path)
