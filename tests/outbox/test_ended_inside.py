"""A body that ends its block's transaction, or shares its connection: nothing is committed without its message, nobody is silent (P2, R8)."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from halfmsg import Client, Fenced, Message, Outbox, UsageError
from halfmsg.checkback import Question
from halfmsg.outbox.relay import Relay
from halfmsg.txclient import transaction_digest

from .sides import Side, closing, plain, postgres_side, settled, sqlite_side
from .test_block import block, on_of, owner

__all__ = ["owner"]


async def _ended(side: Side, tx: Any, how: str) -> None:
    await settled(getattr(tx.conn, how)())


async def test_p2_what_a_body_commits_by_itself_has_its_fence(side: Side, owner: str) -> None:
    """A helper that commits, and then an error, or a kill: the business row is there, and its message is sent all the same."""
    async with closing(side.outbox()) as outbox:
        with pytest.raises(ZeroDivisionError):
            async with block(side, outbox, *await on_of(side, owner)) as tx:
                first = await settled(tx.publish("s", "order", key="k"))
                await side.business(tx.conn)
                await _ended(side, tx, "commit")
                raise ZeroDivisionError
        assert side.counts() == (1, 1, 1)
        answers = await outbox.decide([Question(first.transaction_id, 0, None)])
    assert answers[first.transaction_id].numbers == [1]
    assert answers[first.transaction_id].digest == plain_digest("order")


def plain_digest(body: str) -> str:
    return transaction_digest([Message("s", body, key="k").digest()]).hex()


@pytest.mark.parametrize("how", ["commit", "rollback"])
@pytest.mark.parametrize("anew", [False, True], ids=["", "begins anew"])
async def test_r8_block_that_was_ended_inside_says_so(side: Side, owner: str, how: str, anew: bool) -> None:
    """transaction_ended, also where the body has begun another one: that is undone, with its messages."""
    async with closing(side.outbox()) as outbox:
        with pytest.raises(UsageError) as caught:
            async with block(side, outbox, *await on_of(side, owner)) as tx:
                await settled(tx.publish("u", 1))
                await _ended(side, tx, how)
                if anew:
                    await side.begin(tx.conn) if owner == "theirs" else await side.execute(tx.conn, "BEGIN")
                    await side.business(tx.conn)
        assert caught.value.code == "transaction_ended"
        kept = 1 if how == "commit" else 0
        assert side.counts() == (0, kept, kept)
        async with block(side, outbox) as tx:
            await settled(tx.publish("u", 2))


async def test_p2_key_goes_on_behind_a_block_that_was_ended_inside(folder: Path, coordinator: Any, client: Client) -> None:
    """Its number was drawn and committed: without its message all later ones of the key would be held for ever."""
    side = sqlite_side(folder, "sqlite3")
    found: list[Any] = []
    async with Outbox(client, "orders", side.url) as outbox:
        with suppress(ZeroDivisionError), outbox.transaction() as tx:
            tx.publish("s", "first", key="k")
            with tx.conn:  # sqlite3's own: commits
                tx.conn.execute("INSERT INTO business (id) VALUES ('first')")
            raise ZeroDivisionError
        async with asyncio.timeout(20):
            await asyncio.to_thread(_publish, outbox, "second")
            while len(found) < 2:
                batch = await client.fetch("g", wait=5)
                found += [each.json() for each in batch]
                await client.ack(batch)
        outbox._home.close_sync()
    assert found == ["first", "second"]


def _publish(outbox: Outbox, body: str) -> None:
    with outbox.transaction() as tx:
        tx.publish("s", body, key="k")


async def test_r8_fenced_half_that_is_swallowed_inside_a_block_fails_it(side: Side, owner: str) -> None:
    """Neither what was written before it nor after it is committed, also where a savepoint was around it."""
    async with closing(side.outbox()) as outbox:
        half = outbox.prepared(plain("k", 1))
        await outbox.decide([Question(half.id, 0, None)])
        with pytest.raises(Fenced):
            async with block(side, outbox, *await on_of(side, owner)) as tx:
                await side.business(tx.conn, "before")
                await side.execute(tx.conn, "SAVEPOINT a")
                with suppress(Fenced):
                    await settled(half.fence(tx.conn))
                if side.dialect == "postgresql":
                    await side.execute(tx.conn, "ROLLBACK TO SAVEPOINT a")
                await side.business(tx.conn, "after")
        assert side.count("business") == 0


async def test_p2_second_block_on_a_connection_leaves_the_first_alone(side: Side) -> None:
    """Of two tasks that share one connection the later one is refused, and takes nothing of the other's with it."""
    conn = await side.connect(autocommit=True)
    async with closing(side.outbox()) as outbox:

        async def order(n: int) -> None:
            async with block(side, outbox, conn) as tx:
                await side.business(tx.conn, f"order {n}")
                await asyncio.sleep(0)
                await settled(tx.publish("u", n))
                await side.business(tx.conn, f"invoice {n}")

        results = await asyncio.gather(order(1), order(2), return_exceptions=True)
    assert [type(each) for each in results] == [type(None), UsageError]
    assert side.counts() == (2, 1, 1)


