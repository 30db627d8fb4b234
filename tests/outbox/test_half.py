"""`prepared`: stored before the local transaction, bound to its commit by the fence, told after its end (R1, R2, R26)."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from collections.abc import AsyncIterator
from itertools import count
from typing import Any
from uuid import uuid4

import aiosqlite
import pytest
import pytest_asyncio

from halfmsg import Client, Fenced, Message, Outbox, TransportError, UsageError
from halfmsg.coordinator.app import Coordinator
from halfmsg.outbox import AlreadyCommitted, Half

from .faults import DeafProxy, cancel_at, deaf_proxy
from .sides import Side, closing, sqlite_side


class Watched(Client):
    """The real client; notes operations that go out while a local transaction is open."""

    in_transaction = False
    noted: list[str]

    async def op(self, op: Any, *, timeout: float | None = None, retry: bool = True) -> Any:
        if self.in_transaction:
            self.noted.append(str(op))
        return await super().op(op, timeout=timeout, retry=retry)


async def placed(side: Side, half: Half, id: str = "b") -> None:
    """The caller's transaction: business row, fence, COMMIT."""
    conn = await side.connect()
    await side.begin(conn)
    await side.business(conn, id)
    await half.fence(conn)
    await side.commit(conn)


async def state_of(client: Client, id: str, wanted: str) -> None:
    async with asyncio.timeout(10):
        while (await client.transaction(id)).state != wanted:
            pass


async def bodies(client: Client, wanted: int) -> list[Any]:
    """What the group gets, until it has `wanted`; then once more without waiting, for what would be too much."""
    found: list[Any] = []
    async with asyncio.timeout(10):
        while len(found) < wanted:
            batch = await client.fetch("g", wait=1)
            found += [each.json() for each in batch]
            await client.ack(batch)
    return found + [each.json() for each in await client.fetch("g", wait=0)]


@pytest_asyncio.fixture
async def outbox(client: Client, database: Side) -> AsyncIterator[Outbox]:
    async with Outbox(client, "orders", database.url, prepare_timeout_s=5) as one:
        yield one


async def test_p2_acknowledged_half_is_committed_by_its_fence(database: Side, outbox: Outbox, client: Client) -> None:
    """The coordinator has the body, so the database keeps digest and number only; the relay commits it, and it is delivered once."""
    async with outbox.prepared(Message("s", "hello", key="k")) as half:
        assert half.acknowledged
        assert (await client.transaction(half.id)).state == "prepared"
        await placed(database, half)
    await state_of(client, half.id, "committed")
    assert database.read("SELECT unsent FROM halfmsg_tx") == [(None,)]
    assert database.read("SELECT seq, body FROM halfmsg_out") == [(1, None)]
    assert await bodies(client, 1) == ["hello"]


async def test_p1_half_of_a_block_that_raises_is_rolled_back(database: Side, outbox: Outbox, client: Client) -> None:
    """Raised before the local transaction: the tombstone is laid and the coordinator told, at once and by proof."""
    with pytest.raises(ZeroDivisionError):
        async with outbox.prepared(Message("s", 1, key="k")) as half:
            raise ZeroDivisionError
    await state_of(client, half.id, "rolled_back")
    assert database.verdict(half.id) == 2


async def test_not_fenced_half_is_an_error(database: Side, outbox: Outbox, client: Client) -> None:
    """A block that never called fence raises not_fenced, and its half message is rolled back."""
    with pytest.raises(UsageError) as caught:
        async with outbox.prepared(Message("s", 1, key="k")) as half:
            pass
    assert caught.value.code == "not_fenced"
    await state_of(client, half.id, "rolled_back")


async def test_fence_twice_is_an_error(database: Side, outbox: Outbox) -> None:
    """One half message binds to one transaction; the second call writes nothing."""
    async with outbox.prepared(Message("s", 1, key="k")) as half:
        await placed(database, half)
        with pytest.raises(UsageError, match="fenced already"):
            await placed(database, half, "c")
    assert database.counts() == (1, 1, 1)


async def test_r1_block_that_raises_with_its_transaction_open_does_not_wait_for_it(database: Side, outbox: Outbox, client: Client) -> None:
    """The block's end must not wait for a lock that its own caller holds: nothing is said, and the later commit is what counts."""
    conn = await database.connect()
    async with asyncio.timeout(5):
        with pytest.raises(ZeroDivisionError):
            async with outbox.prepared(Message("s", 1, key="k")) as half:
                await database.begin(conn)
                await database.business(conn)
                await half.fence(conn)
                raise ZeroDivisionError
    assert (await client.transaction(half.id)).state == "prepared"
    await database.commit(conn)
    await state_of(client, half.id, "committed")
    assert database.counts() == (1, 1, 1)


