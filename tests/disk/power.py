"""Power cuts: a real coordinator under load, every call on its files recorded, and the disks that cuts at random moments would leave.

Each image is opened by the store's own code, as a start would, and judged: SQLite's integrity check, every invariant of doctor, and every
answer that was given before the cut. An answer counts from the moment it is handed to the socket. `make power-test IMAGES=50000` is the
long form; in the suite tests/disk/test_power.py draws a thousand. Both draw some from a run with `synchronous=NORMAL` as well: it must
lose answers, and must not be damaged. Else the harness is blind, and nothing that it says counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from halfmsg.coordinator.clock import SystemClock
from halfmsg.coordinator.env import Env
from halfmsg.coordinator.errors import StartError
from halfmsg.coordinator.settings import Settings
from halfmsg.coordinator.store.sqlite.backend import SqliteBackend
from tests.disk import facts, images, load, shim, trace
from tests.disk.facts import Fact
from tests.disk.processes import Stuck, Zygote
from tests.disk.trace import Kind, Record

PER_CUT: Final = 2
CONTROL: Final = 500
"""Images of the control."""
WORKLOADS: Final = {
    # name: (steps a client, large bodies, pages between checkpoints)
    "mixed": (30, False, 20),
    "large": (12, True, 40),
    "often": (25, False, 4),
    "rare": (25, False, 200),
    "longer": (70, False, 30),
}


@dataclass(frozen=True, slots=True)
class Recording:
    """One run: its records, and each fact with the number of records before its answer."""

    name: str
    records: list[Record]
    told: list[tuple[int, Fact]]
    may_commit: dict[bytes, bool]
    synchronous: str

    def count(self, kind: Kind, file: str) -> int:
        return sum(record.kind is kind and record.file == file for record in self.records)

    @property
    def resets(self) -> int:
        """How often the WAL began anew: a write at its head."""
        return sum(record.kind is Kind.WRITE and record.file == "w" and record.at == 0 for record in self.records)


def record(zygote: Zygote, folder: Path, name: str, seed: int, *, synchronous: str = "", plant: str = "") -> Recording:
    """Run a workload to its end, stop the coordinator in good order, and read what was recorded. Raises Stuck."""
    steps, large, wal_pages = WORKLOADS[name]
    folder.mkdir(parents=True, exist_ok=True)
    store, log = folder / "store.db", folder / "calls.log"
    one = zygote.start(
        store, "--set", "check.first_delay_s=300", env=shim.environment(store, log=log, data=True), wal_pages=wal_pages,
        synchronous=synchronous, plant=plant,
    )  # fmt: skip
    if not one.wait_up():
        raise Stuck(f"ended with {one.code}:\n{one.said()}")
    books = load.run(one.port, seed, steps, large=large)
    code = one.stop()
    if code != 0 or "Traceback" in one.said():
        raise Stuck(f"ended with {code}:\n{one.said()}")
    records = list(trace.read(log, data=True))
    shutil.rmtree(folder)
    return Recording(name, records, list(_dated(records, books)), books.may_commit, synchronous or "FULL")


def _dated(records: list[Record], books: load.Books) -> Iterator[tuple[int, Fact]]:
    """Facts with the place of their answer among the records."""
    sent: dict[int, list[int]] = {}
    for number, one in enumerate(records):
        if one.kind is Kind.SEND:
            sent.setdefault(one.port, []).append(number)
    for answer, told in books.told:
        for fact in told:
            yield sent[answer.port][answer.nth] + 1, fact


@dataclass
class Result:
    images: int = 0
    lost: int = 0
    """Images with a broken promise."""
    corrupt: int = 0
    """Images that do not open, fail SQLite's check or an invariant."""
    examples: list[str] = field(default_factory=list)
    ways: Counter[str] = field(default_factory=Counter)
    facts: int = 0

    def add(self, other: Result) -> None:
        self.images += other.images
        self.lost += other.lost
        self.corrupt += other.corrupt
        self.facts += other.facts
        self.examples = (self.examples + other.examples)[:20]
        self.ways += other.ways


