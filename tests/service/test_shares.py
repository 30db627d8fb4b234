"""Nobody is starved: not a lane or a topic beside a busy one, not a member beside one that has all lanes, not a key beside one that is stuck."""

from __future__ import annotations

import tracemalloc

import pytest

from halfmsg.coordinator.digests import lane_of
from halfmsg.coordinator.env import LANE_LOOK_FETCHES
from halfmsg.coordinator.messages import Kind
from halfmsg.coordinator.service import fetching, groups
from tests.support.factories import World, new_message, sequences


def key_in(lane: int, lanes: int) -> str:
    return next(key for key in (f"k{n}" for n in range(10_000)) if lane_of(key.encode(), lanes) == lane)


def test_p2_lanes_take_turns_when_more_comes_than_is_done(world: World) -> None:
    world.topic("u", lanes=4)
    world.group("g", "u")
    world.send_many(4 * 256, "u")
    done = [0, 0, 0, 0]
    for _ in range(20):
        hand = world.fetch(count=20, member="A")
        for each in hand:
            done[each.lane] += 1
        world.ack(*hand)
    assert min(done) >= 80


@pytest.mark.parametrize("members", [1, 2, 4])
def test_p2_lanes_of_members_that_ask_by_turns_take_turns(world: World, members: int) -> None:
    """Two stream pumps ask in each group commit, one after the other: each would begin at every second lane alone, and its others stand still."""
    lanes, names = 16, [f"m{n}" for n in range(members)]
    world.topic("a", Kind.ARRIVAL, lanes=lanes)
    world.group("g", "a")
    for lane in range(lanes):
        key = key_in(lane, lanes)
        world.submit(*(new_message("a", b"x", index=index, key=key) for index in range(400)), producer=None)
    for name in names * 2:
        world.ack(*world.fetch(count=1, member=name))
    done = dict.fromkeys(range(lanes), 0)
    for _ in range(4 * lanes // members):
        for name in names:
            hand = world.fetch(count=20, member=name)
            for each in hand:
                done[each.lane] += 1
            world.ack(*hand)
    assert min(done.values()) >= 20, done


def test_p2_lanes_of_every_topic_find_owners_while_members_ask_by_turns(world: World) -> None:
    for topic in ("one", "two"):
        world.topic(topic, Kind.ARRIVAL, lanes=4)
        for lane in range(4):
            key = key_in(lane, 4)
            world.submit(*(new_message(topic, b"x", index=index, key=key) for index in range(400)), producer=None)
    wanted = tuple(groups.Wanted(topic, None, ()) for topic in ("one", "two"))
    world.store.run(groups.put, groups.GroupWanted("g", wanted, "earliest", 30_000, 16, 1000, 1000))
    served = set()
    for _ in range(30):
        for name in ("A", "B"):
            hand = world.fetch(count=20, member=name)
            served |= {(each.topic, each.lane) for each in hand}
            world.ack(*hand)
    assert len(served) == 8, sorted(served)


@pytest.mark.parametrize("members", [(None,), ("a", "b")])
def test_p2_topics_of_a_group_take_turns(world: World, members: tuple[str | None, ...]) -> None:
    """However many tokens an answer takes."""
    for topic in ("one", "two", "three"):
        world.topic(topic)
        world.send_many(2_000, topic)
    wanted = tuple(groups.Wanted(topic, None, ()) for topic in ("one", "two", "three"))
    world.store.run(groups.put, groups.GroupWanted("g", wanted, "earliest", 30_000, 16, 1000, 1000))
    seen: set[str] = set()
    for turn in range(3):
        hand = world.fetch(count=512, member=members[turn % len(members)])
        seen |= {each.topic for each in hand}
        world.ack(*hand)
    assert seen == {"one", "two", "three"}


def test_p2_key_beside_a_busy_one_is_served_with_the_next_fetch(world: World) -> None:
    world.topic("a", Kind.ARRIVAL, lanes=4)
    world.group("g", "a")
    for _ in range(300):
        world.send("a", key=key_in(0, 4))
    world.send("a", key=key_in(3, 4), body=b"other")
    fetched = [[each.row.body for each in world.fetch(count=16, member="A")] for _ in range(4)]
    assert any(b"other" in bodies for bodies in fetched)


def test_p2_member_that_comes_gets_lanes_of_one_that_is_busy(world: World) -> None:
    """Its handler takes long, so it does not ask, and frees nothing; all the while its lanes are extended. What is in its hand stays there."""
    world.topic("a", Kind.ARRIVAL, lanes=4)
    world.group("g", "a")
    for _ in range(16):
        world.send("a", key=key_in(0, 4))
    full = world.fetch(count=16, member="A")
    for lane in (1, 2, 3):
        world.send("a", key=key_in(lane, 4))
    world.later(10)
    world.extend(*full)
    assert len(world.fetch(count=16, member="B")) == 2, "its share is two of four lanes"
    owners = {place.lane: place.owner for place in world.store.tx.places(1)}
    assert owners[0] == "A" and sorted(owners.values()) == ["A", "A", "B", "B"]
    assert all(each.error is None for each in world.ack(*full))


def test_p6_lane_whose_lease_has_ended_is_taken_once(world: World) -> None:
    """A has more than its share, and one lane of it that nobody extended: that one is free, and not spare as well (simulation, seed 12783)."""
    world.topic("a", Kind.ARRIVAL, lanes=5)
    world.group("g", "a")
    world.send("a", key=key_in(0, 5))
    world.fetch(count=1, member="A", lease_s=30)
    world.store.run(lambda tx, now, _: tx.run("UPDATE place SET until = until + 100000 WHERE lane > 0"), None)
    world.later(25)
    world.fetch(count=0, member="A", lease_s=30)
    world.store.run(lambda tx, now, _: tx.run("UPDATE place SET until = ? WHERE lane = 0", now), None)
    world.send("a", key=key_in(0, 5))
    hand = world.fetch(count=16, member="B")
    assert len({(each.lane, each.row.off) for each in hand}) == len(hand) == 2


def _stuck(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key past its limits, in the one lane."""
    monkeypatch.setattr(fetching, "LANE_RETRIES_MAX", 20)
    monkeypatch.setattr(fetching, "MISSED_MAX", 10)
    world.topic("seq", Kind.SEQUENCE, lanes=1)
    world.group("g", "seq")
    for number in range(1, 60):
        world.sequence(number, "sick")
    while hand := world.fetch(member="m", count=1):
        world.reject(*hand)


def test_p2_key_that_is_stuck_stops_no_other_key_of_its_lane(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that rejects all of a key: past its 1,000 missed numbers the key stops, and what follows of it waits. The lane goes on."""
    _stuck(world, monkeypatch)
    for number in range(1, 4):
        world.sequence(number, "well")
    assert sequences(world.fetch(member="m")) == [1, 2, 3]


def test_p9_what_is_stuck_has_a_limit_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "LANE_RETRIES_MAX", 20)
    monkeypatch.setattr(fetching, "LANE_STUCK_MAX", 40)
    monkeypatch.setattr(fetching, "SCAN_MAX", 10)
    monkeypatch.setattr(fetching, "MISSED_MAX", 10)
    world.topic("seq", Kind.SEQUENCE, lanes=1)
    world.group("g", "seq")
    for number in range(1, 400):
        world.sequence(number, "sick")
    for _ in range(100):
        world.reject(*world.fetch(member="m", count=1))
    assert 40 <= world.store.tx.count_retries(1, 0, 1_000) <= 40 + 10 * LANE_LOOK_FETCHES


def test_p9_what_fills_a_lane_is_counted_once_a_second(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the writer's thread, up to 100,000 rows: each fetch would have held up all that is written."""
    _stuck(world, monkeypatch)
    counted: list[int] = []
    monkeypatch.setattr(fetching._Handout, "_is_lane_full", lambda _, lane: bool(counted.append(lane)))
    world.later(2)
    for number in range(1, 6):
        world.sequence(number, "well")
        assert sequences(world.fetch(member="m")) == [number]
    assert len(counted) == 1
    world.later(2)
    world.sequence(6, "well")
    world.fetch(member="m")
    assert len(counted) == 2


def test_p9_fetch_reads_about_what_it_hands_out(world: World) -> None:
    """Bodies of 1 MiB: four fit into an answer, and no 256 are read for them."""
    world.topic("u")
    world.group("g", "u")
    for _ in range(40):
        world.send("u", b"x" * (1024 * 1024 - 100))
    tracemalloc.start()
    try:
        hand = world.fetch(count=300, member="A")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(hand) == 5
    assert peak < 20 * 2**20
