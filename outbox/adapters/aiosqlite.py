"""aiosqlite: sqlite3 on a thread. Cancelling an await cancels no statement, so each is shielded and waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

import aiosqlite

from ..effects import Abort, Begin, Check, Commit, Effect, Sql
from ..errors import NotInTransaction
from .sqlite import NOT_OPEN

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


class AiosqliteAdapter:
    is_async: Literal[True] = True
    dialect: Literal["sqlite"] = "sqlite"

    def __init__(self, conn: aiosqlite.Connection) -> None:
        self.conn = conn

    async def do(self, effect: Effect) -> Any:
        if isinstance(effect, Sql):
            return await finished(self._run(effect.text, effect.args))
        if isinstance(effect, Check):
            if not self._is_open():
                raise NotInTransaction(NOT_OPEN.replace("sqlite3", "aiosqlite").replace("with outbox", "async with outbox"))
        elif isinstance(effect, Begin):
            await finished(self._run("BEGIN IMMEDIATE", ()))
        elif isinstance(effect, Commit):
            await finished(self.conn.commit())
        elif isinstance(effect, Abort) and self.conn.in_transaction:
            await finished(self.conn.rollback())
        return None

    def _is_open(self) -> bool:
        mode = getattr(self.conn, "autocommit", -1)
        return bool(self.conn.in_transaction) if mode in (-1, True) else True

    async def _run(self, text: str, args: Any) -> list[Any]:
        cursor = await self.conn.cursor()
        cursor.row_factory = None
        try:
            await cursor.execute(text, args)
            return list(await cursor.fetchall())
        finally:
            await cursor.close()

    async def close(self) -> None:
        await self.conn.close()


def adapter(on: Any) -> AiosqliteAdapter:
    return AiosqliteAdapter(on._conn if isinstance(on, aiosqlite.Cursor) else on)
