"""A name that stands for something else than before: a group removed and made again, a producer that gets a database. Inboxes remember."""

from __future__ import annotations

from typing import Any

import pytest

from halfmsg.coordinator.errors import Problem
from halfmsg.coordinator.messages import Delivery, Group, Kind
from halfmsg.coordinator.service import groups
from halfmsg.coordinator.service.naming import Removal
from tests.support.factories import PRODUCER, World, new_message

KINDS = pytest.mark.parametrize("kind", [Kind.SEQUENCE, Kind.ARRIVAL, Kind.UNORDERED], ids=lambda kind: str(kind.word))


def _with_topic(world: World, kind: Kind) -> None:
    world.topic("t", kind, lanes=1)


def _send(world: World, number: int, kind: Kind, tag: str | None = None) -> None:
    key = None if kind is Kind.UNORDERED else "k"
    sequence, producer = (number, PRODUCER) if kind is Kind.SEQUENCE else (None, None)
    world.submit(new_message("t", b"%d" % number, key=key, tag=tag, sequence=sequence), producer=producer)


def _work(world: World) -> list[Delivery]:
    """All there is, done."""
    hand: list[Delivery] = world.fetch(member="m")
    for each in hand:
        world.ack(each)
    return hand


def _made_anew(world: World, **given: Any) -> Group:
    world.later(31)
    world.store.run(groups.remove, Removal("g", "other filters"))
    return world.group("g", "t", **given)


@KINDS
@pytest.mark.parametrize("kept", [{"tag": "vip"}, {"attributes": (("size", "l"),)}, {"start": "latest"}], ids=["tag", "attributes", "start"])
def test_p2_group_made_anew_runs_what_the_first_one_never_had(world: World, kind: Kind, kept: dict[str, Any]) -> None:
    """An ordered inbox holds its last number alone: it would take 2 and 3 for done. A new generation begins; an unordered one knows each by id."""
    _with_topic(world, kind)
    first = world.group("g", "t", **kept)
    for number, tag in ((1, "vip"), (2, None), (3, None), (4, "vip")):
        _send(world, number, kind, tag)
    _work(world)
    again = _made_anew(world)
    assert (first.generation, again.generation) == (1, 1 if kind is Kind.UNORDERED else 2)
    hand = _work(world)
    assert [each.row.body for each in hand] == [b"1", b"2", b"3", b"4"]
    assert {each.generation for each in hand} == {again.generation}


@KINDS
def test_p6_group_that_had_everything_is_made_anew_with_its_generation(world: World, kind: Kind) -> None:
    """What it did is known to its inbox, and not done again; a filter that comes later takes nothing away from that."""
    _with_topic(world, kind)
    world.group("g", "t")
    _send(world, 1, kind)
    _work(world)
    assert _made_anew(world, tag="vip").generation == 1
    assert _made_anew(world).generation == (1 if kind is Kind.UNORDERED else 2)
    assert _made_anew(world).generation == (1 if kind is Kind.UNORDERED else 2)


@pytest.mark.parametrize("paused", [False, True], ids=["", "paused"])
def test_p2_unordered_group_is_not_removed_under_its_members(world: World, paused: bool) -> None:
    """It has nothing in hand; who waits for more is at work all the same, until its lease is over."""
    world.topic("t")
    world.group("g", "t", lease_s=30)
    world.store.run(groups.pause, groups.Pause("g", paused))
    assert world.fetch(member="m") == []
    with pytest.raises(Problem) as caught:
        world.store.run(groups.remove, Removal("g", "tidy"))
    assert caught.value.code == "group_busy"
    world.later(31)
    world.store.run(groups.remove, Removal("g", "tidy"))


def test_p6_producer_that_gets_a_database_keeps_the_name_under_which_inboxes_know_its_numbers(world: World) -> None:
    """Its first number is done and its ack lost. Delivered again under the database's id it would be new to the inbox, and run twice."""
    _with_topic(world, Kind.SEQUENCE)
    world.group("g", "t", lease_s=30)
    _send(world, 1, Kind.SEQUENCE)
    [before] = world.fetch(member="m")
    world.bind(b"d" * 16)
    world.submit(new_message("t", b"2", key="l", sequence=1), source=b"d" * 16)
    world.later(31)
    world.expire()
    world.later(5)
    again, new = world.fetch(member="n")
    assert (before.source, again.source, new.source) == ("orders/1", "orders/1", (b"d" * 16).hex() + "/1")


def test_p7_key_that_goes_on_over_the_binding_keeps_its_name(world: World) -> None:
    """2 under another name than 1 would have its effect while 1 waits for its next attempt: two rows of the inbox, two lanes of the client."""
    _with_topic(world, Kind.SEQUENCE)
    world.group("g", "t")
    _send(world, 1, Kind.SEQUENCE)
    world.bind(b"d" * 16)
    world.submit(new_message("t", b"2", key="k", sequence=2), source=b"d" * 16)
    assert [(each.row.seq, each.source) for each in world.fetch(member="m")] == [(1, "orders/1"), (2, "orders/1")]
