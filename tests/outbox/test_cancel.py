"""A COMMIT whose answer is not heard (R1): cancelled at every await, or lost on the way. The fence is the truth, and nothing contradicts it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from halfmsg import Client, Message, Outbox
from halfmsg.txclient import ApiError

from .faults import cancel_at, deaf_proxy
from .sides import Side, closing, settled

Scenario = Callable[[Side, Outbox, str], Coroutine[Any, Any, None]]
CANCELS_MAX = 150


async def own_block(side: Side, outbox: Outbox, name: str) -> None:
    async with outbox.transaction() as tx:
        await side.business(tx.conn, name)
        await tx.publish("s", 1, key=name)


async def block_on_theirs(side: Side, outbox: Outbox, name: str) -> None:
    conn = await side.connect()
    try:
        async with outbox.transaction(conn) as tx:
            await side.business(tx.conn, name)
            await tx.publish("s", 1, key=name)
    finally:
        await conn.close()


async def bare(side: Side, outbox: Outbox, name: str) -> None:
    conn = await side.connect()
    try:
        await side.begin(conn)
        await side.business(conn, name)
        await settled(outbox.publish(conn, "s", 1, key=name))
        await conn.commit()
    finally:
        await conn.close()


async def half_without_relay(side: Side, outbox: Outbox, name: str) -> None:
    async with outbox.prepared(Message("s", 1, key=name)) as half:
        conn = await side.connect()
        try:
            await side.begin(conn)
            await side.business(conn, name)
            await half.fence(conn)
            await conn.commit()
        finally:
            await conn.close()


async def test_r1_cancelled_begin_leaves_the_callers_connection_free(database: Side) -> None:
    """A block on the caller's connection that is cancelled while it begins: no transaction stays open there, no lock is kept."""
    conn = await database.connect(autocommit=True)
    outbox = database.outbox()
    outbox.learn_source()  # else the first await is for that
    for k in range(1, CANCELS_MAX):
        block = outbox.transaction(conn)
        reached, _ = await cancel_at(block.__aenter__(), k)
        if not reached:
            await block.__aexit__(None, None, None)
            break
        if conn_is_closed(conn):  # psycopg may close what it could not cancel in time
            conn = await database.connect(autocommit=True)
        async with outbox.transaction(conn):
            await database.business(conn, f"k{k}")
    assert database.count("business") == k - 1 > 0


def conn_is_closed(conn: Any) -> bool:
    return bool(getattr(conn, "closed", False))


def fate(side: Side, name: str) -> tuple[int, int, int]:
    """(business, message, committed fence) of one attempt, on a fresh connection."""
    [(business,)] = side.read("SELECT count(*) FROM business WHERE id = ?", name)
    rows = side.read("SELECT tx_id FROM halfmsg_out WHERE okey = ?", name.encode())
    fences = [side.read("SELECT verdict FROM halfmsg_tx WHERE id = ?", bytes(row[0])) for row in rows]
    return int(business), len(rows), fences.count([(1,)])


@pytest.mark.parametrize("scenario", [own_block, block_on_theirs, bare, half_without_relay])
async def test_r1_cancelled_at_every_await_it_is_whole_or_nothing(database: Side, scenario: Scenario) -> None:
    """Cancelled at its k-th await, for every k: business row, message and fence are all there or none; the next one works."""
    seen: Counter[tuple[int, int, int]] = Counter()
    async with closing(database.outbox()) as outbox:
        for k in range(1, CANCELS_MAX):
            reached, error = await cancel_at(scenario(database, outbox, f"k{k}"), k)
            assert isinstance(error, asyncio.CancelledError) is reached, error
            seen[fate(database, f"k{k}")] += 1
            if not reached:
                break
            await own_block(database, outbox, f"after k{k}")
            assert fate(database, f"after k{k}") == (1, 1, 1)
        else:
            raise AssertionError("it never came to its end")
    assert set(seen) == {(0, 0, 0), (1, 1, 1)}


