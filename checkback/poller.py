"""Asking who is due: one `tick` claims and starts questions, the questions run on by themselves, `run` is a dumb timer.

By producer: so many questions in flight, one breaker. So a sick producer costs only itself. What is decided, and when
to ask next, is not decided here: the store gets the rulings.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from . import ports, question, schedule, verdict
from .ports import DueCheck
from .verdict import Result, Ruling

log = logging.getLogger("halfmsg.checkback")

OnResult = Callable[[str, Ruling, float], None]
"""Told of each ruling, for metrics: producer, ruling, seconds that the question took."""

OVERTIME_S = 1.0
"""A way keeps its own time-out and then gives what it has; only one that does not is cut off, with all that it had."""


@dataclass(frozen=True, slots=True)
class PollerSettings:
    """The limits of asking (DESIGN §12, W9)."""

    concurrency: int = 8
    """Questions in flight, by producer."""
    ids_a_question: int = 50
    question_timeout_s: float = 10.0
    """For each way that is tried; a responder stops at less than half of it (R28)."""
    ways_max: int = 3
    """How many ways one question tries: a hanging stream must leave time for the URL, a list of dead ones must end."""

    def __post_init__(self) -> None:
        if min(self.concurrency, self.ways_max) < 1 or not 1 <= self.ids_a_question <= 50 or self.question_timeout_s <= 0:
            raise ValueError("check settings: concurrency and ways_max from 1, ids_a_question from 1 to 50, question_timeout_s above 0")

    @property
    def lease_min_s(self) -> float:
        """A claim must last longer than this, or what is still being asked is claimed again (W9)."""
        return (self.question_timeout_s + OVERTIME_S) * self.ways_max


@dataclass(frozen=True, slots=True)
class TickReport:
    """What one tick began, and what the questions that ended since the one before brought. Counts of ids, but the last."""

    asked: int = 0
    answered: int = 0
    no_answer: int = 0
    decided: int = 0
    """Of `answered`, how many said committed or rolled_back."""
    busy_producers: int = 0
    """Producers that got nothing in this tick, as all their places are taken or their breaker is open."""


@dataclass(slots=True)
class _Line:
    """What the poller remembers of one producer."""

    producer: str = ""
    breaker: schedule.Breaker = schedule.CLOSED
    asking: set[int] = field(default_factory=set)
    """Transactions whose question is in flight."""
    questions: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def is_idle(self) -> bool:
        return not self.questions and self.breaker == schedule.CLOSED


class Poller:
    """Asks the producers. Owns its questions: call `aclose` before the store or the ways go away."""

    def __init__(
        self,
        store: ports.Store,
        ways: ports.Ways,
        clock: ports.Clock,
        random: ports.Random,
        settings: PollerSettings | None = None,
        on_result: OnResult | None = None,
    ) -> None:
        self._store, self._ways, self._clock, self._random = store, ways, clock, random
        self._settings = settings or PollerSettings()
        self._on_result = on_result
        self._lines: dict[int, _Line] = {}
        self._answered = self._no_answer = self._decided = 0

    async def tick(self, *, wait: bool = False) -> TickReport:
        """Claim what is due and start asking; `wait` for the answers is for tests and for "ask now".

        Errors: what the store raises on claiming; then nothing was begun.
        """
        limits, busy = self._limits()
        due = await self._store.claim_due_checks(limits) if limits else []
        asked = self._start(due)
        if wait:
            await asyncio.gather(*self._questions())
        return self._report(asked, busy)

    async def run(self, stop: asyncio.Event, interval_s: float) -> None:
        """Tick until stopped. A tick that fails is logged and tried again: leases bring back what it had claimed."""
        while not stop.is_set():
            try:
                await self.tick()
            except Exception:
                log.exception("check-back tick failed")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), interval_s)

    async def aclose(self, grace_s: float | None = None) -> None:
        """Wait for the questions in flight, at most `grace_s`, then cut off the rest; their leases bring them back."""
        questions = self._questions()
        try:
            if questions:
                await asyncio.wait(questions, timeout=grace_s)
        finally:
            for task in questions:
                task.cancel()
            await asyncio.gather(*questions, return_exceptions=True)

    def hello(self, producer: str) -> None:
        """A producer has said hello: whatever its breaker said is out of date (R15)."""
        for line in self._lines.values():
            if line.producer == producer:
                line.breaker = schedule.record_answer(line.breaker)

    def breaker_open(self, producer: str) -> bool:
        """Whether the producer is being spared, for metrics."""
        return any(line.breaker.is_open for line in self._lines.values() if line.producer == producer)

    # what a tick does

    def _limits(self) -> tuple[dict[int, int], int]:
        """How many ids each producer may be asked now, in an order that starts anywhere: a store that claims only so many in all
        would else always serve the same ones first."""
        open_now = list(self._store.sources_with_open())
        self._forget_idle(open_now)
        start = int(self._random.random() * len(open_now))
        limits = {producer_id: self._places(producer_id) for producer_id in open_now[start:] + open_now[:start]}
        free = {producer_id: places for producer_id, places in limits.items() if places > 0}
        return free, len(limits) - len(free)

    def _places(self, producer_id: int) -> int:
        line = self._lines.get(producer_id)
        if line is None:
            return self._settings.concurrency * self._settings.ids_a_question
        if line.breaker.is_open and line.questions:
            return 0  # the trial is under way
        free = self._settings.concurrency - len(line.questions)
        return schedule.how_many_may_be_asked(line.breaker, self._clock.now_ms(), free * self._settings.ids_a_question)

    def _forget_idle(self, open_now: Iterable[int]) -> None:
        kept = set(open_now)
        self._lines = {id_: line for id_, line in self._lines.items() if id_ in kept or not line.is_idle}

    def _start(self, due: Sequence[DueCheck]) -> int:
        """One task a question; gives the number of ids asked. Ids still being asked, as their lease was too short, are passed over."""
        ordered = sorted(due, key=lambda check: (check.producer_id, check.source or ""))
        asked = 0
        for (producer_id, _), group in groupby(ordered, key=lambda check: (check.producer_id, check.source)):
            line = self._lines.setdefault(producer_id, _Line())
            checks = [check for check in group if check.n not in line.asking]
            for first in range(0, len(checks), self._settings.ids_a_question):
                self._begin(line, checks[first : first + self._settings.ids_a_question])
            asked += len(checks)
        return asked

    def _begin(self, line: _Line, checks: list[DueCheck]) -> None:
        line.producer = checks[0].producer
        line.asking.update(check.n for check in checks)
        task = asyncio.create_task(self._question(line, checks), name=f"check-back {line.producer}")
        line.questions.add(task)
        task.add_done_callback(line.questions.discard)

    def _questions(self) -> list[asyncio.Task[None]]:
        return [task for line in self._lines.values() for task in line.questions]

    def _report(self, asked: int, busy: int) -> TickReport:
        report = TickReport(asked, self._answered, self._no_answer, self._decided, busy)
        self._answered = self._no_answer = self._decided = 0
        return report

    # one question

    async def _question(self, line: _Line, checks: list[DueCheck]) -> None:
        """Ask, count, hand the rulings over. If the store fails, the leases bring the checks back: nothing is decided here."""
        began_ms = self._clock.now_ms()
        try:
            rulings = await self._ask(checks)
            took_ms = max(self._clock.now_ms() - began_ms, 0)
            self._note(line, rulings.values())
            await self._store.apply_rulings([(check, rulings[check.id], took_ms) for check in checks])
            self._tell(line.producer, rulings.values(), took_ms)
        except Exception:
            log.exception("check-back of %s: rulings not applied, will ask again", line.producer)
        finally:
            line.asking.difference_update(check.n for check in checks)

    async def _ask(self, checks: list[DueCheck]) -> dict[str, Ruling]:
        """Ask the first way; what got no answer goes on to the next (R15)."""
        producer, source = checks[0].producer, checks[0].source
        rulings = verdict.no_answers([check.id for check in checks], "no way to ask")
        for way in self._ways.ways(producer)[: self._settings.ways_max]:
            left = [check for check in checks if rulings[check.id].result is Result.NO_ANSWER]
            if not left:
                break
            found = await self._ask_way(way, question.build(producer, source, left))
            for check in left:
                rulings[check.id] = _later(rulings[check.id], found.get(check.id))
        return rulings

    async def _ask_way(self, way: ports.Way, asked: dict[str, Any]) -> Mapping[str, Ruling]:
        """Bounded whatever the way does: one that breaks its word, by hanging or raising, is a way without an answer."""
        try:
            async with asyncio.timeout(self._settings.question_timeout_s + OVERTIME_S):
                return await way.ask(asked, self._settings.question_timeout_s)
        except TimeoutError:
            failed = "timed out"
        except Exception:
            log.exception("check-back by %s failed", way.kind)
            failed = "failed"
        return verdict.no_answers([str(transaction["id"]) for transaction in asked["transactions"]], failed)

    def _note(self, line: _Line, rulings: Iterable[Ruling]) -> None:
        results = [ruling.result for ruling in rulings]
        silent = results.count(Result.NO_ANSWER)
        self._no_answer += silent
        self._answered += len(results) - silent
        self._decided += sum(result.decides for result in results)
        answered = silent < len(results)
        line.breaker = schedule.record_answer(line.breaker) if answered else schedule.record_no_answer(line.breaker, self._clock.now_ms())

    def _tell(self, producer: str, rulings: Iterable[Ruling], took_ms: int) -> None:
        if self._on_result:
            for ruling in rulings:
                self._on_result(producer, ruling, took_ms / 1000)


def _later(first: Ruling, second: Ruling | None) -> Ruling:
    """The ruling after one more way. That another database answers is worth knowing whatever a later way fails with (R7)."""
    if second is None:
        second = verdict.no_answer("id not in the answer")
    return first if second.result is Result.NO_ANSWER and first.detail == verdict.WRONG_SOURCE else second
