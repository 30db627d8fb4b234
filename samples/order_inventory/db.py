"""The few statements of both services, on SQLite (aiosqlite) or PostgreSQL (psycopg), whichever the URL names.

Nothing here knows halfmsg: it is the plumbing that any small service has. Statements are written with `?`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, LiteralString, TypeAlias, cast

import aiosqlite

if TYPE_CHECKING:
    import psycopg

Connection: TypeAlias = "aiosqlite.Connection | psycopg.AsyncConnection[Any]"

BUSY_TIMEOUT_S: Final = 15.0  # SQLite has one writer; the relay and the inbox of the same process write too
POSTGRES_CONNECTIONS: Final = 8


class Duplicate(Exception):
    """A row with this primary key is there already."""


class Again(Exception):
    """The database undid the transaction for a reason that passes (deadlock): run it again."""


class Database:
    """Connections of one database, handed out one transaction at a time: one on SQLite, which has one writer, else a few."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.postgres = url.startswith(("postgres://", "postgresql://"))
        if not self.postgres and not url.startswith("sqlite:///"):
            raise ValueError(f"{url!r} is neither sqlite:///FILE nor postgresql://...")
        self._free: asyncio.Queue[Connection] = asyncio.Queue()
        self._all: list[Connection] = []

    async def open(self, tables: LiteralString) -> None:
        """Connect and make the tables that are missing; `{id}` in `tables` becomes a key that counts up."""
        for _ in range(POSTGRES_CONNECTIONS if self.postgres else 1):
            self._all.append(await self._connect())
        counted = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY" if self.postgres else "INTEGER PRIMARY KEY AUTOINCREMENT"
        for statement in tables.replace("{id}", counted).split(";"):
            if statement.strip():
                await execute(self._all[0], statement)
        for conn in self._all:
            self._free.put_nowait(conn)

    async def close(self) -> None:
        for conn in self._all:
            await conn.close()
        self._all.clear()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection on which a transaction is open: committed at the end, rolled back when the block raises.

        Raises Duplicate or Again in place of the driver's error.
        """
        async with self._connection() as conn:
            try:
                async with _block(conn):
                    yield conn
            except Exception as error:
                raise _translated(error) from error

    async def rows(self, sql: LiteralString, args: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Read outside any transaction."""
        async with self._connection() as conn:
            return await execute(conn, sql, args)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        conn = await self._free.get()
        try:
            yield conn
        finally:
            self._free.put_nowait(conn)

    async def _connect(self) -> Connection:
        if self.postgres:
            import psycopg

            return await psycopg.AsyncConnection.connect(self.url, autocommit=True)
        conn = await aiosqlite.connect(self.url.removeprefix("sqlite:///"), isolation_level=None, timeout=BUSY_TIMEOUT_S)
        await conn.execute("PRAGMA journal_mode=WAL")
        return conn


async def execute(conn: Connection, sql: LiteralString, args: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """Run one statement; the rows that it returned."""
    if isinstance(conn, aiosqlite.Connection):
        return cast("list[tuple[Any, ...]]", list(await conn.execute_fetchall(sql, args)))
    cursor = await conn.execute(sql.replace("?", "%s"), args or None)  # None: `%` is no placeholder, and several statements may stand there
    return await cursor.fetchall() if cursor.description else []


async def execute_many(conn: Connection, sql: LiteralString, rows: Iterable[Sequence[object]]) -> None:
    if isinstance(conn, aiosqlite.Connection):
        await conn.executemany(sql, rows)
        return
    async with conn.cursor() as cursor:
        await cursor.executemany(sql.replace("?", "%s"), rows)


@asynccontextmanager
async def _block(conn: Connection) -> AsyncIterator[None]:
    if not isinstance(conn, aiosqlite.Connection):
        async with conn.transaction():
            yield
        return
    await conn.execute("BEGIN IMMEDIATE")  # a deferred one fails at its first write when somebody else wrote in between
    try:
        yield
        await conn.commit()
    finally:
        if conn.in_transaction:
            await conn.rollback()


def _translated(error: Exception) -> Exception:
    """Duplicate or Again where that is what the driver's error means."""
    if isinstance(error, aiosqlite.IntegrityError):
        return Duplicate(str(error))
    state = getattr(error, "sqlstate", None)
    if state == "23505":
        return Duplicate(str(error))
    return Again(str(error)) if state in ("40P01", "40001") else error
