"""What becomes of a delivery that did not succeed, and how lanes are shared out: pure, no I/O.

It knows no clock (the caller hands `now_ms` down) and no store. Defaults are the settings of `group.*` (API.md, section "Settings").
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a group tries a message, and how far apart. `max_attempts` None: for ever, so it holds its key until an operator acts."""

    max_attempts: int | None = 16  # RocketMQ's number; with the back-off below 77 min, then dead letter
    backoff_first_s: float = 1
    backoff_max_s: float = 600

    def __post_init__(self) -> None:
        if self.max_attempts is not None and self.max_attempts < 1:
            raise ValueError("max_attempts is at least 1, or None for no limit")
        if not 0 < self.backoff_first_s <= self.backoff_max_s:
            raise ValueError("0 < backoff_first_s <= backoff_max_s is needed")


@dataclass(frozen=True, slots=True)
class Again:
    """Hand it out again, not before `due_ms`."""

    due_ms: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Dead:
    """Attempts are used up: the group's dead letters."""

    attempts: int


def backoff_ms(policy: RetryPolicy, *, attempts: int) -> int:
    """The wait after the `attempts`-th failure (from 1): doubling from backoff_first_s up to backoff_max_s."""
    doublings = min(max(attempts - 1, 0), 62)  # a float's exponent has an end; the longest back-off was reached long before
    return round(min(policy.backoff_first_s * float(2**doublings), policy.backoff_max_s) * 1000)


def after_nack(policy: RetryPolicy, *, attempts: int, counts: bool, delay_ms: int | None, now_ms: int) -> Again | Dead:
    """A consumer gave a message back. `attempts`: charged before this one; `counts` False ("not yet") charges none, so never ends.

    `delay_ms` is the consumer's own wish and replaces the back-off.
    """
    charged = attempts + 1 if counts else attempts
    if counts and policy.max_attempts is not None and charged >= policy.max_attempts:
        return Dead(charged)
    wait_ms = backoff_ms(policy, attempts=charged) if delay_ms is None else delay_ms
    return Again(now_ms + wait_ms, charged)


def after_lease_end(policy: RetryPolicy, *, alone: bool, attempts: int, now_ms: int) -> Again | Dead:
    """A lease ended with this message open (R24). `alone`: its run had no other message.

    A run of several charges nobody: its open messages are due at once and travel alone from then on. One that travelled alone
    is charged like a nack, so that a message which kills its consumer is found.
    """
    if not alone:
        return Again(now_ms, attempts)
    return after_nack(policy, attempts=attempts, counts=True, delay_ms=None, now_ms=now_ms)


def share(lanes: int, members: int) -> int:
    """How many lanes one member of an ordered group may hold: lanes / members, rounded up (PROTOCOL section 4). No member: all."""
    return -(-lanes // max(members, 1))
