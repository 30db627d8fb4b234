"""The life of a transaction of the store: what a rollback undoes, in the file, in memory and in events."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from halfmsg.coordinator.messages import By, Group, Kind, Topic
from halfmsg.coordinator.states import State
from tests.store.conformance.conftest import OpenStore
from tests.store.conformance.test_deliveries import a_flight, a_retry, add_dead
from tests.store.conformance.test_transactions import half, insert
from tests.support.stores import Store

TOPIC = Topic(0, "orders", Kind.SEQUENCE, 2, None, 1_000, 2_000, True)
GROUP = Group(0, "g", 1, 1, None, (), 30_000, None, 1_000, 600_000, False, None, "earliest")


def _everything(tx: Any) -> None:
    """A little of each: enough that every cache has something in it."""
    topic = tx.add_topic(msgspec.structs.replace(TOPIC, name="new"))
    source = tx.note_hello(tx.add_source("new"))
    group = tx.add_group(msgspec.structs.replace(GROUP, name="new", topic=topic.id), at_end=False)
    tx.open_count(source.id)
    row = tx.insert(half(50, source=source.id))
    okey = tx.key_id(topic.id, source.id, 1, b"k")
    tx.release(topic, 0, row.n << 10, 1, okey, 5)
    tx.new_token()
    tx.fly(a_flight(group.id))
    tx.put_retry(group.id, a_retry())
    add_dead(tx, group.id)
    assert tx.topic("new") and tx.source("new") and tx.group("new") and tx.groups_of_topic(topic.id) and tx.open_count(source.id)


def test_rollback_leaves_nothing_in_memory(store: Store) -> None:
    """What was undone is not known by any way of asking, and no event of it is told."""

    def fails(tx: Any) -> None:
        _everything(tx)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.do(fails)
    tx = store.tx
    assert (tx.topic("new"), tx.source("new"), tx.group("new"), tx.find(half(50).id), tx.counter("n"), tx.counter("token")) == (
        None, None, [], None, 0, 0)  # fmt: skip
    store.do(_everything)
    assert tx.lane_end(tx.topic("new").id, 0) == 1
    assert [event[0] for event in store.events] == ["released", "dead"]


def test_what_is_remembered_is_what_is_stored(open_store: OpenStore) -> None:
    """A store with warm memory and one that was just opened answer alike."""
    store = open_store()
    store.do(_everything)
    known = store.tx.source("new")
    [row] = insert(store, half(51, source=known.id))
    store.do(lambda tx: tx.decide(row, State.COMMITTED, 5, By.PRODUCER, None))

    def answers(tx: Any) -> list[Any]:
        topic, source = tx.topic("new"), tx.source("new")
        return [topic, source, tx.group("new"), tx.groups_of_topic(topic.id), tx.open_count(source.id), tx.counter("n"), tx.counter("token"),
                [tx.lane_end(topic.id, lane) for lane in (0, 1)]]  # fmt: skip

    warm = answers(store.tx)
    assert answers(open_store().tx) == warm


def test_p3_what_was_committed_is_there_and_what_was_not_is_not(open_store: OpenStore) -> None:
    """A store that is closed in the middle of a transaction opens without it."""
    store = open_store()
    insert(store, half(1))
    store.backend.begin()
    store.tx.insert(half(2))
    store = open_store()
    assert (store.tx.find(half(1).id) is None, store.tx.find(half(2).id) is None) == (False, True)


def test_changes_grows_with_each_row_written(store: Store) -> None:
    """Equal before and after means that nothing was written: reads and refused inserts do not move it."""
    insert(store, half(1))
    store.backend.begin()
    before = store.backend.changes()
    assert store.tx.find(half(1).id) and store.tx.insert(half(1)) is None
    assert store.backend.changes() == before
    store.tx.insert(half(2))
    assert store.backend.changes() > before
    store.backend.rollback()


def test_an_error_that_is_no_storage_error_keeps_its_meaning(store: Store) -> None:
    """A defect is reported as what it is."""
    error = KeyError("x")
    assert store.backend.meaning(error) is error
