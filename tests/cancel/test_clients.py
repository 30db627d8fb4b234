"""The client's side: each coroutine that a service awaits, cancelled at each of its awaits, against the real coordinator."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest

from halfmsg import Client, Consumer, Delivery, Inbox, Message, Outbox
from halfmsg.checkback import Question, Responder
from halfmsg.coordinator import doctor
from halfmsg.coordinator.app import Coordinator
from halfmsg.txclient import ApiError, Transaction
from tests.outbox.faults import cancel_at
from tests.outbox.sides import Side
from tests.support.serving import eventually

CANCELS_MAX = 300
Call = Callable[[Client], Awaitable[Callable[[], Any]]]


async def half(client: Client) -> Transaction:
    await client._put("/v1/producers/orders", {"check_url": "http://127.0.0.1:9/nobody"})
    return await client.prepare([Message("u", 1)], producer="orders")


async def given(client: Client) -> Delivery:
    await client.send("u", 1)
    while True:
        for one in await client.fetch("g", max=1, wait=5, lease=2):
            return one


async def _send(client: Client) -> Callable[[], Any]:
    return lambda: client.send("u", 1)


async def _prepare(client: Client) -> Callable[[], Any]:
    await half(client)
    return lambda: client.prepare([Message("u", 1)], producer="orders")


async def _submit(client: Client) -> Callable[[], Any]:
    return lambda: client.submit([Message("u", 1)], producer="orders")


async def _commit(client: Client) -> Callable[[], Any]:
    known = await half(client)
    return lambda: client.commit(known.id, digest=known.digest)


async def _rollback(client: Client) -> Callable[[], Any]:
    known = await half(client)
    return lambda: client.rollback(known.id, producer="orders")


async def _transaction(client: Client) -> Callable[[], Any]:
    known = await half(client)
    return lambda: client.transaction(known.id)


async def _fetch(client: Client) -> Callable[[], Any]:
    await client.send("u", 1)
    return lambda: client.fetch("g", max=10, wait=0, lease=2)


async def _ack(client: Client) -> Callable[[], Any]:
    one = await given(client)
    return lambda: client.ack([one])


async def _nack(client: Client) -> Callable[[], Any]:
    one = await given(client)
    return lambda: client.nack(one, reason="no", delay=0)


async def _reject(client: Client) -> Callable[[], Any]:
    one = await given(client)
    return lambda: client.reject(one, reason="no")


async def _ping(client: Client) -> Callable[[], Any]:
    return client.ping


async def _aclose(client: Client) -> Callable[[], Any]:
    await client.send("u", 1)
    return client.aclose


CALLS: dict[str, Call] = {
    "send": _send, "prepare": _prepare, "submit": _submit, "commit": _commit, "rollback": _rollback, "transaction": _transaction,
    "fetch": _fetch, "ack": _ack, "nack": _nack, "reject": _reject, "ping": _ping, "aclose": _aclose,
}  # fmt: skip
INNER = {"attach", "detach", "op", "get", "topics", "put_topic", "put_group"}
"""Not for users; they are reached through the outbox below."""


def test_every_call_of_a_client_has_a_row() -> None:
    """A new one without a row fails here."""
    public = {name for name, _ in inspect.getmembers(Client, inspect.iscoroutinefunction) if not name.startswith("_")}
    assert set(CALLS) == public - INNER


def is_sound(coordinator: Coordinator) -> Awaitable[None]:
    async def look() -> None:
        found = await coordinator.engine.read(lambda tx: doctor.run(tx.conn))
        assert [one for one in found if not one.ok] == []

    return look()


def tasks_but(before: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    """Of the client and the service: the server's own connections come and go with theirs."""
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    return [task for task in left if "aiohttp/web_" not in str(task.get_coro().cr_code.co_filename)]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", CALLS)
async def test_p4_cancelled_call_leaves_the_client_usable(coordinator: Coordinator, name: str) -> None:
    """Connected or not yet: the next call is answered, nothing waits for an answer any more, and closing leaves no task."""
    before = asyncio.all_tasks()
    for fresh in (False, True):
        for k in range(1, CANCELS_MAX):
            async with Client(f"http://{coordinator.address}", timeout=5) as one, Client(f"http://{coordinator.address}", timeout=5) as other:
                call = await CALLS[name](one if not fresh else other)
                if fresh and name not in ("ack", "nack", "reject", "aclose"):
                    call = await CALLS[name](one)
                reached, error = await cancel_at(_awaited(call), k)
                assert isinstance(error, asyncio.CancelledError) if reached else error is None, error
                async with asyncio.timeout(5):
                    assert (await one.send("u", 2)).state == "committed"
                calls = one._link().stream.calls
                await eventually(lambda calls=calls: len(calls) == 0, "an answer to each")  # type: ignore[misc]
            await eventually(lambda: not tasks_but(before), "the end of its tasks")
            if not reached:
                break
        else:
            raise AssertionError("it never came to its end")
    await is_sound(coordinator)


