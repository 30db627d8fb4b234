"""What a consumer holds: which delivery may start, what its end means for its key (R13, W11). Pure: events in, actions out; no I/O, no clock.

Theory. Deliveries of one (topic, key, source) are a lane: they run one after another in offset order; lanes run side by side. When the head of a
lane fails, the coordinator takes back all later ones of that key that this member holds, in whatever order frames pass each other. To run
one of those would be an inversion (P7), and with an inbox a loss (P2): the earlier message would then look like a duplicate. So

1. a lane whose head was nacked or rejected is blocked until the answer comes, however long that takes;
2. an answer `ok` is proof: what was in hand when the head failed, and what `given_back` names, is dropped (not yet arrived ones are
   remembered until seen or the connection ends); what else arrived since is newer than the answer and goes on;
3. a refusal (`lease_lost`) proves nothing about the others: they may be old, or leased to us anew. They are nacked themselves, without
   cost, and the lane stays blocked on those answers. Dropping them in silence would leave them leased while a later one runs;
   The same when the coordinator takes a delivery back unasked, or refuses to extend its lease: what is behind it of its key must not
   run before it has come again, fresh as its own lease may look;
4. a head whose lease is older than 2/3 is not started but nacked, without cost, by the same way: the ones behind it may be fresher.

Each delivery costs one credit from its arrival until its end is answered, so all of this is bounded by the credits.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ._delivery import Delivery

STALE_MAX: Final = 10_000
Name = tuple[str, str, str | None]
"""Topic, key and source: two producers' messages of one key are two orders, and the coordinator gives back only those of one (R7, R13)."""


class End(StrEnum):
    ACK = "ack"
    NACK = "nack"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Start:
    """Run the handler; report `finish`."""

    delivery: Delivery


@dataclass(frozen=True, slots=True)
class Settle:
    """Tell the coordinator; report `answered` (until there is an answer, repeat)."""

    end: End
    delivery: Delivery
    reason: str = ""
    delay_s: float | None = None
    counts: bool = True


Action = Start | Settle


