"""What an answer promises, and whether a store file keeps it. Only what the client sent and was told goes in here, and plain SQL.

A fact is made from one answer and stays true for ever after: a transaction may go from stored to decided, a delivery from handed out to
settled, never back. A file is read once into `Image`, then each fact looks at that.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from halfmsg.coordinator import doctor

PREPARED, COMMITTED, ROLLED_BACK, PARKED = range(4)
STATES: Final = {"prepared": PREPARED, "committed": COMMITTED, "rolled_back": ROLLED_BACK, "parked": PARKED}


class Image:
    """The rows of one store file, as another process would read them now."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        def rows(sql: str) -> list[Any]:
            return conn.execute(sql).fetchall()

        self.state: dict[bytes, tuple[int, int]] = {id: (n, state) for id, n, state in rows("SELECT id, n, state FROM tx")}
        self.bodies: dict[int, list[bytes]] = {}
        for m, body in rows("SELECT m, body FROM message ORDER BY m"):
            self.bodies.setdefault(m >> 10, []).append(body)
        self.visible: dict[int, int] = dict(rows("SELECT m >> 10, count(*) FROM (SELECT m FROM log UNION SELECT m FROM held) GROUP BY 1"))
        self.visible_of: dict[tuple[int, int, int], int] = {
            (grp, lane, off): m for grp, lane, off, m in rows("SELECT q.id, g.lane, g.off, g.m FROM log g JOIN grp q ON q.topic = g.topic")
        }
        self.runs = {(g, lane, lo, token): done for g, lane, lo, token, done in rows("SELECT grp, lane, lo, token, done FROM flight")}
        self.spans = [(g, lane, lo, hi, done) for g, lane, lo, hi, done in rows("SELECT grp, lane, lo, hi, done FROM flight")]
        self.retries = set(rows("SELECT grp, lane, off FROM retry"))
        self.given_back = set(rows("SELECT grp, lane, off FROM retry WHERE error IS NULL"))
        self.dead = set(rows("SELECT grp, lane, off FROM dead"))
        self.places = {(g, lane): off for g, lane, off in rows("SELECT grp, lane, next_off FROM place")}
        self.last_token = rows("SELECT v FROM counter WHERE name = 'token'")[0][0]
        self.names = {(kind, name) for kind in ("topic", "grp", "source") for (name,) in rows(f"SELECT name FROM {kind}")}

    def is_open(self, grp: int, lane: int, off: int) -> bool:
        """Is this message of the log in somebody's hand, or waiting to be tried again, or a dead letter?"""
        if (grp, lane, off) in self.retries or (grp, lane, off) in self.dead:
            return True
        return any(g == grp and n == lane and lo <= off <= hi and not _bit(done, off - lo) for g, n, lo, hi, done in self.spans)


def _bit(done: bytes, at: int) -> bool:
    return bool(int.from_bytes(done, "little") >> at & 1)


class Fact(Protocol):
    def wrong(self, image: Image) -> str | None:
        """What is missing; None where all is there."""


@dataclass(frozen=True, slots=True)
class Made:
    """A topic, group (`grp`) or producer (`source`) was made."""

    kind: str
    name: str

    def wrong(self, image: Image) -> str | None:
        return None if (self.kind, self.name) in image.names else f"{self.kind} {self.name} is gone"


