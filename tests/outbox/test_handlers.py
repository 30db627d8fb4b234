"""The inbox runs a handler: claim, effect and its end are one transaction, whatever the handler does (R6, P2, P6, P7)."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from halfmsg import Client, Consumer, Delivery, Inbox, Outbox, Reject, Retry, UsageError
from halfmsg.txclient._internal import NotBegun
from tests.support.serving import eventually

from .deliveries import effect, handler_of, inbox_of, last, ordered, side_insert, unordered
from .sides import Side, postgres_side, sqlite_side


async def test_p6_run_is_one_commit(side: Side) -> None:
    """Claim and effect commit together; a duplicate returns without running the handler."""
    async with inbox_of(side) as inbox:
        for delivery in (unordered(), ordered(1)):
            for _ in range(2):
                await inbox.run(delivery, effect(side))
    assert side.count("business") == 2


@pytest.mark.parametrize("raised", [Reject("no"), Retry("later"), ZeroDivisionError()])
async def test_p6_handler_that_raises_undoes_everything(side: Side, raised: Exception) -> None:
    """What the handler raises comes out as it is; effect and claim are undone, and the next delivery runs."""

    def work(delivery: Delivery, conn: Any) -> Any:
        done = side_insert(side, conn, delivery.id)
        return _then_raise(done, raised) if side.is_async else _raise(raised)

    delivery = ordered(1)
    async with inbox_of(side) as inbox:
        with pytest.raises(type(raised)) as caught:
            await inbox.run(delivery, handler_of(side, work))
        assert caught.value is raised
        assert (side.count("business"), last(side)) == (0, 0)
        await inbox.run(delivery, effect(side))
    assert (side.count("business"), last(side)) == (1, 1)


async def _then_raise(done: Any, error: Exception) -> None:
    await done
    raise error


def _raise(error: Exception) -> None:
    raise error


async def test_p2_handler_that_raises_stop_iteration_has_failed(side: Side) -> None:
    """A `next` that finds nothing, in a thread: no future carries a StopIteration, so the delivery would be in hand for ever."""
    if side.is_async:
        pytest.skip("a coroutine cannot raise it")
    delivery = unordered()
    async with inbox_of(side) as inbox, asyncio.timeout(5):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await inbox.run(delivery, lambda delivery, conn: next(iter(())))
        await inbox.run(delivery, effect(side))
    assert side.count("business") == 1


class Booking:
    """A handler that is an object."""

    def __init__(self, side: Side) -> None:
        self.side = side

    async def __call__(self, delivery: Delivery, conn: Any) -> None:
        await side_insert(self.side, conn, delivery.id)


async def test_blocking_handlers_leave_the_loops_own_threads_alone(file: Side) -> None:
    """Those look up names for every connection of the process; a hundred handlers that wait for SQLite's gate must not be in front."""
    names: list[str] = []

    def work(delivery: Delivery, conn: Any) -> None:
        names.append(threading.current_thread().name)

    async with inbox_of(file) as inbox:
        await asyncio.gather(*(inbox.run(unordered(), work) for _ in range(3)))
    assert len(names) == 3 and all(name.startswith("halfmsg-inbox") for name in names)


async def test_p2_object_with_an_async_call_is_a_handler(database: Side) -> None:
    """Its coroutine is awaited: called as a `def` it would run nothing, and the claim would commit alone."""
    async with inbox_of(database) as inbox:
        await inbox.run(unordered(), Booking(database))
    assert (database.count("business"), database.count("halfmsg_inbox")) == (1, 1)


async def test_p2_handler_that_only_makes_a_coroutine_is_not_done(side: Side) -> None:
    """A wrapper that forgot its `async`: the delivery fails and the claim is undone, so a mended one still does the work."""
    delivery, booking = unordered(), Booking(side)
    async with inbox_of(side) as inbox:
        with pytest.raises(UsageError) as caught:
            await inbox.run(delivery, lambda *given: booking(*given))  # noqa: PLW0108 - the wrapper is what is tested
        assert (caught.value.code, side.count("halfmsg_inbox")) == ("wrong_colour", 0)
        await inbox.run(delivery, effect(side))
    assert side.count("business") == 1