def examine(recording: Recording, folder: Path, seed: int, count: int) -> Result:
    """Cut at `count` / 2 random moments and judge two images each. The seed replays it over the same recording."""
    chance, result = random.Random(seed), Result()
    cuts = sorted(chance.randrange(len(recording.records) + 1) for _ in range((count + PER_CUT - 1) // PER_CUT))
    told = sorted(recording.told, key=lambda each: each[0])
    disk, done, known = images.Disk(), 0, 0
    store = folder / "image.db"
    for cut in cuts:
        while done < cut:
            disk.take(recording.records[done])
            done += 1
        while known < len(told) and told[known][0] <= cut:
            known += 1
        for _ in range(min(PER_CUT, count - result.images)):
            way = chance.choice(images.WAYS)
            images.write(disk.image(way, chance), store)
            wrong = judge(store, [fact for _, fact in told[:known]], recording.may_commit, recording.synchronous)
            result.images += 1
            result.facts += known
            result.ways[way] += 1
            _note(result, wrong, f"{recording.name}, seed {seed}, cut {cut} of {len(recording.records)}, {way}")
    return result


def _note(result: Result, wrong: list[str], where: str) -> None:
    damage = [each for each in wrong if each.startswith(("start", "integrity", "doctor"))]
    result.corrupt += bool(damage)
    result.lost += len(wrong) > len(damage)
    if wrong:
        result.examples.append(f"{where}: {'; '.join(wrong[:3])}")


def judge(store: Path, told: list[Fact], may_commit: dict[bytes, bool], synchronous: str = "FULL") -> list[str]:
    """Open a file as a start does, and say what is wrong with it; it is closed in good order again."""
    try:
        backend = SqliteBackend(store, env=Env(Settings()), synchronous=synchronous, now_ms=SystemClock().now_ms())
    except (StartError, sqlite3.DatabaseError) as error:
        return [f"start: {error}"]
    try:
        return facts.judge(backend.tx.conn, told, may_commit)
    finally:
        backend.close()


# --- the long form -----------------------------------------------------------------------------------------------------------

_recordings: list[Recording] = []


def _slice(work: tuple[int, int, int]) -> tuple[int, Result]:
    which, seed, count = work
    with tempfile.TemporaryDirectory(prefix="halfmsg-image-", dir=memory()) as folder:
        return which, examine(_recordings[which], Path(folder), seed, count)


def memory() -> str | None:
    """A folder in memory, where there is one: an image is written once and read once."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--synchronous", default="", help="NORMAL or OFF, to see what is lost then")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}, {given.images} images over {len(WORKLOADS)} workloads", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="halfmsg-power-", dir=memory()) as folder, Zygote() as zygote:
        for name in WORKLOADS:
            one = record(zygote, Path(folder) / name, name, seed, synchronous=given.synchronous)
            _recordings.append(one)
            print(f"  {name:8} {len(one.records):6} calls, {one.count(Kind.SYNC, 'w')} syncs of the WAL, {one.resets} times begun anew, "
                  f"{len(one.told)} promises", flush=True)  # fmt: skip
        blind = None if given.synchronous else _control(zygote, Path(folder), seed)
    slices = max(1, given.images // 250)
    work = [(i % len(_recordings), seed * 10_000 + i, given.images // slices + (i < given.images % slices)) for i in range(slices)]
    total = Result()
    with multiprocessing.get_context("fork").Pool(given.jobs) as pool:
        for i, (_, part) in enumerate(pool.imap_unordered(_slice, work), 1):
            total.add(part)
            if i % 20 == 0 or i == slices:
                print(f"  {total.images} images, {total.lost} lost, {total.corrupt} corrupt, {time.monotonic() - started:.0f} s", flush=True)
    print(f"{total.images} images, {total.facts} promises looked at, {total.lost} images with losses, {total.corrupt} corrupt; "
          f"{dict(total.ways)}; {time.monotonic() - started:.0f} s")  # fmt: skip
    print("\n".join(total.examples))
    if blind is not None:
        print(blind)
    return 1 if total.lost or total.corrupt or blind is not None else 0


def _control(zygote: Zygote, folder: Path, seed: int) -> str | None:
    """What makes the run worth nothing, if anything does."""
    recording = record(zygote, folder / "control", "mixed", seed, synchronous="NORMAL")
    found = examine(recording, folder, seed, CONTROL)
    print(f"  control, NORMAL: {found.images} images, {found.lost} with losses, {found.corrupt} corrupt", flush=True)
    if not found.lost:
        return "blind: the control has lost nothing"
    return f"the control was damaged: {found.examples[0]}" if found.corrupt else None


if __name__ == "__main__":
    sys.exit(main())
