"""What the members of a group have in hand: tokens, open messages, and giving them back (R13, R24).

In an ordered lane everything open belongs to one member. A message that comes back takes the later ones of its key with it, so that
the key never moves on without it; only the first of a key is due, the rest waits behind (`due` NULL).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ..messages import Flight, Group, Kind, Reason, Retry, Topic
from ..policies import Again, Dead, RetryPolicy, after_lease_end
from ..store.base import StoreTx

STUCK = "stuck: "
"""`retry.error` of what must not become due by itself (a damaged body, too many missed numbers)."""
CORRUPT = STUCK + "the stored body is damaged"
TOO_MANY_MISSED = STUCK + "more than 1,000 numbers of this key were passed over"


@dataclass(frozen=True, slots=True)
class Token:
    """A delivery in a hand: group, lane, run (lo + token) and the offset within it."""

    grp: int
    lane: int
    lo: int
    off: int
    token: int

    def __str__(self) -> str:
        return f"{self.grp}.{self.lane}.{self.lo}.{self.off}.{self.token}"


def parse_token(text: str) -> Token | None:
    parts = text.split(".")
    if len(parts) != 5 or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        return None
    grp, lane, lo, off, token = map(int, parts)
    return Token(grp, lane, lo, off, token)


@lru_cache(maxsize=1_024)
def _policy(max_attempts: int | None, first_ms: int, max_ms: int) -> RetryPolicy:
    """A group that was made when a senseless pair was still taken goes on, with the nearest one that has sense."""
    first_ms = max(first_ms, 1)
    return RetryPolicy(max_attempts, first_ms / 1000, max(first_ms, max_ms) / 1000)


def policy_of(group: Group) -> RetryPolicy:
    return _policy(group.max_attempts, group.backoff_first_ms, group.backoff_max_ms)


@dataclass(slots=True)
class Held:
    """One open message in a lane."""

    off: int
    okey: int | None
    seq: int | None
    flight: Flight


class Lane:
    """All that is open in one lane of an ordered group, by key; changes are kept here and written by `store_done`."""

    def __init__(self, tx: StoreTx, group: Group, topic: Topic, lane: int) -> None:
        self.tx, self.group, self.topic, self.lane = tx, group, topic, lane
        self.by_key: dict[int | None, dict[int, Held]] = {}
        self._at: dict[int, Held] = {}
        self._done: dict[tuple[int, int], tuple[Flight, int]] = {}
        for flight in tx.flights_of_lane(group.id, lane):
            keys = tx.keys_of_run(topic.id, lane, flight.lo, flight.hi)
            for off, okey, seq in keys:
                if not flight.done >> (off - flight.lo) & 1:
                    self._at[off] = self.by_key.setdefault(okey, {})[off] = Held(off, okey, seq, flight)

    def keys(self) -> set[int | None]:
        return {okey for okey, by_off in self.by_key.items() if by_off}

    def find(self, token: Token) -> Held | None:
        found = self._at.get(token.off)
        return found if found is not None and (found.flight.lo, found.flight.token) == (token.lo, token.token) else None

    def first_of(self, okey: int | None) -> Held:
        open_ones = self.by_key[okey]
        return open_ones[min(open_ones)]

    def later(self, held: Held) -> list[Held]:
        return [other for off, other in sorted(self.by_key[held.okey].items()) if off > held.off]

    def take(self, held: Held) -> None:
        """Out of the hand: its bit is set when the call ends."""
        del self.by_key[held.okey][held.off], self._at[held.off]
        at = (held.flight.lo, held.flight.token)
        _, done = self._done.get(at, (held.flight, held.flight.done))
        self._done[at] = (held.flight, done | 1 << held.off - held.flight.lo)

    def store_done(self) -> None:
        for flight, done in self._done.values():
            self.tx.set_done(flight, done)
        self._done.clear()

    def give_back_later(self, held: Held) -> tuple[str, ...]:
        """All later ones of its key, unattempted, waiting behind it; their tokens are dead."""
        tokens = []
        for other in self.later(held):
            put_behind(self.tx, self.group, other, self.lane)
            self.take(other)
            tokens.append(str(Token(self.group.id, self.lane, other.flight.lo, other.off, other.flight.token)))
        return tuple(tokens)

    def tell_taken_back(self) -> None:
        """Their members hear of it where they are connected: what is on its way to them must not be run."""
        tokens: dict[str, list[str]] = {}
        for off, held in self._at.items():
            token = Token(self.group.id, self.lane, held.flight.lo, off, held.flight.token)
            tokens.setdefault(held.flight.member, []).append(str(token))
        for member, lost in tokens.items():
            self.tx.emit(("revoked", self.group.name, member, tuple(lost)))

    def wake_next(self, now: int, okey: int | None) -> None:
        """The next waiting one of a key is due when nothing earlier of it is open (M6: else it is stuck for ever)."""
        if okey is None:
            return
        first = self.tx.first_retry_of_key(self.group.id, okey)
        if first is None or first.due is not None or (first.error or "").startswith(STUCK):
            return
        if not any(off < first.off for off in self.by_key.get(okey, {})):
            self.tx.set_retry_due(self.group.id, first, now)
            self.tx.emit(("wake", self.topic.id, now))


def put_behind(tx: StoreTx, group: Group, held: Held, lane: int) -> None:
    flight = held.flight
    tx.put_retry(group.id, Retry(lane, held.off, None, held.okey, flight.attempts, flight.first_out, flight.error, flight.redriven))


def bury(
    tx: StoreTx, now: int, group: Group, topic: Topic, lane: int, off: int, reason: Reason, attempts: int, first_out: int, why: str | None
) -> None:
    """To the group's dead letters: settled for this group, listed, and passed over for its key (R6)."""
    row = tx.log_row(topic.id, lane, off)
    if row is None:
        return
    okey, seq, m = row
    tx.add_dead(
        grp=group.id, topic=topic.id, lane=lane, off=off, okey=okey, seq=seq, m=m, reason=reason, attempts=attempts, first_out=first_out, at=now,
        history=why,
    )  # fmt: skip


