"""What the inbox of an ordered topic does with a delivery (R6): pure, no I/O.

The inbox keeps one row (group, generation, source, topic, key) -> `last`, and a row for each number that was passed over and may
still come (`missed`). The caller has locked the key row first, so that a consumer whose lease ended is judged like any other (R13).
Numbers are compared, never added: filters, a start at `latest` and skips make holes that mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum


class Claim(Enum):
    """What becomes of one delivery in its handler's transaction."""

    RUN = "run"
    """The first of its number: insert `newly_missed`, set last = number, run the handler."""
    RUN_MISSED = "run_missed"
    """A dead letter that was redriven: delete its number from `missed`, leave `last`, run the handler."""
    DUPLICATE = "duplicate"
    """The effect is there, or somebody else's to bring: run nothing and ack."""


def judge(*, last: int, number: int, redriven: bool, in_missed: bool) -> Claim:
    """Say whether the handler runs. `last` is 0 where the key has no row; numbers start at 1 (R6, P6, P7)."""
    if number > last:
        return Claim.RUN
    if redriven and in_missed:
        return Claim.RUN_MISSED
    return Claim.DUPLICATE


def newly_missed(*, last: int, number: int, named: Iterable[int]) -> list[int]:
    """The numbers to insert into `missed` with a RUN, ascending: those named that lie between `last` and `number`.

    One that is named twice was at or below `last` the second time, so naming too much is harmless (R6). For a delivery that is
    not a RUN nothing is inserted: `last` >= `number` leaves no room.
    """
    return sorted({seq for seq in named if last < seq < number})
