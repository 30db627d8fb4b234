"""M4: two coordinators on PostgreSQL at READ COMMITTED, statement by statement: four small questions (R11, R21).

What is modelled of the database: a statement sees what was committed when it began; one that waited for a row lock sees that row as it
is then, and everything else still as it was when it began; writes are visible and locks are free at COMMIT. Whose turn a number is
is `release_rules.turn`. A conflict of two locks (40P01) is an ordinary retry and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from halfmsg.coordinator import release_rules
from halfmsg.coordinator.release_rules import Turn

FREE = -1


class Session(NamedTuple):
    """One coordinator's transaction: where it stands and what it has read."""

    at: str = "start"
    next_number: int = 0
    held: frozenset[int] = frozenset()
    drawn: int = 0


TWO = (Session(), Session())


def put(sessions: tuple[Session, ...], i: int, session: Session) -> tuple[Session, ...]:
    return (*sessions[:i], session, *sessions[i + 1 :])


class KeyRow(NamedTuple):
    sessions: tuple[Session, ...] = TWO  # session 0 commits number 1, session 1 number 2
    next_number: int = 1
    held: frozenset[int] = frozenset()
    log: tuple[int, ...] = ()
    lock: int = FREE


class Release:
    """4a: numbers 1 and 2 of one key are committed at the same time, by two coordinators."""

    initial = KeyRow()

    def __init__(self, held_read: Literal["without_lock", "same_statement", "later_statement"]) -> None:
        self.held_read = held_read

    def successors(self, s: KeyRow) -> Iterable[tuple[str, KeyRow]]:
        for i, me in enumerate(s.sessions):
            if me.at == "start":
                begun = Session("reading", s.next_number, s.held)
                yield f"{i}: the statement begins", s._replace(sessions=put(s.sessions, i, begun))
            elif me.at == "reading" and self.held_read == "without_lock":
                yield f"{i}: has read next={me.next_number}, held={set(me.held)}", s._replace(sessions=put(s.sessions, i, me._replace(at="placed")))
            elif me.at == "reading" and s.lock == FREE:
                locked = me._replace(at="locked", next_number=s.next_number)
                yield f"{i}: has the key row, next={s.next_number}", s._replace(sessions=put(s.sessions, i, locked), lock=i)
            elif me.at == "locked":
                held = s.held if self.held_read == "later_statement" else me.held
                yield f"{i}: has read held={set(held)}", s._replace(sessions=put(s.sessions, i, me._replace(at="placed", held=held)))
            elif me.at == "placed":
                yield f"{i}: COMMIT", self._commit(s, i, me)

    def _commit(self, s: KeyRow, i: int, me: Session) -> KeyRow:
        number, lock = i + 1, FREE if s.lock == i else s.lock
        s = s._replace(sessions=put(s.sessions, i, Session("done")), lock=lock)
        turn = release_rules.turn(number=number, next_number=me.next_number, stopped=False, held_by_other=False, skipped=False)
        if turn is not Turn.RELEASE:
            return s._replace(held=s.held | {number})
        released = [number]
        while released[-1] + 1 in me.held:
            released.append(released[-1] + 1)
        return s._replace(next_number=released[-1] + 1, held=s.held - set(released), log=(*s.log, *released))

    def violations(self, s: KeyRow) -> Iterable[str]:
        if all(me.at == "done" for me in s.sessions) and s.next_number in s.held:
            yield f"P2: {s.next_number} is the next number and is held, and nobody releases it"

    def settled(self, s: KeyRow) -> bool:
        return s.log == (1, 2)


class Lane(NamedTuple):
    sessions: tuple[Session, ...] = TWO
    next_off: int = 1
    lock: int = FREE
    log: frozenset[int] = frozenset()
    cursor: int = 1
    delivered: frozenset[int] = frozenset()


class Cursor:
    """4b: two coordinators append to a lane that a group reads with a cursor."""

    initial = Lane()

    def __init__(self, offset_from: Literal["sequence", "lane_row"]) -> None:
        self.locks = offset_from == "lane_row"

    def successors(self, s: Lane) -> Iterable[tuple[str, Lane]]:
        for i, me in enumerate(s.sessions):
            if me.at == "start" and s.lock == FREE:
                drawn = put(s.sessions, i, Session("drawn", drawn=s.next_off))
                yield f"{i}: draws offset {s.next_off}", s._replace(sessions=drawn, next_off=s.next_off + 1, lock=i if self.locks else FREE)
            elif me.at == "drawn":
                yield f"{i}: COMMIT", s._replace(sessions=put(s.sessions, i, Session("done")), log=s.log | {me.drawn}, lock=FREE)
        new = {off for off in s.log if off >= s.cursor}
        if new:
            yield f"the group reads {new}", s._replace(delivered=s.delivered | new, cursor=max(new) + 1)

    def violations(self, s: Lane) -> Iterable[str]:
        for off in s.log - s.delivered:
            if off < s.cursor:
                yield f"P2: the cursor has passed offset {off}, which was not delivered"

    def settled(self, s: Lane) -> bool:
        return s.delivered == {1, 2}