async def test_block_on_a_connection_that_is_lost_gives_the_drivers_error(side: Side) -> None:
    """A pool may hand out one that broke: that is worth another try, and must not look like a mistake of the program."""
    conn = await side.connect()
    await settled(conn.close())
    with pytest.raises(Exception) as caught:
        async with block(side, side.outbox(), conn):
            pass
    assert not isinstance(caught.value, UsageError)


async def test_p2_block_that_was_committed_inside_and_handed_over_takes_no_more(side: Side, client: Client) -> None:
    """The relay has marked its fence as sent: what the body publishes after that would be sent by nobody. It is refused, and undone."""
    async with closing(side.outbox()) as outbox:
        relay = await _relay_of(outbox, client)
        with pytest.raises(UsageError) as caught:
            async with block(side, outbox, await side.connect()) as tx:
                await settled(tx.publish("s", "first", key="k"))
                await _ended(side, tx, "commit")
                assert (await relay.tick()).submitted == 1
                await side.begin(tx.conn)
                await side.business(tx.conn)
                with suppress(UsageError):
                    await settled(tx.publish("s", "second", key="k"))
                await _ended(side, tx, "commit")
        assert caught.value.code == "transaction_ended"
        assert side.counts() == (0, 1, 1)
        assert side.last_number() == 1


async def test_p2_block_that_commits_in_pieces_is_handed_over_whole(side: Side, client: Client) -> None:
    """Its body commits once more between the relay's look and its word: what is handed over is what is there when the fence is closed."""
    async with closing(side.outbox()) as outbox:
        relay = await _relay_of(outbox, client)
        with pytest.raises(UsageError, match="transaction_ended"):
            async with block(side, outbox, await side.connect()) as tx:
                await settled(tx.publish("s", "first", key="k"))
                await _ended(side, tx, "commit")
                seen = await relay._next_rows()
                assert [len(row.rows) for row in seen] == [1]
                await side.begin(tx.conn)
                await settled(tx.publish("s", "second", key="k"))
                if side.dialect == "postgresql":
                    assert await relay._closed(seen) == [], "the body is at work on it; the relay waits for nobody"
                await _ended(side, tx, "commit")
        [whole] = await relay._closed(seen)
        assert [each["data"] for each in whole.messages()] == [b'"first"', b'"second"']
        assert (await relay.tick()).submitted == 1
    assert side.read("SELECT count(*) FROM halfmsg_tx WHERE unsent IS NULL") == [(1,)]


async def test_p2_damaged_row_of_a_block_that_was_ended_inside_stops_nobody_else(side: Side, client: Client) -> None:
    """It is set aside by name, like any other that cannot be read; what is behind it goes out, and a check-back answers for the rest."""
    async with closing(side.outbox()) as outbox:
        relay = await _relay_of(outbox, client)
        ids = []
        for _ in range(2):
            with suppress(ZeroDivisionError):
                async with block(side, outbox) as tx:
                    ids.append((await settled(tx.publish("u", 1))).transaction_id)
                    await _ended(side, tx, "commit")
                    raise ZeroDivisionError
        side.read("UPDATE halfmsg_out SET meta = ? WHERE tx_id = ?", b"\xff", bytes.fromhex(ids[0].replace("-", "")))
        answers = await outbox.decide([Question(id, 0, None) for id in ids])
        assert list(answers) == [ids[1]]
        report = await relay.tick()
        assert (report.submitted, report.refused) == (1, 1)
    assert side.read("SELECT refused FROM halfmsg_tx WHERE unsent = 2") == [("unreadable",)]


