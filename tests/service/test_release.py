"""Whose turn it is on a key: numbers in any order come out in one order, and what cannot is listed."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from halfmsg.coordinator.messages import By, Kind, Tx
from halfmsg.coordinator.service import release
from halfmsg.coordinator.states import State
from tests.support.factories import World, bodies, new_message, sequences
from tests.support.stores import dump


def _rows(world: World, sql: str, *args: Any) -> list[Any]:
    return world.store.tx.all(sql, *args)  # type: ignore[no-any-return]


def _okey(world: World, key: str = "k") -> Any:
    [row] = _rows(world, "SELECT id, next_seq, stopped, draining FROM okey WHERE key = ?", key.encode())
    return row


def _plant_held(world: World, numbers: range) -> None:
    """Committed messages of key k that stand behind its gap."""
    okey, topic = _okey(world)[0], world.store.tx.topic("seq")

    def plant(tx: Any) -> None:
        for number in numbers:
            row = Tx(0, b"p" * 8 + number.to_bytes(8, "big"), world.source.id, State.COMMITTED, b"d", 1, 0, 0, 0, By.PRODUCER, 0, None, None)
            stored = tx.insert(row)
            tx.insert_messages(stored.n, [(new_message("seq", b"x", key="k"), topic.id, okey)])
            tx.hold(okey, number, stored.n << 10)

    world.store.do(plant)


def _topic_dead(world: World) -> list[tuple[Any, ...]]:
    return _rows(world, "SELECT reason, seq FROM dead WHERE grp IS NULL ORDER BY id")


@pytest.fixture
def seq(world: World) -> World:
    world.topic("seq", Kind.SEQUENCE, lanes=2)
    world.group("g", "seq")
    return world


@pytest.mark.parametrize("order", list(itertools.permutations((1, 2, 3, 4))), ids=lambda order: "".join(map(str, order)))
@pytest.mark.parametrize("way", ["submit", "commit"])
def test_p7_any_order_of_commits_comes_out_in_order(seq: World, order: tuple[int, ...], way: str) -> None:
    """Four numbers committed in each order: after each step exactly the gapless head is released, and the rest is held."""
    views = {number: seq.prepare(new_message("seq", b"%d" % number, key="k")) for number in order} if way == "commit" else {}
    seen: set[int] = set()
    for number in order:
        view = seq.commit(views[number], numbers=(number,)) if way == "commit" else seq.sequence(number)
        seen.add(number)
        head = next(n for n in range(1, 6) if n not in seen)
        assert [row[0] for row in _rows(seq, "SELECT seq FROM log ORDER BY off")] == list(range(1, head))
        assert {row[0] for row in _rows(seq, "SELECT seq FROM held")} == {n for n in seen if n > head}
        assert view.messages[0].held == ("gap" if number > head else None)
    assert sequences(seq.fetch(member="a")) == [1, 2, 3, 4]


def test_p2_gap_holds_its_key_alone(seq: World) -> None:
    """A missing number stops its key and no other, of no other producer."""
    seq.sequence(2, "k")
    seq.sequence(1, "other")
    seq.store.run(release.drain_tick)
    assert sequences(seq.fetch(member="a")) == [1]
    assert _rows(seq, "SELECT seq FROM held") == [(2,)]


def test_p2_gap_asks_the_undecided_ones_of_its_key_at_once(seq: World) -> None:
    """The half message that may fill the gap is due for a check now, not at its own time (R5)."""
    missing = seq.prepare(new_message("seq", key="k"))
    elsewhere = seq.prepare(new_message("seq", key="other"))
    due = seq.find(elsewhere.tx.id).next_check
    seq.sequence(2, "k")
    gap_delay_ms = int(seq.store.env.settings.check.gap_delay_s * 1000)
    assert seq.find(missing.tx.id).next_check == seq.now + gap_delay_ms
    assert seq.find(elsewhere.tx.id).next_check == due
    assert ("gap", _okey(seq)[0]) in seq.store.events


def test_p7_keys_of_two_producers_are_two_keys(seq: World) -> None:
    """The same key text of another producer counts on its own."""
    from halfmsg.coordinator.service import producers

    seq.store.run(producers.put, producers.ProducerWanted("other", "http://127.0.0.1:1/", "halfmsg", lambda n: b"s" * n))
    seq.sequence(1)
    seq.submit(new_message("seq", key="k", sequence=1), producer="other")
    assert sequences(seq.fetch(member="a")) == [1, 1]


@pytest.mark.parametrize("taken", ["released", "held"])
def test_p2_number_taken_goes_to_the_topic_dead_letters_and_stops_the_key(seq: World, taken: str) -> None:
    """The same number under another id is never a duplicate: it is listed, and the key waits for an operator (R7)."""
    seq.sequence(1 if taken == "released" else 2)
    view = seq.sequence(1 if taken == "released" else 2, body=b"another")
    assert view.tx.state is State.COMMITTED and view.messages[0].dead == "number_taken"
    assert _topic_dead(seq) == [(3, 1 if taken == "released" else 2)]
    assert _okey(seq)[2] == 1
    assert seq.sequence(2 if taken == "released" else 1).messages[0].held == "gap"
    assert len(_rows(seq, "SELECT 1 FROM log")) == (1 if taken == "released" else 0)


def test_p2_late_after_skip_is_listed_and_does_not_stop_the_key(seq: World) -> None:
    """A number that an operator skipped comes after all: answered committed, in the topic's dead letters, the key goes on (R14)."""
    seq.sequence(1)
    okey = _okey(seq)[0]
    seq.store.do(lambda tx: tx.conn.execute("INSERT INTO skipped VALUES (?, 2, 4, 'ops', 'lost', 0)", (okey,)))
    seq.store.do(lambda tx: tx.advance_key(okey, 5))
    for number in (2, 4):
        assert seq.sequence(number).messages[0].dead == "late_after_skip"
    assert _topic_dead(seq) == [(4, 2), (4, 4)]
    assert seq.sequence(5).messages[0].offset == 1
    assert sequences(seq.fetch(member="a")) == [1, 5]