@dataclass(frozen=True, slots=True)
class Stored:
    """A half message was acknowledged: it is there with its bodies, whatever was decided since."""

    id: bytes
    bodies: tuple[bytes, ...]

    def wrong(self, image: Image) -> str | None:
        found = image.state.get(self.id)
        if found is None:
            return f"transaction {self.id.hex()} was acknowledged and is gone"
        n, state = found
        if state != ROLLED_BACK and tuple(image.bodies.get(n, ())) != self.bodies:
            return f"transaction {self.id.hex()} does not have the bodies that were sent"
        return None


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision was told: it stands, and committed messages are visible or held behind a gap."""

    id: bytes
    state: int
    bodies: tuple[bytes, ...]

    def wrong(self, image: Image) -> str | None:
        found = image.state.get(self.id)
        if found is None or found[1] != self.state:
            return f"transaction {self.id.hex()} was told as state {self.state} and is {found}"
        n = found[0]
        if self.state == COMMITTED and (tuple(image.bodies.get(n, ())) != self.bodies or image.visible.get(n, 0) != len(self.bodies)):
            return f"transaction {self.id.hex()} is committed without its bodies, or they are nowhere"
        return f"transaction {self.id.hex()} is rolled back and has bodies" if self.state == ROLLED_BACK and n in image.bodies else None


@dataclass(frozen=True, slots=True)
class HandedOut:
    """A delivery was given to a member: its place has moved, its token will not be given again, its transaction is committed."""

    token: str
    id: bytes

    def wrong(self, image: Image) -> str | None:
        grp, lane, _, off, token = map(int, self.token.split("."))
        if image.places.get((grp, lane), 0) <= off or image.last_token < token:
            return f"delivery {self.token} was handed out and could be handed out anew under the same token"
        n, state = image.state.get(self.id, (0, -1))
        if state != COMMITTED or image.visible_of.get((grp, lane, off), 0) >> 10 != n:
            return f"delivery {self.token} of {self.id.hex()} was handed out and is not in the log"
        return None


@dataclass(frozen=True, slots=True)
class Settled:
    """A delivery was acked, nacked or rejected: it is not open under that token; acked, it is never open again."""

    token: str
    what: str

    def wrong(self, image: Image) -> str | None:
        grp, lane, lo, off, token = map(int, self.token.split("."))
        done = image.runs.get((grp, lane, lo, token))
        if done is not None and not _bit(done, off - lo):
            return f"{self.what} of {self.token} is forgotten: it is in hand again"
        if self.what == "ack" and image.is_open(grp, lane, off):
            return f"ack of {self.token} is forgotten: it will be handed out again"
        if self.what == "reject" and (grp, lane, off) not in image.dead:
            return f"reject of {self.token} is forgotten: no dead letter"
        return None


@dataclass(frozen=True, slots=True)
class Absent:
    """It was refused with a code that means: nothing was stored."""

    id: bytes

    def wrong(self, image: Image) -> str | None:
        return f"transaction {self.id.hex()} was refused and is stored" if self.id in image.state else None


@dataclass(frozen=True, slots=True)
class Undecided:
    """Its decision was refused with a code that means: nothing was stored."""

    id: bytes

    def wrong(self, image: Image) -> str | None:
        found = image.state.get(self.id)
        return f"transaction {self.id.hex()} was refused its decision and is {found}" if found and found[1] in (COMMITTED, ROLLED_BACK) else None


@dataclass(frozen=True, slots=True)
class InHand:
    """Its ack, nack or reject was refused with a code that means: nothing was stored. The lease of these tests does not end.

    It may have been given back, uncharged, behind another of its key: a nack before it whose outcome was unknown, and was done (P7).
    """

    token: str

    def wrong(self, image: Image) -> str | None:
        grp, lane, lo, off, token = map(int, self.token.split("."))
        done = image.runs.get((grp, lane, lo, token))
        is_open = (grp, lane, off) in image.given_back if done is None else not _bit(done, off - lo)
        return None if is_open else f"settling {self.token} was refused and was done"


UNKNOWN: Final = ("outcome_unknown", "internal", "")
"""Refusals that say nothing about what is stored; `internal` is a defect, and no answer is no code."""


def raw(id: str) -> bytes:
    return uuid.UUID(id).bytes


def of_transaction(view: dict[str, Any], bodies: tuple[bytes, ...]) -> list[Fact]:
    """What an answer with a transaction says: prepare, submit, commit, rollback or a look at it."""
    id, state = raw(view["id"]), STATES[view["state"]]
    return [Stored(id, bodies) if state in (PREPARED, PARKED) else Decided(id, state, bodies)]


def of_deliveries(answer: dict[str, Any]) -> list[Fact]:
    return [HandedOut(each["token"], raw(each["transaction_id"])) for each in answer["deliveries"]]


def unasked(image: Image, may_commit: dict[bytes, bool]) -> str | None:
    """Every transaction was sent by somebody, and only those are committed for which that was ever said."""
    for id, (n, state) in image.state.items():
        if id not in may_commit:
            return f"transaction {id.hex()} was never sent"
        if not may_commit[id] and (state == COMMITTED or n in image.visible):
            return f"transaction {id.hex()} was never committed and is visible"
    return None


def judge(conn: sqlite3.Connection, facts: Iterable[Fact], may_commit: dict[bytes, bool]) -> list[str]:
    """Everything that is wrong with this file: damage, invariants, broken promises."""
    try:
        return _judge(conn, facts, may_commit)
    except sqlite3.DatabaseError as error:
        return [f"integrity: {error}"]


def _judge(conn: sqlite3.Connection, facts: Iterable[Fact], may_commit: dict[bytes, bool]) -> list[str]:
    sound = [row[0] for row in conn.execute("PRAGMA integrity_check")]
    if sound != ["ok"]:
        return [f"integrity: {sound[:3]}"]
    found = [f"doctor {each.name}: {each.rows[:2]}" for each in doctor.run(conn, sample=20) if not each.ok]
    image = Image(conn)
    found += [said for fact in facts if (said := fact.wrong(image))]
    ghost = unasked(image, may_commit)
    return [*found, ghost] if ghost else found
