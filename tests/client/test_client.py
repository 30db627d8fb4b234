"""HTTP calls, deliveries by hand, and the inner surface for the outbox."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pytest

from halfmsg.txclient import ApiError, Busy, Client, Conflict, TransportError, UsageError
from halfmsg.txclient._http import failure, may_have_been_done
from halfmsg.txclient.errors import api_error

from .stub_server import TIME_MS, WHEN, StubServer, refuse

D = {"id": "i-0", "transaction_id": "i", "topic": "t", "lane": 0, "offset": 3, "time": WHEN, "lease_until": WHEN, "age_s": 1.5, "attempt": 2}


async def test_fetch_reads_both_spellings_of_a_body(server: StubServer, client: Client) -> None:
    """Raw JSON byte for byte, or base64; the group is filled in."""
    server.http = lambda request, body: (200, {"deliveries": [D | {"data": {"a": 1}, "token": "x"}, D | {"data_base64": "AA==", "token": "y"}]})
    one, two = await client.fetch("inventory", max=2, wait=0)
    assert (one.body, two.body, one.group, one.age, one.lease_until and one.lease_until.year) == (b'{"a":1}', b"\x00", "inventory", 1.5, 2026)
    method, path, body = server.requests[0]
    assert (method, path, body["max"], len(body["member"])) == ("POST", "/v1/groups/inventory/fetch", 2, 32)
    assert client.time_ms == TIME_MS + 5


@pytest.mark.parametrize(("status", "kept"), [(200, True), (409, True), (429, True), (500, False)])
async def test_p7_fetch_keeps_its_name_unless_its_outcome_is_unknown(server: StubServer, status: int, kept: bool) -> None:
    """What may have been handed out and lost must stand in front of the next: another name is another hand (R13)."""
    async with Client(server.url, timeout=0.5) as client:
        for answer in (status, 200):
            server.http = lambda request, body, answer=answer: (answer, {"deliveries": [], "code": "internal"})  # type: ignore[misc]
            with suppress(ApiError):
                await client.fetch("g", wait=0)
    names = [body["member"] for _, _, body in server.requests]
    assert (names[0] == names[-1]) is kept


@pytest.mark.parametrize(
    ("error", "reached"),
    [
        (asyncio.CancelledError(), True),
        (api_error({"code": "lease_lost"}, status=409), False),
        (api_error({"code": "unavailable"}, status=503), True),
        (failure(TimeoutError(), "u"), True),
        (failure(ConnectionResetError(), "u"), True),
    ],
)
def test_call_without_a_clear_answer_may_have_been_done(error: BaseException, reached: bool) -> None:
    """Cut off, timed out, or a failure inside: the coordinator may have done it. A refusal has not."""
    assert may_have_been_done(error) is reached


async def test_p7_refused_connection_costs_a_fetch_no_name() -> None:
    """Nobody was reached, so nothing was handed out."""
    async with Client("http://127.0.0.1:9", timeout=0.2) as client:
        name = client._links.member
        with pytest.raises(TransportError):
            await client.fetch("g", wait=0)
        assert client._links.member == name


async def test_ack_tells_all_then_raises_the_first_refusal(server: StubServer, client: Client) -> None:
    """One lost lease does not keep the others from being acked."""
    server.http = lambda request, body: (200, {"deliveries": [D | {"token": "x"}, D | {"token": "y"}]})
    deliveries = await client.fetch("g")
    server.answer = lambda op: {"ok": {"results": [refuse("lease_lost", 409), {"ok": {}}]}}
    with pytest.raises(Conflict) as caught:
        await client.ack(deliveries)
    assert caught.value.code == "lease_lost"
    assert server.ops[0] == {"op": "ack", "group": "g", "deliveries": [{"token": "x"}, {"token": "y"}]}


async def test_nack_and_reject_say_why(server: StubServer, client: Client) -> None:
    """Reason, delay and cost travel."""
    server.http = lambda request, body: (200, {"deliveries": [D | {"token": "x"}]})
    (one,) = await client.fetch("g")
    await client.nack(one, reason="later", delay=2, counts=False)
    await client.reject(one, reason="never")
    assert [op["deliveries"][0] for op in server.ops] == [
        {"token": "x", "reason": "later", "delay_s": 2.0, "counts": False},
        {"token": "x", "reason": "never"},
    ]


async def test_problem_becomes_the_error_tree(server: StubServer, client: Client) -> None:
    """Status decides the class, the code is the word."""
    for status, kind in ((404, ApiError), (409, Conflict), (507, Busy)):
        server.http = lambda request, body, status=status: (status, {"code": f"c{status}", "detail": "why", "retry_after_s": 99})  # type: ignore[misc]
        with pytest.raises(kind) as caught:
            await client.get("/v1/x")
        assert (type(caught.value), caught.value.code, caught.value.request_id) == (kind, f"c{status}", "req-1")


async def test_ping_is_unreachable_at_once(server: StubServer) -> None:
    """One try, and the text says what to start."""
    await server.stop()
    async with Client(server.url) as client:
        with pytest.raises(TransportError, match="halfmsg serve") as caught:
            await client.ping()
    assert caught.value.code == "unreachable"


async def test_topics_reads_all_pages(server: StubServer, client: Client) -> None:
    """The cursor is followed to the end."""
    pages: dict[str, Any] = {"": {"items": [{"name": "a", "kind": "sequence"}], "next": "c/1"}, "c/1": {"items": [{"name": "b"}], "next": None}}
    server.http = lambda request, body: (200, pages[request.query.get("cursor", "")])
    assert await client.topics() == {"a": {"name": "a", "kind": "sequence"}, "b": {"name": "b"}}


async def test_submit_needs_a_number_for_each_message(client: Client) -> None:
    """Numbers go by index; a list of another length is a mistake."""
    with pytest.raises(UsageError):
        await client.submit([], producer="p")


class Producer:
    """An answering producer that a test can hold."""

    name = "orders"
    source: str | None = "a" * 32

    def __init__(self) -> None:
        self.beats = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def answer(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        await self.go.wait()
        if self.error:
            raise self.error
        return {"source": self.source, "verdicts": [{"id": one["id"], "verdict": "committed"} for one in question["transactions"]]}

    def beat(self) -> Mapping[str, Any]:
        self.beats += 1
        return {"beats": ["x"], "clean_before": None}


def check(n: int) -> dict[str, Any]:
    return {"type": "check", "n": n, "producer": "orders", "source": "a" * 32, "transactions": [{"id": f"t{n}", "mark": 1}]}


async def of_type(server: StubServer, kind: str, count: int) -> list[dict[str, Any]]:
    seen = 0
    while True:
        frames = [frame for frame in await server.other.reach(seen) if frame["type"] == kind]
        if len(frames) >= count:
            return frames
        seen = len(server.other) + 1


async def test_attached_producer_says_hello_beats_and_answers(server: StubServer, client: Client) -> None:
    """attach opens the stream; a question is answered under its number; an exception is no answer."""
    producer = Producer()
    await client.attach(producer)
    await server.connections.reach(1)
    assert server.hellos[0]["producers"] == [{"name": "orders", "source": "a" * 32}]
    assert (await of_type(server, "beat", 1))[0]["producers"] == [{"name": "orders", "source": "a" * 32, "beats": ["x"]}]
    producer.go.set()
    producer.error = RuntimeError("database away")
    await server.connections[0].send(check(1))
    await server.connections[0].send({"type": "beat", "time": TIME_MS + 9, "settled_before": {"orders": 5}})
    await client.send("t", 1)
    producer.error = None
    await server.connections[0].send(check(2))
    assert await of_type(server, "verdicts", 1) == [
        {"type": "verdicts", "n": 2, "source": "a" * 32, "verdicts": [{"id": "t2", "verdict": "committed"}]}
    ]
    assert (client.time_ms, client.settled_before) == (TIME_MS + 9, {"orders": 5})
    await client.detach(producer)
    assert (await server.hellos.reach(2))[1].get("producers", []) == []


async def test_attach_waits_for_nobody(server: StubServer) -> None:
    """Without a coordinator attach returns at once, and the hello comes when there is one."""
    await server.stop()
    async with Client(server.url) as client:
        await client.attach(Producer())
        await server.start()
        await server.hellos.reach(1)


async def test_slow_answers_do_not_hold_operations(server: StubServer, client: Client) -> None:
    """A question runs beside everything else."""
    producer = Producer()
    await client.attach(producer)
    await server.connections.reach(1)
    for n in range(12):
        await server.connections[0].send(check(n))
    assert (await client.send("t", 1)).state == "committed"
    producer.go.set()
    assert {frame["n"] for frame in await of_type(server, "verdicts", 12)} == set(range(12))
