"""The checker finds what is planted: a right history passes, and a wrong one of each kind is found by that kind."""

from __future__ import annotations

import ast
import random
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import checker, history

from .corruptions import CORRUPTIONS, FATES, GROUPS, TOPICS, Books, Event, Spoil, at, right


def spoiled(seed: int, fates: list[str], spoil: Spoil) -> checker.Verdict:
    events = [dict(event) for event in right(seed, fates)]
    spoil(events, random.Random(seed).choice)
    return checker.check(events)


def test_a_right_history_passes() -> None:
    """Nothing is found where nothing is wrong, and the history is not empty."""
    events = right(1, list(FATES) * 3)
    assert {event["event"] for event in events} >= {"committed", "sent", "effect", "dead", "decided", "undecided", "acknowledged", "rolled_back"}
    assert checker.check(events).counts() == dict.fromkeys(checker.Verdict().counts(), 0)


@pytest.mark.parametrize(("kind", "spoil"), CORRUPTIONS, ids=lambda each: getattr(each, "__name__", str(each)))
def test_each_planted_wrong_is_found_by_its_kind(kind: str, spoil: Spoil) -> None:
    """One thing is spoiled, and the kind that names it is not empty."""
    verdict = spoiled(1, ["dead", "dead"], spoil)
    assert kind in verdict.found()
    assert not verdict.ok


def test_every_kind_has_a_planted_wrong() -> None:
    """A kind that nothing is planted for could be blind."""
    assert {kind for kind, _ in CORRUPTIONS} == {kind.name for kind in fields(checker.Verdict)}


fates = st.lists(st.sampled_from(FATES), max_size=30)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32), fates)
def test_random_right_histories_pass(seed: int, drawn: list[str]) -> None:
    """Whatever services and handlers do that is legal, the checker is silent."""
    assert checker.check(right(seed, drawn)).ok


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32), fates, st.sampled_from(CORRUPTIONS))
def test_random_single_corruptions_are_found(seed: int, drawn: list[str], planted: tuple[str, Spoil]) -> None:
    """One wrong thing among many right ones is found, by its kind."""
    kind, spoil = planted
    assert kind in spoiled(seed, [*drawn, "dead"], spoil).found()


def test_a_number_passed_over_is_right_where_it_is_a_dead_letter() -> None:
    """Rejected number 2 of a key lets number 3 go on, in that group alone (P7)."""
    books = Books(random.Random(1))
    for number, fate in ((1, "effect"), (2, "dead"), (3, "effect")):
        message = {"transaction": f"t{number}", "producer": "p", "message": f"t{number}-0", "topic": "orders", "key": "k", "sequence": number}
        books.truth.append(books.event("committed", digest="d", **message))
        for group in GROUPS:
            if fate == "effect" or group == "stock":
                books.effects.append(books.event("effect", group=group, digest="d", **message))
        books.rest += [books.event("decided", transaction=f"t{number}", state="committed", final=True)]
    books.rest.append(books.event("dead", group="billing", topic="orders", message="t2-0", reason="rejected"))
    assert checker.check(books.events).ok
    del books.rest[-1]
    assert checker.check(books.events).found() == {"lost", "inverted"}


def test_a_group_is_owed_only_what_came_after_it() -> None:
    """P2 counts the groups that stood (R17)."""
    events = right(5, [])
    late = {"at": 1_000.0, "process": "test", "event": "group", "group": "late", "topics": list(TOPICS)}
    assert checker.check([late, *events]).ok


def test_the_checker_and_the_format_know_nothing_of_halfmsg() -> None:
    """A mistake of the library must not hide in its own judge."""
    for module in (checker, history):
        tree = ast.parse(Path(module.__file__ or "").read_text())
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name.startswith("halfmsg")]


