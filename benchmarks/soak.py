"""`make soak`: a steady load for minutes; memory and open files flat, the WAL bounded. Prints first and last values.

    python -m benchmarks.soak --minutes 10 --rate 2000

Complete transactions (prepare, commit, deliver, ack) through txclient's stream, in a process of its own beside the coordinator's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from halfmsg.coordinator.bench.loads import StreamLoad, open_loop
from halfmsg.coordinator.bench.plan import Plan, machine
from halfmsg.coordinator.bench.runner import SERVER, process

WAL_BYTES_MAX = 64 * 1024 * 1024
GROWTH_MAX = 0.10
SAMPLE_S = 10.0


@dataclass(frozen=True)
class Sample:
    """What one look found. Bytes, counts, messages acked so far."""

    at_s: float
    rss: int
    files: int
    wal: int
    db: int
    acked: int


def look(child: psutil.Process, store: Path, started: float, acked: int) -> Sample:
    wal = store.with_name(store.name + "-wal")
    size = wal.stat().st_size if wal.exists() else 0
    return Sample(time.monotonic() - started, child.memory_info().rss, child.num_fds(), size, store.stat().st_size, acked)


async def soak(url: str, pid: int, store: Path, minutes: float, rate: float) -> list[Sample]:
    """One sample each 10 s; the load is open loop, so a slow coordinator shows as a queue, not as a lower rate."""
    child, started, samples = psutil.Process(pid), time.monotonic(), []

    async def watch(load: StreamLoad) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            sample = look(child, store, started, load.acked.count)
            samples.append(sample)
            print(_line(sample), flush=True)

    async with StreamLoad(url, Plan()) as load:
        watching = asyncio.create_task(watch(load))
        for _ in range(max(1, round(minutes * 2))):  # half a minute a piece, so that no list of latencies grows with the run
            latencies = await open_loop(rate, 30.0, load.one)
            latencies.sort()
            print(f"          prepare p50 {latencies[len(latencies) // 2] * 1000:.1f} ms  p99 {latencies[len(latencies) * 99 // 100] * 1000:.1f} ms")
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    return samples


def _line(s: Sample) -> str:
    mib = 2**20
    sizes = f"memory {s.rss / mib:7.1f} MiB  files {s.files:>4}  WAL {s.wal / mib:6.1f} MiB  store {s.db / mib:8.1f} MiB"
    return f"{s.at_s:>7.0f} s  {sizes}  acked {s.acked:,}"


def judge(samples: list[Sample]) -> list[str]:
    """What is not flat. The first quarter is warm-up: caches fill."""
    warm, last = samples[len(samples) // 4], samples[-1]
    wrong = []
    if last.rss > warm.rss * (1 + GROWTH_MAX):
        wrong.append(f"memory grew from {warm.rss / 2**20:.1f} to {last.rss / 2**20:.1f} MiB after warm-up")
    if last.files > warm.files + 8:
        wrong.append(f"open files grew from {warm.files} to {last.files}")
    if max(sample.wal for sample in samples) > WAL_BYTES_MAX:
        wrong.append(f"the WAL reached {max(sample.wal for sample in samples) / 2**20:.0f} MiB")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=2_000.0)
    args = parser.parse_args()
    for label, text in machine().items():
        print(f"{label:<12}{text}")
    print(f"{'settings':<12}{args.rate:,.0f} complete transactions/s for {args.minutes:g} min, 300 B bodies, one topic, one group\n")
    with tempfile.TemporaryDirectory() as where:
        store = Path(where) / "soak.db"
        with process(SERVER, "127.0.0.1:7699", os.fspath(store)) as child:
            samples = asyncio.run(soak("http://127.0.0.1:7699", child.pid, store, args.minutes, args.rate))
    first, warm, last = samples[0], samples[len(samples) // 4], samples[-1]
    print(f"\nfirst  {_line(first)}\nwarm   {_line(warm)}\nlast   {_line(last)}")
    print(f"bytes in the file a message: {last.db / max(last.acked, 1):,.0f} (nothing is purged yet)")
    wrong = judge(samples)
    print("\n".join(f"NOT FLAT  {line}" for line in wrong) or "flat")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