async def _awaited(call: Callable[[], Any]) -> Any:
    return await call()


# --- a consumer ---------------------------------------------------------------------------------------------------------------


async def test_p2_handler_that_is_cancelled_leaves_its_message_to_come_again(coordinator: Coordinator, client: Client) -> None:
    """By itself or by another task: the message is given back, counted, and delivered again; what follows in its key waits for it."""
    consumer = Consumer(client, "g", lease=2)
    seen: list[int] = []
    done = asyncio.Event()

    @consumer.on("s")
    async def handle(delivery: Delivery) -> None:
        seen.append(delivery.json())
        if delivery.json() == 1 and delivery.attempt == 1:
            task = asyncio.create_task(asyncio.Event().wait())
            asyncio.get_running_loop().call_soon(task.cancel)
            await task
        if len(seen) >= 4:
            done.set()

    @consumer.on("u")
    async def unused(delivery: Delivery) -> None: ...

    ids = [str(uuid4()) for _ in range(3)]
    for number, id in enumerate(ids, 1):
        await client.submit([Message("s", number, key="k")], producer="orders", id=id, numbers=[number])
    await _serve_until(consumer, done)
    assert seen == [1, 1, 2, 3]
    await is_sound(coordinator)


async def _serve_until(consumer: Consumer, done: asyncio.Event) -> None:
    serving = asyncio.create_task(consumer.serve())
    async with asyncio.timeout(15):
        await done.wait()
    consumer.stop()
    await serving


async def test_p2_consumer_cancelled_at_every_await_loses_nothing(coordinator: Coordinator) -> None:
    """`serve` of one consumer cancelled at its k-th await, whatever it has in hand: every message has its effect once it is over, in order."""
    before = asyncio.all_tasks()
    effects: list[int] = []
    sent = 0
    for k in range(1, CANCELS_MAX):
        async with Client(f"http://{coordinator.address}", timeout=5) as client:
            sent += 1
            await client.submit([Message("s", sent, key="k")], producer="orders", numbers=[sent])
            consumer = _collector(client, effects, stop_at=sent)
            reached, error = await cancel_at(consumer.serve(), k)
            assert isinstance(error, asyncio.CancelledError) if reached else error is None, error
        await eventually(lambda: not tasks_but(before), "the end of its tasks")
        if not reached:
            break
    else:
        raise AssertionError("it never came to its end")
    assert k > 5
    async with Client(f"http://{coordinator.address}", timeout=5) as client:
        if sent not in effects:
            async with asyncio.timeout(20):
                await _collector(client, effects, stop_at=sent).serve()
    firsts = list(dict.fromkeys(effects))
    assert firsts == list(range(1, sent + 1))
    await is_sound(coordinator)


def _collector(client: Client, effects: list[int], *, stop_at: int) -> Consumer:
    consumer = Consumer(client, "g", lease=1)

    @consumer.on("s")
    async def handle(delivery: Delivery) -> None:
        effects.append(delivery.json())
        if delivery.json() == stop_at:
            consumer.stop()

    @consumer.on("u")
    async def unused(delivery: Delivery) -> None: ...

    return consumer


