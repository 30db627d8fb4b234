"""Whose turn it is on an ordering key (R5, R7, R14): pure, no I/O.

Asked once a message, when its transaction has just been decided by a compare-and-set, under the key row's lock and by a statement
after it (R11). So a number below the next one, under a newly decided transaction, is never a repeat of the same message.
"""

from __future__ import annotations

from enum import Enum


class Turn(Enum):
    """Where a message that was just committed goes."""

    RELEASE = "release"
    """Append to the log, move the key's next number on, then drain what is held."""
    HOLD = "hold"
    """Store among the held ones of the key; the gap before it is a question to the producer (R5)."""
    LATE_AFTER_SKIP = "late_after_skip"
    """An operator skipped its number: topic dead letters (R14)."""
    NUMBER_TAKEN = "number_taken"
    """Another message has its number: topic dead letters, and the key is stopped (R7)."""


def turn(*, number: int, next_number: int, stopped: bool, held_by_other: bool, skipped: bool) -> Turn:
    """Say where a message goes. `held_by_other`: another message is held on this number; `skipped`: an operator skipped it.

    A held one on the *next* number is looked at before anything is released: a head that waits for its time (R22) or for the
    drain (R20) stands there with nothing missing, and would be stranded below the next number if a newcomer took its turn.
    """
    if number < next_number:
        return Turn.LATE_AFTER_SKIP if skipped else Turn.NUMBER_TAKEN
    if held_by_other:
        return Turn.NUMBER_TAKEN
    if number > next_number or stopped:
        return Turn.HOLD
    return Turn.RELEASE
