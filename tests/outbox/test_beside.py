"""What runs beside a publish on its connection, and fails: the message is there whole or not at all, and shares the transaction's fate (P1, R8).

People gather a publish with a call that may fail. The transaction is then rolled back under the publish, at whatever statement it is; what
is left of it must not commit by itself, nor in what comes after on that connection.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiosqlite
import psycopg
import pytest

from halfmsg import Client, Delivery, Fenced, Message, Outbox, Retry, UsageError
from halfmsg.checkback import Question
from halfmsg.outbox import admin
from halfmsg.outbox.relay import Relay

from .deliveries import effect, inbox_of, ordered, side_insert, unordered
from .sides import Side, closing, plain, postgres_side, settled, sqlite_side
from .test_block import block, on_of, owner

__all__ = ["owner"]

TURNS = range(0, 48, 2)
"""How many turns of the loop the other call takes before it fails: a publish has about forty on PostgreSQL, and two on SQLite."""


async def charge(turns: int) -> None:
    """The other call: it is refused after so many turns of the loop."""
    for _ in range(turns):
        await asyncio.sleep(0)
    raise ZeroDivisionError("card refused")


@asynccontextmanager
async def own_transaction(side: Side, conn: Any) -> AsyncIterator[None]:
    """As a service writes it."""
    if side.dialect == "postgresql":
        async with conn.transaction():
            yield
        return
    await conn.execute("BEGIN IMMEDIATE")
    try:
        yield
        await conn.commit()
    except BaseException:
        await conn.rollback()
        raise


@pytest.mark.parametrize("autocommit", [True, False])
async def test_p1_publish_beside_a_call_that_fails_falls_with_ones_own_transaction(database: Side, autocommit: bool) -> None:
    async with closing(database.outbox()) as outbox:
        outbox.learn_source()
        conn = await database.connect(autocommit=autocommit)
        for turns in TURNS:
            with pytest.raises(ZeroDivisionError):
                async with own_transaction(database, conn):
                    await database.business(conn)
                    late = asyncio.ensure_future(outbox.publish(conn, "s", 1, key="k"))
                    await asyncio.gather(late, charge(turns))
            await asyncio.gather(late, return_exceptions=True)
            await conn.rollback()  # without autocommit a late statement begins a transaction, which is aborted
            assert (database.counts(), database.last_number()) == ((0, 0, 0), 0), turns


async def test_p1_publish_beside_a_fence_that_is_too_late_falls_with_ones_own_transaction(database: Side) -> None:
    async with closing(database.outbox()) as outbox:
        conn = await database.connect(autocommit=True)
        for fence_first in (True, False):
            half = outbox.prepared(Message("u", 1))
            await outbox.decide([Question(half.id, 0, None)])
            tombstones = database.count("halfmsg_tx")
            with pytest.raises(Fenced):
                async with own_transaction(database, conn):
                    await database.business(conn)
                    calls = [half.fence(conn), outbox.publish(conn, "s", 1, key="k")]
                    await asyncio.gather(*(calls if fence_first else calls[::-1]))
            assert (database.counts(), database.last_number()) == ((0, 0, tombstones), 0)


async def test_p1_publish_beside_a_call_that_fails_falls_with_its_handler(database: Side) -> None:
    """Delivered again, there is one message, not two."""
    async with closing(database.outbox()) as outbox, inbox_of(database) as inbox:
        outbox.learn_source()
        for number, turns in enumerate(TURNS, 1):

            async def handler(delivery: Delivery, conn: Any, turns: int = turns) -> None:
                await asyncio.gather(outbox.publish(conn, "s", 1, key="k"), charge(turns))

            async def good(delivery: Delivery, conn: Any) -> None:
                await outbox.publish(conn, "s", 1, key="k")

            delivery = ordered(number)
            with pytest.raises(ZeroDivisionError):
                await inbox.run(delivery, handler)
            await inbox.run(delivery, good)
            assert (database.counts(), database.last_number()) == ((0, number, number), number), turns


async def test_p1_publish_that_outlives_its_handler_fails_it(database: Side) -> None:
    """A task that nobody awaits: it would go into the next handler's transaction, on the same connection."""
    left: list[asyncio.Task[Any]] = []
    async with closing(database.outbox()) as outbox, inbox_of(database) as inbox:

        async def handler(delivery: Delivery, conn: Any) -> None:
            await side_insert(database, conn, delivery.id)
            left.append(asyncio.ensure_future(outbox.publish(conn, "s", 1, key="k")))

        with pytest.raises(UsageError, match="not_awaited"):
            await inbox.run(unordered(), handler)
        await inbox.run(unordered(), effect(database))
        with pytest.raises(UsageError, match="not_awaited"):
            await left[0]
    assert database.counts() == (1, 0, 0)


