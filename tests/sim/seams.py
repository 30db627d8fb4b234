"""Imported before halfmsg: time, randomness and SQLite as the simulated world has them. Outside a world all of them are the real ones.

The code that ships is not changed and not copied: it reads these through the standard library and aiosqlite, and gets virtual time, the
seed's bytes, and connections that are registered with their node, so that a crash can take them away.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

import aiosqlite
from aiosqlite import core

EPOCH_S: Final = 1_790_000_000.0
_real = (time.time, time.monotonic, os.urandom, sqlite3.connect)


class Node:
    """One process of the world: what it has in memory and open dies with it."""

    def __init__(self, name: str, skew_s: float = 0.0) -> None:
        self.name, self.skew_s = name, skew_s
        self.alive = True
        self.frozen_until = 0.0
        self.waiting: list[asyncio.Handle] = []
        self.connections: list[sqlite3.Connection] = []
        self.queues: list[Queue] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.owner: Any = None

    def is_committing(self, work: object) -> bool:
        """Does a COMMIT that `work` asked for run now?"""
        return any(queue.is_committing(work) for queue in self.queues)


NODE: ContextVar[Node | None] = ContextVar("node", default=None)
WORK: ContextVar[object] = ContextVar("work", default=None)
"""Which local transaction of its node a task is part of."""


class _Current:
    loop: asyncio.AbstractEventLoop | None = None
    chance = random.Random(0)


def enter(loop: asyncio.AbstractEventLoop, seed: int) -> None:
    """From here on the world's time and chance are everybody's."""
    random.seed(seed)
    _Current.loop, _Current.chance = loop, random.Random(seed)


def leave() -> None:
    _Current.loop = None


def _now() -> float:
    loop = _Current.loop
    if loop is None:
        return _real[0]()
    node = NODE.get()
    return EPOCH_S + loop.time() + (0.0 if node is None else node.skew_s)


def _monotonic() -> float:
    return _real[1]() if _Current.loop is None else _Current.loop.time()


def _entropy(count: int) -> bytes:
    return _real[2](count) if _Current.loop is None else _Current.chance.randbytes(count)


def _connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
    """Nobody may wait for a lock in real time: who holds it runs in this same thread."""
    if _Current.loop is None:
        return _real[3](*args, **kwargs)
    conn = _real[3](*args, **kwargs | {"timeout": 0, "check_same_thread": False})
    node = NODE.get()
    if node is not None:
        node.connections.append(conn)
    return conn


class Queue:
    """What aiosqlite's thread does, as steps of the loop: one function after the other, also those whose caller was cancelled."""

    def __init__(self, timeout_s: float) -> None:
        self._jobs: deque[tuple[asyncio.Future[Any] | None, Callable[[], Any], object]] = deque()
        self._timeout_s, self._waited_s = timeout_s, 0.0
        self._busy = False
        node = NODE.get()
        if node is not None:
            node.queues.append(self)

    def put_nowait(self, job: tuple[asyncio.Future[Any] | None, Callable[[], Any]]) -> None:
        self._jobs.append((*job, WORK.get()))
        if not self._busy:
            self._busy = True
            self._again(_Current.chance.expovariate(2_000))

    def is_committing(self, work: object) -> bool:
        return bool(self._jobs) and self._jobs[0][2] is work and self._jobs[0][0] is not None and _text(self._jobs[0][1]).startswith("COMMIT")

    def _again(self, after_s: float) -> None:
        asyncio.get_running_loop().call_later(after_s, self._step)

    def _step(self) -> None:
        future, function, _ = self._jobs[0]
        try:
            text = _text(function)
            if text.startswith("PRAGMA busy_timeout"):
                self._timeout_s = int(text.rpartition("=")[2]) / 1000
                self._finish(future, [], None)  # SQLite itself would wait in real time
            else:
                self._finish(future, function(), None)
        except sqlite3.OperationalError as error:
            if "locked" in str(error) and self._waited_s < self._timeout_s:
                pause_s = _Current.chance.uniform(0.001, 0.01)
                self._waited_s += pause_s
                self._again(pause_s)
                return
            self._finish(future, None, error)
        except Exception as error:
            self._finish(future, None, error)

    def _finish(self, future: asyncio.Future[Any] | None, result: Any, error: Exception | None) -> None:
        self._jobs.popleft()
        self._waited_s = 0.0
        if future is not None and not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        if self._jobs:
            self._again(_Current.chance.expovariate(2_000))
        else:
            self._busy = False


def _text(function: Callable[[], Any]) -> str:
    """The statement that a job runs; `commit()` is one too."""
    inner = getattr(function, "func", function)
    if getattr(inner, "__name__", "") == "commit":
        return "COMMIT"
    args = getattr(function, "args", ())
    return args[0] if args and isinstance(args[0], str) else ""


class _NoThread:
    daemon = True

    def start(self) -> None:
        return None


class Connection(core.Connection):
    """An aiosqlite connection without a thread."""

    def __init__(self, connector: Callable[[], sqlite3.Connection], timeout_s: float) -> None:
        super().__init__(connector, 64)
        self._tx = Queue(timeout_s)  # type: ignore[assignment]
        self._thread = _NoThread()  # type: ignore[assignment]

    def __del__(self) -> None:
        return None


def _aio_connect(database: Any, *, iter_chunk_size: int = 64, timeout: float = 5.0, **kwargs: Any) -> core.Connection:
    if _Current.loop is None:
        return _real_aio(database, iter_chunk_size=iter_chunk_size, timeout=timeout, **kwargs)
    return Connection(lambda: sqlite3.connect(str(database), **kwargs), timeout)


_real_aio = aiosqlite.connect


def install() -> None:
    """Once a process, and before halfmsg: its modules bind some of these when they are imported."""
    time.time, time.monotonic, os.urandom, sqlite3.connect = _now, _monotonic, _entropy, _connect  # type: ignore[assignment]
    time.time_ns = lambda: int(_now() * 1_000_000_000)
    aiosqlite.connect = _aio_connect


install()

from halfmsg.outbox.adapters import aiosqlite as adapter  # noqa: E402 - its modules bind some of the above
from halfmsg.outbox.effects import Commit, Effect, Sql, Steps, one_by_one  # noqa: E402


async def _step_by_step(self: adapter.AiosqliteAdapter, steps: Steps[Any]) -> Any:
    """A thread runs them as one function that waits for locks within. Here each statement is one: so the wait is virtual, too."""
    return await adapter.finished(one_by_one(steps, lambda effect: _one(self.conn, effect)))


def _one(conn: core.Connection, effect: Effect) -> Any:
    inner = adapter.InThread(conn._conn)
    if isinstance(effect, Sql):
        return conn._execute(inner._run, effect.text, effect.args)
    return conn.commit() if isinstance(effect, Commit) else conn._execute(inner.do, effect)


adapter.AiosqliteAdapter.run = _step_by_step  # type: ignore[method-assign]
