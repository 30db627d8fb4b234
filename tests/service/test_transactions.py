"""Prepare, submit, commit, rollback, verdicts and operators, through the real functions, cell by cell of the state table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from halfmsg.coordinator.errors import Problem
from halfmsg.coordinator.messages import By, Decision, Full, Kind, Tx
from halfmsg.coordinator.service import producers, transactions, verdicts
from halfmsg.coordinator.settings import Producers, Settings
from halfmsg.coordinator.states import TABLE, Event, Outcome, State, Step
from tests.support.factories import PRODUCER, World, an_id, content, new_message, parked_transaction, rolled_back_transaction, transaction_in
from tests.support.stores import changed, dump

ID = an_id(77)
UNKNOWN_N = 999_999


def _tx(known: Tx | None) -> Tx:
    """The known one, or a stand-in for an id that nobody has seen."""
    return known or Tx(UNKNOWN_N, ID, 1, State.PREPARED, b"d" * 16, 1, 0, 0, None, None, 0, None, None)


def _commit(world: World, known: Tx | None, digest: bytes | None) -> Any:
    return world.store.run(transactions.decide, Decision(_tx(known).id, True, PRODUCER, None, digest))


SAY: dict[Event, Callable[[World, Tx | None], Any]] = {
    Event.PREPARE: lambda w, t: w.prepare(new_message(), id=_tx(t).id),
    Event.SUBMIT: lambda w, t: w.submit(new_message(), id=_tx(t).id),
    Event.DIFFERS: lambda w, t: w.prepare(new_message(body=b"other"), id=_tx(t).id),
    Event.COMMIT: lambda w, t: _commit(w, t, _tx(t).digest),
    Event.COMMIT_INCOMPLETE: lambda w, t: _commit(w, t, b"x" * 16),
    Event.ROLLBACK: lambda w, t: w.rollback(_tx(t).id),
    Event.VERDICT_COMMITTED: lambda w, t: w.ruling(_tx(t), "committed", digest=_tx(t).digest),
    Event.VERDICT_INCOMPLETE: lambda w, t: w.ruling(_tx(t), "committed"),
    Event.VERDICT_ROLLED_BACK: lambda w, t: w.ruling(_tx(t), "rolled_back"),
    Event.RUNNING: lambda w, t: w.ruling(_tx(t), "running"),
    Event.NO_ANSWER: lambda w, t: w.ruling(_tx(t), "no_answer"),
    Event.UNKNOWN: lambda w, t: w.ruling(_tx(t), "unknown"),
    Event.UNKNOWN_LAST: lambda w, t: w.ruling(_tx(t), "unknown", used_up=True),
    Event.MAX_AGE: lambda w, t: w.ruling(_tx(t), "running", too_old=True),
    Event.PARK: lambda w, t: w.park(_tx(t).id),
    Event.FORCE_COMMIT: lambda w, t: w.force(_tx(t).id, commit=True),
    Event.FORCE_ROLLBACK: lambda w, t: w.force(_tx(t).id, commit=False),
}
FROM_CHECK = {Event.VERDICT_COMMITTED, Event.VERDICT_INCOMPLETE, Event.VERDICT_ROLLED_BACK, Event.RUNNING, Event.NO_ANSWER, Event.UNKNOWN,
              Event.UNKNOWN_LAST, Event.MAX_AGE}  # fmt: skip
CELLS = [pytest.param(event, state, step, id=f"{event}-{'none' if state is None else state.word}") for event, row in TABLE.items()
         for state, step in row.items()]  # fmt: skip


def _dump(world: World) -> Any:
    return dump(world.store.backend._conn)  # type: ignore[attr-defined]


def _outcome(world: World, event: Event, known: Tx | None) -> str:
    """What the sayer is told: `ok`, `ignored`, or a code."""
    try:
        told = SAY[event](world, known)
    except Problem as problem:
        return problem.code
    if event not in FROM_CHECK:
        return "ok"
    return {"ignored": "ignored", "incomplete": "incomplete_decision"}.get(told, "ok")


@pytest.mark.parametrize(("event", "state", "step"), CELLS)
def test_p4_state_table_is_what_the_functions_do(world: World, event: Event, state: State | None, step: Step) -> None:
    """Each cell of the table: the state after, the word that is told, the conflict that is listed, and nothing else stored by a refusal."""
    world.topic()
    known = transaction_in(world, state)
    before = _dump(world)
    told = _outcome(world, event, known)
    after = _dump(world)

    assert told == step.outcome
    found = world.store.tx.find(_tx(known).id)
    assert (None if found is None else found.state) is step.to
    listed = len(after["conflict"]) - len(before["conflict"])
    assert listed == (1 if step.listed or (step.outcome is Outcome.INCOMPLETE and event in FROM_CHECK) else 0)
    if step.outcome is not Outcome.OK:
        may_note = {"conflict", "tx_note"} if event in FROM_CHECK else {"conflict"}
        if step.outcome is Outcome.INCOMPLETE and event in FROM_CHECK:
            may_note.add("tx")  # asked again later, with the reason
        assert changed(before, after).keys() <= may_note


@pytest.mark.parametrize("event", [Event.COMMIT, Event.SUBMIT, Event.ROLLBACK, Event.VERDICT_COMMITTED, Event.VERDICT_ROLLED_BACK])
@pytest.mark.parametrize("state", [State.COMMITTED, State.ROLLED_BACK])
def test_p4_a_decided_transaction_keeps_every_byte(world: World, event: Event, state: State) -> None:
    """Whatever is said after the decision, the record, the bodies and the log stay as they are."""
    world.topic()
    known = transaction_in(world, state)
    before = _dump(world)
    _outcome(world, event, known)
    assert changed(before, _dump(world)).keys() <= {"conflict", "tx_note"}


def test_p4_conflict_carries_the_stored_decision(world: World) -> None:
    """The refusal of an opposite word brings the transaction as it stands."""
    world.topic()
    view = rolled_back_transaction(world)
    with pytest.raises(Problem) as refused:
        world.commit(view)
    assert (refused.value.code, refused.value.members["transaction"].tx.state) == ("decided_otherwise", State.ROLLED_BACK)


def test_p4_same_contrary_word_is_listed_once(world: World) -> None:
    """A relay that repeats itself every second does not fill the conflict list."""
    world.topic()
    view = rolled_back_transaction(world)
    for _ in range(3):
        with pytest.raises(Problem):
            world.commit(view)
    assert len(_dump(world)["conflict"]) == 1


def test_p1_half_message_is_handed_to_nobody(world: World) -> None:
    """Prepared and parked messages are in no lane, and a group gets nothing."""
    world.topic()
    world.group()
    world.prepare()
    parked_transaction(world)
    assert world.fetch() == []
    assert _dump(world)["log"] == []


def test_p1_rollback_deletes_the_bodies(world: World) -> None:
    """What was rolled back is gone; its record stays, so that a late prepare meets it."""
    world.topic("seq", Kind.SEQUENCE)
    view = rolled_back_transaction(world, new_message("seq", key="k"))
    after = _dump(world)
    assert after["message"] == [] and after["open_key"] == []
    assert world.find(view.tx.id).state is State.ROLLED_BACK


def test_rollback_of_an_unknown_id_meets_a_late_prepare(world: World) -> None:
    """A rollback that overtakes its prepare is stored, and the late prepare is told so (R12)."""
    world.topic()
    world.rollback(ID)
    assert world.prepare(new_message(), id=ID).tx.state is State.ROLLED_BACK
    with pytest.raises(Problem, match="decided_otherwise"):
        world.submit(new_message(), id=ID)
    assert _dump(world)["message"] == []


def test_p2_force_rollback_keeps_the_bodies(world: World) -> None:
    """An operator may be wrong: the body stays until the record is purged, and the act is audited (R4)."""
    world.topic()
    view = parked_transaction(world)
    world.force(view.tx.id, commit=False)
    after = _dump(world)
    assert len(after["message"]) == 1
    assert [(row[2], row[3]) for row in after["audit"]] == [("operator", "tx.park"), ("operator", "tx.rollback")]
    assert world.find(view.tx.id).decided_by is By.OPERATOR


def test_p1_forced_commit_is_flagged_on_the_delivery(world: World) -> None:
    """Who gets a forced message can see that no producer said so."""
    world.topic()
    world.group()
    world.force(parked_transaction(world).tx.id, commit=True)
    assert [each.row.by for each in world.fetch()] == [By.OPERATOR]


def test_force_commit_of_an_ordered_message_needs_its_number(world: World) -> None:
    """An operator cannot guess a number: refused, nothing stored, not even the audit line (R4)."""
    world.topic("seq", Kind.SEQUENCE)
    view = parked_transaction(world, new_message("seq", key="k"))
    before = _dump(world)
    with pytest.raises(Problem, match="incomplete_decision"):
        world.force(view.tx.id, commit=True)
    assert changed(before, _dump(world)) == {}
    assert world.force(view.tx.id, commit=True, numbers=(1,)).tx.state is State.COMMITTED


def test_force_with_if_state_is_refused_when_the_state_changed(world: World) -> None:
    """An operator who looked a minute ago decides what was looked at, or nothing."""
    world.topic()
    view = parked_transaction(world)
    with pytest.raises(Problem, match="state_changed"):
        world.force(view.tx.id, commit=True, if_state="prepared")
    assert world.find(view.tx.id).state is State.PARKED


def test_p5_contrary_verdict_after_a_force_is_listed(world: World) -> None:
    """The producer's later word against a forced decision stands in the conflict list with both."""
    world.topic()
    view = parked_transaction(world)
    world.force(view.tx.id, commit=False)
    assert world.ruling(view.tx, "committed", digest=view.tx.digest) == "ignored"
    assert [row[3:6] for row in _dump(world)["conflict"]] == [("rolled_back", "committed", "check_back")]


