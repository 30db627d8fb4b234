"""Handing out: what failed before and is due, then runs of what is new (PROTOCOL §4, §5).

A group costs one place a lane, however far behind it is. A run is handed out under one lease; only what fails gets a row of its own.
In an ordered topic a member gets messages of the lanes it owns, and a message whose key waits for a failed one is put behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import msgspec

from ..digests import message_digest
from ..env import begun_at
from ..errors import Problem
from ..messages import Delivery, Fetch, Flight, Group, Kind, Logged, Place, Retry, Source, Topic
from ..policies import share
from ..states import State
from ..store.base import StoreTx
from . import producers
from .hands import CORRUPT, TOO_MANY_MISSED, Lane, Token, end_lease, give_back_lane, quarantine, silent
from .settling import groups_of

RUN_MAX = 256
SCAN_MAX = 10_000
BYTES_MAX = 4 * 1024 * 1024
NUMBER_BYTES = 17
"""One of `missed`, as the longest of them stands in JSON."""
MISSED_MAX = 1_000
LANE_RETRIES_MAX = 1_000
LANE_STUCK_MAX = 100_000
SAID_AGAIN_MS = 7 * 86_400_000

decode_extra = msgspec.msgpack.Decoder(tuple[str, dict[str, str] | None, str | None]).decode


def fetch(tx: StoreTx, now: int, command: Fetch) -> list[Delivery]:
    """At most `count` deliveries, each under a lease. Raises group_not_found, wrong_inbox, bad_request (no member)."""
    groups = list(groups_of(tx, command.group).values())
    _check_inbox(tx, groups, command.inbox)
    turn = tx.env.turn()
    hand: list[Delivery] = []
    room = Room(command.count)
    for group in begun_at(turn.topic, groups):
        if (
            not group.paused
            and room.left > 0
            and tx.count_dead(group.id, tx.env.settings.group.max_dead_letters) < tx.env.settings.group.max_dead_letters
        ):
            hand += _Handout(tx, now, group, command, room, turn.lane).take()
        elif command.member:
            tx.env.members.seen(group.id, command.member, now, command.lease_ms or group.lease_ms)
    return hand


class Room:
    """How much more one answer takes: messages and bytes."""

    __slots__ = ("bytes_left", "left")

    def __init__(self, count: int) -> None:
        self.left = count
        self.bytes_left = BYTES_MAX

    def take(self, row: Logged, missed: tuple[int, ...]) -> None:
        """All that may be long counts, or an answer of many would not fit into a frame, and so would every repeat of it."""
        self.left -= 1
        self.bytes_left -= len(row.body) + len(row.extra) + NUMBER_BYTES * len(missed)

    @property
    def full(self) -> bool:
        return self.left <= 0 or self.bytes_left <= 0


def _check_inbox(tx: StoreTx, groups: list[Group], inbox: bytes | None) -> None:
    """R29: one inbox database a group; a redelivery to another one would run twice."""
    if inbox is None:
        return
    for group in groups:
        if group.inbox is None:
            tx.bind_inbox(group, inbox)
        elif group.inbox != inbox:
            raise Problem("wrong_inbox", f"group {group.name} uses the inbox {group.inbox.hex()}; a second database would repeat effects")


class _Handout:
    """One group on one topic, for one fetch."""

    def __init__(self, tx: StoreTx, now: int, group: Group, command: Fetch, room: Room, turn: float) -> None:
        self.tx, self.now, self.group, self.room, self.turn = tx, now, group, room, turn
        self.topic = tx.topic_by_id(group.topic)
        self.lease_ms = command.lease_ms or group.lease_ms
        self.ordered = self.topic.kind is not Kind.UNORDERED
        if self.ordered and command.member is None:
            raise Problem("bad_request", f"topic {self.topic.name} is ordered: a fetch names its `member`, which owns lanes")
        self.member = command.member or ""
        self.retries = tx.has_retries(group.id)
        self.may_be_lost = command.may_be_lost
        self.in_hand: set[int | None] = set()
        """Keys of the lane that an earlier answer, perhaps a lost one, has something open of: what follows goes behind that (P7)."""
        self.missed: tuple[int, ...] = ()
        self.restored = tx.restored()

    def take(self) -> list[Delivery]:
        hand: list[Delivery] = []
        lanes = begun_at(self.turn, self._own_lanes() if self.ordered else self._all_lanes())
        if self.retries:
            hand += self._due(lanes)
        if self.group.id not in self.tx.env.full.groups:
            for place in lanes:
                if self.room.full:
                    break
                hand += self._new(place)
        if hand:
            self.tx.emit(("delivered", self.group.id, len(hand)))
        return hand

    def _all_lanes(self) -> list[Place]:
        """Everybody's. A member is noted all the same: a group with members is not removed under them."""
        if self.member:
            self.tx.env.members.seen(self.group.id, self.member, self.now, self.lease_ms)
        return self.tx.places(self.group.id)

    # --- lanes of an ordered topic ---

    def _own_lanes(self) -> list[Place]:
        """This member's lanes after taking free ones up to its share, and freeing what is above it. What has just ended is for the next fetch:
        its member may be the one that says nothing.
        """
        tx, now, group, members = self.tx, self.now, self.group, self.tx.env.members
        if members.seen(group.id, self.member, now, self.lease_ms):
            tx.emit(("wake", self.topic.id, now))
        ended = self._end_leases()
        places = tx.places(group.id)
        fair = share(len(places), len(members.live(group.id, now)))
        mine = [place for place in places if place.owner == self.member and place.until > now]
        if len(mine) < fair:
            free = [place for place in places if (place.owner is None or place.until <= now) and place.lane not in ended]
            mine += [self._take_lane(place) for place in free[: fair - len(mine)]]
            mine += [self._take_lane(place) for place in self._spare(places, fair, fair - len(mine))]
        elif len(mine) > fair:
            self._free_lanes(mine[fair:])
            mine = mine[:fair]
        until = members.renewal(group.id, self.member, now)
        if until is not None:
            tx.renew_places(group.id, self.member, until)
        return mine

    def _end_leases(self) -> set[int]:
        """Lanes of this member in which a lease has ended, given back as the tick would. Until then the member has been told `lease_lost`, has
        let go of the message, and would take the next one of its key for the first (P7; simulation, seed 16431).
        """
        tx, ended = self.tx, set()
        if tx.expired_flights(self.now, 1):
            for place in tx.places(self.group.id):
                flights = tx.flights_of_lane(self.group.id, place.lane) if place.owner == self.member else []
                if gone := [flight for flight in flights if flight.until <= self.now]:
                    end_lease(tx, self.now, self.group, self.topic, gone[0])
                    ended.add(place.lane)
                    self.retries = True
        return ended

    def _spare(self, places: list[Place], fair: int, wanted: int) -> list[Place]:
        """Lanes of those who have more than their share, where nothing is in a hand: one who is busy does not ask, and would keep them."""
        held = [place for place in places if place.owner not in (None, self.member) and place.until > self.now]
        owned = Counter(place.owner for place in held)
        found: list[Place] = []
        for place in held:
            if len(found) >= wanted:
                break
            if owned[place.owner] > fair and not self.tx.flights_of_lane(self.group.id, place.lane):
                owned[place.owner] -= 1
                found.append(place)
        return found

    def _take_lane(self, place: Place) -> Place:
        """A lane whose owner is gone: what it left open comes back first."""
        if place.owner is not None:
            if left := self.tx.flights_of_lane(self.group.id, place.lane):
                silent(self.tx, self.group, self.topic, place.owner, max(flight.until for flight in left))
            give_back_lane(self.tx, self.now, self.group, self.topic, place.lane)
            self.retries = True
        token, until = self.tx.new_token(), self.now + self.lease_ms
        self.tx.own_place(self.group.id, place.lane, self.member, token, until)
        return Place(place.lane, place.next_off, self.member, token, until)

    def _free_lanes(self, surplus: list[Place]) -> None:
        for place in surplus:
            if not self.tx.flights_of_lane(self.group.id, place.lane):
                self.tx.own_place(self.group.id, place.lane, None, 0, 0)
                self.tx.emit(("wake", self.topic.id, self.now))

    # --- what failed before ---

    def _due(self, lanes: list[Place]) -> list[Delivery]:
        hand = []
        for retry in self._due_rows(lanes):
            if self.room.full:
                break
            row = self._read_one(retry)
            if row is not None and self._may_go(row):
                self.tx.take_retry(self.group.id, retry)
                self.room.take(row, self.missed)
                hand.append(self._alone(row, retry))
            elif row is not None or self.ordered:
                self._stick(retry, CORRUPT if row is None else TOO_MANY_MISSED)
            else:
                self.tx.take_retry(self.group.id, retry)
        return hand

    def _due_rows(self, lanes: list[Place]) -> Iterator[Retry]:
        if not self.ordered:
            yield from self.tx.due_retries(self.group.id, self.now, self.room.left)
            return
        for place in lanes:
            yield from self.tx.due_retries_of_lane(self.group.id, place.lane, self.now, max(self.room.left, 0))

    def _read_one(self, retry: Retry) -> Logged | None:
        rows = self.tx.read_run(self.topic.id, retry.lane, retry.off, retry.off + 1, 1)
        if rows and is_sound(self.topic, rows[0]):
            return rows[0]
        self._quarantine(retry.lane, retry.off)
        return None

    def _stick(self, retry: Retry, why: str) -> None:
        self.tx.take_retry(self.group.id, retry)
        self.tx.put_retry(self.group.id, msgspec.structs.replace(retry, due=None, error=why))

    def _alone(self, row: Logged, retry: Retry) -> Delivery:
        token = self.tx.new_token()
        first_out = retry.first_out or self.now
        flight = Flight(
            self.group.id, retry.lane, row.off, row.off, token, self.member, self.now + self.lease_ms, 0, retry.attempts, first_out, row.at,
            retry.error, retry.redriven,
        )  # fmt: skip
        self._fly(flight)
        return self._delivery(row, flight)

    # --- what is new ---

    def _new(self, place: Place) -> list[Delivery]:
        """Runs from a place on, until the room is full, the lane is empty, or 10,000 were passed by a filter."""
        hand: list[Delivery] = []
        end = self.tx.lane_end(self.topic.id, place.lane)
        start = place.next_off
        if start >= end or (self.ordered and self.retries and self._lane_waits(place.lane)):
            return hand
        if self.ordered and self.may_be_lost:
            self.in_hand = Lane(self.tx, self.group, self.topic, place.lane).keys()
        scan_end = min(end, start + SCAN_MAX)
        while start < scan_end and not self.room.full:
            limit = min(RUN_MAX, scan_end - start) if self.group.filters else min(RUN_MAX, scan_end - start, self.room.left)
            got, start = self._one_run(place.lane, start, start + limit)
            hand += got
        self.tx.move_place(self.group.id, place.lane, start)
        if start < end and not hand:
            self.tx.emit(("wake", self.topic.id, self.now))
        return hand

    def _lane_waits(self, lane: int) -> bool:
        """Past 1,000 exceptions the lane waits: a mostly failing group must not turn the log into rows. Those of a key that is stuck for good
        do not go away, and the other keys of its lane must not stand still for that.
        """
        if self.tx.count_retries(self.group.id, lane, LANE_RETRIES_MAX) < LANE_RETRIES_MAX:
            return False
        waits: bool = self.tx.env.lane_waits((self.group.id, lane), self.now, lambda: self._is_lane_full(lane))
        return waits

    def _is_lane_full(self, lane: int) -> bool:
        if self.tx.count_retries(self.group.id, lane, LANE_STUCK_MAX) >= LANE_STUCK_MAX:
            return True
        return self.tx.count_moving_retries(self.group.id, lane, LANE_RETRIES_MAX) >= LANE_RETRIES_MAX

    def _one_run(self, lane: int, lo: int, end: int) -> tuple[list[Delivery], int]:
        """(deliveries of one run, the offset after it). What does not go out in it has its bit set already."""
        goes: list[tuple[Logged, tuple[int, ...]]] = []
        done = 0
        off = lo
        with closing(self.tx.walk_run(self.topic.id, lane, lo, end)) as rows:  # a row at a time: 256 bodies may be more than an answer takes
            row = None
            while off < end and not self.room.full:
                row = next(rows, None) if row is None or row.off < off else row
                here = row if row is not None and row.off == off else None
                if self._goes_out(lane, off, here) and here is not None:
                    goes.append((here, self.missed))
                    self.room.take(here, self.missed)
                else:
                    done |= 1 << off - lo
                off += 1
        if not goes:
            return [], off
        until, token = self.now + self.lease_ms, self.tx.new_token()
        flight = Flight(self.group.id, lane, lo, off - 1, token, self.member, until, done, 0, self.now, goes[0][0].at, None, False)
        self._fly(flight)
        return [self._delivery(row, flight, missed) for row, missed in goes], off

    def _goes_out(self, lane: int, off: int, row: Logged | None) -> bool:
        """Is this one for the run? Else it is settled (filter), quarantined, or put behind an earlier one of its key."""
        if row is None or not is_sound(self.topic, row):
            self._quarantine(lane, off)
            return False
        if not matches(self.group, row):
            return False
        self.missed = ()
        if row.okey is None:
            return True
        if row.okey in self.in_hand or (self.retries and self.tx.first_retry_of_key(self.group.id, row.okey) is not None):
            self.tx.put_retry(self.group.id, Retry(lane, off, None, row.okey, 0, 0, None, False))
            return False
        if self._may_go(row):
            return True
        self.tx.put_retry(self.group.id, Retry(lane, off, None, row.okey, 0, 0, TOO_MANY_MISSED, False))
        self.retries = True
        return False

    def _may_go(self, row: Logged) -> bool:
        """Names the numbers of its key that this group passed over (R6); past 1,000 the key stops."""
        self.missed = ()
        if row.okey is not None and row.seq is not None:
            self.missed = tuple(self.tx.unnamed_dead(self.group.id, row.okey, row.seq, MISSED_MAX + 1))
        return len(self.missed) <= MISSED_MAX

    def _quarantine(self, lane: int, off: int) -> None:
        """P8: a damaged row is reported in the topic's dead letters, never delivered or dropped; its key stops."""
        okey = quarantine(self.tx, self.now, self.topic, lane, off)
        if okey is not None:
            self.tx.stop_key(okey)
            self.tx.put_retry(self.group.id, Retry(lane, off, None, okey, 0, 0, CORRUPT, False))
            self.retries = True

    def _fly(self, flight: Flight) -> None:
        """A lane is its member's at least as long as the lease that its deliveries tell."""
        self.tx.fly(flight)
        if self.ordered:
            self.tx.own_longer(self.group.id, flight.lane, self.member, flight.until)

    def _delivery(self, row: Logged, flight: Flight, missed: tuple[int, ...] | None = None) -> Delivery:
        token = Token(flight.grp, flight.lane, flight.lo, row.off, flight.token)
        source = self.tx.source_by_id(row.source) if row.source else None
        redriven = flight.redriven or (row.seq is not None and self._is_in_doubt(row))
        return Delivery(
            row, self.topic.name, flight.lane, self.group.name, self.group.generation, flight.attempts + 1, self.now - flight.first_out, str(token),
            flight.until, source.name if source else None, _source_text(self.tx, source, row), self.missed if missed is None else missed, redriven,
        )  # fmt: skip

    def _is_in_doubt(self, row: Logged) -> bool:
        """Was it perhaps a dead letter between a backup and its restore, named to an inbox as passed over? Only a redriven one runs there (W15).

        Told by its mark. What came without one has that of its arrival: said again after the restore it is in doubt for as long as people
        say lost ones again. Numbers that the coordinator itself draws are beyond all that were given out before.
        """
        before = max(self.restored.at, self.restored.doubt_before)
        if not before:
            return False
        if self.topic.kind is Kind.ARRIVAL:
            return row.seq is not None and row.seq < self.restored.arrival_floor
        return row.mark < (before if row.mark < row.first_at else before + SAID_AGAIN_MS)


