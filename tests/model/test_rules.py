"""The pure functions that drive the models, at their edges."""

from __future__ import annotations

import pytest

from halfmsg.coordinator import mark_rules, policies, release_rules
from halfmsg.coordinator.policies import Again, Dead, RetryPolicy
from halfmsg.coordinator.release_rules import Turn
from halfmsg.outbox import fence_rules, inbox_rules
from halfmsg.outbox.inbox_rules import Claim


@pytest.mark.parametrize(
    ("number", "redriven", "in_missed", "claim"),
    [
        (6, False, False, Claim.RUN),
        (9, True, True, Claim.RUN),
        (5, False, False, Claim.DUPLICATE),
        (4, True, False, Claim.DUPLICATE),
        (4, False, True, Claim.DUPLICATE),
        (4, True, True, Claim.RUN_MISSED),
    ],
)
def test_judge_runs_a_number_once(number: int, redriven: bool, in_missed: bool, claim: Claim) -> None:
    """R6: above last, or redriven and missed; all else is a duplicate."""
    assert inbox_rules.judge(last=5, number=number, redriven=redriven, in_missed=in_missed) is claim


def test_newly_missed_keeps_what_lies_between_last_and_number() -> None:
    """R6: what was named before is harmless, and the number itself is not missed."""
    assert inbox_rules.newly_missed(last=5, number=9, named=[8, 5, 6, 6, 9, 2, 11]) == [6, 8]


@pytest.mark.parametrize(
    ("number", "stopped", "held_by_other", "skipped", "turn"),
    [
        (5, False, False, False, Turn.RELEASE),
        (5, True, False, False, Turn.HOLD),
        (5, False, True, False, Turn.NUMBER_TAKEN),
        (6, False, False, False, Turn.HOLD),
        (6, False, True, False, Turn.NUMBER_TAKEN),
        (6, True, True, False, Turn.NUMBER_TAKEN),
        (4, False, False, True, Turn.LATE_AFTER_SKIP),
        (4, True, False, True, Turn.LATE_AFTER_SKIP),
        (4, False, False, False, Turn.NUMBER_TAKEN),
    ],
)
def test_turn_gives_a_number_to_one_message(number: int, stopped: bool, held_by_other: bool, skipped: bool, turn: Turn) -> None:
    """R5, R7, R14, with next = 5."""
    assert release_rules.turn(number=number, next_number=5, stopped=stopped, held_by_other=held_by_other, skipped=skipped) is turn


def test_marks_on_the_watermark_are_not_below_it() -> None:
    """R3 and R12 compare with <: a mark equal to a watermark is still good on both sides."""
    assert fence_rules.may_commit(7, 7) and fence_rules.may_lay(7, 7) and not fence_rules.may_delete(7, 7, True)
    assert not fence_rules.may_commit(6, 7) and not fence_rules.may_lay(6, 7) and fence_rules.may_delete(6, 7, True)
    assert not fence_rules.may_delete(6, 7, False)
    assert mark_rules.is_stale(6, 7) and not mark_rules.is_stale(7, 7)
    assert mark_rules.is_forgotten(6, 7) and not mark_rules.is_forgotten(7, 7)
    assert mark_rules.may_purge(6, 7, True) and not mark_rules.may_purge(6, 7, False) and not mark_rules.may_purge(7, 7, True)


def test_settled_before_stays_below_every_undecided_mark() -> None:
    """R3: the smallest mark of an undecided or parked transaction, else now; less the margin."""
    assert mark_rules.settled_before([], 100, 10) == 90
    assert mark_rules.settled_before([40, 70], 100, 10) == 30


def test_retry_doubles_the_wait_up_to_its_limit_and_then_gives_up() -> None:
    """1 s doubling to 600 s; the sixteenth failure is the last."""
    policy = RetryPolicy()
    waits = []
    attempts = 0
    while isinstance(after := policies.after_nack(policy, attempts=attempts, counts=True, delay_ms=None, now_ms=0), Again):
        waits.append(after.due_ms // 1000)
        attempts = after.attempts
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600, 600, 600]
    assert after == Dead(16)


def test_retry_never_gives_up_without_a_limit_or_without_a_charge() -> None:
    """`max_attempts` None holds for ever; a nack that does not count leaves the attempts as they are."""
    assert policies.after_nack(RetryPolicy(max_attempts=None), attempts=10**6, counts=True, delay_ms=None, now_ms=5) == Again(600_005, 10**6 + 1)
    assert policies.after_nack(RetryPolicy(max_attempts=2), attempts=1, counts=False, delay_ms=30, now_ms=5) == Again(35, 1)


def test_lease_end_charges_only_what_travelled_alone() -> None:
    """R24: a run of several charges nobody."""
    policy = RetryPolicy(max_attempts=2)
    assert policies.after_lease_end(policy, alone=False, attempts=1, now_ms=5) == Again(5, 1)
    assert policies.after_lease_end(policy, alone=True, attempts=0, now_ms=5) == Again(1_005, 1)
    assert policies.after_lease_end(policy, alone=True, attempts=1, now_ms=5) == Dead(2)


@pytest.mark.parametrize(("lanes", "members", "lanes_each"), [(64, 1, 64), (64, 3, 22), (8, 8, 1), (1, 5, 1), (8, 0, 8)])
def test_share_rounds_up(lanes: int, members: int, lanes_each: int) -> None:
    """Every lane finds a member."""
    assert policies.share(lanes, members) == lanes_each


@pytest.mark.parametrize("wrong", [{"max_attempts": 0}, {"backoff_first_s": 0}, {"backoff_first_s": 700}])
def test_retry_policy_refuses_what_cannot_work(wrong: dict[str, int]) -> None:
    """Half-specified or impossible settings are refused when they are made."""
    with pytest.raises(ValueError):
        RetryPolicy(**wrong)
