"""The connection to the coordinator: one WebSocket of one event loop, kept open while anybody needs it.

It is opened at the first operation, says hello, and carries operations, check-backs and deliveries. When it breaks it comes back with
back-off and jitter, and what is unanswered goes out again. A caller that is cancelled or gives up never hurts another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import aiohttp
from msgspec import Raw

from . import _clock, _retry, _wire
from ._calls import Call, Calls
from ._http import Http, failure
from ._internal import Attached
from ._producers import Producers
from .errors import ApiError, HalfmsgError, TransportError, UsageError, api_error

HEARTBEAT_S: Final = 15.0
BEAT_S: Final = 15.0
HELLO_TIMEOUT_S: Final = 10.0
SHORT_LIFE_S: Final = 1.0
MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
VERSION: Final = "0.1.0"
CLOSE_PROTOCOL: Final = 4400
log = logging.getLogger("halfmsg.txclient")


class Subscriber(Protocol):
    """A consumer group's member on this connection; called in the loop, must not block."""

    @property
    def group(self) -> str: ...
    @property
    def name(self) -> str: ...
    def subscribe(self) -> _wire.Subscribe:
        """Asked after each hello: the credits are those that remain."""
        ...

    def holding(self) -> list[str]:
        """Tokens of all that it has in hand."""
        ...

    def delivered(self, deliveries: Sequence[Any]) -> None: ...
    def revoked(self, tokens: Sequence[str]) -> None: ...
    def refused(self, error: ApiError) -> None:
        """It is not subscribed (any more), and nobody but itself subscribes it again on this connection."""
        ...

    def disconnected(self) -> None: ...
    def cut(self) -> None:
        """The client was closed under it: nothing comes any more."""
        ...


class _Lost(ConnectionError):
    """The connection ended: with what error, and when to come back."""

    def __init__(self, error: HalfmsgError, after_s: float = 0.0, poisoned: bool = False) -> None:
        super().__init__(str(error))
        self.error = error
        self.after_s = after_s
        self.poisoned = poisoned


