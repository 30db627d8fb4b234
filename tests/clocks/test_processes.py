"""Real processes under load whose clocks are wrong by years, and which are stopped past their leases; one checker over one history."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.kill import load
from tests.kill.processes import Program, wait_for
from tests.kill.report import Report, table
from tests.kill.run import Harness
from tests.support import checker, history

YEARS_S = 10 * 365 * 86_400
SHIFTS = {"shop-a": YEARS_S, "shop-b": -YEARS_S, "relay-a": -YEARS_S, "billing-1": YEARS_S, "billing-2": -YEARS_S, "stock-1": -YEARS_S}
"""stock-2 and the coordinator have the right time."""
STOPPED_S = load.LEASE_S * 1.6
SEED = 11


class Wrong(Harness):
    """No kills but one; what is done to whom is written here and not drawn."""

    def __init__(self, folder: Path) -> None:
        self.lines: list[str] = []
        super().__init__(folder, SEED, 0, 20.0, self.lines.append)
        for program in self.cast.all:
            if program.name in SHIFTS:
                program.arguments = [str(SHIFTS[program.name]), program.module, *program.arguments]
                program.module = "tests.clocks.shifted"

    def _come_to_rest(self) -> None:
        """Before: the load, with the coordinator stopped past every lease, a consumer too, and the relay's owner of lanes gone for good."""
        self._grow(60)
        self._stop_for(self.cast.coordinator, STOPPED_S)
        self._grow(120)
        self._stop_for(self.cast.consumers[0], STOPPED_S)
        self._claim_lanes_for_ever()
        self._grow(180)
        super()._come_to_rest()

    def _grow(self, effects: int) -> None:
        """Until a group has so many effects: the load goes on, and what was stopped has gone on too."""
        wait_for(lambda: min(_effects(self.report.folder)) >= effects, 30.0, f"no {effects} effects in each group")

    def _claim_lanes_for_ever(self) -> None:
        """What a relay leaves behind that dies with a clock of ten years hence."""
        with closing(sqlite3.connect(load.database(self.report.folder, "shop-b"), timeout=30)) as conn, conn:
            until = round((time.time() + YEARS_S) * 1000)
            conn.execute("UPDATE halfmsg_lane SET owner = x'00', until = ?", (until,))

    def _judge(self) -> None:
        """The times of a history with wrong clocks mean nothing: each group counts as standing from the beginning."""
        super()._judge()
        self.report.verdict = checker.check(_timeless(self.path))


def _effects(folder: Path) -> list[int]:
    found = []
    for group in load.GROUPS:
        with closing(sqlite3.connect(load.database(folder, group), timeout=30)) as conn:
            found.append(conn.execute("SELECT count(*) FROM effect").fetchone()[0])
    return found


def _timeless(path: Path) -> Iterator[dict[str, Any]]:
    for event in history.read(path):
        yield event | ({"at": history.ALWAYS} if event["event"] == "group" else {})


def _ids_of(folder: Path, producer: str) -> list[int]:
    """The 48 bits of time in the ids that this producer made, in ms."""
    with closing(sqlite3.connect(load.database(folder, producer), timeout=30)) as conn:
        return [int(row[0].replace("-", "")[:12], 16) for row in conn.execute("SELECT tx FROM work")]


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="processes are stopped past their lease with SIGSTOP, which this system has not")
@pytest.mark.timeout(170)  # about 20 s; a loaded machine may be slow to start processes, and each wait in the run has its own limit
def test_p10_clocks_off_by_years_and_stops_past_the_lease_lose_and_reorder_nothing(tmp_path: Path) -> None:
    """Producers, relay and consumers ten years off, either way; the coordinator and a consumer stopped longer than a lease: P1-P8 hold."""
    harness = Wrong(tmp_path)
    report: Report = harness.run()
    assert report.ok, "\n".join([*harness.lines, *table(report), f"history and logs: {tmp_path}"])
    assert report.effects > 300
    assert set(report.stops) == {"coordinator", "billing-1"}
    now_ms = time.time() * 1000
    for producer in load.PRODUCERS:
        away_s = (_ids_of(tmp_path, producer)[0] - now_ms) / 1000
        assert abs(away_s - SHIFTS[producer]) < 86_400, "the clock of this process was not shifted: the test would prove nothing"
    assert _told_by(harness.cast.coordinator) == []


def _told_by(program: Program) -> list[str]:
    """A coordinator with the right time has nothing to say about clocks."""
    return [line for line in program.log.read_text().splitlines() if '"halfmsg.clock"' in line]
