"""When to ask, and whom not to: pure functions of the coordinator's clock. Times in integer ms, settings in seconds.

Only `unknown`, said for the id in a well-formed answer, stretches the interval and costs an attempt; whoever merely could not
be reached is asked again soon, and spared by the breaker, which works by producer and not by transaction (R15).
"""

from __future__ import annotations

from dataclasses import dataclass

from .verdict import Result

FAILURES_TO_OPEN = 5
OPEN_FIRST_MS = 5_000
OPEN_MAX_MS = 60_000


@dataclass(frozen=True, slots=True)
class CheckPolicy:
    """How patient the coordinator is. 30 attempts are about two hours of clear "unknown"; past any bound it parks, never guesses (R4)."""

    first_delay_s: float = 5
    max_interval_s: float = 300
    max_attempts: int = 30
    max_age_s: float = 7 * 86400
    jitter: float = 0.2
    """Share of the interval by which `unknown` ones spread, so that a batch that failed together does not come back together."""

    def __post_init__(self) -> None:
        if not 0 < self.first_delay_s <= self.max_interval_s:
            raise ValueError("check.first_delay_s must be above 0 and at most check.max_interval_s")
        if self.max_attempts < 1 or self.max_age_s <= 0 or not 0 <= self.jitter < 1:
            raise ValueError("check.max_attempts must be 1 or more, check.max_age_s above 0, check.jitter from 0 to below 1")


def next_check_ms(policy: CheckPolicy, now_ms: int, attempts: int, result: Result, rand: float) -> int:
    """When to ask next. `attempts` counts the `unknown` answers, this one included; `rand` is drawn from [0, 1).

    After `unknown` first_delay, then doubling to max_interval, each with jitter either way; after anything else first_delay.
    """
    if result is not Result.UNKNOWN:
        return now_ms + round(policy.first_delay_s * 1000)
    doublings: int = min(max(attempts, 1) - 1, 32)  # past 32 it is max_interval anyway, and 2**attempts would overflow a float
    interval_s = min(policy.first_delay_s * 2.0**doublings, policy.max_interval_s)
    return now_ms + round(interval_s * 1000 * (1 + policy.jitter * (2 * rand - 1)))


def is_used_up(policy: CheckPolicy, attempts: int) -> bool:
    """Whether so many `unknown` answers are enough: the transaction is parked."""
    return attempts >= policy.max_attempts


def is_too_old(policy: CheckPolicy, now_ms: int, first_at_ms: int) -> bool:
    """Whether a transaction prepared at `first_at_ms` has been in doubt for so long that it is parked."""
    return now_ms - first_at_ms > policy.max_age_s * 1000


@dataclass(frozen=True, slots=True)
class Breaker:
    """How one producer has answered lately. Counts whole questions: a question of which no id was answered is one failure."""

    failures: int = 0
    """Questions without any answer, in a row."""
    open_until_ms: int = 0
    """While open: before this nobody is asked, after it one id."""
    open_for_ms: int = 0
    """The length of the current pause; 0 = closed."""

    @property
    def is_open(self) -> bool:
        return self.open_for_ms > 0


CLOSED = Breaker()


def record_no_answer(breaker: Breaker, now_ms: int) -> Breaker:
    """After a question that got no answer. The fifth in a row opens it; a failed trial doubles the pause, up to a minute.

    A failure that comes in during the pause was asked before it and says nothing new: eight questions that time out
    together must not make eight doublings.
    """
    if breaker.is_open and now_ms < breaker.open_until_ms:
        return breaker
    failures = breaker.failures + 1
    if failures < FAILURES_TO_OPEN:
        return Breaker(failures)
    open_for_ms = min(breaker.open_for_ms * 2, OPEN_MAX_MS) or OPEN_FIRST_MS
    return Breaker(failures, now_ms + open_for_ms, open_for_ms)


def record_answer(breaker: Breaker) -> Breaker:
    """After an answer to any id, or a hello of the producer: closed, whatever was."""
    return CLOSED


def how_many_may_be_asked(breaker: Breaker, now_ms: int, wanted: int) -> int:
    """Of `wanted` ids, how many: all when closed, none during the pause, one as a trial after it."""
    if not breaker.is_open:
        return wanted
    return min(wanted, 1) if now_ms >= breaker.open_until_ms else 0
