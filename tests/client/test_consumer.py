"""The consumer over a real connection: order, failure, leases, reconnect, and leaving in good order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest

from halfmsg.txclient import ApiError, Client, Consumer, Delivery, Reject, Retry, UsageError

from .delivering import deliver, frames, serving, told, wire
from .stub_server import StubServer, accept, refuse


async def test_serve_makes_the_group_and_subscribes(server: StubServer, client: Client) -> None:
    """The group is PUT with its topics; credits are four a place, at least 16."""
    consumer = Consumer(client, "g", concurrency=8, lease=10)
    consumer.on("t", tag="x")(print)
    async with serving(server, consumer):
        assert server.requests[0] == ("PUT", "/v1/groups/g", {"topics": [{"topic": "t", "tag": "x"}], "start": "earliest"})
        (frame,) = await frames(server, "subscribe")
        assert (frame["group"], frame["credits"], frame["lease_s"], len(frame["member"])) == ("g", 32, 10.0, 32)
    assert (await frames(server, "unsubscribe"))[0]["group"] == "g"


async def test_one_key_is_handled_in_order_and_acked_in_order(server: StubServer, client: Client) -> None:
    """Handlers of one key never overlap; the acks follow their order."""
    consumer, running, order = Consumer(client, "g"), [0], list[int]()

    @consumer.on("t")
    async def handle(msg: Delivery) -> None:
        running[0] += 1
        assert running[0] == 1
        await asyncio.sleep(0)
        order.append(msg.offset)
        running[0] -= 1

    async with serving(server, consumer):
        await server.connections[0].send(deliver(*(wire(n) for n in range(50))))
        assert await told(server, 50) == [f"ack t{n}" for n in range(50)]
    assert order == list(range(50)) and consumer.counts["acked"] == 50


async def test_sync_handlers_run_side_by_side_in_threads(server: StubServer, client: Client) -> None:
    """As many as there are places, more than the loop's own pool would give."""
    consumer, together = Consumer(client, "g", concurrency=16), threading.Barrier(16, timeout=5)

    @consumer.on("t")
    def handle(msg: Delivery) -> None:
        together.wait()

    async with serving(server, consumer):
        await server.connections[0].send(deliver(*(wire(n, f"k{n}") for n in range(16))))
        assert set(await told(server, 16)) == {f"ack t{n}" for n in range(16)}


@pytest.mark.parametrize(
    ("error", "op", "expected"),
    [
        (Retry("later", delay=2, counts=False), "nack", {"token": "t0", "reason": "later", "delay_s": 2.0, "counts": False}),
        (Reject("never"), "reject", {"token": "t0", "reason": "never"}),
    ],
)
async def test_handlers_words_are_told(server: StubServer, client: Client, error: Exception, op: str, expected: dict[str, Any]) -> None:
    """Retry is a nack with its delay, Reject a dead letter."""
    consumer = Consumer(client, "g")

    @consumer.on("t")
    async def handle(msg: Delivery) -> None:
        raise error

    async with serving(server, consumer):
        await server.connections[0].send(deliver(wire(0)))
        await told(server, 1)
        assert (server.ops[0]["op"], server.ops[0]["deliveries"]) == (op, [expected])


async def test_p2_stop_iteration_of_a_sync_handler_is_a_nack(server: StubServer, client: Client) -> None:
    """No future carries it out of a thread: unchanged it would keep the key, the place and the lease for ever."""
    consumer = Consumer(client, "g")

    @consumer.on("t")
    def handle(msg: Delivery) -> None:
        next(iter(()))

    async with serving(server, consumer), asyncio.timeout(5):
        await server.connections[0].send(deliver(wire(0)))
        assert await told(server, 1) == ["nack t0"]


class Shouting:
    def __init__(self) -> None:
        self.heard: list[int] = []

    async def __call__(self, msg: Delivery) -> None:
        self.heard.append(msg.offset)


