"""A process that has the coordinator imported and the shim preloaded, and forks one real coordinator a line.

Starting an interpreter costs most of a second, a fork a hundredth of one; with thousands of starts that is the difference. What runs in
the fork is `halfmsg serve` itself: the command line, its settings, its exit code. A line of JSON in: {args, env, folder, log,
wal_pages, synchronous, descriptors, plant}; a line out: {pid}, and when it ends {ended, code}. Nothing is opened, and no thread runs,
before the fork.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import select
import signal
from typing import Any


def main() -> None:
    import halfmsg.coordinator.app
    import halfmsg.coordinator.cli.serve  # noqa: F401

    running: set[int] = set()
    wakened, waking = os.pipe()
    os.set_blocking(waking, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waking)
    rest = b""
    while True:
        ready, _, _ = select.select([0, wakened], [], [])
        if wakened in ready:
            os.read(wakened, 4096)
            _reap(running)
        if 0 in ready:
            chunk = os.read(0, 65536)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                running.add(_start(json.loads(line), (wakened, waking)))
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _reap(running: set[int]) -> None:
    for pid in list(running):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            running.discard(pid)
            _say({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _say(what: dict[str, Any]) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _start(order: dict[str, Any], mine: tuple[int, int]) -> int:
    pid = os.fork()
    if pid:
        _say({"pid": pid})
        return pid
    _become(order, mine)
    raise RuntimeError("the coordinator returned")


def _become(order: dict[str, Any], mine: tuple[int, int]) -> None:
    from halfmsg.coordinator.cli import main
    from halfmsg.coordinator.store.sqlite import file

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for fd, own in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(fd, own)
    for fd in (*mine, log, nothing):
        os.close(fd)
    faulthandler.register(signal.SIGUSR1)  # whoever waits in vain for an end may ask where it hangs
    os.environ.update(order["env"])
    os.chdir(order["folder"])
    file.WAL_PAGES = order["wal_pages"]
    if order["synchronous"]:
        connect = file.connect
        file.connect = lambda path, synchronous: connect(path, order["synchronous"])
    if order["descriptors"]:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (order["descriptors"], order["descriptors"]))
    if order["plant"]:
        from tests.disk import planted

        getattr(planted, order["plant"])()
    ctypes.CDLL(None).shim_arm()
    main(order["args"])  # ends with SystemExit, through here and out: the interpreter closes as it always does


if __name__ == "__main__":
    main()
