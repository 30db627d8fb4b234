"""The stream (API §6): ops and results pipelined, deliveries by credit, check-backs over the producer's own connection.

One reader a connection; answers leave through one bounded sender, so a slow reader is closed (4408), never buffered without end.
A lost connection loses answers, never decisions: every op is idempotent by id or token.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from aiohttp import WSMsgType, web

from halfmsg import __version__
from halfmsg.checkback import verdict

from . import ops, render, wire
from .engine import Engine
from .errors import Problem
from .hub import FALLBACK_S, Waiter
from .messages import Fetch
from .service import fetching, groups, producers

log = logging.getLogger("halfmsg.stream")

JSON, MSGPACK = "halfmsg.v1.json", "halfmsg.v1.msgpack"
HEARTBEAT_S = 15.0
FETCH_MAX = 1_000
SILENT_S = 60.0


class _RawFrame(msgspec.Struct):
    type: str = ""
    n: int = 0
    ops: list[msgspec.Raw] = []


class Streams:
    """All open streams, and which producer each answers for."""

    def __init__(self, engine: Engine, on_hello: Callable[[str], None]) -> None:
        self.engine, self.on_hello = engine, on_hello
        self.connections: dict[Connection, None] = {}  # in the order in which they came
        self._numbers = itertools.count(1)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if len(self.connections) >= self.engine.settings.stream.connections_max:
            raise Problem("overloaded", "the coordinator has as many streams as stream.connections_max allows")
        ws = web.WebSocketResponse(protocols=(MSGPACK, JSON), heartbeat=HEARTBEAT_S, max_msg_size=wire.MAX_FRAME_BYTES, compress=False, autoping=True)
        try:
            await ws.prepare(request)
        except ConnectionError:
            return web.Response()  # who asked is gone, and nobody reads this; raised, it would be a traceback in the log
        connection = Connection(self, ws, next(self._numbers))
        self.connections[connection] = None
        try:
            await connection.run()
        finally:
            self.connections.pop(connection, None)
            await connection.end()
        return ws

    def revoke(self, event: tuple[Any, ...]) -> None:
        """A lane was taken back from a member (hands.py): its connection hears of it before any result that follows."""
        _, group, member, tokens = event
        for subscription in self._of_member(group, member):
            subscription.connection.send({"type": "revoke", "group": group, "tokens": tokens})

    def silence(self, event: tuple[Any, ...]) -> None:
        """A lease of a member has ended. Its connection may stand while its loop does not: it is handed no more, and counts as a member no
        longer than its lease, until it says a word, or for a minute. Else what it does not work off would come back to it, and to nobody else.
        One that was heard since the lease began is there: it is slow, or this side was late to read what it said.
        """
        _, group, member, ended_at, lease_ms = event
        for subscription in self._of_member(group, member):
            subscription.silence(ended_at, lease_ms)

    def _of_member(self, group: str, member: str) -> list[Subscription]:
        found = [connection.subscriptions.get(group) for connection in self.connections]
        return [each for each in found if each is not None and each.member == member]

    def of_producer(self, producer: str) -> list[Connection]:
        """The youngest first: an old one may be a process that is going."""
        found = [each for each in self.connections if producer in each.producers and not each.closing]
        return sorted(found, key=lambda each: each.number, reverse=True)

    async def drain(self, reconnect_after_s: float) -> None:
        for connection in list(self.connections):
            connection.send({"type": "go_away", "reconnect_after_s": reconnect_after_s})

    async def close(self) -> None:
        for connection in list(self.connections):
            await connection.close(1001, b"the coordinator is stopping")


class Connection:
    def __init__(self, streams: Streams, ws: web.WebSocketResponse, number: int) -> None:
        self.streams, self.engine, self.ws, self.number = streams, streams.engine, ws, number
        self.packed = ws.ws_protocol != JSON
        self.encode = wire.encode_msgpack if self.packed else wire.encode_json
        self.producers: dict[str, str | None] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.closing = False
        self._outgoing: deque[bytes] = deque()
        self._unsent = 0
        self._wake = asyncio.Event()
        self._checks: dict[int, asyncio.Future[Any]] = {}
        self._check_numbers = itertools.count(1)
        self._sender = asyncio.create_task(self._send_all())
        self._said_hello = False

    # --- out ---

    def send(self, frame: Any) -> None:
        """Queue a frame; past the limit the peer is a slow reader and is closed."""
        if self.closing:
            return
        data = self.encode(frame)
        self._unsent += len(data)
        self._outgoing.append(data)
        self._wake.set()
        if self._unsent > self.engine.settings.stream.unsent_bytes_max:
            log.warning("stream %d reads too slowly: %d bytes unsent, closing", self.number, self._unsent)
            self._start_close(4408, b"slow reader")

    @property
    def crowded(self) -> bool:
        return self._unsent > self.engine.settings.stream.unsent_bytes_max // 4

    async def _send_all(self) -> None:
        send = self.ws.send_bytes if self.packed else self._send_text
        with contextlib.suppress(ConnectionError, RuntimeError):
            while True:
                while self._outgoing:
                    data = self._outgoing.popleft()
                    await send(data)
                    self._unsent -= len(data)
                self._wake.clear()
                await self._wake.wait()

    async def _send_text(self, data: bytes) -> None:
        await self.ws.send_str(data.decode())

    def _start_close(self, code: int, message: bytes) -> None:
        self.closing = True
        self._closer = asyncio.create_task(self.close(code, message))

    async def close(self, code: int, message: bytes) -> None:
        self.closing = True
        with contextlib.suppress(ConnectionError, RuntimeError):
            await self.ws.close(code=code, message=message)

    async def end(self) -> None:
        self.closing = True
        for future in self._checks.values():
            if not future.done():
                future.set_result(None)
        for subscription in self.subscriptions.values():
            subscription.stop()
        self._sender.cancel()

    # --- in ---

    async def run(self) -> None:
        async for message in self.ws:
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                break
            try:
                await self._frame(message.data if isinstance(message.data, bytes) else message.data.encode())
            except Problem as problem:
                self.engine.metrics.rejected(problem.code)
                self.send({"type": "error", "error": render.problem(problem)})
                await asyncio.sleep(0)
                await self.close(4400, problem.code.encode())
                return

    async def _frame(self, data: bytes) -> None:
        frame = self._decode(data)
        for subscription in self.subscriptions.values():
            subscription.heard()
        if not self._said_hello and not isinstance(frame, wire.HelloFrame):
            raise Problem("bad_request", "the first frame of a stream is hello")
        if isinstance(frame, wire.OpsFrame):
            self._ops(frame.n, list(frame.ops))
        elif isinstance(frame, _RawFrame):
            self._ops(frame.n, ops.decode_each(frame.ops, wire.decode_msgpack if self.packed else wire.decode_json))
        elif isinstance(frame, wire.CreditFrame):
            self._credit(frame)
        elif isinstance(frame, wire.VerdictsFrame):
            self._verdicts(frame)
        elif isinstance(frame, wire.HelloFrame):
            await self._hello(frame)
        elif isinstance(frame, wire.SubscribeFrame):
            await self._subscribe(frame)
        elif isinstance(frame, wire.UnsubscribeFrame):
            await self._unsubscribe(frame)
        elif isinstance(frame, wire.BeatFrame):
            await self._beat(frame)

    def _decode(self, data: bytes) -> Any:
        decode = wire.decode_msgpack if self.packed else wire.decode_json
        try:
            return decode(data, wire.ClientFrame)
        except Problem:
            raw = self._raw(data)
            if raw is None or raw.type != "ops" or not raw.ops:
                raise
            return raw

    def _raw(self, data: bytes) -> _RawFrame | None:
        """One wrong op must not take its neighbours with it."""
        try:
            frame: _RawFrame = (msgspec.msgpack if self.packed else msgspec.json).decode(data, type=_RawFrame)
            return frame
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return None

    def _ops(self, n: int, given: list[Any]) -> None:
        plan = ops.Plan(self.engine, given, packed=self.packed)
        if not plan.calls:
            self._results(n, plan.results)
            return
        try:
            future = self.engine.submit(plan.calls)
        except Problem as problem:
            self._results(n, plan.refuse(problem))
            return
        future.add_done_callback(lambda done: self._answered(n, plan, done))

    def _answered(self, n: int, plan: ops.Plan, done: asyncio.Future[list[Any]]) -> None:
        if not done.cancelled():
            self._results(n, plan.fill(done.result()))

    def _results(self, n: int, results: list[Any]) -> None:
        self.send({"type": "results", "n": n, "time": self.engine.clock.now_ms(), "results": results})

    async def _hello(self, frame: wire.HelloFrame) -> None:
        refused = []
        accepted: dict[str, str | None] = {}
        new = [each for each in frame.producers if each.name not in self.producers or self.producers[each.name] != each.source]
        accepted |= {each.name: each.source for each in frame.producers if each not in new}
        for each in new:
            command = producers.Hello(each.name, None if each.source is None else bytes.fromhex(each.source))
            try:
                await self.engine.call(producers.hello, command)
            except Problem as problem:
                self.engine.metrics.rejected(problem.code)
                refused.append({"name": each.name, "code": problem.code, "detail": problem.detail})
            else:
                accepted[each.name] = each.source
        self._said_hello = True
        limits = {"frame_bytes": wire.MAX_FRAME_BYTES, "ops": wire.MAX_BATCH_OPS, "messages": wire.MAX_MESSAGES}
        hello = {"type": "hello", "limits": limits, "server": f"halfmsg/{__version__}", "connection": str(self.number)}
        self.send(hello | {"time": self.engine.clock.now_ms()} | ({"refused": refused} if refused else {}))
        self.producers = accepted  # from here on it may be asked, behind the hello
        if accepted:
            await self.engine.names_changed()
        for each in new:
            if each.name in accepted:
                self.streams.on_hello(each.name)

    async def _beat(self, frame: wire.BeatFrame) -> None:
        for each in frame.producers:
            if each.name in self.producers and each.beats is not None:
                source = None if each.source is None else bytes.fromhex(each.source)
                with contextlib.suppress(Problem):
                    await self.engine.call(producers.beat, producers.Beat(each.name, source, tuple(each.beats)))
        self.send({"type": "beat", "time": self.engine.clock.now_ms(), "settled_before": {}})

    # --- deliveries ---

    async def _subscribe(self, frame: wire.SubscribeFrame) -> None:
        """A refusal ends the subscription alone: other groups, operations and check-backs share this connection."""
        try:
            await self._join(frame)
        except Problem as problem:
            self.refuse(frame.group, problem)

    def refuse(self, group: str, problem: Problem) -> None:
        """It is not subscribed (any more); the client may subscribe again when the reason is gone."""
        subscription = self.subscriptions.pop(group, None)
        if subscription is not None:
            subscription.stop()
        self.engine.metrics.rejected(problem.code)
        self.send({"type": "error", "group": group, "error": render.problem(problem)})

    async def _join(self, frame: wire.SubscribeFrame) -> None:
        """It stands among the subscriptions before the store is asked, so that one who joins later under this name ends it too."""
        before = self.subscriptions.pop(frame.group, None)
        if before is not None:
            before.stop()
        topics = await self.engine.topics_of(frame.group)
        for other in self.streams.connections:
            other.lose(frame.group, frame.member)
        subscription = self.subscriptions[frame.group] = Subscription(self, frame, topics)
        revoked = await self.engine.call(groups.rejoin, groups.Rejoin(frame.group, frame.member, frozenset(frame.holding)))
        if revoked:
            self.send({"type": "revoke", "group": frame.group, "tokens": revoked})
        subscription.start()

    def lose(self, group: str, member: str) -> None:
        """The member has come back over another connection; this one may be dead without knowing it."""
        subscription = self.subscriptions.get(group)
        if subscription is not None and subscription.member == member:
            del self.subscriptions[group]
            subscription.stop()

    async def _unsubscribe(self, frame: wire.UnsubscribeFrame) -> None:
        """Also of a member that was refused before. One that the store cannot note costs nobody else on this stream: its leases end."""
        subscription = self.subscriptions.get(frame.group)
        member = frame.member or (subscription.member if subscription is not None else None)
        if subscription is not None and subscription.member == member:
            del self.subscriptions[frame.group]
            subscription.stop()
        if member is not None:
            holding = None if frame.holding is None else frozenset(frame.holding)
            with contextlib.suppress(Problem):
                await self.engine.call(groups.leave, groups.Leave(frame.group, member, holding))

    def _credit(self, frame: wire.CreditFrame) -> None:
        subscription = self.subscriptions.get(frame.group)
        if subscription is not None:
            subscription.add(frame.add)

    # --- check-back ---

    async def ask(self, question: Mapping[str, Any], timeout_s: float) -> Any:
        """Send a question, give the verdicts frame's content, or None when none came."""
        n = next(self._check_numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._checks[n] = future
        try:
            self.send({**question, "n": n})
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            return None
        finally:
            self._checks.pop(n, None)

    def _verdicts(self, frame: wire.VerdictsFrame) -> None:
        future = self._checks.get(frame.n)
        if future is not None and not future.done():
            content = {"source": frame.source, "verdicts": frame.verdicts, "holders": frame.holders}
            future.set_result({name: value for name, value in content.items() if value is not None})


class Subscription:
    """A group's deliveries over one connection, never more than the credit. None before `start`, and none after `stop`."""

    def __init__(self, connection: Connection, frame: wire.SubscribeFrame, topics: tuple[int, ...]) -> None:
        self.connection, self.group, self.member = connection, frame.group, frame.member
        self.credits = frame.credits
        self.lease_ms = None if frame.lease_s is None else int(frame.lease_s * 1000)
        self.inbox = None if frame.inbox is None else bytes.fromhex(frame.inbox)
        self.silent_until = 0.0
        self._heard_at = connection.engine.clock.now_ms()
        self._waiter: Waiter = connection.engine.hub.register(topics)
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self) -> None:
        if not self._stopped:
            self._task = asyncio.create_task(self._pump())

    def add(self, credits: int) -> None:
        self.credits = min(self.credits + credits, 10_000)
        self._waiter.event.set()

    def heard(self) -> None:
        self._heard_at = self.connection.engine.clock.now_ms()
        if self.silent_until:
            self.silent_until = 0.0
            self._waiter.event.set()

    def silence(self, ended_at: int, lease_ms: int) -> None:
        if self._heard_at <= ended_at - (self.lease_ms or lease_ms):
            self.silent_until = self.connection.engine.clock.monotonic() + SILENT_S

    def stop(self) -> None:
        self._stopped = True
        self.connection.engine.hub.unregister(self._waiter)
        if self._task is not None:
            self._task.cancel()

    async def _pump(self) -> None:
        engine = self.connection.engine
        try:
            while not engine.draining:
                got = 0
                if self.credits > 0 and not self.connection.crowded and engine.clock.monotonic() >= self.silent_until:
                    got = await self._hand_out()
                if not got:
                    await self._waiter.wait(FALLBACK_S)
        except Problem as problem:
            self._refuse(problem)
        except Exception:  # a defect of ours must not look like a group that has nothing to do
            log.exception("the deliveries of group %s to %s ended; its consumer subscribes again", self.group, self.member)
            self._refuse(Problem("internal", "see the coordinator's log"))

    def _refuse(self, problem: Problem) -> None:
        if self.connection.subscriptions.get(self.group) is self:
            self.connection.refuse(self.group, problem)

    async def _hand_out(self) -> int:
        command = Fetch(self.group, min(self.credits, FETCH_MAX), self.lease_ms, self.member, self.inbox)
        found = await self.connection.engine.call(fetching.fetch, command)
        if found:
            self.credits -= len(found)
            deliveries = render.deliveries(found, packed=self.connection.packed)
            self.connection.send({"type": "deliver", "group": self.group, "member": self.member, "deliveries": deliveries})
        return len(found)


class StreamWay:
    """A way to ask a producer: its own open connection, which stands for the signature."""

    kind = "stream"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def ask(self, question: dict[str, Any], timeout_s: float) -> Mapping[str, verdict.Ruling]:
        asked = [each["id"] for each in question["transactions"]]
        frame = await self._connection.ask(question, timeout_s)
        if frame is None:
            return verdict.no_answers(asked, "no answer on the stream")
        return verdict.read_verdicts(asked, question.get("source"), frame)
