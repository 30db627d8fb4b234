"""`make order-test EFFECTS=1000000`: 100 keys, two producers, 8 members of a group that are killed, stopped past their lease, and nack.

Each message must have its effect once, in the order of its producer's local commits: no inversion, no skip, none twice, none lost.
The figures are printed every five seconds; it ends when all effects are there, or when none came for a minute.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.kill import collect, load
from tests.kill.order_work import GROUP, KEYS, LEASE_S, PRODUCERS, TOPIC, count_effects, make_database
from tests.kill.processes import HALFMSG, HOST, Api, Program, Stuck, free_port, says, wait_for
from tests.kill.zygote import Zygote

MEMBERS: Final = 8
STALL_S: Final = 60.0
SAY_S: Final = 5.0
CALM_S: Final = (0.2, 1.2)
"""Between two acts of violence."""
SHOWN: Final = 10
Effect = tuple[str, str, int, int]
"""Producer, key, the load's own number, the library's number; in the order of the commits."""


@dataclass(slots=True)
class Verdict:
    """What is wrong, by kind; right where all are 0."""

    inversions: int = 0
    skips: int = 0
    doubled: int = 0
    lost: int = 0
    ghosts: int = 0
    misnumbered: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not any((self.inversions, self.skips, self.doubled, self.lost, self.ghosts, self.misnumbered))

    def line(self) -> str:
        kinds = ("inversions", "skips", "doubled", "lost", "ghosts", "misnumbered")
        return ", ".join(f"{kind} {getattr(self, kind)}" for kind in kinds)

    def note(self, text: str) -> None:
        if len(self.examples) < SHOWN:
            self.examples.append(text)


def judge(effects: Iterable[Effect], committed: Mapping[str, Mapping[str, int]]) -> Verdict:
    """`committed`: how many each producer has committed on each key. Pure; holds one number a key, so a million are no burden."""
    verdict, last, missing = Verdict(), dict[tuple[str, str], int](), dict[tuple[str, str], set[int]]()
    for producer, key, number, sequence in effects:
        at, before = (producer, key), last.get((producer, key), 0)
        name = f"{producer} {key} {number}"
        if number != sequence:
            verdict.misnumbered += 1
            verdict.note(f"{name} has the number {sequence}")
        if number > committed.get(producer, {}).get(key, 0):
            verdict.ghosts += 1
            verdict.note(f"{name} was never committed")
        elif number > before + 1:
            verdict.skips += number - before - 1
            missing.setdefault(at, set()).update(range(before + 1, number))
            verdict.note(f"{name} came after {before}")
        elif number <= before:
            late = number in missing.get(at, ())
            missing.get(at, set()).discard(number)
            verdict.inversions += late
            verdict.doubled += not late
            verdict.note(f"{name} {'came late' if late else 'came again'}, after {before}")
        last[at] = max(before, number)
    verdict.lost = sum(map(len, missing.values()))
    for producer, counts in committed.items():
        verdict.lost += sum(max(0, count - last.get((producer, key), 0)) for key, count in counts.items())
    return verdict


@dataclass(slots=True)
class Report:
    effects: int = 0
    seconds: float = 0.0
    acts: Counter[str] = field(default_factory=Counter)
    dead: int = 0
    verdict: Verdict = field(default_factory=Verdict)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.verdict.ok and not self.problems and not self.dead

    def line(self) -> str:
        acts = ", ".join(f"{what} {count}" for what, count in sorted(self.acts.items()))
        rate = self.effects / max(self.seconds, 0.001)
        return f"{self.effects:,} effects in {self.seconds:.0f} s ({rate:,.0f}/s), {acts}, dead letters {self.dead}: {self.verdict.line()}"


class Order:
    """One run in one folder; ends all that it started."""

    def __init__(self, folder: Path, seed: int, effects: int, say: Callable[[str], None]) -> None:
        self.folder, self.effects, self.say = folder, effects, say
        self.chance, self.report = random.Random(seed), Report()
        self.zygote = Zygote(folder)
        self.api = Api(free_port())
        url = f"http://{HOST}:{self.api.port}"
        serve = ["serve", "--listen", f"{HOST}:{self.api.port}", "--store", str(folder / "coordinator.db")]
        common = ["--folder", str(folder), "--url", url, "--seed", str(seed)]

        def work(name: str, *more: str) -> Program:
            arguments = ["--process", name, *common, *more]
            return Program(name, "tests.kill.order_work", arguments, folder / f"{name}.log", lambda self: says(self, "ready"), self.zygote)

        share = effects // len(PRODUCERS)
        self.coordinator = Program("coordinator", HALFMSG, serve, folder / "coordinator.log", lambda _: self.api.is_ready(), self.zygote)
        self.loads = [work(name, "--effects", str(share)) for name in PRODUCERS]
        self.members = [work(f"member-{number}") for number in range(1, MEMBERS + 1)]
        self.wanted = share * len(PRODUCERS)

    def run(self) -> Report:
        began = time.monotonic()
        try:
            self._begin()
            self._violence()
            self._judge()
        except Stuck as stuck:
            self.report.problems.append(str(stuck))
        finally:
            for program in (*self.members, *self.loads, self.coordinator):
                program.end_now()
            self.zygote.close()
            self.report.seconds = time.monotonic() - began
        return self.report

    def _begin(self) -> None:
        make_database(self.folder)
        self.coordinator.start()
        self.coordinator.wait_up()
        self.api.must("PUT", f"/v1/topics/{TOPIC}", {"kind": "sequence", "lanes": 32})
        policy = {"lease_s": LEASE_S, "max_attempts": None, "backoff": {"first_s": 0.02, "max_s": 0.2}}
        self.api.must("PUT", f"/v1/groups/{GROUP}", {"topics": [{"topic": TOPIC}], **policy})
        for name in PRODUCERS:
            self.api.must("PUT", f"/v1/producers/{name}", {})
        for program in (*self.loads, *self.members):
            program.start()
        for program in (*self.loads, *self.members):
            program.wait_up()

    def _violence(self) -> None:
        """Until all effects are there; Stuck when none came for a minute."""
        began = moved = told = time.monotonic()
        count = 0
        while count < self.wanted:
            time.sleep(self.chance.uniform(*CALM_S))
            self._act(self.chance.choice(self.members))
            now, found = time.monotonic(), count_effects(self.folder)
            moved = now if found > count else moved
            count = found
            if now - told > SAY_S:
                told = now
                self.say(f"{now - began:7.0f} s  {count:,} of {self.wanted:,} effects  {count / (now - began):,.0f}/s  {dict(self.report.acts)}")
            if now - moved > STALL_S:
                raise Stuck(f"no effect for {STALL_S:g} s at {count:,} of {self.wanted:,}; {self.api.ask('GET', f'/v1/groups/{GROUP}')}")

    def _act(self, member: Program) -> None:
        if (code := member.ended()) is not None:
            raise Stuck(f"{member.name} ended by itself with {code}; its log is {member.log}")
        what = self.chance.choices(("killed", "stopped past the lease", "stopped"), weights=(5, 3, 1))[0]
        if what == "killed":
            member.kill()
            member.start()
            member.wait_up()
        else:
            member.signal(signal.SIGSTOP)
            time.sleep(LEASE_S * (self.chance.uniform(1.1, 1.8) if what != "stopped" else 0.5))
            member.signal(signal.SIGCONT)
        self.report.acts[what] += 1

    def _judge(self) -> None:
        report = self.report
        wait_for(lambda: all(says(each, "idle") for each in self.loads), 30.0, "the loads did not end")
        wait_for(lambda: not self.api.must("GET", f"/v1/groups/{GROUP}")["lag"], 30.0, "the group did not come to rest")
        report.dead = len(self.api.items(f"/v1/groups/{GROUP}/dead-letters")) + len(self.api.items(f"/v1/topics/{TOPIC}/dead-letters"))
        for program in (*self.members, *self.loads, self.coordinator):
            if (code := program.stop()) != 0:
                report.problems.append(f"{program.name} ended with {code} on SIGTERM; its log is {program.log}")
        report.problems += [f"doctor: {found.name}: {found.rows}" for found in collect.findings(load.database(self.folder, "coordinator"))]
        committed = {name: json.loads((self.folder / f"{name}.counts").read_text()) for name in PRODUCERS}
        with closing(sqlite3.connect(load.database(self.folder, GROUP), timeout=30)) as conn:
            report.effects = int(conn.execute("SELECT count(*) FROM effect").fetchone()[0])
            report.verdict = judge(conn.execute("SELECT producer, key, number, sequence FROM effect ORDER BY n"), committed)
        if len(KEYS) != len({key for counts in committed.values() for key, count in counts.items() if count}):
            report.problems.append("not every key was used")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effects", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    folder = Path(tempfile.mkdtemp(prefix="halfmsg-order-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"seed {seed}, {given.effects:,} effects, {len(KEYS)} keys, {MEMBERS} members, files in {folder}", flush=True)
    report = Order(folder, seed, given.effects, lambda line: print(line, flush=True)).run()
    print(f"seed {seed}: {report.line()}")
    print("\n".join([*report.verdict.examples, *report.problems[:SHOWN]]) or "in order, each once")
    if report.ok:
        shutil.rmtree(folder)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