async def test_r1_cancelled_half_is_never_told_otherwise_than_its_fence(database: Side, client: Client) -> None:
    """With relay and coordinator: whatever await is cancelled, the coordinator's decision is what the fence says."""
    seen: Counter[tuple[bool, str]] = Counter()
    async with Outbox(client, "orders", database.url) as outbox:
        for k in range(1, CANCELS_MAX):
            half = outbox.prepared(Message("s", k, key=f"k{k}"))
            reached, _ = await cancel_at(_prepared(database, half, f"k{k}"), k)
            committed = bool(database.read("SELECT 1 FROM business WHERE id = ?", f"k{k}"))
            state = await _decided(client, outbox, half.id)
            assert state in (("committed",) if committed else ("rolled_back", "none", "prepared")), (k, committed, state)
            seen[(committed, state)] += 1
            if not reached:
                break
    assert seen[(True, "committed")] >= 2, "no cancelled commit was present: the test missed its moment"
    assert seen[(False, "rolled_back")]


async def _prepared(side: Side, half: Any, name: str) -> None:
    async with half:
        conn = await side.connect()
        try:
            await side.begin(conn)
            await side.business(conn, name)
            await half.fence(conn)
            await conn.commit()
        finally:
            await conn.close()


async def _decided(client: Client, outbox: Outbox, id: str) -> str:
    """The state at the coordinator once the relay has told what it has to tell; `none` where it has never heard of it."""
    relay = outbox._relay
    assert relay is not None
    async with asyncio.timeout(10):
        while True:
            await relay.tick()
            try:
                state = (await client.transaction(id)).state
            except ApiError as error:
                assert error.code == "transaction_not_found"
                return "none"
            if state != "prepared" or bytes.fromhex(id.replace("-", "")) not in relay._halves:
                return state


async def _hold(outbox: Outbox, side: Side, url: str, after: Callable[[Any], Awaitable[None]]) -> None:
    """A half message whose COMMIT goes through `url`; `after` gets the connection in place of the commit."""
    async with outbox.prepared(Message("s", 1, key="k")) as half:
        conn = await psycopg.AsyncConnection.connect(url)
        try:
            await side.business(conn)
            await half.fence(conn)
            await after(conn)
        finally:
            with suppress(psycopg.Error):
                await conn.close()


async def test_r1_lost_answer_of_commit_is_a_commit(postgres: Side, client: Client) -> None:
    """The database commits, the connection breaks before its answer: the service sees an error, and the coordinator commits all the same."""
    async with deaf_proxy(postgres.url) as (proxy, url), Outbox(client, "orders", postgres.url) as outbox:

        async def commit_unheard(conn: Any) -> None:
            proxy.loses_answer_of = b"COMMIT"
            await conn.commit()

        with pytest.raises(psycopg.OperationalError):
            await _hold(outbox, postgres, url, commit_unheard)
        assert fate(postgres, "b")[0] == 1
        [(raw,)] = postgres.read("SELECT tx_id FROM halfmsg_out")
        assert await _decided(client, outbox, bytes(raw).hex()) == "committed"


async def test_r1_lost_commit_is_rolled_back_by_proof(postgres: Side, client: Client) -> None:
    """The connection breaks before the COMMIT: the tombstone is laid or the row stays locked until the server has noticed; never a guess."""
    async with deaf_proxy(postgres.url) as (proxy, url), Outbox(client, "orders", postgres.url) as outbox:

        async def never(conn: Any) -> None:
            proxy.cut()
            await conn.commit()

        with pytest.raises(psycopg.OperationalError):
            await _hold(outbox, postgres, url, never)
        assert postgres.count("business") == 0
        assert postgres.read("SELECT verdict FROM halfmsg_tx") in ([], [(2,)])


async def test_r1_lost_answer_in_a_block_of_ours(postgres: Side) -> None:
    """The same in `transaction()`: an error is raised, the rows are there, and the connection is not used again."""
    async with deaf_proxy(postgres.url) as (proxy, url), closing(Outbox(Client("http://127.0.0.1:9"), "orders", url)) as outbox:
        with pytest.raises(psycopg.OperationalError):
            async with outbox.transaction() as tx:
                await postgres.business(tx.conn)
                await tx.publish("s", 1, key="k")
                proxy.loses_answer_of = b"COMMIT"
        assert fate(postgres, "b")[0] == 1
        assert postgres.counts() == (1, 1, 1)
        async with outbox.transaction() as tx:
            await tx.publish("s", 2, key="k")
        assert postgres.last_number() == 2
