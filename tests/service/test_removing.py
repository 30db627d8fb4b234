"""What is removed by an operator is needed by nobody: no message loses its topic, and none its producer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from halfmsg.coordinator.errors import Problem
from halfmsg.coordinator.messages import Kind, TransactionView
from halfmsg.coordinator.service import producers, topics, verdicts
from halfmsg.coordinator.service.naming import Removal
from tests.support.factories import PRODUCER, World, bodies, half_message, new_message, parked_transaction, sequences


@pytest.mark.parametrize("make", [half_message, parked_transaction], ids=["prepared", "parked"])
def test_p2_topic_of_an_undecided_transaction_is_not_removed(world: World, make: Callable[[World], TransactionView]) -> None:
    """Else its commit would fail for ever (or go to the topic that gets the number next), and claiming it would fail for all producers."""
    world.topic()
    waiting = make(world)
    with pytest.raises(Problem, match="state_changed"):
        world.store.run(topics.remove, Removal("plain"))
    world.later(1_000)
    limits = verdicts.ClaimDue({world.source.id: 10}, 1_000)
    assert len(world.store.run(verdicts.claim_due, limits)) == (make is half_message)
    world.group()
    world.commit(waiting)
    assert bodies(world.fetch()) == [b"{}"]


def test_topic_whose_transactions_were_rolled_back_is_removed(world: World) -> None:
    """Another topic's undecided ones are no reason to keep it."""
    world.topic()
    world.topic("other")
    world.rollback(half_message(world).tx.id)
    half_message(world, new_message("other"))
    world.store.run(topics.remove, Removal("plain"))
    assert world.store.tx.topic("plain") is None


def test_p2_topic_whose_bodies_a_forced_rollback_keeps_is_not_removed(world: World) -> None:
    """Else looking at that transaction would fail for ever."""
    world.topic()
    view = half_message(world)
    world.park(view.tx.id)
    world.force(view.tx.id, commit=False)
    with pytest.raises(Problem, match="state_changed"):
        world.store.run(topics.remove, Removal("plain"))


def test_p2_producer_whose_messages_are_stored_is_not_removed(world: World) -> None:
    """Else every fetch that meets one of them would fail, and the group would stand still for ever."""
    world.topic()
    world.group()
    world.submit()
    with pytest.raises(Problem, match="state_changed"):
        world.store.run(producers.remove, Removal(PRODUCER))
    assert [each.producer for each in world.fetch()] == [PRODUCER]


def test_p7_new_producer_does_not_go_on_with_the_numbers_of_a_removed_one(world: World) -> None:
    """A producer without the library, removed after its numbers 1 and 2: its successor's number 1 is its own."""
    world.topic("seq", Kind.SEQUENCE)
    world.group("g", "seq")
    for number in (1, 2):
        world.sequence(number)
    with pytest.raises(Problem, match="state_changed"):
        world.store.run(producers.remove, Removal(PRODUCER))
    world.store.run(producers.put, producers.ProducerWanted("invoices", None, "halfmsg", lambda n: b"s" * n))
    world.submit(new_message("seq", b"1", key="k", sequence=1), producer="invoices")
    given = world.fetch(member="m")
    assert sorted(zip([each.producer for each in given], sequences(given), strict=True)) == [("invoices", 1), (PRODUCER, 1), (PRODUCER, 2)]


def test_producer_that_never_said_anything_is_removed(world: World) -> None:
    """Its name is free again."""
    world.store.run(producers.remove, Removal(PRODUCER))
    assert world.store.tx.source(PRODUCER) is None
