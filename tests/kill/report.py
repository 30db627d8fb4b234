"""What one run did and found, and how people read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from halfmsg.coordinator.store import failpoints
from tests.support import checker

SHOWN: Final = 20


@dataclass(slots=True)
class Report:
    """What one run did and found."""

    folder: Path
    seed: int
    cycles: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    stops: Counter[str] = field(default_factory=Counter)
    fired: Counter[str] = field(default_factory=Counter)
    pids: dict[str, list[int]] = field(default_factory=dict)
    messages: int = 0
    effects: int = 0
    dead: int = 0
    acknowledged: int = 0
    seconds: float = 0.0
    verdict: checker.Verdict = field(default_factory=checker.Verdict)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.verdict.ok and not self.problems


def table(report: Report) -> Iterator[str]:
    """The end of a run, for people."""
    yield f"seed {report.seed}: {report.cycles} cycles in {report.seconds:.0f} s"
    yield "kills        " + ", ".join(f"{name} {count}" for name, count in report.kills.items() if count)
    yield "stopped      " + (", ".join(f"{name} {count}" for name, count in report.stops.items()) or "none")
    yield "fail points  " + ", ".join(f"{name} {report.fired[name]}" for name in failpoints.NAMES)
    yield f"messages     {report.messages:,} committed, {report.effects:,} effects, {report.dead} dead letters"
    yield f"answers      {report.acknowledged:,} acknowledgements to producers"
    yield "found        " + ", ".join(f"{kind} {count}" for kind, count in report.verdict.counts().items())
    for kind, count in report.verdict.counts().items():
        lines = getattr(report.verdict, kind)
        yield from (f"  {kind}: {line}" for line in lines[:SHOWN])
        if count > SHOWN:
            yield f"  {kind}: and {count - SHOWN} more"
    yield from (f"  {problem}" for problem in report.problems[:SHOWN])
