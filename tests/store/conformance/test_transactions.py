"""Transactions, bodies, checks and lists, over every backend."""

from __future__ import annotations

from typing import Any

import pytest

from halfmsg.coordinator.messages import By, Tx
from halfmsg.coordinator.states import State
from tests.store.conformance.conftest import OpenStore
from tests.support.factories import an_id, new_message
from tests.support.stores import Store


def half(number: int, source: int = 1, *, next_check: int | None = 100, state: State = State.PREPARED) -> Tx:
    decided = (5, By.PRODUCER) if state in (State.COMMITTED, State.ROLLED_BACK) else (None, None)
    return Tx(0, an_id(number), source, state, b"d" * 16, 2, 7, 3, *decided, 0, None if decided[0] else next_check, None)


def insert(store: Store, *rows: Tx) -> list[Tx]:
    return store.do(lambda tx: [tx.insert(row) for row in rows])  # type: ignore[no-any-return]


def test_p3_inserted_transaction_is_found_after_a_restart(open_store: OpenStore) -> None:
    """By id and by number, field by field."""
    rows = insert(open_store(), half(1), half(2, state=State.COMMITTED), half(3, state=State.ROLLED_BACK))
    tx = open_store().tx
    assert [tx.find(row.id) for row in rows] == [tx.find_n(row.n) for row in rows] == rows
    assert (tx.find(an_id(9)), tx.find_n(99)) == (None, None)


def test_insert_of_a_known_id_stores_nothing(store: Store) -> None:
    """None comes back, and the first one stands."""
    store.tx.open_count(1)
    [first] = insert(store, half(1))
    assert insert(store, half(1, source=2)) == [None]
    assert store.tx.find(an_id(1)) == first
    assert (store.tx.open_count(1), store.tx.open_count(2)) == (1, 0)


def test_numbers_only_grow_over_restarts_and_rollbacks(open_store: OpenStore) -> None:
    """A number that was given to a stored transaction is never given again (R30)."""
    seen: list[int] = []
    for restart in range(3):
        store = open_store()
        seen += [row.n for row in insert(store, half(10 * restart + 1), half(10 * restart + 2))]

        def fails(tx: Any) -> None:
            tx.insert(half(99))
            raise RuntimeError

        with pytest.raises(RuntimeError):
            store.do(fails)
    assert seen == sorted(set(seen)) and len(seen) == 6


def test_numbers_of_deleted_rows_do_not_come_back(open_store: OpenStore) -> None:
    """The counter is stored; it is not the largest number in a table (R30)."""
    store = open_store()
    [last] = insert(store, half(1))
    store.do(lambda tx: tx.conn.execute("DELETE FROM tx"))
    [next_one] = insert(open_store(), half(2))
    assert next_one.n > last.n


def test_tokens_only_grow_over_restarts(open_store: OpenStore) -> None:
    """A lease of before the restart can never be mistaken for one of after it (R30)."""
    tokens = []
    for _ in range(3):
        tokens += open_store().do(lambda tx: [tx.new_token() for _ in range(3)])
    assert tokens == sorted(set(tokens))


def test_p8_bodies_come_back_as_they_went_in(store: Store) -> None:
    """Bytes out are bytes in; heads name topic and key without reading them."""
    [row] = insert(store, half(1))
    given = [(new_message(body=bytes(range(256)), tag="t", index=5), 1, None), (new_message(body=b"", key=b"\x00k", index=1_023), 2, 9)]
    store.do(lambda tx: tx.insert_messages(row.n, given))
    assert store.tx.message_heads(row.n) == [((row.n << 10) + 5, 1, None), ((row.n << 10) + 1_023, 2, 9)]
    store.do(lambda tx: tx.delete_messages(row.n))
    assert store.tx.message_heads(row.n) == []


def test_delete_messages_is_of_one_transaction(store: Store) -> None:
    """The neighbours' first and last messages stay."""
    rows = insert(store, half(1), half(2), half(3))
    for row in rows:
        store.do(lambda tx, n=row.n: tx.insert_messages(n, [(new_message(index=i), 1, None) for i in (0, 1_023)]))
    store.do(lambda tx: tx.delete_messages(rows[1].n))
    assert [len(store.tx.message_heads(row.n)) for row in rows] == [2, 0, 2]


@pytest.mark.parametrize("first", [State.COMMITTED, State.ROLLED_BACK])
@pytest.mark.parametrize("from_parked", [False, True])
def test_p4_decide_is_a_compare_and_set(open_store: OpenStore, first: State, from_parked: bool) -> None:
    """From prepared and parked once; a second decision, the same or the other, writes nothing."""
    store = open_store()
    [row] = insert(store, half(1))
    if from_parked:
        store.do(lambda tx: tx.park(row, 500, "why"))
    assert store.do(lambda tx: tx.decide(row, first, 50, By.CHECK_BACK, "so")) is True
    for second in (State.COMMITTED, State.ROLLED_BACK):
        assert store.do(lambda tx, s=second: tx.decide(row, s, 60, By.OPERATOR, "no")) is False
    found = open_store().tx.find(row.id)
    assert (found.state, found.decided_at, found.decided_by, found.next_check, found.reason) == (first, 50, By.CHECK_BACK, None, "so")


def test_p4_a_decided_one_is_not_parked_or_rescheduled(store: Store) -> None:
    """A late answer of a check cannot touch it."""
    [row] = insert(store, half(1, state=State.COMMITTED))
    store.do(lambda tx: (tx.park(row, 500, "x"), tx.reschedule(row, attempts=9, next_check=9, reason="x"), tx.ask_soon(row.n, 1)))
    assert store.tx.find(row.id) == row
    assert store.tx.open_count(1) == 0


