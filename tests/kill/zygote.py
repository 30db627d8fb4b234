"""Processes by the dozen: one process imports the programs once, and each one that is started is a fork of it that runs a module.

A fork starts in a twentieth of the time of a fresh interpreter, and is killed, stopped and waited for like any other process. The
zygote itself opens no store. It is told by lines of JSON on its input, answers each with one, and ends what is left when its input ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
POLL_S: Final = 0.001


class Zygote:
    """The harness's side. Use as a context: nothing that it started outlives it."""

    def __init__(self, folder: Path) -> None:
        """`folder` stands in the command line of each fork, so that they can be told from others."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HALFMSG_")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill.zygote", str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.communicate(timeout=30)

    def fork(self, module: str, arguments: list[str], log: Path, environment: dict[str, str]) -> int:
        """Start `python -m module` with these arguments; gives its pid."""
        return int(self._ask({"do": "fork", "module": module, "arguments": arguments, "log": str(log), "environment": environment}))

    def popen(self, module: str, arguments: list[str], log: Path, environment: dict[str, str]) -> Fork:
        return Fork(self, self.fork(module, arguments, log, environment))

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


class Fork:
    """One of them, with the face of `subprocess.Popen` as far as it is used."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid, self._zygote = pid, zygote

    def poll(self) -> int | None:
        return self._zygote.wait(self.pid, 0.0)

    def wait(self, timeout: float) -> int:
        code = self._zygote.wait(self.pid, timeout)
        if code is None:
            raise subprocess.TimeoutExpired("fork", timeout)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


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
        self.codes.pop(pid, None)  # numbers come round: what stands here is another's
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
    code = 70
    try:
        os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for ours, theirs in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(ours, theirs)
        os.environ.update(order["environment"])
        os.chdir(Path(order["log"]).parent)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = [order["module"], *order["arguments"]]
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve() -> None:
    import tests.kill.consumer
    import tests.kill.producer  # noqa: F401

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
