"""Limits that are looked at once a second: what a topic holds for its slowest group, and what one group fails (P9, R20)."""

from __future__ import annotations

from typing import Any

import pytest

from halfmsg.coordinator.errors import Problem
from halfmsg.coordinator.messages import Full, Kind
from halfmsg.coordinator.service import capacity
from tests.support.factories import World, bodies


def look(world: World) -> Full:
    """Look, and let the door and the hand-out know."""
    found: Any = world.store.run(lambda tx, now, before: capacity.look(tx, before), world.store.env.full)
    world.store.env.full = found
    return found  # type: ignore[no-any-return]


def test_p9_topic_is_full_by_its_slowest_group_and_opens_again_below_its_limit(world: World) -> None:
    """Ten unsettled are the limit of ten; nine of them still are, eight are not. What is in a hand is not waiting."""
    topic = world.topic(max_backlog=10)
    world.group("quick")
    world.group("slow")
    world.send_many(9)
    world.ack(*world.fetch("quick"), group="quick")
    assert look(world) == Full()
    world.send()
    assert look(world).topics == {topic.id}
    with pytest.raises(Problem, match="backlog_full"):
        world.send()
    world.fetch("slow", 1)
    assert look(world).topics == {topic.id}, "nine tenths of the limit are too many for one that was full"
    world.fetch("slow", 1)
    assert look(world) == Full()
    world.send()


def test_p9_what_waits_for_another_attempt_counts_for_its_topic(world: World) -> None:
    topic = world.topic(max_backlog=10)
    world.group()
    world.send_many(10)
    world.nack(*world.fetch())
    assert look(world).topics == {topic.id}


def test_p9_group_that_mostly_fails_is_handed_nothing_new(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not turn the log into rows. What failed comes again as ever, and with it the group goes on; its neighbour never stopped."""
    monkeypatch.setattr(capacity, "FAILING_MAX", 10)
    world.topic()
    failing = world.group()
    world.group("well")
    world.send_many(12)
    world.nack(*world.fetch(count=10))
    assert look(world) == Full(groups=frozenset({failing.id}))
    assert world.fetch() == []
    assert len(world.fetch("well")) == 12
    world.later(3_600)
    hand = world.fetch(count=1)
    assert [each.attempt for each in hand] == [2]
    world.ack(*hand)
    assert look(world).groups == {failing.id}, "nine tenths of the limit are too many for one that was stopped"
    assert bodies(world.fetch(count=1)) == [b"1"]
    assert look(world) == Full()
    assert bodies(world.fetch())[-2:] == [b"10", b"11"]


def test_p9_ordered_group_has_a_limit_of_its_own_for_each_lane(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "FAILING_MAX", 2)
    world.topic("seq", Kind.SEQUENCE, lanes=1)
    world.group("g", "seq")
    for key in ("a", "b", "c"):
        world.sequence(1, key)
    world.nack(*world.fetch(member="m"))
    assert look(world).groups == frozenset()