async def test_p2_half_cancelled_behind_a_lock_leaves_no_error(database: Side, outbox: Outbox, client: Client) -> None:
    """The caller is let go; what it leaves behind meets the lock by itself, and the later commit is what counts."""
    unheard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    cancelled_behind_it = 0
    for k in count(1):
        conn = await database.connect()
        half = outbox.prepared(Message("s", k, key=f"k{k}"))

        async def raising(conn: Any = conn, half: Any = half, k: int = k) -> None:
            async with half:
                await database.begin(conn)
                await database.business(conn, f"k{k}")
                await half.fence(conn)
                raise ZeroDivisionError

        reached, error = await cancel_at(raising(), k)
        if behind := [task for task in asyncio.all_tasks() if "Half" in str(task.get_coro())]:
            cancelled_behind_it += 1
            await asyncio.wait(behind, timeout=10)
            assert all(task.done() for task in behind)
            del behind
        await database.commit(conn)
        if database.verdict(half.id) == 1:
            await state_of(client, half.id, "committed")
        if not reached:
            break
    gc.collect()
    assert isinstance(error, ZeroDivisionError)
    assert cancelled_behind_it
    assert not unheard


async def test_r26_id_that_was_rolled_back_is_replaced(database: Side, outbox: Outbox, client: Client) -> None:
    """prepare answers rolled_back: the attempt takes a new id before the local transaction begins."""
    id = str(uuid4())
    await client.op({"op": "rollback", "id": id, "producer": "orders", "source": outbox.source_id})
    async with outbox.prepared(Message("s", "again", key="k"), id=id) as half:
        assert half.id != id
        assert half.acknowledged
        await placed(database, half)
    await state_of(client, half.id, "committed")
    assert await bodies(client, 1) == ["again"]


async def test_r26_id_that_was_committed_is_not_run_again(database: Side, outbox: Outbox) -> None:
    """prepare answers committed: AlreadyCommitted, and the body of the block is not entered."""
    async with outbox.prepared(Message("u", 1)) as half:
        await placed(database, half)
    await state_of(outbox.client, half.id, "committed")
    with pytest.raises(AlreadyCommitted):
        async with outbox.prepared(Message("u", 1), id=half.id):
            raise AssertionError("entered")


async def test_r2_no_network_inside_the_local_transaction(database: Side, coordinator: Coordinator) -> None:
    """From BEGIN to COMMIT the client sends nothing, neither for a prepared one nor for a publish."""
    client = Watched(f"http://{coordinator.address}")
    client.noted = []
    async with client, Outbox(client, "orders", database.url, prepare_timeout_s=5) as outbox:
        async with outbox.prepared(Message("s", 1, key="k")) as half:
            assert half.acknowledged
            conn = await database.connect()
            await database.begin(conn)
            client.in_transaction = True
            await half.fence(conn)
            await outbox.publish(conn, "u", 2)
            client.in_transaction = False
            await database.commit(conn)
        assert client.noted == []
        await state_of(client, half.id, "committed")


@pytest_asyncio.fixture
async def slow(coordinator: Coordinator, database: Side) -> AsyncIterator[tuple[DeafProxy, Outbox]]:
    """An open outbox whose way to the coordinator can be held up; it waits 50 ms for a prepare."""
    async with (
        deaf_proxy(f"http://{coordinator.address}") as (proxy, url),
        Client(url, timeout=5) as client,
        Outbox(client, "orders", database.url, prepare_timeout_s=0.05) as outbox,
    ):
        yield proxy, outbox
        proxy.flows.set()


@pytest.mark.parametrize(("topic", "key"), [("s", "k"), ("u", None)])
async def test_r2_late_prepare_is_the_same_transaction(
    slow: tuple[DeafProxy, Outbox], database: Side, client: Client, topic: str, key: str | None
) -> None:
    """The prepare is given up and goes by rows; then it arrives after all: same id, same digest, one delivery."""
    proxy, outbox = slow
    proxy.flows.clear()
    async with outbox.prepared(Message(topic, "once") if key is None else Message(topic, "once", key=key)) as half:
        assert not half.acknowledged
        await placed(database, half)
    assert database.read("SELECT unsent, body FROM halfmsg_tx, halfmsg_out") == [(1, b'"once"')]
    proxy.flows.set()
    await asyncio.wait_for(_known(client, half.id), 10)
    await state_of(client, half.id, "committed")
    assert await bodies(client, 1) == ["once"]
    async with asyncio.timeout(10):
        while await asyncio.to_thread(database.read, "SELECT unsent FROM halfmsg_tx") != [(None,)]:
            pass


