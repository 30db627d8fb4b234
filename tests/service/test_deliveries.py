"""Handing out and settling: places, runs, leases, attempts, dead letters, order within a key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from halfmsg.coordinator import render, wire
from halfmsg.coordinator.digests import lane_of
from halfmsg.coordinator.errors import Problem
from halfmsg.coordinator.messages import Delivery, Kind
from halfmsg.coordinator.service import fetching, groups
from halfmsg.coordinator.service.hands import policy_of
from halfmsg.coordinator.settings import Groups, Settings
from halfmsg.txclient._stream import MAX_FRAME_BYTES
from tests.support.factories import World, bodies, dead_letter, leased_delivery, new_message, sequences
from tests.support.stores import changed, dump

LOST = "lease_lost"


def _rows(world: World, sql: str, *args: Any) -> list[Any]:
    return world.store.tx.all(sql, *args)  # type: ignore[no-any-return]


def _codes(results: list[Any]) -> list[str | None]:
    return [None if each.error is None else each.error[0] for each in results]


def _key_in_lane(lane: int, lanes: int) -> str:
    return next(f"k{i}" for i in range(10_000) if lane_of(f"k{i}".encode(), lanes) == lane)


@pytest.fixture
def plain(world: World) -> World:
    world.topic()
    world.group()
    return world


@pytest.fixture
def seq(world: World) -> World:
    world.topic("seq", Kind.SEQUENCE, lanes=1)
    world.group("g", "seq")
    return world


def _dead(world: World, grp: str = "g") -> list[tuple[Any, ...]]:
    return _rows(world, "SELECT reason, attempts, seq FROM dead WHERE grp = (SELECT id FROM grp WHERE name = ?) ORDER BY id", grp)


# --- places, filters ---


def test_p2_group_at_earliest_gets_what_is_kept_and_latest_what_comes(world: World) -> None:
    """Two groups made after three messages: one sees all four, the other only the fourth."""
    world.topic()
    world.send_many(3)
    world.group("early")
    world.group("late", start="latest")
    world.send(body=b"new")
    assert bodies(world.fetch("early")) == [b"0", b"1", b"2", b"new"]
    assert bodies(world.fetch("late")) == [b"new"]


def test_p2_each_group_gets_everything(plain: World) -> None:
    """What one group has settled is still there for another."""
    plain.group("h")
    plain.send_many(3)
    plain.ack(*plain.fetch("g"), group="g")
    assert len(plain.fetch("h")) == 3


def test_filter_by_tag_and_attributes_is_settled_for_the_group(world: World) -> None:
    """What a filter leaves out is neither handed out later, nor a retry, nor a dead letter."""
    world.topic()
    world.group("tagged", tag="a")
    world.group("european", attributes=(("region", "eu"), ("vip", "1")))
    world.send(body=b"1", tag="a")
    world.send(body=b"2", tag="b", attributes={"region": "eu", "vip": "1"})
    world.send(body=b"3", tag="a", attributes={"region": "eu"})
    world.send(body=b"4")
    assert bodies(world.fetch("tagged")) == [b"1", b"3"]
    hand = world.fetch("european")
    assert bodies(hand) == [b"2"]
    world.ack(*hand, group="european")
    assert world.fetch("european") == world.fetch("tagged") == []
    assert _rows(world, "SELECT 1 FROM retry") == _rows(world, "SELECT 1 FROM dead") == []
    assert {row[0] for row in _rows(world, "SELECT next_off FROM place")} == {4}


def test_p7_filtered_numbers_are_not_missed(world: World) -> None:
    """On an ordered topic a filtered number is settled, and no later delivery names it as passed over (R6, R22)."""
    world.topic("seq", Kind.SEQUENCE, lanes=1)
    world.group("g", "seq", tag="a")
    for number, tag in ((1, "b"), (2, "a"), (3, "b"), (4, "a")):
        world.sequence(number, tag=tag)
    hand = world.fetch(member="m")
    assert [(each.row.seq, each.missed) for each in hand] == [(2, ()), (4, ())]


def test_p9_long_filtered_stretch_is_passed_in_bounded_turns(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One fetch passes at most so many, saves its place, and asks to be woken again."""
    monkeypatch.setattr(fetching, "SCAN_MAX", 10)
    world.topic()
    world.group("g", tag="a")
    world.send_many(25)
    world.send(body=b"found", tag="a")
    assert [bodies(world.fetch()) for _ in range(3)] == [[], [], [b"found"]]
    assert ("wake", 1, world.now) in world.store.events


