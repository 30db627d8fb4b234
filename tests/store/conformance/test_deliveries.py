"""Places, runs in flight, retries and dead letters, over every backend."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from halfmsg.coordinator.messages import Flight, Group, Kind, Place, Reason, Retry, Topic
from tests.store.conformance.conftest import OpenStore
from tests.support.stores import Store


def a_flight(grp: int = 1, lo: int = 10, hi: int = 19, *, token: int = 1, lane: int = 0, until: int = 100, done: int = 0) -> Flight:
    return Flight(grp, lane, lo, hi, token, "m", until, done, 2, 3, 4, "why", True)


def a_retry(off: int = 5, *, lane: int = 0, due: int | None = 50, okey: int | None = None) -> Retry:
    return Retry(lane, off, due, okey, 2, 3, "why", True)


def add_dead(tx: Any, grp: int | None, *, okey: int | None = None, seq: int | None = None, m: int = 1_024, reason: Reason = Reason.REJECTED) -> None:
    tx.add_dead(grp=grp, topic=1, lane=0, off=0, okey=okey, seq=seq, m=m, reason=reason, attempts=1, first_out=1, at=2, history="x")


@pytest.fixture
def group(store: Store) -> Group:
    topic = store.do(lambda tx: tx.add_topic(Topic(0, "orders", Kind.SEQUENCE, 3, None, 1_000, 2_000, True)))
    return store.do(  # type: ignore[no-any-return]
        lambda tx: tx.add_group(Group(0, "g", topic.id, 1, None, (), 30_000, None, 1_000, 600_000, False, None, "earliest"), at_end=False)
    )


def test_places_keep_offset_owner_token_and_lease(store: Store, group: Group) -> None:
    """Each lane for itself, in order of lane."""
    store.do(lambda tx: (tx.move_place(group.id, 1, 9), tx.own_place(group.id, 1, "a", 4, 100), tx.own_place(group.id, 2, "b", 5, 200)))
    assert store.tx.places(group.id) == [Place(0, 0, None, 0, 0), Place(1, 9, "a", 4, 100), Place(2, 0, "b", 5, 200)]
    store.do(lambda tx: (tx.own_place(group.id, 1, None, 0, 0), tx.renew_places(group.id, "b", 150)))
    assert [(place.owner, place.until) for place in store.tx.places(group.id)] == [(None, 0), (None, 0), ("b", 200)]


def test_leases_of_places_only_grow_and_only_for_their_owner(store: Store, group: Group) -> None:
    """Renewing never shortens, and a stranger renews nothing."""
    store.do(lambda tx: [tx.own_place(group.id, lane, "a", lane, 100) for lane in (0, 1)])
    store.do(lambda tx: (tx.own_longer(group.id, 0, "a", 90), tx.own_longer(group.id, 0, "b", 300), tx.renew_places(group.id, "b", 300)))
    assert [place.until for place in store.tx.places(group.id)] == [100, 100, 0]
    store.do(lambda tx: (tx.own_longer(group.id, 0, "a", 300), tx.renew_places(group.id, "a", 200)))
    assert [place.until for place in store.tx.places(group.id)] == [300, 200, 0]


@pytest.mark.parametrize("size", [1, 7, 8, 9, 255, 256])
def test_p3_run_survives_a_restart_with_its_bits(open_store: OpenStore, size: int) -> None:
    """Which ones are settled is told bit by bit, at every width."""
    flight = a_flight(hi=10 + size - 1, done=(1 << size - 1) >> 1 | 1 if size > 1 else 0)
    store = open_store()
    store.do(lambda tx: tx.fly(flight))
    found = open_store().tx.flight(1, 0, 10, 1)
    assert found == flight
    assert set(found.open_offsets()) == {10 + i for i in range(size) if not flight.done >> i & 1}


def test_run_is_deleted_when_all_is_done(store: Store) -> None:
    """Bit by bit; the last bit deletes it."""
    flight = a_flight(hi=12)
    store.do(lambda tx: tx.fly(flight))
    for done in (0b001, 0b101):
        store.do(lambda tx, d=done: tx.set_done(flight, d))
        assert store.tx.flight(1, 0, 10, 1) == replace(flight, done=done)
    store.do(lambda tx: tx.set_done(flight, 0b111))
    assert store.tx.flight(1, 0, 10, 1) is None and not store.tx.has_flights(1)


def test_p6_run_is_found_by_its_token_alone(store: Store) -> None:
    """Two runs may begin at one offset; another token, lane, offset or group finds nothing."""
    first, second = a_flight(), a_flight(hi=10, token=2)
    store.do(lambda tx: (tx.fly(first), tx.fly(second)))
    assert (store.tx.flight(1, 0, 10, 1), store.tx.flight(1, 0, 10, 2)) == (first, second)
    assert [store.tx.flight(*at) for at in ((1, 0, 10, 3), (1, 1, 10, 1), (1, 0, 11, 1), (2, 0, 10, 1))] == [None] * 4
    store.do(lambda tx: tx.drop_flight(first))
    assert store.tx.flights_of_lane(1, 0) == [second]


def test_flights_of_a_lane_come_in_order(store: Store) -> None:
    """By offset, then token; of that group and lane only."""
    runs = [a_flight(lo=10, hi=10, token=2), a_flight(lo=10, hi=19), a_flight(lo=5, hi=9, token=7)]
    store.do(lambda tx: [tx.fly(run) for run in [*runs, a_flight(lane=1), a_flight(grp=2)]])
    assert store.tx.flights_of_lane(1, 0) == [runs[2], runs[1], runs[0]]


def test_ended_runs_are_those_at_or_before_now(store: Store) -> None:
    """At the very moment too; at most `limit`, the longest ended first."""
    store.do(lambda tx: [tx.fly(a_flight(token=token, until=until)) for token, until in ((1, 101), (2, 100), (3, 50))])
    assert [run.token for run in store.tx.expired_flights(100, 9)] == [3, 2]
    assert [run.token for run in store.tx.expired_flights(100, 1)] == [3]


def test_lease_is_extended_and_never_shortened(store: Store) -> None:
    """Of that run alone."""
    runs = [a_flight(), a_flight(token=2)]
    store.do(lambda tx: [tx.fly(run) for run in runs])
    store.do(lambda tx: (tx.extend_flight(runs[0], 300), tx.extend_flight(runs[0], 200)))
    assert [run.until for run in store.tx.flights_of_lane(1, 0)] == [300, 100]


def test_p3_retry_survives_a_restart(open_store: OpenStore) -> None:
    """With due time, attempts, first hand-out and reason."""
    rows = [a_retry(1), a_retry(2, due=None, okey=4), Retry(0, 3, 60, None, 0, 0, None, False)]
    open_store().do(lambda tx: [tx.put_retry(1, row) for row in rows])
    tx = open_store().tx
    assert (tx.due_retries(1, 100, 9), tx.first_retry_of_key(1, 4)) == ([rows[0], rows[2]], rows[1])


def test_put_retry_keeps_the_one_that_is_there(store: Store) -> None:
    """A message waits once; a second put changes nothing."""
    store.do(lambda tx: (tx.put_retry(1, a_retry(due=50)), tx.put_retry(1, a_retry(due=1))))
    assert store.tx.due_retries(1, 49, 9) == []


def test_due_retries_are_due_of_that_group_in_order(store: Store) -> None:
    """Due at or before now, earliest first, waiting ones never; at most `limit`."""
    for row in (a_retry(1, due=30), a_retry(2, due=10), a_retry(3, due=31), a_retry(4, due=None, okey=1), a_retry(5, due=30, lane=1)):
        store.do(lambda tx, r=row: tx.put_retry(1, r))
    store.do(lambda tx: tx.put_retry(2, a_retry(9, due=1)))
    assert [row.off for row in store.tx.due_retries(1, 30, 9)] == [2, 1, 5]
    assert [row.off for row in store.tx.due_retries(1, 30, 1)] == [2]
    assert [row.off for row in store.tx.due_retries_of_lane(1, 0, 30, 9)] == [1, 2]
    assert (store.tx.next_retry_due(1), store.tx.next_retry_due(3)) == (10, None)


def test_first_retry_of_a_key_is_its_lowest(store: Store) -> None:
    """Whatever is due: order is by offset."""
    for row in (a_retry(7, due=1, okey=4), a_retry(3, due=None, okey=4), a_retry(1, okey=5)):
        store.do(lambda tx, r=row: tx.put_retry(1, r))
    first = store.tx.first_retry_of_key(1, 4)
    assert first.off == 3 and store.tx.first_retry_of_key(1, 6) is None
    store.do(lambda tx: tx.set_retry_due(1, first, 8))
    assert store.tx.first_retry_of_key(1, 4).off == 3
    assert [row.off for row in store.tx.due_retries(1, 8, 9)] == [7, 3]
    store.do(lambda tx: tx.take_retry(1, first))
    assert store.tx.first_retry_of_key(1, 4).off == 7


def test_p9_counts_stop_at_their_limit(store: Store) -> None:
    """A count costs no more than its limit."""
    store.do(lambda tx: [tx.put_retry(1, a_retry(off)) for off in range(5)])
    store.do(lambda tx: [add_dead(tx, 1) for _ in range(5)])
    assert [store.tx.count_retries(1, 0, limit) for limit in (3, 5, 9)] == [3, 5, 5]
    assert [store.tx.count_dead(1, limit) for limit in (3, 9)] == [3, 5]
    assert (store.tx.has_retries(1), store.tx.has_retries(2), store.tx.count_retries(1, 1, 9), store.tx.count_dead(2, 9)) == (True, False, 0, 0)


def test_p2_dead_letter_is_found_by_its_message(open_store: OpenStore) -> None:
    """In the group's list and in the topic's, with the reason."""
    open_store().do(lambda tx: (add_dead(tx, 1, seq=4), add_dead(tx, None, reason=Reason.CORRUPT), add_dead(tx, 1, m=2_048)))
    found = open_store().tx.dead_of_message(1_024)
    assert [each[1:] for each in found] == [(1, Reason.REJECTED, 4), (None, Reason.CORRUPT, None)]


def test_p7_missed_numbers_are_unnamed_until_named(store: Store) -> None:
    """Below a number, of that group and key, lowest first; naming ends it up to that number (R6)."""
    for grp, okey, seq in ((1, 4, 3), (1, 4, 1), (1, 4, 9), (1, 5, 2), (2, 4, 2), (None, 4, 2)):
        store.do(lambda tx, g=grp, k=okey, s=seq: add_dead(tx, g, okey=k, seq=s))
    assert (store.tx.unnamed_dead(1, 4, 9, 9), store.tx.unnamed_dead(1, 4, 9, 1), store.tx.unnamed_dead(1, 4, 10, 9)) == ([1, 3], [1], [1, 3, 9])
    store.do(lambda tx: tx.name_dead(1, 4, 9))
    assert (store.tx.unnamed_dead(1, 4, 10, 9), store.tx.unnamed_dead(2, 4, 9, 9), store.tx.unnamed_dead(1, 5, 9, 9)) == ([9], [2], [2])


def test_dead_letter_is_told(store: Store) -> None:
    """Topic, group and reason, for metrics and alarms."""
    store.do(lambda tx: add_dead(tx, 7))
    assert store.events == [("dead", 1, 7, "rejected")]
