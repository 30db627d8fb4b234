"""The one writer thread: whole transaction functions, many to a COMMIT (group commit).

A caller submits `fn` and its command and gets a future; cancelling it loses the answer, never cuts the transaction. What is queued
while one group is being made durable is the next group: nobody waits on a timer. A function that raises is undone alone: where it
had written nothing its neighbours go on; else the group is rolled back and run again without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..clock import Clock
from ..errors import Problem
from . import failpoints
from .base import Backend, StoreBroken, StoreFull

log = logging.getLogger("halfmsg.store")

Fn = Callable[[Any, int, Any], Any]
Call = tuple[Fn, Any]
GROUP_CALLS_MAX = 2_000
RELIEF_S = 1.0
OUTSIDE = object()


class Job:
    """Calls that are answered together, in order; each is its own command."""

    __slots__ = ("calls", "future", "results", "weight")

    def __init__(self, calls: Sequence[Call], future: asyncio.Future[Any], weight: int) -> None:
        self.calls = calls
        self.future = future
        self.weight = weight
        self.results: list[Any] = []


class _Redo(Exception):
    """A call failed after it had written: run the group again, with this answer for it."""

    def __init__(self, job: Job, index: int, problem: Problem) -> None:
        super().__init__()
        self.job, self.index, self.problem = job, index, problem


class Writer:
    """`on_durable(events)` and `on_group(calls, seconds)` are called on the loop, before the answers of that group."""

    def __init__(
        self,
        backend: Backend,
        clock: Clock,
        *,
        calls_max: int,
        bytes_max: int,
        on_durable: Callable[[list[tuple[Any, ...]]], None],
        on_group: Callable[[int, float], None],
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._limits = (calls_max, bytes_max)
        self._on_durable, self._on_group, self._on_broken = on_durable, on_group, on_broken
        self._loop = asyncio.get_running_loop()
        self._wake = threading.Condition()
        self._queue: deque[Job] = deque()
        self._calls_waiting = 0
        self._bytes_waiting = 0
        self._stopping = False
        self._broken: BaseException | None = None
        self._now = 0
        self._turns = 0
        self._relieved_at: float | None = None
        self._start()

    def _start(self) -> None:
        """A thread; the simulation has steps of its loop here instead."""
        self._thread = threading.Thread(target=self._work, name="halfmsg-writer", daemon=True)
        self._thread.start()

    async def call(self, fn: Fn, command: Any, *, weight: int = 0, essential: bool = True) -> Any:
        """One command; gives its result or raises its `Problem`. Durable when it returns (P3)."""
        result = (await self.submit(((fn, command),), weight=weight, essential=essential))[0]
        if isinstance(result, Problem):
            raise result
        return result

    def submit(self, calls: Sequence[Call], *, weight: int = 0, essential: bool = True) -> asyncio.Future[list[Any]]:
        """A future with one result or `Problem` a call. Raises `overloaded` at the door: prepare and submit first, the rest later (R20)."""
        calls_max, bytes_max = self._limits
        factor = 2 if essential else 1
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        with self._wake:
            if self._broken is not None or self._stopping:
                raise Problem("draining" if self._broken is None else "storage_unavailable", "the coordinator is stopping; nothing was stored")
            if self._calls_waiting + len(calls) > calls_max * factor or self._bytes_waiting + weight > bytes_max * factor:
                raise Problem("overloaded", f"{self._calls_waiting} commands are waiting for the store; nothing was stored")
            self._queue.append(Job(calls, future, weight))
            self._calls_waiting += len(calls)
            self._bytes_waiting += weight
            if len(self._queue) == 1:
                self._wake.notify()
        return future

    async def outside(self, action: Callable[[], Any]) -> Any:
        """Run an action of the backend on the writer thread, between two groups (checkpoint, backup)."""
        call: Any = (OUTSIDE, action)
        result = (await self.submit((call,)))[0]
        if isinstance(result, Problem):
            raise result
        return result

    @property
    def thread(self) -> int:
        return self._thread.ident or 0

    def progress(self) -> int | None:
        """Changes with each group; None while there is nothing to do (watchdog.py)."""
        return self._turns // 2 if self._turns % 2 else None

    async def stop(self) -> None:
        """Finish what is queued, then end the thread and close the backend."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def break_off(self, found: StoreBroken) -> None:
        """The store is no longer what it was, as somebody else has seen: nothing that is asked from here on is answered as done."""
        self._break(found, found)

    # --- on the writer thread ---

    def _work(self) -> None:
        while (jobs := self._next_group()) is not None:
            self._turns += 1
            if jobs[0].calls[0][0] is OUTSIDE:
                self._run_outside(jobs[0])
            else:
                self._run_group(jobs)
            self._turns += 1
        try:
            self._backend.close()
        except Exception:
            log.exception("closing the store failed")

    def _next_group(self) -> list[Job] | None:
        with self._wake:
            while not self._queue:
                if self._stopping:
                    return None
                self._wake.wait()
            jobs = [self._queue.popleft()]
            count = len(jobs[0].calls)
            outside = jobs[0].calls[0][0] is OUTSIDE
            while self._queue and not outside and self._queue[0].calls[0][0] is not OUTSIDE and count < GROUP_CALLS_MAX:
                count += len(self._queue[0].calls)
                jobs.append(self._queue.popleft())
            return jobs

    def _run_outside(self, job: Job) -> None:
        try:
            job.results = [job.calls[0][1]()]
        except Exception as error:
            job.results = [self._maintenance_failed(self._backend.meaning(error), error)]
        self._answer([job], [], 0.0)

    def _maintenance_failed(self, found: Exception, error: Exception) -> Problem:
        """A full disk passes; an I/O error is one here as well, or a later sync may lie about this one."""
        if isinstance(found, StoreFull):
            return Problem("storage_full", "the disk is full; what is stored is safe")
        if isinstance(found, StoreBroken):
            self._break(found, error)
            return Problem("storage_unavailable", f"the store failed: {found}")
        log.error("maintenance failed", exc_info=error)
        return Problem("internal", f"maintenance failed: {error}")

    def _run_group(self, jobs: list[Job]) -> None:
        started = self._clock.monotonic()
        events: list[tuple[Any, ...]] = []
        if self._broken is not None:
            self._fail(jobs, Problem("storage_unavailable", "the store failed and the coordinator is stopping"))
        else:
            failpoints.during(fn for job in jobs for fn, _ in job.calls)
            events = self._attempt(jobs)
        self._answer(jobs, events, self._clock.monotonic() - started)

    def _attempt(self, jobs: list[Job]) -> list[tuple[Any, ...]]:
        """Run the group until it is durable. Gives its events; on failure every call of it has a Problem as its result."""
        known: dict[tuple[int, int], Problem] = {}
        committing = False
        while True:
            try:
                self._backend.begin()
                self._apply(jobs, known)
                committing = True
                self._backend.commit()
                tx = self._backend.tx
                events, tx.events = tx.events, []
                return events  # type: ignore[no-any-return]
            except _Redo as redo:
                self._backend.rollback()
                known[id(redo.job), redo.index] = redo.problem
            except Exception as error:
                self._give_up(jobs, error, committing)
                return []

    def _apply(self, jobs: list[Job], known: dict[tuple[int, int], Problem]) -> None:
        tx = self._backend.tx
        self._now = now = tx.now = max(self._clock.now_ms(), self._now)
        for job in jobs:
            results: list[Any] = []
            for index, (fn, command) in enumerate(job.calls):
                problem = known.get((id(job), index)) if known else None
                results.append(problem if problem is not None else self._one(tx, now, fn, command, job, index))
            job.results = results

    def _one(self, tx: Any, now: int, fn: Fn, command: Any, job: Job, index: int) -> Any:
        before, told = self._backend.changes(), len(tx.events)
        try:
            return fn(tx, now, command)
        except Problem as problem:
            refusal = problem
        except Exception as error:
            found = self._backend.meaning(error)
            if isinstance(found, StoreFull | StoreBroken):
                raise found from error
            log.exception("a transaction function failed")
            refusal = Problem("internal", f"{type(error).__name__}: {error}")
        if self._backend.changes() != before:
            raise _Redo(job, index, refusal)
        del tx.events[told:]
        return refusal

    def _give_up(self, jobs: list[Job], error: Exception, committing: bool) -> None:
        try:
            self._backend.rollback()
        except Exception:
            log.exception("rollback failed")
        found = self._backend.meaning(error)
        if isinstance(found, StoreFull):
            self._fail(jobs, Problem("storage_full", "the disk is full; nothing was stored, and what is stored is safe"))
            self._relieve()
            return
        code = "outcome_unknown" if committing else "storage_unavailable"
        self._fail(jobs, Problem(code, f"the store failed: {found}"))
        self._break(found, error)

    def _relieve(self) -> None:
        """What is in the log already is the room that a full disk has left: moved into the file, the log begins anew in the same space,
        and acks, which take no more, go on. At most once in `RELIEF_S`, since moving may itself find the disk full half-way."""
        now = self._clock.monotonic()
        if self._relieved_at is not None and now - self._relieved_at < RELIEF_S:
            return
        self._relieved_at = now
        try:
            self._backend.relieve()
        except Exception as error:
            found = self._backend.meaning(error)
            if isinstance(found, StoreBroken):
                self._break(found, error)

    def _break(self, found: Exception, error: Exception) -> None:
        """From here on nothing is written; the process is told, once, and stops. Where the disk is the cause a traceback says nothing more."""
        log.critical("the store failed, stopping: %s", found, exc_info=None if isinstance(found, StoreBroken) else error)
        if self._broken is None:
            self._broken = found
            with contextlib.suppress(RuntimeError):  # the loop is gone
                self._loop.call_soon_threadsafe(self._on_broken, found)

    def _fail(self, jobs: list[Job], problem: Problem) -> None:
        for job in jobs:
            job.results = [problem] * len(job.calls)

    def _answer(self, jobs: list[Job], events: list[tuple[Any, ...]], seconds: float) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, jobs, events, seconds)
        except RuntimeError:
            log.warning("the loop is gone; %d answers are lost, nothing else", len(jobs))

    # --- on the loop ---

    def _deliver(self, jobs: list[Job], events: list[tuple[Any, ...]], seconds: float) -> None:
        calls = sum(len(job.calls) for job in jobs)
        with self._wake:
            self._calls_waiting -= calls
            self._bytes_waiting -= sum(job.weight for job in jobs)
        self._on_group(calls, seconds)
        if events:
            self._on_durable(events)
        for job in jobs:
            if not job.future.done():
                job.future.set_result(job.results)
