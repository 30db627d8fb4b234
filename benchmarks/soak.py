"""`make soak`: a steady load for minutes; memory, open files, the WAL and the tables of open work must not grow. Exit 1 when one does.

    python -m benchmarks.soak --minutes 10            half of what this machine does at most, measured first
    python -m benchmarks.soak --minutes 120 --rate 500

Complete transactions (prepare, commit, deliver, ack) through txclient's stream, in a process of its own beside the coordinator's. What is
judged is the slope of a line through the samples after the first quarter (`benchmarks/slope.py`), of memory after the first half: the
allocator comes to its high-water mark ever more slowly, and a leak goes on. SQLite's page cache is filled before.
Nothing is purged yet, so the store itself grows, by about 700 bytes a message: two hours at 500 a second are 3 GB.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import sqlite3
import tempfile
import time
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks import slope
from halfmsg import Busy
from halfmsg.coordinator import doctor
from halfmsg.coordinator.bench.loads import StreamLoad, open_loop
from halfmsg.coordinator.bench.plan import Plan, machine
from halfmsg.coordinator.bench.runner import SERVER, process

WAL_BYTES_MAX: Final = 64 * 1024 * 1024
MIB: Final = 2**20
SAMPLES: Final = 120
SAMPLE_S_MIN: Final = 0.5
SAY_S: Final = 10.0
PIECE_S: Final = 10.0
CACHE_MIB: Final = 80
SLACK: Final = {
    "memory": 4.0 * MIB, "files": 4.0, "wal": 8.0 * MIB, "undecided": 200.0, "flight": 200.0, "retry": 50.0, "held": 50.0, "open_key": 50.0,
}  # fmt: skip
"""What each figure may rise over a run, by its line: allocators and checkpoints make steps."""
WARM_UP: Final = dict.fromkeys(SLACK, slope.WARM_UP) | {"memory": 0.5}
OPEN_WORK: Final = """SELECT (SELECT count(*) FROM tx WHERE state = 0), (SELECT count(*) FROM flight), (SELECT count(*) FROM retry),
    (SELECT count(*) FROM held), (SELECT count(*) FROM open_key)"""


@dataclass(frozen=True)
class Sample:
    """What one look found. Bytes and counts by the names of SLACK; size of the store; messages acked so far."""

    at_s: float
    figures: dict[str, float]
    db: int
    acked: int


def look(child: psutil.Process, store: Path, started: float, acked: int) -> Sample:
    wal = store.with_name(store.name + "-wal")
    with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True, timeout=5)) as conn:
        tables = dict(zip(("undecided", "flight", "retry", "held", "open_key"), conn.execute(OPEN_WORK).fetchone(), strict=True))
    figures = {"memory": child.memory_info().rss, "files": child.num_fds(), "wal": wal.stat().st_size if wal.exists() else 0, **tables}
    return Sample(time.monotonic() - started, figures, store.stat().st_size, acked)


def fill_cache(url: str) -> None:
    """Past the 64 MiB that SQLite may cache, before anything is measured: a cache that fills looks like a leak for as long as it fills."""
    _call(url, "PUT", "/v1/topics/warm-up", {"kind": "unordered", "allow_no_group": True})
    for _ in range(CACHE_MIB):
        _call(url, "POST", "/v1/topics/warm-up/messages", {"data": "x" * 1_000_000})


def _call(url: str, method: str, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def unsound(store: Path) -> list[str]:
    """Invariants that do not hold in the file of a coordinator that has ended, each looked at to its end, and SQLite's own check."""
    print(f"{'doctor':<12}reads {store.stat().st_size / MIB:,.0f} MiB", flush=True)
    with closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True, isolation_level=None)) as conn:
        return [f"{each.name}: {each.rows[:2]}" for each in doctor.run(conn, integrity=True) if each.ok is not True]