def test_p5_rollback_said_after_a_forced_commit_is_listed(world: World) -> None:
    """The operator guessed wrong and the messages are out: the producer hears of it, and so must the operator."""
    world.topic()
    id = parked_transaction(world).tx.id
    world.force(id, commit=True)
    for _ in range(2):
        with pytest.raises(Problem, match="decided_otherwise"):
            world.rollback(id)
    assert [row[3:6] for row in _dump(world)["conflict"]] == [("committed", "rollback", "producer")]


def test_p5_other_numbers_said_after_a_forced_commit_are_listed(world: World) -> None:
    """The number that the operator gave is another message's."""
    world.topic("seq", Kind.SEQUENCE)
    parked = parked_transaction(world, new_message("seq", key="k"))
    world.force(parked.tx.id, commit=True, numbers=(1,))
    with pytest.raises(Problem, match="content_differs"):
        world.commit(parked, numbers=(2,))
    assert [row[3:6] for row in _dump(world)["conflict"]] == [("committed", "commit", "producer")]


# --- who speaks, and the door ---


def test_only_the_preparing_producer_decides(world: World) -> None:
    """Another producer's commit and rollback are wrong_source and change nothing."""
    world.topic()
    world.store.run(producers.put, producers.ProducerWanted("other", "http://127.0.0.1:1/", "halfmsg", lambda n: b"s" * n))
    view = world.prepare()
    before = _dump(world)
    for commit in (True, False):
        with pytest.raises(Problem, match="wrong_source"):
            world.store.run(transactions.decide, Decision(view.tx.id, commit, "other", None, view.tx.digest))
    assert changed(before, _dump(world)) == {}