@pytest.mark.parametrize("count", [1, 255, 256, 257, 600])
def test_p9_fetch_gives_at_most_what_was_asked(plain: World, count: int) -> None:
    """Runs are of 256 at most, and together they are no more than asked for."""
    plain.store.do(lambda tx: None)
    plain.submit(*(new_message(body=b"%d" % i, index=i) for i in range(700)))
    hand = plain.fetch(count=count)
    assert bodies(hand) == [b"%d" % i for i in range(count)]
    assert all(hi - lo < 256 for lo, hi in _rows(plain, "SELECT lo, hi FROM flight"))


def test_p2_what_a_fetch_leaves_comes_with_the_next(plain: World) -> None:
    """The place stands behind what was handed out, not behind what was looked at."""
    plain.send_many(10)
    assert [bodies(plain.fetch(count=count)) for count in (3, 4, 100)] == [[b"0", b"1", b"2"], [b"3", b"4", b"5", b"6"], [b"7", b"8", b"9"]]


def test_p9_fetch_is_bounded_in_bytes(plain: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer stops growing at its byte limit; the next fetch goes on behind it."""
    monkeypatch.setattr(fetching, "BYTES_MAX", 100)
    for _ in range(5):
        plain.send(body=b"x" * 60)
    assert [len(plain.fetch()) for _ in range(4)] == [2, 2, 1, 0]


@pytest.mark.parametrize("encode", [wire.encode_msgpack, wire.encode_json], ids=["msgpack", "json"])
def test_p2_small_bodies_with_long_attributes_fit_into_a_frame(plain: World, encode: Callable[[Any], bytes]) -> None:
    """Else a client refuses the frame, joins again, is sent the same, and never gets any of them."""
    attributes = {f"a{number}": "x" * wire.MAX_ATTRIBUTE_VALUE_BYTES for number in range(wire.MAX_ATTRIBUTES)}
    plain.submit(*(new_message(index=index, attributes=attributes) for index in range(wire.MAX_MESSAGES)))
    frames = []
    while given := plain.fetch(count=wire.MAX_DELIVERIES):
        frames.append(len(encode({"deliveries": render.deliveries(given, packed=encode is wire.encode_msgpack)})))
        plain.ack(*given)
    assert len(frames) > 1
    assert max(frames) < MAX_FRAME_BYTES


@pytest.mark.parametrize("kind", [Kind.UNORDERED, Kind.ARRIVAL])
def test_p9_what_comes_back_counts_for_what_was_asked(world: World, kind: Kind) -> None:
    """Two failed messages and two new ones: a fetch of two gives two, so a stream never passes its credit."""
    world.topic("t", kind)
    world.group("g", "t")
    keys: list[str | None] = [None] * 4 if kind is Kind.UNORDERED else ["a", "b", "c", "d"]
    for key in keys[:2]:
        world.send("t", key=key)
    world.nack(*world.fetch(member="m"), delay_ms=0)
    for key in keys[2:]:
        world.send("t", key=key)
    assert [len(world.fetch(member="m", count=2)) for _ in range(3)] == [2, 2, 0]


def test_paused_group_gets_nothing_and_may_settle(plain: World) -> None:
    """Pause stops handing out; what is in a hand is still acked."""
    given = leased_delivery(plain)
    plain.store.run(groups.pause, groups.Pause("g", True))
    plain.send()
    assert plain.fetch() == []
    assert _codes(plain.ack(given)) == [None]
    plain.store.run(groups.pause, groups.Pause("g", False))
    assert len(plain.fetch()) == 1


def test_group_over_two_topics_hands_out_of_both(world: World) -> None:
    """One fetch fills from every topic of the group."""
    world.topic("a")
    world.topic("b")
    wanted = groups.GroupWanted("g", (groups.Wanted("a", None, ()), groups.Wanted("b", None, ())), "earliest", None, 3, None, None)
    world.store.run(groups.put, wanted)
    world.send("a", b"1")
    world.send("b", b"2")
    assert sorted(bodies(world.fetch())) == [b"1", b"2"]


def test_put_group_again_with_another_policy_is_not_ignored(world: World) -> None:
    """A repeated PUT with another lease or other attempts takes effect or is refused; answering success and dropping it is neither."""
    world.topic()
    world.group("g", max_attempts=16)
    try:
        found = world.group("g", max_attempts=3)
    except Problem as problem:
        assert problem.code == "state_changed"
    else:
        assert found.max_attempts == 3


@pytest.mark.parametrize("backoff_s", [(700, 600), (0.0001, 600)])
def test_p2_backoff_that_cannot_be_is_refused_and_stops_no_other_group(plain: World, backoff_s: tuple[float, float]) -> None:
    """First above longest, or under a millisecond: neither stored nor changed to, so the pass that ends leases goes on for everybody."""
    before = dump(plain.store.backend._conn)  # type: ignore[attr-defined]
    for name in ("new", "g"):
        with pytest.raises(Problem, match="bad_request"):
            plain.group(name, backoff_s=backoff_s)
    assert changed(before, dump(plain.store.backend._conn)) == {}  # type: ignore[attr-defined]
    leased_delivery(plain, lease_s=10)
    plain.later(10)
    assert plain.expire() == 1


def test_p2_group_with_dead_letters_or_members_is_not_removed(plain: World) -> None:
    """Removing a group would drop its dead letters silently: group_busy."""
    given = leased_delivery(plain)
    with pytest.raises(Problem, match="group_busy"):
        plain.store.run(groups.remove, groups.Removal("g", "test"))
    plain.reject(given)
    with pytest.raises(Problem, match="group_busy"):
        plain.store.run(groups.remove, groups.Removal("g", "test"))
    plain.store.do(lambda tx: tx.conn.execute("DELETE FROM dead"))
    plain.store.run(groups.remove, groups.Removal("g", "test"))
    assert _rows(plain, "SELECT 1 FROM place") == []


# --- leases and attempts ---


def test_p2_ended_lease_brings_the_message_back(plain: World) -> None:
    """Not before the lease ends, and then for anybody; the old token is dead."""
    given = leased_delivery(plain, lease_s=10)
    plain.later(9.999)
    assert (plain.expire(), plain.fetch()) == (0, [])
    plain.later(0.001)
    assert plain.expire() == 1
    assert _codes(plain.ack(given)) == [LOST]
    plain.later(1)
    [again] = plain.fetch()
    assert (again.row.m, again.attempt, again.age_ms) == (given.row.m, 2, 11_000)


def test_lease_is_over_at_its_end_even_before_the_tick(plain: World) -> None:
    """The clock decides, not when the tick ran: an ack at the very end is lease_lost."""
    given = leased_delivery(plain, lease_s=10)
    plain.later(10)
    assert _codes(plain.ack(given)) == _codes(plain.extend(given)) == [LOST]


def test_run_that_ends_charges_nobody_and_then_they_travel_alone(plain: World) -> None:
    """Three in a run: the lease's end is due at once and free; each then travels in a run of its own, which is charged (R24)."""
    plain.send_many(3)
    plain.fetch(lease_s=10)
    plain.later(10)
    plain.expire()
    hand = plain.fetch(lease_s=10)
    assert [each.attempt for each in hand] == [1, 1, 1]
    assert len(_rows(plain, "SELECT 1 FROM flight")) == 3
    plain.ack(hand[0])
    plain.later(10)
    plain.expire()
    plain.later(1)
    assert [each.attempt for each in plain.fetch()] == [2, 2]


def test_p2_message_that_kills_its_consumer_becomes_a_dead_letter(world: World) -> None:
    """Leases that end without a word are counted, up to the limit."""
    world.topic()
    world.group(max_attempts=2, lease_s=1)
    world.send()
    for _ in range(2):
        assert len(world.fetch()) == 1
        world.later(1)
        world.expire()
        world.later(60)
    assert world.fetch() == []
    assert _dead(world) == [(1, 2, None)]
    assert "lease" in _rows(world, "SELECT history FROM dead")[0][0]


def test_nack_backs_off_doubling_up_to_its_limit(world: World) -> None:
    """1, 2, 4, 4 seconds: due exactly then and not a moment before."""
    world.topic()
    world.group(max_attempts=None, backoff_s=(1, 4))
    world.send()
    for attempt, wait_s in enumerate((1, 2, 4, 4), start=1):
        [given] = world.fetch(lease_s=3_600)
        assert given.attempt == attempt
        world.nack(given)
        world.later(wait_s - 0.001)
        assert world.fetch() == []
        world.later(0.001)


def test_group_with_a_senseless_back_off_still_hands_out(world: World) -> None:
    """A first wait above the longest was once taken; such a group goes on with the first."""
    world.topic()
    group = replace(world.group(backoff_s=(4, 4)), backoff_max_ms=1)
    assert (policy_of(group).backoff_first_s, policy_of(group).backoff_max_s) == (4, 4)


def test_nack_with_a_delay_replaces_the_back_off_and_counts_false_costs_nothing(plain: World) -> None:
    """`delay` is the consumer's wish; `counts: false` can be said for ever."""
    given = leased_delivery(plain)
    for _ in range(40):
        plain.nack(given, delay_ms=5_000, counts=False)
        plain.later(4.999)
        assert plain.fetch() == []
        plain.later(0.001)
        [given] = plain.fetch()
        assert given.attempt == 1


def test_p2_last_attempt_is_a_dead_letter_with_its_history(world: World) -> None:
    """Every reason that was given stands in the dead letter, in order."""
    world.topic()
    world.group(max_attempts=3)
    world.send()
    for attempt in (1, 2, 3):
        [given] = world.fetch()
        world.nack(given, reason=f"why {attempt}", delay_ms=0)
    assert world.fetch() == []
    assert _dead(world) == [(1, 3, None)]
    assert _rows(world, "SELECT history FROM dead")[0][0].splitlines() == ["attempt 1: why 1", "attempt 2: why 2", "attempt 3: why 3"]


def test_p9_history_of_a_dead_letter_is_bounded(world: World) -> None:
    """A thousand long reasons leave the last 4,000 characters."""
    world.topic()
    world.group(max_attempts=10)
    world.send()
    for attempt in range(10):
        world.nack(*world.fetch(), reason=f"{attempt}" * 1_000, delay_ms=0)
    history = _rows(world, "SELECT history FROM dead")[0][0]
    assert len(history) == 4_000 and history.endswith("9" * 1_000)


def test_reject_is_a_dead_letter_at_once(plain: World) -> None:
    """Never means never: no back-off, the reason kept."""
    dead_letter(plain)
    assert _dead(plain) == [(2, 1, None)]
    assert plain.fetch() == []


def test_extend_makes_a_lease_longer_and_never_shorter(plain: World) -> None:
    """One token extends the whole run it is in."""
    plain.send_many(2)
    first, second = plain.fetch(lease_s=10)
    [longer] = plain.extend(first, by_s=60)
    [same] = plain.extend(second, by_s=1)
    assert longer.lease_until == same.lease_until == plain.now + 60_000
    plain.later(59.999)
    assert plain.expire() == 0
    assert _codes(plain.ack(second)) == [None]


FORGED = ["", "1", "1.0.0.0", "a.b.c.d.e", "1.0.0.0.0.0", "-1.0.0.0.1", "9.0.0.0.1", "1.9.0.0.1", "1.0.9.9.1", "1.0.0.0.9", "1.0.0.1.1", "1.0.1.0.1",
          "1.0.0.0." + "9" * 18, "9" * 19 + ".0.0.0.1"]  # fmt: skip


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("kind", ["plain", "seq"])
def test_forged_token_is_lease_lost_and_its_neighbour_is_not(world: World, kind: str, forged: str) -> None:
    """A token that was never given settles nothing, and does not take the good one of the same call with it."""
    world.topic(kind, Kind.UNORDERED if kind == "plain" else Kind.SEQUENCE, **({} if kind == "plain" else {"lanes": 1}))
    world.group("g", kind)
    given = _one(world, kind)
    assert _codes(world.ack(forged, given)) == [LOST, None]
    assert _codes(world.extend(forged)) == _codes(world.nack(forged)) == _codes(world.reject(forged)) == [LOST]


def _one(world: World, kind: str) -> Delivery:
    if kind == "plain":
        return leased_delivery(world)
    world.sequence(1)
    [given] = world.fetch(member="m")
    return given


@pytest.mark.parametrize("forged", ["1.0.0." + "9" * 18 + ".1", "\u00b2.0.0.0.1"], ids=["huge_offset", "superscript"])
def test_p9_forged_token_costs_nothing(plain: World, forged: str) -> None:
    """A token with a far offset, or with digits that are no numbers, is lease_lost like any other: no memory, no internal error."""
    given = leased_delivery(plain)
    assert _codes(plain.ack(forged, given)) == [LOST, None]


def test_token_of_another_group_is_lease_lost(plain: World) -> None:
    """A group cannot settle what another has in hand."""
    plain.group("h")
    given = leased_delivery(plain)
    assert _codes(plain.ack(given, group="h")) == [LOST]
    assert _codes(plain.ack(given)) == [None]


def test_same_token_twice_is_settled_once(plain: World) -> None:
    """In one call and in two: the second is lease_lost."""
    plain.send_many(2)
    first, second = plain.fetch()
    assert _codes(plain.ack(first, first)) == [None, LOST]
    assert _codes(plain.ack(first)) == _codes(plain.nack(first)) == [LOST]
    assert _codes(plain.ack(second)) == [None]
    assert _rows(plain, "SELECT 1 FROM flight") == []


def test_redelivered_message_has_a_new_token(plain: World) -> None:
    """The first hand's late word does nothing to the second's lease."""
    given = leased_delivery(plain)
    plain.nack(given, delay_ms=0)
    [again] = plain.fetch()
    assert again.token != given.token
    assert _codes(plain.ack(given)) == [LOST]
    assert _codes(plain.ack(again)) == [None]


def test_p6_group_has_one_inbox_database(plain: World) -> None:
    """The first inbox id binds the group; another is wrong_inbox and takes nothing (R29)."""
    plain.send()
    plain.fetch(inbox=b"A" * 16, count=0 + 1)
    plain.send()
    with pytest.raises(Problem, match="wrong_inbox"):
        plain.fetch(inbox=b"B" * 16)
    assert len(plain.fetch(inbox=b"A" * 16)) == len([plain.send()])


# --- order within a key ---


def test_p7_ack_out_of_order_is_refused(seq: World) -> None:
    """The second of a key cannot be acked before the first, alone or in one call; in order it can (R13)."""
    for number in (1, 2, 3):
        seq.sequence(number)
    first, second, third = seq.fetch(member="m")
    assert _codes(seq.ack(second)) == ["out_of_order"]
    assert _codes(seq.ack(third, first, second)) == ["out_of_order", None, None]
    assert _codes(seq.ack(third)) == [None]


def test_p7_nack_gives_back_the_later_ones_of_its_key_unattempted(seq: World) -> None:
    """Their tokens are told and dead; another key's are not touched (R13)."""
    for number in (1, 2, 3):
        seq.sequence(number, "k")
        seq.sequence(number, "j")
    hand = seq.fetch(member="m")
    mine = [each for each in hand if each.row.key == b"k"]
    [result] = seq.nack(mine[0], delay_ms=0)
    assert result.given_back == (mine[1].token, mine[2].token)
    assert _codes(seq.ack(mine[1], mine[2])) == [LOST, LOST]
    assert _codes(seq.ack(*[each for each in hand if each.row.key == b"j"])) == [None] * 3
    seen = []
    while again := seq.fetch(member="m"):
        seen += [(each.row.seq, each.attempt) for each in again]
        seq.ack(*again)
    assert seen == [(1, 2), (2, 1), (3, 1)]


def test_p7_a_failing_message_holds_its_key_and_not_its_lane(seq: World) -> None:
    """New ones of a failed key wait behind it; other keys of the lane go on."""
    seq.sequence(1, "k")
    [given] = seq.fetch(member="m")
    seq.nack(given, delay_ms=60_000)
    seq.sequence(2, "k")
    seq.sequence(1, "j")
    others = seq.fetch(member="m")
    assert [each.row.key for each in others] == [b"j"]
    seq.ack(*others)
    seq.later(60)
    hand = seq.fetch(member="m")
    assert sequences(hand) == [1]
    seq.ack(*hand)
    assert sequences(seq.fetch(member="m")) == [2]


def test_p7_missed_numbers_are_named_until_they_are_acked(seq: World) -> None:
    """A rejected number stands in each later delivery of its key until one of them is acked (R6)."""
    for number in (1, 2):
        seq.sequence(number)
    seq.reject(seq.fetch(member="m")[0])
    [second] = seq.fetch(member="m")
    assert (second.row.seq, second.missed) == (2, (1,))
    seq.nack(second, delay_ms=0)
    [second] = seq.fetch(member="m")
    assert second.missed == (1,)
    seq.ack(second)
    for number in (3, 4):
        seq.sequence(number)
    assert [(each.row.seq, each.missed) for each in seq.fetch(member="m")] == [(3, ()), (4, ())]


@pytest.mark.parametrize("passed_over", [1_000, 1_001])
def test_p9_more_than_a_thousand_missed_numbers_stop_the_key(seq: World, passed_over: int) -> None:
    """A thousand are named; past that the key stops where it is seen, and other keys go on (R6)."""
    seq.sequence(1)
    [given] = seq.fetch(member="m")
    seq.reject(given)
    [row] = _rows(seq, "SELECT grp, topic, lane, off, okey FROM dead")
    seq.store.do(lambda tx: tx.conn.execute("UPDATE okey SET next_seq = ?", (passed_over + 1,)))
    dead = [(*row, number, 1_024, 2, 1, 0, 0, "x") for number in range(2, passed_over + 1)]
    sql = "INSERT INTO dead (grp, topic, lane, off, okey, seq, m, reason, attempts, first_out, at, history) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)"
    seq.store.do(lambda tx: tx.conn.executemany(sql, dead))
    seq.sequence(passed_over + 1)
    seq.sequence(passed_over + 2)
    seq.sequence(1, "j")
    hand = seq.fetch(member="m")
    if passed_over <= 1_000:
        assert [len(each.missed) for each in hand] == [1_000, 1_000, 0]
    else:
        assert [each.row.key for each in hand] == [b"j"]
        seq.ack(*hand)
        assert [row[0] for row in _rows(seq, "SELECT due FROM retry ORDER BY off")] == [None, None]
        assert "stuck" in _rows(seq, "SELECT error FROM retry ORDER BY off")[0][0]
        seq.later(86_400)
        assert seq.fetch(member="m") == []


def test_p7_ended_lease_brings_the_whole_lane_back(seq: World) -> None:
    """Two runs of a member in one lane: when the first ends, both come back, in order, and the second's tokens are dead."""
    seq.sequence(1)
    seq.fetch(member="a", lease_s=10)
    seq.later(5)
    seq.sequence(2)
    [second] = seq.fetch(member="a", lease_s=10)
    seq.later(5)
    seq.expire()
    assert _codes(seq.ack(second)) == [LOST]
    seq.later(1)
    [first] = seq.fetch(member="b")
    assert (first.row.seq, first.attempt) == (1, 2)
    seq.ack(first)
    [second] = seq.fetch(member="b")
    assert (second.row.seq, second.attempt) == (2, 1)


def test_fetch_of_an_ordered_topic_names_its_member(seq: World) -> None:
    """Lanes are owned by name."""
    with pytest.raises(Problem, match="bad_request"):
        seq.fetch()


# --- lanes and members ---


def _lanes(world: World) -> dict[str, int]:
    return dict(_rows(world, "SELECT owner, count(*) FROM place WHERE owner IS NOT NULL GROUP BY owner"))


def test_lanes_are_shared_out_among_one_two_and_three_members(world: World) -> None:
    """8 lanes: one member has all; with a second it gives up its half; with a third no one has more than three."""
    world.topic("seq", Kind.SEQUENCE, lanes=8)
    world.group("g", "seq")
    world.fetch(member="a")
    assert _lanes(world) == {"a": 8}
    for member in ("b", "a", "b"):
        world.fetch(member=member)
    assert _lanes(world) == {"a": 4, "b": 4}
    for member in ("c", "a", "b", "c", "a", "b", "c"):
        world.fetch(member=member)
    found = _lanes(world)
    assert set(found) == {"a", "b", "c"} and sum(found.values()) == 8 and max(found.values()) == 3


def test_p7_surplus_lane_is_freed_only_when_nothing_of_it_is_open(world: World) -> None:
    """A second member gets no lane in which the first has an open message; after the ack it does."""
    world.topic("seq", Kind.SEQUENCE, lanes=2)
    world.group("g", "seq")
    keys = [_key_in_lane(lane, 2) for lane in (0, 1)]
    for key in keys:
        world.sequence(1, key)
    hand = world.fetch(member="a")
    for key in keys:
        world.sequence(2, key)
    assert world.fetch(member="b") == []
    assert {each.lane for each in world.fetch(member="a")} <= {0}
    assert world.fetch(member="b") == []
    world.ack(*hand)
    world.fetch(member="a")
    assert [(each.lane, each.row.seq) for each in world.fetch(member="b")] == [(1, 2)]


def test_p7_take_over_after_the_lane_lease_brings_the_open_ones_first(world: World) -> None:
    """A member is gone: the next one to fetch takes the lane, what was open comes back in order, and the zombie's ack is lease_lost."""
    world.topic("seq", Kind.SEQUENCE, lanes=1)
    world.group("g", "seq", lease_s=10)
    for number in (1, 2):
        world.sequence(number)
    zombie = world.fetch(member="a")
    world.later(9)
    assert world.fetch(member="b") == []
    world.later(1)
    hand = world.fetch(member="b")
    assert sequences(hand) == [1]
    assert _codes(world.ack(*zombie)) == [LOST, LOST]
    assert _codes(world.ack(*hand)) == [None]
    assert sequences(world.fetch(member="b")) == [2]


def test_member_that_leaves_frees_its_idle_lanes_at_once(world: World) -> None:
    """`unsubscribe` does not wait for a lease where nothing is open."""
    world.topic("seq", Kind.SEQUENCE, lanes=2)
    world.group("g", "seq")
    world.sequence(1, _key_in_lane(0, 2))
    world.fetch(member="a")
    world.store.run(groups.leave, groups.Leave("g", "a"))
    assert _lanes(world) == {"a": 1}
    world.fetch(member="b")
    assert _lanes(world) == {"a": 1, "b": 1}


def test_lane_is_kept_as_long_as_the_lease_that_was_told(world: World) -> None:
    """A delivery says until when it is leased; no other member gets the lane before that."""
    world.topic("seq", Kind.SEQUENCE, lanes=1)
    world.group("g", "seq", lease_s=30)
    world.fetch(member="a")
    world.later(9)
    world.sequence(1)
    [given] = world.fetch(member="a")
    assert given.lease_until == world.now + 30_000
    world.later(25)
    assert world.fetch(member="b") == []
    assert _codes(world.ack(given)) == [None]


# --- damage and limits ---


def test_p8_damaged_body_is_quarantined(plain: World) -> None:
    """One byte flipped in the file: not delivered, not dropped, listed once in the topic's dead letters; its neighbours go."""
    plain.group("h")
    plain.send_many(3)
    plain.store.do(lambda tx: tx.conn.execute("UPDATE message SET body = x'39' WHERE body = x'31'"))
    assert bodies(plain.fetch("g")) == bodies(plain.fetch("h")) == [b"0", b"2"]
    assert _rows(plain, "SELECT reason, off, grp FROM dead") == [(5, 1, None)]
    assert len(_rows(plain, "SELECT 1 FROM message")) == 3


DAMAGE = [
    "body = CAST(body || x'00' AS BLOB)", "body = 1", "extra = x'c1'", "extra = x''", "tag = 'other'", "tag = 7",
    "tag = CAST(x'ff' AS TEXT)", "digest = x'00'",
]  # fmt: skip


@pytest.mark.parametrize("column", DAMAGE)
def test_p8_every_damaged_part_is_seen(plain: World, column: str) -> None:
    """Body, headers, tag, digest: whatever differs from what was sent, the message is quarantined."""
    plain.send()
    plain.store.do(lambda tx: tx.conn.execute(f"UPDATE message SET {column}"))
    assert plain.fetch() == []
    assert _rows(plain, "SELECT reason FROM dead") == [(5,)]


@pytest.mark.parametrize(
    "column",
    [
        "body = CAST(body AS TEXT)",
        "extra = CAST(extra AS TEXT)",
        "body = CAST(x'ff' AS TEXT)",
    ],
)
def test_p8_damage_to_a_row_header_is_seen(plain: World, column: str) -> None:
    """One bit of a row's header turns a blob into text: the very bytes go out or it is quarantined, and the neighbours go."""
    plain.send(body=b"{}")
    plain.store.do(lambda tx: tx.conn.execute(f"UPDATE message SET {column}"))
    plain.send(body=b"sound")
    hand = bodies(plain.fetch())
    assert hand in ([b"sound"], [b"{}", b"sound"])
    assert _rows(plain, "SELECT reason, off FROM dead") == ([(5, 0)] if len(hand) == 1 else [])


def test_p8_damaged_body_stops_its_key(seq: World) -> None:
    """On an ordered topic what comes after the damaged one waits for an operator; other keys go on."""
    for number in (1, 2, 3):
        seq.sequence(number)
    seq.sequence(1, "j")
    seq.store.do(lambda tx: tx.conn.execute("UPDATE message SET body = x'00' WHERE body = x'32'"))
    hand = seq.fetch(member="m")
    assert [(each.row.key, each.row.seq) for each in hand] == [(b"k", 1), (b"j", 1)]
    seq.ack(*hand)
    seq.later(86_400)
    assert seq.fetch(member="m") == []
    assert seq.sequence(4).messages[0].held == "gap"
    assert _rows(seq, "SELECT reason, seq, grp FROM dead") == [(5, 2, None)]


def test_p8_damage_after_the_first_hand_out_is_seen_too(seq: World) -> None:
    """A message that comes back is checked again before it goes out again."""
    for number in (1, 2):
        seq.sequence(number)
    hand = seq.fetch(member="m")
    seq.nack(hand[0], delay_ms=0)
    seq.store.do(lambda tx: tx.conn.execute("UPDATE message SET body = x'00' WHERE body = x'31'"))
    assert seq.fetch(member="m") == []
    seq.later(86_400)
    assert seq.fetch(member="m") == []
    assert _rows(seq, "SELECT reason, seq FROM dead") == [(5, 1)]


def test_p2_full_dead_letter_list_stops_its_group(plain: World) -> None:
    """At the limit nothing more is handed out, so nothing can be dropped; below it the group goes on (R20)."""
    plain.store.env.settings = Settings(group=Groups(max_dead_letters=2))
    plain.group("h")
    dead_letter(plain)
    dead_letter(plain)
    plain.send()
    assert plain.fetch("g") == []
    assert len(plain.fetch("h")) == 3
    plain.store.do(lambda tx: tx.conn.execute("DELETE FROM dead WHERE id = 1"))
    assert len(plain.fetch("g")) == 1


def test_p9_lane_waits_when_too_many_of_it_failed(seq: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the cap of exceptions a lane hands out nothing new, so a failing group cannot turn the log into rows."""
    monkeypatch.setattr(fetching, "LANE_RETRIES_MAX", 3)
    for number in range(3):
        seq.sequence(1, f"k{number}")
    seq.nack(*seq.fetch(member="m"), delay_ms=60_000)
    seq.sequence(1, "new")
    assert seq.fetch(member="m") == []
    seq.later(60)
    assert {each.row.key for each in seq.fetch(member="m")} == {b"k0", b"k1", b"k2", b"new"}