async def test_handler_that_commits_at_its_end_is_an_error(side: Side) -> None:
    """It breaks the one commit: handler_ended_transaction. All of it is committed, so its repeat is a duplicate."""
    delivery, commits = unordered(), handler_of(side, lambda delivery, conn: conn.commit())
    async with inbox_of(side) as inbox:
        with pytest.raises(UsageError) as caught:
            await inbox.run(delivery, commits)
        await inbox.run(delivery, commits)
    assert caught.value.code == "handler_ended_transaction"


@pytest.mark.parametrize("ends", ["commit", "rollback"])
@pytest.mark.parametrize("anew", [False, True], ids=["goes on", "begins anew"])
@pytest.mark.parametrize("delivery", [unordered(), ordered(1)], ids=["unordered", "ordered"])
async def test_p6_handler_that_ends_its_transaction_and_goes_on_is_not_run_again(side: Side, delivery: Delivery, ends: str, anew: bool) -> None:
    """What a handler does behind its own rollback has no claim, and delivered again it would be done again; what it does behind its own
    commit, in a transaction that it left open, is undone, and delivered again it would be passed over. A person has to look.
    """

    async def colourful(delivery: Delivery, conn: Any) -> None:
        await getattr(conn, ends)()
        if anew:
            await conn.execute("BEGIN")
        await side_insert(side, conn, delivery.id)

    def plain(delivery: Delivery, conn: Any) -> None:
        getattr(conn, ends)()
        if anew:
            conn.execute("BEGIN")
        side_insert(side, conn, delivery.id)

    async with inbox_of(side) as inbox:
        if ends == "commit" and not anew:  # on a connection of the library's each statement is then a commit of its own
            with pytest.raises(UsageError, match="handler_ended_transaction"):
                await inbox.run(delivery, colourful if side.is_async else plain)
            assert side.count("business") == 1
            await inbox.run(delivery, colourful if side.is_async else plain)
        else:
            with pytest.raises(Reject, match="handler_ended_transaction"):
                await inbox.run(delivery, colourful if side.is_async else plain)
    assert side.count("business") == (0 if anew else 1)


@pytest.mark.parametrize("delivery", [unordered(), ordered(1), ordered(1, redriven=True)], ids=["unordered", "ordered", "redriven"])
@pytest.mark.parametrize("anew", [False, True], ids=["", "begins anew"])
async def test_p2_handler_that_commits_and_then_fails_is_a_dead_letter(side: Side, delivery: Delivery, anew: bool) -> None:
    """Its claim is committed, so a second delivery would be a repeat, acked: what it had still to do would be gone, and nobody told."""

    def work(delivery: Delivery, conn: Any) -> Any:
        done = side_insert(side, conn, delivery.id)
        if side.is_async:
            return _commit_then_raise(done, conn, anew)
        conn.commit()
        if anew:
            conn.execute("BEGIN")
        return _raise(ZeroDivisionError())

    async with inbox_of(side) as inbox:
        if delivery.redriven:
            await inbox.run(ordered(2, missed=[1]), effect(side))
        with pytest.raises(Reject, match=r"handler_ended_transaction.*ZeroDivisionError"):
            await inbox.run(delivery, handler_of(side, work))


@pytest.mark.parametrize("kind", ["psycopg", "psycopg async"])
async def test_p2_handler_that_commits_begins_anew_and_swallows_an_error_is_a_dead_letter(server: str, kind: str) -> None:
    """The server undoes its second half. The claim went with the first, so a second delivery would be a repeat, acked."""
    side = postgres_side(server, kind)

    def plain(delivery: Delivery, conn: Any) -> None:
        side_insert(side, conn, delivery.id)
        conn.commit()
        conn.execute("BEGIN")
        with contextlib.suppress(psycopg.Error):
            conn.execute("SELECT 1/0")

    async def colourful(delivery: Delivery, conn: Any) -> None:
        await side_insert(side, conn, delivery.id)
        await conn.commit()
        await conn.execute("BEGIN")
        with contextlib.suppress(psycopg.Error):
            await conn.execute("SELECT 1/0")

    async with inbox_of(side) as inbox:
        with pytest.raises(Reject, match="handler_ended_transaction"):
            await inbox.run(unordered(), colourful if side.is_async else plain)
    assert side.count("business") == 1
    await side.close()


