"""What is done to whom in each cycle, drawn from one seed. Pure.

Fail points come round like cards of a deck: one that did not fire in its time goes back under them, so in a long run each fires.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

RARE: Final = "checkpoint"
"""Needs megabytes of WAL first, so it comes once in `RARE_EVERY` cycles and not once a deck."""
RARE_EVERY: Final = 40
LEASE: Final = "expired"
"""Needs a consumer that does not come back in time, so one is stopped."""
GAP: Final = "held"
"""Needs a number that is missing for a moment, so a producer is killed: what it had prepared waits for its check-back."""
COUNTS: Final = {"begun": 80, "applied": 80, "committed": 80, "handed_out": 40, "settled": 60, "decided": 30, "released": 40, "half_stored": 12,
                 "prepared": 12, "held": 1, "expired": 1}  # fmt: skip
"""The n-th time that a name is reached, at most; by how often the load reaches it in about two seconds."""

ACTS: Final = {"fail": 50, "kill": 15, "start": 7, "producer": 9, "relay": 3, "consumer": 10, "zombie": 4, "pause": 2}
"""fail: the coordinator kills itself at a named place; kill: it is killed at a random moment; start: killed while it starts; the next three
are killed at a random moment, at times again while they start; zombie: a consumer is stopped past its lease; pause: a producer past its check."""


@dataclass(frozen=True, slots=True)
class Cycle:
    number: int
    act: str
    point: str = ""
    count: int = 1
    victim: int = 0
    moment_s: float = 0.0
    twice: bool = False

    def __str__(self) -> str:
        return f"{self.act} {self.point}@{self.count}" if self.point else self.act


class Plan:
    def __init__(self, seed: int, names: tuple[str, ...]) -> None:
        self._chance = random.Random(seed)
        self._names = [name for name in names if name != RARE]
        self._deck: list[str] = []
        self._rare_due = 3

    def cycle(self, number: int) -> Cycle:
        chance = self._chance
        act = chance.choices(list(ACTS), weights=list(ACTS.values()))[0]
        if number >= self._rare_due:
            act = "fail"
        point = self._draw(number) if act == "fail" else ""
        count = chance.randint(1, COUNTS.get(point, 1)) if chance.random() < 0.7 else 1
        return Cycle(number, act, point, count, chance.randrange(1_000), chance.uniform(0.0, 0.8), chance.random() < 0.2)

    def _draw(self, number: int) -> str:
        if number >= self._rare_due:
            self._rare_due = number + RARE_EVERY
            return RARE
        if not self._deck:
            self._deck = self._chance.sample(self._names, len(self._names))
        return self._deck.pop()

    def did_not_fire(self, cycle: Cycle) -> None:
        if cycle.point == RARE:
            self._rare_due = cycle.number + 5
        else:
            self._deck.insert(0, cycle.point)
