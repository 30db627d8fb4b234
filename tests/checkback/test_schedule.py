"""When to ask, and whom to spare."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfmsg.checkback import schedule
from halfmsg.checkback.schedule import Breaker, CheckPolicy
from halfmsg.checkback.verdict import Result

POLICY = CheckPolicy()
NOW = 1_700_000_000_000
MIDDLE = 0.5  # no jitter


@pytest.mark.parametrize(("attempts", "seconds"), [(1, 5), (2, 10), (3, 20), (6, 160), (7, 300), (30, 300), (100_000, 300)])
def test_r15_unknown_doubles_the_interval_up_to_the_longest(attempts: int, seconds: int) -> None:
    """5 s after the first unknown, then doubling, never past five minutes."""
    assert schedule.next_check_ms(POLICY, NOW, attempts, Result.UNKNOWN, MIDDLE) == NOW + seconds * 1000


@pytest.mark.parametrize("result", [result for result in Result if result is not Result.UNKNOWN])
def test_r15_any_other_result_is_asked_again_after_the_first_delay(result: Result) -> None:
    """Who could not be reached is not punished with a longer wait."""
    assert schedule.next_check_ms(POLICY, NOW, 25, result, 0.0) == NOW + 5000


@given(attempts=st.integers(0, 10**9), rand=st.floats(0, 1, exclude_max=True))
def test_jitter_stays_within_a_fifth_either_way(attempts: int, rand: float) -> None:
    """The interval spreads by 20 %, for any count and any chance."""
    middle = schedule.next_check_ms(POLICY, 0, attempts, Result.UNKNOWN, MIDDLE)
    assert middle * 0.8 - 1 <= schedule.next_check_ms(POLICY, 0, attempts, Result.UNKNOWN, rand) <= middle * 1.2 + 1


def test_all_attempts_together_take_about_two_hours() -> None:
    """30 clear unknowns are patience enough; the table of settings says so."""
    spent_ms = sum(schedule.next_check_ms(POLICY, 0, attempts, Result.UNKNOWN, MIDDLE) for attempts in range(1, 31))
    assert 2 <= spent_ms / 3_600_000 <= 2.2


def test_attempts_are_used_up_at_the_limit_and_not_before() -> None:
    """The 30th unknown is the last."""
    assert not schedule.is_used_up(POLICY, 29)
    assert schedule.is_used_up(POLICY, 30)


def test_transaction_is_too_old_past_the_limit_and_not_at_it() -> None:
    """Seven days to the millisecond are not too old."""
    week_ms = 7 * 86400 * 1000
    assert not schedule.is_too_old(POLICY, NOW + week_ms, NOW)
    assert schedule.is_too_old(POLICY, NOW + week_ms + 1, NOW)


@pytest.mark.parametrize(
    "wrong", [{"first_delay_s": 0}, {"first_delay_s": 301}, {"max_attempts": 0}, {"max_age_s": 0}, {"jitter": 1}, {"jitter": -0.1}]
)
def test_senseless_policy_is_refused(wrong: dict[str, Any]) -> None:
    """A policy that would ask in a busy loop or never cannot be made."""
    with pytest.raises(ValueError, match="check"):
        CheckPolicy(**wrong)


def opened(now_ms: int = NOW) -> Breaker:
    breaker = schedule.CLOSED
    for _ in range(5):
        breaker = schedule.record_no_answer(breaker, now_ms)
    return breaker


def test_r15_breaker_opens_at_the_fifth_silence_in_a_row() -> None:
    """Four silences ask on in full, the fifth stops all asking for 5 s."""
    breaker = schedule.CLOSED
    for _ in range(4):
        breaker = schedule.record_no_answer(breaker, NOW)
        assert schedule.how_many_may_be_asked(breaker, NOW, 400) == 400
    breaker = schedule.record_no_answer(breaker, NOW)
    assert [schedule.how_many_may_be_asked(breaker, NOW + ms, 400) for ms in (0, 4999, 5000, 60_000)] == [0, 0, 1, 1]
    assert schedule.how_many_may_be_asked(breaker, NOW + 5000, 0) == 0


def test_an_answer_between_silences_starts_the_count_anew() -> None:
    """In a row means in a row."""
    breaker = schedule.CLOSED
    for _ in range(4):
        breaker = schedule.record_no_answer(breaker, NOW)
    breaker = schedule.record_no_answer(schedule.record_answer(breaker), NOW)
    assert not breaker.is_open


def test_r15_failed_trials_double_the_pause_up_to_a_minute() -> None:
    """5, 10, 20, 40, 60, 60 s."""
    breaker, now_ms, pauses = opened(), NOW, []
    for _ in range(6):
        pauses.append(breaker.open_until_ms - now_ms)
        now_ms = breaker.open_until_ms
        breaker = schedule.record_no_answer(breaker, now_ms)
    assert pauses == [5000, 10_000, 20_000, 40_000, 60_000, 60_000]


def test_silences_that_come_in_during_the_pause_do_not_lengthen_it() -> None:
    """Eight questions that time out together are one piece of news."""
    breaker = opened()
    assert schedule.record_no_answer(breaker, NOW + 4999) == breaker


def test_r15_an_answer_closes_the_breaker() -> None:
    """One word from the producer and everything is asked again."""
    assert schedule.how_many_may_be_asked(schedule.record_answer(opened()), NOW, 400) == 400
