"""M1, the blocks of R16: one local transaction that publishes on one ordering key, sets a savepoint and goes back to it.

Each publish writes a business row, a number from the counter row and a `halfmsg_out` row; a savepoint undoes the three together. A
process may die after its COMMIT, so that the relay sends; a second transaction then draws the next number of the key.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from halfmsg.coordinator import release_rules
from halfmsg.coordinator.release_rules import Turn

MESSAGES_MAX = 3
Row = tuple[str, int]  # message, number


class Variant(NamedTuple):
    """As designed, unless a flag is changed."""

    sent_from: Literal["rows", "memory"] = "rows"
    fence_written: Literal["at_the_end", "with_the_first"] = "at_the_end"


class Rows(NamedTuple):
    """What the local transaction has written; a savepoint keeps a copy."""

    out: tuple[Row, ...] = ()
    fence: bool = False
    counter: int = 0


class Model(NamedTuple):
    phase: str = "open"  # open | committed | aborted | next (the second transaction has committed)
    rows: Rows = Rows()
    savepoint: Rows | None = None
    memory: tuple[Row, ...] = ()
    fence_remembered: bool = False
    savepoints: int = 1
    second: Row | None = None
    waiting: tuple[Row, ...] = ()  # said to the coordinator, not yet placed
    held: tuple[Row, ...] = ()
    next_number: int = 1
    log: tuple[str, ...] = ()
    dead: frozenset[str] = frozenset()
    sent: bool = False
    second_sent: bool = False


class Run:
    """The transitions of one variant."""

    def __init__(self, variant: Variant) -> None:
        self.v = variant

    def successors(self, s: Model) -> Iterable[tuple[str, Model]]:
        if s.phase == "open":
            yield from self._inside(s)
            return
        if s.second is None:
            number = s.rows.counter + 1
            yield f"the next transaction commits z as {number}", s._replace(second=("z", number), phase="next")
        if s.phase in ("committed", "next") and not s.sent and s.rows.fence:  # the relay's queue is the fence row
            sent = s.memory if self.v.sent_from == "memory" else s.rows.out
            yield f"submit {sent}", s._replace(sent=True, waiting=s.waiting + sent)
        if s.second and not s.second_sent:
            yield "submit z", s._replace(second_sent=True, waiting=(*s.waiting, s.second))
        for row in s.waiting:
            yield f"{row[0]} takes its place", self._place(s._replace(waiting=tuple(other for other in s.waiting if other != row)), row)

    def _inside(self, s: Model) -> Iterable[tuple[str, Model]]:
        if len(s.memory) < MESSAGES_MAX:
            row = ("abc"[len(s.memory)], s.rows.counter + 1)
            fence = self.v.fence_written == "with_the_first" and not s.fence_remembered
            rows = Rows((*s.rows.out, row), s.rows.fence or fence, row[1])
            yield f"publish {row[0]}, number {row[1]}", s._replace(rows=rows, memory=(*s.memory, row), fence_remembered=s.fence_remembered or fence)
        if s.savepoints and s.savepoint is None:
            yield "SAVEPOINT", s._replace(savepoint=s.rows, savepoints=0)
        if s.savepoint is not None:
            yield "ROLLBACK TO", s._replace(rows=s.savepoint, savepoint=None)
            yield "RELEASE", s._replace(savepoint=None)
        else:
            fence = s.rows.fence or self.v.fence_written == "at_the_end"
            yield "COMMIT", s._replace(phase="committed", rows=s.rows._replace(fence=fence))
        yield "ROLLBACK", s._replace(phase="aborted", rows=Rows())

    def _place(self, s: Model, row: Row) -> Model:
        message, number = row
        held_by_other = any(other[1] == number for other in s.held)
        match release_rules.turn(number=number, next_number=s.next_number, stopped=False, held_by_other=held_by_other, skipped=False):
            case Turn.HOLD:
                return s._replace(held=tuple(sorted((*s.held, row))))
            case Turn.RELEASE:
                s = s._replace(log=(*s.log, message), next_number=number + 1)
                following = next((other for other in s.held if other[1] == s.next_number), None)
                if following is None:
                    return s
                return self._place(s._replace(held=tuple(other for other in s.held if other != following)), following)
            case _:
                return s._replace(dead=s.dead | {message})

    def violations(self, s: Model) -> Iterable[str]:
        if s.phase == "open":
            return
        written = [message for message, _ in s.rows.out] + (["z"] if s.second else [])
        for message in (*s.log, *s.dead, *(message for message, _ in (*s.waiting, *s.held))):
            if message not in written:
                yield f"P1: {message} was sent, and its savepoint was rolled back"
        order = [written.index(message) for message in s.log if message in written]
        if order != sorted(order):
            yield f"P7: {s.log} is not the order of the local commits"
        if s.dead:
            yield f"P7: a number was drawn again, {sorted(s.dead)} found it taken"

    def settled(self, s: Model) -> bool:
        return s.phase in ("open", "aborted") or all(message in s.log for message, _ in s.rows.out)
