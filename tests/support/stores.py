"""A store without a thread: one call is one transaction, begun, run and committed as the writer does it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from halfmsg.coordinator.env import Env
from halfmsg.coordinator.errors import Problem
from halfmsg.coordinator.settings import Settings
from halfmsg.coordinator.store.base import Backend
from halfmsg.coordinator.store.sqlite.backend import SqliteBackend
from tests.support.clock import ManualClock

Dump = dict[str, list[tuple[Any, ...]]]


class Store:
    """`run` and `do` commit, or roll back and raise. `events` are those of what was committed."""

    def __init__(self, backend: Backend, env: Env, clock: ManualClock) -> None:
        self.backend, self.env, self.clock = backend, env, clock
        self.events: list[tuple[Any, ...]] = []

    @property
    def tx(self) -> Any:
        """The verbs outside a transaction: for reads between two calls."""
        return self.backend.tx

    def run(self, fn: Callable[[Any, int, Any], Any], command: Any = None) -> Any:
        """One command. A Problem that is returned is committed first, then raised, as its caller sees it."""
        result = self.do(lambda tx: fn(tx, tx.now, command))
        if isinstance(result, Problem):
            raise result
        return result

    def do(self, act: Callable[[Any], Any]) -> Any:
        tx = self.backend.tx
        tx.now = self.clock.now_ms()
        self.backend.begin()
        try:
            result = act(tx)
            self.backend.commit()
        except BaseException:
            self.backend.rollback()
            raise
        self.events += tx.events
        tx.events = []
        return result

    def close(self) -> None:
        self.backend.close()


def open_sqlite(path: Path, env: Env | None = None, clock: ManualClock | None = None, *, synchronous: str = "OFF") -> Store:
    """Without fsync unless asked for: what transaction functions decide does not hang on it."""
    env, clock = env or Env(Settings()), clock or ManualClock()
    return Store(SqliteBackend(path, env=env, synchronous=synchronous, now_ms=clock.now_ms()), env, clock)


def changed_by_hand(path: Path) -> None:
    """Say that a test changed the file by itself: without page sums the next start asks SQLite and trusts it."""
    path.with_name(path.name + "-sums").unlink(missing_ok=True)


def dump(conn: sqlite3.Connection, *, without: tuple[str, ...] = ()) -> Dump:
    """Every row of every table, in a fixed order."""
    names = [row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    return {name: sorted(conn.execute(f'SELECT * FROM "{name}"').fetchall(), key=repr) for name in names if name not in without}


def dump_file(path: Path, *, without: tuple[str, ...] = ()) -> Dump:
    """What another process would read of the file now."""
    conn = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    try:
        conn.execute("BEGIN")
        return dump(conn, without=without)
    finally:
        conn.close()


def changed(before: Dump, after: Dump) -> dict[str, tuple[list[Any], list[Any]]]:
    """What differs: table -> (rows gone, rows new). Empty: nothing was stored."""
    found = {}
    for name in before.keys() | after.keys():
        old, new = before.get(name, []), after.get(name, [])
        if old != new:
            found[name] = ([row for row in old if row not in new], [row for row in new if row not in old])
    return found
