"""Leases, tokens, attempts, and what becomes of a message that fails."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from halfmsg.coordinator.errors import Problem
from halfmsg.coordinator.messages import Delivery, Kind
from halfmsg.coordinator.service.hands import policy_of
from tests.support.factories import World, dead_letter, leased_delivery, sequences

from .asked import LOST, codes, dead_of, rows


def test_p2_ended_lease_brings_the_message_back(plain: World) -> None:
    """Not before the lease ends, and then for anybody; the old token is dead."""
    given = leased_delivery(plain, lease_s=10)
    plain.later(9.999)
    assert (plain.expire(), plain.fetch()) == (0, [])
    plain.later(0.001)
    assert plain.expire() == 1
    assert codes(plain.ack(given)) == [LOST]
    plain.later(1)
    [again] = plain.fetch()
    assert (again.row.m, again.attempt, again.age_ms) == (given.row.m, 2, 11_000)


def test_lease_is_over_at_its_end_even_before_the_tick(plain: World) -> None:
    """The clock decides, not when the tick ran: an ack at the very end is lease_lost."""
    given = leased_delivery(plain, lease_s=10)
    plain.later(10)
    assert codes(plain.ack(given)) == codes(plain.extend(given)) == [LOST]


def test_run_that_ends_charges_nobody_and_then_they_travel_alone(plain: World) -> None:
    """Three in a run: the lease's end is due at once and free; each then travels in a run of its own, which is charged (R24)."""
    plain.send_many(3)
    plain.fetch(lease_s=10)
    plain.later(10)
    plain.expire()
    hand = plain.fetch(lease_s=10)
    assert [each.attempt for each in hand] == [1, 1, 1]
    assert len(rows(plain, "SELECT 1 FROM flight")) == 3
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
    assert dead_of(world) == [(1, 2, None)]
    assert "lease" in rows(world, "SELECT history FROM dead")[0][0]


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
    assert dead_of(world) == [(1, 3, None)]
    assert rows(world, "SELECT history FROM dead")[0][0].splitlines() == ["attempt 1: why 1", "attempt 2: why 2", "attempt 3: why 3"]


def test_p9_history_of_a_dead_letter_is_bounded(world: World) -> None:
    """A thousand long reasons leave the last 4,000 characters."""
    world.topic()
    world.group(max_attempts=10)
    world.send()
    for attempt in range(10):
        world.nack(*world.fetch(), reason=f"{attempt}" * 1_000, delay_ms=0)
    history = rows(world, "SELECT history FROM dead")[0][0]
    assert len(history) == 4_000 and history.endswith("9" * 1_000)


def test_reject_is_a_dead_letter_at_once(plain: World) -> None:
    """Never means never: no back-off, the reason kept."""
    dead_letter(plain)
    assert dead_of(plain) == [(2, 1, None)]
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
    assert codes(plain.ack(second)) == [None]


@pytest.mark.parametrize("what", ["ack", "nack", "reject"])
def test_extend_of_a_settled_one_is_lost_though_its_run_lives(plain: World, what: str) -> None:
    """Where it was nacked somebody else may have it already."""
    plain.send_many(2)
    first, second = plain.fetch(lease_s=10)
    plain.settle(what, first, delay_ms=0 if what == "nack" else None)
    assert codes(plain.extend(first, second, by_s=60)) == [LOST, None]
    assert len(plain.fetch()) == (what == "nack")
    assert codes(plain.extend(first, by_s=60)) == [LOST]


def test_p2_extend_of_what_a_nack_gave_back_is_lost(seq: World) -> None:
    """The answer of the nack, which names it, may be lost on its way: a yes here would have its consumer run it, and the inbox take the one
    before, which comes again, for a repeat.
    """
    for number, key in ((1, "k"), (2, "k"), (1, "j")):
        seq.sequence(number, key)
    first, second, other = seq.fetch(member="m")
    assert [result.given_back for result in seq.nack(first)] == [(second.token,)]
    assert codes(seq.extend(first, second, other)) == [LOST, LOST, None]


def test_p2_extend_behind_an_ended_lease_is_lost(seq: World) -> None:
    """The whole lane comes back with the tick, as its first lease has ended (R13)."""
    seq.sequence(1, "a")
    seq.fetch(member="m", lease_s=10)
    seq.later(6)
    seq.sequence(1, "b")
    [later] = seq.fetch(member="m", lease_s=10)
    assert codes(seq.extend(later, by_s=1)) == [None]
    seq.later(4)
    assert codes(seq.extend(later, by_s=60)) == [LOST]
    seq.expire()
    assert [each.row.key for each in seq.fetch(member="m")] == [b"b"], "the first one waits for its back-off"