def test_p5_a_name_is_bound_to_one_database(world: World) -> None:
    """A second database under the name, and a second name for the database, are wrong_source (R7)."""
    world.store.run(producers.hello, producers.Hello(PRODUCER, b"A" * 16))
    with pytest.raises(Problem, match="wrong_source"):
        world.store.run(producers.hello, producers.Hello(PRODUCER, b"B" * 16))
    with pytest.raises(Problem, match="wrong_source"):
        world.store.run(producers.hello, producers.Hello(PRODUCER, None))
    world.store.run(producers.put, producers.ProducerWanted("other", None, "halfmsg", lambda n: b"s" * n))
    with pytest.raises(Problem, match="wrong_source"):
        world.store.run(producers.hello, producers.Hello("other", b"A" * 16))


def test_p5_another_database_under_the_name_decides_nothing(world: World) -> None:
    """Staging answers for production: its commit, rollback and submit of an id that another database prepared are wrong_source (R7)."""
    world.topic()
    world.store.run(producers.hello, producers.Hello(PRODUCER, b"A" * 16))
    said = content(ID)
    view = world.store.run(transactions.store_content, structs.replace(said, source=b"A" * 16))
    before = _dump(world)
    for source in (b"B" * 16, None):
        for commit in (True, False):
            with pytest.raises(Problem, match="wrong_source"):
                world.store.run(transactions.decide, Decision(ID, commit, PRODUCER, source, view.tx.digest))
        with pytest.raises(Problem, match="wrong_source"):
            world.store.run(transactions.store_content, structs.replace(said, source=source, submit=True))
    assert changed(before, _dump(world)) == {}
    assert world.store.run(transactions.decide, Decision(ID, True, PRODUCER, b"A" * 16, view.tx.digest)).tx.state is State.COMMITTED


