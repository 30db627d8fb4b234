"""The producers that answer check-backs over this connection: whom a hello names, who is asked, what a beat reports."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from . import _wire
from ._internal import Attached

MAX_ANSWERING: Final = 8
MAX_QUESTIONS: Final = 64  # waiting and being answered; what is past it gets no answer, which costs the producer nothing (R15)
log = logging.getLogger("halfmsg.txclient")


class Producers:
    """Producers of one connection. An answer that fails or comes late is left out, never made up."""

    def __init__(self, send: Callable[[object], Awaitable[None]]) -> None:
        self._send = send
        self._attached: list[Attached] = []
        self._answering: set[asyncio.Task[None]] = set()
        self._places = asyncio.Semaphore(MAX_ANSWERING)

    def __len__(self) -> int:
        return len(self._attached)

    @property
    def attached(self) -> list[Attached]:
        return list(self._attached)

    def attach(self, producer: Attached) -> None:
        if not any(one is producer for one in self._attached):
            self._attached.append(producer)

    def detach(self, producer: Attached) -> None:
        self._attached = [one for one in self._attached if one is not producer]

    def hello(self) -> Sequence[Mapping[str, Any]]:
        """Each (name, source) once: several outboxes of one process may stand for one database."""
        return [_named(name, source) for name, source in dict.fromkeys((one.name, one.source) for one in self._attached)]

    def ask(self, check: _wire.Check) -> None:
        """Have the question answered in a task of its own."""
        producer = self._asked(check)
        if producer is None or len(self._answering) >= MAX_QUESTIONS:
            log.warning("question %d for producer %s is not answered: %s", check.n, check.producer, "not here" if producer is None else "too many")
            return
        task = asyncio.get_running_loop().create_task(self._answer(producer, check))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def beat(self) -> _wire.Beat:
        """One beat for all of them; whose own report fails is left out."""
        reports = []
        for producer in list(self._attached):
            try:
                report = producer.beat()
                told = await report if inspect.isawaitable(report) else report
                reports.append(_named(producer.name, producer.source) | {name: value for name, value in told.items() if value is not None})
            except Exception:
                log.exception("producer %s could not report its beat; is its database there?", producer.name)
        return _wire.Beat(producers=reports)

    async def close(self) -> None:
        for task in list(self._answering):
            task.cancel()
        await asyncio.gather(*self._answering, return_exceptions=True)

    def _asked(self, check: _wire.Check) -> Attached | None:
        same = [one for one in self._attached if one.name == check.producer]
        return next((one for one in same if one.source == check.source), same[0] if same else None)

    async def _answer(self, producer: Attached, check: _wire.Check) -> None:
        question: dict[str, Any] = {"type": "check", "producer": check.producer, "source": check.source, "transactions": check.transactions}
        if check.holders is not None:
            question["holders"] = check.holders
        async with self._places:
            try:
                said = await producer.answer(question)
                frame = _wire.Verdicts(n=check.n, source=said.get("source"), verdicts=said.get("verdicts"), holders=said.get("holders"))
                await self._send(frame)
            except ConnectionError:
                log.debug("the connection of question %d is gone; it will be asked again", check.n)
            except Exception:
                log.exception("producer %s could not answer question %d; it counts as no answer", producer.name, check.n)


def _named(name: str, source: str | None) -> dict[str, Any]:
    return {"name": name} if source is None else {"name": name, "source": source}