def _source_text(tx: StoreTx, source: Source | None, row: Logged) -> str | None:
    """`ID/INCARNATION`, part of the ordered inbox's key (R7). A key that began without a database stays known by its producer's name: of two
    names, what follows would not wait for what went before (P7).
    """
    if source is None:
        return None
    if source.db_id is None or (row.okey is not None and row.okey <= tx.counter(producers.bound_at(source))):
        return f"{source.name}/{row.incarnation or 1}"
    return f"{source.db_id.hex()}/{row.incarnation or 1}"


def is_sound(topic: Topic, row: Logged) -> bool:
    """Bytes out are bytes in (P8): the digest is computed anew from what is about to go out. One that is not committed goes to nobody (P1)."""
    if row.state != State.COMMITTED:
        return False
    try:
        content_type, attributes, _ = decode_extra(row.extra)
        digest = message_digest(topic=topic.name, key=row.key, tag=row.tag, content_type=content_type, body=row.body, attributes=attributes)
    except (msgspec.MsgspecError, ValueError, TypeError):
        return False
    return digest == row.digest


def matches(group: Group, row: Logged) -> bool:
    """Filters are settled for this group, and not passed over for the key (R22)."""
    if group.tag is not None and row.tag != group.tag:
        return False
    if not group.attributes:
        return True
    attributes = decode_extra(row.extra)[1] or {}
    return all(attributes.get(name) == value for name, value in group.attributes)
