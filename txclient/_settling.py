"""The way back: acks, nacks and rejects, told in order and as many at once as wait.

One round at a time, so that the ack of an earlier message never comes after that of a later one of its key, even when a call is
repeated. Acks go first in a round: a lane whose head was nacked has nothing more to say until that is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from . import _clock, _wire
from ._hand import End, Settle
from ._retry import LOCAL_LIMIT
from .errors import ApiError, Busy, HalfmsgError

MAX_REASON_CHARS: Final = 1_000
AGAIN_S: Final = 0.05
log = logging.getLogger("halfmsg.txclient")
Answered = Callable[[Settle, bool, Sequence[str]], None]
Tell = Callable[[object], Awaitable[Any]]
"""One operation, within a lease's time -> its `ok`. Raises HalfmsgError."""


class Settling:
    """Tells the coordinator what became of deliveries; `answered` hears of each: definitely accepted, or definitely refused.

    An ack without an answer counts as refused (it is delivered again, and the inbox knows it); a nack or reject is repeated until it has
    one, since its lane may not go on without proof; so is what was never sent, as the client's queue was full. Where the client is closed
    (`closed`) nothing more can be told, and all is refused.
    """

    def __init__(self, op: Tell, closed: Callable[[], bool], group: str, answered: Answered) -> None:
        self._op = op
        self._closed = closed
        self._group = group
        self._answered = answered
        self._waiting: list[Settle] = []
        self._again: list[Settle] = []
        """What is told again, before all that came later: what was not sent or not answered, and nacks and rejects before their turn (an
        earlier one of the key is open in this hand, so they are too, and nothing may pass them)."""
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def tell(self, settle: Settle) -> None:
        self._waiting.append(settle)
        self._idle.clear()
        self._news.set()

    async def idle(self) -> None:
        """Wait until all that was told has its answer."""
        await self._idle.wait()

    async def run(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                told, self._waiting = self._waiting, []
                await asyncio.gather(*(self._round(end, [one for one in told if one.end is end]) for end in End))
                if self._again:
                    self._waiting, self._again = self._again + self._waiting, []
                    await _clock.pause(AGAIN_S)
            self._idle.set()

    async def _round(self, end: End, told: Sequence[Settle]) -> None:
        for at in range(0, len(told), _wire.MAX_ITEMS):
            if not await self._tell(end, told[at : at + _wire.MAX_ITEMS]):
                self._again += told[at + _wire.MAX_ITEMS :]  # a smaller call might find room, and pass the one that did not
                return

    async def _tell(self, end: End, told: Sequence[Settle]) -> bool:
        """False: the queue is full, and nothing was sent."""
        try:
            answer = await self._op(_op(end, self._group, told))
            results: Sequence[Mapping[str, Any]] = answer["results"]
        except HalfmsgError as error:
            return self._unanswered(end, told, error)
        except Exception as error:  # what cannot be sent never will be: these end with their leases, and the others are told
            log.exception("%d deliveries of group %s cannot be told as %s", len(told), self._group, end)
            return self._unanswered(end, told, ApiError("internal", str(error), status=400))
        for one, result in zip(told, results, strict=True):
            problem = result.get("error")
            if problem is not None and problem.get("code") == "out_of_order" and end is not End.ACK:
                self._again.append(one)
                continue
            if problem is not None:
                _note(one, problem)
            back = (result.get("ok") or {}).get("given_back") or ()
            self._answered(one, problem is None, back)
        return True

    def _unanswered(self, end: End, told: Sequence[Settle], error: HalfmsgError) -> bool:
        closed = self._closed()
        unsent = error.code == LOCAL_LIMIT and not closed
        definite = isinstance(error, ApiError) and not isinstance(error, Busy)
        level = logging.DEBUG if closed or unsent else logging.WARNING
        log.log(level, "%d deliveries of group %s could not be told as %s: %s", len(told), self._group, end, error)
        for one in told:
            if closed or definite or (end is End.ACK and not unsent):
                self._answered(one, False, ())
            else:
                self._again.append(one)
        return not unsent


def _op(end: End, group: str, told: Sequence[Settle]) -> object:
    if end is End.ACK:
        return _wire.Ack(group=group, deliveries=[_wire.Item(token=one.delivery.token) for one in told])
    if end is End.REJECT:
        items = [_wire.Item(token=one.delivery.token, reason=one.reason[:MAX_REASON_CHARS]) for one in told]
        return _wire.Reject(group=group, deliveries=items)
    items = [_wire.Item(token=one.delivery.token, reason=one.reason[:MAX_REASON_CHARS], delay_s=one.delay_s, counts=one.counts) for one in told]
    return _wire.Nack(group=group, deliveries=items)


def _note(one: Settle, problem: Mapping[str, Any]) -> None:
    code = problem.get("code")
    level = logging.ERROR if code == "out_of_order" else logging.DEBUG if code == "lease_lost" else logging.WARNING
    log.log(level, "%s of %s was refused: %s (%s)", one.end, one.delivery.id, code, problem.get("detail"))
