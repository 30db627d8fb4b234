"""The SQLite backend: transaction life of the one writing connection, and what its errors mean."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from .. import failpoints
from ..base import StoreBroken, StoreFull
from . import file
from .base import Q
from .deliveries import Deliveries

_FULL = {sqlite3.SQLITE_FULL}
_BROKEN = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}


def meaning(error: Exception) -> Exception:
    """Full: refuse and go on. I/O error or damage: stop; a second fsync may lie about the first one. Else: a defect, as it is."""
    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _FULL:
        return StoreFull(str(error))
    return StoreBroken(f"{getattr(error, 'sqlite_errorname', '?')}: {error}") if code in _BROKEN else error


class SqliteBackend:
    """Owns the file until `close`. Raises StartError when it cannot."""

    def __init__(self, path: Path, *, env: Any, synchronous: str, now_ms: int) -> None:
        self.path = path
        self._lock = file.lock(path)
        try:
            self._conn = file.connect(path, synchronous)
        except BaseException:
            self._lock.close()
            raise
        try:
            file.migrate(self._conn, path, now_ms)
        except BaseException:
            self.close()
            raise
        self._tx = Deliveries(self._conn, env)

    @property
    def tx(self) -> Deliveries:
        return self._tx

    def newest_ms(self) -> int:
        """The newest time that anything was stored at; 0 in an empty store."""
        return int(self._conn.execute(Q.counter_get, ("now",)).fetchone()[0])

    def begin(self) -> None:
        self._conn.execute("BEGIN IMMEDIATE")
        self._tx.changes_before = self._conn.total_changes
        failpoints.hit("begun")

    def commit(self) -> None:
        self._tx.flush()
        failpoints.hit("applied")
        self._conn.execute("COMMIT")
        failpoints.hit("committed")

    def rollback(self) -> None:
        """An error may have rolled back already; only `in_transaction` tells."""
        if self._conn.in_transaction:
            self._conn.execute("ROLLBACK")
        self._tx.forget()

    def meaning(self, error: Exception) -> Exception:
        return meaning(error)

    def changes(self) -> int:
        return self._conn.total_changes

    def checkpoint(self) -> None:
        """Bound the WAL while idle. A reader in the way is no error: the next one gets further."""
        failpoints.hit("checkpoint")
        self._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        self._conn.close()
        self._lock.close()
