"""Named places in the storage path where a test may kill the process. Off unless armed; then one dict look-up a hit.

Armed by `HALFMSG_FAILPOINTS=name@3` (the third time `name` is reached), read by the command line alone; `name:transactions.decide@3`
counts only while a group with that transaction function is written. The firing is written to `HALFMSG_FAILPOINT_LOG` before the kill, so
that a harness can show which ones were really reached. Precedent: etcd's gofail.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from typing import Any

NAMES = (
    "begun",  # BEGIN IMMEDIATE done, nothing written
    "half_stored",  # transaction row written, its bodies not yet
    "prepared",  # all of a half message written, not committed
    "decided",  # the decision written, nothing released
    "released",  # the log row written, the lane's counter not
    "held",  # an ordered message stored out of turn
    "handed_out",  # place moved and lease written, not committed
    "settled",  # an ack or nack written, not committed
    "expired",  # an ended lease given back, not committed
    "applied",  # every command of the group done, before COMMIT
    "committed",  # COMMIT returned, nobody has been answered
    "checkpoint",  # before a checkpoint of the WAL
)

STORE_LIFE = (
    "migrating",  # after each statement of a schema step, before its COMMIT
    "migrated",  # a schema step is committed
    "checkpointed",  # pages are in the main file, their sums not yet
)
"""Places that are passed once a start or a checkpoint, not by each operation: armed by name in tests of their own."""

_armed: dict[str, tuple[str, int]] = {}
_during: set[str] = set()
_log_path: str | None = None


def kill_self(name: str) -> None:
    if _log_path is not None:
        fd = os.open(_log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(fd, f"{name}\n".encode())
        os.close(fd)
    os.kill(os.getpid(), signal.SIGKILL)


_act: Callable[[str], None] = kill_self


def arm(spec: str, log_path: str | None = None, act: Callable[[str], None] = kill_self) -> None:
    """`spec`: `name[:function]@count[,…]`; an unknown name is a ValueError, so that no harness waits for what cannot fire."""
    global _log_path, _act
    _armed.clear()
    for item in filter(None, spec.split(",")):
        place, _, count = item.partition("@")
        name, _, function = place.partition(":")
        if name not in NAMES + STORE_LIFE:
            raise ValueError(f"no fail point is named {name!r}; there are {', '.join(NAMES + STORE_LIFE)}")
        _armed[name] = (function, int(count or 1))
    _log_path, _act = log_path, act


def during(functions: Iterable[Callable[..., Any]]) -> None:
    """The writer names the transaction functions of the group that it begins."""
    if _armed:
        _during.clear()
        _during.update(map(label, functions))


def label(function: Callable[..., Any]) -> str:
    """`transactions.decide`: the last part of its module, and its name."""
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}"


def hit(name: str) -> None:
    if not _armed:
        return
    function, left = _armed.get(name, ("", 0))
    if not left or (function and function not in _during):
        return
    if left > 1:
        _armed[name] = (function, left - 1)
        return
    del _armed[name]
    _act(f"{name}:{function}" if function else name)
