"""The library's own connections: what holds a lock, what falls silent, what the server has ended, and how many there are."""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing as closing_file
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import psycopg.sql
import pytest

from halfmsg import Client, HalfmsgError, Outbox
from halfmsg.checkback import Question
from halfmsg.outbox import admin, answering, home, places
from halfmsg.outbox.adapters.sqlite import SqliteAdapter
from halfmsg.outbox.effects import Begin, Commit, Effect, Sql, Steps, run_sync
from halfmsg.outbox.tables import Tables

from .faults import cancel_at, deaf_proxy
from .sides import Side, closing, plain, settled
from .test_relay import in_colour


async def test_p9_steps_of_ours_hold_no_lock_while_the_loop_stands_still(file: Side) -> None:
    """SQLite: a sync block in the loop's thread waits for the write lock. Who holds it must come to its end without the loop."""
    begun, ended = threading.Event(), threading.Event()

    def steps() -> Steps[None]:
        yield Begin()
        begun.set()
        yield Commit()
        ended.set()

    async with closing(file.outbox()) as outbox:
        running = asyncio.create_task(outbox._home.run(steps()))
        await asyncio.to_thread(begun.wait, 5)
        assert ended.wait(5)  # the loop stands still meanwhile, as under a sync block
        await running


async def test_p9_sync_blocks_beside_the_relay_on_its_loop(file: Side, client: Client) -> None:
    """An `async def` endpoint that uses sqlite3, on the loop of the relay: each block commits, none waits for a lock whose holder waits for it."""
    async with Outbox(client, "orders", file.url) as outbox:
        for n in range(50):
            with outbox.transaction() as tx:
                tx.publish("u", n)
            await client.ack(await client.fetch("g", wait=5))
        outbox._home.close_sync()


# --- a database that falls silent --------------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a test can wait for."""
    monkeypatch.setattr(home, "ANSWER_MAX_S", 0.5)
    monkeypatch.setattr(home, "GIVE_MAX_S", 0.3)
    monkeypatch.setattr(home, "CANCEL_S", 0.2)
    monkeypatch.setattr(answering, "BUDGET_S", 1.0)


async def rest_idle(outbox: Outbox, count: int) -> None:
    """A busy moment leaves so many idle connections."""
    gate = asyncio.Barrier(count)

    async def block() -> None:
        async with outbox.transaction():
            await gate.wait()

    await asyncio.gather(*(block() for _ in range(count)))


async def test_p9_relay_goes_on_over_a_new_connection_when_one_falls_silent(postgres: Side, client: Client, soon: None) -> None:
    """A fail-over that closes nothing: the relay's connection never answers again, and the rows go over another."""
    async with deaf_proxy(postgres.url) as (proxy, url), Outbox(client, "orders", url):
        proxy.fall_silent()
        conn = await postgres.connect()
        await postgres.outbox().publish(conn, "u", 1)
        await conn.commit()
        assert [each.json() for each in await client.fetch("g", wait=20)] == [1]


async def test_p9_question_over_a_silent_connection_costs_no_second_one(postgres: Side, soon: None) -> None:
    """One question ends without an answer; the idle connections beside it are not tried one after the other."""
    async with deaf_proxy(postgres.url) as (proxy, url), closing(Outbox(Client("http://127.0.0.1:9"), "orders", url)) as outbox:
        await outbox.beat()
        await rest_idle(outbox, 6)
        proxy.fall_silent()
        asked = [Question(str(uuid4()), 2**50, None)]
        async with asyncio.timeout(20):
            with pytest.raises(TimeoutError):
                await outbox.decide(asked)
            assert [each.verdict for each in (await outbox.decide(asked)).values()] == ["rolled_back"]


@pytest.mark.parametrize("asks", ["beat", "holders"])
async def test_p9_beat_and_holders_end_on_a_silent_connection(postgres: Side, soon: None, asks: str) -> None:
    """The stream waits for a beat and for holders: neither may hang for ever."""
    async with deaf_proxy(postgres.url) as (proxy, url), closing(Outbox(Client("http://127.0.0.1:9"), "orders", url)) as outbox:
        await outbox.beat()
        proxy.fall_silent()
        async with asyncio.timeout(20):
            if asks == "beat":
                with pytest.raises(TimeoutError):
                    await outbox.beat()
            else:
                assert await outbox.holders([Place("s", "k", 1)]) == {}


