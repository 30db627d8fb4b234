"""`transaction()`: its own block, its savepoints, its mistakes; and savepoints around bare calls (R16)."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiosqlite
import psycopg
import pytest

from halfmsg import Client, Message, Outbox, UsageError
from halfmsg.outbox import fence
from halfmsg.txclient import transaction_digest

from .sides import Side, closing, plain, postgres_side, settled, sqlite_side


@asynccontextmanager
async def block(side: Side, outbox: Outbox, *on: Any) -> AsyncIterator[Any]:
    """`with` or `async with`, as the side's colour asks."""
    if side.is_async:
        async with outbox.transaction(*on) as tx:
            yield tx
    else:
        with outbox.transaction(*on) as tx:
            yield tx


@pytest.fixture(params=["own", "theirs"])
def owner(request: pytest.FixtureRequest) -> str:
    """Whose connection the block is on."""
    return str(request.param)


async def on_of(side: Side, owner: str) -> tuple[Any, ...]:
    return () if owner == "own" else (await side.connect(),)


async def test_p2_block_commits_one_transaction(side: Side, owner: str) -> None:
    """Its messages are one halfmsg transaction with one fence row, committed with the caller's rows."""
    async with closing(side.outbox()) as outbox:
        async with block(side, outbox, *await on_of(side, owner)) as tx:
            await side.business(tx.conn)
            first = await settled(tx.publish("s", 1, key="k"))
            [second, third] = await settled(tx.publish_many([plain(), Message("u", 2)]))
        assert side.counts() == (1, 3, 1)
        assert first.transaction_id == third.transaction_id
        assert [each.message_id[-2:] for each in (first, second, third)] == ["-0", "-1", "-2"]


async def test_p1_block_that_raises_leaves_nothing(side: Side, owner: str) -> None:
    """What its body raises comes out as it is, and business row, message and fence are gone; the connection is usable."""
    on = await on_of(side, owner)
    async with closing(side.outbox()) as outbox:
        with pytest.raises(ZeroDivisionError):
            async with block(side, outbox, *on) as tx:
                await side.business(tx.conn)
                await settled(tx.publish("s", 1, key="k"))
                raise ZeroDivisionError
        assert side.counts() == (0, 0, 0)
        async with block(side, outbox, *on) as tx:
            assert (await settled(tx.publish("s", 1, key="k"))).sequence == 1


async def test_r16_block_sends_the_rows_that_survive(side: Side, owner: str) -> None:
    """A savepoint inside takes its message and its number with it: what is left is the transaction, an index is missing, no number is."""
    async with closing(side.outbox()) as outbox:
        async with block(side, outbox, *await on_of(side, owner)) as tx:
            await side.business(tx.conn)
            await settled(tx.publish("s", "first", key="k"))
            await side.execute(tx.conn, "SAVEPOINT a")
            lost = await settled(tx.publish("s", "lost", key="k"))
            await side.execute(tx.conn, "ROLLBACK TO SAVEPOINT a")
            last = await settled(tx.publish("s", "last", key="k"))
        assert (lost.sequence, last.sequence) == (2, 2)
        [row] = await outbox._home.run(fence.read_unsent(outbox._home.tables, 10, 10**6))
        assert [(each["index"], each["sequence"], each["data"]) for each in row.messages()] == [(0, 1, b'"first"'), (2, 2, b'"last"')]
        assert row.digest == transaction_digest([plain(body="first").digest(), plain(body="last").digest()])
        fate = await outbox._home.run(fence.read_fate(outbox._home.tables, row.id))
        assert fate.numbers == (1, None, 2)


async def test_r16_block_with_nothing_left_has_no_fence(side: Side) -> None:
    """Where every message was undone by a savepoint there is nothing to answer for; the caller's rows commit."""
    async with closing(side.outbox()) as outbox, block(side, outbox) as tx:
        await side.business(tx.conn)
        await side.execute(tx.conn, "SAVEPOINT a")
        await settled(tx.publish("s", 1, key="k"))
        await side.execute(tx.conn, "ROLLBACK TO SAVEPOINT a")
    assert side.counts() == (1, 0, 0)


async def test_block_without_messages_commits(side: Side) -> None:
    """A block that publishes nothing is a plain transaction."""
    async with closing(side.outbox()) as outbox, block(side, outbox) as tx:
        await side.business(tx.conn)
    assert side.counts() == (1, 0, 0)


