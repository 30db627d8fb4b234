"""The standard library's sqlite3."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal

from ..effects import Abort, Aside, Begin, Check, Commit, Effect, Mark, Reset, Sql, Unmark
from ..errors import NotInTransaction, TransactionEnded

NOT_OPEN = (
    "no transaction is open on this sqlite3 connection; `with conn:` opens none until the first write. "
    "Say BEGIN IMMEDIATE first, or use `with outbox.transaction() as tx`"
)


MARK: Final = "SAVEPOINT halfmsg_block"
UNMARK: Final = "RELEASE SAVEPOINT halfmsg_block"


OURS: Final = ("synchronous = FULL", "query_only = 0", "ignore_check_constraints = 0", "writable_schema = 0")
"""What our connections are set to; user code that had one may have set it otherwise, and the next one counts on it (P2)."""


def meaning_of_unmark(error: sqlite3.OperationalError) -> Exception:
    return TransactionEnded() if "no such savepoint" in str(error) else error


def is_open(conn: Any) -> bool:
    """3.12 has `autocommit`: True refuses, False is always inside, -1 means the old rules."""
    mode = getattr(conn, "autocommit", -1)
    return bool(conn.in_transaction) if mode in (-1, True) else True


def commits_by_sql(conn: Any) -> bool:
    """3.12, autocommit=True: commit() and rollback() do nothing there, so it is said in SQL."""
    return getattr(conn, "autocommit", -1) is True


class SqliteAdapter:
    is_async: Literal[False] = False
    dialect: Literal["sqlite"] = "sqlite"
    not_open = NOT_OPEN

    def __init__(self, conn: sqlite3.Connection) -> None:
        self.conn = conn

    @property
    def alone(self) -> AbstractContextManager[object]:
        return nullcontext()

    def do(self, effect: Effect) -> Any:
        if isinstance(effect, Sql):
            return self._run(effect.text, effect.args)
        if isinstance(effect, Check):
            if not is_open(self.conn):
                raise NotInTransaction(self.not_open)
        elif isinstance(effect, Begin):
            self._run("BEGIN IMMEDIATE", ())
        elif isinstance(effect, Mark):
            self._run(MARK, ())
        elif isinstance(effect, Unmark):
            try:
                self._run(UNMARK, ())
            except sqlite3.OperationalError as error:
                raise meaning_of_unmark(error) from error
        elif isinstance(effect, Aside):
            effect.call()
        elif isinstance(effect, Commit):
            self._run("COMMIT", ()) if commits_by_sql(self.conn) else self.conn.commit()
        elif isinstance(effect, Abort) and self.conn.in_transaction:
            self._run("ROLLBACK", ()) if commits_by_sql(self.conn) else self.conn.rollback()
        elif isinstance(effect, Reset):
            self._reset()
        return None

    def _reset(self) -> None:
        """Raises where something stays that is no setting: such a connection is not lent again."""
        self.conn.row_factory, self.conn.text_factory, self.conn.isolation_level = None, str, None
        if sys.version_info >= (3, 12):
            self.conn.autocommit = sqlite3.LEGACY_TRANSACTION_CONTROL
        for setting in OURS:
            self._run(f"PRAGMA {setting}", ())
        attached = {row[1] for row in self._run("PRAGMA database_list", ())} - {"main", "temp"}  # this look makes `temp`, too
        if attached or self._run("SELECT 1 FROM sqlite_temp_master LIMIT 1", ()):
            raise sqlite3.ProgrammingError("user code has left a temporary table, or an attached database, on this connection")

    def _run(self, text: str, args: Any) -> list[Any]:
        cursor = self.conn.cursor()
        cursor.row_factory = None  # the caller's must not shape our rows
        try:
            return cursor.execute(text, args).fetchall()  # to the end: an open RETURNING makes the caller's COMMIT fail
        finally:
            cursor.close()

    def close(self) -> None:
        self.conn.close()


def adapter(on: Any) -> SqliteAdapter:
    return SqliteAdapter(on.connection if isinstance(on, sqlite3.Cursor) else on)
