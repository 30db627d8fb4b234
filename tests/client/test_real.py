"""The client against the real coordinator, in one process: the two sides share no code, so what they agree on is shown here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from halfmsg.coordinator.app import Coordinator
from halfmsg.coordinator.settings import Check, Settings
from halfmsg.outbox import Outbox
from halfmsg.txclient import Client, Conflict, Consumer, Delivery, Message, Reject, Retry, UsageError, transaction_digest
from halfmsg.txclient._links import Links
from halfmsg.txclient._wire import Deliver, Json
from tests.support.serving import eventually

CHECK = Check(first_delay_s=0.05)


@pytest_asyncio.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[Coordinator]:
    one = Coordinator(Settings(listen="127.0.0.1:0", store=str(tmp_path / "hm.db"), dev=True, check=CHECK))
    await one.start()
    yield one
    await one.stop()


@pytest_asyncio.fixture
async def client(coordinator: Coordinator) -> AsyncIterator[Client]:
    async with Client(f"http://{coordinator.address}", timeout=5) as one:
        yield one


class Orders:
    """A producer whose answers the test decides."""

    name = "orders"
    source: str | None = None

    def __init__(self) -> None:
        self.verdicts: dict[str, Mapping[str, Any]] = {}
        self.asked = asyncio.Event()

    async def answer(self, question: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.set()
        ids = [one["id"] for one in question["transactions"]]
        return {"verdicts": [{"id": one, **self.verdicts[one]} for one in ids if one in self.verdicts]}

    def beat(self) -> Mapping[str, Any]:
        return {}


async def run(consumer: Consumer, until: asyncio.Event) -> None:
    task = asyncio.create_task(consumer.serve())
    await asyncio.wait_for(until.wait(), 20)
    consumer.stop()
    await task


async def test_digest_is_the_same_on_both_sides(client: Client) -> None:
    """The coordinator's digest of what arrived is the client's of what was sent, whatever the fields (P8, R9)."""
    await client.attach(Orders())
    messages = [
        Message("plain", {"a": "ü"}, tag="x", attributes={"b": "1", "ä": "2"}),
        Message("plain", b"\x00\xff"),
        Message("plain", b"", content_type="text/plain"),
    ]
    prepared = await client.prepare(messages, producer="orders")
    assert (prepared.state, prepared.digest) == ("prepared", transaction_digest(one.digest() for one in messages).hex())
    assert (await client.commit(prepared.id, digest=prepared.digest)).state == "committed"
    assert (await client.transaction(prepared.id)).message_ids == [f"{prepared.id}-{index}" for index in range(3)]
    assert client.time_ms is not None


async def test_json_stream_carries_the_same(coordinator: Coordinator, client: Client) -> None:
    """The other codec means the same to the coordinator."""
    client._links = Links(client._settings, Json())
    sent = await client.send("plain", {"a": 1})
    again = await client.send("plain", {"a": 1}, id=sent.id)
    assert (sent.digest, sent.id) == (again.digest, again.id)


async def test_p7_consumer_keeps_order_over_failures(client: Client) -> None:
    """Numbered messages of one key have their effect in order, though some fail first and one is rejected."""
    await client.attach(Orders())
    await client.put_topic("seq", kind="sequence", lanes=2)
    await client.put_group("g", topics=[{"topic": "seq"}], backoff={"first_s": 0.01, "max_s": 0.01})
    consumer, effects, done = Consumer(client, "g", lease=2), list[int](), asyncio.Event()

    @consumer.on("seq")
    async def handle(msg: Delivery) -> None:
        if msg.sequence == 7:
            raise Reject("never")
        if msg.sequence is not None and msg.sequence % 5 == 0 and msg.attempt == 1:
            raise Retry("not yet", delay=0)
        effects.append(msg.sequence or 0)
        if msg.sequence == 40:
            done.set()

    for number in range(1, 41):
        await client.submit([Message("seq", number, key="k")], producer="orders", numbers=[number])
    await run(consumer, done)
    assert effects == [number for number in range(1, 41) if number != 7]


async def test_p7_order_holds_over_broken_connections(client: Client) -> None:
    """The stream breaks again and again under an ordered consumer; what was lost with it still comes before what follows."""
    await client.attach(Orders())
    await client.put_topic("seq", kind="sequence", lanes=1)
    await client.put_group("g", topics=[{"topic": "seq"}])
    consumer, effects, done = Consumer(client, "g", lease=0.3, concurrency=4), list[int](), asyncio.Event()

    @consumer.on("seq")
    async def handle(msg: Delivery) -> None:
        number = msg.sequence or 0
        if number in (10, 20, 30) and msg.attempt == 1 and number not in effects:
            ws = client._link().stream._ws
            if ws is not None:
                await ws.close()
        if number not in effects:  # as an inbox would
            effects.append(number)
        if number == 40:
            done.set()

    messages = [Message("seq", number, key="k") for number in range(1, 41)]
    await client.submit(messages, producer="orders", numbers=list(range(1, 41)))
    await run(consumer, done)
    assert effects == list(range(1, 41))


async def test_p7_delivery_lost_with_its_connection_comes_before_what_follows(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handed out, never arrived: it comes again at once over the next connection, and nothing of its key before it."""
    await client.attach(Orders())
    await client.put_topic("seq", kind="sequence", lanes=1)
    await client.put_group("g", topics=[{"topic": "seq"}])
    consumer, effects, done = Consumer(client, "g", lease=30), list[int](), asyncio.Event()  # far longer than the test may take

    @consumer.on("seq")
    async def handle(msg: Delivery) -> None:
        effects.append(msg.sequence or 0)
        if {1, 2} <= set(effects):
            done.set()

    stream, lost = client._link().stream, asyncio.Event()
    whole = stream._handle

    def losing(frame: Any) -> None:
        if isinstance(frame, Deliver) and not lost.is_set():
            lost.set()
            raise OSError("cut under the first delivery")
        whole(frame)

    monkeypatch.setattr(stream, "_handle", losing)
    await client.submit([Message("seq", 1, key="k")], producer="orders", numbers=[1])
    serving = asyncio.create_task(run(consumer, done))
    await asyncio.wait_for(lost.wait(), 20)
    await client.submit([Message("seq", 2, key="k")], producer="orders", numbers=[2])
    await serving
    assert effects == [1, 2]


