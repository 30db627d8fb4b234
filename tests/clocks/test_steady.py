"""The coordinator's time, apart from everything else: what it makes of a wall clock that does as it likes (R19)."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfmsg.coordinator.clock import AGREE_S, JUMP_MS, SteadyClock, SystemClock, rfc3339
from tests.support.clock import START_MS, WildClock

YEAR_S = 365 * 86_400
STEPS = st.lists(st.tuples(st.floats(0, 7_200), st.integers(-2 * YEAR_S, 2 * YEAR_S) | st.integers(-90, 90) | st.just(0)), max_size=40)


@given(STEPS, st.sampled_from([0, START_MS - YEAR_S * 1000, START_MS + YEAR_S * 1000]))
def test_p10_time_never_goes_back_and_never_stands_still(steps: list[tuple[float, int]], floor_ms: int) -> None:
    """Whatever the wall clock does: never back, at least as fast as the monotonic clock, and ahead of it by a minute a step at most."""
    wall = WildClock()
    clock = SteadyClock(wall, floor_ms)
    before, far_s = clock.now_ms(), 0.0
    assert before >= floor_ms
    for passed_s, jumped_s in steps:
        wall.advance(passed_s)
        wall.jump(jumped_s)
        far_s += passed_s
        now = clock.now_ms()
        ahead_ms = now - before - passed_s * 1000
        assert ahead_ms >= -2
        if ahead_ms > JUMP_MS + 2:
            assert far_s >= AGREE_S
            assert now == wall.now_ms()
            far_s = 0.0
        before = now


@pytest.mark.parametrize("seconds", [3_600, YEAR_S, 100 * YEAR_S])
def test_a_jump_ahead_that_is_taken_back_leaves_no_trace(seconds: int) -> None:
    """A time server's mistake of half an hour: the time that counts has gone on by half an hour."""
    wall = WildClock()
    clock = SteadyClock(wall)
    wall.jump(seconds)
    for _ in range(30):
        wall.advance(60)
        clock.now_ms()
    wall.jump(-seconds)
    assert clock.now_ms() == START_MS + 1_800_000


def test_a_jump_ahead_is_followed_after_an_hour_of_agreement() -> None:
    """A machine that was asleep: its wall clock is right, and is believed once it has stood so for an hour."""
    wall = WildClock()
    clock = SteadyClock(wall)
    wall.jump(YEAR_S)
    clock.now_ms()
    wall.advance(AGREE_S - 1)
    assert clock.now_ms() == START_MS + (AGREE_S - 1) * 1000
    wall.advance(1)
    assert clock.now_ms() == wall.now_ms()


def test_an_hour_that_is_interrupted_begins_anew() -> None:
    """Half an hour ahead, right again, half an hour ahead: no hour of agreement."""
    wall = WildClock()
    clock = SteadyClock(wall)
    for jump in (YEAR_S, -YEAR_S, YEAR_S):
        wall.jump(jump)
        clock.now_ms()
        wall.advance(AGREE_S * 0.6)
        clock.now_ms()
    assert clock.now_ms() == round(START_MS + AGREE_S * 1_800)


def test_a_wall_clock_that_is_a_little_ahead_is_followed_at_once() -> None:
    """What a time server does all day."""
    wall = WildClock()
    clock = SteadyClock(wall)
    for _ in range(10):
        wall.jump(JUMP_MS / 1000)
        assert clock.now_ms() == wall.now_ms()


def test_behind_the_wall_clock_it_says_by_how_much() -> None:
    """The metric that an operator sees: above 0 the store's time is ahead, as after a wall clock that went back."""
    wall = WildClock()
    clock = SteadyClock(wall, START_MS + 1_000)
    assert clock.ahead_s() == 1.0
    wall.jump(YEAR_S)
    assert clock.ahead_s() == 1.0 - YEAR_S


def test_time_never_goes_back_between_threads() -> None:
    """The loop and the writer's thread read one clock; none sees less than another has stored."""
    clock = SteadyClock(SystemClock())
    highest, wrong = [0], []
    lock = threading.Lock()

    def read() -> None:
        for _ in range(5_000):
            with lock:
                floor = highest[0]
            now = clock.now_ms()
            if now < floor:
                wrong.append((floor, now))
            with lock:
                highest[0] = max(highest[0], now)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(("ms", "text"), [(2**31 * 1000 + 5, "2038-01-19T03:14:08.005Z"), (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
                                          (0, "1970-01-01T00:00:00.000Z"), (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
                                          (1 << 60, "9999-12-31T23:59:59.999Z"), (-1, "1970-01-01T00:00:00.000Z")])  # fmt: skip
def test_times_of_other_ages_are_written_right(ms: int, text: str) -> None:
    """2038, 2100, a machine that has lost its battery, and the last moment of all."""
    assert rfc3339(ms) == text
