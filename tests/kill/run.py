"""`make kill-test CYCLES=300`: real processes under load, one killed or stopped in each cycle; then one history, and one checker over it.

Exit 0: all counts 0, all came to rest, and (from 60 cycles on) every named fail point fired. Exit 1: the first 20 of each kind, and where
the history and the logs are. Exit 2: something did not come up or down in time. The same seed draws the same plan; moments differ.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from halfmsg.coordinator.store import failpoints
from tests.kill import collect, load
from tests.kill.plan import GAP, LEASE, RARE, Cycle, Plan
from tests.kill.processes import Cast, Program, Stuck, cast, says, wait_for
from tests.kill.report import Report, table
from tests.kill.zygote import Zygote
from tests.support import checker, history

ALL_POINTS_FROM: Final = 60
RATE: Final = 20.0
PAUSE_S: Final = (0.1, 0.6)
FIRE_S: Final = 6.0
SETTLE_S: Final = 1.0
REST_S: Final = 60.0
BULK_TRANSACTIONS: Final = 10
BULK_BYTES: Final = 1_000_000


class Harness:
    """One run in one folder. `run` ends all that it started, also when it is interrupted."""

    def __init__(self, folder: Path, seed: int, cycles: int, rate: float, say: Any = print, *, fresh: bool = False) -> None:
        self.zygote = None if fresh else Zygote(folder)
        self.cast: Cast = cast(folder, seed, rate, self.zygote)
        self.plan = Plan(seed, failpoints.NAMES)
        self.chance = random.Random(seed + 1)
        self.report = Report(folder, seed)
        self.cycles, self.say = cycles, say
        self.path = folder / "history.jsonl"
        self.fired_path = folder / "failpoints.log"
        self.book = history.Writer(self.path, "harness")
        self.watcher = collect.Watcher(self.cast.api, self.book)

    def run(self) -> Report:
        began = time.monotonic()
        try:
            self._begin()
            for number in range(1, self.cycles + 1):
                self._one(self.plan.cycle(number))
            self._come_to_rest()
            self._judge()
        finally:
            self.cast.end_now()
            if self.zygote is not None:
                self.zygote.close()
            self.book.close()
            self._count_firings()
            self.report.seconds = time.monotonic() - began
            self.report.pids = {program.name: program.pids for program in self.cast.all}
            self.report.kills = Counter({program.name: program.kills for program in self.cast.all})
        if self.cycles >= ALL_POINTS_FROM:
            self.report.problems += [f"fail point {name} never fired" for name in failpoints.NAMES if not self.report.fired[name]]
        return self.report

    # --- the beginning ---

    def _begin(self) -> None:
        load.make_databases(self.report.folder)
        self._start(self.cast.coordinator)
        api = self.cast.api
        for name, kind in load.TOPICS.items():
            api.must("PUT", f"/v1/topics/{name}", {"kind": kind, "lanes": 8, "allow_no_group": name == load.BULK})
            self.book.add("topic", topic=name, kind=kind)
        backoff = {"first_s": 0.1, "max_s": 0.5}
        for group in load.GROUPS:
            topics = [load.ORDERED, load.PLAIN]
            wanted = {"topics": [{"topic": name} for name in topics], "lease_s": load.LEASE_S, "max_attempts": load.MAX_ATTEMPTS, "backoff": backoff}
            api.must("PUT", f"/v1/groups/{group}", wanted)
            self.book.add("group", group=group, topics=topics)
        for name in load.PRODUCERS:
            api.must("PUT", f"/v1/producers/{name}", {})
        api.must("PUT", f"/v1/producers/{load.BULK_PRODUCER}", {"check_url": f"http://127.0.0.1:{api.port}/nobody"})
        for program in self.cast.all[1:]:
            program.start()
        for program in self.cast.all[1:]:
            self._up(program)

    def _start(self, program: Program, **environment: str) -> None:
        program.start(**environment)
        self._up(program)

    def _up(self, program: Program) -> None:
        program.wait_up()
        self.book.add("started", process=program.name, pid=program.pid)

    def _kill(self, program: Program, how: str) -> None:
        pid = program.pid
        program.kill()
        self.book.add("killed", process=program.name, pid=pid, how=how)

    # --- cycles ---

    def _one(self, cycle: Cycle) -> None:
        began = time.monotonic()
        what = self._act(cycle)
        time.sleep(self.chance.uniform(*PAUSE_S))
        self._look_after_all()
        with contextlib.suppress(Stuck):
            self.watcher.look()
        self.report.cycles += 1
        self.say(f"{cycle.number:4}/{self.cycles}  {what:<46} {time.monotonic() - began:5.1f} s")

    def _act(self, cycle: Cycle) -> str:
        match cycle.act:
            case "fail":
                return self._fail(cycle)
            case "kill":
                return self._kill_coordinator(cycle)
            case "start":
                return self._kill_starting(cycle)
            case "zombie":
                return self._zombie(cycle)
            case "pause":
                return self._pause(cycle)
        among = {"producer": self.cast.producers, "relay": self.cast.relays, "consumer": self.cast.consumers}
        return self._kill_one(among[cycle.act], cycle)

    def _look_after_all(self) -> None:
        """Nobody but us may end a process."""
        for program in self.cast.all:
            if (code := program.ended()) is not None:
                self.report.problems.append(f"{program.name} ended by itself with {code}; its log is {program.log}")
                self._start(program)

    def _fail(self, cycle: Cycle) -> str:
        coordinator = self.cast.coordinator
        if cycle.point == RARE:
            self._fill_wal()  # what it leaves is checkpointed as soon as the next one has started
        self._kill(coordinator, "random moment")
        before = self._firings()
        self._start(coordinator, HALFMSG_FAILPOINTS=f"{cycle.point}@{cycle.count}", HALFMSG_FAILPOINT_LOG=str(self.fired_path))
        self._provoke(cycle)
        with contextlib.suppress(Stuck):
            wait_for(lambda: coordinator.ended() is not None, FIRE_S, "")
        fired = coordinator.ended() == -signal.SIGKILL and self._firings() > before
        if not fired:
            self.plan.did_not_fire(cycle)
        self._kill(coordinator, f"fail point {cycle.point}" if fired else "random moment")
        self._start(coordinator)
        return f"coordinator  {cycle.point}@{cycle.count} {'fired' if fired else 'did not fire'}"

    def _provoke(self, cycle: Cycle) -> None:
        """What the load alone does too seldom."""
        if cycle.point == LEASE:
            time.sleep(SETTLE_S)
            self._zombie(cycle)
        elif cycle.point == GAP:
            time.sleep(SETTLE_S)
            self._kill_one(self.cast.producers, cycle)

    def _firings(self) -> int:
        return len(self.fired_path.read_text().split()) if self.fired_path.exists() else 0

    def _fill_wal(self) -> None:
        """A reader that stays keeps the WAL from starting anew; what is rolled back leaves free pages, so the file stays small."""
        api = self.cast.api
        with closing(sqlite3.connect(f"file:{self.report.folder / 'coordinator.db'}?mode=ro", uri=True, isolation_level=None, timeout=10)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM topic").fetchone()
            message = {"topic": load.BULK, "data": "x" * BULK_BYTES}
            for _ in range(BULK_TRANSACTIONS):
                answer = api.ask("POST", "/v1/transactions", {"producer": load.BULK_PRODUCER, "messages": [message] * 4})
                if answer is None or answer[0] != 201:
                    return
                api.ask("POST", f"/v1/transactions/{answer[1]['id']}/rollback", {"producer": load.BULK_PRODUCER})

    def _kill_coordinator(self, cycle: Cycle) -> str:
        time.sleep(cycle.moment_s)
        self._kill(self.cast.coordinator, "random moment")
        time.sleep(cycle.moment_s if cycle.twice else 0.0)  # at times it stays away a little, so that rows gather
        self._start(self.cast.coordinator)
        return "coordinator  random moment"

    def _kill_starting(self, cycle: Cycle) -> str:
        self._kill(self.cast.coordinator, "random moment")
        self.cast.coordinator.start()
        time.sleep(cycle.moment_s * 1.5)
        self._kill(self.cast.coordinator, "starting")
        self._start(self.cast.coordinator)
        return f"coordinator  starting, after {cycle.moment_s * 1.5:.2f} s"

    def _kill_one(self, among: list[Program], cycle: Cycle) -> str:
        victim = among[cycle.victim % len(among)]
        time.sleep(cycle.moment_s)
        self._kill(victim, "random moment")
        if cycle.twice:
            victim.start()
            time.sleep(cycle.moment_s)
            self._kill(victim, "starting")
        self._start(victim)
        return f"{victim.name:<12} random moment{', and starting' if cycle.twice else ''}"

    def _zombie(self, cycle: Cycle) -> str:
        return self._stop_for(self.cast.consumers[cycle.victim % len(self.cast.consumers)], load.LEASE_S + 0.3 + cycle.moment_s)

    def _pause(self, cycle: Cycle) -> str:
        return self._stop_for(self.cast.producers[cycle.victim % len(self.cast.producers)], load.FIRST_CHECK_S + 0.5 + cycle.moment_s)

    def _stop_for(self, victim: Program, seconds: float) -> str:
        victim.signal(signal.SIGSTOP)
        self.book.add("stopped", process=victim.name, pid=victim.pid)
        time.sleep(seconds)
        victim.signal(signal.SIGCONT)
        self.book.add("continued", process=victim.name, pid=victim.pid)
        self.report.stops[victim.name] += 1
        return f"{victim.name:<12} stopped for {seconds:.1f} s"

    # --- the end ---

    def _come_to_rest(self) -> None:
        for program in self.cast.producers:
            program.signal(signal.SIGUSR1)
        try:
            wait_for(lambda: all(says(program, "idle") for program in self.cast.producers), REST_S, "the load did not end")
            self._end_bulk()
            wait_for(lambda: not self._left(), REST_S, "it did not come to rest")
        except Stuck as stuck:
            self.report.problems.append(f"{stuck}: {'; '.join(self._left())}")

    def _end_bulk(self) -> None:
        """What a fail point cut off between prepare and rollback: nobody else answers for it."""
        for item in self.cast.api.items(f"/v1/transactions?state=prepared&producer={load.BULK_PRODUCER}"):
            self.cast.api.must("POST", f"/v1/transactions/{item['id']}/rollback", {"producer": load.BULK_PRODUCER})

    def _left(self) -> list[str]:
        """What still moves; nothing twice in a row, since a message may be between two places."""
        found = self._left_now()
        return found or self._left_now()

    def _left_now(self) -> list[str]:
        api, left = self.cast.api, []
        for item in api.items("/v1/groups"):
            if item["lag"]:
                left.append(f"group {item['name']} has lag {item['lag']}, in flight {item['in_flight']}, blocked keys {item['blocked_keys']}")
        for item in api.items("/v1/producers"):
            if item["in_doubt"]:
                left.append(f"producer {item['name']} has {item['in_doubt']} in doubt, circuit open {item['circuit_open']}")
        if gaps := api.items("/v1/keys"):
            left.append(f"{len(gaps)} keys wait for a number, the first is {gaps[0]}")
        if rows := collect.unsent(self.report.folder):
            left.append(f"{rows} row sets are not handed over")
        return left

    def _judge(self) -> None:
        report, folder = self.report, self.report.folder
        report.dead = collect.coordinator(self.cast.api, self.watcher, self.book)
        for program in reversed(self.cast.all):
            if (code := program.stop()) != 0:
                report.problems.append(f"{program.name} ended with {code} on SIGTERM; its log is {program.log}")
        for finding in collect.findings(load.database(folder, "coordinator")):
            self.book.add("finding", name=finding.name, rows=list(finding.rows), process="doctor")
        report.problems += [f"odd: {error}" for error in collect.told(folder, self.book)]
        report.messages = collect.truth(folder, self.book)
        report.effects = collect.effects(folder, self.book)
        for name in ("coordinator", *load.PRODUCERS, *load.GROUPS):
            report.problems += [f"{name}.db: {line}" for line in collect.damage(load.database(folder, name))]
        report.acknowledged = sum(1 for event in history.read(self.path) if event["event"] == "acknowledged")
        report.verdict = checker.check(history.read(self.path))

    def _count_firings(self) -> None:
        if self.fired_path.exists():
            self.report.fired = Counter(self.fired_path.read_text().split())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=300)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--rate", type=float, default=RATE, help="local transactions a second and producer")
    parser.add_argument("--fresh", action="store_true", help="a fresh interpreter a start, not a fork: ten times slower to start")
    parser.add_argument("--keep", action="store_true", help="leave databases, history and logs where they are")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    folder = Path(tempfile.mkdtemp(prefix="halfmsg-kill-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"seed {seed}, {given.cycles} cycles, files in {folder}")
    harness = Harness(folder, seed, given.cycles, given.rate, lambda line: print(line, flush=True), fresh=given.fresh)
    try:
        report = harness.run()
    except Stuck as stuck:
        print(f"stuck: {stuck}\nfiles are kept in {folder}")
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; all processes are ended, files are kept in {folder}")
        return 130
    print("\n".join(table(report)))
    if report.ok and not given.keep:
        shutil.rmtree(folder)
    else:
        print(f"history {folder / 'history.jsonl'}, logs {folder}/*.log")
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