def test_p9_filling_a_gap_releases_a_thousand_a_turn(seq: World) -> None:
    """2,500 are held; number 1 comes: 1,000 go at once, the key is marked draining, newcomers wait behind, ticks do the rest (R20)."""
    first = seq.sequence(2)
    _plant_held(seq, range(3, 2_502))
    assert first.messages[0].held == "gap"
    seq.sequence(1)
    assert _okey(seq)[1:] == (1_002, 0, 1)
    assert seq.sequence(2_502).messages[0].held == "gap"
    assert [seq.store.run(release.drain_tick) for _ in range(3)] == [1_000, 501, 0]
    assert _okey(seq)[1:] == (2_503, 0, 0)
    assert [row[0] for row in _rows(seq, "SELECT seq FROM log ORDER BY off")] == list(range(1, 2_503))


@pytest.mark.parametrize("held", [999, 1_000, 1_001])
def test_p9_drain_marks_only_when_something_is_left(seq: World, held: int) -> None:
    """At 1,000 nothing is left to drain; one past it the key is draining."""
    seq.sequence(2)
    _plant_held(seq, range(3, held + 2))
    seq.sequence(1)
    assert _okey(seq)[3] == (1 if held > 1_000 else 0)


def test_p7_arrival_numbers_are_drawn_at_release(world: World) -> None:
    """`arrival`: per key 1, 2, 3 in the order of acknowledged sends, whatever other keys do."""
    world.topic("arr", Kind.ARRIVAL, lanes=4)
    world.group("g", "arr")
    for key, body in (("a", b"1"), ("b", b"2"), ("a", b"3"), ("a", b"4"), ("b", b"5")):
        world.send("arr", body, key=key)
    hand = world.fetch(member="m")
    by_key = {key: [(each.row.seq, each.row.body) for each in hand if each.row.key == key] for key in (b"a", b"b")}
    assert by_key == {b"a": [(1, b"1"), (2, b"3"), (3, b"4")], b"b": [(1, b"2"), (2, b"5")]}


def test_p7_several_messages_of_a_key_in_one_transaction(seq: World) -> None:
    """One transaction with numbers of two keys, given in any order, comes out by number; its places come back by index."""
    seq.topic("seq", Kind.SEQUENCE, lanes=2)
    parts = [("k", 3), ("j", 1), ("k", 1), ("k", 2), ("j", 2)]
    view = seq.submit(*(new_message("seq", b"%d" % n, index=i, key=key, sequence=n) for i, (key, n) in enumerate(parts)))
    assert [place.index for place in view.messages] == [0, 1, 2, 3, 4]
    hand = seq.fetch(member="a")
    assert [bodies([d for d in hand if d.row.key == key]) for key in (b"k", b"j")] == [[b"1", b"2", b"3"], [b"1", b"2"]]


def test_p2_each_message_of_a_transaction_follows_its_own_key(seq: World) -> None:
    """A decision is one, a release is by message: one is held, the unordered neighbour goes (R21)."""
    seq.topic("plain")
    view = seq.submit(new_message("seq", key="k", sequence=2), new_message("plain", index=1))
    assert [(place.held, place.offset) for place in view.messages] == [("gap", None), (None, 0)]


def test_offsets_have_no_hole_and_are_commit_order(world: World) -> None:
    """Offsets of a lane are 0, 1, 2 … in the order of decisions, also over a rolled-back function (R11b)."""
    world.topic()
    views = [world.prepare(new_message(body=b"%d" % i)) for i in range(5)]
    for at in (3, 0):
        world.commit(views[at])

    def fails(tx: Any) -> None:
        tx.release(world.store.tx.topic("plain"), 0, views[1].tx.n << 10, None, None, 0)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        world.store.do(fails)
    world.rollback(views[1].tx.id)
    for at in (4, 2):
        world.commit(views[at])
    log = dump(world.store.backend._conn)["log"]  # type: ignore[attr-defined]
    assert [(row[2], row[3] >> 10) for row in sorted(log, key=lambda row: row[2])] == [(i, views[at].tx.n) for i, at in enumerate((3, 0, 4, 2))]


def test_released_is_told_to_waiting_consumers(seq: World) -> None:
    """An event of its topic comes with each release and with none that is held."""
    topic = seq.store.tx.topic("seq")
    seq.store.events.clear()
    seq.sequence(2)
    assert ("released", topic.id) not in seq.store.events
    seq.sequence(1)
    assert seq.store.events.count(("released", topic.id)) == 2
