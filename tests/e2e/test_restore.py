"""The coordinator's disk is lost under load and a backup of before takes its place (W15): nothing is lost unsaid, nothing runs twice."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import shop
from tests.kill.processes import HALFMSG, HOST, ROOT, Api, Program, free_port, says, wait_for

WAIT_S = 40.0


class Stage:
    """A coordinator, a producer and a consumer, each a process."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.store = folder, folder / "halfmsg.db"
        self.api = Api(free_port())
        self.url = f"http://{HOST}:{self.api.port}"
        serve = ["serve", "--listen", f"{HOST}:{self.api.port}", "--store", str(self.store)]
        self.coordinator = Program("coordinator", HALFMSG, serve, folder / "coordinator.log", lambda _: self.api.is_ready())
        self.producer = self._program("producer", "produce", "--seed", str(seed))
        self.consumer = self._program("consumer", "consume")

    def _program(self, name: str, role: str, *more: str) -> Program:
        arguments = [role, "--folder", str(self.folder), "--url", self.url, *more]
        return Program(name, "tests.e2e.shop", arguments, self.folder / f"{name}.log", lambda self: says(self, "ready"))

    def start(self) -> None:
        self.coordinator.start()
        self.coordinator.wait_up()
        for topic, kind in shop.TOPICS.items():
            self.api.must("PUT", f"/v1/topics/{topic}", {"kind": kind})
        self.api.must("PUT", "/v1/producers/shop", {})
        self.api.must("PUT", "/v1/groups/stock", {"topics": [{"topic": topic} for topic in shop.TOPICS]})
        for program in (self.consumer, self.producer):
            program.start()
            program.wait_up()

    def end_now(self) -> None:
        for program in (self.producer, self.consumer, self.coordinator):
            program.end_now()

    def rows(self, name: str, sql: str) -> list[Any]:
        with closing(sqlite3.connect(f"{(self.folder / name).as_uri()}?mode=ro", uri=True, timeout=10)) as conn:
            return conn.execute(sql).fetchall()

    def effects(self) -> int:
        return int(self.rows("consumer.db", "SELECT count(*) FROM effect")[0][0])

    def wait_effects(self, count: int) -> None:
        wait_for(lambda: self.effects() >= count, WAIT_S, f"{count} effects were not there; logs in {self.folder}")

    def halfmsg(self, *args: str, code: int = 0) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HALFMSG_")}
        done = subprocess.run(
            [sys.executable, "-m", HALFMSG, *args], cwd=self.folder, capture_output=True, text=True, timeout=60, check=False,
            env=environment | {"PYTHONPATH": str(ROOT), "HALFMSG_URL": self.url},
        )  # fmt: skip
        assert done.returncode == code, f"{args}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    one = Stage(tmp_path, seed)
    try:
        one.start()
        yield one
    finally:
        one.end_now()


@pytest.mark.slow
def test_p2_p6_p7_restored_coordinator_loses_nothing_unsaid(stage: Stage) -> None:
    """What was acknowledged before the backup has its effect once; what came after it is a gap or a repeat, listed; resent, all is there."""
    stage.wait_effects(100)
    before = {row[0] for row in stage.rows("producer.db", "SELECT hex(id) FROM halfmsg_tx WHERE unsent IS NULL")}
    made = json.loads(stage.halfmsg("backup", "b1", "--store", str(stage.store), "--json"))
    backup_at = _rfc3339(made["at"])
    with closing(sqlite3.connect(stage.folder / "b1")) as conn:
        stored = {row[0] for row in conn.execute("SELECT hex(id) FROM tx").fetchall()}
    assert len(before) > 50 and before <= stored, "an acknowledged transaction is not in the backup"
    after = stage.effects()
    stage.wait_effects(after + 100)
    stage.coordinator.kill()
    for each in stage.folder.glob("halfmsg.db*"):
        each.unlink()

    told = stage.halfmsg("restore", "b1", "--store", str(stage.store))
    assert backup_at in told and "outbox resend" in told
    stage.coordinator.start()
    stage.coordinator.wait_up()
    wait_for(lambda: bool(stage.halfmsg("key", "ls", "--json").strip()), WAIT_S, "no gap is listed")
    resent = stage.halfmsg("outbox", "resend", f"sqlite:///{stage.folder / 'producer.db'}", "--since", backup_at)
    assert int(resent.split()[0]) > 100
    stage.producer.signal(signal.SIGUSR1)
    wait_for(lambda: says(stage.producer, "idle"), WAIT_S, "the load did not end")
    sold = stage.rows("producer.db", "SELECT message, topic, key, sequence, body FROM sold ORDER BY rowid")
    stage.wait_effects(len(sold))
    wait_for(lambda: not stage.halfmsg("key", "ls", "--json").strip(), WAIT_S, "a gap stays")

    effects = stage.rows("consumer.db", "SELECT message, topic, key, sequence, body FROM effect ORDER BY n")
    assert sorted(effects, key=repr) == sorted(sold, key=repr)
    for key in shop.KEYS:
        numbers = [row[3] for row in effects if row[2] == key]
        assert numbers == list(range(1, len(numbers) + 1)), f"key {key}: {numbers}"
    report = stage.halfmsg("doctor", "--store", str(stage.store))
    assert "fail 0" in report and "came again, 0 keys wait" in report
    again = int(report.split(" transactions of before came again")[0].rpartition(" ")[2])
    assert again >= 100


def _rfc3339(ms: int) -> str:
    from halfmsg.coordinator.clock import rfc3339

    return rfc3339(ms)