@pytest.mark.parametrize("publishes", [False, True])
async def test_r8_swallowed_error_is_no_commit(side: Side, owner: str, publishes: bool) -> None:
    """An error of a publish that the block's body swallows ends the block: it raises, and what was written after the error falls too."""
    with side.broken_out():
        async with closing(side.outbox()) as outbox:
            with pytest.raises(Exception, match=r"body|transaction is aborted"):
                async with block(side, outbox, *await on_of(side, owner)) as tx:
                    await side.business(tx.conn, "before")
                    for _ in range(1 + publishes):
                        with pytest.raises(Exception, match=r"body|transaction is aborted"):
                            await settled(tx.publish("s", 1, key="k"))
                    if side.dialect == "sqlite":
                        await side.business(tx.conn, "after")
    assert side.counts() == (0, 0, 0)


async def test_swallowed_error_of_the_callers_own_is_no_success(side: Side, owner: str) -> None:
    """PostgreSQL answers the COMMIT of an aborted transaction with a rollback: the block raises, it does not report a success."""
    if side.dialect == "sqlite":
        pytest.skip("SQLite undoes the one statement and goes on")
    async with closing(side.outbox()) as outbox:
        with pytest.raises(Exception, match="swallowed"):
            async with block(side, outbox, *await on_of(side, owner)) as tx:
                await side.business(tx.conn)
                with pytest.raises(Exception, match="division"):
                    await side.execute(tx.conn, "SELECT 1/0")
        assert side.count("business") == 0
        async with block(side, outbox) as tx:
            await side.business(tx.conn)
    assert side.count("business") == 1


@pytest.mark.parametrize("kind", ["sqlite3", "aiosqlite"])
async def test_p7_block_has_the_write_lock_from_its_begin_on_sqlite(folder: Path, kind: str) -> None:
    """A deferred one that read first would fail at its first write as soon as another had committed; and numbers would be drawn late."""
    side = sqlite_side(folder, kind)
    other = sqlite3.connect(side.url.removeprefix("sqlite:///"), isolation_level=None, timeout=0)
    conn = await side.connect(autocommit=True)
    async with block(side, side.outbox(), conn):
        assert _is_refused(other)
    assert not _is_refused(other)
    other.close()
    await side.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="connections have `autocommit` from Python 3.12 on")
@pytest.mark.parametrize("kind", ["sqlite3", "aiosqlite"])
async def test_p2_block_on_a_connection_with_autocommit_commits_and_rolls_back(folder: Path, kind: str) -> None:
    """There commit() and rollback() do nothing: the block would end well and be lost, or fail and be committed with what comes next."""
    side = sqlite_side(folder, kind)
    path = side.url.removeprefix("sqlite:///")
    opened: Any = sqlite3.connect(path, autocommit=True) if kind == "sqlite3" else aiosqlite.connect(path, autocommit=True)  # type: ignore[call-arg]
    conn = await settled(opened)
    outbox = side.outbox()
    try:
        async with block(side, outbox, conn) as tx:
            await side.business(tx.conn, "kept")
            await settled(tx.publish("u", 1))
        assert not conn.in_transaction
        with pytest.raises(ZeroDivisionError):
            async with block(side, outbox, conn) as tx:
                await side.business(tx.conn, "undone")
                await settled(tx.publish("u", 2))
                raise ZeroDivisionError
        assert not conn.in_transaction
    finally:
        await settled(conn.close())
    assert side.counts() == (1, 1, 1)


def _is_refused(conn: sqlite3.Connection) -> bool:
    try:
        conn.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        return "locked" in str(error)
    conn.execute("ROLLBACK")
    return False


async def test_block_gives_the_callers_connection_back_clean(side: Side) -> None:
    """After a block that failed in its end the caller's connection has no transaction open."""
    conn = await side.connect()
    async with closing(side.outbox()) as outbox:
        with pytest.raises(ZeroDivisionError):
            async with block(side, outbox, conn) as tx:
                await side.business(tx.conn)
                await settled(tx.publish("s", 1, key="k"))
                raise ZeroDivisionError
        await side.business(conn, "next")
        await side.commit(conn)
    assert side.counts() == (1, 0, 0)


