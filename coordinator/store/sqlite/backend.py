"""The SQLite backend: transaction life of the one writing connection, and what its errors mean."""

from __future__ import annotations

import logging
import os
import sqlite3
from pathlib import Path
from typing import Any

from ...errors import StartError
from .. import failpoints
from ..base import StoreBroken, StoreFull
from . import file, sums
from .base import Q
from .deliveries import Deliveries
from .sums import PageSums

log = logging.getLogger("halfmsg.store")
_FULL = {sqlite3.SQLITE_FULL}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
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
            self._sums, known, torn = _judge(path, synchronous)
            self._conn = file.connect(path, synchronous)
        except BaseException:
            self._lock.close()
            raise
        try:
            if not known:
                self._check_pages(path)
            file.migrate(self._conn, path, now_ms)
            if not known:
                self._sums.save()
            if torn:
                self._note_torn(torn, synchronous, now_ms)
        except BaseException as error:
            self._let_go()
            if isinstance(error, sqlite3.Error) and meaning(error) is not error:  # else a defect of the migration, with its traceback
                raise file.refusal(path, error) from error
            raise
        self._tx = Deliveries(self._conn, env)
        self._standing = file.Standing(path)

    def gone(self) -> Path | None:
        """The file of the store that was removed or replaced while it is open."""
        return self._standing.gone()

    def _check_pages(self, path: Path) -> None:
        """What SQLite has not found sound gets no sums: they would call the damage right, and the next start would take the store."""
        try:
            file.check_pages(self._conn, path)
        except BaseException:
            self._sums.give_up()
            raise

    def _note_torn(self, frames: int, synchronous: str, now_ms: int) -> None:
        """Where nothing tells a write that a power cut tore from damage to the last commit, it is written down."""
        of_one = "of one transaction: torn by a power cut, or the last commit, damaged"
        of_some = f"that synchronous={synchronous} had not made durable: the last commits may be lost"
        words = f"the log ended with {frames} unreadable pages {of_one if synchronous == 'FULL' else of_some}"
        log.warning("%s: %s", self.path, words)
        act = ("coordinator", "store.open", str(self.path.name), words)
        self._conn.execute("INSERT INTO audit (at, actor, act, target, reason) VALUES (?, ?, ?, ?, ?)", (now_ms, *act))

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
        if self._sums.is_due(file.WAL_PAGES):
            self._checkpoint_if_room()

    def rollback(self) -> None:
        """An error may have rolled back already; only `in_transaction` tells."""
        if self._conn.in_transaction:
            self._conn.execute("ROLLBACK")
        self._tx.forget()

    def meaning(self, error: Exception) -> Exception:
        """Damage that SQLite meets ends the page sums: the next start has SQLite look at the whole file, and refuses; no loop of crashes."""
        if isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
            self._sums.give_up()
        return meaning(error)

    def changes(self) -> int:
        return self._conn.total_changes

    def checkpoint(self) -> None:
        """Bound the WAL while idle. A reader in the way is no error, and nobody waits for it: the next checkpoint gets further."""
        failpoints.hit("checkpoint")
        (patience_ms,) = self._conn.execute("PRAGMA busy_timeout").fetchone()
        self._conn.execute("PRAGMA busy_timeout = 0").fetchall()
        try:
            self._checkpoint("PASSIVE")
            self._conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            self._conn.execute(f"PRAGMA busy_timeout = {int(patience_ms)}").fetchall()

    def relieve(self) -> None:
        """Move what can be moved from the WAL to the file, waiting for nobody: then the next transaction writes at its beginning."""
        self._checkpoint("PASSIVE")

    def _checkpoint_if_room(self) -> None:
        """The commit is durable without it: a full disk is no error of that commit. A failed fsync is not asked twice, so that one stops."""
        try:
            self._checkpoint("PASSIVE")
        except sqlite3.Error as error:
            if not isinstance(meaning(error), StoreFull):
                raise
            log.warning("no room for a checkpoint; the log grows until there is: %s", error)

    def _checkpoint(self, mode: str) -> None:
        """To the main file, then the sums of its pages, before anything else is written: then alone the log may begin anew."""
        _, frames, moved = self._conn.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        failpoints.hit("checkpointed")
        self._sums.update(frames, moved)

    def close(self) -> None:
        failed = self._let_go()
        if failed is not None:
            log.warning("the last checkpoint failed, the next start makes it: %s", failed)

    def _let_go(self) -> sqlite3.Error | None:
        """SQLite makes a checkpoint of its own when the last connection is closed, and takes no sums: where ours failed, they go first."""
        failed = None
        try:
            if self._conn.in_transaction:
                self._sums.give_up()
            else:
                self._checkpoint("PASSIVE")
        except sqlite3.Error as error:
            failed = error
            self._sums.give_up()
        finally:
            self._conn.close()
            self._sums.close()
            self._lock.close()
        return failed


def _judge(path: Path, synchronous: str) -> tuple[PageSums, bool, int]:
    """(the page sums, are they known to be right, torn frames). Raises StartError for damage, before SQLite touches anything."""
    if file.half_way(path).exists() and not path.exists():  # the store is moved aside first: where it stands, nothing was touched
        cause = f"a restore of {path} was cut short: {file.half_way(path)} is there"
        raise StartError(cause, f"Do it again: halfmsg restore FILE --store {path} --replace")
    if path.exists() and not os.access(path, os.W_OK):
        raise StartError(f"{path} is not writable by this user", f"Make it so: chmod u+w {path}, or name another file with --store")
    found, wrong = file.look(path, synchronous)
    words = file.damage(path, found, wrong)
    if words is not None:
        raise StartError(words, file.instead(path))
    file.check_version(path)
    stored = sums.load(path) if wrong is not None else None
    fresh = stored is None and path.exists() and path.stat().st_size > 0
    size = sums.page_size(path) if fresh else None
    if size is not None:
        stored = size, sums.of_file(path, size)
    kept = PageSums(path, stored, kept=not fresh and stored is not None, sync=synchronous != "OFF")
    if fresh and size is None:  # its first page is in the log alone
        kept.give_up()
    return kept, not fresh, found.torn
