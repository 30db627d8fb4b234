"""The two loads: transactions through txclient's stream, and through plain HTTP; closed loop for the rate, open loop for the latency."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

import msgspec

from halfmsg.txclient import Client, Consumer, Delivery, Ids, Message

from . import http_load
from .plan import Plan, body

TOPIC, GROUP, PRODUCER = "bench", "g", "bench"


class Counted:
    """How many were acked so far; a waiter for the rest."""

    def __init__(self) -> None:
        self.count = 0


async def open_loop(rate: float, seconds: float, one: Callable[[], Awaitable[float]]) -> list[float]:
    """Start `one` at its due time whatever the others do; latencies count from the due time, so nothing is omitted.

    Raises the first error of any of them, as soon as it is there; the others are cancelled.
    """
    latencies: list[float] = []
    started = time.perf_counter()

    async def timed(due: float) -> None:
        latencies.append(await one() - due)

    try:
        async with asyncio.TaskGroup() as under_way:
            for number in range(int(rate * seconds)):
                due = started + number / rate
                wait = due - time.perf_counter()
                if wait > 0.0005:
                    await asyncio.sleep(wait)
                under_way.create_task(timed(due))
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed.exceptions[0].__cause__
    return latencies


class _Load(ABC):
    """A closed loop of transactions; `acked` counts what was delivered and acked meanwhile."""

    workers: int
    plan: Plan
    acked: Counted

    @abstractmethod
    async def one(self) -> float:
        """A whole transaction of the producer; gives when its prepare was answered."""

    async def rate(self) -> float:
        """Complete transactions a second: those whose message was delivered and acked too."""
        until = time.perf_counter() + self.plan.seconds
        before, started = self.acked.count, time.perf_counter()

        async def work() -> None:
            while time.perf_counter() < until:
                await self.one()

        await asyncio.gather(*(work() for _ in range(self.workers)))
        return (self.acked.count - before) / (time.perf_counter() - started)


class StreamLoad(_Load):
    """prepare + commit by `producers` tasks, deliver + ack by a Consumer, all over txclient in this process."""

    def __init__(self, url: str, plan: Plan) -> None:
        self.client, self.plan, self.workers = Client(url), plan, plan.producers
        self.acked = Counted()
        self._message = Message(TOPIC, body(), content_type="application/json")
        self.consumer = Consumer(self.client, GROUP, concurrency=256)

        @self.consumer.on(TOPIC)
        async def handle(message: Delivery) -> None:
            self.acked.count += 1

    async def one(self) -> float:
        prepared = await self.client.prepare([self._message], producer=PRODUCER)
        at = time.perf_counter()
        await self.client.commit(prepared.id, digest=prepared.digest)
        return at

    async def __aenter__(self) -> StreamLoad:
        await self.client.ping()
        self._serving = asyncio.create_task(self.consumer.serve())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.consumer.stop()
        await self._serving
        await self.client.aclose()


class HttpLoad(_Load):
    """prepare and commit as single requests, fetch and ack in hundreds."""

    def __init__(self, port: int, plan: Plan) -> None:
        self.port, self.plan, self.workers, self.acked = port, plan, plan.http_connections, Counted()
        self._ids = Ids()
        self._free: asyncio.Queue[http_load.Connection] = asyncio.Queue()
        self._stop = asyncio.Event()

    def prepare(self) -> tuple[str, bytes]:
        id = self._ids.transaction()
        content = b'{"id":"%b","producer":"bench","messages":[{"topic":"bench","data":%b}]}' % (id.encode(), body())
        return id, http_load.post("/v1/transactions", content)

    async def one(self) -> float:
        connection = await self._free.get()
        try:
            id, request = self.prepare()
            status, answer = await connection.call(request)
            at = time.perf_counter()
            if status != 201:
                raise RuntimeError(answer.decode())
            digest = msgspec.json.decode(answer, type=_Digest).digest
            await connection.call(http_load.post(f"/v1/transactions/{id}/commit", b'{"digest":"%b"}' % digest.encode()))
            return at
        finally:
            self._free.put_nowait(connection)

    async def _consume(self) -> None:
        connection = await http_load.connect(self.port)
        fetch = http_load.post(f"/v1/groups/{GROUP}/fetch", b'{"max":%d,"wait_s":1}' % self.plan.batch)
        with contextlib.suppress(ConnectionError):
            while not self._stop.is_set():
                _, answer = await connection.call(fetch)
                tokens = msgspec.json.decode(answer, type=_Deliveries).deliveries
                if tokens:
                    await connection.call(http_load.post(f"/v1/groups/{GROUP}/ack", msgspec.json.encode({"deliveries": tokens})))
                    self.acked.count += len(tokens)
        connection.close()

    async def __aenter__(self) -> HttpLoad:
        for _ in range(self.plan.http_connections):
            self._free.put_nowait(await http_load.connect(self.port))
        self._consuming = asyncio.create_task(self._consume())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._consuming
        while not self._free.empty():
            self._free.get_nowait().close()


class _Digest(msgspec.Struct):
    digest: str


class _Token(msgspec.Struct):
    token: str


class _Deliveries(msgspec.Struct):
    deliveries: list[_Token]
