"""Random damage to a stopped store, many times: `make flip-test FLIPS=2000 SEED=7`. Prints what became of each, and fails on what must never be."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

from tests.corruption.content import Record, copy, fill
from tests.corruption.judge import Verdict, judge

PLACES: Final = ("main", "main", "main", "main", "wal", "wal", "wal", "header", "shm", "cut main", "cut wal")
FILES: Final = {"main": "", "header": "", "cut main": "", "wal": "-wal", "cut wal": "-wal", "shm": "-shm"}


class Stores:
    """Two pristine stores, stopped and killed, and a copy to spoil."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.kinds: dict[str, tuple[Path, Record]] = {}
        for kind in ("stopped", "killed"):
            home = folder / kind
            home.mkdir()
            self.kinds[kind] = home / "halfmsg.db", fill(home, seed, killed=kind == "killed")

    def spoiled(self, kind: str, place: str, dice: random.Random, *, sums: bool) -> tuple[Path, Record, str]:
        source, record = self.kinds[kind]
        target = self.folder / "spoiled.db"
        for each in self.folder.glob("spoiled.db*"):
            each.unlink()
        copy(source, target)
        if not sums:
            target.with_name(target.name + "-sums").unlink(missing_ok=True)
        return target, record, damage(target, place, dice)


def damage(path: Path, place: str, dice: random.Random) -> str:
    file = path.with_name(path.name + FILES[place])
    data = bytearray(file.read_bytes())
    if place.startswith("cut"):
        at = dice.randrange(len(data))
        file.write_bytes(data[:at])
        return f"{place} at {at} of {len(data)}"
    at = dice.randrange(100 if place == "header" else len(data))
    bit = dice.randrange(8)
    data[at] ^= 1 << bit
    file.write_bytes(data)
    return f"{place} byte {at} bit {bit}"


def one(stores: Stores, dice: random.Random, *, sums: bool) -> tuple[str, str, Verdict]:
    """(kind and place, what was done, what came of it)."""
    place = dice.choice(PLACES)
    kind = "killed" if FILES[place] in ("-wal", "-shm") else dice.choice(("stopped", "killed"))
    path, record, what = stores.spoiled(kind, place, dice, sums=sums)
    return f"{kind} {place}", what, judge(path, record)


def run(flips: int, seed: int, *, sums: bool = True) -> tuple[Counter[tuple[str, str]], list[str]]:
    """(how often each place had each outcome, what must never be)."""
    counts: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        stores = Stores(Path(folder), seed)
        for number in range(flips):
            where, what, verdict = one(stores, dice, sums=sums)
            counts[where, verdict.what if not verdict.wrong else "WRONG"] += 1
            wrong += [f"seed {seed}, flip {number} ({where}: {what}): {each}" for each in verdict.wrong[:2]]
    return counts, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--without-sums", action="store_true", help="What a store without page sums would not see; never fails.")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    began = time.monotonic()
    counts, wrong = run(given.flips, given.seed, sums=not given.without_sums)
    for (where, what), count in sorted(counts.items()):
        print(f"{where:<18} {what:<12} {count}")
    for line in wrong[:20]:
        print(line)
    print(f"{given.flips} flips, {len(wrong)} wrong, {time.monotonic() - began:.1f} s")
    return int(bool(wrong) and not given.without_sums)


if __name__ == "__main__":
    sys.exit(main())