async def test_r8_publish_that_fails_in_a_handler_fails_it(side: Side) -> None:
    """Swallowed, it is told at the handler's end; what the handler writes after it falls with all the rest, and comes once when delivered again."""
    delivery = ordered(1)
    async with closing(side.outbox()) as outbox, inbox_of(side) as inbox:

        async def colourful(delivery: Delivery, conn: Any) -> None:
            with suppress(Exception):
                await outbox.publish(conn, "s", 1, key="k")
            await side_insert(side, conn, "after")

        def blocking(delivery: Delivery, conn: Any) -> None:
            with suppress(Exception):
                outbox.publish(conn, "s", 1, key="k")
            side_insert(side, conn, "after")

        handler = colourful if side.is_async else blocking
        with side.broken_out(), pytest.raises(Exception, match=r"body|aborted"):
            await inbox.run(delivery, handler)
        assert side.counts() == (0, 0, 0)
        await inbox.run(delivery, handler)
    assert side.counts() == (1, 1, 1)


async def test_p7_rows_shaped_by_the_caller_open_no_gap(file: Side, owner: str) -> None:
    """With a row factory aiosqlite takes four turns a statement; a block that ends between them must take the statement with it."""
    async with closing(file.outbox()) as outbox:
        for turns in range(40):
            on = await on_of(file, owner)
            with pytest.raises(ZeroDivisionError):
                async with outbox.transaction(*on) as tx:
                    tx.conn.row_factory = aiosqlite.Row
                    await file.business(tx.conn)
                    late = asyncio.ensure_future(tx.publish("s", 1, key="k"))
                    beside = asyncio.ensure_future(tx.conn.execute_fetchall("SELECT 1"))
                    await asyncio.gather(late, beside, charge(turns))
            await asyncio.gather(late, beside, return_exceptions=True)
            assert not on or not on[0].in_transaction
            assert (file.counts(), file.last_number()) == ((0, 0, 0), 0), turns


@pytest.mark.parametrize("autocommit", [True, False])
async def test_p6_block_that_is_cancelled_while_it_rolls_back_leaves_nothing_open(postgres: Side, autocommit: bool) -> None:
    """The rollback waits behind a statement of the body. What the caller commits next on the connection must not be the failed block too."""
    conn = await postgres.connect(autocommit=autocommit)
    async with closing(postgres.outbox()) as outbox:
        failed = asyncio.Event()

        async def refused() -> None:
            await asyncio.sleep(0)
            failed.set()
            raise ZeroDivisionError

        async def order() -> None:
            async with outbox.transaction(conn) as tx:
                await postgres.business(tx.conn)
                await tx.publish("s", 1, key="k")
                await asyncio.gather(tx.conn.execute("SELECT pg_sleep(0.3)"), refused())

        ordering = asyncio.ensure_future(order())
        await failed.wait()
        for _ in range(5):  # the block is at its rollback by now
            await asyncio.sleep(0)
        ordering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ordering
        async with outbox.transaction(conn) as tx:
            await postgres.business(tx.conn, "next")
        assert postgres.counts() == (1, 0, 0)
        assert postgres.read("SELECT id FROM business") == [("next",)]