def test_frozen_source_is_refused(world: World) -> None:
    """A producer whose database went back in time prepares nothing until an operator confirms (R7)."""
    world.topic()
    world.store.do(lambda tx: tx.conn.execute("UPDATE source SET frozen = 1"))
    world.store.tx.forget()
    with pytest.raises(Problem, match="source_frozen"):
        world.prepare()


@pytest.mark.parametrize(("column", "code", "submit"), [("settled_told", "stale_mark", False), ("forgotten_before", "forgotten", False),
                                                        ("forgotten_before", "forgotten", True)])  # fmt: skip
def test_p5_mark_below_what_was_told_is_refused(world: World, column: str, code: str, submit: bool) -> None:
    """A prepare older than what the producer may have purged stores nothing; one at the edge goes in (R3, R12)."""
    world.topic()
    world.store.do(lambda tx: tx.conn.execute(f"UPDATE source SET {column} = 100"))
    world.store.tx.forget()
    before = _dump(world)
    with pytest.raises(Problem) as refused:
        world.prepare(new_message(), submit=submit, mark=99)
    assert refused.value.code == code
    assert changed(before, _dump(world)) == {}
    assert world.prepare(new_message(), submit=submit, mark=100).created


def test_stale_mark_does_not_refuse_a_submit(world: World) -> None:
    """A relay row is its own witness: only a prepare could not be answered for."""
    world.topic()
    world.store.do(lambda tx: tx.conn.execute("UPDATE source SET settled_told = 100"))
    world.store.tx.forget()
    assert world.submit(new_message(), mark=99).tx.state is State.COMMITTED


def test_p9_too_many_in_doubt_refuses_prepare_and_never_a_decision(world: World) -> None:
    """At the limit a prepare is refused; submit, commit and rollback go on, and make room (R20)."""
    world.topic()
    world.store.env.settings = Settings(producer=Producers(max_in_doubt=2))
    first, second = world.prepare(), world.prepare()
    with pytest.raises(Problem, match="too_many_in_doubt"):
        world.prepare()
    world.submit()
    world.commit(first)
    world.prepare()
    with pytest.raises(Problem, match="too_many_in_doubt"):
        world.prepare()
    world.park(second.tx.id)
    assert world.prepare().tx.state is State.PREPARED


def test_p9_the_door_refuses_content_and_never_a_decision(world: World) -> None:
    """Low disk and a full topic refuse prepare and submit with nothing stored; commit goes through."""
    topic = world.topic()
    open_one = world.prepare()
    before = _dump(world)
    for word in ("storage_full", "backlog_full"):
        world.store.env.storage_low = word == "storage_full"
        world.store.env.full = Full(topics=frozenset({topic.id}))
        for submit in (True, False):
            with pytest.raises(Problem, match=word):
                world.prepare(submit=submit)
    assert changed(before, _dump(world)) == {}
    assert world.commit(open_one).tx.state is State.COMMITTED


def test_p2_topic_without_a_group_refuses(world: World) -> None:
    """Nobody would get it: no_group, unless the topic was made to allow that (R17)."""
    world.topic("lonely", allow_no_group=False)
    with pytest.raises(Problem, match="no_group"):
        world.send("lonely")
    world.group("g", "lonely")
    world.send("lonely")