async def test_p2_object_with_an_async_call_is_a_handler(server: StubServer, client: Client) -> None:
    """It is awaited before the ack."""
    consumer, handler = Consumer(client, "g"), Shouting()
    consumer.on("t")(handler)
    async with serving(server, consumer):
        await server.connections[0].send(deliver(wire(0)))
        assert await told(server, 1) == ["ack t0"]
    assert handler.heard == [0]


async def test_p2_handler_that_only_makes_a_coroutine_is_not_acked(server: StubServer, client: Client) -> None:
    """A wrapper that forgot its `async` has done nothing: a failure, with the reason in the attempt's record."""
    consumer, handler = Consumer(client, "g"), Shouting()
    consumer.on("t")(lambda msg: handler(msg))  # noqa: PLW0108 - the wrapper is what is tested
    async with serving(server, consumer):
        await server.connections[0].send(deliver(wire(0)))
        assert await told(server, 1) == ["nack t0"]
        assert "wrong_colour" in server.ops[0]["deliveries"][0]["reason"]


def test_p2_generator_is_no_handler(client: Client) -> None:
    """Calling one runs nothing: refused at decoration."""

    def handle(msg: Delivery) -> Iterator[None]:
        yield

    with pytest.raises(UsageError) as caught:
        Consumer(client, "g").on("t")(handle)
    assert caught.value.code == "wrong_colour"


async def test_other_exception_is_a_nack_with_type_text_and_place(server: StubServer, client: Client) -> None:
    """The attempt's record says what failed and where, in at most 1,000 characters."""
    consumer = Consumer(client, "g")

    @consumer.on("t")
    def handle(msg: Delivery) -> None:
        raise ValueError("x" * 5_000)

    async with serving(server, consumer):
        await server.connections[0].send(deliver(wire(0)))
        assert await told(server, 1) == ["nack t0"]
        reason = server.ops[0]["deliveries"][0]["reason"]
        assert reason.startswith("ValueError: xxx") and "test_consumer.py" in reason and len(reason) <= 1_000


async def test_p7_failed_head_holds_its_key_until_the_answer(server: StubServer, client: Client) -> None:
    """What was in hand and what is given back never runs; the redelivery comes first."""
    consumer, order, failed = Consumer(client, "g"), list[str](), asyncio.Event()

    @consumer.on("t")
    async def handle(msg: Delivery) -> None:
        order.append(msg.token)
        if msg.token == "t0":
            failed.set()
            raise Retry("not yet")

    async with serving(server, consumer):
        server.silent = True
        await server.connections[0].send(deliver(wire(0), wire(1)))
        await told(server, 1)
        await server.connections[0].send(deliver(wire(2), wire(9, "other")))
        server.silent = False
        await server.connections[0].send({"type": "results", "n": 1, "results": [{"ok": {"results": [{"ok": {"given_back": ["t1", "t2"]}}]}}]})
        await server.connections[0].send(deliver(wire(0, token="t0b"), wire(1, token="t1b")))
        assert set(await told(server, 4)) == {"nack t0", "ack t9", "ack t0b", "ack t1b"}
    assert [token for token in order if token != "t9"] == ["t0", "t0b", "t1b"]


async def test_p7_nack_without_an_answer_is_said_again(server: StubServer, client: Client) -> None:
    """No answer proves nothing: the key waits, and the nack is repeated until it is answered; only then what follows runs."""
    consumer, order = Consumer(client, "g", lease=0.2), list[str]()

    @consumer.on("t")
    async def handle(msg: Delivery) -> None:
        order.append(msg.token)
        if msg.token == "t0":
            raise Retry("not yet")

    async with serving(server, consumer):
        server.silent = True
        await server.connections[0].send(deliver(wire(0), wire(1)))
        assert await told(server, 2) == ["nack t0"] * 2
        assert order == ["t0"]
        server.silent = False


