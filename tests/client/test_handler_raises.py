"""A handler that raises what is no Exception: its delivery has failed like any other, and its place is free again."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from halfmsg.outbox import Inbox
from halfmsg.txclient import Client, Consumer, Delivery

from .delivering import deliver, serving, told, wire
from .stub_server import StubServer


class Stopped(BaseException):
    """As gevent.Timeout and pytest's own failures are."""


class Unspeakable(Exception):
    """One that cannot even be told."""

    def __str__(self) -> str:
        raise ValueError("no words")


def colours(work: Callable[..., None]) -> dict[str, Callable[..., Any]]:
    async def handle(*given: Any) -> None:
        work(*given)

    return {"async": handle, "sync": work}


def message(offset: int) -> dict[str, Any]:
    """As `wire`, with an id that an inbox can read."""
    return wire(offset) | {"id": f"{offset:08d}-0000-7000-8000-000000000000-0"}


@pytest.mark.parametrize("raised", [Stopped, GeneratorExit, Unspeakable, asyncio.CancelledError])
@pytest.mark.parametrize("with_inbox", [False, True], ids=["", "inbox"])
@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_p2_whatever_a_handler_raises_is_a_failure_of_its_delivery(
    server: StubServer, client: Client, tmp_path: Path, colour: str, with_inbox: bool, raised: type[BaseException]
) -> None:
    """Told as a nack, with what it was; the only place is free for the next one, and nothing is extended for ever."""
    inbox = Inbox(f"sqlite:///{tmp_path / 'c.db'}") if with_inbox else None
    consumer = Consumer(client, "g", inbox=inbox, concurrency=1)

    def work(delivery: Delivery, conn: Any = None) -> None:
        if delivery.token == "t0":
            raise raised

    consumer.on("t")(colours(work)[colour])
    async with serving(server, consumer), asyncio.timeout(10):
        await server.connections[0].send(deliver(message(0) | {"key": "a"}, message(1) | {"key": "b"}))
        assert set(await told(server, 2)) == {"nack t0", "ack t1"}
    (nack,) = [op["deliveries"][0] for op in server.ops if op["op"] == "nack"]
    assert raised.__name__ in nack["reason"] and "counts" not in nack


def cancel_own_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def test_p2_handler_that_cancels_its_own_task_has_failed(server: StubServer, client: Client) -> None:
    """Nobody else meant to end it, so its place and its lease must not be kept."""
    consumer = Consumer(client, "g", concurrency=1)

    @consumer.on("t")
    async def handle(delivery: Delivery) -> None:
        if delivery.token == "t0":
            cancel_own_task()
            await asyncio.Event().wait()

    async with serving(server, consumer), asyncio.timeout(10):
        await server.connections[0].send(deliver(wire(0, "a"), wire(1, "b")))
        assert set(await told(server, 2)) == {"nack t0", "ack t1"}


async def test_p7_handler_that_cancels_its_task_and_returns_has_ended_once(server: StubServer, client: Client) -> None:
    """Its task ends as cancelled behind a handler that has returned: told twice, its key would go on beside itself."""
    consumer = Consumer(client, "g", concurrency=4)
    running: list[str] = []
    beside: list[str] = []

    @consumer.on("t")
    async def handle(delivery: Delivery) -> None:
        if delivery.token == "t0":
            cancel_own_task()
            return
        beside.extend(running)
        running.append(delivery.token)
        for _ in range(20):
            await asyncio.sleep(0)
        running.remove(delivery.token)

    async with serving(server, consumer), asyncio.timeout(10):
        await server.connections[0].send(deliver(*(wire(offset) for offset in range(4))))
        assert await told(server, 4) == [f"ack t{offset}" for offset in range(4)]
    assert beside == []


PROGRAM = """
import sys
from halfmsg.txclient import Client, Consumer

consumer = Consumer(Client(sys.argv[1]), "g")

def work(delivery):
    raise {raised}

async def handle(delivery):
    work(delivery)

consumer.on("t")({handler})
consumer.run()
"""


@asynccontextmanager
async def consuming(server: StubServer, raised: str, handler: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that has subscribed and got one delivery."""
    program = PROGRAM.format(raised=raised, handler=handler)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, server.url, stderr=subprocess.PIPE)
    try:
        async with asyncio.timeout(25):
            await server.other.reach(1)
            await server.connections[0].send(deliver(wire(0)))
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(("raised", "code"), [("SystemExit(3)", 3), ("KeyboardInterrupt", 0)])
@pytest.mark.parametrize("handler", ["handle", "work"], ids=["async", "sync"])
async def test_p2_handler_that_ends_its_process_has_failed_and_ends_it(server: StubServer, raised: str, code: int, handler: str) -> None:
    """The attempt is told, so a message that ends each consumer is found; then the process ends as it would have."""
    async with consuming(server, raised, handler) as process:
        assert await told(server, 1) == ["nack t0"]
        _, said = await process.communicate()
    assert process.returncode == code
    assert raised.partition("(")[0] in server.ops[0]["deliveries"][0]["reason"] and b"failed on" in said


async def test_handler_that_ends_its_process_ends_it_also_where_nobody_answers(server: StubServer) -> None:
    """Not after a lease, which is 30 s here."""
    server.silent = True
    async with consuming(server, "SystemExit(3)", "handle") as process:
        await process.communicate()
    assert process.returncode == 3
