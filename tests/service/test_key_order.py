"""Order within a key, and whose a lane is."""

from __future__ import annotations

import pytest

from halfmsg.coordinator.errors import Problem
from halfmsg.coordinator.messages import Kind
from halfmsg.coordinator.service import groups
from tests.support.factories import World, sequences

from .asked import LOST, codes, key_in_lane, rows

# --- order within a key ---


def test_p7_ack_out_of_order_is_refused(seq: World) -> None:
    """The second of a key cannot be acked before the first, alone or in one call; in order it can (R13)."""
    for number in (1, 2, 3):
        seq.sequence(number)
    first, second, third = seq.fetch(member="m")
    assert codes(seq.ack(second)) == ["out_of_order"]
    assert codes(seq.ack(third, first, second)) == ["out_of_order", None, None]
    assert codes(seq.ack(third)) == [None]


@pytest.mark.parametrize("ticked", [False, True])
@pytest.mark.parametrize("what", ["ack", "nack", "reject"])
def test_p7_what_stands_behind_an_ended_lease_is_lost(seq: World, what: str, ticked: bool) -> None:
    """The lease of the first of a key has ended, that of the second runs on: it is given back with the first, and lost from then on (R13). Its
    holder is not told that it did something in the wrong order, whether or not the tick that gives back has come."""
    seq.sequence(1)
    seq.fetch(member="m", lease_s=10)
    seq.later(6)
    seq.sequence(2)
    [second] = seq.fetch(member="m", lease_s=10)
    assert codes(seq.settle(what, second)) == ["out_of_order"]
    seq.later(4)
    if ticked:
        seq.expire()
    assert codes(seq.settle(what, second)) == [LOST]
    seq.expire()
    seq.later(1)
    [first] = seq.fetch(member="n")
    seq.ack(first)
    [second] = seq.fetch(member="n")
    assert [(each.row.seq, each.attempt) for each in (first, second)] == [(1, 2), (2, 1)]


def test_p7_nack_gives_back_the_later_ones_of_its_key_unattempted(seq: World) -> None:
    """Their tokens are told and dead; another key's are not touched (R13)."""
    for number in (1, 2, 3):
        seq.sequence(number, "k")
        seq.sequence(number, "j")
    hand = seq.fetch(member="m")
    mine = [each for each in hand if each.row.key == b"k"]
    [result] = seq.nack(mine[0], delay_ms=0)
    assert result.given_back == (mine[1].token, mine[2].token)
    assert codes(seq.ack(mine[1], mine[2])) == [LOST, LOST]
    assert codes(seq.ack(*[each for each in hand if each.row.key == b"j"])) == [None] * 3
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
    [row] = rows(seq, "SELECT grp, topic, lane, off, okey FROM dead")
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
        assert [row[0] for row in rows(seq, "SELECT due FROM retry ORDER BY off")] == [None, None]
        assert "stuck" in rows(seq, "SELECT error FROM retry ORDER BY off")[0][0]
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
    assert codes(seq.ack(second)) == [LOST]
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
    return dict(rows(world, "SELECT owner, count(*) FROM place WHERE owner IS NOT NULL GROUP BY owner"))


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
    keys = [key_in_lane(lane, 2) for lane in (0, 1)]
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
    assert codes(world.ack(*zombie)) == [LOST, LOST]
    assert codes(world.ack(*hand)) == [None]
    assert sequences(world.fetch(member="b")) == [2]


def test_member_that_leaves_frees_its_idle_lanes_at_once(world: World) -> None:
    """`unsubscribe` does not wait for a lease where nothing is open."""
    world.topic("seq", Kind.SEQUENCE, lanes=2)
    world.group("g", "seq")
    world.sequence(1, key_in_lane(0, 2))
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
    assert codes(world.ack(given)) == [None]
