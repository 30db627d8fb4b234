"""A client that is closed while its consumer still works: nothing is opened again, and nothing is waited for."""

from __future__ import annotations

import asyncio
import logging

import pytest

from halfmsg.txclient import Client, Consumer, Delivery, Retry, TransportError, UsageError

from .delivering import deliver, frames, wire
from .stub_server import StubServer


@pytest.mark.parametrize("fails", [False, True], ids=["ack", "nack"])
@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "serving"])
async def test_p9_last_words_behind_a_closed_client_open_nothing(
    server: StubServer, client: Client, caplog: pytest.LogCaptureFixture, stopped: bool, fails: bool
) -> None:
    """A connection that they opened nobody would close. They are dropped and the lease runs out, at once and without noise."""
    consumer, began, go = Consumer(client, "g", lease=60), asyncio.Event(), asyncio.Event()

    @consumer.on("t")
    async def handle(msg: Delivery) -> None:
        began.set()
        await go.wait()
        if fails:
            raise Retry("not yet")

    serving = asyncio.create_task(consumer.serve())
    await frames(server, "subscribe")
    async with asyncio.timeout(10):
        await server.connections[0].send(deliver(wire(0), wire(1), wire(2, "other")))
        await began.wait()
        if stopped:
            consumer.stop()
            await frames(server, "unsubscribe")
        await client.aclose()
        go.set()
        if stopped:
            await serving
        else:
            with pytest.raises(UsageError, match="client_closed"):
                await serving
    assert not client._links._links
    assert len(server.hellos) == 1
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_calls_on_a_stream_that_was_closed_end_at_once(server: StubServer, client: Client) -> None:
    """It opens no more, so nobody waits for it until a deadline; the client's next call has a stream of its own."""
    await client.send("t", 1)
    stream = client._links.here().stream
    await client.aclose()
    async with asyncio.timeout(2):
        with pytest.raises(TransportError, match="closed"):
            await stream.call(stream.codec.op({"op": "commit", "id": "1" * 32}), 60)
    assert (await client.send("t", 2)).state == "committed"