@pytest.mark.parametrize("kind", ["sqlite3", "aiosqlite"])
async def test_p2_half_that_cannot_be_looked_at_is_a_dead_letter_all_the_same(folder: Path, kind: str) -> None:
    """No write-ahead log, and its second transaction has the whole file locked: nobody waits for that, and it is asked after the undo."""
    side = sqlite_side(folder, kind)
    side.read("PRAGMA journal_mode = DELETE")

    def work(delivery: Delivery, conn: Any) -> Any:
        done = side_insert(side, conn, delivery.id)
        return _commit_then_lock(done, conn) if side.is_async else _lock(conn)

    def _lock(conn: Any) -> None:
        conn.commit()
        conn.execute("BEGIN EXCLUSIVE")
        raise ZeroDivisionError

    async with inbox_of(side) as inbox:
        began = time.monotonic()
        with pytest.raises(Reject, match="handler_ended_transaction"):
            await inbox.run(unordered(), handler_of(side, work))
        assert time.monotonic() - began < 5
    await side.close()


async def _commit_then_lock(done: Any, conn: Any) -> None:
    await done
    await conn.commit()
    await conn.execute("BEGIN EXCLUSIVE")
    raise ZeroDivisionError


async def test_p2_handler_that_commits_and_then_meets_a_cancelled_task_is_a_dead_letter(file: Side) -> None:
    """A CancelledError that is not this delivery's own is an error like others."""

    async def work(delivery: Delivery, conn: Any) -> None:
        await conn.commit()
        other = asyncio.ensure_future(asyncio.Event().wait())
        other.cancel()
        await other

    async with inbox_of(file) as inbox:
        with pytest.raises(Reject, match="handler_ended_transaction"):
            await inbox.run(unordered(), work)


async def _commit_then_raise(done: Any, conn: Any, anew: bool) -> None:
    await done
    await conn.commit()
    if anew:
        await conn.execute("BEGIN")
    raise ZeroDivisionError


@pytest.mark.parametrize("delivery", [unordered(), ordered(1), ordered(1, redriven=True)], ids=["unordered", "ordered", "redriven"])
async def test_p6_handler_whose_transaction_was_ended_under_it_is_delivered_again(side: Side, delivery: Delivery) -> None:
    """Rolled back by itself, as a refused publish does on SQLite, and then an error: nothing is claimed, and the error is as it was."""

    def work(delivery: Delivery, conn: Any) -> Any:
        rolled = conn.rollback()
        return _then_raise(rolled, ZeroDivisionError()) if side.is_async else _raise(ZeroDivisionError())

    async with inbox_of(side) as inbox:
        if delivery.redriven:
            await inbox.run(ordered(2, missed=[1]), effect(side))
        with pytest.raises(ZeroDivisionError):
            await inbox.run(delivery, handler_of(side, work))
        await inbox.run(delivery, effect(side))
    assert side.count("business") == 1 + delivery.redriven


async def test_p2_handler_that_swallows_a_database_error_is_not_done(postgres: Side) -> None:
    """PostgreSQL rolls back at COMMIT what a swallowed error has aborted: the delivery must fail, or its effect is lost for ever."""

    async def careless(delivery: Delivery, conn: Any) -> None:
        await side_insert(postgres, conn, delivery.id)
        with pytest.raises(psycopg.Error):
            await conn.execute("SELECT 1/0")

    delivery = unordered()
    async with inbox_of(postgres) as inbox:
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await inbox.run(delivery, careless)
        assert postgres.count("business") == 0
        await inbox.run(delivery, effect(postgres))
    assert postgres.count("business") == 1


