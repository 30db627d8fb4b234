"""Keys, numbers, lanes and the log, over every backend."""

from __future__ import annotations

from typing import Any

import pytest

from halfmsg.coordinator.messages import Key, Kind, Topic
from halfmsg.coordinator.states import State
from tests.store.conformance.conftest import OpenStore
from tests.store.conformance.test_transactions import half, insert
from tests.support.factories import new_message
from tests.support.stores import Store

TOPIC = Topic(0, "orders", Kind.SEQUENCE, 2, None, 1_000, 2_000, True)


@pytest.fixture
def topic(store: Store) -> Topic:
    return store.do(lambda tx: tx.add_topic(TOPIC))  # type: ignore[no-any-return]


def test_key_is_made_once_and_kept(open_store: OpenStore) -> None:
    """Found again by its four parts, also after a restart; each part makes another key (R27)."""
    store = open_store()
    parts = [(1, 1, 1, b"k"), (2, 1, 1, b"k"), (1, 2, 1, b"k"), (1, 1, 2, b"k"), (1, 1, 1, b"\x00\xff")]
    ids = store.do(lambda tx: [tx.key_id(*each) for each in parts + parts])
    assert ids[:5] == ids[5:] and len(set(ids)) == 5
    store = open_store()
    assert store.do(lambda tx: [tx.key_id(*each) for each in parts]) == ids[:5]
    assert [store.tx.key_name(id) for id in ids[:5]] == parts
    assert store.tx.key(ids[0]) == Key(ids[0], 1, False, False)


def test_key_made_in_a_rolled_back_transaction_is_made_again(store: Store) -> None:
    """Memory does not hand out the id of a key that is not stored."""
    wanted = (1, 1, 1, b"k")

    def fails(tx: Any) -> None:
        tx.key_id(*wanted)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.do(fails)
    id = store.do(lambda tx: tx.key_id(*wanted))
    assert store.tx.key_name(id) == wanted


def test_p7_key_state_is_stored(open_store: OpenStore) -> None:
    """Next number, stopped and draining survive a restart; only draining ones are in the drain list."""
    store = open_store()
    a, b = store.do(lambda tx: (tx.key_id(1, 1, 1, b"a"), tx.key_id(1, 1, 1, b"b")))
    store.do(lambda tx: (tx.advance_key(a, 7), tx.stop_key(a), tx.set_draining(b, True)))
    store = open_store()
    assert (store.tx.key(a), store.tx.key(b)) == (Key(a, 7, True, False), Key(b, 1, False, True))
    assert store.tx.draining_keys(9) == [Key(b, 1, False, True)]
    store.do(lambda tx: tx.set_draining(b, False))
    assert store.tx.draining_keys(9) == []


def test_held_is_taken_once(store: Store) -> None:
    """By key and number; by message; the key with a gap is found in the walk."""
    store.do(lambda tx: (tx.hold(3, 5, 50), tx.hold(3, 4, 40), tx.hold(8, 2, 20)))
    tx = store.tx
    assert (tx.held(3, 5), tx.held(3, 6), tx.held_of_message(40), tx.held_of_message(1)) == (50, None, (3, 4), None)
    assert [tx.next_held_key(after) for after in (0, 3, 8)] == [(3, 4), (8, 2), None]
    assert store.do(lambda tx: [tx.take_held(3, 4), tx.take_held(3, 4)]) == [40, None]


def test_p2_two_messages_cannot_be_held_on_one_number(store: Store) -> None:
    """Nor one message on two: the store refuses, nothing is overwritten."""
    store.do(lambda tx: tx.hold(3, 5, 50))
    for seq, m in ((5, 51), (6, 50)):
        with pytest.raises(Exception, match=r"UNIQUE|unique|duplicate"):
            store.do(lambda tx, s=seq, message=m: tx.hold(3, s, message))
    assert store.tx.held(3, 5) == 50


@pytest.mark.parametrize(("seq", "expected"), [(1, False), (2, True), (4, True), (5, False), (9, True), (10, False)])
def test_skipped_ranges_include_both_ends(store: Store, seq: int, expected: bool) -> None:
    """Of that key alone."""
    store.do(lambda tx: tx.conn.executemany("INSERT INTO skipped VALUES (?, ?, ?, 'ops', 'x', 0)", [(1, 2, 4), (1, 9, 9), (2, 1, 99)]))
    assert store.tx.is_skipped(1, seq) is expected


