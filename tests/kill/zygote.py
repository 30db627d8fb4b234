"""Coordinators by the dozen: one process imports the program once, and each coordinator is a fork of it that runs `halfmsg serve`.

A fork starts in a twentieth of the time of a fresh interpreter, and is killed, stopped and waited for like any other process. The
zygote itself opens no store. It is told by lines of JSON on its input, answers each with one, and ends what is left when its input ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
POLL_S: Final = 0.001


class Zygote:
    """The harness's side. Use as a context: nothing that it started outlives it."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HALFMSG_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill.zygote"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=30)

    def fork(self, arguments: list[str], log: Path, environment: dict[str, str]) -> int:
        """Start `halfmsg` with these arguments; gives its pid."""
        return int(self._ask({"do": "fork", "arguments": arguments, "log": str(log), "environment": environment}))

    def wait(self, pid: int, limit_s: float) -> int | None:
        """Its exit code, negative for a signal; None when it still runs after `limit_s`."""
        code = self._ask({"do": "wait", "pid": pid, "limit_s": limit_s})
        return None if code is None else int(code)

    def _ask(self, order: dict[str, Any]) -> Any:
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        if pipe_in is None or pipe_out is None:
            raise RuntimeError("the zygote has no pipes")
        pipe_in.write(json.dumps(order).encode() + b"\n")
        pipe_in.flush()
        return json.loads(pipe_out.readline())


class _Forks:
    """The zygote's side."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.codes: dict[int, int] = {}

    def fork(self, order: dict[str, Any]) -> int:
        pid = os.fork()
        if pid == 0:
            _run(order)
        self.running.add(pid)
        return pid

    def wait(self, pid: int, limit_s: float) -> int | None:
        deadline = time.monotonic() + limit_s
        while pid not in self.codes:
            got, status = os.waitpid(pid, os.WNOHANG)
            if got:
                self.codes[pid] = os.waitstatus_to_exitcode(status)
                self.running.discard(pid)
            elif time.monotonic() > deadline:
                return None
            else:
                time.sleep(POLL_S)
        return self.codes[pid]

    def end(self) -> None:
        for pid in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.wait(pid, 10.0)


def _run(order: dict[str, Any]) -> None:
    """In the fork: a process of its own session, with its own log, that ends with the program's exit code."""
    from halfmsg.coordinator.cli import main

    code = 70
    try:
        os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for ours, theirs in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(ours, theirs)
        os.environ.update(order["environment"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main(order["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    import halfmsg.coordinator.app
    import halfmsg.coordinator.cli.serve  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    forks = _Forks()
    try:
        for line in sys.stdin:
            order = json.loads(line)
            answer = forks.fork(order) if order["do"] == "fork" else forks.wait(order["pid"], order["limit_s"])
            print(json.dumps(answer), flush=True)
    finally:
        forks.end()


if __name__ == "__main__":
    serve()