async def test_not_awaited_publish_rolls_the_block_back(database: Side, owner: str) -> None:
    """A publish without await would be lost: the block raises not_awaited, nothing is committed, and the connection is usable."""
    on = await on_of(database, owner)
    async with closing(database.outbox()) as outbox:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # Python's own word on the same mistake
            with pytest.raises(UsageError) as caught:
                async with outbox.transaction(*on) as tx:
                    await database.business(tx.conn)
                    tx.publish("s", 1, key="k")
            del tx
            gc.collect()
        assert caught.value.code == "not_awaited"
        assert database.counts() == (0, 0, 0)
        async with outbox.transaction(*on) as again:
            await database.business(again.conn)
    assert database.counts() == (1, 0, 0)


async def test_r16_publish_that_is_begun_and_not_awaited_rolls_the_block_back(database: Side, owner: str) -> None:
    """Its rows would miss the fence, or come after the commit: nothing is committed, and what is left of it writes nothing later."""
    on = await on_of(database, owner)
    async with closing(database.outbox()) as outbox:
        with pytest.raises(UsageError) as caught:
            async with outbox.transaction(*on) as tx:
                await database.business(tx.conn)
                begun = asyncio.create_task(tx.publish("s", 1, key="k"))
                await asyncio.sleep(0)
        await asyncio.wait({begun})
        assert caught.value.code == "not_awaited"
        assert begun.exception() is not None
        for conn in on:
            await database.commit(conn)
    assert database.counts() == (0, 0, 0)
    assert database.last_number() == 0


async def test_wrong_colour_names_the_other_block(side: Side) -> None:
    """A sync connection in `async with`, or the other way round, is refused, and the text has the right one."""
    conn = await side.connect()
    with pytest.raises(UsageError) as caught:
        if side.is_async:
            with side.outbox().transaction(conn):
                pass
        else:
            async with side.outbox().transaction(conn):
                pass
    assert caught.value.code == "wrong_colour"
    assert ("`async with" in str(caught.value)) is side.is_async


async def test_block_inside_a_transaction_is_refused(side: Side) -> None:
    """A block opens its own transaction: on a connection that has one open it points to publish, and leaves that one alone."""
    conn = await side.connect()
    await side.begin(conn)
    await side.business(conn)
    with pytest.raises(UsageError) as caught:
        async with block(side, side.outbox(), conn):
            pass
    await side.commit(conn)
    assert (caught.value.code, side.counts()) == ("already_in_transaction", (1, 0, 0))


# --- savepoints around bare calls ---


async def test_r16_savepoint_undoes_a_publish_whole(side: Side) -> None:
    """publish inside a savepoint that is rolled back: row, number and fence go together; the next publish draws the same number."""
    conn, outbox = await side.connect(), side.outbox()
    await side.begin(conn)
    await side.business(conn)
    await side.execute(conn, "SAVEPOINT a")
    lost = await settled(outbox.publish(conn, "s", 1, key="k"))
    await side.execute(conn, "ROLLBACK TO SAVEPOINT a")
    kept = await settled(outbox.publish(conn, "s", 2, key="k"))
    await side.commit(conn)
    assert (lost.sequence, kept.sequence, side.counts()) == (1, 1, (1, 1, 1))
    assert (side.verdict(lost.transaction_id), side.verdict(kept.transaction_id)) == (None, 1)


@pytest.mark.parametrize("kept", [False, True])
async def test_r16_fence_inside_a_savepoint_has_its_fate(side: Side, kept: bool) -> None:
    """The fence of a prepared one inside a savepoint is there if, and only if, the savepoint is."""
    conn = await side.connect()
    half = side.outbox().prepared(plain(), id=str(uuid4()))
    await side.begin(conn)
    await side.business(conn)
    await side.execute(conn, "SAVEPOINT a")
    await settled(half.fence(conn))
    await side.execute(conn, "RELEASE SAVEPOINT a" if kept else "ROLLBACK TO SAVEPOINT a")
    await side.commit(conn)
    assert side.counts() == ((1, 1, 1) if kept else (1, 0, 0))


# --- numbers ---