class _State(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    SETTLING = "settling"


class _Lane:
    """The deliveries of one key in offset order; a delivery without a key has a lane of its own."""

    __slots__ = ("blocked_by", "doubted", "name", "proved", "queue", "ready", "running")

    def __init__(self, name: Name | None) -> None:
        self.name = name
        self.queue: list[_Entry] = []
        self.running = False
        self.ready = False
        self.blocked_by: set[str] = set()
        self.proved = False
        self.doubted = False
        """Something of it was taken back while it ran or was blocked; what is left is asked about when that ends."""


class _Entry:
    __slots__ = ("at", "before", "connection", "delivery", "end", "lane", "revoked", "state")

    def __init__(self, delivery: Delivery, lane: _Lane, at: float, connection: int) -> None:
        self.delivery = delivery
        self.lane = lane
        self.at = at
        self.connection = connection
        self.state = _State.WAITING
        self.end = End.ACK
        self.before = False
        self.revoked = False


class Hand:
    """One member's deliveries. Times are the client's monotonic seconds, handed in."""

    def __init__(self, *, places: int, lease_s: float) -> None:
        self._free = places
        self._start_within_s = lease_s * 2 / 3
        self._entries: dict[str, _Entry] = {}
        self._lanes: dict[Name, _Lane] = {}
        self._ready: deque[_Lane] = deque()
        self._stale: dict[str, None] = {}
        self._connection = 0
        self._released = 0
        self._closing = False

    def __len__(self) -> int:
        return len(self._entries)

    def take_released(self) -> int:
        """Credits that came free since the last call."""
        released, self._released = self._released, 0
        return released

    @property
    def released(self) -> int:
        return self._released

    # --- events ------------------------------------------------------------------------------------------------------------

    def receive(self, deliveries: Iterable[Delivery], now: float) -> None:
        for delivery in deliveries:
            if delivery.token in self._stale:
                del self._stale[delivery.token]
                self._released += 1
            elif delivery.token in self._entries:
                self._released += 1
            else:
                self._insert(delivery, now)

    def next(self, now: float) -> list[Action]:
        """What may be done now: starts, at most as many as there are places; nacks of what is too old to start, or not wanted any more."""
        actions: list[Action] = []
        while self._ready and (self._free > 0 or self._closing):
            lane = self._ready.popleft()
            lane.ready = False
            if not lane.queue or lane.running or lane.blocked_by:
                continue
            entry = lane.queue.pop(0)
            if self._closing or self._is_old(entry, now):
                reason = "the consumer stops" if self._closing else "the lease was too old to start"
                actions.append(self._fail(entry, Settle(End.NACK, entry.delivery, reason, 0.0, counts=False)))
            else:
                entry.state = _State.RUNNING
                lane.running = True
                self._free -= 1
                actions.append(Start(entry.delivery))
        return actions

    def may_begin(self, token: str, now: float) -> bool:
        """May one that was started, and whose handler has not begun, be begun now? Not where its lease is gone, or too old to start."""
        entry = self._entries[token]
        return not entry.revoked and not self._is_old(entry, now)

    def finish(self, token: str, end: End, *, reason: str = "", delay_s: float | None = None, counts: bool = True) -> list[Action]:
        """The handler ended. A revoked delivery is told to nobody: its result would be refused, and it is delivered again."""
        entry = self._entries[token]
        entry.lane.running = False
        self._free += 1
        if entry.revoked:
            self._forget(entry)
            return self._after(entry.lane, done=end is End.ACK)
        told = Settle(end, entry.delivery, reason, delay_s, counts)
        if end is not End.ACK:
            return [self._fail(entry, told)]
        entry.state, entry.end = _State.SETTLING, end
        return [told, *self._after(entry.lane, done=True)]

    def answered(self, token: str, ok: bool, given_back: Sequence[str] = ()) -> list[Action]:
        """The coordinator's answer to a Settle. `ok=False` is a definite refusal; no answer at all is none."""
        entry = self._entries.get(token)
        if entry is None or entry.state is not _State.SETTLING:
            return []
        self._forget(entry)
        lane = entry.lane
        if entry.end is End.ACK:
            self._close_lane(lane)
            return []
        for back in given_back:
            self._give_back(back)
        lane.blocked_by.discard(token)
        if ok:
            lane.proved = True
            self._drop(lane, [one for one in lane.queue if one.before and one.delivery.offset > entry.delivery.offset])
        return self._unblock(lane) if not lane.blocked_by else []

    def revoked(self, tokens: Iterable[str]) -> list[Action]:
        """Their leases are gone: what waits is dropped, what has not arrived is dropped when it does; what runs ends, and nobody is told."""
        lanes: list[_Lane] = []
        for token in tokens:
            entry = self._entries.get(token)
            if entry is not None and entry.state is _State.RUNNING:
                entry.revoked = True
            elif entry is None or entry.state is _State.WAITING:
                self._give_back(token)
            if entry is not None and entry.state is not _State.SETTLING:
                entry.lane.doubted = True
                lanes.append(entry.lane)
        return [action for lane in lanes for action in self._doubt(lane)]

    def renewed(self, tokens: Iterable[str], at: float) -> None:
        """Their leases were extended by a call that began `at`."""
        for token in tokens:
            if (entry := self._entries.get(token)) is not None:
                entry.at = at

    def disconnected(self) -> None:
        """What was sent and has not arrived never will. The hand is kept; answers come over the next connection."""
        self._connection += 1
        self._stale.clear()

    def close(self) -> None:
        """Start nothing more; give back what has not begun."""
        self._closing = True

    def tokens(self) -> list[str]:
        """All that is in hand, for the next connection: what this member has open and is not among these was lost on the way."""
        return list(self._entries)

    def renewable(self) -> list[str]:
        return [token for token, entry in self._entries.items() if entry.state is not _State.SETTLING and not entry.revoked]

    def _is_old(self, entry: _Entry, now: float) -> bool:
        return now - entry.at > self._start_within_s

    # --- lanes -------------------------------------------------------------------------------------------------------------

    def _insert(self, delivery: Delivery, now: float) -> None:
        lane = self._lane(delivery)
        entry = _Entry(delivery, lane, now, self._connection)
        queue = lane.queue
        at = len(queue) if not queue or queue[-1].delivery.offset < delivery.offset else bisect_left(queue, delivery.offset, key=_offset)
        if at < len(queue) and queue[at].delivery.offset == delivery.offset:
            self._drop(lane, [queue[at]])  # the same message with a newer token: the old one's lease has ended
            lane = self._lane(delivery)
            entry.lane, queue = lane, lane.queue
        queue.insert(at, entry)
        self._entries[delivery.token] = entry
        self._look(lane)

    def _lane(self, delivery: Delivery) -> _Lane:
        if delivery.key is None:
            return _Lane(None)
        name = (delivery.topic, delivery.key, delivery.source)
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = _Lane(name)
        return lane

    def _fail(self, entry: _Entry, told: Settle) -> Settle:
        lane = entry.lane
        entry.state, entry.end = _State.SETTLING, told.end
        lane.blocked_by = {entry.delivery.token}
        lane.proved = False
        for later in lane.queue:
            later.before = True
        return told

    def _after(self, lane: _Lane, *, done: bool) -> list[Action]:
        """Its head has ended and is told, or is no longer ours. The effect of one that failed so is missing: nothing may pass it."""
        lane.doubted = lane.doubted or not done
        actions = self._doubt(lane)
        self._look(lane)
        return actions

    def _doubt(self, lane: _Lane) -> list[Action]:
        """Ask about what is left of a lane from which something was taken back, by nacks without cost; later, if it runs or is blocked."""
        if not lane.doubted or lane.running or lane.blocked_by:
            return []
        lane.proved = False
        return self._unblock(lane)

    def _unblock(self, lane: _Lane) -> list[Action]:
        """All answers are there. What is not proved to be ours is nacked, and the lane waits for that; else it goes on."""
        lane.proved = lane.proved and not lane.doubted
        lane.doubted = False
        doubtful = [one for one in lane.queue if not lane.proved or one.connection != self._connection]
        if not doubtful:
            self._look(lane)
            return []
        lane.queue = [one for one in lane.queue if one not in doubtful]
        lane.proved = False
        for one in doubtful:
            one.state, one.end = _State.SETTLING, End.NACK
        lane.blocked_by = {one.delivery.token for one in doubtful}
        for one in lane.queue:
            one.before = True
        return [Settle(End.NACK, one.delivery, "an earlier message of this key lost its lease", 0.0, counts=False) for one in doubtful]

    def _look(self, lane: _Lane) -> None:
        """Put it among the ready ones if it is; forget it if it is empty."""
        if lane.queue and not lane.running and not lane.blocked_by and not lane.ready:
            lane.ready = True
            self._ready.append(lane)
        else:
            self._close_lane(lane)

    def _close_lane(self, lane: _Lane) -> None:
        empty = not lane.queue and not lane.running and not lane.blocked_by
        if empty and lane.name is not None and self._lanes.get(lane.name) is lane:  # an ack may outlive its lane, and another may stand there
            del self._lanes[lane.name]

    def _give_back(self, token: str) -> None:
        entry = self._entries.get(token)
        if entry is not None and entry.state is _State.WAITING:
            self._drop(entry.lane, [entry])
        elif entry is None:
            self._stale[token] = None
            if len(self._stale) > STALE_MAX:
                del self._stale[next(iter(self._stale))]

    def _drop(self, lane: _Lane, entries: Sequence[_Entry]) -> None:
        for entry in entries:
            lane.queue.remove(entry)
            self._forget(entry)
        self._close_lane(lane)

    def _forget(self, entry: _Entry) -> None:
        del self._entries[entry.delivery.token]
        self._released += 1


def _offset(entry: _Entry) -> int:
    return entry.delivery.offset