async def test_p7_consumer_whose_loop_is_blocked_past_its_lease_runs_nothing_that_follows_before_it_knows(coordinator: Coordinator) -> None:
    """Its ack is refused. Another has run 1 and 2 meanwhile: the blocked one, waking up, must ask before it runs 2."""
    release, blocked = threading.Event(), threading.Event()
    order: list[tuple[str, int]] = []

    def slow() -> None:
        asyncio.run(_slow())

    async def _slow() -> None:
        async with Client(f"http://{coordinator.address}", timeout=5) as client:
            consumer = Consumer(client, "g", lease=0.5)
            finished.append(consumer)

            @consumer.on("s")
            async def handle(delivery: Delivery) -> None:
                order.append(("slow", delivery.json()))
                if not blocked.is_set():
                    blocked.set()
                    release.wait(20)  # the loop stands still: no renewal, nothing is read

            @consumer.on("u")
            async def unused(delivery: Delivery) -> None: ...

            await consumer.serve()

    finished: list[Consumer] = []
    async with Client(f"http://{coordinator.address}", timeout=5) as client:
        for number in (1, 2, 3):
            await client.submit([Message("s", number, key="k")], producer="orders", numbers=[number])
        thread = threading.Thread(target=slow)
        thread.start()
        await eventually(blocked.is_set, "the block")
        other = Consumer(client, "g", lease=5)
        done = asyncio.Event()

        @other.on("s")
        async def handle(delivery: Delivery) -> None:
            order.append(("other", delivery.json()))
            if delivery.json() == 3:
                done.set()

        @other.on("u")
        async def unused(delivery: Delivery) -> None: ...

        serving = asyncio.create_task(other.serve())
        async with asyncio.timeout(15):
            await done.wait()
        release.set()
        await eventually(lambda: finished[0].counts["acked"] == 1, "the end of the blocked handler")
        finished[0].stop()
        await asyncio.to_thread(thread.join)
        other.stop()
        await serving
    assert order == [("slow", 1), ("other", 1), ("other", 2), ("other", 3)]
    await is_sound(coordinator)


# --- outbox, relay, inbox, responder ------------------------------------------------------------------------------------------


async def write(side: Side, outbox: Outbox, number: int) -> None:
    async with outbox.transaction() as tx:
        await tx.publish("s", number, key="k")


async def released(client: Client, wanted: int) -> list[int]:
    found: list[int] = []
    async with asyncio.timeout(20):
        while len(found) < wanted:
            batch = await client.fetch("g", wait=1, lease=2)
            found += [one.json() for one in batch if one.topic == "s"]
            await client.ack(batch)
    return found


async def test_p2_outbox_cancelled_at_every_await_of_its_block_stops_clean(coordinator: Coordinator, client: Client, file: Side) -> None:
    """Opened, used, left: cancelled anywhere in it, no task and no attachment stays, and the next block hands over what is left."""
    before = asyncio.all_tasks()
    sent = 0

    async def block(outbox: Outbox, number: int) -> None:
        async with outbox:
            await write(file, outbox, number)

    for k in range(1, CANCELS_MAX):
        async with Client(f"http://{coordinator.address}", timeout=5) as own:
            outbox = Outbox(own, "orders", file.url)
            reached, error = await cancel_at(block(outbox, sent + 1), k)
            assert isinstance(error, asyncio.CancelledError) if reached else error is None, error
            assert not outbox.is_open
            assert len(own._link().stream.producers) == 0
            sent = file.count("halfmsg_tx") if _there(file) else 0
        await eventually(lambda: not tasks_but(before), "the end of its tasks")
        async with Client(f"http://{coordinator.address}", timeout=5) as own, Outbox(own, "orders", file.url):
            await eventually(lambda: not _unsent(file), "the rows that it left")
        if not reached:
            break
    else:
        raise AssertionError("it never came to its end")
    assert await released(client, sent) == list(range(1, sent + 1))
    assert sent > 3
    await is_sound(coordinator)


def _unsent(side: Side) -> bool:
    return _there(side) and bool(side.read("SELECT 1 FROM halfmsg_tx WHERE unsent = 1"))


