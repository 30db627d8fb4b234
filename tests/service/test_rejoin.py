"""A member comes back over a new connection, or leaves: what it had open, and what the others may have now (R13)."""

from __future__ import annotations

import pytest

from halfmsg.coordinator import doctor
from halfmsg.coordinator.messages import Delivery, Kind
from halfmsg.coordinator.service import groups
from tests.support.factories import World, new_message, sequences

from .asked import codes


def rejoin(world: World, *holding: Delivery, member: str = "m") -> list[str]:
    found: list[str] = world.store.run(groups.rejoin, groups.Rejoin("g", member, frozenset(each.token for each in holding)))
    return found


def ordered(world: World, count: int, *, lanes: int = 1) -> list[Delivery]:
    """Messages 1, 2, … of one key in the hand of member `m`."""
    world.topic("seq", Kind.SEQUENCE, lanes=lanes)
    world.group("g", "seq", max_attempts=2)
    for number in range(1, count + 1):
        world.sequence(number)
    return world.fetch(member="m")


def test_p7_what_follows_a_lost_one_does_not_go_on(world: World) -> None:
    """1 was lost with the connection, 2 is in hand: 2 is revoked, and both come again in order, uncharged."""
    _, second, third = ordered(world, 3)
    assert rejoin(world, second, third) == [second.token, third.token]
    assert [result.error[0] for result in world.ack(second, third) if result.error] == ["lease_lost"] * 2
    for number in (1, 2, 3):
        [given] = world.fetch(member="m")
        assert (given.row.seq, given.attempt) == (number, 1)
        world.ack(given)


def test_p7_what_was_lost_behind_a_held_one_waits_for_it(world: World) -> None:
    """1 is in hand, 2 was lost: nothing is revoked, and 2 comes when 1 is acked and not before."""
    first, _ = ordered(world, 2)
    assert rejoin(world, first) == []
    assert world.fetch(member="m") == []
    world.ack(first)
    assert sequences(world.fetch(member="m")) == [2]


def test_p7_what_was_lost_comes_at_once_and_before_what_is_new(world: World) -> None:
    """All of it was lost: it comes with the next fetch, not after its lease, and before a newcomer."""
    ordered(world, 1)
    world.sequence(2)
    assert rejoin(world) == []
    assert [(each.row.seq, each.attempt) for each in world.fetch(member="m")] == [(1, 1), (2, 1)]


def test_p2_lost_ones_of_an_unordered_topic_come_again_at_once(world: World) -> None:
    """Only those that are not held, each once, and the held one can still be acked."""
    world.topic()
    world.group()
    world.send_many(3)
    held, *_ = world.fetch(member="m")
    assert rejoin(world, held) == []
    assert sorted(each.row.off for each in world.fetch(member="m")) == [1, 2]
    assert [result.error for result in world.ack(held)] == [None]


def test_rejoin_touches_no_other_member(world: World) -> None:
    """What another member holds stays its own."""
    [given] = ordered(world, 1)
    assert rejoin(world, member="other") == []
    assert [result.error for result in world.ack(given)] == [None]


@pytest.mark.parametrize("kind", [Kind.SEQUENCE, Kind.UNORDERED], ids=lambda kind: str(kind.word))
def test_p2_what_was_on_its_way_to_a_member_that_leaves_is_handed_out_again_at_once(world: World, kind: Kind) -> None:
    """Not after its lease, and uncharged: nobody has run it. What it still has in hand it settles, and its key waits for that."""
    world.topic("t", kind, lanes=1)
    world.group("g", "t", max_attempts=1)
    for number, key in ((1, "a"), (2, "a"), (1, "b")):
        ordering = {"key": key, "sequence": number} if kind is Kind.SEQUENCE else {}
        world.submit(new_message("t", f"{key}{number}".encode(), **ordering))
    held, *_ = world.fetch(member="m")
    world.store.run(groups.leave, groups.Leave("g", "m", frozenset((held.token,))))
    if kind is Kind.UNORDERED:
        assert sorted((each.row.body, each.attempt) for each in world.fetch(member="n")) == [(b"a2", 1), (b"b1", 1)]
    assert codes(world.ack(held)) == [None]
    world.store.run(groups.leave, groups.Leave("g", "m", frozenset()))
    rest = world.fetch(member="n")
    assert [(each.row.body, each.attempt) for each in rest] == ([(b"a2", 1), (b"b1", 1)] if kind is Kind.SEQUENCE else [])


def test_p2_member_that_left_counts_no_more(world: World) -> None:
    """Its share goes to those who stay with their next fetch, not when its lease would have ended."""
    world.topic("seq", Kind.SEQUENCE, lanes=2)
    world.group("g", "seq")
    for member in ("a", "b", "a", "b"):
        world.fetch(member=member)
    owners = [place.owner for place in world.store.tx.places(1)]
    assert sorted(str(owner) for owner in owners) == ["a", "b"]
    world.store.run(groups.leave, groups.Leave("g", "b"))
    world.fetch(member="a")
    assert [place.owner for place in world.store.tx.places(1)] == ["a", "a"]


def over_http(world: World, count: int = 100) -> list[Delivery]:
    """A fetch whose answer may be lost, and repeated by its caller under the same name."""
    return world.fetch(count=count, member="m", may_be_lost=True)


def test_p7_repeat_of_a_fetch_whose_answer_was_lost_does_not_go_past_it(world: World) -> None:
    """1 was handed out and never arrived: 2 waits until 1 has come again, while another key goes on."""
    ordered(world, 0)
    world.sequence(1)
    assert sequences(over_http(world)) == [1]  # lost
    world.sequence(2)
    world.sequence(1, key="other")
    world.sequence(3)
    assert [(each.row.key, each.row.seq) for each in over_http(world)] == [(b"other", 1)]
    assert over_http(world) == []
    world.later(30)
    world.expire()
    world.later(1)
    seen = []
    while given := over_http(world):
        seen += [each.row.seq for each in given if each.row.key == b"k"]
        world.ack(*given)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("answer", ["ack", "nack", "reject"])
def test_p2_what_waits_behind_an_answer_comes_when_it_is_settled(world: World, answer: str) -> None:
    """Whatever becomes of the one in hand, the key goes on, in order."""
    ordered(world, 0)
    world.sequence(1)
    [first] = over_http(world)
    for number in (2, 3, 4):
        world.sequence(number)
    assert over_http(world) == []
    world.settle(answer, first)
    world.later(10)
    seen = []
    while given := over_http(world):
        seen += sequences(given)
        world.ack(*given)
    assert seen == ([1] if answer == "nack" else []) + [2, 3, 4]
    assert [finding.name for finding in doctor.run(world.store.backend._conn) if not finding.ok] == []  # type: ignore[attr-defined]


def test_p9_several_of_a_key_go_out_in_one_answer(world: World) -> None:
    """Who settles what it has before it asks again pays nothing: no row is made for any of them."""
    world.ack(*ordered(world, 6))
    for number in range(7, 13):
        world.sequence(number)
    given = over_http(world, 4)
    assert sequences(given) == [7, 8, 9, 10]
    world.ack(*given)
    assert sequences(over_http(world)) == [11, 12]
    assert world.store.tx.all("SELECT 1 FROM retry") == []
