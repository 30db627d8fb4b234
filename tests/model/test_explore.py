"""The search itself: a shortest trace, a dead end, a bound."""

from __future__ import annotations

from collections.abc import Iterable

from tests.model import explore


def steps(number: int) -> Iterable[tuple[str, int]]:
    if number < 20:
        yield "add one", number + 1
        yield "double", number * 2


def test_explore_reports_a_shortest_trace() -> None:
    """Breadth first: the violation is reached by as few steps as there can be."""
    report = explore.explore(1, steps, lambda number: ["P1: twelve"] if number == 12 else [])
    assert (report.violation, len(report.trace)) == ("P1: twelve", 4)


def test_explore_looks_only_for_the_promise_asked_for() -> None:
    """A nearer violation of another promise is passed over."""
    report = explore.explore(1, steps, lambda number: ["P1: two"] if number == 2 else ["P2: five"] if number == 5 else [], promise="P2")
    assert report.violation == "P2: five"


def test_explore_reports_stuck_when_no_settled_state_can_be_reached() -> None:
    """A loop that never settles is as stuck as a state without successors."""

    def ring(number: int) -> Iterable[tuple[str, int]]:
        yield "round", {0: 1, 1: 0, 2: 3}.get(number, 3)
        if number == 0:
            yield "leave the good ring", 2

    report = explore.explore(0, ring, lambda _: (), lambda number: number == 1)
    assert (report.violation, report.trace) == (explore.STUCK, ("leave the good ring",))


def test_explore_says_truncated_when_the_bound_is_reached() -> None:
    """A search that was cut short never passes for a clean one."""
    report = explore.explore(1, steps, lambda _: (), max_states=5)
    assert report.truncated and report.violation is None