def _there(side: Side) -> bool:
    return bool(side.read("SELECT 1 FROM sqlite_master WHERE name = 'halfmsg_tx'"))


async def test_p2_relay_cancelled_at_every_await_of_a_pass_doubles_and_loses_nothing(coordinator: Coordinator, client: Client, file: Side) -> None:
    """A pass is cut anywhere between reading rows and marking them: the next one ends the work, each message once at the coordinator."""
    from halfmsg.outbox.relay import Relay

    outbox = file.outbox()
    await outbox._load_source()
    relay = Relay(client, "orders", outbox._home, outbox._source or b"")
    sent = 0
    for k in range(1, CANCELS_MAX):
        sent += 1
        await write(file, outbox, sent)
        reached, error = await cancel_at(relay.tick(), k)
        assert isinstance(error, asyncio.CancelledError) if reached else error is None, error
        async with asyncio.timeout(5):
            while file.read("SELECT 1 FROM halfmsg_tx WHERE unsent = 1"):
                await relay.tick()
        if not reached:
            break
    else:
        raise AssertionError("it never came to its end")
    assert await released(client, sent) == list(range(1, sent + 1))
    await outbox._home.aclose()
    await is_sound(coordinator)


async def test_p6_inbox_cancelled_at_every_await_has_the_effect_whole_or_not_at_all(coordinator: Coordinator, client: Client, file: Side) -> None:
    """Claim, handler and commit are one: after a cancellation the redelivery brings what is missing, once; no lock stays."""
    inbox = Inbox(file.url)
    for number in range(1, CANCELS_MAX):
        await client.submit([Message("s", number, key="k")], producer="orders", numbers=[number])
        [delivery] = await client.fetch("g", max=1, wait=5, lease=30)

        async def handle(delivery: Delivery, conn: Any) -> None:
            await conn.execute("INSERT INTO business (id) VALUES (?)", (f"{delivery.json()}-{uuid4()}",))

        reached, error = await cancel_at(inbox.run(delivery, handle), number)
        assert isinstance(error, asyncio.CancelledError) if reached else error is None, error
        async with asyncio.timeout(5):
            await inbox.run(delivery, handle)
        await client.ack([delivery])
        counts = Counter(row[0].partition("-")[0] for row in file.read("SELECT id FROM business"))
        assert counts == {str(one): 1 for one in range(1, number + 1)}
        if not reached:
            break
    else:
        raise AssertionError("it never came to its end")
    await inbox.aclose()


async def test_p5_responder_cancelled_at_every_await_answers_the_next_question(file: Side) -> None:
    """A question whose asker is gone: whatever was laid stands, nothing is locked, and the same question is answered the same way."""
    outbox = file.outbox()
    responder = Responder(outbox)
    await write(file, outbox, 1)
    [(raw,)] = file.read("SELECT id FROM halfmsg_tx")
    known = bytes(raw).hex()
    for k in range(1, CANCELS_MAX):
        absent = str(uuid4())
        asked = [Question(known, 0, None), Question(absent, 2**50, None)]
        reached, error = await cancel_at(outbox.decide(asked), k)
        assert isinstance(error, asyncio.CancelledError) if reached else error is None, error
        async with asyncio.timeout(5):
            answers = await outbox.decide(asked)
        assert [answers[each.id].verdict for each in asked] == ["committed", "rolled_back"]
        reached_too, _ = await cancel_at(responder.answer({}, _body(known, absent)), k)
        await write(file, outbox, k + 1)
        if not (reached or reached_too):
            break
    else:
        raise AssertionError("it never came to its end")
    await outbox._home.aclose()


def _body(*ids: str) -> bytes:
    import json

    transactions = [{"id": id, "mark": 0, "prepared_at": "2026-01-01T00:00:00.000Z", "attempt": 1, "topics": []} for id in ids]
    return json.dumps({"type": "check", "producer": "orders", "source": None, "transactions": transactions}).encode()


async def test_p4_unknown_id_is_still_unknown(client: Client) -> None:
    """A control: the client of these tests tells a refusal from a cancellation."""
    with pytest.raises(ApiError):
        await client.transaction(str(uuid4()))
