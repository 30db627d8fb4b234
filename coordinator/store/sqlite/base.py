"""What the verbs of a SQLite transaction stand on: the connection, the statements, and memory that a rollback forgets."""

from __future__ import annotations

import sqlite3
from typing import Any

from ...messages import Group, Restored, Source, Topic
from ..queries import Queries

Q: Any = Queries("sqlite")
KEYS_CACHED_MAX = 50_000


class Memory:
    """What the one writer knows without asking. It is thrown away on rollback, so it never says what is not stored."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.topics_by_id: dict[int, Topic] = {}
        self.sources: dict[str, Source] = {}
        self.sources_by_id: dict[int, Source] = {}
        self.groups: dict[str, list[Group]] = {}
        self.groups_by_id: dict[int, Group] = {}
        self.groups_of_topic: dict[int, list[Group]] = {}
        self.keys: dict[tuple[int, int, int, bytes], int] = {}
        self.lane_ends: dict[tuple[int, int], int] = {}
        self.open_counts: dict[int, int] = {}
        self.counters: dict[str, int] = {}
        self.restored: Restored | None = None


class Connected:
    """Shared state of the verb classes."""

    def __init__(self, conn: sqlite3.Connection, env: Any) -> None:
        self.conn = conn
        self.env = env
        self.now = 0
        self.events: list[tuple[Any, ...]] = []
        self.memory = Memory()
        self.dirty_lanes: set[tuple[int, int]] = set()
        self.dirty_counters: set[str] = set()
        self.changes_before = 0
        """Of the connection, when the transaction began."""

    def emit(self, event: tuple[Any, ...]) -> None:
        self.events.append(event)

    def one(self, sql: str, *args: Any) -> Any:
        return self.conn.execute(sql, args).fetchone()

    def all(self, sql: str, *args: Any) -> list[Any]:
        return self.conn.execute(sql, args).fetchall()

    def run(self, sql: str, *args: Any) -> int:
        return self.conn.execute(sql, args).rowcount

    def counter(self, name: str) -> int:
        value = self.memory.counters.get(name)
        if value is None:
            row = self.one(Q.counter_get, name)
            value = self.memory.counters[name] = 0 if row is None else int(row[0])
        return value

    def put_counter(self, name: str, value: int) -> None:
        self.run(Q.counter_put, name, value)
        self.memory.counters[name] = value
        self.memory.restored = None

    def restored(self) -> Restored:
        if self.memory.restored is None:
            rows = (self.one(Q.counter_get, f"restored_{name}") for name in Restored.__struct_fields__)
            self.memory.restored = Restored(*(0 if row is None else int(row[0]) for row in rows))
        return self.memory.restored

    def set_counter(self, name: str, value: int) -> None:
        self.memory.counters[name] = value
        self.dirty_counters.add(name)

    def next_counter(self, name: str) -> int:
        """Stored counters, never max(rowid)+1: a purged number must not come back (R30)."""
        value = self.counter(name) + 1
        self.set_counter(name, value)
        return value

    def flush(self) -> None:
        """Write what was counted in memory during the group, and the time of what changed (R19); the last step before COMMIT."""
        for key in self.dirty_lanes:
            self.run(Q.lane_set, self.memory.lane_ends[key], *key)
        for name in self.dirty_counters:
            self.run(Q.counter_set, self.memory.counters[name], name)
        if self.conn.total_changes != self.changes_before:
            self.run(Q.counter_raise, self.now, "now")
        self.dirty_lanes.clear()
        self.dirty_counters.clear()

    def forget(self) -> None:
        """After a rollback: nothing in memory is known to be stored."""
        self.memory = Memory()
        self.events = []
        self.dirty_lanes.clear()
        self.dirty_counters.clear()