FORGED = ["", "1", "1.0.0.0", "a.b.c.d.e", "1.0.0.0.0.0", "-1.0.0.0.1", "9.0.0.0.1", "1.9.0.0.1", "1.0.9.9.1", "1.0.0.0.9", "1.0.0.1.1", "1.0.1.0.1",
          "1.0.0.0." + "9" * 18, "9" * 19 + ".0.0.0.1"]  # fmt: skip


def test_p7_lease_that_ended_comes_back_before_more_of_its_key_goes_out(seq: World) -> None:
    """Its member has been told lease_lost, before the tick came, and has let go of it: the next one of the key would look like the first, its
    inbox would take it for that, and the one that was lost for a repeat (simulation, seed 16431).
    """
    seq.sequence(1, "a")
    [first] = seq.fetch(member="m", count=1, lease_s=2)
    seq.later(1)
    seq.fetch(member="m", lease_s=2)  # a sign of life: its lanes are its own for longer than that lease
    seq.sequence(2, "a")
    seq.later(1)
    assert [result.error[0] for result in seq.ack(first) if result.error] == ["lease_lost"]
    assert seq.fetch(member="m", lease_s=2) == [], "its lane has ended with its lease; it is free for the next who asks"
    seq.later(1)
    hand = seq.fetch(member="m", lease_s=2)
    assert [(each.row.seq, each.attempt) for each in hand if each.row.key == b"a"] == [(1, 2), (2, 1)]


def test_p7_lane_of_a_lease_that_lives_is_no_part_of_that(seq: World) -> None:
    """Another member's lease has ended; mine goes on."""
    seq.sequence(1, "a")
    [first] = seq.fetch(member="m", count=1, lease_s=30)
    seq.sequence(2, "a")
    seq.topic("other")
    seq.group("h", "other")
    seq.send("other")
    assert seq.fetch("h", lease_s=1)
    seq.later(2)
    assert sequences(seq.fetch(member="m")) == [2]
    assert [result.error for result in seq.ack(first)] == [None]


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize("kind", ["plain", "seq"])
def test_forged_token_is_lease_lost_and_its_neighbour_is_not(world: World, kind: str, forged: str) -> None:
    """A token that was never given settles nothing, and does not take the good one of the same call with it."""
    world.topic(kind, Kind.UNORDERED if kind == "plain" else Kind.SEQUENCE, **({} if kind == "plain" else {"lanes": 1}))
    world.group("g", kind)
    given = _one(world, kind)
    assert codes(world.ack(forged, given)) == [LOST, None]
    assert codes(world.extend(forged)) == codes(world.nack(forged)) == codes(world.reject(forged)) == [LOST]


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
    assert codes(plain.ack(forged, given)) == [LOST, None]


def test_token_of_another_group_is_lease_lost(plain: World) -> None:
    """A group cannot settle what another has in hand."""
    plain.group("h")
    given = leased_delivery(plain)
    assert codes(plain.ack(given, group="h")) == [LOST]
    assert codes(plain.ack(given)) == [None]


def test_same_token_twice_is_settled_once(plain: World) -> None:
    """In one call and in two: the second is lease_lost."""
    plain.send_many(2)
    first, second = plain.fetch()
    assert codes(plain.ack(first, first)) == [None, LOST]
    assert codes(plain.ack(first)) == codes(plain.nack(first)) == [LOST]
    assert codes(plain.ack(second)) == [None]
    assert rows(plain, "SELECT 1 FROM flight") == []


def test_redelivered_message_has_a_new_token(plain: World) -> None:
    """The first hand's late word does nothing to the second's lease."""
    given = leased_delivery(plain)
    plain.nack(given, delay_ms=0)
    [again] = plain.fetch()
    assert again.token != given.token
    assert codes(plain.ack(given)) == [LOST]
    assert codes(plain.ack(again)) == [None]


def test_p6_group_has_one_inbox_database(plain: World) -> None:
    """The first inbox id binds the group; another is wrong_inbox and takes nothing (R29)."""
    plain.send()
    plain.fetch(inbox=b"A" * 16, count=0 + 1)
    plain.send()
    with pytest.raises(Problem, match="wrong_inbox"):
        plain.fetch(inbox=b"B" * 16)
    assert len(plain.fetch(inbox=b"A" * 16)) == len([plain.send()])