async def test_p2_group_that_goes_stops_nobody_else_on_the_client(coordinator: Coordinator, client: Client, tmp_path: Path) -> None:
    """An operator removes a group under its consumer. The outbox and the other consumer share its connection, and go on; so does it, made again."""
    got: asyncio.Queue[str] = asyncio.Queue()
    consumers = [Consumer(client, name, lease=0.2) for name in ("mail", "bill")]
    for consumer in consumers:

        @consumer.on(consumer._group + "s")
        async def handle(delivery: Delivery) -> None:
            await got.put(f"{delivery.topic} {delivery.json()}")

    async def hear() -> str:
        return await asyncio.wait_for(got.get(), 20)

    async with Outbox(client, "orders", f"sqlite:///{tmp_path / 'p.db'}") as outbox:

        async def publish(topic: str, body: int) -> None:
            async with outbox.transaction() as tx:
                await tx.publish(topic, body)

        for topic in ("mails", "bills"):
            await client._put(f"/v1/topics/{topic}", {"kind": "unordered", "allow_no_group": True})
        serving = [asyncio.create_task(consumer.serve()) for consumer in consumers]
        await publish("mails", 1)
        await publish("bills", 1)
        assert {await hear(), await hear()} == {"mails 1", "bills 1"}
        await _removed(client, "mail")
        await eventually(lambda: all("mail" not in each.subscriptions for each in coordinator.streams.connections), "the end of its subscription")
        for body in (2, 3, 4):
            await publish("bills", body)
            assert await hear() == f"bills {body}"
        await publish("mails", 2)
        await client.put_group("mail", topics=[{"topic": "mails"}], start="earliest")
        assert {await hear(), await hear()} == {"mails 1", "mails 2"}
        for consumer in consumers:
            consumer.stop()
        await asyncio.gather(*serving)


