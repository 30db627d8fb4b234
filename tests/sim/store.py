"""The coordinator's writer as steps of the loop: the same groups, at a moment of the seed's choosing, and a crash in their middle."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from halfmsg.coordinator.app import Coordinator
from halfmsg.coordinator.engine import Engine
from halfmsg.coordinator.store.writer import OUTSIDE, Call, Job, Writer

from .seams import NODE, Node

DISK_S = 0.0015
CLOCK_STEP_MS = 60_001
BEHIND_COMMIT = ("committed", "checkpointed")
"""Fail points of a group whose COMMIT has returned; a checkpoint may be due with it."""


class Crash(BaseException):
    """A fail point was reached: nothing of this process goes on."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class SimWriter(Writer):
    thread = 0

    def _start(self) -> None:
        node = NODE.get()
        if node is None:
            raise RuntimeError("a coordinator belongs to a node")
        self._node: Node = node
        self._world = node.owner
        self._planned = False
        self._seen_at: tuple[int, float] | None = None

    def submit(self, calls: Sequence[Call], *, weight: int = 0, essential: bool = True) -> asyncio.Future[list[Any]]:
        future = super().submit(calls, weight=weight, essential=essential)
        self._plan()
        return future

    def _plan(self) -> None:
        if self._queue and not self._planned:
            self._planned = True
            self._loop.call_later(self._world.chance.expovariate(1 / DISK_S), self._step)

    def _step(self) -> None:
        self._planned = False
        jobs = self._next_group()
        if not jobs:
            return
        try:
            if jobs[0].calls[0][0] is OUTSIDE:
                self._run_outside(jobs[0])
            else:
                self._run_group(jobs)
                self._note(jobs)
        except Crash as crash:
            if crash.name in BEHIND_COMMIT and jobs[0].calls[0][0] is not OUTSIDE:
                self._note(jobs)
            self._world.failpoint_fired(crash.name)
            return
        self._plan()

    def _note(self, jobs: list[Job]) -> None:
        self._look_at_the_clock()
        for job in jobs:
            for (fn, command), result in zip(job.calls, job.results, strict=True):
                self._world.ledger.durable(fn.__name__, command, result, self._now)

    def _look_at_the_clock(self) -> None:
        """P10: within one life of the coordinator its time goes as time goes; steps of up to a minute are followed, jumps are not."""
        before, self._seen_at = self._seen_at, (self._now, self._loop.time())
        if before is not None:
            passed_ms = (self._seen_at[1] - before[1]) * 1_000
            if not 0 <= self._now - before[0] <= passed_ms + CLOCK_STEP_MS:
                self._world.wrong(f"the coordinator's time went by {self._now - before[0]} ms in {passed_ms:.0f} ms")

    def _answer(self, jobs: list[Job], events: list[tuple[Any, ...]], seconds: float) -> None:
        self._loop.call_later(self._world.chance.expovariate(1 / DISK_S), self._deliver, jobs, events, seconds)

    async def stop(self) -> None:
        self._stopping = True
        while self._queue:  # noqa: ASYNC110 - its steps are planned already
            await asyncio.sleep(DISK_S)
        self._backend.close()


class SimEngine(Engine):
    writer_type = SimWriter


class SimCoordinator(Coordinator):
    engine_type = SimEngine
