"""aiosqlite: sqlite3 on a thread. Cancelling an await stops nothing in that thread, so each is shielded and waited for."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Literal, TypeVar

import aiosqlite

from ..effects import Abort, Steps, one, run_sync
from .sqlite import NOT_OPEN, SqliteAdapter
from .waiting import finished

T = TypeVar("T")


async def opened(opening: aiosqlite.Connection) -> aiosqlite.Connection:
    """The open connection; cancelled meanwhile, it is closed, as nobody else knows of it."""
    task = asyncio.ensure_future(_awaited(opening))
    try:
        return await finished(_awaited(task))
    except asyncio.CancelledError:
        if not task.cancelled() and task.exception() is None:
            await finished(opening.close())
        raise


async def _awaited(work: Awaitable[T]) -> T:
    return await work


class InThread(SqliteAdapter):
    """The connection within, in the thread that it belongs to."""

    not_open = NOT_OPEN.replace("sqlite3", "aiosqlite").replace("with outbox", "async with outbox")


class AiosqliteAdapter:
    is_async: Literal[True] = True
    dialect: Literal["sqlite"] = "sqlite"

    def __init__(self, conn: aiosqlite.Connection) -> None:
        self.conn = conn

    async def run(self, steps: Steps[T]) -> T:
        """All steps in one hop to the connection's thread. So nothing of another task comes between them, none of them comes behind the end of
        their transaction, and a transaction of their own never waits for the loop. Cancelled, they go to their end all the same.
        """
        hop: Callable[..., Coroutine[Any, Any, T]] = self.conn._execute
        return await finished(hop(run_sync, steps, InThread(self.conn._conn)))

    async def run_or_abort(self, steps: Steps[T]) -> T:
        """The thread has not heard of a cancellation: the steps stand, to their end."""
        try:
            return await self.run(steps)
        except asyncio.CancelledError:
            with suppress(ValueError, sqlite3.Error):  # the connection is closed, by now or in this moment
                await self.run(one(Abort()))
            raise

    async def close(self) -> None:
        await finished(self.conn.close())


def adapter(on: Any) -> AiosqliteAdapter:
    return AiosqliteAdapter(on._conn if isinstance(on, aiosqlite.Cursor) else on)