def end_lease(tx: StoreTx, now: int, group: Group, topic: Topic, ended: Flight) -> None:
    """The lease of a run has ended: what is open in it is handed out again, charged as in R24.

    Ordered: the lane is free first, and all that is open in it comes back, since a second member may take the lane now.
    """
    if topic.kind is Kind.UNORDERED:
        _end_unordered(tx, now, group, topic, ended)
    else:
        give_back_lane(tx, now, group, topic, ended.lane)
        tx.own_place(group.id, ended.lane, None, 0, 0)
    silent(tx, group, topic, ended.member, ended.until)
    tx.emit(("wake", topic.id, now))


def silent(tx: StoreTx, group: Group, topic: Topic, member: str, ended_at: int) -> None:
    """A lease of it ended. When it counts as a member no longer, the others' share grows: then they look again."""
    tx.emit(("silent", group.name, member, ended_at, group.lease_ms))
    until = tx.env.members.until(group.id, member)
    if until is not None:
        tx.emit(("wake", topic.id, until))


def _end_unordered(tx: StoreTx, now: int, group: Group, topic: Topic, ended: Flight) -> None:
    tx.drop_flight(ended)
    for off in ended.open_offsets():
        fate = after_lease_end(policy_of(group), alone=ended.lo == ended.hi, attempts=ended.attempts, now_ms=now)
        _meet_fate(tx, now, group, topic, ended, off, None, fate)


def _meet_fate(tx: StoreTx, now: int, group: Group, topic: Topic, ended: Flight, off: int, okey: int | None, fate: Again | Dead) -> None:
    if isinstance(fate, Dead):
        why = _because(ended.error, "the lease ended")
        bury(tx, now, group, topic, ended.lane, off, Reason.ATTEMPTS, fate.attempts, ended.first_out, why)
        return
    tx.put_retry(group.id, Retry(ended.lane, off, fate.due_ms, okey, fate.attempts, ended.first_out, ended.error, ended.redriven))
    tx.emit(("redelivered", group.id, "lease_expired", 1))
    tx.emit(("wake", topic.id, fate.due_ms))


