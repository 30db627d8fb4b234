"""The life of a transaction: one table, one function, no I/O.

A transaction is *prepared* (stored, invisible), then exactly once *committed* or *rolled_back*; both are final. *parked* is
prepared with the asking given up for now: it can still be decided by the producer's word, a late verdict, or an operator.

    state x event -> (next state, outcome, listed)

The first decision wins (P4); an opposite one is `decided_otherwise` and, where a person must know of it, is listed among the
conflicts. A pair that is not in the table cannot happen: `step` raises `IllegalEvent`, which is a defect of the caller.
`docs/states.md` is drawn from this table (tests/unit/test_states.py keeps it so). Source: PROTOCOL §2, "Full state table".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class State(IntEnum):
    """As stored in `tx.state`. The wire uses the lower-case names."""

    PREPARED = 0
    """Stored and invisible. Left by a decision, or by PARK / the last UNKNOWN / MAX_AGE."""
    COMMITTED = 1
    """Final: each message is released by its key's rule."""
    ROLLED_BACK = 2
    """Final: the bodies are deleted."""
    PARKED = 3
    """Undecided and rarely asked; the list an operator looks at."""

    @property
    def word(self) -> str:
        return self.name.lower()


class Event(StrEnum):
    """What can be said about a transaction. DIFFERS and INCOMPLETE are judged by digest and numbers before the table is asked."""

    PREPARE = "prepare"
    SUBMIT = "submit"
    DIFFERS = "differs"  # prepare or submit of this id with another digest (R9)
    COMMIT = "commit"
    COMMIT_INCOMPLETE = "commit_incomplete"  # without digest or numbers, or with other ones (R5)
    ROLLBACK = "rollback"
    VERDICT_COMMITTED = "verdict_committed"
    VERDICT_INCOMPLETE = "verdict_incomplete"
    VERDICT_ROLLED_BACK = "verdict_rolled_back"
    RUNNING = "running"
    NO_ANSWER = "no_answer"
    UNKNOWN = "unknown"
    UNKNOWN_LAST = "unknown_last"  # the answer that used up the last attempt (R15)
    MAX_AGE = "max_age"
    PARK = "park"
    FORCE_COMMIT = "force_commit"
    FORCE_ROLLBACK = "force_rollback"


class Outcome(StrEnum):
    """What the sayer is told. All but OK and IGNORED are error codes of the wire."""

    OK = "ok"
    IGNORED = "ignored"
    NOT_FOUND = "transaction_not_found"
    DECIDED_OTHERWISE = "decided_otherwise"
    CONTENT_DIFFERS = "content_differs"
    INCOMPLETE = "incomplete_decision"
    STATE_CHANGED = "state_changed"


@dataclass(frozen=True, slots=True)
class Step:
    """`to` is the state after the event (None: there is still no such transaction); `listed`: goes to the conflict list."""

    to: State | None
    outcome: Outcome
    listed: bool = False


class IllegalEvent(Exception):
    """An event that cannot meet this state: the caller asked the wrong question. Nothing was changed."""

    def __init__(self, state: State | None, event: Event) -> None:
        super().__init__(f"{event} cannot happen to a transaction that is {'absent' if state is None else state.word}")
        self.state, self.event = state, event


_PREPARED, _COMMITTED, _ROLLED_BACK, _PARKED = State
_STATES: tuple[State | None, ...] = (None, *State)


def _row(none: Step | None, prepared: Step | None, committed: Step | None, rolled_back: Step | None, parked: Step | None) -> dict[State | None, Step]:
    steps = zip(_STATES, (none, prepared, committed, rolled_back, parked), strict=True)
    return {state: step for state, step in steps if step is not None}


def _ok(to: State) -> Step:
    return Step(to, Outcome.OK)


def _no(to: State | None, outcome: Outcome, *, listed: bool = False) -> Step:
    return Step(to, outcome, listed)


_NOT_FOUND = _no(None, Outcome.NOT_FOUND)
_IGNORED = {state: _no(state, Outcome.IGNORED) for state in _STATES}
_OTHERWISE = {state: _no(state, Outcome.DECIDED_OTHERWISE) for state in State}
_OTHERWISE_LISTED = {state: _no(state, Outcome.DECIDED_OTHERWISE, listed=True) for state in State}
_DIFFERS = {state: _no(state, Outcome.CONTENT_DIFFERS) for state in State}
_INCOMPLETE = {state: _no(state, Outcome.INCOMPLETE) for state in State}
_CONTRARY = {state: _no(state, Outcome.IGNORED, listed=True) for state in State}

