"""The store's contract: verbs of the domain, each with its rule. A backend is a `Backend` that gives a `Tx`.

Transaction functions `fn(tx, now, command)` see a `Tx` and nothing else; the writer opens, commits and rolls back. Raising from
a function undoes that function alone. Verbs are synchronous: a backend runs them on its own writer thread.
tests/store/conformance runs the same suite over every backend.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any, Protocol

from ..errors import Problem
from ..messages import By, Flight, Group, Key, Logged, NewMessage, Place, Reason, Restored, Retry, Source, Topic, Tx
from ..states import State


class StoreFull(Exception):
    """The disk is full: the group was rolled back, reads go on."""


class StoreBroken(Exception):
    """An I/O error: what was being written has an unknown outcome; the process stops and recovers by reopening (fsync is not asked twice)."""


class RowDamaged(Problem):
    """A row that decides contradicts itself: nothing is decided by it, nothing delivered, and nothing written over it."""

    def __init__(self, detail: str) -> None:
        super().__init__("row_damaged", f"{detail}; nothing is decided by it and nothing written over it. Look: halfmsg doctor")


class Backend(Protocol):
    """One connection's transaction life. `commit` durable means durable (P3)."""

    def begin(self) -> None: ...
    def commit(self) -> None: ...
    def rollback(self) -> None: ...
    def changes(self) -> int:
        """A number that grows with each row written; equal before and after means that nothing was written."""

    def meaning(self, error: Exception) -> Exception:
        """`StoreFull`, `StoreBroken`, or the error itself: a defect."""

    def relieve(self) -> None:
        """The disk is full: make what room can be made within what the store has already. May raise as `commit` does."""

    def close(self) -> None: ...
    @property
    def tx(self) -> Any:
        """The `StoreTx` that functions get."""


class Names(Protocol):
    """Topics, producers, groups: few, cached, changed on purpose."""

    def topic(self, name: str) -> Topic | None: ...
    def topic_by_id(self, id: int) -> Topic: ...
    def add_topic(self, topic: Topic) -> Topic: ...
    def set_topic(self, topic: Topic) -> None: ...
    def remove_topic(self, topic: Topic) -> None: ...
    def topic_has_keys(self, topic: int) -> bool: ...
    def topic_has_undecided(self, topic: int) -> bool:
        """Names a prepared or parked transaction it? A walk over what is undecided, whatever else is stored."""

    def source(self, name: str) -> Source | None: ...
    def source_by_id(self, id: int) -> Source: ...
    def source_by_db(self, db_id: bytes) -> Source | None: ...
    def add_source(self, name: str) -> Source: ...
    def bind_source(self, source: Source, db_id: bytes) -> Source:
        """Bind name <-> id once (R7)."""

    def note_hello(self, source: Source) -> Source: ...
    def store_beats(self, source: Source, beats: Sequence[str]) -> None: ...
    def set_source(self, source: Source, *, check_url: str | None, dialect: str, secret: str | None) -> Source: ...
    def remove_source(self, source: Source) -> None: ...
    def source_has_undecided(self, source: int) -> bool: ...
    def source_has_transactions(self, source: int) -> bool:
        """Of any state. A walk over all transactions that ends at the first of its own: for an operator's act, not for a hot path."""

    def open_count(self, source: int) -> int:
        """How many of a producer's transactions are prepared now; kept in memory, counted once."""

    def sources_with_undecided(self) -> list[int]:
        """Producers with prepared or parked ones."""

    def group(self, name: str) -> list[Group]:
        """One for each of its topics; empty: no such group."""

    def group_by_id(self, id: int) -> Group | None: ...
    def groups_of_topic(self, topic: int) -> list[Group]: ...
    def add_group(self, group: Group, *, at_end: bool) -> Group:
        """One place a lane: at the start of what is kept, or after what is there now."""

    def set_group(self, group: Group) -> None:
        """Its policy; topics and filters are for life."""

    def pause_group(self, group: Group, paused: bool) -> None: ...
    def bind_inbox(self, group: Group, inbox: bytes) -> None: ...
    def remove_group(self, group: Group) -> None: ...


