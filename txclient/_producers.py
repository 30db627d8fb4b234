"""The producers that answer check-backs over this connection: whom a hello names, who is asked, what a beat reports."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from . import _wire
from ._internal import Attached
from .errors import UsageError

MAX_ANSWERING: Final = 8
MAX_QUESTIONS: Final = 64  # waiting and being answered; what is past it gets no answer, which costs the producer nothing (R15)
MAX_PRODUCERS: Final = 64  # of a hello, and of a beat; with one more the coordinator refuses the frame, and with it the connection of all
ANSWER_S: Final = 12.0  # a little longer than the coordinator waits (check.question_timeout_s = 10): a later answer is heard by nobody
BEAT_TIMEOUT_S: Final = 5.0
log = logging.getLogger("halfmsg.txclient")
Key = tuple[str, str | None]


class _Desk:
    """One attached producer, with places and time of its own: where its database hangs, no other producer waits."""

    def __init__(self, producer: Attached) -> None:
        self.producer = producer
        self.places = asyncio.Semaphore(MAX_ANSWERING)
        self.open_questions = 0
        self.beating: asyncio.Task[Mapping[str, Any] | None] | None = None
        self._silent = False

    @property
    def key(self) -> Key:
        return self.producer.name, self.producer.source

    async def beat(self) -> Mapping[str, Any] | None:
        """Its report; None, and said once, where it has none."""
        producer = self.producer
        try:
            report = producer.beat()
            told = await report if inspect.isawaitable(report) else report
        except Exception as error:
            self.left_out(error)
            return None
        self._silent = False
        return _named(producer.name, producer.source) | {name: value for name, value in told.items() if value is not None}

    def left_out(self, error: Exception | None = None) -> None:
        level, self._silent = logging.DEBUG if self._silent else logging.WARNING, True
        text = "producer %s could not report its beat, and is asked again with the next one; is its database there?"
        log.log(level, text, self.producer.name, exc_info=error)


class Producers:
    """Producers of one connection. An answer that fails or comes late is left out, never made up."""

    def __init__(self, send: Callable[[object], Awaitable[None]]) -> None:
        self._send = send
        self._desks: list[_Desk] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._desks)

    @property
    def attached(self) -> list[Attached]:
        return [desk.producer for desk in self._desks]

    def attach(self, producer: Attached) -> None:
        """Raises UsageError(bad_request) for one more (name, source) than a hello has room for."""
        if any(desk.producer is producer for desk in self._desks):
            return
        desk = _Desk(producer)
        if len(self._by_key().keys() | {desk.key}) > MAX_PRODUCERS:
            text = f"{MAX_PRODUCERS} producers answer over this Client, and it takes no more"
            raise UsageError("bad_request", f"{text}; give producer {producer.name} a Client of its own")
        self._desks.append(desk)

    def detach(self, producer: Attached) -> None:
        for desk in self._desks:
            if desk.producer is producer and desk.beating is not None:
                desk.beating.cancel()
        self._desks = [desk for desk in self._desks if desk.producer is not producer]

    def hello(self) -> Sequence[Mapping[str, Any]]:
        """Each (name, source) once: several outboxes of one process may stand for one database."""
        return [_named(*key) for key in self._by_key()]

    def ask(self, check: _wire.Check) -> None:
        """Have the question answered in a task of its own."""
        desk = self._asked(check)
        if desk is None or desk.open_questions >= MAX_QUESTIONS:
            log.warning("question %d for producer %s is not answered: %s", check.n, check.producer, "not here" if desk is None else "too many")
            return
        desk.open_questions += 1
        self._begin(self._answer(desk, check))

    async def beat(self, *only: Attached) -> _wire.Beat:
        """One beat for all of them, or for these, who are asked at the same time; who does not report in time is left out."""
        desks = [desk for desk in self._by_key().values() if not only or desk.producer in only]
        reports = await asyncio.gather(*(self._report(desk) for desk in desks))
        return _wire.Beat(producers=[report for report in reports if report is not None])

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _by_key(self) -> Mapping[Key, _Desk]:
        """The first of each (name, source)."""
        found: dict[Key, _Desk] = {}
        for desk in self._desks:
            found.setdefault(desk.key, desk)
        return found

    def _asked(self, check: _wire.Check) -> _Desk | None:
        same = [desk for desk in self._desks if desk.producer.name == check.producer]
        return next((desk for desk in same if desk.producer.source == check.source), same[0] if same else None)

    def _begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _report(self, desk: _Desk) -> Mapping[str, Any] | None:
        """A beat that is late is cancelled, and its end not waited for: a connection that hangs may hang in its closing as well. Until it
        has ended no other is begun, so one database is never asked twice at once, and its reports do not pass each other."""
        task = desk.beating
        if task is None or task.done():
            task = desk.beating = self._begin(desk.beat())
        await asyncio.wait((task,), timeout=BEAT_TIMEOUT_S)
        if not task.done():
            task.cancel()
            desk.left_out()
            return None
        return None if task.cancelled() else task.result()

    async def _answer(self, desk: _Desk, check: _wire.Check) -> None:
        question: dict[str, Any] = {"type": "check", "producer": check.producer, "source": check.source, "transactions": check.transactions}
        if check.holders is not None:
            question["holders"] = check.holders
        late = asyncio.timeout(ANSWER_S)
        try:
            async with late, desk.places:  # the wait for a place counts: nobody listens any longer
                said = await desk.producer.answer(question)
            frame = _wire.Verdicts(n=check.n, source=said.get("source"), verdicts=said.get("verdicts"), holders=said.get("holders"))
        except Exception as error:
            if late.expired() and isinstance(error, TimeoutError):
                log.warning("producer %s said nothing to question %d in %g s; it counts as no answer", check.producer, check.n, ANSWER_S)
            else:
                log.exception("producer %s could not answer question %d; it counts as no answer", check.producer, check.n)
            return
        finally:
            desk.open_questions -= 1
        try:
            await self._send(frame)
        except ConnectionError:
            log.debug("the connection of question %d is gone; it will be asked again", check.n)
        except Exception:
            log.exception("the answer to question %d of producer %s could not be sent; it counts as no answer", check.n, check.producer)


def _named(name: str, source: str | None) -> dict[str, Any]:
    return {"name": name} if source is None else {"name": name, "source": source}
