"""Connections that callers share, that are lent again, or lost before a block has ended."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

import psycopg
import pytest

from halfmsg import Client, Outbox, UsageError
from halfmsg.outbox.adapters import psycopg as adapter_of_psycopg
from halfmsg.outbox.lent import lent_on

from .faults import cancel_at, deaf_proxy
from .sides import Side, closing, postgres_side, settled, sqlite_side
from .test_block import block


@pytest.mark.parametrize("autocommit", [True, False])
def test_p2_threads_that_share_a_connection_begin_one_after_the_other(server: str, autocommit: bool) -> None:
    """Whoever is refused tries again: no block ends in another one's transaction, or ends it."""
    side = postgres_side(server, "psycopg")
    outbox = side.outbox()
    conn = psycopg.connect(side.url, autocommit=autocommit)
    done: list[int] = []
    before = sys.getswitchinterval()

    def work(name: int) -> None:
        for number in range(30):
            for _ in range(20_000):
                try:
                    with outbox.transaction(conn) as tx:
                        tx.conn.execute("INSERT INTO business (id) VALUES (%s)", (f"{name}-{number}",))
                        tx.publish("u", number)
                except UsageError as error:
                    assert error.code == "already_in_transaction"
                else:
                    done.append(name)
                    break

    threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(before)
    conn.close()
    assert done
    assert side.counts() == (len(done),) * 3


async def test_p9_connections_that_were_lent_are_used_again(folder: Path) -> None:
    """One connection, and one thread, for one block after the other; set back to what it was."""
    for kind in ("sqlite3", "aiosqlite"):
        side = sqlite_side(folder, kind)
        async with closing(side.outbox()) as outbox:
            seen = []
            for _ in range(4):
                async with block(side, outbox) as tx:
                    assert tx.conn.isolation_level is None
                    seen.append(tx.conn)
                    await settled(tx.publish("u", 1))
                    tx.conn.isolation_level = "DEFERRED"
            assert all(conn is seen[0] for conn in seen)
        await side.close()


async def test_p9_block_that_is_cancelled_at_a_silent_server_ends(postgres: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for its rollback; a server that says nothing after that is hung up on, or the process would never come to stop."""
    monkeypatch.setattr(adapter_of_psycopg, "SILENT_S", 0.1)
    async with deaf_proxy(postgres.url) as (proxy, url), closing(Outbox(Client(), "orders", postgres.url)) as outbox:
        conn = await psycopg.AsyncConnection.connect(url)
        silent = asyncio.Event()

        async def order() -> None:
            async with outbox.transaction(conn) as tx:
                await postgres.business(tx.conn)
                proxy.fall_silent()
                silent.set()
                raise ZeroDivisionError

        ordering = asyncio.ensure_future(order())
        await silent.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        ordering.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait({ordering})
        assert ordering.cancelled()
        assert conn.closed
        assert lent_on(conn) is None
    assert postgres.counts() == (0, 0, 0)


async def test_error_of_a_body_that_closes_its_connection_comes_out(side: Side) -> None:
    async with closing(side.outbox()) as outbox:
        conn = await side.connect()
        with pytest.raises(ZeroDivisionError):
            async with block(side, outbox, conn) as tx:
                await settled(tx.conn.close())
                raise ZeroDivisionError


async def test_p9_connection_is_free_after_a_block_that_was_cancelled_at_any_moment_of_its_end(postgres: Side) -> None:
    """Also in the ROLLBACK itself: the next block, and a bare publish, find it as it was."""
    conn = await postgres.connect(autocommit=True)
    async with closing(postgres.outbox()) as outbox:
        outbox.learn_source()

        async def order() -> None:
            async with outbox.transaction(conn) as tx:
                await tx.conn.execute("SELECT 1/0")

        for k in range(1, 40):
            reached, _ = await cancel_at(order(), k)
            if conn.closed:  # psycopg may close what it could not cancel in time
                conn = await postgres.connect(autocommit=True)
            assert lent_on(conn) is None, k
            async with outbox.transaction(conn) as tx:
                await tx.publish("u", k)
            if not reached:
                break
    assert postgres.counts() == (0, k, k)
    assert k > 3
