"""Breadth-first search over a small state graph: the first violation found has a shortest trace.

A model gives three functions. `successors` is all that can happen next, faults included; time is "may happen at any moment".
`violations` names each promise that a state breaks ("P2: ..."). `settled`, if given, is where a run may end well: a state from which no
settled one can be reached any more is a violation too (stuck), whatever goes round in it. Knows nothing of halfmsg.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

S = TypeVar("S", bound=Hashable)
STUCK = "P2: stuck, no way left to an effect or to a list that an operator sees"


@dataclass(frozen=True, slots=True)
class Report:
    """`violation` None: none within the bounds. `truncated`: max_states was reached, so the absence of one proves nothing."""

    states: int
    violation: str | None
    trace: tuple[str, ...]
    truncated: bool

    def __str__(self) -> str:
        if self.violation is None:
            return f"clean, {self.states} states{', truncated' if self.truncated else ''}"
        steps = "\n".join(f"  {number}. {step}" for number, step in enumerate(self.trace, 1))
        return f"{self.violation} ({self.states} states)\n{steps}"


def explore(
    initial: S,
    successors: Callable[[S], Iterable[tuple[str, S]]],
    violations: Callable[[S], Iterable[str]],
    settled: Callable[[S], bool] | None = None,
    *,
    promise: str = "",
    max_states: int = 400_000,
) -> Report:
    """Visit every reachable state once, in order of distance. `promise`: report only violations that start with it."""
    number_of: dict[S, int] = {initial: 0}
    states = [initial]
    parents, labels = array("l", [-1]), [""]
    sources, targets = array("l"), array("l")

    def report(violation: str | None, number: int, truncated: bool = False) -> Report:
        trace = []
        while number > 0:
            trace.append(labels[number])
            number = parents[number]
        return Report(len(states), violation, tuple(reversed(trace)), truncated)

    for number, state in enumerate(states):  # grows while it is walked: the queue
        for violation in violations(state):
            if violation.startswith(promise):
                return report(violation, number)
        for label, after in successors(state):
            found = number_of.get(after)
            if found is None:
                if len(states) >= max_states:
                    return report(None, 0, truncated=True)
                found = number_of[after] = len(states)
                states.append(after)
                parents.append(number)
                labels.append(label)
            sources.append(number)
            targets.append(found)
    if settled is not None and STUCK.startswith(promise):
        stuck = _first_stuck([settled(state) for state in states], sources, targets)
        if stuck is not None:
            return report(STUCK, stuck)
    return report(None, 0)


def _first_stuck(reaches: list[bool], sources: array[int], targets: array[int]) -> int | None:
    """Walk backwards from the settled states; the lowest number that was not met is the nearest stuck one."""
    into: list[list[int]] = [[] for _ in reaches]
    for source, target in zip(sources, targets, strict=True):
        into[target].append(source)
    walk = [number for number, good in enumerate(reaches) if good]
    while walk:
        for source in into[walk.pop()]:
            if not reaches[source]:
                reaches[source] = True
                walk.append(source)
    return next((number for number, good in enumerate(reaches) if not good), None)


def assert_clean(name: str, report: Report, *, states_min: int) -> None:
    """Every state within the bounds was seen, there were enough of them to mean something, and none breaks a promise."""
    print(f"{name}: {report}")
    assert report.violation is None, f"{name} should be clean\n{report}"
    assert not report.truncated, f"{name} is not exhaustive: {report}"
    assert report.states >= states_min, f"{name} has shrunk to {report.states} states (at least {states_min}): what is no longer modelled?"


def assert_found(name: str, report: Report, promise: str) -> None:
    """The planted fault is found, as a breach of the promise that it should break."""
    print(f"{name}: {report}")
    assert report.violation is not None, f"{name} should break {promise}, and the model no longer finds it: {report}"
    assert report.violation.startswith(promise), f"{name} should break {promise}\n{report}"
