"""Ports for the demo's three programs. A killed program's port is free for a moment, so each is also claimed by a lock for the demo's life."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
FIRST: Final = 7610
LAST: Final = 8609  # below the range from which the system takes ports for outgoing connections


class NoPort(Exception):
    """Everything between FIRST and LAST is taken."""


class Ports:
    """Claims one port a name, from 7610 on, and keeps them until `close`."""

    def __init__(self) -> None:
        self._locks: dict[int, int] = {}
        self._folder = Path(tempfile.gettempdir()) / f"halfmsg-demo-ports-{os.getuid()}"
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def claim(self, names: Sequence[str]) -> dict[str, int]:
        """7610, 7611, 7612, and for one that is taken the next that is not. Raises NoPort."""
        usual = dict(zip(names, range(FIRST, LAST), strict=False))
        found = {name: port for name, port in usual.items() if self._take(port)}
        others = iter(range(FIRST + len(names), LAST + 1))
        for name in names:
            if name not in found:
                port = next((port for port in others if self._take(port)), None)
                if port is None:
                    raise NoPort(f"no free port between {FIRST} and {LAST}")
                found[name] = port
        return {name: found[name] for name in names}

    def close(self) -> None:
        for lock in self._locks.values():
            os.close(lock)
        self._locks.clear()

    def _take(self, port: int) -> bool:
        lock = os.open(self._folder / str(port), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            return False
        if not _free(port):
            os.close(lock)
            return False
        self._locks[port] = lock
        return True


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
