"""The coordinator's half of the purge watermarks (R3, R12): pure, no I/O.

All numbers are the coordinator's milliseconds. The producer's half is in `halfmsg.outbox.fence_rules`. Per source it holds that
forgotten_before <= clean_before <= purged_before <= settled_told (W2); `tests/model/m7_marks.py` shows what breaks without each.
"""

from __future__ import annotations

from collections.abc import Iterable


def is_stale(mark: int, settled_told: int) -> bool:
    """R3 (4): refuse a prepare of an unknown id (`stale_mark`)? The producer may have purged what would answer for it."""
    return mark < settled_told


def is_forgotten(mark: int, forgotten_before: int) -> bool:
    """R12 (5): refuse a prepare or submit of an unknown id (`forgotten`)? It may be one whose record was purged."""
    return mark < forgotten_before


def may_purge(mark: int, forgotten_before: int, decided: bool) -> bool:
    """R12: may a record be deleted? Only a decided one that would be refused if it came again."""
    return decided and is_forgotten(mark, forgotten_before)


def settled_before(undecided_marks: Iterable[int], now: int, margin: int) -> int:
    """R3: what a source may be told: the smallest mark of its undecided and parked transactions, else `now`; less `margin`.

    A mark is never ahead of the coordinator's clock, so `now` bounds it as well. `margin` covers transactions of the coordinator
    that are not visible yet: on PostgreSQL it is longer than the longest of them.
    """
    return min((now, *undecided_marks)) - margin