async def soak(url: str, pid: int, store: Path, minutes: float, rate: float | None) -> list[Sample]:
    """About 120 samples; the load is open loop, so a slow coordinator shows as a queue, not as a lower rate."""
    child, started, samples = psutil.Process(pid), time.monotonic(), list[Sample]()

    async def watch(load: StreamLoad) -> None:
        said = 0.0
        while True:
            await asyncio.sleep(max(SAMPLE_S_MIN, minutes * 60 / SAMPLES))
            sample = await asyncio.to_thread(look, child, store, started, load.acked.count)
            samples.append(sample)
            if sample.at_s - said >= SAY_S:
                said = sample.at_s
                print(_line(sample), flush=True)

    async with StreamLoad(url, Plan()) as load:
        rate = rate or await load.rate() / 2
        print(f"{'load':<12}{rate:,.0f} complete transactions/s", flush=True)
        watching = asyncio.create_task(watch(load))
        for _ in range(max(1, round(minutes * 60 / PIECE_S))):  # in pieces, so that no list of latencies grows with the run
            latencies = sorted(await open_loop(rate, PIECE_S, load.one))
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        print(f"prepare in the last {PIECE_S:.0f} s: p50 {_percentile(latencies, 50):.1f} ms, p99 {_percentile(latencies, 99):.1f} ms")
    return samples


def _percentile(ordered: list[float], percent: int) -> float:
    return 1000 * ordered[len(ordered) * percent // 100]


def _line(s: Sample) -> str:
    sizes = f"memory {s.figures['memory'] / MIB:7.1f} MiB  WAL {s.figures['wal'] / MIB:6.1f} MiB  store {s.db / MIB:8.1f} MiB"
    counts = "  ".join(f"{name} {count:.0f}" for name, count in s.figures.items() if name not in ("memory", "wal"))
    return f"{s.at_s:>7.0f} s  {sizes}  {counts}  acked {s.acked:,}"


def judge(samples: list[Sample]) -> list[str]:
    """What grows, and a WAL that was too long at any time."""
    wrong = []
    for name, slack in SLACK.items():
        points = [(sample.at_s, sample.figures[name]) for sample in samples]
        if slope.grows(points, slack, WARM_UP[name]):
            line = slope.fit(slope.judged(points, WARM_UP[name]))
            wrong.append(f"{name} grows by {line.per_s * 60:,.1f} a minute (±{line.error * 60:,.1f}), by {line.rise:,.0f} in this run")
    if (most := max(sample.figures["wal"] for sample in samples)) > WAL_BYTES_MAX:
        wrong.append(f"the WAL reached {most / MIB:.0f} MiB")
    return wrong


def slopes(samples: list[Sample]) -> list[str]:
    """Every figure's line, for people."""
    lines = {name: slope.fit([(each.at_s, each.figures[name]) for each in slope.judged(samples, WARM_UP[name])]) for name in SLACK}
    return [f"{name:<12}{line.per_s * 60:>14,.1f} a minute  ±{line.error * 60:,.1f}" for name, line in lines.items()]


def run(minutes: float, rate: float | None) -> tuple[list[Sample], list[str]]:
    """The samples, and what doctor finds when the load has ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as where:
        store = Path(where) / "soak.db"
        with process(SERVER, address, os.fspath(store)) as child:
            fill_cache(f"http://{address}")
            samples = asyncio.run(soak(f"http://{address}", child.pid, store, minutes, rate))
        return samples, unsound(store)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=None, help="complete transactions a second; else half of what was measured")
    args = parser.parse_args()
    for label, text in machine().items():
        print(f"{label:<12}{text}")
    print(f"{'settings':<12}{args.minutes:g} min, 300 B bodies, one topic, one group")
    try:
        samples, findings = run(args.minutes, args.rate)
    except Busy as busy:  # an open loop waits for nobody; what else runs here has taken the machine since its rate was measured
        print(f"this machine did not keep up with that load: {busy}\nLeave it alone, or name a lower one: make soak RATE=500")
        return 1
    print(f"\nfirst  {_line(samples[0])}\nlast   {_line(samples[-1])}\n" + "\n".join(slopes(samples)))
    print(f"bytes in the file a message: {samples[-1].db / max(samples[-1].acked, 1):,.0f} (nothing is purged yet)")
    wrong = [f"NOT FLAT  {line}" for line in judge(samples)] + [f"UNSOUND  {line}" for line in findings]
    print("\n".join(wrong) or "flat, and sound")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