TABLE: dict[Event, dict[State | None, Step]] = {
    # event: none, prepared, committed, rolled_back, parked
    Event.PREPARE: _row(_ok(_PREPARED), _ok(_PREPARED), _ok(_COMMITTED), _ok(_ROLLED_BACK), _ok(_PARKED)),
    Event.SUBMIT: _row(_ok(_COMMITTED), _ok(_COMMITTED), _ok(_COMMITTED), _OTHERWISE_LISTED[_ROLLED_BACK], _ok(_COMMITTED)),
    Event.DIFFERS: _row(None, _DIFFERS[_PREPARED], _DIFFERS[_COMMITTED], _DIFFERS[_ROLLED_BACK], _DIFFERS[_PARKED]),
    Event.COMMIT: _row(_NOT_FOUND, _ok(_COMMITTED), _ok(_COMMITTED), _OTHERWISE_LISTED[_ROLLED_BACK], _ok(_COMMITTED)),
    Event.COMMIT_INCOMPLETE: _row(_NOT_FOUND, _INCOMPLETE[_PREPARED], _DIFFERS[_COMMITTED], _OTHERWISE[_ROLLED_BACK], _INCOMPLETE[_PARKED]),
    Event.ROLLBACK: _row(_ok(_ROLLED_BACK), _ok(_ROLLED_BACK), _OTHERWISE[_COMMITTED], _ok(_ROLLED_BACK), _ok(_ROLLED_BACK)),
    Event.VERDICT_COMMITTED: _row(_IGNORED[None], _ok(_COMMITTED), _IGNORED[_COMMITTED], _CONTRARY[_ROLLED_BACK], _ok(_COMMITTED)),
    Event.VERDICT_INCOMPLETE: _row(_IGNORED[None], _INCOMPLETE[_PREPARED], _CONTRARY[_COMMITTED], _CONTRARY[_ROLLED_BACK], _INCOMPLETE[_PARKED]),
    Event.VERDICT_ROLLED_BACK: _row(_IGNORED[None], _ok(_ROLLED_BACK), _CONTRARY[_COMMITTED], _IGNORED[_ROLLED_BACK], _ok(_ROLLED_BACK)),
    Event.RUNNING: _row(_IGNORED[None], _ok(_PREPARED), _IGNORED[_COMMITTED], _IGNORED[_ROLLED_BACK], _ok(_PARKED)),
    Event.NO_ANSWER: _row(_IGNORED[None], _ok(_PREPARED), _IGNORED[_COMMITTED], _IGNORED[_ROLLED_BACK], _ok(_PARKED)),
    Event.UNKNOWN: _row(_IGNORED[None], _ok(_PREPARED), _IGNORED[_COMMITTED], _IGNORED[_ROLLED_BACK], _ok(_PARKED)),
    Event.UNKNOWN_LAST: _row(_IGNORED[None], _ok(_PARKED), _IGNORED[_COMMITTED], _IGNORED[_ROLLED_BACK], _ok(_PARKED)),
    Event.MAX_AGE: _row(None, _ok(_PARKED), _IGNORED[_COMMITTED], _IGNORED[_ROLLED_BACK], _ok(_PARKED)),
    Event.PARK: _row(_NOT_FOUND, _ok(_PARKED), _OTHERWISE[_COMMITTED], _OTHERWISE[_ROLLED_BACK], _ok(_PARKED)),
    Event.FORCE_COMMIT: _row(_NOT_FOUND, _no(_PREPARED, Outcome.STATE_CHANGED), _OTHERWISE[_COMMITTED], _OTHERWISE[_ROLLED_BACK], _ok(_COMMITTED)),
    Event.FORCE_ROLLBACK: _row(
        _NOT_FOUND, _no(_PREPARED, Outcome.STATE_CHANGED), _OTHERWISE[_COMMITTED], _OTHERWISE[_ROLLED_BACK], _ok(_ROLLED_BACK)
    ),
}


def step(state: State | None, event: Event) -> Step:
    """The one way to change a state. `state` None means that the coordinator knows no such transaction.

    Raises `IllegalEvent` for a pair that is not in the table.
    """
    found = TABLE[event].get(state)
    if found is None:
        raise IllegalEvent(state, event)
    return found


def is_decided(state: State) -> bool:
    return state is State.COMMITTED or state is State.ROLLED_BACK