class Place:
    def __init__(self, topic: str, key: str, sequence: int) -> None:
        self.topic, self.key, self.sequence = topic, key, sequence


async def test_p9_half_message_lets_its_caller_go_when_the_database_is_silent(
    postgres: Side, client: Client, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's COMMIT died, and the block's exit asks over a connection that is as dead: the error comes back, the check-back asks later."""
    monkeypatch.setattr(home, "IMPATIENT_MAX_S", 0.5)
    async with deaf_proxy(postgres.url) as (proxy, url), Outbox(client, "orders", url) as outbox:
        await rest_idle(outbox, 3)
        async with asyncio.timeout(20):
            with pytest.raises(ConnectionError):
                async with outbox.prepared(plain("k", 1)):
                    proxy.fall_silent()
                    raise ConnectionError("my COMMIT timed out")


async def test_p9_block_of_ours_ends_when_the_database_falls_silent_after_its_commit(postgres: Side, soon: None) -> None:
    """After the commit nothing may look like a failure, and nothing may hang: the connection is not used again."""
    async with deaf_proxy(postgres.url) as (proxy, url), closing(Outbox(Client("http://127.0.0.1:9"), "orders", url)) as outbox:
        async with asyncio.timeout(20):
            adapter = await outbox._home.take()
            proxy.fall_silent()
            await outbox._home.give(adapter, lent=True)
            async with outbox.transaction() as tx:
                await tx.publish("u", 1)
    assert postgres.count("halfmsg_tx") == 1


async def test_connections_of_ours_have_limits_unless_the_url_has_them(postgres: Side) -> None:
    """Keepalives and time-outs of TCP are set, and what a URL says stands."""
    for url, expected in ((postgres.url, "10"), (f"{postgres.url}&connect_timeout=7", "7")):
        ours = home.Home(url, "halfmsg_")
        adapter, blocking = await ours.take(), ours.take_sync()
        for conn in (adapter.conn, blocking.conn):
            found = conn.info.get_parameters()
            assert (found["connect_timeout"], found["keepalives_idle"], found["tcp_user_timeout"]) == (expected, "10", "20000")
        await adapter.close()
        blocking.close()


# --- sessions that the server has ended ----------------------------------------------------------------------------------------


def end_sessions(side: Side, name: str) -> None:
    """As a restart does; returns once they are gone."""
    them = "FROM pg_stat_activity WHERE application_name = ? AND pid <> pg_backend_pid()"
    side.read(f"SELECT pg_terminate_backend(pid, 5000) {them}", name)


@pytest.mark.parametrize("kind", ["psycopg", "psycopg async"])
async def test_p1_idle_connections_that_the_server_has_ended_fail_no_block(postgres: Side, kind: str) -> None:
    """A restart of the server costs the blocks after it nothing."""
    name = "n" + uuid4().hex[:12]
    outbox = Outbox(Client("http://127.0.0.1:9"), "orders", f"{postgres.url}&application_name={name}")
    async with closing(outbox):
        if kind == "psycopg":
            blocks: list[Any] = [outbox.transaction() for _ in range(4)]
            for one in blocks:
                one.__enter__()
            for one in blocks:
                one.__exit__(None, None, None)
        else:
            await rest_idle(outbox, 4)
        end_sessions(postgres, name)
        for n in range(6):
            if kind == "psycopg":
                with outbox.transaction() as tx:
                    tx.publish("u", n)
            else:
                async with outbox.transaction() as tx:
                    await tx.publish("u", n)
    assert postgres.count("halfmsg_tx") == 6


# --- a new file ------------------------------------------------------------------------------------------------------------------


class Beside(SqliteAdapter):
    """Another process comes to the new file just before us: it has the lock when the journal is asked for, and lets go when it is waited for."""

    other: sqlite3.Connection
    times = 1

    def do(self, effect: Effect) -> Any:
        if isinstance(effect, Sql) and "journal_mode" in effect.text and self.times:
            self.times -= 1
            self.other.execute("BEGIN IMMEDIATE")
        if isinstance(effect, Begin) and self.other.in_transaction:
            self.other.execute("ROLLBACK")
        return super().do(effect)


@pytest.mark.parametrize("times", [3, home.LOOKS_MAX])
def test_p1_new_file_that_another_process_makes_is_waited_for(folder: Path, times: int) -> None:
    """The journal of a new file changes without any lock alone, and SQLite does not wait for that: we wait in line and look again, so often."""
    file, tables = folder / "new.db", Tables("sqlite", "halfmsg_")
    with closing_file(sqlite3.connect(file, isolation_level=None)) as ours, closing_file(sqlite3.connect(file, isolation_level=None)) as theirs:
        adapter = Beside(ours)
        adapter.other, adapter.times = theirs, times
        if times < home.LOOKS_MAX:
            run_sync(home._prepare_file(tables), adapter)
            assert ours.execute("SELECT count(*) FROM halfmsg_meta").fetchone() == (4,)
            assert ours.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        else:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                run_sync(home._prepare_file(tables), adapter)


def _first(url: str, gate: Any, said: Any) -> None:
    outbox = Outbox(Client("http://127.0.0.1:9"), "orders", url)
    gate.wait()
    try:
        with outbox.transaction() as tx:
            tx.publish("u", 1)
        said.put(None)
    except Exception as error:
        said.put(repr(error))


def test_p1_workers_that_start_together_on_a_new_file_all_publish(folder: Path) -> None:
    """Four processes make one SQLite file at the same moment: its tables and its WAL are made once, and nobody fails."""
    ways = multiprocessing.get_context("fork")
    for n in range(6):
        gate, said = ways.Barrier(4), ways.Queue()
        workers = [ways.Process(target=_first, args=(f"sqlite:///{folder}/new{n}.db", gate, said)) for _ in range(4)]
        for worker in workers:
            worker.start()
        assert [said.get(timeout=40) for _ in workers] == [None] * 4
        for worker in workers:
            worker.join()
        with closing_file(sqlite3.connect(folder / f"new{n}.db")) as conn:
            assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert conn.execute("SELECT count(*) FROM halfmsg_tx").fetchone() == (4,)


# --- encodings -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ascii_url(server: str) -> Iterator[str]:
    """A database that says nothing of its text's encoding."""
    name, at = "ascii_" + uuid4().hex[:12], psycopg.sql.SQL
    with psycopg.connect(server, autocommit=True) as conn:
        made = "CREATE DATABASE {} ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        conn.execute(at(made).format(psycopg.sql.Identifier(name)))
    yield f"{server.rpartition('/')[0]}/{name}"
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute(at("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(name)))


async def test_p2_database_in_sql_ascii_is_like_any_other(ascii_url: str, client: Client) -> None:
    """psycopg gives bytes for its text, which was no topic that could be handed over; our connections ask for UTF-8."""
    assert admin.install(ascii_url) and admin.install(ascii_url) == [] and admin.verify(ascii_url) == []
    with psycopg.connect(ascii_url) as conn:
        Outbox(client, "orders", ascii_url).publish(conn, "u", 1)
        conn.commit()
        with Outbox(client, "orders", ascii_url).transaction(conn) as tx:
            tx.publish("u", 1)
    assert [each.topic for each in admin.waiting(ascii_url)] == ["u", "u"]
    found: list[int] = []
    async with Outbox(client, "orders", ascii_url), asyncio.timeout(30):
        while len(found) < 2:
            found += [each.json() for each in await client.fetch("g", wait=20)]
    assert found == [1, 1]


def test_p2_file_in_utf16_is_like_any_other(folder: Path) -> None:
    """What is in `meta` is told by numbers, since a cast of text gives the bytes of the file's encoding."""
    url = f"sqlite:///{folder}/wide.db"
    with closing_file(sqlite3.connect(folder / "wide.db", isolation_level=None)) as conn:
        conn.execute("PRAGMA encoding = 'UTF-16'")
        conn.execute("CREATE TABLE business (id TEXT)")
        assert admin.install(url) and admin.verify(url) == []
        outbox = Outbox(Client("http://127.0.0.1:9"), "orders", url)
        with outbox.transaction(conn) as tx:
            tx.publish("s", 1, key="k")
        assert [(each.topic, each.key) for each in admin.waiting(url)] == [("s", "k")]


# --- how many --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two places, and nobody waits long."""
    monkeypatch.setattr(places, "LENT_MAX", 2)
    monkeypatch.setattr(places, "WAIT_MAX_S", 0.2)


async def test_p9_burst_of_blocks_opens_so_many_connections_and_no_more(database: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes beyond the last place waits in line, and all of them commit."""
    monkeypatch.setattr(places, "LENT_MAX", 8)  # the server is shared with other tests
    lent: list[int] = []

    async def block(n: int) -> None:
        async with outbox.transaction() as tx:
            lent.append(len(outbox._home._places._lent))
            await tx.publish("u", n)

    async with closing(database.outbox()) as outbox:
        await asyncio.gather(*(block(n) for n in range(50)))
    assert database.count("halfmsg_tx") == len(lent) == 50
    assert 1 < max(lent) <= 8


async def test_p9_block_beyond_the_last_place_says_so_and_the_library_goes_on(side: Side, two: None) -> None:
    """An error with a code of its own; relay and check-backs are not counted, and a place that is given back is free."""
    async with closing(side.outbox()) as outbox:
        ours = outbox._home
        lent: list[Any] = [await settled(ours.take() if side.is_async else ours.take_sync()) for _ in range(2)]
        with pytest.raises(HalfmsgError) as caught:
            async with in_colour(side, outbox.transaction()):
                pass
        assert caught.value.code == "no_connection"
        assert (await outbox.beat())["beats"]
        await settled(ours.give(lent[0], broken=True) if side.is_async else ours.give_sync(lent[0], broken=True))
        for _ in range(3):  # one place, free again after each: also after a body that failed
            with pytest.raises(ZeroDivisionError):
                async with in_colour(side, outbox.transaction()):
                    raise ZeroDivisionError
        await settled(ours.give(lent[1]) if side.is_async else ours.give_sync(lent[1]))


async def test_p9_cancelled_waiter_takes_no_place_with_it(database: Side, two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In line, while it connects, and on its way in: whoever is cancelled there leaves as many places as there were."""
    monkeypatch.setattr(places, "WAIT_MAX_S", 30.0)
    async with closing(database.outbox()) as outbox:
        ours = outbox._home

        async def pair() -> None:
            adapter = await ours.take()
            await ours.give(adapter, lent=True)

        for full in (False, True):
            lent = [await ours.take() for _ in range(2)] if full else []
            for k in range(1, 40):
                waiter = asyncio.create_task(_given_while_cancelled(ours, lent, pair, k) if full else _cancelled(pair, k))
                if not await waiter:
                    break
            for adapter in lent:
                await ours.give(adapter)
        async with asyncio.timeout(5):
            both = [await ours.take() for _ in range(2)]
        for adapter in both:
            await ours.give(adapter)


async def _cancelled(work: Any, k: int) -> bool:
    return (await cancel_at(work(), k))[0]


async def _given_while_cancelled(ours: home.Home, lent: list[Any], work: Any, k: int) -> bool:
    """A place becomes free in the moment in which the one in line is cancelled."""
    waiting = asyncio.create_task(_cancelled(work, k))
    await ours.give(lent.pop())
    reached = await waiting
    lent.append(await ours.take())
    return reached


def test_p9_child_of_a_fork_has_all_places(side: Side, two: None) -> None:
    """What the parent had lent is the parent's: it takes no place from the child."""
    if side.is_async:
        pytest.skip("the async path belongs to one loop, which does not survive a fork")
    ours = home.Home(side.url, "halfmsg_")
    parents = [ours.take_sync() for _ in range(2)]
    ours._pid = -1  # as a child finds it
    own = [ours.take_sync() for _ in range(2)]
    with pytest.raises(HalfmsgError, match="no_connection"):
        ours.take_sync()
    for adapter in (*parents, *own):
        ours.give_sync(adapter, broken=True)
    for adapter in [ours.take_sync() for _ in range(2)]:
        adapter.close()