async def _removed(client: Client, group: str) -> None:
    """Between two signs of life of its member."""
    while True:
        try:
            await client._links.here().http.call("DELETE", f"/v1/groups/{group}?reason=test", timeout_s=5)
        except Conflict:
            continue
        return


async def test_fetch_ack_by_hand(client: Client) -> None:
    """Bodies come out as they went in; what is acked does not come again."""
    await client.send("plain", b"\x00")
    await client.put_group("g", topics=[{"topic": "plain"}], start="earliest")
    taken = await client.fetch("g", wait=2, lease=5)
    assert [(one.body, one.group, one.attempt) for one in taken] == [(b"\x00", "g", taken[0].attempt)]
    await client.ack(taken)
    assert await client.fetch("g", wait=0) == []


async def test_question_is_answered_over_the_stream(client: Client) -> None:
    """A half message that nobody decides is asked about, and the attached producer's verdict decides it."""
    orders = Orders()
    await client.attach(orders)
    await client.send("plain", 1)
    prepared = await client.prepare([Message("plain", 1)], producer="orders", first_check=0.05)
    orders.verdicts[prepared.id] = {"verdict": "committed", "digest": prepared.digest}
    await asyncio.wait_for(orders.asked.wait(), 20)
    async with asyncio.timeout(20):
        while (now := await client.transaction(prepared.id)).state == "prepared":
            pass  # each look is a round trip
    assert (now.state, now.decided_by) == ("committed", "check_back")


async def test_client_and_consumer_survive_a_restart(tmp_path: Path) -> None:
    """The coordinator goes and comes back on its address; nothing is told to the user, and all is handled."""
    settings = Settings(listen="127.0.0.1:0", store=str(tmp_path / "hm.db"), dev=True, check=CHECK)
    coordinator = Coordinator(settings)
    await coordinator.start()
    client = Client(f"http://{coordinator.address}")
    await client.put_topic("plain", kind="unordered")
    consumer, seen, first, done = Consumer(client, "g", lease=2), set[int](), asyncio.Event(), asyncio.Event()

    @consumer.on("plain")
    async def handle(msg: Delivery) -> None:
        seen.add(msg.json())
        first.set()
        if seen == {1, 2}:
            done.set()

    serving = asyncio.create_task(run(consumer, done))
    await client.send("plain", 1)
    await first.wait()
    await coordinator.stop()
    sending = asyncio.create_task(client.send("plain", 2))
    again = Coordinator(msgspec.structs.replace(settings, listen=coordinator.address))
    await again.start()
    try:
        assert (await sending).state == "committed"
        await serving
    finally:
        await client.aclose()
        await again.stop()


class Tenant(Orders):
    """One of many producers of a process."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


async def test_p2_producer_past_the_limit_of_a_hello_is_refused_and_hurts_nobody(client: Client) -> None:
    """64 answer over one Client, as the coordinator takes no more in a frame; the next one is told what to do, and all goes on."""
    for n in range(64):
        await client.attach(Tenant(f"tenant{n}"))
    assert (await client.send("plain", 1)).state == "committed"
    with pytest.raises(UsageError, match="a Client of its own") as caught:
        await client.attach(Tenant("one.more"))
    assert caught.value.code == "bad_request"
    twin = Tenant("tenant7")
    await client.attach(twin)
    await client.detach(twin)
    assert (await client.send("plain", 2)).state == "committed"
    assert client.connected


@pytest.mark.parametrize(("lease", "concurrency"), [(3_600, 1_000), (0.05, 1)])
async def test_consumer_at_the_limits_of_its_options_is_taken(client: Client, lease: float, concurrency: int) -> None:
    """What the client lets pass is no bad frame for the coordinator."""
    await client.put_topic("plain", kind="unordered", allow_no_group=True)
    consumer, done = Consumer(client, "g", lease=lease, concurrency=concurrency), asyncio.Event()

    @consumer.on("plain")
    async def handle(msg: Delivery) -> None:
        done.set()

    await client.send("plain", 1)
    await run(consumer, done)
