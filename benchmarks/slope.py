"""Does a figure grow over a run? A straight line through its samples, and whether that line clearly rises. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

T = TypeVar("T")

ERRORS_MIN: Final = 4.0
"""A rise counts from so many standard errors of the line on; samples in a row are alike, so three would cry wolf."""
WARM_UP: Final = 0.25
"""The first part of a run in which caches fill; it is not judged."""


@dataclass(frozen=True, slots=True)
class Line:
    """`per_s`: the slope; `error`: its standard error; `rise`: what the line gains from the first sample to the last."""

    per_s: float
    error: float
    rise: float

    @property
    def clearly_rises(self) -> bool:
        return self.per_s > ERRORS_MIN * self.error


def judged(samples: Sequence[T], warm_up: float = WARM_UP) -> Sequence[T]:
    return samples[int(len(samples) * warm_up) :]


def fit(samples: Sequence[tuple[float, float]]) -> Line:
    """Least squares through (seconds, value). Raises ValueError for fewer than three samples."""
    count = len(samples)
    if count < 3:
        raise ValueError(f"{count} samples show no slope; take at least 3")
    mean_x, mean_y = (sum(sample[axis] for sample in samples) / count for axis in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    per_s = sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread
    left = sum((y - mean_y - per_s * (x - mean_x)) ** 2 for x, y in samples)
    return Line(per_s, math.sqrt(left / (count - 2) / spread), per_s * (samples[-1][0] - samples[0][0]))


def grows(samples: Sequence[tuple[float, float]], slack: float, warm_up: float = WARM_UP) -> bool:
    """The line through what follows the warm-up rises clearly, and by more than `slack` over that part of the run."""
    line = fit(judged(samples, warm_up))
    return line.clearly_rises and line.rise > slack