async def _relay_of(outbox: Outbox, client: Client) -> Relay:
    await outbox._load_source()
    return Relay(client, "orders", outbox._home, outbox._source or b"")


# --- several at once, and those that outlive their block ----------------------------------------------------------------------


async def test_p2_publishes_of_a_block_that_are_gathered_are_one_transaction(database: Side, owner: str) -> None:
    """The first lays the fence, and the others find it: none of them takes it for another's."""
    async with closing(database.outbox()) as outbox, block(database, outbox, *await on_of(database, owner)) as tx:
        await database.business(tx.conn)
        receipts = await asyncio.gather(*(tx.publish("s", n, key="k") for n in range(5)))
    assert sorted(each.sequence for each in receipts) == [1, 2, 3, 4, 5]
    assert database.counts() == (1, 5, 1)


async def test_p1_publish_by_the_connection_of_a_block_does_not_outlive_it(database: Side, owner: str) -> None:
    """`outbox.publish(tx.conn, …)` beside a body that raises, in a task that nobody ends: it would commit by itself, without the business row."""
    async with closing(database.outbox()) as outbox:
        await outbox._load_source()
        left: asyncio.Task[Any] | None = None
        with pytest.raises(ZeroDivisionError):
            async with block(database, outbox, *await on_of(database, owner)) as tx:
                await database.business(tx.conn)
                left = asyncio.ensure_future(outbox.publish(tx.conn, "s", 1, key="k"))
                await asyncio.sleep(0)
                raise ZeroDivisionError
        with pytest.raises(UsageError, match="not_awaited"):
            await left
        assert database.counts() == (0, 0, 0)
        await _writes_go_on(database, outbox)


async def test_r8_publish_by_the_connection_of_a_block_that_is_not_awaited_fails_it(database: Side, owner: str) -> None:
    """As its own publish does; awaited too late it says why, and leaves no transaction open on the connection."""
    async with closing(database.outbox()) as outbox:
        late: Any = None
        with pytest.raises(UsageError, match="not_awaited"):
            async with block(database, outbox, *await on_of(database, owner)) as tx:
                await database.business(tx.conn)
                late = outbox.publish(tx.conn, "s", 1, key="k")
        with pytest.raises(UsageError, match="not_awaited"):
            await late
        assert database.counts() == (0, 0, 0)
        await _writes_go_on(database, outbox)


async def _writes_go_on(side: Side, outbox: Outbox) -> None:
    async with asyncio.timeout(5), block(side, outbox) as tx:
        await settled(tx.publish("u", 1))
    assert side.counts() == (0, 1, 1)


@pytest.mark.parametrize("kind", ["sqlite3", "aiosqlite"])
async def test_r8_error_that_takes_the_whole_transaction_with_it_leaves_nothing_behind_it(folder: Path, owner: str, kind: str) -> None:
    """SQLite may roll back by itself (a full disk, a trigger): what the body writes after a swallowed one must not commit by itself."""
    side = sqlite_side(folder, kind)
    side.read("CREATE TRIGGER full BEFORE INSERT ON halfmsg_out BEGIN SELECT RAISE(ROLLBACK, 'no room'); END")
    async with closing(side.outbox()) as outbox:
        with pytest.raises(sqlite3.IntegrityError, match="no room"):
            async with block(side, outbox, *await on_of(side, owner)) as tx:
                await side.business(tx.conn, "before")
                with suppress(sqlite3.IntegrityError):
                    await settled(tx.publish("u", 1))
                await side.business(tx.conn, "after")
        assert side.counts() == (0, 0, 0)
    await side.close()