async def test_p7_numbers_are_gapless_after_rollbacks(side: Side) -> None:
    """A number drawn in a transaction that rolls back is drawn again: what commits is 1, 2, 3, in the order of the commits."""
    drawn = []
    for index, commits in enumerate([True, False, False, True, False, True]):
        conn = await side.connect()
        await side.begin(conn)
        drawn.append((await settled(side.outbox().publish(conn, "s", index, key="k"))).sequence)
        await (side.commit(conn) if commits else side.rollback(conn))
    assert drawn == [1, 2, 2, 2, 3, 3]
    assert side.last_number() == 3


async def test_p7_second_drawer_waits_for_the_first(side: Side) -> None:
    """Two transactions on one key: the second gets its number only when the first has committed, so numbers are in commit order."""
    first, second = await side.connect(), await side.connect()
    await side.begin(first)
    await settled(side.outbox().publish(first, "s", "first", key="k"))

    async def other() -> Any:
        if side.dialect == "postgresql":
            return await side.in_thread(lambda: side.outbox().publish(second, "s", "second", key="k"))
        await side.in_thread(lambda: side.begin(second)) if side.is_async else await side.in_thread(lambda: second.execute("BEGIN IMMEDIATE"))
        return await side.in_thread(lambda: side.outbox().publish(second, "s", "second", key="k"))

    task = asyncio.create_task(other())
    if side.dialect == "postgresql":
        async with asyncio.timeout(10):
            while not await asyncio.to_thread(side.read, "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%_seq %'"):
                assert not task.done()
    await side.commit(first)
    assert (await task).sequence == 2
    await side.commit(second)
    assert side.read("SELECT seq FROM halfmsg_out ORDER BY seq") == [(1,), (2,)]


async def test_r21_keys_are_drawn_in_sorted_order(side: Side) -> None:
    """publish_many gives each key's numbers in the order of the messages, whatever order the keys come in."""
    messages = [plain("b", 1), plain("a", 2), plain("b", 3), plain("a", 4)]
    conn = await side.connect()
    await side.begin(conn)
    receipts = await settled(side.outbox().publish_many(conn, messages))
    await side.commit(conn)
    assert [(each.key, each.sequence) for each in receipts] == [("b", 1), ("a", 1), ("b", 2), ("a", 2)]


def test_p9_block_is_too_large_before_its_commit(tmp_path: Path) -> None:
    """What the coordinator would refuse for its size raises in the block, however many publishes it came by: nothing is committed."""
    outbox = Outbox(Client("http://127.0.0.1:1"), "orders", f"sqlite:///{tmp_path}/orders.db")
    with pytest.raises(UsageError, match="too_large"), outbox.transaction() as tx:
        for _ in range(5):
            tx.publish("big", b"x" * 1_000_000)
    with outbox.transaction() as tx:
        assert tx.conn.execute("SELECT count(*) FROM halfmsg_out").fetchone() == (0,)
    outbox._home.close_sync()


async def test_p2_search_path_set_inside_a_block_is_refused_at_its_end(server: str) -> None:
    """The messages stand in one schema's tables and the fence would be laid in another's: nothing would be left to send."""
    side, tenant = postgres_side(server, "psycopg"), postgres_side(server, "psycopg")
    outbox, schema = side.outbox(), tenant.read("SELECT current_schema()")[0][0]
    with pytest.raises(UsageError) as caught, outbox.transaction() as tx:
        await side.business(tx.conn)
        tx.publish("s", 1, key="k")
        tx.conn.execute(f"SET search_path TO {schema}")
    outbox._home.close_sync()
    assert caught.value.code == "other_database"
    assert side.counts() == tenant.counts() == (0, 0, 0)
    await side.close()
    await tenant.close()


@pytest.mark.parametrize("autocommit", [True, False])
async def test_block_keeps_the_isolation_that_the_connection_was_given(server: str, autocommit: bool) -> None:
    """SERIALIZABLE was chosen for a reason: a block on that connection is not quietly READ COMMITTED."""
    side = postgres_side(server, "psycopg")
    conn = await side.connect(autocommit=autocommit)
    conn.isolation_level, conn.deferrable = psycopg.IsolationLevel.SERIALIZABLE, True
    with side.outbox().transaction(conn) as tx:
        tx.publish("u", 1)
        assert conn.execute("SELECT current_setting('transaction_isolation'), current_setting('transaction_deferrable')").fetchone() == (
            "serializable", "on",
        )  # fmt: skip
    assert side.counts() == (0, 1, 1)
    await side.close()
