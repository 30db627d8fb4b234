"""Real coordinators for the tests of the disk: forked from one prepared process, watched, and ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.disk import shim

ROOT: Final = Path(__file__).resolve().parents[2]
START_S: Final = 30.0
STOP_S: Final = 20.0
POLL_S: Final = 0.004
_LISTENING: Final = re.compile(r"Listening +http://127\.0\.0\.1:(\d+)")


class Stuck(Exception):
    """A coordinator did not do in time what it must; the text has its log."""


def wait_for(true: Callable[[], Any], limit_s: float, otherwise: Callable[[], str]) -> Any:
    """Poll until it gives something true, and give that. Raises Stuck after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not (found := true()):
        if time.monotonic() > deadline:
            raise Stuck(f"{otherwise()} (waited {limit_s:g} s)")
        time.sleep(POLL_S)
    return found


@dataclass(slots=True)
class Running:
    """One coordinator. `code` is its exit code once it has ended, negative for a signal."""

    log: Path
    store: Path
    pid: int = 0
    code: int | None = None
    port: int = 0

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_up(self) -> bool:
        """Until it listens; False when it ended before that."""
        wait_for(lambda: self._listens() or self.code is not None, START_S, lambda: f"no start:\n{self.said()}")
        return self.code is None

    def _listens(self) -> bool:
        found = _LISTENING.search(self.said())
        self.port = int(found[1]) if found else 0
        return found is not None

    def wait_end(self, limit_s: float = STOP_S) -> int:
        wait_for(lambda: self.code is not None, limit_s, lambda: f"no end of {self.pid}:\n{self._where()}")
        return self.code if self.code is not None else 0

    def _where(self) -> str:
        """Its log, with the stacks of its threads."""
        size = len(self.said())
        self.signal(signal.SIGUSR1)
        with contextlib.suppress(Stuck):
            wait_for(lambda: len(self.said()) > size, 1.0, str)
        return self.said()

    def signal(self, number: signal.Signals) -> None:
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and the zygote's word about it is on its way
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ended whatever it does; nothing where it has ended."""
        self.signal(signal.SIGKILL)

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return self.wait_end()


@dataclass(slots=True)
class Zygote:
    """Forks coordinators. Use as a context manager: leaving it ends each that still runs."""

    _process: subprocess.Popen[bytes] = field(init=False)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)
    _listener: threading.Thread = field(init=False)
    _started: list[Running] = field(default_factory=list)
    _pids: list[int] = field(default_factory=list)
    _ended: dict[int, int] = field(default_factory=dict)
    _told: threading.Condition = field(default_factory=threading.Condition)

    def __enter__(self) -> Zygote:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("HALFMSG_", "SHIM_", "COVERAGE"))}
        environment |= {"PYTHONPATH": str(ROOT), "LD_PRELOAD": str(shim.build())}
        command = [sys.executable, "-m", "tests.disk.zygote"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment, start_new_session=True)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(STOP_S)
        self._listener.join(STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _listen(self) -> None:
        out = self._process.stdout
        for line in out if out is not None else ():
            what = json.loads(line)
            with self._told:
                if "pid" in what:
                    self._pids.append(what["pid"])
                    self._ended.pop(what["pid"], None)  # numbers come round
                else:
                    self._ended[what["ended"]] = what["code"]
                    for one in self._started:
                        if one.pid == what["ended"]:
                            one.code = what["code"]
                self._told.notify_all()

    def start(
        self, store: Path, *args: str, env: dict[str, str] | None = None, log: Path | None = None, wal_pages: int = 20, synchronous: str = "",
        descriptors: int = 0, plant: str = "",
    ) -> Running:  # fmt: skip
        """`halfmsg serve --listen 127.0.0.1:0 --store STORE ARGS`, with `env` for the shim; returns at once.

        `synchronous` overrides what the settings allow (OFF is never one of them), `wal_pages` is small so that a short run has many
        checkpoints, `descriptors` is its RLIMIT_NOFILE, `plant` a bug of
        tests/disk/planted.py that the harness must find.
        """
        log = log or store.with_suffix(".log")
        one = Running(log, store)
        order = {
            "args": ["serve", "--listen", "127.0.0.1:0", "--store", str(store.resolve()), *args], "env": env or shim.environment(store),
            "folder": str(log.parent), "log": str(log), "wal_pages": wal_pages, "synchronous": synchronous, "descriptors": descriptors,
            "plant": plant,
        }  # fmt: skip
        with self._one_at_a_time, self._told:
            before = len(self._pids)
            stdin = self._process.stdin
            if stdin is None:
                raise Stuck("the zygote has no input")
            stdin.write(json.dumps(order).encode() + b"\n")
            stdin.flush()
            if not self._told.wait_for(lambda: len(self._pids) > before, START_S):
                raise Stuck("the zygote does not fork")
            one.pid = self._pids[-1]
            one.code = self._ended.pop(one.pid, None)
            self._started = [each for each in self._started if each.code is None] + [one]
        return one
