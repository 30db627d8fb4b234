"""20,000 ordered effects under kills and pauses in the suite; the long form is `make order-test EFFECTS=1000000`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kill.order import Effect, Order, judge

EFFECTS = 20_000
SEED = 3
COMMITTED = {"east": {"a": 3, "b": 1}, "west": {"a": 2}}


@pytest.mark.slow
@pytest.mark.timeout(400)  # about a minute on two idle cores
def test_p7_ordered_effects_over_kills_pauses_and_nacks(tmp_path: Path) -> None:
    """P6, P7: each effect once, and per producer and key in the order of the local commits, whatever happens to the members."""
    lines: list[str] = []
    report = Order(tmp_path, SEED, EFFECTS, lines.append).run()
    assert report.ok, "\n".join([*lines, report.line(), *report.verdict.examples, *report.problems])
    assert report.effects == EFFECTS
    assert report.acts["killed"] >= 3 and report.acts["stopped past the lease"] >= 3


def effects(*found: tuple[str, str, int]) -> list[Effect]:
    return [(producer, key, number, number) for producer, key, number in found]


RIGHT = effects(("east", "a", 1), ("west", "a", 1), ("east", "a", 2), ("east", "b", 1), ("west", "a", 2), ("east", "a", 3))


def test_judge_passes_what_is_in_order() -> None:
    """Two producers of one key are two orders."""
    assert judge(RIGHT, COMMITTED).ok


@pytest.mark.parametrize(
    ("planted", "kind"),
    [
        (RIGHT[:-1], "lost"),
        ([*RIGHT, ("east", "a", 3, 3)], "doubled"),
        ([*RIGHT[:2], RIGHT[5], RIGHT[2], *RIGHT[3:5]], "inversions"),
        ([*RIGHT[:2], *RIGHT[3:]], "skips"),
        ([*RIGHT, ("east", "b", 2, 2)], "ghosts"),
        ([*RIGHT[:-1], ("east", "a", 3, 4)], "misnumbered"),
    ],
)
def test_judge_finds(planted: list[Effect], kind: str) -> None:
    """Each kind of wrong is found where it was planted."""
    verdict = judge(planted, COMMITTED)
    assert (getattr(verdict, kind) == 1 and verdict.examples) or kind == "lost"
    assert not verdict.ok
