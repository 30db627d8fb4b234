"""`make kill-moments TIMES=100`: kill -9 at random moments of what a coordinator does seldom: its first start, a start on a full store, a
checkpoint, and the graceful stop under load. After the next start nothing that was acknowledged is gone, nothing that was refused is
there, and doctor finds nothing. One seed draws the moments. A kind whose kills all came beside its moment proves nothing, and is wrong as well.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sqlite3
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.kill import operations
from tests.kill.scene import Answers, Scene
from tests.kill.zygote import Zygote

COMMITTED: Final = 1
WORKERS: Final = 3
FIRST_S: Final = 0.03
"""From the making of the file to its tables, and some more."""
BIG: Final = 300_000
"""Bytes of a body that fills the WAL to a checkpoint within a second."""
MORE: Final = 20
"""Kills beyond those that were asked for, while none has come inside the moment."""
IN_IT: Final = "in it"
BACKFILLED: Final = 96
ATTEMPTED: Final = 128
"""Where SQLite's index of the WAL says how many frames a checkpoint has brought home, and how many it set out with (walformat, 2.3)."""


@dataclass(slots=True)
class Load:
    """Threads that submit transactions, and what each was told. Ends with the coordinator, or when told."""

    scene: Scene
    chance: random.Random
    size: int = 100
    told: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        for number in range(WORKERS):
            self._threads.append(threading.Thread(target=self._work, args=(self.chance.getrandbits(64) + number,), daemon=True))
            self._threads[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _work(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._over.is_set():
            id = f"{chance.getrandbits(128):032x}"
            body = {"id": id, "producer": operations.SHOP, "state": "committed", "messages": [{"topic": "notes", "data": "x" * self.size}]}
            answer = self.scene.ask("POST", "/v1/transactions", body)
            if answer is None:
                self.lost += 1
                return
            self.told[id] = answer[0]

    def wait_told(self, count: int) -> None:
        deadline = time.monotonic() + 20
        while len(self.told) < count and time.monotonic() < deadline:
            time.sleep(0.001)

    def wrong(self, scene: Scene) -> Iterator[str]:
        """Acknowledged and not there; refused and there."""
        with closing(sqlite3.connect(f"{scene.store.as_uri()}?mode=ro", uri=True)) as conn:
            there = {id.hex(): state for id, state in conn.execute("SELECT id, state FROM tx")}
        for id, status in self.told.items():
            if status < 300 and there.get(id) != COMMITTED:
                yield f"{id} was acknowledged with {status} and is {there.get(id, 'not there')}"
            if status >= 300 and id in there:
                yield f"{id} was refused with {status} and is there"


class Moments:
    def __init__(self, folder: Path, zygote: Zygote, answers: Answers, seed: int) -> None:
        self.folder, self.zygote, self.answers, self.chance = folder, zygote, answers, random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.kills: Counter[str] = Counter()
        self.inside: Counter[str] = Counter()
        self._count = 0
        self._start_s = 0.1

    def prepare(self) -> None:
        """A store with something in every state; and how long a start takes here."""
        self.full = Scene(self.zygote, self.folder / "full")
        self.full.folder.mkdir(parents=True)
        self.full.start()
        self.full.kill()  # the first fork waits for imports; the second one shows how long a start takes
        began = time.monotonic()
        self.full.start()
        self._start_s = time.monotonic() - began
        operations.base(self.full, self.answers)
        self.answers.verdict = None
        _fill(self.full)
        self.full.kill()
        self.grown = self.full.copy(self.folder / "grown")
        self.grown.start()
        operations.grow_wal(self.grown)
        self.grown.kill()

    def _scene(self, of: Scene | None = None) -> Scene:
        self._count += 1
        folder = self.folder / f"m{self._count}"
        if of is not None:
            return of.copy(folder)
        folder.mkdir()
        return Scene(self.zygote, folder)

    def _wait(self, most: float) -> None:
        time.sleep(self.chance.uniform(0, most))

    def note(self, name: str, how: str, *, inside: bool) -> None:
        """When a kill came, and whether that was in the moment which it is about."""
        self.seen[f"{name}, {how}"] += 1
        self.inside[name] += inside

    def first_start(self) -> Iterator[str]:
        """Killed while it makes its file; the next start makes it whole."""
        scene = self._scene()
        scene.begin()
        deadline = time.monotonic() + 10.0
        while not scene.store.exists() and time.monotonic() < deadline:
            time.sleep(0.0002)
        self._wait(FIRST_S)
        scene.kill()
        tables = _has_tables(scene)
        self.note("first start", f"killed {'with its tables there' if tables else 'before there were tables'}", inside=not tables)
        yield from self._comes_up(scene)

    def start(self) -> Iterator[str]:
        """Killed again and again while it starts on a full store."""
        scene = self._scene(self.full)
        times, inside = self.chance.randint(1, 4), 0
        for _ in range(times):
            scene.begin()
            self._wait(self._start_s * 1.3)
            scene.kill()
            inside += _opened(scene) and not scene.listens
        self.note("start", f"killed {times} times", inside=inside > 0)
        yield from self._comes_up(scene)
        if (found := _decisions(scene)) != (wanted := _decisions(self.full)):
            yield f"transactions differ: {wanted} before, {found} after"

    def checkpoint(self) -> Iterator[str]:
        """Killed while the WAL is written back into the file."""
        scene = self._scene(self.grown)
        wanted = _decisions(scene)
        scene.begin()
        during = _killed_as_the_file_changes(scene, self.chance.uniform(0, 0.004))
        self.note("checkpoint", f"killed {during}", inside=during == IN_IT)
        yield from self._comes_up(scene)
        if (found := _decisions(scene)) != wanted:
            yield f"transactions differ: {wanted} before, {found} after"

    def checkpoint_under_load(self) -> Iterator[str]:
        """The same inside a COMMIT, which checkpoints by itself after 16 MB."""
        scene = self._scene(self.full)
        scene.start()
        with Load(scene, self.chance, BIG) as load:
            load.wait_told(1)
            during = _killed_as_the_file_changes(scene, self.chance.uniform(0, 0.01))
        self.note("checkpoint under load", f"killed {during}", inside=during == IN_IT)
        yield from self._comes_up(scene)
        yield from load.wrong(scene)

    def drain(self) -> Iterator[str]:
        """SIGTERM under load, and kill -9 before it is done, or just after."""
        scene = self._scene(self.full)
        scene.start()
        with Load(scene, self.chance) as load:
            load.wait_told(self.chance.randint(3, 30))
            os.kill(scene.pid, signal.SIGTERM)
            code = scene.ended(self.chance.uniform(0, 0.08))
            scene.kill()
        told = "some refused" if any(status >= 300 for status in load.told.values()) else "none refused"
        self.note("stop", f"{'killed' if code is None else 'ended'}, {told}", inside=code is None)
        if code not in (None, 0):
            yield f"SIGTERM ended it with {code}: {scene.log[-1_000:]}"
        yield from self._comes_up(scene)
        yield from load.wrong(scene)

    def _comes_up(self, scene: Scene) -> Iterator[str]:
        scene.start()
        answer = scene.ask("PUT", "/v1/topics/after", {"kind": "unordered", "allow_no_group": True})
        if answer is None or answer[0] >= 300:
            yield f"a write after the restart is answered {answer}"
        yield from scene.ill()
        scene.kill()

    def all(self) -> dict[str, Callable[[], Iterator[str]]]:
        return {
            "first start": self.first_start, "start": self.start, "checkpoint": self.checkpoint, "checkpoint under load": self.checkpoint_under_load,
            "stop": self.drain,
        }  # fmt: skip

    def run(self, name: str, times: int, more: int = MORE) -> list[str]:
        """What was wrong, with the folder that shows it; folders of what was right are removed. Some more times, if none came inside the moment."""
        problems: list[str] = []
        done, inside = 0, self.inside[name]
        while done < times or (self.inside[name] == inside and done < times + more):
            done += 1
            found = list(self.all()[name]())
            folder = self.folder / f"m{self._count}"
            problems += [f"{name} ({folder}): {problem}" for problem in found]
            if not found:
                shutil.rmtree(folder)
        if self.inside[name] == inside:
            problems.append(f"{name}: none of {done} kills came inside it, so it was not tried")
        self.kills[name] += done
        return problems


def _fill(scene: Scene) -> None:
    """Prepared, committed, rolled back, parked, held behind a gap, in hand, failed and dead."""
    o = operations
    for act in (
        o.prepare(1, o.note(), o.order()), o.submit(2, o.note("1"), o.note("2")), o.rollback(3), o.parked(4), o.submit(5, o.order(2)),
        o.submit(6, o.order(1, "j")), o.submit(7, o.order(2, "j")), o.fetch("orders"), o.settle("nack", "orders", 0, 1),
        o.fetch("notes"), o.settle("reject", "notes", 0, 1, reason="no"),
    ):  # fmt: skip
        answer: Any = act(scene)
        if answer is None or answer[0] >= 300:
            raise RuntimeError(f"the store was not made: {answer}")


def _decisions(scene: Scene) -> list[tuple[Any, ...]]:
    """Each transaction, where its messages stand, and who has them: what no start may change."""
    rows = scene.rows_at_rest()
    tx = [(row[2].hex(), row[4], row[6]) for row in rows["tx"]]
    return [*tx, *((name, len(rows[name])) for name in ("log", "held", "message", "dead", "flight", "retry", "conflict", "audit"))]


def _has_tables(scene: Scene) -> bool:
    return bool(scene.rows_at_rest())


def _opened(scene: Scene) -> bool:
    """A copy of a store has no index of its WAL: who opens it makes one."""
    return scene.store.with_name(scene.store.name + "-shm").exists()


def _killed_as_the_file_changes(scene: Scene, after_s: float) -> str:
    """The main file is written to by a checkpoint alone; kill a moment after that begins. In what state that leaves the WAL."""
    wal = scene.store.with_name(scene.store.name + "-wal")
    before, deadline = scene.store.stat().st_mtime_ns, time.monotonic() + 10.0
    while scene.store.stat().st_mtime_ns == before and time.monotonic() < deadline:
        time.sleep(0.0002)
    time.sleep(after_s)
    scene.kill()
    if scene.store.stat().st_mtime_ns == before:
        return "before it"
    if not wal.exists() or not wal.stat().st_size:
        return "after it"
    return "at its end" if _all_is_home(scene) else IN_IT


def _all_is_home(scene: Scene) -> bool:
    """The index outlives a kill: SQLite notes what it sets out with before a checkpoint's first write, and what is done after its fsync."""
    index = scene.store.with_name(scene.store.name + "-shm").read_bytes()
    (done,), (wanted,) = struct.unpack_from("=I", index, BACKFILLED), struct.unpack_from("=I", index, ATTEMPTED)
    return bool(done >= wanted)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100, help="of each kind")
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    folder = Path(tempfile.mkdtemp(prefix="halfmsg-moments-"))
    print(f"seed {seed}, {given.times} of each, files in {folder}", flush=True)
    problems: list[str] = []
    with Zygote(folder) as zygote, Answers() as answers:
        moments = Moments(folder, zygote, answers, seed)
        moments.prepare()
        for name in moments.all():
            began = time.monotonic()
            found = moments.run(name, given.times)
            problems += found
            kills, inside, took = moments.kills[name], moments.inside[name], time.monotonic() - began
            print(f"{name:<24} {kills} kills, {inside} inside, {len(found)} wrong, {took:.1f} s", flush=True)
    print("\n".join(f"  {what}: {count}" for what, count in sorted(moments.seen.items())))
    print("\n".join(problems[:20]) or "nothing acknowledged was lost, nothing refused was stored, doctor found nothing")
    if not problems:
        shutil.rmtree(folder)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