def test_open_count_follows_prepare_decide_and_park(store: Store) -> None:
    """It counts what is prepared now, a producer at a time; parked and decided ones are not in it."""
    assert (store.tx.open_count(1), store.tx.open_count(2)) == (0, 0)
    first, second, third, _ = insert(store, half(1), half(2), half(3), half(4, source=2))
    assert (store.tx.open_count(1), store.tx.open_count(2)) == (3, 1)
    store.do(lambda tx: tx.decide(first, State.COMMITTED, 5, By.PRODUCER, None))
    store.do(lambda tx: tx.park(second, 500, "x"))
    parked = store.tx.find(second.id)
    store.do(lambda tx: tx.decide(parked, State.COMMITTED, 5, By.PRODUCER, None))
    assert store.tx.open_count(1) == 1
    assert store.tx.source_has_undecided(1) is True
    store.do(lambda tx: tx.decide(third, State.ROLLED_BACK, 5, By.PRODUCER, None))
    assert (store.tx.open_count(1), store.tx.source_has_undecided(1)) == (0, False)
    assert (store.tx.source_has_transactions(1), store.tx.source_has_transactions(3)) == (True, False)


@pytest.mark.parametrize("after", ["restart", "rollback"])
@pytest.mark.parametrize("what", ["insert", "decide", "park"])
def test_p9_open_count_is_right_when_nothing_was_in_memory(open_store: OpenStore, after: str, what: str) -> None:
    """The first step after a restart or a rollback counts each row once."""
    store = open_store()
    known, _ = insert(store, half(1), half(2))
    if after == "restart":
        store = open_store()
    else:
        store.backend.begin()
        store.backend.rollback()
    steps = {"insert": lambda tx: tx.insert(half(3)), "decide": lambda tx: tx.decide(known, State.COMMITTED, 5, By.PRODUCER, None),
             "park": lambda tx: tx.park(known, 500, "x")}  # fmt: skip
    store.do(steps[what])
    assert store.tx.open_count(1) == (3 if what == "insert" else 1)


def test_sources_with_open_names_those_that_have_some(open_store: OpenStore) -> None:
    """Also right after a restart, when nothing is in memory."""
    store = open_store()
    a, b = (store.do(lambda tx, n=name: tx.add_source(n)) for name in ("a", "b"))
    insert(store, half(1, source=b.id), half(2, source=a.id, state=State.COMMITTED))
    assert open_store().tx.sources_with_undecided() == [b.id]


def test_claim_due_takes_the_due_ones_of_a_producer_once(store: Store) -> None:
    """At most `limit`, earliest first, moved to `until`; parked, decided and other producers' are not due."""
    times = (30, 10, 20, 31, 1, 1, 2)
    rows = insert(store, *(half(number, source=2 if number == 5 else 1, next_check=time) for number, time in enumerate(times, start=1)))
    store.do(lambda tx: (tx.park(rows[5], 1, "x"), tx.decide(rows[6], State.COMMITTED, 5, By.PRODUCER, None)))
    claim = lambda limit: [row.n for row in store.do(lambda tx: tx.claim_due(1, 30, 99, limit))]  # noqa: E731
    assert claim(2) == [rows[1].n, rows[2].n]
    assert claim(9) == [rows[0].n]
    assert claim(9) == []
    assert {store.tx.find(rows[i].id).next_check for i in (0, 1, 2)} == {99}


def test_parked_are_listed_in_order_of_number(store: Store) -> None:
    """From a number on, at most `limit`, of one producer."""
    rows = insert(store, *(half(number, source=1 if number < 6 else 2) for number in range(1, 8)))
    for row in rows[1:]:
        store.do(lambda tx, r=row: tx.park(r, 500, "why"))
    found = store.tx.parked(1, rows[1].n, 2)
    assert [(row.n, row.state, row.next_check, row.reason) for row in found] == [(rows[i].n, State.PARKED, 500, "why") for i in (2, 3)]


def test_ask_soon_only_hurries(store: Store) -> None:
    """A check that is due earlier is not put off, and a parked one is left alone."""
    rows = insert(store, half(1, next_check=50), half(2, next_check=10), half(3, next_check=50))
    store.do(lambda tx: tx.park(rows[2], 500, "x"))
    store.do(lambda tx: [tx.ask_soon(row.n, 20) for row in rows])
    assert [store.tx.find(row.id).next_check for row in rows] == [20, 10, 500]


def test_reschedule_keeps_attempts_and_reason(store: Store) -> None:
    """Prepared and parked alike."""
    rows = insert(store, half(1), half(2))
    store.do(lambda tx: tx.park(rows[1], 500, "x"))
    store.do(lambda tx: [tx.reschedule(row, attempts=4, next_check=77, reason="busy") for row in rows])
    assert [(f.attempts, f.next_check, f.reason) for f in (store.tx.find(row.id) for row in rows)] == [(4, 77, "busy")] * 2
    assert [row.n for row in store.tx.open_of(1, 9)] == [rows[0].n]


def test_p9_history_of_a_transaction_is_bounded(store: Store) -> None:
    """At most 100 notes a transaction, however often it is asked."""
    store.do(lambda tx: [tx.note(1, at, "check", None) for at in range(150)])
    store.do(lambda tx: tx.note(2, 0, "check", None))
    count = store.tx.one("SELECT count(*), max(at) FROM tx_note WHERE n = 1")
    assert count == (100, 99)


def test_conflict_is_listed_once_for_each_word(store: Store) -> None:
    """The same contrary word again adds no row and no event."""
    for said in ("commit", "commit", "rollback"):
        store.do(lambda tx, s=said: tx.add_conflict(an_id(1), "committed", s, "producer", 5))
    assert store.tx.one("SELECT count(*) FROM conflict") == (2,)
    assert [event[0] for event in store.events] == ["conflict", "conflict"]