async def test_r8_claim_that_fails_in_a_block_fails_it(side: Side, owner: str) -> None:
    """`Inbox.claim` on the connection of a block: swallowed, it leaves no business row without its message."""
    old = unordered(age=1e9)
    async with closing(side.outbox()) as outbox, inbox_of(side) as inbox:
        told = psycopg.errors.InFailedSqlTransaction if side.dialect == "postgresql" else Retry
        with pytest.raises(told, match="aborted" if told is not Retry else "beyond_inbox"):
            async with block(side, outbox, *await on_of(side, owner)) as tx:
                await settled(tx.publish("s", 1, key="k"))
                with suppress(Retry):
                    await settled(inbox.claim(tx.conn, old))
                await side.business(tx.conn)
        assert (side.counts(), side.last_number()) == ((0, 0, 0), 0)
        async with block(side, outbox, *await on_of(side, owner)) as tx:
            assert await settled(inbox.claim(tx.conn, unordered()))
            await side.business(tx.conn)
        assert (side.counts(), side.count("halfmsg_inbox")) == ((1, 0, 0), 1)


async def test_r8_fence_that_is_too_late_cannot_be_swallowed_and_committed(postgres: Side, owner: str) -> None:
    """A body that ends transactions by itself, too: the server holds to what was ruled."""
    async with closing(postgres.outbox()) as outbox:
        half = outbox.prepared(Message("u", 1))
        await outbox.decide([Question(half.id, 0, None)])
        with pytest.raises(Fenced):
            async with block(postgres, outbox, *await on_of(postgres, owner)) as tx:
                await postgres.business(tx.conn)
                with suppress(Fenced):
                    await half.fence(tx.conn)
                await tx.conn.commit()
        assert postgres.counts() == (0, 0, 1)


def test_p7_publish_in_a_thread_that_nobody_joins_is_whole_or_nothing(folder: Path) -> None:
    """A sync block that ends while another thread is in the midst of its rows waits for that, and falls."""
    side = sqlite_side(folder, "sqlite3")
    outbox = side.outbox()
    raised: list[BaseException] = []
    begun = threading.Event()
    with pytest.raises(UsageError, match="not_awaited"), outbox.transaction() as tx:

        def at_a_row() -> int:
            begun.set()
            ended = threading.Event()
            for _ in range(500):
                if tx._ended:
                    break
                ended.wait(0.01)
            return 1

        def publish() -> None:
            try:
                tx.publish_many([plain() for _ in range(3)])
            except BaseException as error:
                raised.append(error)

        tx.conn.create_function("at_a_row", 0, at_a_row)
        tx.conn.execute("CREATE TEMP TRIGGER slow BEFORE INSERT ON main.halfmsg_out BEGIN SELECT at_a_row(); END")
        thread = threading.Thread(target=publish)
        thread.start()
        assert begun.wait(5)
    thread.join(5)
    outbox._home.close_sync()
    assert [getattr(error, "code", None) for error in raised] == ["not_awaited"]
    assert (side.counts(), side.last_number()) == ((0, 0, 0), 0)


async def test_p8_damaged_topic_of_a_row_stops_nobody_else(file: Side, client: Client) -> None:
    """A byte that is no UTF-8, a body that is no blob: set aside by name, and what is behind it goes out."""
    async with closing(file.outbox()) as outbox:
        ids = []
        for _ in range(3):
            async with outbox.transaction() as tx:
                ids.append(bytes.fromhex((await tx.publish("u", 1)).transaction_id.replace("-", "")))
        file.read("UPDATE halfmsg_out SET topic = CAST(? AS TEXT) WHERE tx_id = ?", b"\xf3", ids[0])
        file.read("UPDATE halfmsg_out SET body = 'text' WHERE tx_id = ?", ids[1])
        await outbox._load_source()
        assert [each.topic for each in admin.waiting(file.url)] == ["", "u", "u"], "the operator's list shows the others"
        report = await Relay(client, "orders", outbox._home, outbox._source or b"").tick()
        assert (report.submitted, report.refused) == (1, 2)
    assert file.read("SELECT id FROM halfmsg_tx WHERE unsent IS NULL") == [(ids[2],)]