@pytest.mark.parametrize(
    ("kind", "key", "plain", "word"),
    [
        (Kind.UNORDERED, "k", True, "unordered"),
        (Kind.SEQUENCE, None, False, "needs a key"),
        (Kind.ARRIVAL, None, True, "needs a key"),
        (Kind.SEQUENCE, "k", True, "outbox"),
        (Kind.ARRIVAL, "k", False, "plain sends only"),
    ],
)
def test_p7_combinations_that_cannot_be_kept_are_refused_by_name(world: World, kind: Kind, key: str | None, plain: bool, word: str) -> None:
    """A key means order: what would strip it or fake it is combination_refused (R10, R22)."""
    world.topic("t", kind)
    with pytest.raises(Problem, match=f"combination_refused.*{word}"):
        world.submit(new_message("t", key=key, sequence=1), producer=None if plain else PRODUCER)


def test_half_message_needs_a_way_to_ask(world: World) -> None:
    """A producer without a URL that never said hello cannot be asked, so its half message is refused; hello mends it."""
    world.topic()
    world.store.run(producers.put, producers.ProducerWanted("mute", None, "halfmsg", lambda n: b"s" * n))
    with pytest.raises(Problem, match="no_way_to_ask"):
        world.prepare(new_message(), producer="mute")
    world.store.run(producers.hello, producers.Hello("mute", None))
    assert world.prepare(new_message(), producer="mute").tx.state is State.PREPARED


def test_p5_sequence_needs_all_numbers_and_the_digest(world: World) -> None:
    """A commit without one of the numbers decides nothing (R5)."""
    world.topic("seq", Kind.SEQUENCE)
    view = world.prepare(new_message("seq", key="a"), new_message("seq", key="b", index=1))
    for numbers in (None, (), (1,), (1, None), (None, 1)):
        with pytest.raises(Problem, match="incomplete_decision"):
            world.commit(view, numbers=numbers)
    assert world.find(view.tx.id).state is State.PREPARED
    assert world.commit(view, numbers=(1, 1)).tx.state is State.COMMITTED


def test_p4_commit_again_with_other_numbers_differs(world: World) -> None:
    """The same decision with another number is not the same decision (R30), wherever the message stands."""
    world.topic("seq", Kind.SEQUENCE)
    released = world.prepare(new_message("seq", key="a"))
    held = world.prepare(new_message("seq", key="b"))
    world.commit(released, numbers=(1,))
    world.commit(held, numbers=(5,))
    for view, number in ((released, 1), (held, 5)):
        assert world.commit(view, numbers=(number,)).tx.state is State.COMMITTED
        with pytest.raises(Problem, match="content_differs"):
            world.commit(view, numbers=(number + 1,))


def test_verdicts_cost_attempts_only_for_unknown(world: World) -> None:
    """running and no_answer cost nothing; unknown costs one (R15)."""
    world.topic()
    tx = world.prepare().tx
    for word, attempts in (("running", 0), ("no_answer", 0), ("unknown", 1), ("no_answer", 1), ("unknown", 2)):
        assert world.ruling(tx, word) == "waiting"
        assert world.find(tx.id).attempts == attempts


def test_p5_used_up_or_too_old_is_parked_and_never_decided(world: World) -> None:
    """The last `unknown`, and the end of patience, park: no policy answers for a producer (R4)."""
    world.topic()
    for word, why in (("unknown", {"used_up": True}), ("no_answer", {"too_old": True}), ("running", {"too_old": True})):
        tx = world.prepare().tx
        assert world.ruling(tx, word, **why) == "parked"
        assert world.find(tx.id).state is State.PARKED
    assert len(_dump(world)["message"]) == 3


def test_p5_ruling_decides_its_own_transaction_alone(world: World) -> None:
    """Of three of one producer the second is ruled: the first and the third stay as they were (R7)."""
    world.topic()
    first, second, third = (world.prepare().tx for _ in range(3))
    assert world.ruling(second, "committed", digest=second.digest) == "committed"
    assert [world.find(tx.id).state for tx in (first, second, third)] == [State.PREPARED, State.COMMITTED, State.PREPARED]
    assert world.ruling(third, "rolled_back") == "rolled_back"
    assert [world.find(tx.id).state for tx in (first, second, third)] == [State.PREPARED, State.COMMITTED, State.ROLLED_BACK]


