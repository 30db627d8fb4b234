"""What the gauges say, read from a read-only connection in one snapshot: key look-ups and bounded ranges, so a scrape costs the same
however much is stored.

A count that reaches its bound stands still there; who has 100,000 dead letters needs no exact number. It knows no Prometheus.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from typing import Final

from msgspec import Struct

COUNT_MAX: Final = 100_000
"""Counted along an index alone."""
ROWS_MAX: Final = 20_000
"""Counted where each row is looked at."""
NAMES_READ_MAX: Final = 1_000
"""Producers, groups and topics that one snapshot reads; the metrics name 200 of each (metrics.NAMES_MAX)."""


class ProducerGauge(Struct, frozen=True):
    name: str
    half_messages: int
    oldest_at_ms: int | None
    parked: int


class GroupGauge(Struct, frozen=True):
    """One group on one topic. `oldest_at_ms`: when its oldest unsettled message became visible."""

    name: str
    topic: str
    backlog: int
    oldest_at_ms: int | None
    in_flight: int
    members: int
    blocked_keys: int
    dead_letters: int


class Snapshot(Struct, frozen=True):
    at_ms: int
    producers: tuple[ProducerGauge, ...]
    groups: tuple[GroupGauge, ...]
    topic_dead_letters: dict[str, int]
    held: int
    db_bytes: int
    wal_bytes: int


PRODUCERS = "SELECT id, name FROM source ORDER BY id LIMIT ?"
HALF = "SELECT count(*), min(n) FROM (SELECT n FROM tx INDEXED BY tx_due WHERE source = ? AND state = 0 LIMIT ?)"
FIRST_AT = "SELECT first_at FROM tx WHERE n = ?"
PARKED = "SELECT count(*) FROM (SELECT 1 FROM tx INDEXED BY tx_parked WHERE source = ? AND state = 3 LIMIT ?)"
TOPICS = "SELECT id, name FROM topic ORDER BY id LIMIT ?"
GROUPS = "SELECT id, name, topic FROM grp ORDER BY id LIMIT ?"
LANES = """
SELECT p.lane, p.next_off, l.next_off, (SELECT min(r.off) FROM retry r WHERE r.grp = p.grp AND r.lane = p.lane)
FROM place p JOIN lane l ON l.topic = ? AND l.lane = p.lane WHERE p.grp = ?"""
FLIGHTS = "SELECT lane, lo, hi, done FROM flight WHERE grp = ? LIMIT ?"
RETRIES = "SELECT count(*) FROM (SELECT 1 FROM retry WHERE grp = ? LIMIT ?)"
BLOCKED_KEYS = """
SELECT count(DISTINCT okey) FROM (
    SELECT okey, due FROM retry INDEXED BY retry_key WHERE grp = ? AND okey IS NOT NULL LIMIT ?) WHERE due IS NULL"""
LOG_AT = "SELECT at FROM log WHERE topic = ? AND lane = ? AND off = ?"
DEAD = "SELECT count(*) FROM (SELECT 1 FROM dead INDEXED BY dead_grp WHERE grp = ? LIMIT ?)"
TOPIC_DEAD = "SELECT count(*) FROM (SELECT 1 FROM dead INDEXED BY dead_topic WHERE topic = ? AND grp IS NULL LIMIT ?)"
HELD = "SELECT count(*) FROM (SELECT 1 FROM held LIMIT ?)"
STATEMENTS: Final = (PRODUCERS, HALF, FIRST_AT, PARKED, TOPICS, GROUPS, LANES, FLIGHTS, RETRIES, BLOCKED_KEYS, LOG_AT, DEAD, TOPIC_DEAD, HELD)


def snapshot(conn: sqlite3.Connection, now_ms: int, live_members: Callable[[int], int]) -> Snapshot:
    """Read every gauge. `live_members(group id)` is asked of the process's memory, once a group.

    Opens a read transaction unless the caller has one, so that all numbers are of one moment.
    """
    began = not conn.in_transaction
    if began:
        conn.execute("BEGIN")
    try:
        return _snapshot(conn, now_ms, live_members)
    finally:
        if began:
            conn.execute("ROLLBACK")


def _snapshot(conn: sqlite3.Connection, now_ms: int, live_members: Callable[[int], int]) -> Snapshot:
    topics: dict[int, str] = dict(conn.execute(TOPICS, (NAMES_READ_MAX,)).fetchall())
    groups = conn.execute(GROUPS, (NAMES_READ_MAX,)).fetchall()
    db_bytes, wal_bytes = _sizes(conn)
    return Snapshot(
        at_ms=now_ms,
        producers=tuple(_producer(conn, id, name) for id, name in conn.execute(PRODUCERS, (NAMES_READ_MAX,)).fetchall()),
        groups=tuple(_group(conn, id, name, topic, topics[topic], live_members(id)) for id, name, topic in groups if topic in topics),
        topic_dead_letters={name: count for id, name in topics.items() if (count := _count(conn, TOPIC_DEAD, id, COUNT_MAX))},
        held=_count(conn, HELD, COUNT_MAX),
        db_bytes=db_bytes,
        wal_bytes=wal_bytes,
    )


def _count(conn: sqlite3.Connection, sql: str, *args: int) -> int:
    return int(conn.execute(sql, args).fetchone()[0])


def _producer(conn: sqlite3.Connection, id: int, name: str) -> ProducerGauge:
    half, oldest = conn.execute(HALF, (id, COUNT_MAX)).fetchone()
    first = None if oldest is None else conn.execute(FIRST_AT, (oldest,)).fetchone()
    return ProducerGauge(name, half, None if first is None else first[0], _count(conn, PARKED, id, COUNT_MAX))


def _group(conn: sqlite3.Connection, id: int, name: str, topic: int, topic_name: str, members: int) -> GroupGauge:
    in_flight, first_open = _in_flight(conn, id)
    backlog = in_flight + _count(conn, RETRIES, id, COUNT_MAX)
    oldest: int | None = None
    for lane, place, end, first_retry in conn.execute(LANES, (topic, id)).fetchall():
        backlog += end - place
        floor = min(place, first_open.get(lane, place), place if first_retry is None else first_retry)
        row = conn.execute(LOG_AT, (topic, lane, floor)).fetchone() if floor < end else None
        if row is not None and (oldest is None or row[0] < oldest):
            oldest = row[0]
    return GroupGauge(
        name, topic_name, backlog, oldest, in_flight, members, _count(conn, BLOCKED_KEYS, id, ROWS_MAX), _count(conn, DEAD, id, COUNT_MAX)
    )


def _in_flight(conn: sqlite3.Connection, grp: int) -> tuple[int, dict[int, int]]:
    """(open messages of all runs, first open offset of each lane)"""
    count = 0
    first: dict[int, int] = {}
    for lane, lo, hi, done_bytes in conn.execute(FLIGHTS, (grp, ROWS_MAX)):
        still_open = ~int.from_bytes(done_bytes, "little") & ((1 << hi - lo + 1) - 1)
        if still_open:
            count += still_open.bit_count()
            off = lo + (still_open & -still_open).bit_length() - 1
            first[lane] = min(off, first.get(lane, off))
    return count, first


def _sizes(conn: sqlite3.Connection) -> tuple[int, int]:
    """Bytes of the database as this snapshot sees it, and of the WAL beside it (0 where there is none)."""
    pages, size = conn.execute("PRAGMA page_count").fetchone()[0], conn.execute("PRAGMA page_size").fetchone()[0]
    path = conn.execute("PRAGMA database_list").fetchone()[2]
    try:
        wal = os.stat(f"{path}-wal").st_size if path else 0
    except OSError:
        wal = 0
    return pages * size, wal
