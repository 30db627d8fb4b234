"""Fetch, ack, nack, reject, expiry and commits in any order, by two members, on three keys: nothing is lost, doubled or overtaken."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from halfmsg.coordinator import doctor
from halfmsg.coordinator.messages import Delivery, Kind
from halfmsg.coordinator.service.hands import Token
from tests.support.factories import World
from tests.support.stores import open_sqlite

KEYS = ("a", "b", "c")
MEMBERS = ("m1", "m2")


class Deliveries(RuleBasedStateMachine):
    """The model is small: what was acked, and who holds what by his own belief."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="halfmsg-machine-"))
        self.world = World(open_sqlite(self.folder / "store.db"))
        self.acked: set[tuple[int, int]] = set()
        self.believed: list[tuple[str, Delivery]] = []
        self.pending: dict[str, set[int]] = {key: set() for key in KEYS}
        self.next_number = dict.fromkeys(KEYS, 1)

    @initialize(lanes=st.sampled_from((1, 2, 3)), attempts=st.sampled_from((1, 2, 3, None)))
    def begin(self, lanes: int, attempts: int | None) -> None:
        self.world.topic("seq", Kind.SEQUENCE, lanes=lanes)
        self.world.group("g", "seq", lease_s=10, max_attempts=attempts, backoff_s=(1, 4))

    # --- what happens ---

    @rule(key=st.sampled_from(KEYS), count=st.integers(1, 4))
    def commit_in_order(self, key: str, count: int) -> None:
        for _ in range(count):
            self.world.sequence(self.next_number[key], key)
            self.next_number[key] += 1

    @rule(key=st.sampled_from(KEYS))
    def leave_a_gap(self, key: str) -> None:
        self.pending[key].add(self.next_number[key])
        self.world.sequence(self.next_number[key] + 1, key)
        self.next_number[key] += 2

    @precondition(lambda self: any(self.pending.values()))
    @rule(data=st.data())
    def fill_a_gap(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([key for key in KEYS if self.pending[key]]))
        self.world.sequence(self.pending[key].pop(), key)

    @rule(member=st.sampled_from(MEMBERS), count=st.integers(1, 6), lease_s=st.sampled_from((None, 3.0, 20.0)), may_be_lost=st.booleans())
    def fetch(self, member: str, count: int, lease_s: float | None, may_be_lost: bool) -> None:
        before = self._open_by_member(self.world.now)  # what has ended is in nobody's hand: its member may have been told so
        others = set(before) if may_be_lost else set()
        hand = self.world.fetch(member=member, count=count, lease_s=lease_s, may_be_lost=may_be_lost)
        dead = self._dead()  # after it: taking a lane over ends leases, and a last attempt with them
        taken = {(given.lane, given.row.off) for given in hand}
        for given in hand:
            at = (given.lane, given.row.off)
            for earlier in self._earlier_of_key(given):
                settled = earlier in self.acked or earlier in dead
                assert settled or before.get(earlier) == member, f"{at} was handed to {member} before {earlier} of its key"
                assert settled or earlier in taken or earlier not in others, f"{at} was handed out past {earlier}, of an answer that may be lost"
            before[at] = member
            self.believed.append((member, given))

    @precondition(lambda self: self.believed)
    @rule(data=st.data(), what=st.sampled_from(("ack", "ack", "nack", "reject")))
    def settle(self, data: st.DataObject, what: str) -> None:
        _, given = self.believed.pop(data.draw(st.integers(0, len(self.believed) - 1)))
        at = (given.lane, given.row.off)
        was_open = self._open_by_member()
        [result] = self.world.settle(what, given)
        if result.error is None:
            assert at in was_open
            if what == "ack":
                assert at not in self.acked
                assert set(self._earlier_of_key(given)) <= self.acked | self._dead(), f"{at} was settled before an earlier one of its key"
                self.acked.add(at)
        elif result.error[0] == "out_of_order":
            self.believed.append((given.group, given))
        else:
            assert result.error[0] == "lease_lost"

    @precondition(lambda self: self.believed)
    @rule(data=st.data(), by_s=st.sampled_from((1.0, 30.0)))
    def extend(self, data: st.DataObject, by_s: float) -> None:
        given = data.draw(st.sampled_from([given for _, given in self.believed]))
        [result] = self.world.extend(given, by_s=by_s)
        assert result.error is None or result.error[0] == "lease_lost"
        assert (result.error is None) == (given.token in self._good_tokens()), "a lease was extended that is gone, or one refused that is not"

    @rule(seconds=st.sampled_from((0.5, 1.0, 2.0, 4.0, 11.0)), tick=st.booleans())
    def time_passes(self, seconds: float, tick: bool) -> None:
        self.world.later(seconds)
        if tick:
            self.world.expire()

    # --- what must hold ---

    @invariant()
    def every_released_message_is_in_one_place(self) -> None:
        beyond = {(lane, off) for lane, off in self._all("SELECT g.lane, g.off FROM log g JOIN place p ON p.lane = g.lane WHERE g.off >= p.next_off")}
        opened = list(self._open())
        waits = set(self._all("SELECT lane, off FROM retry"))
        dead = self._dead()
        assert len(opened) == len(set(opened))
        for at in self._all("SELECT lane, off FROM log"):
            places = [at in beyond, at in set(opened), at in waits, at in dead, at in self.acked]
            assert sum(places) == 1, f"{at} is in {places} of (beyond the place, in a hand, waiting, dead, settled)"

    @invariant()
    def doctor_finds_nothing(self) -> None:
        wrong = [finding for finding in doctor.run(self.world.store.tx.conn) if not finding.ok]
        assert not wrong, wrong

    def teardown(self) -> None:
        """At rest, everything that is not held behind a gap or dead can be acked, in order."""
        if self._all("SELECT 1 FROM grp"):
            self._drain()
        self.world.store.close()
        shutil.rmtree(self.folder)

    def _drain(self) -> None:
        self.world.later(60)
        self.world.expire()
        idle = 0
        while idle < 3:
            hand = self.world.fetch(member="m1")
            for given in hand:
                [result] = self.world.ack(given)
                assert result.error is None
                self.acked.add((given.lane, given.row.off))
            idle = 0 if hand else idle + 1
            self.world.later(10)
            self.world.expire()
        assert set(self._all("SELECT lane, off FROM log")) == self.acked | self._dead()
        assert self._all("SELECT 1 FROM retry UNION ALL SELECT 1 FROM flight") == []

    # --- looking ---

    def _all(self, sql: str) -> list[tuple[int, ...]]:
        return self.world.store.tx.all(sql)  # type: ignore[no-any-return]

    def _flights(self, until: int = -1) -> list[tuple[int, str, list[int]]]:
        tx = self.world.store.tx
        found = []
        for grp, lane in self._all("SELECT grp, lane FROM place"):
            found += [(lane, flight.member, flight.open_offsets()) for flight in tx.flights_of_lane(grp, lane) if flight.until > until]
        return found

    def _open(self) -> list[tuple[int, int]]:
        return [(lane, off) for lane, _, offs in self._flights() for off in offs]

    def _open_by_member(self, until: int = -1) -> dict[tuple[int, int], str]:
        return {(lane, off): member for lane, member, offs in self._flights(until) for off in offs}

    def _good_tokens(self) -> set[str]:
        """Of what is open in lanes where no lease has ended: the others come back at the next tick."""
        flights = [each for grp, lane in self._all("SELECT grp, lane FROM place") for each in self.world.store.tx.flights_of_lane(grp, lane)]
        ended = {flight.lane for flight in flights if flight.until <= self.world.now}
        good = [flight for flight in flights if flight.lane not in ended]
        return {str(Token(flight.grp, flight.lane, flight.lo, off, flight.token)) for flight in good for off in flight.open_offsets()}

    def _dead(self) -> set[tuple[int, int]]:
        return {(lane, off) for lane, off in self._all("SELECT lane, off FROM dead WHERE grp IS NOT NULL")}

    def _earlier_of_key(self, given: Delivery) -> list[tuple[int, int]]:
        sql = f"SELECT lane, off FROM log WHERE okey = {given.row.okey} AND seq < {given.row.seq}"
        return [(lane, off) for lane, off in self._all(sql)]


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=50, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
