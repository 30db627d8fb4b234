"""Transactions and bodies on SQLite."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from ... import ids
from ...messages import By, NewMessage, Tx
from ...states import State
from .. import failpoints
from ..base import RowDamaged
from .base import Q
from .names import Names

log = logging.getLogger("halfmsg.store")
NOTES_MAX = 100
_STATES, _BY = frozenset(State), frozenset(By)
CLAIMED = "being asked"
"""`tx.reason` of a claimed check: a process that dies in the middle of a question leaves it, and the next one asks at once."""


def tx_of(row: tuple[Any, ...]) -> Tx:
    """Raises RowDamaged where state, decision and next check contradict each other: one flipped bit of the state always makes them."""
    n, id, source, state, digest, msgs, mark, first_at, decided_at, decided_by, attempts, next_check, reason = row
    decided = state in (State.COMMITTED, State.ROLLED_BACK)
    agreed = {decided_at is not None, decided_by is not None, next_check is None} == {decided}
    if state not in _STATES or not agreed or (decided and decided_by not in _BY):
        raise RowDamaged(f"the row of transaction number {n} is damaged (state {state!r})")
    by = None if decided_by is None else By(decided_by)
    return Tx(n, id, source, State(state), digest, msgs, mark, first_at, decided_at, by, attempts, next_check, reason)


def _sound(rows: list[tuple[Any, ...]]) -> list[Tx]:
    """A damaged one must not hide its neighbours."""
    found = []
    for row in rows:
        try:
            found.append(tx_of(row))
        except RowDamaged as error:
            log.error("%s", error)
    return found


class Transactions(Names):
    def find(self, id: bytes) -> Tx | None:
        row = self.one(Q.tx_by_id, id)
        if row is not None and row[1] != id:
            raise RowDamaged(f"the index of transactions leads from {ids.format_id(id)} to another one")
        return None if row is None else tx_of(row)

    def find_n(self, n: int) -> Tx | None:
        row = self.one(Q.tx_by_n, n)
        return None if row is None else tx_of(row)

    def insert(self, tx: Tx) -> Tx | None:
        n = self.next_counter("n")
        by = None if tx.decided_by is None else int(tx.decided_by)
        stored = self.run(
            Q.tx_insert, n, tx.id, tx.source, int(tx.state), tx.digest, tx.msgs, tx.mark, tx.first_at, tx.decided_at, by, tx.next_check, tx.reason
        )
        if not stored:
            return None
        if tx.state is State.PREPARED:
            self.count_open(tx.source, 1)
        failpoints.hit("half_stored")
        return Tx(n, tx.id, tx.source, tx.state, tx.digest, tx.msgs, tx.mark, tx.first_at, tx.decided_at, tx.decided_by, 0, tx.next_check, tx.reason)

    def insert_messages(self, n: int, rows: Iterable[tuple[NewMessage, int, int | None]]) -> None:
        base = n << 10
        for message, topic, okey in rows:
            self.run(Q.message_insert, base + message.index, topic, okey, message.tag, message.extra, message.digest, message.body)

    def message_heads(self, n: int) -> list[tuple[int, int, int | None]]:
        return self.all(Q.message_heads, n << 10, (n << 10) + 1023)

    def delete_messages(self, n: int) -> None:
        self.run(Q.message_delete_range, n << 10, (n << 10) + 1023)

    def decide(self, tx: Tx, state: State, at: int, by: By, reason: str | None) -> bool:
        if not self.run(Q.tx_decide, int(state), at, int(by), reason, tx.n):
            return False
        if tx.state is State.PREPARED:
            self.count_open(tx.source, -1)
        failpoints.hit("decided")
        return True

    def park(self, tx: Tx, next_check: int, reason: str) -> None:
        if self.run(Q.tx_park, next_check, reason, tx.n):
            self.count_open(tx.source, -1)

    def reschedule(self, tx: Tx, *, attempts: int, next_check: int, reason: str | None) -> None:
        self.run(Q.tx_reschedule, attempts, next_check, reason, tx.n)

    def claim_due(self, source: int, now: int, until: int, limit: int) -> list[Tx]:
        return sorted(_sound(self.all(Q.tx_claim_due, until, CLAIMED, source, now, limit)), key=lambda tx: tx.n)

    def unclaim(self, source: int, now: int) -> int:
        return self.run(Q.tx_unclaim, now, source, CLAIMED) + self.run(Q.tx_unclaim_parked, now, source, CLAIMED)

    def parked(self, source: int, after_n: int, limit: int) -> list[Tx]:
        return _sound(self.all(Q.tx_parked_of, source, after_n, limit))

    def claim_parked(self, source: int, now: int, until: int, limit: int) -> list[Tx]:
        rows = _sound(self.all(Q.tx_parked_due, source, now, limit))
        for row in rows:
            self.reschedule(row, attempts=row.attempts, next_check=until, reason=CLAIMED)
        return rows

    def wake_parked(self, source: int, now: int) -> None:
        self.run(Q.tx_wake_parked, now, source, now)

    def open_of(self, source: int, limit: int) -> list[Tx]:
        return _sound(self.all(Q.tx_open_of, source, limit))

    def ask_soon(self, n: int, at: int) -> None:
        self.run(Q.tx_ask_soon, at, n, at)

    def note(self, n: int, at: int, what: str, detail: str | None) -> None:
        if self.one(Q.note_count, n)[0] < NOTES_MAX:
            self.run(Q.note_insert, n, at, what, detail)

    def add_conflict(self, id: bytes, stored: str, said: str, said_by: str, at: int) -> None:
        if self.one(Q.conflict_of, id, said) is None:
            self.run(Q.conflict_insert, id, stored, said, said_by, at)
            self.emit(("conflict", ids.format_id(id), stored, said, said_by))

    def audit(self, at: int, actor: str, act: str, target: str, reason: str, before: str | None, after: str | None) -> None:
        self.run(Q.audit_insert, at, actor, act, target, reason, before, after)
        self.emit(("audited", act))
