"""The three comparisons on the producer's side that make purging safe (R3): pure, no I/O.

`mark` is chosen once an attempt and stands unchanged in fence row, prepare, submit and question. `purged_before` is the number in
`halfmsg_meta`; it is raised and committed first, and rows are deleted only when every local transaction that was open at that
moment has ended. Both are the coordinator's milliseconds. The coordinator's two are in `halfmsg.coordinator.mark_rules`.
"""

from __future__ import annotations


def may_commit(mark: int, purged_before: int) -> bool:
    """R3 (1): may a local transaction insert its fence row? If not it is fenced out: its tombstone may have been deleted."""
    return mark >= purged_before


def may_lay(mark: int, purged_before: int) -> bool:
    """R3 (2): may a question that found no row lay a tombstone? If not the answer is no_answer (purged): a committed row may
    have been deleted."""
    return mark >= purged_before


def may_delete(mark: int, purged_before: int, sent: bool) -> bool:
    """R3 (3): may a fence row be deleted? Only a sent one (`unsent` is NULL), and only below the watermark."""
    return sent and mark < purged_before
