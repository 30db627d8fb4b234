"""M2: three prepared transactions on one ordering key, and the coordinator's key row.

Numbers are drawn from a counter row inside the local transaction, under its lock. The word after a local commit may come at any time
later or never, twice, or after a check-back has decided. Faults: a database that loses its last commit, and two databases under one
name. Releasing what is held is a tick of its own (R20), so a key may be seen with its next number held and nothing missing.
Decisions are `states.step`, places are `release_rules.turn`. Rollback, purge and lost prepares are M1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeVar

from halfmsg.coordinator import release_rules, states
from halfmsg.coordinator.release_rules import Turn
from halfmsg.coordinator.states import Event, State

TRANSACTIONS = range(3)
NO_NUMBER = 0
T = TypeVar("T")


class Variant(NamedTuple):
    """As designed, unless a flag is changed."""

    verdict_has_numbers: bool = True  # R5
    without_number: Literal["held", "appended"] = "held"  # what a coordinator does that takes a decision without one
    ordered_by: Literal["number", "prepare"] = "number"  # R10
    counter_inside: bool = True  # R21
    operator_commits_unnumbered: bool = False  # R4 refuses it
    loses_last_commit: bool = False  # a fault of the database
    two_databases: bool = False  # transaction 2 is made by another database: R7 refuses its name, here it is let in
    below_next: Literal["turn", "duplicate"] = "turn"  # R7
    held_checked: bool = True  # R7
    held_head_checked: bool = True  # R7 with R20 and R22
    late_after_skip: Literal["dead", "dropped", "delivered"] = "dead"  # R14


class Local(NamedTuple):
    """A transaction in its producer's database: none | open | committed | aborted | tombstone | lost."""

    fate: str = "none"
    number: int = NO_NUMBER


class Model(NamedTuple):
    counters: tuple[int, ...] = (0, 0)  # one a database
    locals: tuple[Local, ...] = (Local(),) * 3
    order: tuple[int, ...] = ()  # of the local commits
    words: frozenset[tuple[int, int]] = frozenset()  # (transaction, number) that clients have said, on the way for ever
    lost: int = -1  # the transaction whose commit its database forgot
    states: tuple[State, ...] = (State.PREPARED,) * 3
    forced: frozenset[int] = frozenset()
    next_number: int = 1
    stopped: bool = False
    held: tuple[tuple[int, int], ...] = ()  # (number, transaction)
    skipped: frozenset[int] = frozenset()
    log: tuple[int, ...] = ()
    dead: frozenset[int] = frozenset()  # the topic's dead letters