def test_a_history_file_keeps_every_event_and_forgives_a_torn_end(tmp_path: Path) -> None:
    """What is written is read, in order, with its letters; half a last line is what a power failure leaves."""
    writer = history.Writer(tmp_path / "h.jsonl", "p")
    writer.add("effect", message="ü", number=1)
    writer.copy([{"at": 2.0, "process": "q", "event": "dead"}])
    writer.close()
    with (tmp_path / "h.jsonl").open("ab") as file:
        file.write(b'{"at": 3.0, "pro')
    first, second = history.read(tmp_path / "h.jsonl")
    assert (first["process"], first["event"], first["message"]) == ("p", "effect", "ü")
    assert second == {"at": 2.0, "process": "q", "event": "dead"}


def test_a_digest_differs_in_each_part() -> None:
    """No two messages that a reader can tell apart have one digest."""
    base: tuple[Any, ...] = ("t", "k", "g", "text/plain", {"a": "b"}, b"body")
    others: list[Any] = [("u", None, None, "x/y", {}, b"")[n] for n in range(6)]
    changed = [[*base[:n], others[n], *base[n + 1 :]] for n in range(6)]
    digests = {history.content_digest(*each) for each in [base, *changed]}
    assert len(digests) == 7


# --- sends in order of arrival, and decisions by hand ---


def arrivals() -> list[Event]:
    """Two groups that have four sends of one key in order; the third is dead in both, so its number is seen nowhere."""
    events: list[Event] = [{"at": 0.0, "process": "t", "event": "group", "group": group, "topics": ["till"]} for group in GROUPS]
    events.append({"at": 0.0, "process": "t", "event": "topic", "topic": "till", "kind": "arrival"})
    for number in range(1, 5):
        message = {"transaction": f"a{number}", "message": f"a{number}-0", "topic": "till", "key": "k", "digest": "d"}
        events.append({"at": 2.0 * number, "process": "t", "event": "sent", "sequence": None, **message})
        events.append({"at": 2.0 * number + 1, "process": "t", "event": "acknowledged", "what": "send", "state": "committed", **message})
        events.append({"at": 99.0, "process": "t", "event": "decided", "state": "committed", "final": True, **message})
        for group in GROUPS:
            if number == 3:
                events.append({"at": 99.0, "process": "t", "event": "dead", "group": group, "reason": "rejected", **message})
            else:
                events.append({"at": 99.0, "process": "t", "event": "effect", "group": group, "producer": None, "sequence": number, **message})
    return events


def test_sends_in_order_of_arrival_are_right() -> None:
    assert checker.check(arrivals()).ok


def _swap_numbers(events: list[Event]) -> None:
    """Begun after the other was acknowledged, and before it for everybody."""
    for event in events:
        if event["event"] == "effect" and event["message"] in ("a1-0", "a2-0"):
            event["message"], event["transaction"] = ("a2-0", "a2") if event["message"] == "a1-0" else ("a1-0", "a1")


def _two_numbers(events: list[Event]) -> None:
    event = events[at(events, "effect", group="billing", message="a4-0")[0]]
    event["sequence"] = 5


def _a_number_twice(events: list[Event]) -> None:
    for event in events:
        if event["event"] == "effect" and event["message"] == "a4-0":
            event["sequence"] = 2


def _one_too_many_missing(events: list[Event]) -> None:
    """One is dead, and two numbers are passed over."""
    for event in events:
        if event["event"] == "effect" and event["message"] == "a4-0":
            event["sequence"] = 5


def _no_numbers(events: list[Event]) -> None:
    for event in events:
        if event["event"] == "effect":
            event["sequence"] = None


def _excused_by_a_later_one(events: list[Event]) -> None:
    """Number 3 was passed over; what is dead was begun when number 4 was acknowledged already."""
    events[at(events, "sent", message="a3-0")[0]]["at"] = 50.0


@pytest.mark.parametrize(
    "spoil", [_swap_numbers, _two_numbers, _a_number_twice, _one_too_many_missing, _no_numbers, _excused_by_a_later_one]
)  # fmt: skip
def test_order_of_arrival_that_is_spoiled_is_seen(spoil: Callable[[list[Event]], None]) -> None:
    events = arrivals()
    spoil(events)
    assert "inverted" in checker.check(events).found()


