"""A body that ends its block's transaction, or shares its connection: nothing is committed without its message, nobody is silent (P2, R8)."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from halfmsg import Client, Fenced, Message, Outbox, UsageError
from halfmsg.checkback import Question
from halfmsg.txclient import transaction_digest

from .sides import Side, closing, plain, settled, sqlite_side
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