def _because(before: str | None, now: str) -> str:
    return now if not before else f"{before}\n{now}"


def give_back_lane(tx: StoreTx, now: int, group: Group, topic: Topic, lane: int) -> None:
    """Everything open in an ordered lane goes back: the first of each key is due, the others wait behind it."""
    hand = Lane(tx, group, topic, lane)
    hand.tell_taken_back()
    for flight in tx.flights_of_lane(group.id, lane):
        tx.drop_flight(flight)
    for okey, by_off in hand.by_key.items():
        head_open = True
        for off, held in sorted(by_off.items()):
            if not head_open:
                put_behind(tx, group, held, lane)
                continue
            fate = _lease_fate(now, group, held.flight)
            head_open = isinstance(fate, Dead)
            if not head_open and _is_behind(tx, group, okey, off):
                put_behind(tx, group, held, lane)
            else:
                _meet_fate(tx, now, group, topic, held.flight, off, okey, fate)
        by_off.clear()
        hand.wake_next(now, okey)


def give_back_unheld(tx: StoreTx, now: int, group: Group, topic: Topic, lane: int, holding: frozenset[str]) -> list[str]:
    """A member came back over a new connection: what it does not hold was lost on the way, and is handed out again, uncharged.

    Of a key nothing may go on before it: a held one that follows a lost one goes back too, and its token is given for a revoke.
    """
    hand = Lane(tx, group, topic, lane)
    revoked = []
    for okey, by_off in list(hand.by_key.items()):
        held_before = lost_before = False
        for off, held in sorted(by_off.items()):
            token = str(Token(group.id, lane, held.flight.lo, off, held.flight.token))
            if token in holding and not lost_before:
                held_before = True
                continue
            if token in holding:
                revoked.append(token)
            if held_before or lost_before or _is_behind(tx, group, okey, off):
                put_behind(tx, group, held, lane)
            else:
                _due_again(tx, now, group, held.flight, off, okey)
            lost_before = True
            hand.take(held)
    hand.store_done()
    return revoked


def give_back_unheld_run(tx: StoreTx, now: int, group: Group, run: Flight, holding: frozenset[str]) -> None:
    """The same for a run of an unordered topic."""
    done = run.done
    for off in run.open_offsets():
        if str(Token(group.id, run.lane, run.lo, off, run.token)) not in holding:
            _due_again(tx, now, group, run, off, None)
            done |= 1 << off - run.lo
    if done != run.done:
        tx.set_done(run, done)


def _due_again(tx: StoreTx, now: int, group: Group, flight: Flight, off: int, okey: int | None) -> None:
    tx.put_retry(group.id, Retry(flight.lane, off, now, okey, flight.attempts, flight.first_out, flight.error, flight.redriven))


def _lease_fate(now: int, group: Group, flight: Flight) -> Again | Dead:
    ended = flight.until <= now
    return after_lease_end(policy_of(group), alone=ended and flight.lo == flight.hi, attempts=flight.attempts, now_ms=now)


def _is_behind(tx: StoreTx, group: Group, okey: int | None, off: int) -> bool:
    first = None if okey is None else tx.first_retry_of_key(group.id, okey)
    return first is not None and first.off < off


def quarantine(tx: StoreTx, now: int, topic: Topic, lane: int, off: int) -> int | None:
    """A damaged or missing row goes to the topic's dead letters, once (P8). Gives its key, as far as the log still has it."""
    row = tx.log_row(topic.id, lane, off)
    okey, seq, m = row if row is not None else (None, None, -1)
    if not tx.is_quarantined(topic.id, lane, off):
        tx.add_dead(
            grp=None, topic=topic.id, lane=lane, off=off, okey=okey, seq=seq, m=m, reason=Reason.CORRUPT, attempts=0, first_out=None, at=now,
            history=None,
        )  # fmt: skip
    return okey
