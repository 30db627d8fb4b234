"""The inbox claims: a message's effect exactly once per group and generation, in the transaction of the effect (R6, R13, R18, P6, P7)."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from halfmsg import Inbox, NotInTransaction, Retry

from .deliveries import last, ordered, take, unordered
from .sides import Side, settled


async def test_p6_unordered_message_is_claimed_once(side: Side) -> None:
    """The second delivery of the same id is a duplicate; another id is not."""
    inbox, first, second = Inbox(side.url), unordered(), unordered()
    assert [await take(side, inbox, each) for each in (first, first, second, first)] == [True, False, True, False]
    assert side.count("business") == 2


async def test_p2_two_messages_of_one_transaction_are_two(side: Side) -> None:
    """They share the transaction's id and differ in their index: each is claimed, once."""
    inbox, first = Inbox(side.url), unordered()
    second = unordered(first.transaction_id)
    second = msgspec.structs.replace(second, id=f"{first.transaction_id}-1")
    assert [await take(side, inbox, each) for each in (first, second, first, second)] == [True, True, False, False]


async def test_p6_claim_falls_with_its_transaction(side: Side) -> None:
    """Rolled back, the claim is gone with the effect, for both kinds of topic: the next delivery runs."""
    inbox = Inbox(side.url)
    for delivery in (unordered(), ordered(1)):
        assert await take(side, inbox, delivery, commits=False)
        assert await take(side, inbox, delivery)
    assert (side.count("business"), last(side)) == (2, 1)


async def test_p7_ordered_messages_run_up_the_numbers(side: Side) -> None:
    """A number above last runs, whatever holes filters have made; one that is not above last is a duplicate."""
    inbox = Inbox(side.url)
    assert [await take(side, inbox, ordered(number)) for number in (1, 2, 2, 5, 4, 1)] == [True, True, False, True, False, False]
    assert last(side) == 5


async def test_r6_redriven_dead_letter_runs_once(side: Side) -> None:
    """1 was dead-lettered and passed over: 2 names it as missed; redriven it runs once, unmarked or twice it is a duplicate."""
    inbox = Inbox(side.url)
    assert await take(side, inbox, ordered(2, missed=[1]))
    assert await take(side, inbox, ordered(3, missed=[1]))  # named twice: harmless
    assert not await take(side, inbox, ordered(1))
    assert await take(side, inbox, ordered(1, redriven=True))
    assert not await take(side, inbox, ordered(1, redriven=True))
    assert (last(side), side.count("halfmsg_missed"), side.count("business")) == (3, 0, 3)


async def test_r6_number_named_after_it_was_redriven_is_not_missed_again(side: Side) -> None:
    """A member that restarts names a number once more although its effect is there: it is below last, so it is not taken up."""
    inbox = Inbox(side.url)
    await take(side, inbox, ordered(2, missed=[1]))
    await take(side, inbox, ordered(1, redriven=True))
    await take(side, inbox, ordered(3, missed=[1]))
    assert not await take(side, inbox, ordered(1, redriven=True))


async def test_r13_zombie_after_a_dead_letter_is_a_duplicate(side: Side) -> None:
    """A holds 1, its lease ends, 1 is dead-lettered, B runs 2; A wakes up with 1: refused, and the redrive still brings its effect."""
    inbox = Inbox(side.url)
    zombie = ordered(1)
    assert await take(side, inbox, ordered(2, missed=[1]))
    assert not await take(side, inbox, zombie)
    assert await take(side, inbox, ordered(1, redriven=True))
    assert side.count("business") == 2


async def test_p6_two_groups_in_one_database_are_apart(side: Side) -> None:
    """Each group takes the message once, whether the group is the delivery's or given to claim."""
    inbox, message = Inbox(side.url), unordered()
    assert await take(side, inbox, message)
    assert await take(side, inbox, message, group="other")
    assert not await take(side, inbox, message, group="other")
    assert await take(side, inbox, ordered(1))
    assert await take(side, inbox, ordered(1, group="third"))


async def test_r18_generation_is_part_of_the_key(side: Side) -> None:
    """A replay raises the generation, and is a deliberate repetition."""
    inbox, message = Inbox(side.url), unordered()
    again = unordered(message.transaction_id, generation=2)
    assert [await take(side, inbox, each) for each in (message, again, again)] == [True, True, False]
    assert [await take(side, inbox, ordered(3, generation=g)) for g in (1, 2, 2)] == [True, True, False]


async def test_p6_numbers_of_two_sources_are_apart(side: Side) -> None:
    """The same number of the same key from another producer's database is another message."""
    inbox = Inbox(side.url)
    assert await take(side, inbox, ordered(1))
    other = unordered(topic="s", key="k", sequence=1, source="T")
    assert await take(side, inbox, other)


async def test_r18_older_than_the_inbox_is_refused(side: Side) -> None:
    """What was handed out first before the inbox's memory begins is never run twice by forgetting; ordered topics forget nothing."""
    inbox = Inbox(side.url, keep=timedelta(seconds=60))
    assert await take(side, inbox, unordered(age=60.0))
    with pytest.raises(Retry, match="beyond_inbox"):
        await take(side, inbox, unordered(age=60.1))
    assert await take(side, inbox, ordered(1, age=10**6))


async def test_r8_claim_outside_a_transaction_is_refused(side: Side) -> None:
    """A claim that commits by itself would lose the message when the handler dies."""
    conn = await side.connect(autocommit=True)
    with pytest.raises(NotInTransaction):
        await settled(Inbox(side.url).claim(conn, unordered()))
    assert side.count("halfmsg_inbox") == 0