async def test_p2_publish_beside_a_fence_that_is_too_late_falls_with_the_block(database: Side, owner: str) -> None:
    """Gathered, on the block's connection: nothing of either runs where no transaction is, whichever comes first."""
    for fence_first in (True, False):
        async with closing(database.outbox()) as outbox:
            half = outbox.prepared(Message("u", 1))
            await outbox.decide([Question(half.id, 0, None)])
            tombstones = database.count("halfmsg_tx")
            told = psycopg.errors.InFailedSqlTransaction if database.dialect == "postgresql" else Fenced  # PostgreSQL holds to it at once
            with pytest.raises(told):
                async with block(database, outbox, *await on_of(database, owner)) as tx:
                    await database.business(tx.conn)
                    calls = [half.fence(tx.conn), tx.publish("s", 1, key="k")]
                    await asyncio.gather(*(calls if fence_first else calls[::-1]), return_exceptions=True)
                    await database.business(tx.conn, "after")
            assert (database.counts(), database.last_number()) == ((0, 0, tombstones), 0)


async def test_r8_publish_that_is_cancelled_in_line_fails_its_block(database: Side, owner: str) -> None:
    """A time-out of its caller, swallowed: that it had not come to its first statement makes no difference."""
    async with closing(database.outbox()) as outbox:
        with pytest.raises(UsageError, match="not_awaited: a publish in this transaction was cancelled"):
            async with block(database, outbox, *await on_of(database, owner)) as tx:
                first = asyncio.ensure_future(tx.publish_many([plain("k", n) for n in range(50)]))
                second = asyncio.ensure_future(tx.publish("s", "second", key="k"))
                await asyncio.sleep(0)
                second.cancel()
                with suppress(asyncio.CancelledError):
                    await second
                await first
        assert database.counts() == (0, 0, 0)


async def test_publish_inside_what_gives_the_messages_of_another_one_does_not_wait_for_itself(side: Side) -> None:
    async with closing(side.outbox()) as outbox:
        async with block(side, outbox) as tx:
            if side.is_async:
                await asyncio.gather(*(tx.publish("u", n) for n in range(2)), tx.publish_many(Message("u", n) for n in range(2)))
            else:
                tx.publish_many(Message("u", tx.publish("u", n).topic) for n in range(2))
        assert side.counts() == (0, 4, 1)


async def test_one_block_object_is_one_block_at_a_time(side: Side) -> None:
    """Entered again inside itself it is refused, and the outer one is whole; after its end it may be used anew."""
    async with closing(side.outbox()) as outbox:
        again = outbox.transaction()

        async def once() -> None:
            if side.is_async:
                async with again as tx:
                    await inside(tx)
            else:
                with again as tx:
                    await inside(tx)

        async def inside(tx: Any) -> None:
            await settled(tx.publish("u", 1))
            with pytest.raises(UsageError, match="already_open"):
                await settled(again.__aenter__() if side.is_async else again.__enter__())

        await once()
        await once()
    assert side.counts() == (0, 2, 2)


@pytest.mark.parametrize("kind", ["psycopg", "psycopg async"])
async def test_block_takes_the_isolation_level_that_its_body_sets(server: str, kind: str) -> None:
    """SET TRANSACTION must be the first statement, and the server refuses it inside a savepoint."""
    side = postgres_side(server, kind)
    async with closing(side.outbox()) as outbox:
        async with block(side, outbox) as tx:
            await side.execute(tx.conn, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            cursor = await settled(tx.conn.execute("SHOW transaction_isolation"))
            assert await settled(cursor.fetchone()) == ("serializable",)
            await settled(tx.publish("u", 1))
        assert side.counts() == (0, 1, 1)
    await side.close()


async def test_which_database_it_is_is_not_waited_for_behind_the_callers_own_lock(server: str) -> None:
    """A migration in the same transaction has our tables locked: an Outbox that is not open asks beside it, and gives up in time."""
    side = postgres_side(server, "psycopg")
    conn = await side.connect()
    conn.execute("LOCK TABLE halfmsg_meta IN ACCESS EXCLUSIVE MODE")
    began = asyncio.get_running_loop().time()
    await asyncio.to_thread(side.outbox().publish, conn, "u", 1)
    assert asyncio.get_running_loop().time() - began < 8
    conn.commit()
    assert side.counts() == (0, 1, 1)
    await side.close()