async def test_lost_connection_keeps_the_hand_and_acks_again(server: StubServer, client: Client) -> None:
    """What runs goes on over the break; the new subscription asks for the credits that remain and says what it holds."""
    consumer, go, began = Consumer(client, "g"), asyncio.Event(), asyncio.Event()

    @consumer.on("t")
    async def handle(msg: Delivery) -> None:
        began.set()
        await go.wait()

    async with serving(server, consumer):
        await server.connections[0].send(deliver(wire(0)))
        await began.wait()
        await server.connections[0].kill()
        first, second = await frames(server, "subscribe", 2)
        assert (first["credits"], second["credits"]) == (64, 63) and first["member"] == second["member"]
        assert (first.get("holding", []), second["holding"]) == ([], ["t0"])
        go.set()
        assert await told(server, 1) == ["ack t0"]


async def test_credits_come_back_when_half_is_free(server: StubServer, client: Client) -> None:
    """Few frames, and never more in hand than the credits."""
    consumer = Consumer(client, "g", concurrency=1)

    @consumer.on("t")
    async def handle(msg: Delivery) -> None:
        pass

    async with serving(server, consumer):
        await server.connections[0].send(deliver(*(wire(n) for n in range(16))))
        credits = await frames(server, "credit")
        assert 8 <= credits[0]["add"] <= 16


async def test_w11_leases_are_extended_and_a_lost_one_is_dropped(server: StubServer, client: Client) -> None:
    """At each third of the lease all in hand is extended; what is refused is not told any more."""
    consumer, go = Consumer(client, "g", lease=0.15), asyncio.Event()

    @consumer.on("t")
    async def handle(msg: Delivery) -> None:
        await go.wait()

    def lost(op: Mapping[str, Any]) -> dict[str, Any]:
        if op["op"] != "extend":
            return accept(op)
        return {"ok": {"results": [refuse("lease_lost", 409) if one["token"] == "t0" else {"ok": {}} for one in op["deliveries"]]}}

    server.answer = lost
    async with serving(server, consumer):
        await server.connections[0].send(deliver(wire(0, "a"), wire(1, "b")))
        first, second = await server.ops.reach(2)
        assert first == {"op": "extend", "group": "g", "by_s": 0.15, "deliveries": [{"token": "t0"}, {"token": "t1"}]}
        assert second["deliveries"] == [{"token": "t1"}]
        go.set()
        assert await told(server, 1) == ["ack t1"]


async def test_stop_finishes_what_runs_and_gives_back_what_waits(server: StubServer, client: Client) -> None:
    """Nothing new is begun; serve returns when all is told."""
    consumer, go, began = Consumer(client, "g", concurrency=1), asyncio.Event(), asyncio.Event()

    @consumer.on("t")
    async def handle(msg: Delivery) -> None:
        began.set()
        await go.wait()

    async with serving(server, consumer):
        await server.connections[0].send(deliver(wire(0, "a"), wire(1, "b")))
        await began.wait()
        consumer.stop()
        await frames(server, "unsubscribe")
        go.set()
    assert set(await told(server, 2)) == {"ack t0", "nack t1"}
    assert [frame["holding"] for frame in await frames(server, "unsubscribe", 2)] == [["t0", "t1"], []]
    assert {frame["member"] for frame in await frames(server, "unsubscribe", 2)} == {(await frames(server, "subscribe"))[0]["member"]}


async def test_second_consumer_of_a_group_on_one_client_is_refused(server: StubServer, client: Client) -> None:
    """It would take the first one's deliveries away without a word."""
    first, second, done = Consumer(client, "g"), Consumer(client, "g"), asyncio.Event()
    second.on("t")(print)

    @first.on("t")
    async def handle(delivery: Delivery) -> None:
        done.set()

    async with serving(server, first):
        with pytest.raises(UsageError) as caught:
            await second.serve()
        assert caught.value.code == "already_subscribed"
        await server.connections[0].send(deliver(wire(1)))
        await done.wait()
    assert {frame["group"] for frame in await frames(server, "unsubscribe")} == {"g"}