class Topic(NamedTuple):
    releaser: Session = Session()
    creator: Session = Session()
    groups: bool = False  # the group is there
    log: bool = False  # the message is there
    row: bool = False  # the delivery row of the two
    lock: int = FREE


class Creation:
    """4c: a group is created at "earliest" while a message is released. `places` is the design: a group has a place, the log has no rows for it."""

    initial = Topic()

    def __init__(self, deliveries: Literal["rows", "rows_with_topic_lock", "places"]) -> None:
        self.deliveries = deliveries

    def successors(self, s: Topic) -> Iterable[tuple[str, Topic]]:
        locks = self.deliveries == "rows_with_topic_lock"
        if s.releaser.at == "start" and s.lock == FREE:
            yield "release: reads the groups", s._replace(releaser=Session("read", drawn=int(s.groups)), lock=0 if locks else FREE)
        elif s.releaser.at == "read":
            yield "release: COMMIT", s._replace(releaser=Session("done"), log=True, row=s.row or bool(s.releaser.drawn), lock=FREE)
        if s.creator.at == "start" and s.lock == FREE:
            yield "create: reads the log", s._replace(creator=Session("read", drawn=int(s.log)), lock=1 if locks else FREE)
        elif s.creator.at == "read":
            yield "create: COMMIT", s._replace(creator=Session("done"), groups=True, row=s.row or bool(s.creator.drawn), lock=FREE)

    def violations(self, s: Topic) -> Iterable[str]:
        if s.groups and s.log and not s.row and self.deliveries != "places":
            yield "P2: the group at earliest has no row for the message"

    def settled(self, s: Topic) -> bool:
        return s.groups and s.log


class TwoKeys(NamedTuple):
    counters: tuple[int, int] = (0, 0)
    locks: tuple[int, int] = (FREE, FREE)
    numbers: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    committed: frozenset[int] = frozenset()  # at the coordinator, whose commits come in any order
    next_numbers: tuple[int, int] = (1, 1)
    released: frozenset[tuple[int, int]] = frozenset()  # (transaction, key)


class Together:
    """4d: two transactions with a message on each of two keys."""

    initial = TwoKeys()

    def __init__(self, *, at_once: bool, locked: bool) -> None:
        self.at_once, self.locked = at_once, locked

    def successors(self, s: TwoKeys) -> Iterable[tuple[str, TwoKeys]]:
        for i in (0, 1):
            key = len(s.numbers[i])
            if key < 2 and (not self.locked or s.locks[key] == FREE):
                yield f"{i} draws {s.counters[key] + 1} on key {key}", self._draw(s, i, key)
            elif key == 2 and i not in s.committed:
                free = tuple(FREE if holder == i else holder for holder in s.locks)
                yield f"{i} commits", s._replace(committed=s.committed | {i}, locks=(free[0], free[1]))
        for i in s.committed:
            turns = [key for key in (0, 1) if (i, key) not in s.released and self._is_next(s, i, key)]
            if self.at_once and len(turns) == 2:
                yield f"{i} is released", self._release(self._release(s, i, 0), i, 1)
            elif not self.at_once:
                for key in turns:
                    yield f"{i} is released on key {key}", self._release(s, i, key)

    def _draw(self, s: TwoKeys, i: int, key: int) -> TwoKeys:
        numbers = (*s.numbers[i], s.counters[key] + 1)
        s = s._replace(counters=one(s.counters, key, s.counters[key] + 1), numbers=(numbers, s.numbers[1]) if i == 0 else (s.numbers[0], numbers))
        return s._replace(locks=one(s.locks, key, i)) if self.locked else s

    def _is_next(self, s: TwoKeys, i: int, key: int) -> bool:
        turn = release_rules.turn(number=s.numbers[i][key], next_number=s.next_numbers[key], stopped=False, held_by_other=False, skipped=False)
        return turn is Turn.RELEASE

    def _release(self, s: TwoKeys, i: int, key: int) -> TwoKeys:
        return s._replace(released=s.released | {(i, key)}, next_numbers=one(s.next_numbers, key, s.next_numbers[key] + 1))

    def violations(self, s: TwoKeys) -> Iterable[str]:
        return ()

    def settled(self, s: TwoKeys) -> bool:
        return len(s.released) == 4


def one(pair: tuple[int, int], i: int, value: int) -> tuple[int, int]:
    return (value, pair[1]) if i == 0 else (pair[0], value)