async def test_p2_what_user_code_sets_on_a_connection_of_ours_ends_with_its_use(folder: Path) -> None:
    """A temporary table, a file that is attached, another durability: the next block has a connection as it was."""
    for kind in ("sqlite3", "aiosqlite"):
        side = sqlite_side(folder, kind)
        async with closing(side.outbox()) as outbox:
            for setting in ("CREATE TEMP TABLE picked (id)", "CREATE TEMP TABLE picked (id)", "PRAGMA query_only = 1", "PRAGMA synchronous = OFF"):
                with suppress(Exception):
                    async with block(side, outbox) as tx:
                        await settled(tx.conn.execute(setting))
                async with block(side, outbox) as tx:
                    found = [await settled((await settled(tx.conn.execute(f"PRAGMA {name}"))).fetchone()) for name in ("synchronous", "query_only")]
                    assert found == [(2,), (0,)], setting
        await side.close()


# --- claims, and publishes that nobody awaits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unordered", "ordered"])
async def test_p2_claim_beside_a_call_that_fails_falls_with_ones_own_transaction(database: Side, kind: str) -> None:
    """A claim that stood by itself would make its repeat a duplicate: acked, and never done."""
    conn = await database.connect(autocommit=True)
    async with inbox_of(database) as inbox:
        for turns in TURNS:
            delivery = unordered() if kind == "unordered" else ordered(1)
            with pytest.raises(ZeroDivisionError):
                async with own_transaction(database, conn):
                    late = asyncio.ensure_future(inbox.claim(conn, delivery))
                    await asyncio.gather(late, charge(turns))
            await asyncio.gather(late, return_exceptions=True)
            assert (database.count("halfmsg_inbox"), database.count("halfmsg_key")) == (0, 0), turns
            async with own_transaction(database, conn):
                assert await inbox.claim(conn, delivery)
            database.read("DELETE FROM halfmsg_inbox")
            database.read("DELETE FROM halfmsg_key")


@pytest.mark.parametrize("autocommit", [True, False])
async def test_p2_publish_that_its_own_commit_overtakes_is_whole(database: Side, autocommit: bool) -> None:
    """A task that nobody awaits, and the transaction commits under it: all of its messages are there, or it says why none is."""
    async with closing(database.outbox()) as outbox:
        outbox.learn_source()
        conn = await database.connect(autocommit=autocommit)
        for turns in TURNS:
            async with own_transaction(database, conn):
                late = [asyncio.ensure_future(outbox.publish_many(conn, [plain() for _ in range(3)]))]
                for _ in range(turns):
                    await asyncio.sleep(0)
            await asyncio.gather(*late, return_exceptions=True)
            _, rows, fences = database.counts()
            assert rows == 3 * fences == database.last_number(), turns