def test_open_keys_name_the_undecided_of_a_key(store: Store) -> None:
    """Twice is once; closed is gone; at most `limit`."""
    store.do(lambda tx: [tx.open_key(1, n) for n in (3, 1, 2, 3)] + [tx.open_key(2, 9)])
    assert (store.tx.open_on_key(1, 9), store.tx.open_on_key(1, 2)) == ([1, 2, 3], [1, 2])
    store.do(lambda tx: tx.close_key(1, 2))
    assert store.tx.open_on_key(1, 9) == [1, 3]


def test_p3_lane_ends_survive_restarts(open_store: OpenStore) -> None:
    """Offsets go on where they stopped, in each lane of its own."""
    made = open_store().do(lambda tx: tx.add_topic(TOPIC))
    offs = []
    for restart in range(3):
        store = open_store()
        offs += store.do(lambda tx, at=restart: [tx.release(made, lane, at * 10 + i, i, 1, 5) for i, lane in enumerate((0, 1, 0))])
        assert [store.tx.lane_end(made.id, lane) for lane in (0, 1)] == [2 * (restart + 1), restart + 1]
    assert offs == [0, 0, 1, 2, 1, 3, 4, 2, 5]


def test_p2_offset_of_a_rolled_back_release_is_given_again(store: Store, topic: Topic) -> None:
    """A hole in a lane would be a message that no group ever gets."""

    def fails(tx: Any) -> None:
        tx.release(topic, 0, 1, 1, 1, 5)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.do(fails)
    assert store.tx.lane_end(topic.id, 0) == 0
    assert store.do(lambda tx: tx.release(topic, 0, 2, 1, 1, 5)) == 0


def test_p6_message_is_released_once(store: Store, topic: Topic) -> None:
    """The log has one row a message, whoever tries."""
    store.do(lambda tx: tx.release(topic, 0, 1, 1, 1, 5))
    with pytest.raises(Exception, match=r"UNIQUE|unique|duplicate"):
        store.do(lambda tx: tx.release(topic, 1, 1, 2, 1, 5))
    assert store.tx.lane_end(topic.id, 1) == 0


def test_release_is_told(store: Store, topic: Topic) -> None:
    """After it is durable, and not when it was undone."""
    store.do(lambda tx: tx.release(topic, 0, 1, 1, 1, 5))
    assert store.events == [("released", topic.id)]


def test_run_brings_everything_a_consumer_gets(open_store: OpenStore) -> None:
    """Log row, body, key and transaction in one read, in order of offset, within its bounds."""
    store = open_store()
    made = store.do(lambda tx: tx.add_topic(TOPIC))
    rows = insert(store, *(half(number, state=State.COMMITTED) for number in (1, 2, 3)))
    okey = store.do(lambda tx: tx.key_id(made.id, 1, 4, b"key"))

    def release(tx: Any) -> None:
        for row in rows:
            tx.insert_messages(row.n, [(new_message(body=b"%d" % row.n, key="key", tag="t"), made.id, okey)])
            tx.release(made, 1, row.n << 10, row.n * 10, okey, 77)

    store.do(release)
    tx = open_store().tx
    run = tx.read_run(made.id, 1, 1, 3, 9)
    assert [(r.off, r.m, r.seq, r.at, r.okey, r.key, r.tag, r.body, r.tx_id, r.source, r.incarnation, r.by) for r in run] == [
        (i, rows[i].n << 10, rows[i].n * 10, 77, okey, b"key", "t", b"%d" % rows[i].n, rows[i].id, 1, 4, 1) for i in (1, 2)
    ]
    assert [len(tx.read_run(made.id, 1, 0, end, limit)) for end, limit in ((3, 2), (1, 9), (0, 9))] == [2, 1, 0]
    assert tx.keys_of_run(made.id, 1, 0, 1) == [(i, okey, rows[i].n * 10) for i in (0, 1)]
    assert tx.where_is(rows[2].n << 10) == (made.id, 1, 2, rows[2].n * 10, 77)
    assert (tx.log_row(made.id, 1, 0), tx.log_row(made.id, 0, 0), tx.where_is(1)) == ((okey, rows[0].n * 10, rows[0].n << 10), None, None)


def test_unordered_message_has_no_key_in_a_run(store: Store, topic: Topic) -> None:
    """No key, no number, no incarnation."""
    [row] = insert(store, half(1, state=State.COMMITTED))
    store.do(lambda tx: (tx.insert_messages(row.n, [(new_message(), topic.id, None)]), tx.release(topic, 0, row.n << 10, None, None, 5)))
    [found] = store.tx.read_run(topic.id, 0, 0, 1, 1)
    assert (found.okey, found.key, found.seq) == (None, None, None)
