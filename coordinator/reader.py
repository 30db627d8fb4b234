"""Reads beside the writer: one read-only connection on a thread of its own, with the store's own verbs.

Each call is one short snapshot that is read to its end: an open cursor over an await would pin the WAL. (The design names aiosqlite
here; the verbs of the store are synchronous, and writing each read twice would be worse than one thread.)
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .errors import Problem
from .store.sqlite import file
from .store.sqlite.backend import meaning
from .store.sqlite.deliveries import Deliveries

T = TypeVar("T")


class Reader:
    def __init__(self, path: Path, env: Any) -> None:
        self._path, self._env = path, env
        self._thread = ThreadPoolExecutor(1, "halfmsg-reader")
        self._tx: Deliveries | None = None

    async def open(self) -> None:
        await self.run(lambda tx: None)

    async def run(self, read: Callable[[Deliveries], T]) -> T:
        """Run `read(tx)` in one snapshot. Raises what it raises; storage_unavailable where the file cannot be read."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._snapshot, read)

    def _snapshot(self, read: Callable[[Deliveries], T]) -> T:
        try:
            tx = self._opened()
            tx.conn.execute("BEGIN")
            return read(tx)
        except sqlite3.Error as error:
            found = meaning(error)
            if found is error:
                raise
            raise Problem("storage_unavailable", f"the store cannot be read: {found}") from error
        except msgspec.MsgspecError as error:  # a row that does not decode: half a page was read, or it is damaged
            raise Problem("storage_unavailable", f"the store cannot be read: {error}") from error
        finally:
            self._end_snapshot()

    def _opened(self) -> Deliveries:
        if self._tx is None:
            conn = sqlite3.connect(file.read_only(self._path), uri=True, isolation_level=None, check_same_thread=False)
            self._tx = Deliveries(conn, self._env)
        return self._tx

    def _end_snapshot(self) -> None:
        """An error may have ended it already; only `in_transaction` tells."""
        if self._tx is not None:
            if self._tx.conn.in_transaction:
                self._tx.conn.execute("ROLLBACK")
            self._tx.forget()

    async def close(self) -> None:
        def end() -> None:
            if self._tx is not None:
                self._tx.conn.close()
                self._tx = None

        await asyncio.get_running_loop().run_in_executor(self._thread, end)
        self._thread.shutdown()