async def _known(client: Client, id: str) -> None:
    while True:
        page = await client.get("/v1/transactions?state=committed")
        if id in [item["id"] for item in page["items"]]:
            return


async def test_r2_late_prepare_of_a_rolled_back_one_is_never_delivered(slow: tuple[DeafProxy, Outbox], database: Side, client: Client) -> None:
    """Given up, then rolled back locally, then it arrives: the coordinator is told, or asks, and nothing is delivered."""
    proxy, outbox = slow
    proxy.flows.clear()
    with pytest.raises(ZeroDivisionError):
        async with outbox.prepared(Message("u", "ghost")) as half:
            raise ZeroDivisionError
    assert database.verdict(half.id) == 2
    proxy.flows.set()
    async with asyncio.timeout(10):
        while half.id not in [item["id"] for item in (await client.get("/v1/transactions?state=rolled_back"))["items"]]:
            pass
    assert await client.fetch("g", wait=0) == []


async def test_required_half_raises_instead_of_rows(slow: tuple[DeafProxy, Outbox]) -> None:
    """required=True: no answer in time is an error before the local transaction begins."""
    proxy, outbox = slow
    proxy.flows.clear()
    with pytest.raises(TransportError):
        async with outbox.prepared(Message("u", 1), required=True):
            raise AssertionError("entered")


async def test_required_half_needs_an_open_outbox(database: Side) -> None:
    """Without a relay here nobody would commit it: required raises, and the other kind goes by rows."""
    outbox = database.outbox()
    with pytest.raises(UsageError) as caught:
        async with outbox.prepared(Message("u", 1), required=True):
            raise AssertionError("entered")
    assert caught.value.code == "outbox_closed"
    async with outbox.prepared(Message("u", 1)) as half:
        assert not half.acknowledged
        await placed(database, half)
    assert database.read("SELECT unsent FROM halfmsg_tx") == [(1,)]


async def test_r3_mark_of_prepare_and_fence_are_one(database: Side, coordinator: Coordinator) -> None:
    """The number in the fence row is the number in the prepare, chosen once; before any answer it is what purged_before was at start."""
    database.read("UPDATE halfmsg_meta SET n = 41 WHERE k = 'purged_before'")
    async with Client(f"http://{coordinator.address}") as client:
        outbox = Outbox(client, "orders", database.url)
        async with closing(outbox):
            await outbox._load_source()
            assert outbox.prepared(Message("u", 1))._op()["mark"] == 41
        async with outbox:
            half = outbox.prepared(Message("u", 1))
            mark = half._op()["mark"]
            assert mark == half._attempt.mark == client.time_ms
            async with half:
                await placed(database, half)
    assert database.read("SELECT mark FROM halfmsg_tx") == [(mark,)]


def test_sync_half_through_the_portal(tmp_path: Any) -> None:
    """The same block without a loop; with nobody open it goes by rows, and one that raises leaves nothing to rule."""
    side = sqlite_side(tmp_path, "sqlite3")
    outbox = side.outbox()
    with outbox.prepared(Message("s", 1, key="k")) as half:
        conn = sqlite3.connect(tmp_path / side.url.rpartition("/")[2])
        conn.execute("BEGIN IMMEDIATE")
        assert [each.sequence for each in half.fence(conn)] == [1]
        conn.commit()
    with pytest.raises(ZeroDivisionError), outbox.prepared(Message("s", 1, key="k")) as late:
        conn.execute("BEGIN IMMEDIATE")
        late.fence(conn)
        conn.rollback()
        raise ZeroDivisionError
    conn.close()
    assert (side.verdict(half.id), side.verdict(late.id)) == (1, None)


async def test_r8_fenced_half_is_refused_inside_its_block(database: Side, outbox: Outbox) -> None:
    """A check-back rules between prepare and fence (a process that was stopped): Fenced, and the block's end agrees."""
    from halfmsg.checkback import Question

    with pytest.raises(Fenced):
        async with outbox.prepared(Message("s", 1, key="k")) as half:
            await outbox.decide([Question(half.id, 2**50, None)])
            await placed(database, half)
    assert (database.verdict(half.id), database.count("business")) == (2, 0)


async def test_aiosqlite_connection_of_ours_never_keeps_a_process(file: Side) -> None:
    """An idle connection of the library's lives on a daemon thread: a service that never opened its outbox can end."""
    async with closing(file.outbox()) as outbox:
        adapter = await outbox._home.take()
        assert isinstance(adapter.conn, aiosqlite.Connection)
        assert adapter.conn._thread.daemon
        await outbox._home.give(adapter)
