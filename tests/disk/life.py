"""A small life of a coordinator, from an empty folder to its end, in which one call on its files fails; and what must hold after it.

After every life: whatever was acknowledged is there when the store is opened without faults, whatever was refused for good is not, SQLite's
integrity check and every invariant of doctor are clean, and the process either went on to an end in good order or stopped by itself
with one line that says why. `make io-test` runs every kind of call and every n; the suite runs fsync and write.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.disk import facts, load, power, shim, trace
from tests.disk.load import ORDERED, PLAIN, Books, Worker
from tests.disk.processes import Running, Stuck, Zygote
from tests.disk.responder import Responder
from tests.disk.shim import Fault
from tests.disk.talk import Answer, Talk

WAL_PAGES: Final = 30
AT_ONCE: Final = 3
KINDS: Final = {
    # kind of call: the errors it may give; 0 is a short one
    "sync": (errno.EIO, errno.ENOSPC),
    "write": (errno.EIO, errno.ENOSPC, 0),
    "truncate": (errno.EIO, errno.ENOSPC),
    "open": (errno.EIO, errno.EMFILE, errno.ENOSPC),
    "unlink": (errno.EIO,),
    "read": (errno.EIO, 0),
}


@dataclass(slots=True)
class End:
    """How one life went. `fired`: the fault happened, on this file; `wrong`: what does not hold."""

    fault: Fault
    fired: str = ""
    code: int = 0
    started: bool = False
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    said: str = ""


def live(worker: Worker) -> None:
    """Each kind of act once or twice; whatever is refused is not asked again."""
    worker.set_up()
    worker.half_then("commit", PLAIN)
    worker.half_then("commit", ORDERED)
    worker.half_then("rollback", PLAIN)
    worker.half_then("nothing", PLAIN)
    worker.submit(ORDERED)
    worker.asked()
    worker.batch()
    worker.large = True
    worker.submit(PLAIN)
    worker.large = False
    fetched = worker.ask("POST", f"/v1/groups/{load.GROUP}/fetch", {"max": 9, "lease_s": 600, "member": "m"}, facts.of_deliveries)
    deliveries = fetched.body["deliveries"] if fetched.ok else []
    for delivery, what in zip(deliveries, ("ack", "nack", "reject", "ack"), strict=False):
        worker.settle(what, [delivery["token"]])
    worker.submit(PLAIN)


def run(zygote: Zygote, folder: Path, fault: Fault, seed: int, plant: str = "checkpoints") -> End:
    """One life with one fault, then a start without."""
    folder.mkdir(parents=True)
    store, log, end = folder / "store.db", folder / "calls.log", End(fault)
    one = zygote.start(store, "--set", "check.first_delay_s=300", env=shim.environment(store, log=log, fault=fault), wal_pages=WAL_PAGES, plant=plant)
    books = Books()
    try:
        if one.wait_up():
            end.started = True
            books = _lived(one, seed)
        end.code = one.wait_end() if not end.started or any(map(_is_fatal, books.refused)) else one.stop()
    except Stuck as stuck:
        end.wrong.append(f"stuck after {[(answer.status, answer.body) for answer in books.refused]}: {stuck}")
        return end
    finally:
        one.kill()
    end.fired = "".join(sorted({each.file for each in trace.faults(log)}))
    end.refused = Counter(answer.error or "no answer" for answer in books.refused)
    end.said = one.said()
    end.wrong += _ending(end, books)
    end.wrong += power.judge(store, [fact for _, told in books.told for fact in told], books.may_commit)
    shutil.rmtree(folder)
    return end


def _is_fatal(answer: Answer) -> bool:
    """Whoever is told this of a write, or nothing at all, is told that the coordinator stops: it must, by itself. A read may fail alone."""
    return answer.status == 0 or (answer.error in ("outcome_unknown", "storage_unavailable") and "cannot be read" not in answer.body["detail"])


def _lived(one: Running, seed: int) -> Books:
    responder = Responder()
    worker = Worker("w", Talk(one.port), random.Random(seed), responder)
    try:
        live(worker)
    finally:
        worker.talk.close()
        responder.close()
    return worker.books


def _ending(end: End, books: Books) -> list[str]:
    """The process stopped with a line and a code, or lived to its end in good order; and nobody got what is not in the book of codes."""
    found = []
    lines = [line for line in end.said.splitlines() if line.strip()]
    if end.code not in (0, 1):
        found.append(f"exit code {end.code}")
    if end.code and not (lines and lines[-1].startswith(("halfmsg: ", "Error: "))):
        found.append(f"stopped with {end.code} and these last words: {lines[-1:]}")
    if "Traceback" in end.said and not end.started:
        found.append("a traceback in place of a line")
    if end.code == 0 and not end.fired and end.refused:
        found.append(f"refused without a fault: {end.refused}")
    found += [f"answer {answer.status} {answer.error}" for answer in books.refused if answer.status == 500]
    if end.code == 0 and end.refused["no answer"]:
        found.append("no answer from a coordinator that goes on")
    return found


def faults(kind: str, number: int, *, on: bool) -> Iterator[Fault]:
    return (Fault(kind, number, code, on) for code in KINDS[kind])


@dataclass
class Tally:
    """What a series of lives came to."""

    lives: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    stopped: int = 0
    went_on: int = 0
    no_start: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, end: End) -> None:
        self.lives += 1
        self.no_start += not end.started
        self.stopped += end.started and end.code != 0
        self.went_on += end.started and end.code == 0
        self.refused += end.refused
        if end.wrong:
            self.wrong.append(f"{end.fault} (on {end.fired or 'nothing'}, exit {end.code}, {dict(end.refused)}): {'; '.join(end.wrong[:4])}")


def series(
    zygote: Zygote, folder: Path, plan: Iterator[tuple[int, list[Fault]]], seed: int, tally: Tally, kind: str, plant: str = "checkpoints"
) -> None:
    """Lives by the plan, `AT_ONCE` at a time, until all faults of one number came after the last call of their kind."""
    numbers = itertools.count()
    waiting: dict[Future[End], int] = {}
    past = False
    with ThreadPoolExecutor(AT_ONCE) as threads:
        while not past or waiting:
            while not past and len(waiting) < AT_ONCE:
                n, group = next(plan)
                for fault in group:
                    waiting[threads.submit(run, zygote, folder / f"{kind}-{next(numbers)}", fault, seed, plant)] = n
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                n = waiting.pop(future)
                end = future.result()
                tally.add(end)
                past = past or not (end.fired or end.wrong)
                if end.fired:
                    tally.calls[kind] = max(tally.calls.get(kind, 0), n)


def every(kind: str, *, on: bool, step: int = 1) -> Iterator[tuple[int, list[Fault]]]:
    """All errors at each n; with a `step` only at each so-manieth, beginning with the first."""
    for n in itertools.count(1, step):
        yield n, list(faults(kind, n, on=on))


def in_turn(kind: str) -> Iterator[tuple[int, list[Fault]]]:
    """Each n, with one error of its kind after the other: what a short run has time for."""
    for n in itertools.count(1):
        yield n, [Fault(kind, n, KINDS[kind][n % len(KINDS[kind])])]


def _line(kind: str, mode: str, tally: Tally, seconds: float) -> str:
    which = "from n on" if mode == "on" else "the n-th"
    ends = f"{tally.no_start} did not start, {tally.stopped} stopped, {tally.went_on} went on"
    calls = tally.calls.get(kind, 0)
    return (
        f"  {kind:8} {which:9} {calls:4} calls, {tally.lives} lives: {ends}; refused {dict(tally.refused)}; {len(tally.wrong)} wrong; {seconds:.0f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--modes", default="once,on", help="only the n-th call fails, or it and all later ones")
    parser.add_argument("--step", type=int, default=1, help="only each so-manieth n")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    print(f"seed {seed}", flush=True)
    started, total = time.monotonic(), 0
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="halfmsg-io-", dir=power.memory()) as folder, Zygote() as zygote:
        for kind, mode in itertools.product(given.kinds.split(","), given.modes.split(",")):
            tally, on = Tally(), mode == "on"
            series(zygote, Path(folder) / mode, every(kind, on=on, step=given.step), seed, tally, kind)
            total += tally.lives
            wrong += tally.wrong
            print("\n".join(tally.wrong), end="\n" if tally.wrong else "")
            print(_line(kind, mode, tally, time.monotonic() - started), flush=True)
    print(f"{total} lives, {len(wrong)} wrong, {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
