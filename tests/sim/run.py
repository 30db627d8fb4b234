"""`make sim`: seeds of the simulated world, several processes, one table. `make sim SEED=7` plays one seed and shows its last events.

Exit 0: nothing wrong, and the rare paths were met that a set of so many seeds must meet (`marks.enough`). Exit 1: what is wrong, and how
to see it again.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from . import seams  # noqa: F401 - first of all
from .planted import ENDS
from .table import Total, table
from .world import run


def play(seed: int, plant: str | None) -> dict[str, object]:
    """One seed in a folder of its own, in memory where there is a place for it."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="halfmsg-sim-", dir=place))
    try:
        world = run(seed, folder, plant)
        return {
            "seed": seed, "wrong": world.ledger.wrong, "marks": dict(world.marks), "last": list(world.last), "trace": world.loop.trace.hexdigest(),
            "virtual_s": world.loop.time(), "told": len(world.told),
        }  # fmt: skip
    finally:
        if os.environ.get("HALFMSG_SIM_KEEP"):
            print(folder, file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def work(seeds: range, plant: str | None) -> None:
    """A worker: a line of JSON a seed."""
    logging.disable(logging.WARNING - 1)
    logging.lastResort = None
    for name in ("halfmsg", "asyncio", "aiohttp", "kill"):
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(logging.NullHandler())
    sys.unraisablehook = lambda _: None
    for seed in seeds:
        if not (child := os.fork()):  # each in a process of its own: what one leaves in memory is no part of the next
            code = 1
            gc.disable()  # what it would end, and when, is no part of the seed
            try:
                print(json.dumps(play(seed, plant)), flush=True)
                code = 0
            except (BrokenPipeError, KeyboardInterrupt):
                pass  # whoever asked was interrupted, and listens no more
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"seed {seed} ended without a word")


def run_many(first: int, count: int, jobs: int, plant: str | None = None) -> Total:
    """Seeds `first` to `first + count - 1`, dealt out to `jobs` processes; fewer where it is interrupted (Ctrl-C, SIGTERM)."""
    total = Total()
    env = os.environ | {"PYTHONHASHSEED": "0"}
    code = [sys.executable, "-m", "tests.sim.run", *(["--plant", plant] if plant else []), "--worker"]
    workers = [subprocess.Popen([*code, f"{first + at}:{first + count}:{jobs}"], stdout=subprocess.PIPE, text=True, env=env) for at in range(jobs)]
    try:
        _read(workers, total, count)
    except KeyboardInterrupt:
        print(f"stopped after {total.seeds} of {count} seeds")
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return total


def _read(workers: list[subprocess.Popen[str]], total: Total, count: int) -> None:
    began = told = time.monotonic()
    import selectors

    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
        while selector.get_map():
            for key, _ in selector.select():
                line = key.fileobj.readline()  # type: ignore[union-attr]
                if not line:
                    selector.unregister(key.fileobj)
                    continue
                found = json.loads(line)
                total.add(found)
                if found["wrong"]:
                    print(f"seed {found['seed']}: {found['wrong'][0]}", flush=True)
                if time.monotonic() - told > 20:
                    told = time.monotonic()
                    print(f"{total.seeds} of {count} seeds, {len(total.failed)} failed, {told - began:.0f} s", flush=True)
    for worker in workers:
        if worker.wait() != 0:
            total.failed.append({"seed": -1, "wrong": [f"a worker ended with {worker.returncode}"], "last": []})


def one(seed: int, plant: str | None) -> int:
    """Play it alone and show how it went."""
    total = run_many(seed, 1, 1, plant)
    found = total.failed[0] if total.failed else None
    print(f"seed {seed}: trace {total.traces.get(seed, '?')[:16]}")
    for name, times in sorted(total.marks.items()):
        print(f"  {times:5} {name}")
    if found is None:
        print("nothing wrong")
        return 0
    print("\n".join(str(event) for event in found["last"]))  # type: ignore[attr-defined]
    print("\n".join(f"WRONG {line}" for line in found["wrong"]))  # type: ignore[attr-defined]
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--plant", choices=ENDS, help="judge --seed with this wrong end: exit 1, or the judge is blind")
    parser.add_argument("--worker")
    given = parser.parse_args()
    if given.worker:
        work(range(*map(int, given.worker.split(":"))), given.plant)
        return 0
    if given.seed is not None:
        return one(given.seed, given.plant)
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    total = run_many(given.first, given.seeds, given.jobs)
    print("\n".join(table(total, time.monotonic() - began)))
    return 0 if total.ok() else 1


if __name__ == "__main__":
    sys.exit(main())