def test_sends_that_overlap_may_take_either_order() -> None:
    """The second began before the first was acknowledged."""
    events = arrivals()
    _swap_numbers(events)
    events[at(events, "sent", message="a2-0")[0]]["at"] = 2.5
    assert checker.check(events).ok


def forced(state: str, word: str) -> list[Event]:
    """Parked, decided by hand; then its producer says the other, is refused, and the word is listed."""
    books = Books(random.Random(1))
    message = {"transaction": "f1", "producer": "shop-a", "message": "f1-0", "topic": "notes", "key": None, "sequence": None, "digest": "d"}
    if word == "commit":
        books.truth.append(books.event("committed", **message))
    elif state == "committed":
        books.effects.append(books.event("effect", group="billing", generation=1, redriven=False, **message))
    return [
        *books.events,
        books.event("decided", transaction="f1", state=state, by="operator", final=True),
        books.event("answered", transaction="f1", state=state, what=word, code="decided_otherwise"),
        books.event("decided", transaction="f1", state="committed" if word == "commit" else "rolled_back", by="fence"),
        books.event("forced", transaction="f1", state=state),
        books.event("conflict", transaction="f1"),
    ]


@pytest.mark.parametrize(("state", "word", "kinds"), [("committed", "rollback", {"ghost", "changed"}), ("rolled_back", "commit", {"changed"})])
def test_decision_by_hand_is_excused_and_has_to_be_listed(state: str, word: str, kinds: set[str]) -> None:
    """R4: P1, P2 and P5 speak of decisions that were not forced; the producer's contrary word is in a list."""
    events = forced(state, word)
    assert checker.check(events).ok
    assert checker.check(events[:-1]).found() == {"changed"}
    assert checker.check([event for event in events if event["event"] != "forced"]).found() == kinds


def test_success_answer_against_a_decision_by_hand_is_seen() -> None:
    events = forced("rolled_back", "commit")
    events.append({"at": 1.0, "process": "t", "event": "acknowledged", "what": "commit", "transaction": "f1", "state": "committed"})
    assert checker.check(events).found() == {"acknowledged_lost"}


def test_decision_by_hand_excuses_no_more_than_itself() -> None:
    """What was rolled back is given to nobody; a decision by hand stays; only the list of conflicts is the list; all groups get one body."""
    about = {"transaction": "f1", "producer": "shop-a", "message": "f1-0", "topic": "notes", "key": None, "sequence": None}
    rolled_back, committed = forced("rolled_back", "commit"), forced("committed", "rollback")
    books = Books(random.Random(1))
    given = books.event("effect", group="billing", generation=1, redriven=False, digest="d", **about)
    assert checker.check([*rolled_back, given]).found() == {"ghost"}
    turned = books.event("decided", transaction="f1", state="rolled_back", by="operator")
    assert checker.check([*[each for each in committed if each.get("by") != "fence"], turned]).found() == {"changed"}
    aside = books.event("refused", transaction="f1")
    assert checker.check([*rolled_back[:-1], aside]).found() == {"changed"}
    groups = [books.event("effect", group="stock", generation=1, redriven=False, digest=digest, **about) for digest in ("d", "other")]
    standing = {"at": 0.0, "process": "t", "event": "group", "group": "stock", "topics": ["orders", "notes"]}
    events = [each for each in committed if not (each["event"] == "group" and each["group"] == "stock")]
    assert checker.check([standing, *events, groups[0]]).found() <= {"lost"}
    assert "wrong_body" in checker.check([standing, *events, groups[1]]).found()


def test_conflict_that_is_committed_is_owed_all_the_same() -> None:
    """A contrary word is listed, and the message goes to every group."""
    events = right(3, [])
    message = events[at(events, "committed")[0]]["message"]
    kept = [each for each in events if not (each["event"] == "effect" and each["message"] == message)]
    conflict = {"at": 9.0, "process": "t", "event": "conflict", "transaction": message.rpartition("-")[0]}
    assert "lost" in checker.check([*kept, conflict]).found()