async def test_p7_what_was_on_its_way_to_a_member_that_left_is_not_its_successors(server: StubServer, client: Client) -> None:
    """It is given back when the first one leaves, and another process may have run it and what follows."""
    ran: list[int] = []

    async def handle(delivery: Delivery) -> None:
        ran.append(delivery.offset)

    members = []
    for number in (1, 2):
        consumer = Consumer(client, "g")
        consumer.on("t")(handle)
        task = asyncio.create_task(consumer.serve())
        members.append((await frames(server, "subscribe", number))[-1]["member"])
        if number == 2:
            for member, offset in ((members[0], 1), (members[1], 2)):
                await server.connections[0].send(deliver(wire(offset)) | {"member": member})
            await told(server, 1)
        consumer.stop()
        await task
    assert ran == [2]


async def test_client_that_is_closed_under_its_consumer_says_so(server: StubServer, client: Client) -> None:
    """It would wait for ever for what cannot come."""
    consumer = Consumer(client, "g", lease=0.2)
    consumer.on("t")(print)
    task = asyncio.create_task(consumer.serve())
    await frames(server, "subscribe")
    await client.aclose()
    with pytest.raises(UsageError) as caught:
        await task
    assert caught.value.code == "client_closed"


async def test_member_that_leaves_does_not_subscribe_again(server: StubServer, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was refused, and stops while a handler runs: the pause before the next try ends meanwhile, and its hand takes nothing any more."""
    running, done, due = asyncio.Event(), asyncio.Event(), asyncio.Event()
    consumer = Consumer(client, "g")

    @consumer.on("t")
    async def handle(delivery: Delivery) -> None:
        running.set()
        await done.wait()

    async def pause(seconds: float) -> None:
        await (due if seconds == 0 else asyncio.Event()).wait()

    task = asyncio.create_task(consumer.serve())
    await frames(server, "subscribe")
    await server.connections[0].send(deliver(wire(1)))
    await running.wait()
    monkeypatch.setattr("halfmsg.txclient._member.AGAIN_FIRST_S", 0)
    monkeypatch.setattr("halfmsg.txclient._clock.pause", pause)
    await server.connections[0].send({"type": "error", "group": "g", "error": {"code": "overloaded", "status": 503}})
    await client.send("t", "its answer comes behind the refusal")
    consumer.stop()
    await frames(server, "unsubscribe")
    due.set()
    done.set()
    await task
    assert [frame["type"] for frame in server.other if frame["type"] == "subscribe"] == ["subscribe"]
    assert client._links.here().stream._subscribers == {}


async def test_cancelled_serve_leaves_in_good_order(server: StubServer, client: Client) -> None:
    """The same as stop, then the cancellation goes on."""
    consumer, began = Consumer(client, "g"), asyncio.Event()

    @consumer.on("t")
    async def handle(msg: Delivery) -> None:
        began.set()

    task = asyncio.create_task(consumer.serve())
    await frames(server, "subscribe")
    await server.connections[0].send(deliver(wire(0)))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await told(server, 1) == ["ack t0"]


async def test_stop_before_serve_is_kept(server: StubServer, client: Client) -> None:
    """A stop that comes first is not lost."""
    consumer = Consumer(client, "g")
    consumer.on("t")(print)
    consumer.stop()
    await consumer.serve()


async def test_group_with_other_topics_is_named(server: StubServer, client: Client) -> None:
    """state_changed at the start is the user's to mend."""
    server.http = lambda request, body: (409, {"code": "state_changed", "detail": "group g reads t2"})
    consumer = Consumer(client, "g")
    consumer.on("t")(print)
    with pytest.raises(UsageError, match="halfmsg group show g") as caught:
        await consumer.serve()
    assert caught.value.code == "group_differs"


async def test_forbidden_at_start_is_raised(server: StubServer, client: Client) -> None:
    """Waiting does not help against 403."""
    server.http = lambda request, body: (403, {"code": "forbidden", "detail": "no"})
    consumer = Consumer(client, "g")
    consumer.on("t")(print)
    with pytest.raises(ApiError):
        await consumer.serve()


async def test_serve_waits_for_a_coordinator(server: StubServer) -> None:
    """A consumer may be started first."""
    await server.stop()
    async with Client(server.url, timeout=0.1) as client:
        consumer = Consumer(client, "g")
        consumer.on("t")(print)
        task = asyncio.create_task(consumer.serve())
        await server.start()
        await frames(server, "subscribe")
        consumer.stop()
        await task


class FakeInbox:
    """Runs the handler as an inbox would, and counts its life."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def check(self, handler: Any) -> None:
        if not asyncio.iscoroutinefunction(handler):
            raise UsageError("wrong_colour", "async only")

    async def identity(self) -> str:
        self.calls.append("identity")
        return "b" * 32

    async def run(self, delivery: Delivery, handler: Any) -> None:
        self.calls.append("run")
        await handler(delivery, "connection")

    async def aclose(self) -> None:
        self.calls.append("aclose")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_inbox_runs_the_handler(server: StubServer, client: Client) -> None:
    """The inbox's identity joins the subscription, and it is closed in the end."""
    inbox, seen = FakeInbox(), list[Any]()
    consumer = Consumer(client, "g", inbox=inbox)

    @consumer.on("t")
    async def handle(msg: Delivery, conn: Any) -> None:
        seen.append((msg.body, conn))

    with pytest.raises(UsageError) as caught:
        consumer.on("u")(lambda msg, conn: None)
    assert caught.value.code == "wrong_colour"
    async with serving(server, consumer):
        await server.connections[0].send(deliver(wire(0)))
        await told(server, 1)
        assert (await frames(server, "subscribe"))[0]["inbox"] == "b" * 32
    assert (seen, inbox.calls) == ([(b"0", "connection")], ["identity", "run", "aclose"])


def test_handler_of_the_wrong_shape_is_refused_at_decoration() -> None:
    """Not at the first delivery, at night."""
    consumer = Consumer(Client(), "g")
    with pytest.raises(UsageError, match="must take"):
        consumer.on("t")(lambda: None)
    consumer.on("t")(lambda msg: None)
    with pytest.raises(UsageError) as caught:
        consumer.on("t", tag="x")
    assert caught.value.code == "combination_refused"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lease", 3_600.1),
        ("lease", timedelta(hours=2)),
        ("lease", 0.04),
        ("lease", float("nan")),
        ("concurrency", 0),
        ("concurrency", 1_001),
        ("concurrency", 1.5),
    ],
)
def test_p2_consumer_that_no_coordinator_would_take_is_refused_when_it_is_made(option: str, value: Any) -> None:
    """Its subscribe frame would be none, and close the stream of all that share the Client, again and again."""
    with pytest.raises(UsageError) as caught:
        Consumer(Client(), "g", **{option: value})
    assert caught.value.code == "bad_request"


async def test_join_that_waits_is_said_once(server: StubServer, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Each answer names another request, and the reason is the same; then the topic is there, and the consumer joins."""
    asked = iter(range(1_000))

    def http(request: Any, body: Any) -> tuple[int, Any]:
        if request.method != "PUT" or (number := next(asked)) >= 3:
            return 200, {}
        return 404, {"code": "topic_not_found", "title": "no", "status": 404, "detail": "no topic t", "request_id": f"r{number}"}

    server.http = http
    consumer = Consumer(client, "g")
    consumer.on("t")(print)
    async with serving(server, consumer):
        await frames(server, "subscribe")
    assert sum("cannot join yet" in record.getMessage() for record in caplog.records) == 1
    assert next(asked) > 3