def test_p5_parked_is_decided_by_a_late_verdict(world: World) -> None:
    """Parked is not lost: the producer's verdict and word still decide it."""
    world.topic()
    first, second = parked_transaction(world), parked_transaction(world)
    assert world.ruling(first.tx, "committed", digest=first.tx.digest) == "committed"
    assert world.rollback(second.tx.id).tx.state is State.ROLLED_BACK


def test_claimed_checks_are_not_due_again_before_their_lease(world: World) -> None:
    """Two ticks do not ask about the same transaction; after the lease it is due again."""
    world.topic()
    world.prepare()
    claim = verdicts.ClaimDue({world.source.id: 10}, 30_000)
    assert world.store.run(verdicts.claim_due, claim) == []
    world.later(5)
    assert len(world.store.run(verdicts.claim_due, claim)) == 1
    assert world.store.run(verdicts.claim_due, claim) == []
    world.later(30)
    assert len(world.store.run(verdicts.claim_due, claim)) == 1


def test_parked_is_asked_daily_and_at_hello(world: World) -> None:
    """Parked ones are asked once a day, and at once when their producer says hello (R4)."""
    world.topic()
    parked_transaction(world)
    claim = verdicts.ClaimDue({world.source.id: 10}, 30_000)
    assert world.store.run(verdicts.claim_parked, claim) == []
    world.store.run(producers.hello, producers.Hello(PRODUCER, None))
    assert len(world.store.run(verdicts.claim_parked, claim)) == 1
    assert world.store.run(verdicts.claim_parked, claim) == []
    world.later(86_400)
    assert len(world.store.run(verdicts.claim_parked, claim)) == 1


def test_p2_every_parked_transaction_is_asked_however_many_there_are(world: World) -> None:
    """A thousand parked ones that are not due do not hide the one behind them that is (R4)."""
    world.topic()
    source = world.source.id
    rows = ((n, an_id(n), source, world.now + (1 << 40 if n <= 1_000 else -1)) for n in range(1, 1_002))
    sql = "INSERT INTO tx (n, ns, id, source, state, digest, msgs, mark, first_at, next_check) VALUES (?, 1, ?, ?, 3, x'00', 0, 0, 0, ?)"
    world.store.do(lambda tx: tx.conn.executemany(sql, rows))
    assert [due.tx.n for due in world.store.run(verdicts.claim_parked, verdicts.ClaimDue({source: 10}, 30_000))] == [1_001]


def test_p2_what_a_dead_process_was_asking_is_due_at_start(world: World) -> None:
    """A claim hides a check for its lease; a new process, which owns the file alone, asks at once."""
    world.topic()
    world.prepare()
    claim = verdicts.ClaimDue({world.source.id: 10}, 30_000)
    world.later(3_600)
    assert len(world.store.run(verdicts.claim_due, claim)) == 1
    assert world.store.run(verdicts.claim_due, claim) == []
    assert world.store.run(verdicts.unclaim_all, None) == 1
    assert len(world.store.run(verdicts.claim_due, claim)) == 1


def test_p2_parked_one_that_a_dead_process_was_asking_is_due_at_start(world: World) -> None:
    """Its one question a day is not lost with the process that was asking it (R4)."""
    world.topic()
    parked_transaction(world)
    claim = verdicts.ClaimDue({world.source.id: 10}, 30_000)
    assert world.store.run(verdicts.unclaim_all, None) == 0
    world.later(90_000)
    assert len(world.store.run(verdicts.claim_parked, claim)) == 1
    assert world.store.run(verdicts.claim_parked, claim) == []
    assert world.store.run(verdicts.unclaim_all, None) == 1
    assert len(world.store.run(verdicts.claim_parked, claim)) == 1


def test_check_that_waits_for_its_time_is_not_due_at_start(world: World) -> None:
    """Only what was under way is asked anew: a restart costs no attempts."""
    world.topic()
    world.prepare()
    assert world.store.run(verdicts.unclaim_all, None) == 0