class Transactions(Protocol):
    """Transactions and bodies."""

    def find(self, id: bytes) -> Tx | None: ...
    def find_n(self, n: int) -> Tx | None: ...
    def insert(self, tx: Tx) -> Tx | None:
        """Store a new one; None when the id is there already (nothing was written)."""

    def insert_messages(self, n: int, rows: Iterable[tuple[NewMessage, int, int | None]]) -> None:
        """(message, topic id, key id) each."""

    def message_heads(self, n: int) -> list[tuple[int, int, int | None]]:
        """(m, topic id, key id) in order of index; no body is read."""

    def delete_messages(self, n: int) -> None: ...
    def decide(self, tx: Tx, state: State, at: int, by: By, reason: str | None) -> bool:
        """Compare-and-set from prepared or parked; False: someone decided before (P4)."""

    def park(self, tx: Tx, next_check: int, reason: str) -> None: ...
    def reschedule(self, tx: Tx, *, attempts: int, next_check: int, reason: str | None) -> None: ...
    def claim_due(self, source: int, now: int, until: int, limit: int) -> list[Tx]:
        """Due prepared ones of a producer, moved to `until` so that nobody asks about them twice meanwhile."""

    def unclaim(self, source: int, now: int) -> int:
        """At start, where one process owns the store: what the last one had claimed, prepared or parked, is due now."""

    def parked(self, source: int, after_n: int, limit: int) -> list[Tx]: ...
    def claim_parked(self, source: int, now: int, until: int, limit: int) -> list[Tx]:
        """Parked ones whose time has come, by that time, moved to `until`: those that are not due hide nobody."""

    def wake_parked(self, source: int, now: int) -> None:
        """All parked ones of a producer are due now."""

    def open_of(self, source: int, limit: int) -> list[Tx]: ...
    def ask_soon(self, n: int, at: int) -> None: ...
    def note(self, n: int, at: int, what: str, detail: str | None) -> None:
        """One line of a transaction's history; at most 100 a transaction."""

    def add_conflict(self, id: bytes, stored: str, said: str, said_by: str, at: int) -> None: ...
    def audit(self, at: int, actor: str, act: str, target: str, reason: str, before: str | None, after: str | None) -> None: ...


class Order(Protocol):
    """Keys, numbers, lanes, the log."""

    def key_id(self, topic: int, source: int, incarnation: int, key: bytes) -> int:
        """Find or make the key's row (R27: never deleted)."""

    def last_key(self) -> int:
        """The highest number that a key has; 0: there is none."""

    def key(self, id: int) -> Key:
        """Read after the key's lock is held (R11)."""

    def key_name(self, id: int) -> tuple[int, int, int, bytes]:
        """(topic, source, incarnation, key)."""

    def advance_key(self, id: int, next_seq: int) -> None: ...
    def stop_key(self, id: int) -> None: ...
    def set_draining(self, id: int, draining: bool) -> None: ...
    def draining_keys(self, limit: int) -> list[Key]: ...
    def hold(self, okey: int, seq: int, m: int) -> None: ...
    def held(self, okey: int, seq: int) -> int | None: ...
    def take_held(self, okey: int, seq: int) -> int | None: ...
    def held_of_message(self, m: int) -> tuple[int, int] | None: ...
    def next_held_key(self, after: int) -> tuple[int, int] | None:
        """(key id, its lowest held number) of the first key past `after`: a walk over the keys with a gap."""

    def skip(self, okey: int, lo: int, hi: int, who: str, why: str, at: int) -> None:
        """These numbers will not come; a record, so that no hole is unnamed (R14)."""

    def is_skipped(self, okey: int, seq: int) -> bool: ...
    def open_key(self, okey: int, n: int) -> None: ...
    def close_key(self, okey: int, n: int) -> None: ...
    def open_on_key(self, okey: int, limit: int) -> list[int]: ...
    def lane_end(self, topic: int, lane: int) -> int:
        """The next offset: everything below it is in the log."""

    def release(self, topic: Topic, lane: int, m: int, seq: int | None, okey: int | None, at: int) -> int:
        """Append to the log at the lane's next offset, in the transaction that holds the lane (R11b); gives the offset."""

    def where_is(self, m: int) -> tuple[int, int, int, int | None, int] | None:
        """(topic, lane, offset, sequence, at) of a released message."""

    def walk_run(self, topic: int, lane: int, start: int, end: int) -> Generator[Logged, None, None]:
        """As `read_run`, a row at a time, each with its body read when it is its turn. Close it."""

    def read_run(self, topic: int, lane: int, start: int, end: int, limit: int) -> list[Logged]: ...
    def keys_of_run(self, topic: int, lane: int, lo: int, hi: int) -> list[tuple[int, int | None, int | None]]:
        """(offset, key id, sequence) each."""

    def log_row(self, topic: int, lane: int, off: int) -> tuple[int | None, int | None, int] | None:
        """(key id, sequence, m) at an offset."""


