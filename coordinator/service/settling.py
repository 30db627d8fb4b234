"""Ack, nack, reject, extend, and leases that end: what becomes of what was handed out."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import Problem
from ..messages import ExtendMany, Flight, Group, ItemResult, Kind, Reason, Retry, Settle, SettleMany, Topic
from ..policies import Again, after_nack
from ..store import failpoints
from ..store.base import StoreTx
from .hands import Held, Lane, Token, bury, end_lease, parse_token, policy_of

EXPIRE_MAX = 100
LOST = ItemResult(error=("lease_lost", "the lease has ended or the token is not ours; somebody else may have it"))
OUT_OF_ORDER = ItemResult(error=("out_of_order", "an earlier message of this key is open in the same hand; settle it first"))
DONE = ItemResult()


@dataclass(slots=True)
class _Run:
    """One run during a call."""

    flight: Flight
    done: int

    def has_open(self, token: Token) -> bool:
        """Is it of this run, and neither settled nor given back?"""
        return token.lo <= token.off <= self.flight.hi and not self.done >> (token.off - token.lo) & 1


@dataclass(slots=True)
class _Call:
    """What one ack/nack/reject/extend call has read so far, so that a hundred items cost one look at their run."""

    tx: StoreTx
    now: int
    groups: dict[int, Group]
    runs: dict[tuple[int, int, int, int], _Run | None] = field(default_factory=dict)
    lanes: dict[tuple[int, int], Lane] = field(default_factory=dict)
    coming_back: dict[tuple[int, int], bool] = field(default_factory=dict)
    acked: dict[int, int] = field(default_factory=dict)
    waited_ms: dict[int, int] = field(default_factory=dict)
    has_dead: dict[int, bool] = field(default_factory=dict)
    members: set[tuple[int, str]] = field(default_factory=set)

    def run(self, token: Token) -> _Run | None:
        at = (token.grp, token.lane, token.lo, token.token)
        if at not in self.runs:
            flight = self.tx.flight(*at)
            self.runs[at] = None if flight is None or flight.until <= self.now else _Run(flight, flight.done)
        return self.runs[at]

    def lane_comes_back(self, group: Group, lane: int) -> bool:
        """An ordered lane comes back whole when the lease of any run in it has ended (`end_lease`)."""
        at = (group.id, lane)
        if at not in self.coming_back:
            ordered = self.tx.topic_by_id(group.topic).kind is not Kind.UNORDERED
            self.coming_back[at] = ordered and any(flight.until <= self.now for flight in self.tx.flights_of_lane(*at))
        return self.coming_back[at]

    def lane(self, group: Group, topic: Topic, lane: int) -> Lane:
        at = (group.id, lane)
        if at not in self.lanes:
            self.lanes[at] = Lane(self.tx, group, topic, lane)
        return self.lanes[at]


def settle(tx: StoreTx, now: int, command: SettleMany) -> list[ItemResult]:
    """Item by item; an item that is refused changes nothing. Raises group_not_found."""
    call = _Call(tx, now, groups_of(tx, command.group))
    results = [_settle_one(call, item) for item in command.items]
    for run in call.runs.values():
        if run is not None and run.done != run.flight.done:
            tx.set_done(run.flight, run.done)
    for lane in call.lanes.values():
        lane.store_done()
    _tell(call)
    return results


def groups_of(tx: StoreTx, name: str) -> dict[int, Group]:
    groups = tx.group(name)
    if not groups:
        raise Problem("group_not_found", f"no consumer group {name} here; make it with: halfmsg group create {name} --topic T")
    return {group.id: group for group in groups}


def _settle_one(call: _Call, item: Settle) -> ItemResult:
    token = parse_token(item.token)
    group = None if token is None else call.groups.get(token.grp)
    if token is None or group is None:
        return LOST
    topic = call.tx.topic_by_id(group.topic)
    if topic.kind is Kind.UNORDERED:
        return _settle_unordered(call, item, token, group, topic)
    return _settle_ordered(call, item, token, group, topic)


def _settle_unordered(call: _Call, item: Settle, token: Token, group: Group, topic: Topic) -> ItemResult:
    run = call.run(token)
    if run is None or not run.has_open(token):
        return LOST
    bit = 1 << token.off - token.lo
    run.done |= bit
    call.members.add((group.id, run.flight.member))
    if item.what == "ack":
        _count_ack(call, group, run.flight)
    else:
        _fail(call, item, group, topic, run.flight, token.off, None)
    return DONE


def _settle_ordered(call: _Call, item: Settle, token: Token, group: Group, topic: Topic) -> ItemResult:
    lane = call.lane(group, topic, token.lane)
    held = lane.find(token)
    if held is None or held.flight.until <= call.now:
        return LOST
    first = lane.first_of(held.okey)
    if first.flight.until <= call.now:
        return LOST  # the end of that lease gives back the later ones of its key (R13); the tick that does so comes
    if first is not held:
        return OUT_OF_ORDER
    call.members.add((group.id, held.flight.member))
    if item.what == "ack":
        return _ack_ordered(call, lane, held)
    dead = _fail(call, item, group, topic, held.flight, held.off, held.okey)
    given_back = lane.give_back_later(held)
    lane.take(held)
    if dead:
        lane.wake_next(call.now, held.okey)
    return ItemResult(given_back=given_back)


def _ack_ordered(call: _Call, lane: Lane, held: Held) -> ItemResult:
    group = lane.group
    lane.take(held)
    _count_ack(call, group, held.flight)
    if group.id not in call.has_dead:
        call.has_dead[group.id] = call.tx.count_dead(group.id, 1) > 0
    if call.has_dead[group.id] and held.okey is not None and held.seq is not None:
        call.tx.name_dead(group.id, held.okey, held.seq)
    lane.wake_next(call.now, held.okey)
    return DONE


def _count_ack(call: _Call, group: Group, flight: Flight) -> None:
    call.acked[group.id] = call.acked.get(group.id, 0) + 1
    call.waited_ms[group.id] = max(call.waited_ms.get(group.id, 0), call.now - flight.lo_at)


def _fail(call: _Call, item: Settle, group: Group, topic: Topic, flight: Flight, off: int, okey: int | None) -> bool:
    """Nack or reject of one message: True when it became a dead letter."""
    tx, now = call.tx, call.now
    why = "\n".join(filter(None, (flight.error, f"attempt {flight.attempts + 1}: {item.reason}")))[-4_000:]
    if item.what == "reject":
        bury(tx, now, group, topic, flight.lane, off, Reason.REJECTED, flight.attempts + 1, flight.first_out, why)
        return True
    fate = after_nack(policy_of(group), attempts=flight.attempts, counts=item.counts, delay_ms=item.delay_ms, now_ms=now)
    if not isinstance(fate, Again):
        bury(tx, now, group, topic, flight.lane, off, Reason.ATTEMPTS, fate.attempts, flight.first_out, why)
        return True
    tx.put_retry(group.id, Retry(flight.lane, off, fate.due_ms, okey, fate.attempts, flight.first_out, why, flight.redriven))
    tx.emit(("redelivered", group.id, "nack", 1))
    tx.emit(("wake", topic.id, fate.due_ms))
    return False


def _tell(call: _Call) -> None:
    for grp, count in call.acked.items():
        call.tx.emit(("acked", grp, count, call.waited_ms[grp]))
    for grp, member in call.members:
        sign_of_life(call.tx, call.now, grp, member)


def sign_of_life(tx: StoreTx, now: int, grp: int, member: str) -> None:
    """A member keeps its lanes while it fetches, acks or extends."""
    if not member:
        return
    tx.env.members.seen(grp, member, now)
    until = tx.env.members.renewal(grp, member, now)
    if until is not None:
        tx.renew_places(grp, member, until)


def extend(tx: StoreTx, now: int, command: ExtendMany) -> list[ItemResult]:
    """A longer lease for the runs that these tokens are in; never a shorter one."""
    call = _Call(tx, now, groups_of(tx, command.group))
    until = now + command.by_ms
    flights = [_extendable(call, parse_token(text)) for text in command.tokens]
    for flight in dict.fromkeys(filter(None, flights)):
        tx.extend_flight(flight, until)
        tx.own_longer(flight.grp, flight.lane, flight.member, until)
        call.members.add((flight.grp, flight.member))
    _tell(call)
    return [LOST if flight is None else ItemResult(lease_until=max(until, flight.until)) for flight in flights]


def _extendable(call: _Call, token: Token | None) -> Flight | None:
    """Its run; None where it is not ours any more, or will not be at the next tick. A yes would let a consumer run what comes again (R13)."""
    group = None if token is None else call.groups.get(token.grp)
    if token is None or group is None:
        return None
    run = call.run(token)
    return run.flight if run is not None and run.has_open(token) and not call.lane_comes_back(group, token.lane) else None


def expire_tick(tx: StoreTx, now: int, _: None) -> int:
    """Give back what ended leases left open; gives how many runs."""
    ended = tx.expired_flights(now, EXPIRE_MAX)
    gone: set[tuple[int, int]] = set()
    for flight in ended:
        group = tx.group_by_id(flight.grp)
        if group is None:
            tx.drop_flight(flight)
            continue
        topic = tx.topic_by_id(group.topic)
        if topic.kind is not Kind.UNORDERED and (flight.grp, flight.lane) in gone:
            continue  # its whole lane came back with an earlier run
        gone.add((flight.grp, flight.lane))
        end_lease(tx, now, group, topic, flight)
        failpoints.hit("expired")
    return len(ended)
