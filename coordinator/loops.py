"""Dumb timers around ticks. A tick that fails is logged and tried again at the next beat; what it did is in its own metrics."""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
from collections.abc import Awaitable, Callable
from typing import Any

from .checks import Checks
from .engine import Engine
from .errors import Problem
from .gaps import Gaps
from .memory import give_back
from .service import capacity, release, settling

log = logging.getLogger("halfmsg.loops")

CHECKPOINT_WAL_BYTES = 32 * 1024 * 1024
LAG_TIMER_S = 0.25
NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
NO_DESCRIPTORS_S = 10.0
TOLD_AGAIN_MS = 10_000
"""Between two log lines about the same."""


async def every(
    seconds: float, name: str, tick: Callable[[], Awaitable[object]], done: Callable[[str, int], None], now_ms: Callable[[], int]
) -> None:
    """Run `tick` for ever; `done(name)` after each success. A refusal that stays, as of a full disk, is told once in a while."""
    told: tuple[str, int] = ("", 0)
    while True:
        try:
            await tick()
            done(name, now_ms())
            told = ("", 0)
        except Problem as problem:
            if problem.code not in ("draining", "overloaded") and (problem.code != told[0] or now_ms() - told[1] >= TOLD_AGAIN_MS):
                told = (problem.code, now_ms())
                log.warning("%s: %s", name, problem)
        except Exception:
            log.exception("%s failed; it is tried again", name)
        await asyncio.sleep(seconds)


class NoDescriptors:
    """An exception handler of the loop: a connection that cannot be accepted for want of descriptors is one log line in a while.

    asyncio tries again each second and reports every place of the listening queue by itself, with a traceback: a thousand lines a
    second, written by the loop that has others to serve. Newcomers wait in the kernel's queue meanwhile, and nobody is disconnected.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._told_at: float | None = None

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in NO_DESCRIPTORS and "accept" in str(context.get("message"))):
            loop.default_exception_handler(context)
        elif self._told_at is None or self._monotonic() - self._told_at >= NO_DESCRIPTORS_S:
            self._told_at = self._monotonic()
            log.error("no connection can be accepted: %s; raise the limit of open files (ulimit -n), or use fewer connections", error.strerror)


class Ticks:
    """The passes that loops repeat; each does one bounded piece."""

    def __init__(self, engine: Engine, checks: Checks, gaps: Gaps) -> None:
        self.engine, self.checks, self.gaps_of = engine, checks, gaps

    async def leases(self) -> int:
        """Give back what ended leases left open, until there is no more."""
        total = 0
        while count := await self.engine.call(settling.expire_tick, None):
            total += count
        return total

    async def draining_keys(self) -> int:
        return int(await self.engine.call(release.drain_tick, None))

    async def check(self) -> None:
        await self.checks.tick()

    async def ways(self) -> None:
        await self.checks.ways.refresh()
        if self.engine.names_stale:
            await self.engine.refresh_names()
        for name in self.engine.names.producers.values():
            self.engine.metrics.circuit(name, self.checks.poller.breaker_open(name))

    async def capacity(self) -> None:
        """What the door and the hand-out judge by: full topics, groups that mostly fail, free disk."""
        env, engine = self.engine.env, self.engine
        engine.look_at_files()
        before = env.full
        env.full = await engine.read(lambda tx: capacity.look(tx, before))
        for id in env.full.groups - before.groups:
            name, topic = engine.names.group_name(id)
            log.warning("group %s is handed nothing new of topic %s: %d of its messages wait for another attempt", name, topic, capacity.FAILING_MAX)
        self._look_at_disk()

    def _look_at_disk(self) -> None:
        env, path, limit = self.engine.env, self.engine.path.resolve(), self.engine.settings.storage.free_bytes_min
        was_low = env.storage_low
        env.free_bytes = shutil.disk_usage(path.parent).free
        env.storage_low = env.free_bytes < limit
        if env.storage_low and not was_low:
            log.error("new messages are refused: the disk of %s has %d bytes free, under storage.free_bytes_min, %d", path, env.free_bytes, limit)
        elif was_low and not env.storage_low:
            log.warning("new messages are taken again: the disk of %s has %d bytes free", path, env.free_bytes)

    async def checkpoint(self) -> None:
        """The writer checkpoints as it goes; a WAL that grew past that is cut here."""
        wal = self.engine.path.with_name(self.engine.path.name + "-wal")
        if wal.exists() and wal.stat().st_size > CHECKPOINT_WAL_BYTES:
            await self.engine.checkpoint()

    async def memory(self) -> None:
        """What the allocator keeps free goes back to the system, so that what operators see is what is used."""
        await asyncio.to_thread(give_back)

    async def loop_lag(self) -> None:
        """One timer after the other, so that no time is unwatched: whenever the loop is blocked, one of them is late."""
        started = self.engine.clock.monotonic()
        await asyncio.sleep(LAG_TIMER_S)
        self.engine.metrics.loop_lag(max(0.0, self.engine.clock.monotonic() - started - LAG_TIMER_S))
        self.engine.metrics.clock_ahead(self.engine.clock.ahead_s())

    def all(self) -> dict[str, tuple[float, Callable[[], Awaitable[object]]]]:
        """name: (seconds between two passes, the pass)."""
        return {
            "leases": (0.1, self.leases),
            "draining_keys": (0.1, self.draining_keys),
            "check": (0.05, self.check),
            "ways": (1.0, self.ways),
            "gaps": (0.5, self.gaps_of.tick),
            "capacity": (1.0, self.capacity),
            "checkpoint": (5.0, self.checkpoint),
            "memory": (60.0, self.memory),
            "loop_lag": (0.0, self.loop_lag),
        }