async def test_error_of_a_handler_is_not_hidden_by_a_lost_connection(side: Side) -> None:
    """The handler's own word counts, also where the connection is gone by then."""

    def work(delivery: Delivery, conn: Any) -> Any:
        closed = conn.close()
        return _then_raise(closed, Reject("broken order")) if side.is_async else _raise(Reject("broken order"))

    async with inbox_of(side) as inbox:
        with pytest.raises(Reject, match="broken order"):
            await inbox.run(unordered(), handler_of(side, work))
        await inbox.run(unordered(), effect(side))
    assert side.count("business") == 1


async def test_p2_publish_inside_a_handler_joins_its_transaction(side: Side) -> None:
    """Effect, inbox row and the answer's message and fence commit together, or not at all."""
    outbox = side.outbox()

    def work(delivery: Delivery, conn: Any) -> Any:
        return outbox.publish(conn, "s", "answer", key="k")

    def failing(delivery: Delivery, conn: Any) -> Any:
        published = work(delivery, conn)
        return _then_raise(published, ZeroDivisionError()) if side.is_async else _raise(ZeroDivisionError())

    delivery = unordered()
    async with inbox_of(side) as inbox:
        with pytest.raises(ZeroDivisionError):
            await inbox.run(delivery, handler_of(side, failing))
        assert side.counts() == (0, 0, 0)
        await inbox.run(delivery, handler_of(side, work))
    assert side.counts() == (0, 1, 1)
    assert (side.count("halfmsg_inbox"), side.last_number()) == (1, 1)


async def test_p6_forty_deliveries_of_four_messages_at_once(side: Side) -> None:
    """Concurrent redeliveries, half of the handlers failing at first: four effects."""
    messages = [unordered() for _ in range(4)]
    failing = {message.id for message in messages[:2]}

    def work(delivery: Delivery, conn: Any) -> Any:
        done = side_insert(side, conn, delivery.id)
        if delivery.id in failing:
            failing.discard(delivery.id)
            return _then_raise(done, ZeroDivisionError()) if side.is_async else _raise(ZeroDivisionError())
        return done

    async with inbox_of(side) as inbox:
        runs = [inbox.run(message, handler_of(side, work)) for message in messages * 10]
        results = await asyncio.gather(*runs, return_exceptions=True)
    assert sum(isinstance(result, ZeroDivisionError) for result in results) == 2
    assert [result for result in results if result is not None and not isinstance(result, ZeroDivisionError)] == []
    assert side.count("business") == 4


async def test_p7_many_keys_at_once_on_postgresql(postgres: Side) -> None:
    """Twelve keys with five numbers each, each delivered three times and all at once per number: each key ends at 5, sixty effects."""
    async with inbox_of(postgres) as inbox:
        for number in range(1, 6):
            hand = [unordered(topic="s", key=f"k{k}", sequence=number, source="S") for k in range(12)] * 3
            await asyncio.gather(*(inbox.run(delivery, effect(postgres)) for delivery in hand))
    assert postgres.read("SELECT DISTINCT last FROM halfmsg_key") == [(5,)]
    assert (postgres.count("halfmsg_key"), postgres.count("business")) == (12, 60)


@pytest.mark.parametrize("handler", [lambda delivery: None, lambda a, b, c: None])
def test_handler_of_the_wrong_shape_is_refused_at_decoration(handler: Any, file: Side) -> None:
    """With an inbox a handler takes message and connection."""
    with pytest.raises(UsageError) as caught:
        Inbox(file.url).check(handler)
    assert caught.value.code == "wrong_colour"


