"""A short run of the kill test in the suite; the long one is `make kill-test`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from halfmsg.coordinator.store import failpoints
from tests.kill.plan import Plan
from tests.kill.report import table
from tests.kill.run import RATE, Harness

CYCLES = 50
SEED = 7


@pytest.mark.slow
@pytest.mark.timeout(400)  # about 75 s; a loaded machine may be slow to start processes, and each wait in the run has its own limit
def test_promises_hold_over_kills(tmp_path: Path) -> None:
    """P1-P8: processes are killed under load; nothing is lost, ghost, doubled, inverted, decided twice or wrong."""
    lines: list[str] = []
    report = Harness(tmp_path, SEED, CYCLES, RATE, lines.append).run()
    assert report.ok, "\n".join([*lines, *table(report), f"history and logs: {tmp_path}"])
    assert report.cycles == CYCLES
    assert report.messages > 100
    assert report.effects > report.messages
    assert sum(report.kills.values()) >= CYCLES / 2
    for name, kills in report.kills.items():
        assert len(set(report.pids[name])) == kills + 1, f"{name} was killed {kills} times and had the pids {report.pids[name]}"
    for pids in report.pids.values():
        assert not any(_lives(pid, tmp_path) for pid in pids)


def _lives(pid: int, folder: Path) -> bool:
    """Is it still one of ours? Its number may have been given away."""
    try:
        return str(folder) in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_the_plan_lets_every_fail_point_fire_in_60_cycles() -> None:
    """Whatever the seed, each name comes up, also where one does not fire the first time."""
    for seed in range(50):
        plan, drawn = Plan(seed, failpoints.NAMES), set[str]()
        for number in range(1, 61):
            cycle = plan.cycle(number)
            if cycle.point and cycle.point not in drawn and number % 5 == 0:
                plan.did_not_fire(cycle)
            elif cycle.point:
                drawn.add(cycle.point)
        assert drawn == set(failpoints.NAMES), f"seed {seed} left out {set(failpoints.NAMES) - drawn}"


def test_the_same_seed_draws_the_same_plan() -> None:
    """A failure can be looked for again; moments of real processes differ all the same."""
    one, two = Plan(11, failpoints.NAMES), Plan(11, failpoints.NAMES)
    assert [one.cycle(number) for number in range(40)] == [two.cycle(number) for number in range(40)]


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_every_point_has_a_count_that_the_load_reaches() -> None:
    """A new fail point must be given one, else it would be armed for its first time only."""
    from tests.kill.plan import COUNTS, RARE

    assert set(COUNTS) | {RARE} == set(failpoints.NAMES)
