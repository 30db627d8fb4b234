"""`Consumer.run` in a process of its own: the first signal stops it in good order, the second one ends it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from .delivering import deliver, frames, told, wire
from .stub_server import StubServer

PROGRAM = """
import asyncio, sys, time
from halfmsg.txclient import Client, Consumer

consumer = Consumer(Client(sys.argv[1]), "g")

def work(delivery):
    print("began")  # stays in the buffer: ending at once must not lose it
    print("began", file=sys.stderr, flush=True)
    time.sleep(float(sys.argv[2]))

async def handle(delivery):
    print("began")
    print("began", file=sys.stderr, flush=True)
    await asyncio.sleep(float(sys.argv[2]))

async def block(delivery):
    work(delivery)

consumer.on("t")({handler})
consumer.run()
"""


@asynccontextmanager
async def consuming(server: StubServer, handler: str, takes_s: float) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process whose handler has begun, and takes its time."""
    program = PROGRAM.format(handler=handler)
    pipe = subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, server.url, str(takes_s), stdout=pipe, stderr=pipe)
    assert process.stdout is not None and process.stderr is not None
    try:
        async with asyncio.timeout(30):
            await frames(server, "subscribe")
            await server.connections[0].send(deliver(wire(0)))
            assert await process.stderr.readline() == b"began\n"
            yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("handler", ["work", "handle"], ids=["sync", "async"])
async def test_second_signal_ends_the_process_at_once(server: StubServer, handler: str, number: signal.Signals) -> None:
    """Whatever its handlers do: a thread that works would be waited for at the interpreter's end."""
    async with consuming(server, handler, 600) as process:
        process.send_signal(number)
        await frames(server, "unsubscribe")
        process.send_signal(number)
        said, _ = await process.communicate()
    assert (process.returncode, said) == (128 + number, b"began\n")


async def test_second_signal_ends_a_process_whose_loop_is_blocked(server: StubServer) -> None:
    """The loop sees no signal then, and has not seen the first one either."""
    async with consuming(server, "block", 600) as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        await process.communicate()
    assert process.returncode in (128 + signal.SIGTERM, 128 + signal.SIGINT)


async def test_first_signal_stops_in_good_order(server: StubServer) -> None:
    """What runs is finished and told, and the process ends well."""
    async with consuming(server, "work", 0.2) as process:
        process.send_signal(signal.SIGTERM)
        assert await told(server, 1) == ["ack t0"]
        said, _ = await process.communicate()
    assert (process.returncode, said) == (0, b"began\n")
