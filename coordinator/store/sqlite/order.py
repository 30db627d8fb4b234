"""Keys, numbers, lanes and the log on SQLite. One writer, so the lane's counter may wait in memory until the group's COMMIT."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from ...messages import Key, Logged, Topic
from .. import failpoints
from .base import KEYS_CACHED_MAX, Q
from .transactions import Transactions


def _logged(row: tuple[Any, ...]) -> Logged:
    """A damaged tag must not hide its row: what is no UTF-8 becomes surrogates, which no digest accepts (P8)."""
    tag = row[6]
    fields: tuple[Any, ...] = (*row[:6], None if tag is None else tag.decode(errors="surrogateescape"), *row[7:])
    return Logged(*fields)


class Order(Transactions):
    def key_id(self, topic: int, source: int, incarnation: int, key: bytes) -> int:
        wanted = (topic, source, incarnation, key)
        id = self.memory.keys.get(wanted)
        if id is None:
            row = self.one(Q.okey_find, *wanted)
            if row is None:
                self.run(Q.okey_insert, *wanted)
                row = self.one(Q.okey_find, *wanted)
            if len(self.memory.keys) >= KEYS_CACHED_MAX:
                self.memory.keys.clear()
            id = self.memory.keys[wanted] = int(row[0])
        return id

    def last_key(self) -> int:
        return int(self.one(Q.okey_last)[0] or 0)

    def key(self, id: int) -> Key:
        row = self.one(Q.okey_state, id)
        return Key(row[0], row[1], bool(row[2]), bool(row[3]))

    def key_name(self, id: int) -> tuple[int, int, int, bytes]:
        row: tuple[int, int, int, bytes] = self.one(Q.okey_row, id)
        return row

    def advance_key(self, id: int, next_seq: int) -> None:
        self.run(Q.okey_advance, next_seq, id)

    def stop_key(self, id: int) -> None:
        self.run(Q.okey_stop, id)

    def set_draining(self, id: int, draining: bool) -> None:
        self.run(Q.okey_draining, int(draining), id)

    def draining_keys(self, limit: int) -> list[Key]:
        return [Key(row[0], row[1], bool(row[2]), bool(row[3])) for row in self.all(Q.okey_drain_next, limit)]

    def hold(self, okey: int, seq: int, m: int) -> None:
        self.run(Q.held_insert, okey, seq, m)
        failpoints.hit("held")

    def held(self, okey: int, seq: int) -> int | None:
        row = self.one(Q.held_at, okey, seq)
        return None if row is None else int(row[0])

    def take_held(self, okey: int, seq: int) -> int | None:
        rows = self.all(Q.held_take, okey, seq)
        return int(rows[0][0]) if rows else None

    def held_of_message(self, m: int) -> tuple[int, int] | None:
        row: tuple[int, int] | None = self.one(Q.held_of_message, m)
        return row

    def next_held_key(self, after: int) -> tuple[int, int] | None:
        row: tuple[int, int] | None = self.one(Q.held_next_key, after)
        return row

    def skip(self, okey: int, lo: int, hi: int, who: str, why: str, at: int) -> None:
        self.run(Q.skipped_insert, okey, lo, hi, who, why, at)

    def is_skipped(self, okey: int, seq: int) -> bool:
        return self.one(Q.skipped_at, okey, seq, seq) is not None

    def open_key(self, okey: int, n: int) -> None:
        self.run(Q.open_key_insert, okey, n)

    def close_key(self, okey: int, n: int) -> None:
        self.run(Q.open_key_delete, okey, n)

    def open_on_key(self, okey: int, limit: int) -> list[int]:
        return [row[0] for row in self.all(Q.open_key_of, okey, limit)]

    def lane_end(self, topic: int, lane: int) -> int:
        end = self.memory.lane_ends.get((topic, lane))
        if end is None:
            end = self.memory.lane_ends[topic, lane] = int(self.one(Q.lane_next, topic, lane)[0])
        return end

    def release(self, topic: Topic, lane: int, m: int, seq: int | None, okey: int | None, at: int) -> int:
        off = self.lane_end(topic.id, lane)
        self.run(Q.log_insert, topic.id, lane, off, m, seq, at, okey)
        failpoints.hit("released")
        self.memory.lane_ends[topic.id, lane] = off + 1
        self.dirty_lanes.add((topic.id, lane))
        self.emit(("released", topic.id))
        return off

    def where_is(self, m: int) -> tuple[int, int, int, int | None, int] | None:
        row: tuple[int, int, int, int | None, int] | None = self.one(Q.log_of_message, m)
        return row

    def walk_run(self, topic: int, lane: int, start: int, end: int) -> Generator[Logged, None, None]:
        cursor = self.conn.execute(Q.log_run, (topic, lane, start, end, end - start))
        try:
            for row in cursor:
                yield _logged(row)
        finally:
            cursor.close()

    def read_run(self, topic: int, lane: int, start: int, end: int, limit: int) -> list[Logged]:
        return [_logged(row) for row in self.all(Q.log_run, topic, lane, start, end, limit)]

    def keys_of_run(self, topic: int, lane: int, lo: int, hi: int) -> list[tuple[int, int | None, int | None]]:
        return self.all(Q.log_keys, topic, lane, lo, hi)

    def log_row(self, topic: int, lane: int, off: int) -> tuple[int | None, int | None, int] | None:
        row: tuple[int | None, int | None, int] | None = self.one(Q.log_row, topic, lane, off)
        return row