async def test_r29_identity_is_the_databases(database: Side) -> None:
    """Two inboxes on one database report the same id, an outbox on it too; another database another."""
    async with inbox_of(database) as one, inbox_of(database) as two:
        assert await one.identity() == await two.identity()
        [(source,)] = database.read("SELECT v FROM halfmsg_meta WHERE k = 'source'")
        assert await one.identity() == bytes(source).hex()


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_p6_consumer_and_inbox_end_to_end(database: Side, client: Client, colour: str) -> None:
    """Outbox, coordinator, consumer and inbox: a handler that fails now and then has each effect once, and in order per key."""
    turns = iter(range(1_000))

    def flaky(delivery: Delivery) -> None:
        if next(turns) % 4 == 3:
            raise Retry("again", delay=0.01)

    await client.put_group("h", topics=[{"topic": "s"}], lease_s=2)
    consumer = Consumer(client, "h", inbox=Inbox(database.url), lease=2)
    if colour == "async":

        @consumer.on("s")
        async def asynchronous(delivery: Delivery, conn: Any) -> None:
            await side_insert(database, conn, f"{delivery.json():02}")
            flaky(delivery)

    else:

        @consumer.on("s")
        def synchronous(delivery: Delivery, conn: Any) -> None:
            side_insert(database, conn, f"{delivery.json():02}")
            flaky(delivery)

    serving = asyncio.create_task(consumer.serve())
    async with Outbox(client, "orders", database.url) as outbox:
        for n in range(12):
            async with outbox.transaction() as tx:
                await tx.publish("s", n, key="k")
    async with asyncio.timeout(20):
        while await asyncio.to_thread(database.count, "business") < 12:
            pass
    consumer.stop()
    await serving
    assert database.read("SELECT id FROM business ORDER BY id") == [(f"{n:02}",) for n in range(12)]
    assert last(database) == 12


@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_p6_nothing_is_acked_before_its_handler_has_committed(database: Side, client: Client, colour: str) -> None:
    """A handler that fails once is first told as a nack; the only ack comes with the effect."""
    await client.put_group("h", topics=[{"topic": "u"}], backoff={"first_s": 0.01, "max_s": 0.01})
    consumer = Consumer(client, "h", inbox=Inbox(database.url), lease=2)

    def fails_first(delivery: Delivery) -> None:
        if delivery.attempt == 1:
            raise RuntimeError("not yet")

    if colour == "async":

        @consumer.on("u")
        async def asynchronous(delivery: Delivery, conn: Any) -> None:
            await side_insert(database, conn, delivery.id)
            fails_first(delivery)

    else:

        @consumer.on("u")
        def synchronous(delivery: Delivery, conn: Any) -> None:
            side_insert(database, conn, delivery.id)
            fails_first(delivery)

    serving = asyncio.create_task(consumer.serve())
    await client.send("u", 1)
    await eventually(lambda: consumer.counts.get("acked"), "an ack")
    assert (consumer.counts["retried"], database.count("business")) == (1, 1)
    consumer.stop()
    await serving


async def test_p2_what_fails_before_the_handler_costs_no_attempt(side: Side) -> None:
    """The inbox's database cannot be had: delivered again, as often as it takes, and no dead letter that no handler has seen."""
    async with inbox_of(side) as inbox:
        await inbox.run(unordered(), effect(side))
        side.read("ALTER TABLE halfmsg_inbox RENAME TO gone")
        with pytest.raises(NotBegun, match="inbox_away"):
            await inbox.run(unordered(), effect(side))
        side.read("ALTER TABLE gone RENAME TO halfmsg_inbox")
    assert side.count("business") == 1


async def test_p2_claim_that_a_lost_host_holds_gives_its_place_back(postgres: Side) -> None:
    """A server may keep the sessions of a host that is gone for hours. The wait ends after 2 s; the handler's own statements have no such limit."""
    delivery, limits = unordered(), []

    async def handler(delivery: Delivery, conn: Any) -> None:
        limits.append((await (await conn.execute("SHOW lock_timeout")).fetchone())[0])

    async with inbox_of(postgres) as inbox:
        gone = await postgres.connect()
        assert await inbox.claim(gone, delivery)
        with pytest.raises(Retry, match="LockNotAvailable") as caught:
            await inbox.run(delivery, handler)
        await postgres.rollback(gone)
        await inbox.run(delivery, handler)
    assert (caught.value.counts, limits) == (False, ["0"])
