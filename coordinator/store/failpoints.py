"""Named places in the storage path where a test may kill the process. Off unless armed; then one dict look-up a hit.

Armed by `HALFMSG_FAILPOINTS=name@3` (the third time `name` is reached), read by the command line alone. The firing is written to
`HALFMSG_FAILPOINT_LOG` before the kill, so that a harness can show which ones were really reached. Precedent: etcd's gofail.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

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

_armed: dict[str, int] = {}
_log_path: str | None = None


def kill_self(name: str) -> None:
    if _log_path is not None:
        fd = os.open(_log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(fd, f"{name}\n".encode())
        os.close(fd)
    os.kill(os.getpid(), signal.SIGKILL)


_act: Callable[[str], None] = kill_self


def arm(spec: str, log_path: str | None = None, act: Callable[[str], None] = kill_self) -> None:
    """`spec`: `name@count[,name@count…]`; an unknown name is a ValueError, so that no harness waits for what cannot fire."""
    global _log_path, _act
    _armed.clear()
    for item in filter(None, spec.split(",")):
        name, _, count = item.partition("@")
        if name not in NAMES + STORE_LIFE:
            raise ValueError(f"no fail point is named {name!r}; there are {', '.join(NAMES + STORE_LIFE)}")
        _armed[name] = int(count or 1)
    _log_path, _act = log_path, act


def hit(name: str) -> None:
    if not _armed:
        return
    left = _armed.get(name)
    if left is None:
        return
    if left > 1:
        _armed[name] = left - 1
        return
    del _armed[name]
    _act(name)
