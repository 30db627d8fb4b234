"""aiosqlite: sqlite3 on a thread. Cancelling an await cancels no statement, so each is shielded and waited for."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, TypeVar

import aiosqlite

from ..effects import Abort, Begin, Check, Commit, Effect, Mark, Reset, Sql, Steps, Unmark, run_sync
from ..errors import NotInTransaction
from .sqlite import MARK, NOT_OPEN, UNMARK, SqliteAdapter, commits_by_sql, is_open, meaning_of_unmark

T = TypeVar("T")


async def finished(work: Coroutine[Any, Any, T]) -> T:
    """Await to the end even when cancelled, then be cancelled: the statement runs on in its thread, and nobody may use the connection meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                continue
        if not task.cancelled():
            task.exception()  # seen, so that it is no warning; the cancellation is what the caller hears
        raise


async def opened(opening: aiosqlite.Connection) -> aiosqlite.Connection:
    """The open connection; cancelled meanwhile, it is closed, as nobody else knows of it."""
    task = asyncio.ensure_future(_awaited(opening))
    try:
        return await finished(_awaited(task))
    except asyncio.CancelledError:
        if not task.cancelled() and task.exception() is None:
            await finished(opening.close())
        raise


async def run_whole(conn: aiosqlite.Connection, steps: Steps[T]) -> T:
    """All steps in one hop to the connection's thread: a transaction of theirs never waits for the loop. Cancelled, they go to their end."""
    hop: Callable[..., Coroutine[Any, Any, T]] = conn._execute
    return await finished(hop(run_sync, steps, SqliteAdapter(conn._conn)))


async def _awaited(work: Awaitable[T]) -> T:
    return await work


class AiosqliteAdapter:
    is_async: Literal[True] = True
    dialect: Literal["sqlite"] = "sqlite"

    def __init__(self, conn: aiosqlite.Connection) -> None:
        self.conn = conn

    async def do(self, effect: Effect) -> Any:
        if isinstance(effect, Sql):
            return await finished(self._run(effect.text, effect.args))
        if isinstance(effect, Check):
            if not is_open(self.conn):
                raise NotInTransaction(NOT_OPEN.replace("sqlite3", "aiosqlite").replace("with outbox", "async with outbox"))
        elif isinstance(effect, Begin):
            await finished(self._run("BEGIN IMMEDIATE", ()))
        elif isinstance(effect, Mark):
            await finished(self._run(MARK, ()))
        elif isinstance(effect, Unmark):
            try:
                await finished(self._run(UNMARK, ()))
            except sqlite3.OperationalError as error:
                raise meaning_of_unmark(error) from error
        elif isinstance(effect, Commit):
            await finished(self._end("COMMIT", self.conn.commit))
        elif isinstance(effect, Abort) and self.conn.in_transaction:
            await finished(self._end("ROLLBACK", self.conn.rollback))
        elif isinstance(effect, Reset):
            self.conn.row_factory, self.conn.text_factory = None, str
        return None

    async def _end(self, text: str, end: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """The mode of 3.12 stands on the connection within, and may be read in its thread alone."""
        by_sql = sys.version_info >= (3, 12) and await self.conn._execute(commits_by_sql, self.conn._conn)
        await (self._run(text, ()) if by_sql else end())

    async def _run(self, text: str, args: Any) -> list[Any]:
        """One hop to the thread where the caller set no row factory, which is nearly always; else a cursor of our own, four hops."""
        if self.conn.row_factory is None:
            return list(await self.conn.execute_fetchall(text, args))
        cursor = await self.conn.cursor()
        cursor.row_factory = None
        try:
            await cursor.execute(text, args)
            return list(await cursor.fetchall())
        finally:
            await cursor.close()

    async def close(self) -> None:
        await finished(self.conn.close())


def adapter(on: Any) -> AiosqliteAdapter:
    return AiosqliteAdapter(on._conn if isinstance(on, aiosqlite.Cursor) else on)
