"""One consumer's membership of its group on one loop: what comes from the stream goes into the hand, what the hand says is done."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import traceback
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from . import _clock, _wire
from ._client import Client
from ._delivery import Delivery, Reject, Retry
from ._hand import Action, End, Hand, Settle, Start
from ._handlers import call_blocking, is_async
from ._ids import Ids
from ._internal import Claims, NotBegun
from ._settling import MAX_REASON_CHARS, Settling
from ._units import seconds
from .errors import ApiError, HalfmsgError, UsageError

CREDITS_PER_PLACE: Final = 4
MIN_CREDITS: Final = 16
MAX_CREDITS: Final = 10_000
MAX_DELAY_S: Final = 86_400.0
AGAIN_FIRST_S, AGAIN_MAX_S = 0.5, 30.0
AWAY_FIRST_S, AWAY_MAX_S = 1.0, 30.0
AWAY_SAID_EVERY_S: Final = 60.0
LAST_WORDS_S: Final = 1.0
log = logging.getLogger("halfmsg.txclient")
Handler = Callable[..., Any]


class Member:
    """Begins in `run`, ends in `run`: afterwards nothing of it is left in the loop. Implements _stream.Subscriber."""

    def __init__(
        self, client: Client, group: str, handlers: Mapping[str, Handler], *, inbox: Claims | None, identity: str | None, places: int, lease_s: float
    ) -> None:
        self.group = group
        self.counts = {"acked": 0, "retried": 0, "rejected": 0}
        self._client = client
        self._stream = client._link().stream
        self._handlers = handlers
        self._inbox = inbox
        self._identity = identity
        self._places = places
        self._lease_s = lease_s
        self._credits = min(max(MIN_CREDITS, places * CREDITS_PER_PLACE), MAX_CREDITS)
        self.name = Ids().member()
        self._hand = Hand(places=places, lease_s=lease_s)
        self._settling = Settling(self._tell, lambda: self._stream.closed, group, self._answered)
        self._threads = ThreadPoolExecutor(places, thread_name_prefix=f"halfmsg-{group}")
        self._running: dict[asyncio.Task[None], Delivery | None] = {}
        """What is under way; with its delivery where a handler runs."""
        self._refused, self._refusals, self._refused_at = False, 0, 0.0
        self._away_said_at: float | None = None
        self._going = asyncio.Event()
        self._cut = asyncio.Event()
        self._again: list[asyncio.Task[None]] = []

    async def run(self, stopping: asyncio.Event) -> None:
        """Serve until `stopping` is set or this is cancelled; then finish what runs, give back what waits, and leave."""
        loop = asyncio.get_running_loop()
        telling = loop.create_task(self._settling.run())
        helpers = [telling, loop.create_task(self._renew())]
        try:
            await self._stream.subscribe(self)
            await _first(stopping.wait(), self._cut.wait())
        finally:
            try:
                await self._leave(telling)
            finally:
                left = [*helpers, *self._again, *self._running]
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)
                self._threads.shutdown(wait=False)
        if self._cut.is_set() and not stopping.is_set():
            raise UsageError("client_closed", f"the Client of consumer {self.group} was closed; stop its consumers first")

    @property
    def _leaving(self) -> bool:
        return self._going.is_set()

    async def _leave(self, telling: asyncio.Task[None]) -> None:
        """Handlers that run are waited for; acks, and nacks of what was not begun, for one lease: longer they are worth nothing. And not at
        all where all tasks of the loop were cancelled, since nobody tells them then.
        """
        self._going.set()
        await self._stream.unsubscribe(self)
        self._hand.close()
        self._do(self._hand.next(_clock.monotonic()))
        while self._running:
            await asyncio.wait(self._running)
        try:
            async with asyncio.timeout(self._lease_s):
                await _first(self._settling.idle(), _end(telling))
        except TimeoutError:
            log.warning("group %s: %d deliveries were not told before leaving; they are delivered again", self.group, len(self._hand))
        await self._stream.unsubscribe(self)

    # --- what comes from the stream --------------------------------------------------------------------------------------

    def subscribe(self) -> _wire.Subscribe:
        """One name for life, and the tokens in hand. What the coordinator handed out and the connection lost stands in front of all that
        would come next: it takes back what is not named here and hands it out again first, so nothing of a key is overtaken.
        """
        self._refused = False
        self._hand.take_released()
        remaining = max(0, self._credits - len(self._hand))
        return _wire.Subscribe(
            group=self.group, credits=remaining, lease_s=self._lease_s, member=self.name, inbox=self._identity, holding=self._hand.tokens()
        )

    def holding(self) -> list[str]:
        return self._hand.tokens()

    def delivered(self, deliveries: Sequence[Delivery]) -> None:
        self._refusals = 0
        now = _clock.monotonic()
        self._hand.receive(deliveries, now)
        self._do(self._hand.next(now))

    def revoked(self, tokens: Sequence[str]) -> None:
        self._do(self._hand.revoked(tokens))
        self._go_on()

    def refused(self, error: ApiError) -> None:
        """What is in hand goes on. The reason may go: a group that is made again, a full queue that empties."""
        if self._leaving:
            return
        now = _clock.monotonic()
        if now - self._refused_at > 2 * AGAIN_MAX_S:
            self._refusals = 0
        self._refused_at = now
        pause_s = min(AGAIN_FIRST_S * 2**self._refusals, AGAIN_MAX_S)
        log.error("group %s gives nothing: %s; look: halfmsg group show %s. Asked again in %.3g s", self.group, error, self.group, pause_s)
        self._refused, self._refusals = True, min(self._refusals + 1, 16)
        again = asyncio.get_running_loop().create_task(self._subscribe_again(pause_s))
        self._again = [*(task for task in self._again if not task.done()), again]

    async def _subscribe_again(self, pause_s: float) -> None:
        await _clock.pause(pause_s)
        if self._refused and not self._leaving:  # else a new connection has brought it in
            await self._stream.subscribe(self)

    def disconnected(self) -> None:
        self._hand.disconnected()

    def cut(self) -> None:
        self._cut.set()

    # --- what the hand says ----------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        self._do(self._hand.next(_clock.monotonic()))
        if self._hand.released * 2 >= self._credits and not self._leaving:
            self._spawn(self._stream.credit(self.group, self._hand.take_released()))

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Start):
                self._spawn(self._work(action.delivery), action.delivery)
            else:
                self._settling.tell(action)

    def _spawn(self, work: Any, delivery: Delivery | None = None) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running[task] = delivery
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        delivery = self._running.pop(task, None)
        if delivery is not None and task.cancelled() and not self._leaving:  # not by us: a handler that cancels its own task has failed
            self._failed(delivery, asyncio.CancelledError("the handler's task was cancelled"))

    async def _work(self, delivery: Delivery) -> None:
        """Whatever a handler raises is the end of its delivery: one whose task died in silence would be leased, and keep its place, for ever."""
        task = asyncio.current_task()
        try:
            await self._handle(delivery)
        except Retry as error:
            self._finish(delivery, End.NACK, "retried", reason=error.reason, delay_s=_delay_s(error), counts=error.counts)
        except Reject as error:
            self._finish(delivery, End.REJECT, "rejected", reason=error.reason)
        except BaseException as error:
            if _is_torn_down(error, task):
                raise  # the lease ends by itself
            self._failed(delivery, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):  # it ends the process, and would end each other that it is delivered to
                await self._last_words()
                raise
        else:
            self._finish(delivery, End.ACK, "acked")

    def _failed(self, delivery: Delivery, error: BaseException) -> None:
        log.warning("the handler of %s failed on %s, attempt %d", delivery.topic, delivery.id, delivery.attempt, exc_info=error)
        self._finish(delivery, End.NACK, "retried", reason=_told(error))

    async def _last_words(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await self._settling.idle()

    async def _handle(self, delivery: Delivery) -> None:
        handler = self._handlers.get(delivery.topic)
        if handler is None:
            raise Retry(f"no handler of topic {delivery.topic} here: was the group changed?", counts=False)
        if self._inbox is not None:
            await self._run(self._inbox, delivery, handler)
        elif is_async(handler):
            await handler(delivery)
        else:  # threads of our own: the loop's default pool has only a few, and others use it
            context = contextvars.copy_context()
            await asyncio.get_running_loop().run_in_executor(self._threads, context.run, call_blocking, handler, delivery)

    async def _run(self, inbox: Claims, delivery: Delivery, handler: Handler) -> None:
        """Until the inbox has begun. One whose database is away says nothing of the message: it costs no attempt, its key waits behind it,
        and its lease is extended as if it ran. Raises Retry, without cost, where it may not be begun any more.
        """
        pause_s = AWAY_FIRST_S
        while True:
            try:
                return await inbox.run(delivery, handler)
            except NotBegun as error:
                self._inbox_is_away(error)
            await _first(_clock.pause(pause_s), self._going.wait())
            pause_s = min(pause_s * 2, AWAY_MAX_S)
            if self._leaving:
                raise Retry("the consumer stops", delay=0, counts=False)
            if not self._hand.may_begin(delivery.token, _clock.monotonic()):
                raise Retry("the lease was too old to start", delay=0, counts=False)

    def _inbox_is_away(self, error: NotBegun) -> None:
        now = _clock.monotonic()
        if self._away_said_at is None or now - self._away_said_at > AWAY_SAID_EVERY_S:
            self._away_said_at = now
            log.warning("group %s: the inbox's database is locked or away, so messages wait, at no cost to them: %s", self.group, error)

    def _finish(self, delivery: Delivery, end: End, counted: str, *, reason: str = "", delay_s: float | None = None, counts: bool = True) -> None:
        self.counts[counted] += 1
        reason = _text(reason)
        task = asyncio.current_task()
        if task in self._running:
            self._running[task] = None  # this is its end: one that is cancelled from here on has no other (`_ended`)
        self._do(self._hand.finish(delivery.token, end, reason=reason, delay_s=delay_s, counts=counts))
        self._go_on()

    async def _tell(self, op: object) -> Any:
        """On the connection of its subscription alone: one that was opened for the last words behind a closed client nobody would close."""
        return await self._client._op(self._stream, op, timeout=self._lease_s)

    def _answered(self, told: Settle, ok: bool, given_back: Sequence[str]) -> None:
        self._do(self._hand.answered(told.delivery.token, ok, given_back))
        self._go_on()

    # --- leases ----------------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Extend all that is in hand, at each third of the lease (W11)."""
        while True:
            await _clock.pause(self._lease_s / 3)
            tokens = self._hand.renewable()
            for at in range(0, len(tokens), _wire.MAX_ITEMS):
                await self._extend(tokens[at : at + _wire.MAX_ITEMS])
            self._do(self._hand.next(_clock.monotonic()))

    async def _extend(self, tokens: Sequence[str]) -> None:
        began = _clock.monotonic()
        op = _wire.Extend(group=self.group, deliveries=[_wire.Item(token=token) for token in tokens], by_s=self._lease_s)
        try:
            results = (await self._client._op(self._stream, op, timeout=self._lease_s / 3))["results"]
        except HalfmsgError as error:
            log.log(logging.DEBUG if self._stream.closed else logging.WARNING, "leases of group %s could not be extended: %s", self.group, error)
            return
        told = list(zip(tokens, results, strict=True))
        self._hand.renewed([token for token, result in told if result.get("error") is None], began)
        self._do(self._hand.revoked([token for token, result in told if result.get("error") is not None]))


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait for the first of these to end; the others are cancelled."""
    ends = [asyncio.ensure_future(one) for one in waits]
    try:
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for end in ends:
            end.cancel()


async def _end(task: asyncio.Task[None]) -> None:
    await asyncio.wait((task,))


def _is_torn_down(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Is the task cancelled, or its coroutine closed, which then runs in no task? Raised by a handler both are a failure."""
    if isinstance(error, asyncio.CancelledError):
        return task is not None and task.cancelling() > 0
    return isinstance(error, GeneratorExit) and (task is None or asyncio.current_task(task.get_loop()) is not task)


def _told(error: BaseException) -> str:
    """For the attempt's record: what it was, and the innermost frames of where."""
    head = f"{type(error).__name__}: {_text(error)}"[: MAX_REASON_CHARS // 2]
    where = "".join(traceback.format_tb(error.__traceback__)[-3:])
    return f"{head}\n{where[-(MAX_REASON_CHARS - len(head) - 1) :]}"


def _text(value: object) -> str:
    """An exception, a lone surrogate, what has no words: whatever a handler put there."""
    try:
        return str(value).encode(errors="replace").decode()
    except Exception:
        return f"({type(value).__name__} without words)"


def _delay_s(error: Retry) -> float | None:
    """The handler's wish within what the coordinator takes (0 to a day); one that is no duration is the group's back-off."""
    if error.delay is None:
        return None
    try:
        return min(seconds(error.delay), MAX_DELAY_S)
    except (UsageError, TypeError, ValueError):
        log.warning("Retry(delay=%r) is no duration of 0 s or more; the group's back-off is used", error.delay)
        return None