class Run:
    """The transitions of one variant."""

    def __init__(self, variant: Variant) -> None:
        self.v = variant

    def successors(self, s: Model) -> Iterable[tuple[str, Model]]:
        for i in TRANSACTIONS:
            yield from self._local(s, i)
            yield from self._check_back(s, i)
        for i, number in s.words:
            yield f"commit({i}, n={number}) arrives", self._decide(s, i, Event.COMMIT, number)
        yield from self._operator(s)
        if not s.stopped and s.next_number in dict(s.held):
            number = s.next_number
            yield f"drain releases n={number}", self._release(s, dict(s.held)[number])._replace(held=without(s.held, number))
        if self.v.loses_last_commit and s.lost < 0 and s.order:
            last = s.order[-1]
            if not any(local.fate == "open" for local in s.locals):
                gone = s._replace(locals=put(s.locals, last, Local("lost")), order=s.order[:-1], lost=last)
                yield f"the database loses the commit of {last}", count(gone, self._database(last), -1)

    def violations(self, s: Model) -> Iterable[str]:
        for i in s.log:
            if s.locals[i].fate != "committed" and i != s.lost:
                yield f"P1: {i} was delivered without a local commit"
        for database in (0, 1):
            ours = [s.order.index(i) for i in s.log if i in s.order and self._database(i) == database]
            if ours != sorted(ours):
                yield "P7: delivered in another order than the local commits"
        if self._gap(s) and s.lost < 0 and not self.v.two_databases and all(local.number != s.next_number for local in s.locals):
            yield f"P2: nobody can name the gap at {s.next_number}"

    def settled(self, s: Model) -> bool:
        return all(i in s.log or i in s.dead or i in s.forced for i in s.order)

    def _database(self, i: int) -> int:
        return 1 if self.v.two_databases and i == 2 else 0

    # ---- the producer

    def _local(self, s: Model, i: int) -> Iterable[tuple[str, Model]]:
        local, database = s.locals[i], self._database(i)
        if local.fate == "none":
            locked = any(o.fate == "open" and self._database(j) == database for j, o in enumerate(s.locals))
            if not locked or not self.v.counter_inside or self.v.ordered_by == "prepare":
                number = s.counters[database] + 1
                yield f"{i} draws {number}", count(s._replace(locals=put(s.locals, i, Local("open", number))), database, 1)
        elif local.fate == "open":
            done = s._replace(locals=put(s.locals, i, local._replace(fate="committed")), order=(*s.order, i))
            yield f"{i} commits locally", done._replace(words=s.words | {(i, local.number)})
            undone = s._replace(locals=put(s.locals, i, Local("aborted")))
            yield f"{i} aborts locally", count(undone, database, -1) if self.v.counter_inside else undone

    def _check_back(self, s: Model, i: int) -> Iterable[tuple[str, Model]]:
        if states.is_decided(s.states[i]):
            return
        local = s.locals[i]
        if local.fate == "committed":
            event, number = Event.VERDICT_COMMITTED, local.number if self.v.verdict_has_numbers else NO_NUMBER
            yield f"verdict on {i}: committed, n={number}", self._decide(s, i, event, number)
        elif local.fate != "open":  # an open one is `running`
            laid = s._replace(locals=put(s.locals, i, Local("tombstone" if i != s.lost else "lost")))
            yield f"verdict on {i}: rolled_back", self._decide(laid, i, Event.VERDICT_ROLLED_BACK)

    # ---- the coordinator

    def _decide(self, s: Model, i: int, event: Event, number: int = NO_NUMBER) -> Model:
        before = s.states[i]
        after = states.step(before, event).to
        assert after is not None
        s = s._replace(states=put(s.states, i, after))
        if after is not State.COMMITTED or before is State.COMMITTED:
            return s
        return self._place(s, i, number)

    def _place(self, s: Model, i: int, number: int) -> Model:
        if self.v.ordered_by == "prepare":
            return self._in_order_of_prepare(s._replace(held=(*s.held, (i + 1, i))))
        if number == NO_NUMBER:
            return s if self.v.without_number == "held" else s._replace(log=(*s.log, i))
        if number < s.next_number and self.v.below_next == "duplicate":
            return s
        seen = self.v.held_checked and (self.v.held_head_checked or number != s.next_number)
        held_by_other = seen and number in dict(s.held)
        match release_rules.turn(
            number=number, next_number=s.next_number, stopped=s.stopped, held_by_other=held_by_other, skipped=number in s.skipped
        ):
            case Turn.RELEASE:
                return self._release(s, i)
            case Turn.HOLD:
                return s._replace(held=tuple(sorted((*without(s.held, number), (number, i)))))
            case Turn.LATE_AFTER_SKIP if self.v.late_after_skip != "dead":
                return s if self.v.late_after_skip == "dropped" else s._replace(log=(*s.log, i))
            case Turn.LATE_AFTER_SKIP:
                return s._replace(dead=s.dead | {i})
            case Turn.NUMBER_TAKEN:
                return s._replace(dead=s.dead | {i}, stopped=True)

    def _release(self, s: Model, i: int) -> Model:
        return s._replace(log=(*s.log, i), next_number=s.next_number + 1)

    def _in_order_of_prepare(self, s: Model) -> Model:
        """What is decided goes out when all that was prepared before it is decided."""
        for number, i in sorted(s.held):
            if all(states.is_decided(s.states[j]) for j in range(i)):
                s = s._replace(log=(*s.log, i), held=without(s.held, number))
        return s

    def _gap(self, s: Model) -> bool:
        return bool(s.held) and s.next_number < min(dict(s.held)) and self.v.ordered_by == "number"

    def _operator(self, s: Model) -> Iterable[tuple[str, Model]]:
        if s.stopped:
            yield "operator starts the key again", s._replace(stopped=False)
        if self._gap(s):
            yield f"operator skips n={s.next_number}", s._replace(skipped=s.skipped | {s.next_number}, next_number=s.next_number + 1, stopped=False)
        for i in TRANSACTIONS:
            if s.states[i] is State.PREPARED:
                yield f"{i} is parked", self._decide(s, i, Event.PARK)
            elif s.states[i] is State.PARKED:
                yield f"operator forces rollback of {i}", self._decide(s, i, Event.FORCE_ROLLBACK)._replace(forced=s.forced | {i})
                if self.v.operator_commits_unnumbered:
                    yield f"operator forces commit of {i}", self._decide(s, i, Event.FORCE_COMMIT)


def put(row: tuple[T, ...], i: int, value: T) -> tuple[T, ...]:
    return (*row[:i], value, *row[i + 1 :])


def without(held: tuple[tuple[int, int], ...], number: int) -> tuple[tuple[int, int], ...]:
    return tuple(pair for pair in held if pair[0] != number)


def count(s: Model, database: int, step: int) -> Model:
    return s._replace(counters=put(s.counters, database, s.counters[database] + step))