class Deliveries(Protocol):
    """Places, runs in flight, exceptions, dead letters (PROTOCOL §5)."""

    def places(self, grp: int) -> list[Place]: ...
    def move_place(self, grp: int, lane: int, next_off: int) -> None: ...
    def own_place(self, grp: int, lane: int, owner: str | None, token: int, until: int) -> None: ...
    def renew_places(self, grp: int, owner: str, until: int) -> None: ...
    def own_longer(self, grp: int, lane: int, owner: str, until: int) -> None: ...
    def new_token(self) -> int:
        """Tokens only grow, over restarts too (R30)."""

    def fly(self, flight: Flight) -> None: ...
    def flight(self, grp: int, lane: int, lo: int, token: int) -> Flight | None: ...
    def set_done(self, flight: Flight, done: int) -> None:
        """All done: the run is deleted."""

    def flights_of_lane(self, grp: int, lane: int) -> list[Flight]: ...
    def free_all_places(self) -> None: ...
    def has_flights(self, grp: int) -> bool: ...
    def expired_flights(self, now: int, limit: int) -> list[Flight]: ...
    def drop_flight(self, flight: Flight) -> None: ...
    def extend_flight(self, flight: Flight, until: int) -> None: ...
    def put_retry(self, grp: int, retry: Retry) -> None: ...
    def due_retries(self, grp: int, now: int, limit: int) -> list[Retry]: ...
    def due_retries_of_lane(self, grp: int, lane: int, now: int, limit: int) -> list[Retry]: ...
    def take_retry(self, grp: int, retry: Retry) -> None: ...
    def first_retry_of_key(self, grp: int, okey: int) -> Retry | None: ...
    def set_retry_due(self, grp: int, retry: Retry, due: int | None) -> None: ...
    def has_retries(self, grp: int) -> bool: ...
    def count_retries(self, grp: int, lane: int, limit: int) -> int: ...
    def count_moving_retries(self, grp: int, lane: int, limit: int) -> int:
        """Without those of keys that are stuck for good."""

    def count_failing(self, grp: int, limit: int) -> int:
        """In all its lanes."""

    def next_retry_due(self, grp: int) -> int | None: ...
    def add_dead(
        self, *, grp: int | None, topic: int, lane: int | None, off: int | None, okey: int | None, seq: int | None, m: int, reason: Reason,
        attempts: int, first_out: int | None, at: int, history: str | None,
    ) -> None: ...  # fmt: skip
    def dead_of_message(self, m: int) -> list[tuple[int, int | None, Reason, int | None]]:
        """(id, group or None, reason, sequence) each."""

    def is_quarantined(self, topic: int, lane: int, off: int) -> bool:
        """Stands this place of the log in the topic's own dead letters?"""

    def unnamed_dead(self, grp: int, okey: int, below: int, limit: int) -> list[int]: ...
    def name_dead(self, grp: int, okey: int, below: int) -> None: ...
    def count_dead(self, grp: int, limit: int) -> int: ...


class StoreTx(Names, Transactions, Order, Deliveries, Protocol):
    """What a transaction function works on."""

    now: int
    env: Any
    """Settings and what the process keeps in memory (coordinator/env.py)."""

    def counter(self, name: str) -> int: ...
    def put_counter(self, name: str, value: int) -> None:
        """Make or set one; tokens and numbers are drawn from it anew."""

    def restored(self) -> Restored:
        """All 0 in a store that is no copy of another."""

    def emit(self, event: tuple[Any, ...]) -> None:
        """Told to the process after this transaction is durable, and never otherwise."""
