"""The four kinds of connection that a service may hand in, behind one set of verbs, so that one test speaks of all of them.

Everything here is the drivers' own API, used as a service would; nothing of the library is wrapped or replaced.
"""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiosqlite
import psycopg
import psycopg.sql

from halfmsg import Client, Outbox
from halfmsg.outbox import admin
from halfmsg.txclient import Message

KINDS = ("sqlite3", "aiosqlite", "psycopg", "psycopg async")
NOWHERE = "http://127.0.0.1:9"
"""Where no coordinator listens: what works with it makes no network call."""


async def settled(value: Any) -> Any:
    """The value, awaited where its colour asks for it."""
    return await value if inspect.isawaitable(value) else value


class Side:
    """One database of a service with a table `business`, and connections of one kind to it."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind, self.url = kind, url
        self.is_async = kind in ("aiosqlite", "psycopg async")
        self.dialect = "sqlite" if "sqlite" in kind else "postgresql"
        self._path = url.removeprefix("sqlite:///")
        self._open: list[Any] = []

    def install(self) -> None:
        admin.install(self.url)
        self.read("CREATE TABLE IF NOT EXISTS business (id TEXT PRIMARY KEY, deferred INTEGER)")

    def outbox(self, **options: Any) -> Outbox:
        """One that is not open: no relay, no network."""
        return Outbox(Client(NOWHERE), "orders", self.url, **options)

    # --- the service's own connections ---

    async def connect(self, *, autocommit: bool = False) -> Any:
        """As people write it: a driver's defaults, but SQLite waits 200 ms for a lock."""
        level: Any = None if autocommit else ""
        conn: Any
        if self.kind == "sqlite3":
            conn = sqlite3.connect(self._path, isolation_level=level, timeout=0.2, check_same_thread=False)
        elif self.kind == "aiosqlite":
            conn = await aiosqlite.connect(self._path, isolation_level=level, timeout=0.2)
        elif self.kind == "psycopg":
            conn = psycopg.connect(self.url, autocommit=autocommit)
        else:
            conn = await psycopg.AsyncConnection.connect(self.url, autocommit=autocommit)
        self._open.append(conn)
        return conn

    async def begin(self, conn: Any) -> None:
        await settled(conn.execute("BEGIN IMMEDIATE" if self.dialect == "sqlite" else "SELECT 1"))

    async def business(self, conn: Any, id: str = "b") -> None:
        mark = "?" if self.dialect == "sqlite" else "%s"
        await settled(conn.execute(f"INSERT INTO business (id) VALUES ({mark})", (id,)))

    async def execute(self, conn: Any, text: str) -> None:
        await settled(conn.execute(text))

    async def commit(self, conn: Any) -> None:
        await settled(conn.commit())

    async def rollback(self, conn: Any) -> None:
        await settled(conn.rollback())

    async def close(self) -> None:
        while self._open:
            await settled(self._open.pop().close())
        if self.dialect == "postgresql":
            _free.append(self.url)

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """A call that may wait for another connection: off the loop if its driver blocks."""
        return await (asyncio.to_thread(work) if not self.is_async else work())

    # --- what is committed, as a fresh connection sees it ---

    def read(self, text: str, *args: Any) -> list[tuple[Any, ...]]:
        """A statement on a connection of its own, committed."""
        if self.dialect == "sqlite":
            plain = sqlite3.connect(self._path, isolation_level=None, timeout=5)
            try:
                return plain.execute(text, args).fetchall()
            finally:
                plain.close()
        with psycopg.connect(self.url, autocommit=True) as conn:
            cursor = conn.execute(text.replace("?", "%s").encode(), args or None)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def broken_out(self) -> Iterator[None]:
        """Meanwhile no message row can be written: an error of a library statement, by the database itself."""
        self.read("ALTER TABLE halfmsg_out RENAME COLUMN body TO gone")
        try:
            yield
        finally:
            self.read("ALTER TABLE halfmsg_out RENAME COLUMN gone TO body")

    def count(self, table: str) -> int:
        return int(self.read(f"SELECT count(*) FROM {table}")[0][0])

    def counts(self) -> tuple[int, int, int]:
        """Rows of (business, out, fence): the three that share a fate."""
        return self.count("business"), self.count("halfmsg_out"), self.count("halfmsg_tx")

    def verdict(self, id: str) -> int | None:
        rows = self.read("SELECT verdict FROM halfmsg_tx WHERE id = ?", bytes.fromhex(id.replace("-", "")))
        return rows[0][0] if rows else None

    def last_number(self, key: str = "k", topic: str = "s") -> int:
        rows = self.read("SELECT n FROM halfmsg_seq WHERE topic = ? AND okey = ?", topic, key.encode())
        return int(rows[0][0]) if rows else 0


@asynccontextmanager
async def closing(outbox: Outbox) -> AsyncIterator[Outbox]:
    """An outbox that is never opened, and leaves no idle connection to the next test."""
    try:
        yield outbox
    finally:
        await outbox._home.aclose()
        outbox._home.close_sync()


_installed: list[bytes] = []


def sqlite_side(folder: Path, kind: str = "aiosqlite") -> Side:
    """A file with our tables: installed once, then copied and given a source id of its own."""
    path = folder / f"{uuid4().hex[:8]}.db"
    if _installed:
        path.write_bytes(_installed[0])
    side = Side(kind, f"sqlite:///{path}")
    if not _installed:
        side.install()
        _installed.append(path.read_bytes())
    side.read("UPDATE halfmsg_meta SET v = randomblob(16) WHERE k = 'source'")
    return side


_free: list[str] = []
_EMPTIED = ("tx", "out", "seq", "inbox", "key", "missed")


def postgres_side(server: str, kind: str = "psycopg async") -> Side:
    """A schema of its own in the scratch database, chosen by the URL: one that an earlier test has left, emptied, or a new one."""
    if _free:
        side = Side(kind, _free.pop())
        side.read("; ".join(["DELETE FROM business", *(f"DELETE FROM halfmsg_{name}" for name in _EMPTIED)]))
        side.read("UPDATE halfmsg_lane SET owner = NULL; UPDATE halfmsg_meta SET n = 0 WHERE k = 'purged_before'")
        side.read("UPDATE halfmsg_meta SET v = '' WHERE k = 'beats'")
        side.read("UPDATE halfmsg_meta SET v = ? WHERE k = 'source'", uuid4().bytes)
        return side
    schema = "s" + uuid4().hex[:12]
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(psycopg.sql.SQL("CREATE SCHEMA {}").format(psycopg.sql.Identifier(schema)))
    side = Side(kind, f"{server}?options=-csearch_path%3D{schema}")
    side.install()
    return side


def plain(key: str | None = "k", body: object = 1) -> Message:
    """A message with a key, so that it draws a number."""
    return Message("s", body, key=key) if key is not None else Message("u", body)
