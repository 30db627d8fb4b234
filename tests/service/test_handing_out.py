"""Handing out: places, filters, what a fetch gives, and a group's settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from halfmsg.coordinator import render, wire
from halfmsg.coordinator.errors import Problem
from halfmsg.coordinator.messages import Kind
from halfmsg.coordinator.service import fetching, groups
from halfmsg.txclient._stream import MAX_FRAME_BYTES
from tests.support.factories import World, bodies, leased_delivery, new_message
from tests.support.stores import changed, dump

from .asked import codes, rows


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
    assert rows(world, "SELECT 1 FROM retry") == rows(world, "SELECT 1 FROM dead") == []
    assert {row[0] for row in rows(world, "SELECT next_off FROM place")} == {4}


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
    assert all(hi - lo < 256 for lo, hi in rows(plain, "SELECT lo, hi FROM flight"))


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
    assert codes(plain.ack(given)) == [None]
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
    assert rows(plain, "SELECT 1 FROM place") == []
