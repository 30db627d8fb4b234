"""What a set of seeds found, and how it is shown."""

from __future__ import annotations

from collections import Counter

from .marks import MARKS, enough

LAST = 12
"""Of the last events of a world, so many are shown in the table of a set."""


class Total:
    """What all seeds found."""

    def __init__(self) -> None:
        self.seeds, self.virtual_s, self.told = 0, 0.0, 0
        self.marks: Counter[str] = Counter()
        self.failed: list[dict[str, object]] = []
        self.traces: dict[int, str] = {}

    def add(self, line: dict[str, object]) -> None:
        self.seeds += 1
        self.virtual_s += float(str(line["virtual_s"]))
        self.told += int(str(line["told"]))
        self.marks.update(line["marks"])  # type: ignore[call-overload]
        self.traces[int(str(line["seed"]))] = str(line["trace"])
        if line["wrong"]:
            self.failed.append(line)

    @property
    def missing(self) -> list[str]:
        return [name for name in MARKS if not self.marks[name]]

    def ok(self) -> bool:
        return not self.failed and enough(self.seeds, self.missing)


def table(total: Total, seconds: float) -> list[str]:
    lines = [
        f"{total.seeds} seeds in {seconds:.0f} s, {total.virtual_s:,.0f} s of virtual time, {total.told:,} answers about transactions",
        f"{len(MARKS) - len(total.missing)} of {len(MARKS)} marks reached" + (f"; never: {', '.join(total.missing)}" if total.missing else ""),
        f"{len(total.failed)} seeds with something wrong",
    ]
    for line in total.failed[:10]:
        lines += [f"  seed {line['seed']}: {wrong}" for wrong in line["wrong"][:3]]  # type: ignore[index]
        lines += [f"    {event}" for event in line["last"][-LAST:]]  # type: ignore[index]
        lines.append(f"    again: make sim SEED={line['seed']}")
    return lines