async def test_r8_timeout_while_an_outbox_learns_its_database_ends_the_transaction(postgres: Side) -> None:
    """The first publish of one that was never opened asks the database behind its URL, which says nothing: swallowed, the commit is none."""
    conn = await postgres.connect()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        outbox = Outbox(Client(), "orders", f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/none")
        await postgres.business(conn)
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await outbox.publish(conn, "s", 1, key="k")
        await conn.commit()
    assert postgres.counts() == (0, 0, 0)


# --- savepoints, and what comes after --------------------------------------------------------------------------------------


@asynccontextmanager
async def savepoint(side: Side, conn: Any) -> AsyncIterator[None]:
    if side.dialect == "postgresql":
        async with conn.transaction():
            yield
        return
    await conn.execute("SAVEPOINT audit")
    try:
        yield
    except BaseException:
        await conn.execute("ROLLBACK TO audit")
        raise
    finally:
        await conn.execute("RELEASE audit")


async def audit(side: Side, conn: Any, turns: int) -> None:
    """Another call on the same connection: its savepoint is rolled back, and the transaction goes on."""
    for _ in range(turns):
        await asyncio.sleep(0)
    with suppress(ZeroDivisionError):
        async with savepoint(side, conn):
            await charge(3)


async def test_p1_publish_beside_a_savepoint_that_is_rolled_back_is_whole(database: Side) -> None:
    """It lies before the savepoint, behind it, or goes with it: never a fence without its rows, or a number drawn twice."""
    async with closing(database.outbox()) as outbox:
        outbox.learn_source()
        conn = await database.connect(autocommit=True)
        for times, turns in enumerate(TURNS, 1):
            async with own_transaction(database, conn):
                await database.business(conn, f"b{times}")
                await asyncio.gather(outbox.publish_many(conn, [plain() for _ in range(3)]), audit(database, conn, turns))
            business, rows, fences = database.counts()
            assert (business, rows, database.last_number()) == (times, 3 * fences, 3 * fences), turns


async def test_p2_claim_beside_a_savepoint_that_is_rolled_back_is_whole(database: Side) -> None:
    conn = await database.connect(autocommit=True)
    async with inbox_of(database) as inbox:
        for turns in TURNS:
            async with own_transaction(database, conn):
                await asyncio.gather(inbox.claim(conn, ordered(4, missed=[2, 3])), audit(database, conn, turns))
            keys, missed = database.read("SELECT last FROM halfmsg_key"), database.count("halfmsg_missed")
            assert (keys, missed) in (([(4,)], 2), ([], 0)), turns
            database.read("DELETE FROM halfmsg_key")
            database.read("DELETE FROM halfmsg_missed")


def test_p1_publish_in_a_thread_beside_savepoints_of_another_is_whole(server: str) -> None:
    side = postgres_side(server, "psycopg")
    outbox = side.outbox()
    outbox.learn_source()
    conn = psycopg.connect(side.url, autocommit=True)
    try:
        for _ in range(5):
            with conn.transaction():
                thread = threading.Thread(target=outbox.publish_many, args=(conn, [plain() for _ in range(50)]))
                thread.start()
                while thread.is_alive():
                    with suppress(ZeroDivisionError), conn.transaction():
                        raise ZeroDivisionError
                thread.join()
            _, rows, fences = side.counts()
            assert rows == 50 * fences == side.last_number()
    finally:
        conn.close()
        outbox._home.close_sync()


@pytest.mark.parametrize("autocommit", [True, False])
async def test_p1_publish_that_learns_its_database_goes_into_no_later_transaction(database: Side, autocommit: bool) -> None:
    """The first publish of an outbox asks the database behind its URL, and the call beside it fails meanwhile: the caller tries again."""
    async with closing(database.outbox()) as outbox:
        conn = await database.connect(autocommit=autocommit)
        late: list[asyncio.Future[Any]] = []
        for fails in (True, True, False):
            with suppress(ZeroDivisionError):
                async with own_transaction(database, conn):
                    await database.business(conn)
                    late.append(asyncio.ensure_future(outbox.publish(conn, "s", 1, key="k")))
                    await asyncio.gather(late[-1], *([charge(1)] if fails else []))
        await asyncio.gather(*late, return_exceptions=True)
        await conn.commit()
    assert (database.counts(), database.last_number()) == ((1, 1, 1), 1)


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_p1_publish_that_the_end_of_its_transaction_overtakes_begins_none(database: Side, ends: str) -> None:
    """Without autocommit: its task has not begun when the end is said, and the caller goes on with the next one."""
    async with closing(database.outbox()) as outbox:
        outbox.learn_source()
        conn = await database.connect()
        await database.business(conn, "one")
        late = asyncio.ensure_future(outbox.publish(conn, "s", 1, key="k"))
        await (conn.commit() if ends == "commit" else conn.rollback())
        await database.business(conn, "two")
        await conn.commit()
        with pytest.raises(UsageError, match="not_in_transaction"):
            await late
        await conn.commit()
    assert (database.counts(), database.last_number()) == ((2 if ends == "commit" else 1, 0, 0), 0)


async def test_p1_publish_beside_the_statement_that_begins_falls_with_it(database: Side) -> None:
    """Without autocommit: none is open yet when all three are called."""
    async with closing(database.outbox()) as outbox:
        conn = await database.connect()
        calls = [asyncio.ensure_future(call) for call in (database.business(conn), outbox.publish(conn, "s", 1, key="k"), charge(1))]
        with pytest.raises(ZeroDivisionError):
            await asyncio.gather(*calls)
        await conn.rollback()
        await asyncio.gather(*calls, return_exceptions=True)
        await database.business(conn, "next")
        await conn.commit()
    assert (database.counts(), database.last_number()) == ((1, 0, 0), 0)