class Stream:
    """Must be used in one loop only; nothing here blocks or does I/O before the first need."""

    def __init__(
        self, http: Http, url: str, codec: _wire.Codec, told_time: Callable[[int | None], None], told_settled: Callable[[dict[str, int]], None]
    ) -> None:
        self._http = http
        self._url = url
        self.codec = codec
        self._told_time = told_time
        self._told_settled = told_settled
        self._loop = asyncio.get_running_loop()
        self.calls = Calls()
        self.producers = Producers(self._send)
        self._subscribers: dict[str, Subscriber] = {}
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._failed: HalfmsgError | None = None  # the last attempt to connect; None while connected or before the first
        self._go_away: float | None = None
        self._last_problem: dict[str, Any] | None = None
        self._said: Sequence[Mapping[str, Any]] = ()
        self._refused: dict[str, str] = {}
        """Producers that may not answer here, by name: the code, told once. The next beats say their hello again."""
        self._closed = False

    @property
    def closed(self) -> bool:
        """For good: the client's next call has another one."""
        return self._closed

    @property
    def connected(self) -> bool:
        return self._ws is not None

    # --- what others ask of it -------------------------------------------------------------------------------------------

    def call(self, raw: Raw, timeout_s: float, *, once: bool = False) -> asyncio.Future[Any]:
        """Its answer, or ApiError, or TransportError: timeout (sent, no answer: outcome unknown), unreachable. Raises Busy(client_queue_full)."""
        future = self._loop.create_future()
        if self._closed:
            future.set_exception(TransportError("unreachable", "this client was closed; nothing was sent"))
            return future
        if once and self._failed is not None:
            future.set_exception(self._failed)
            self._open()
            return future
        deadline = self._loop.time() + timeout_s
        self.calls.add(Call(raw, future, deadline, once))
        if deadline < self._timer_at:
            self._arm(deadline)
        if self._ws is None:
            self._open()
        else:
            self._wake.set()
        return future

    async def changed(self, new: Attached | None = None) -> None:
        """The producers are others now: say hello again; the last one stands. Of the beats only the new one's is waited for, if at all:
        whose database hangs keeps no other from coming and going.
        """
        if self._ws is not None:
            try:
                await self._send(self._hello())
                if new is not None:
                    await self._send(await self.producers.beat(new))
            except ConnectionError:
                log.debug("the connection broke under a hello; the next one says it")
        elif len(self.producers):
            self._open()

    async def subscribe(self, subscriber: Subscriber) -> None:
        """Raises UsageError: already_subscribed. One member a group and connection; the second would take the first one's deliveries away."""
        if self._subscribers.get(subscriber.group, subscriber) is not subscriber:
            text = f"group {subscriber.group} has a Consumer on this Client already"
            raise UsageError("already_subscribed", f"{text}; raise its concurrency, or give the second one a Client of its own")
        self._subscribers[subscriber.group] = subscriber
        if self._ws is not None:
            await self._try_send(subscriber.subscribe())
        else:
            self._open()

    async def unsubscribe(self, subscriber: Subscriber) -> None:
        """What is on its way is dropped: it is not named as held, so the coordinator hands it out again at once. Said a second time when
        all that was held is settled: then its lanes are free.
        """
        if self._subscribers.get(subscriber.group) is subscriber:
            del self._subscribers[subscriber.group]
        await self._try_send(_wire.Unsubscribe(group=subscriber.group, member=subscriber.name, holding=subscriber.holding()))

    async def credit(self, group: str, add: int) -> None:
        """Lost with the connection: a new subscription names all credits that remain."""
        await self._try_send(_wire.Credit(group=group, add=add))

    async def close(self) -> None:
        self._closed = True
        for subscriber in list(self._subscribers.values()):
            subscriber.cut()
        if self._timer is not None:
            self._timer.cancel()
        task, self._task = self._task, None
        try:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        finally:  # also where this is cancelled meanwhile
            self.calls.fail(TransportError("unreachable", "this client was closed; the outcome of what was sent is unknown"))
            await self.producers.close()

    # --- one connection after the other ----------------------------------------------------------------------------------

    def _open(self) -> None:
        if not self._closed and (self._task is None or self._task.done()):
            self._task = self._loop.create_task(self._run(), name="halfmsg-stream")

    def _wanted(self) -> bool:
        return bool(self._subscribers) or len(self.producers) > 0 or self.calls.wanted()

    async def _run(self) -> None:
        while self._wanted():
            try:
                ws = await _retry.reconnect(self._connect, self._on_failure)
            except HalfmsgError:
                return  # nobody waits any more; each was told, and the next need opens it again
            born = self._loop.time()
            lost = await self._serve(ws)
            if lost.after_s or self._loop.time() - born < SHORT_LIFE_S:  # it let us in and threw us out: no tight loop
                await _clock.pause(lost.after_s or SHORT_LIFE_S / 4)

    def _on_failure(self, error: HalfmsgError) -> bool:
        """A failed attempt: tell those whom waiting cannot help; go on while anybody needs the connection."""
        if self._failed is None:
            log.warning("%s", error)
        self._failed = error
        final = isinstance(error, ApiError) or error.code in ("tls_failed", "protocol")
        self.calls.fail(error, (lambda call: True) if final else (lambda call: call.once))
        return self._wanted()

    async def _connect(self) -> aiohttp.ClientWebSocketResponse:
        """Raises HalfmsgError alone: whatever else came out of here would end the stream, and its consumers, for good."""
        address = self._http.address("/v1/stream")
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                ws = await self._http.session().ws_connect(
                    address, protocols=(self.codec.protocol,), heartbeat=HEARTBEAT_S, max_msg_size=MAX_FRAME_BYTES, timeout=_CLOSE
                )
                try:
                    await self._welcome(ws)
                except BaseException:
                    await ws.close()
                    raise
                return ws
        except HalfmsgError:
            raise
        except Exception as error:  # also aiohttp's AssertionError where the connection breaks right behind the upgrade
            raise failure(error, self._url) from error

    async def _welcome(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        if ws.protocol != self.codec.protocol:
            raise TransportError("protocol", f"{self._url} does not speak {self.codec.protocol}; is its version older than this client's?")
        await self._put(ws, self._hello())
        frame = self._decode(await ws.receive())
        while isinstance(frame, _wire.Check | _wire.ServerBeat):  # asked before it is answered: nothing to say yet, and asked again
            frame = self._decode(await ws.receive())
        if isinstance(frame, _wire.GoAway):
            raise TransportError("unreachable", f"{self._url} is draining")
        if isinstance(frame, _wire.Problem):
            raise api_error(frame.error, status=400)
        if not isinstance(frame, _wire.Welcome):
            raise TransportError("protocol", f"{self._url} did not answer the hello")
        self._on_welcome(frame)
        for subscriber in self._subscribers.values():
            await self._put(ws, subscriber.subscribe())
        if self.producers.hello() != self._said:  # one came or went meanwhile
            await self._put(ws, self._hello())
        self._ws, self._failed, self._go_away, self._last_problem = ws, None, None, None

    async def _serve(self, ws: aiohttp.ClientWebSocketResponse) -> _Lost:
        """Read, write and beat until the connection ends; leaves nothing running."""
        tasks = [self._loop.create_task(part) for part in (self._read(ws), self._write(ws), self._beat())]
        lost = _Lost(TransportError("unreachable", f"the connection to {self._url} was closed"))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            lost = _reason([task for task in tasks if task in done], self._url)
            return lost
        finally:
            self._ws = None
            for task in tasks:
                task.cancel()
            (self.calls.poisoned if lost.poisoned else self.calls.lost)(lost.error)
            for subscriber in list(self._subscribers.values()):
                subscriber.disconnected()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:  # also where this is cancelled meanwhile
                await ws.close()

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            frame = self._decode(await ws.receive())
            if type(frame) is _wire.Results:
                self._told_time(frame.time)
                self.calls.answer(frame.n, frame.results)
                if self._go_away is not None or self.calls.waiting:
                    self._wake.set()
            elif frame is not None:
                self._handle(frame)

    def _handle(self, frame: _wire.Read) -> None:
        match frame:
            case _wire.Deliver(group=group, member=member, deliveries=raw):
                # one that has left may have some on their way still: they are given back, and none of the next one's
                if (subscriber := self._subscribers.get(group)) is not None and member in (None, subscriber.name):
                    subscriber.delivered(self.codec.deliveries(raw, group))
            case _wire.Revoke(group=group, tokens=tokens):
                if (subscriber := self._subscribers.get(group)) is not None:
                    subscriber.revoked(tokens)
            case _wire.Check():
                self.producers.ask(frame)
            case _wire.ServerBeat():
                self._told_time(frame.time)
                self._told_settled(frame.settled_before)
            case _wire.Welcome():
                self._on_welcome(frame)
            case _wire.GoAway(reconnect_after_s=after_s):
                self._go_away = after_s
                self._wake.set()
            case _wire.Problem(error=problem, group=None):
                log.error("%s: %s", self._url, api_error(problem))
                self._last_problem = problem
            case _wire.Problem(error=problem, group=str(group)):
                if (subscriber := self._subscribers.get(group)) is not None:
                    subscriber.refused(api_error(problem))

    def _on_welcome(self, frame: _wire.Welcome) -> None:
        self._told_time(frame.time)
        before, self._refused = self._refused, {str(refused.get("name")): str(refused.get("code")) for refused in frame.refused}
        for name, code in self._refused.items():
            if before.get(name) == code:
                continue
            made = f"make it with: halfmsg producer set {name}"
            words = made if code == "producer_not_found" else f"see: halfmsg producer show {name}"
            log.error("producer %s may not answer on this connection: %s; %s", name, code, words)

    async def _write(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._wake.set()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._go_away is None and (frame := self.calls.frame()) is not None:
                await self._put(ws, _wire.Ops(n=frame[0], ops=frame[1]))
            if self._go_away is not None and not self.calls.in_flight:
                raise _Lost(TransportError("unreachable", f"{self._url} is draining"), after_s=self._go_away)

    async def _beat(self) -> None:
        while True:
            if self._refused:  # the reason may be gone: a full disk, a producer that was not made
                await self._send(self._hello())
            await self._send(await self.producers.beat())
            await _clock.pause(BEAT_S)

    # --- frames ----------------------------------------------------------------------------------------------------------

    def _hello(self) -> _wire.Hello:
        self._said = self.producers.hello()
        return _wire.Hello(client="halfmsg.txclient", version=VERSION, producers=self._said)

    async def _send(self, frame: object) -> None:
        """Raises ConnectionError where there is no connection."""
        if self._ws is None:
            raise ConnectionError("not connected")
        await self._put(self._ws, frame)

    async def _try_send(self, frame: object) -> None:
        try:
            await self._send(frame)
        except ConnectionError:
            log.debug("no connection for a %s frame", type(frame).__name__)

    async def _put(self, ws: aiohttp.ClientWebSocketResponse, frame: object) -> None:
        data = self.codec.encode(frame)
        await (ws.send_bytes(data) if self.codec.binary else ws.send_str(data.decode()))

    def _decode(self, message: aiohttp.WSMessage) -> _wire.Read | None:
        if message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
            data = message.data
            return self.codec.frame(data.encode() if isinstance(data, str) else data)
        if message.type == aiohttp.WSMsgType.CLOSE and message.data == CLOSE_PROTOCOL:
            problem = self._last_problem or {"code": "bad_request", "detail": str(message.extra or "the coordinator refused a frame")}
            raise _Lost(api_error(problem, status=400), poisoned=True)
        said = f" with {message.data} {message.extra or ''}".rstrip() if message.type == aiohttp.WSMsgType.CLOSE else ""
        after_s = self._go_away or 0.0
        raise _Lost(TransportError("unreachable", f"the connection to {self._url} was closed{said}; the outcome is unknown"), after_s=after_s)

    # --- deadlines -------------------------------------------------------------------------------------------------------

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._expire)

    def _expire(self) -> None:
        """One timer for all: it walks the unanswered ones when the earliest deadline known at its setting has come."""
        self._timer, self._timer_at = None, float("inf")
        following = self.calls.expire(self._loop.time(), self._too_late)
        if following is not None:
            self._arm(following)

    def _too_late(self, call: Call) -> HalfmsgError:
        if not call.sent and self._failed is not None:
            return self._failed
        text = "no answer" if call.sent else "not even sent"
        return TransportError("timeout", f"{text} in the time allowed by {self._url}; the outcome is unknown, repeating the same call is safe")


_CLOSE: Final = aiohttp.ClientWSTimeout(ws_close=2.0)  # type: ignore[call-arg, unused-ignore]


def _reason(done: Sequence[asyncio.Task[None]], url: str) -> _Lost:
    for task in done:
        error = task.exception()
        if isinstance(error, _Lost):
            return error
        if isinstance(error, HalfmsgError):
            log.error("%s", error)
            return _Lost(error)
        if isinstance(error, (aiohttp.ClientError, OSError)):
            return _Lost(failure(error, url))
        if error is not None:
            log.error("the stream stopped over a defect of this client", exc_info=error)
    return _Lost(TransportError("unreachable", f"the connection to {url} was closed"))
