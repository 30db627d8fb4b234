"""A publish that is given up or cut off: in line for its connection, on one that is lost, by a signal. Its transaction ends with it (R8), and
nobody else's does.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from halfmsg import UsageError
from halfmsg.outbox.adapters import psycopg as adapter_of_psycopg
from halfmsg.outbox.effects import run_sync

from .sides import Side, closing, plain, postgres_side, settled, sqlite_side
from .test_block import on_of, owner

__all__ = ["owner"]


@asynccontextmanager
async def busy(side: Side, conn: Any) -> AsyncIterator[None]:
    """A statement of another task is under way on this connection, and ends in good order with the block."""
    other = await side.connect(autocommit=True)
    await other.execute("SELECT pg_advisory_lock(7)")
    statement = asyncio.ensure_future(conn.execute("SELECT pg_advisory_xact_lock(7)"))
    await turns_of_the_loop(10)
    yield
    await other.execute("SELECT pg_advisory_unlock(7)")
    await statement


async def turns_of_the_loop(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelled(publish: asyncio.Future[Any], times: int = 1) -> None:
    for _ in range(times):
        await turns_of_the_loop(10)
        publish.cancel()
    await turns_of_the_loop(10)


@pytest.mark.parametrize("times", [1, 2])
async def test_r8_publish_cancelled_behind_a_busy_statement_ends_the_transaction(postgres: Side, times: int) -> None:
    """Nothing of it has reached the server, and its cancellation may be swallowed: no business row without its message."""
    async with closing(postgres.outbox()) as outbox:
        outbox.learn_source()
        conn = await postgres.connect()
        await postgres.business(conn)
        async with busy(postgres, conn):
            publish = asyncio.ensure_future(outbox.publish(conn, "s", 1, key="k"))
            await cancelled(publish, times)
        with pytest.raises(asyncio.CancelledError):
            await publish
        assert conn.info.transaction_status.name == "INERROR"
        await conn.commit()
    assert (postgres.counts(), postgres.last_number()) == ((0, 0, 0), 0)


async def test_r8_publish_cancelled_in_line_ends_the_block_also_where_its_body_commits(postgres: Side, owner: str) -> None:
    async with closing(postgres.outbox()) as outbox:
        outbox.learn_source()
        with pytest.raises(UsageError, match="not_awaited"):
            async with outbox.transaction(*await on_of(postgres, owner)) as tx:
                await postgres.business(tx.conn)
                async with busy(postgres, tx.conn):
                    publish = asyncio.ensure_future(tx.publish("s", 1, key="k"))
                    await cancelled(publish)
                with suppress(asyncio.CancelledError):
                    await publish
                assert tx.conn.info.transaction_status.name == "INERROR"
                await tx.conn.commit()
    assert (postgres.counts(), postgres.last_number()) == ((0, 0, 0), 0)


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_p2_publish_cancelled_in_line_ends_no_later_transaction(postgres: Side, ends: str) -> None:
    """Others stand in line behind it: the end of its transaction, and the beginning of the next one, which must stay."""
    async with closing(postgres.outbox()) as outbox:
        outbox.learn_source()
        conn = await postgres.connect()
        await postgres.business(conn, "one")
        async with busy(postgres, conn):
            publish = asyncio.ensure_future(outbox.publish(conn, "s", 1, key="k"))
            await turns_of_the_loop(10)
            end = conn.commit() if ends == "commit" else conn.rollback()
            behind = [asyncio.ensure_future(call) for call in (end, postgres.business(conn, "two"))]
            await cancelled(publish)
        await asyncio.gather(publish, *behind, return_exceptions=True)
        await conn.commit()
    assert postgres.read("SELECT id FROM business") == [("two",)]
    assert (postgres.counts(), postgres.last_number()) == ((1, 0, 0), 0)


@pytest.mark.parametrize("by", ["tx", "outbox"])
async def test_r8_publish_cancelled_behind_another_ends_the_block_also_where_its_body_commits(postgres: Side, by: str) -> None:
    """In the line of the block's own publishes; and one that comes after that cancellation raises it, which ends the transaction, too."""
    async with closing(postgres.outbox()) as outbox:
        outbox.learn_source()
        for again in (False, True):
            with pytest.raises(UsageError, match="not_awaited"):
                async with outbox.transaction(await postgres.connect(autocommit=True)) as tx:
                    await postgres.business(tx.conn)
                    publish = tx.publish if by == "tx" else functools.partial(outbox.publish, tx.conn)
                    calls = [functools.partial(publish, "s", number, key="k") for number in range(3)]
                    async with busy(postgres, tx.conn):
                        first, second = asyncio.ensure_future(calls[0]()), asyncio.ensure_future(calls[1]())
                        await cancelled(second)
                    await asyncio.gather(first, second, *([calls[2]()] if again else []), return_exceptions=True)
                    await tx.conn.commit()
            assert (postgres.counts(), postgres.last_number()) == ((0, 0, 0), 0)


async def test_p9_publish_given_up_behind_a_statement_of_another_task_leaves_it_alone(postgres: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes; in autocommit it is in no transaction at all."""
    monkeypatch.setattr(adapter_of_psycopg, "SILENT_S", 0.05)
    async with closing(postgres.outbox()) as outbox:
        outbox.learn_source()
        for autocommit in (True, False):
            conn = await postgres.connect(autocommit=autocommit)
            async with busy(postgres, conn):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await outbox.publish(conn, "s", 1, key="k")
            await conn.rollback()
            assert await (await conn.execute("SELECT 1")).fetchall() == [(1,)]
    assert (postgres.counts(), postgres.last_number()) == ((0, 0, 0), 0)


async def test_p4_publish_cancelled_on_a_connection_that_is_closed_is_cancelled(file: Side) -> None:
    async with closing(file.outbox()) as outbox:
        outbox.learn_source()
        conn = await file.connect(autocommit=True)
        await conn.execute("BEGIN IMMEDIATE")
        publish = asyncio.ensure_future(outbox.publish(conn, "s", 1, key="k"))
        await asyncio.sleep(0)
        publish.cancel()
        await conn.close()
        with pytest.raises(asyncio.CancelledError):
            await publish


@pytest.mark.parametrize("kind", ["psycopg", "psycopg async"])
async def test_r8_publish_on_a_connection_that_is_lost_says_why(server: str, kind: str) -> None:
    """Retry code asks for the number of the driver's error: it is the one that any statement of the caller's would raise."""
    side = postgres_side(server, kind)
    async with closing(side.outbox()) as outbox:
        outbox.learn_source()
        said: list[type[BaseException]] = []
        for call in (lambda conn: conn.execute("SELECT 1"), lambda conn: outbox.publish(conn, "s", 1, key="k")):
            conn = await side.connect()
            await side.business(conn)
            side.read("SELECT pg_terminate_backend(?)", conn.info.backend_pid)
            with pytest.raises(psycopg.Error) as raised:
                await settled(call(conn))
            said.append(raised.type)
    assert said[0] is said[1]
    assert side.counts() == (0, 0, 0)


async def test_p9_publish_inside_a_stream_of_its_own_connection_ends(postgres: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """psycopg's stream holds the connection until its body is done, and the body waits for the publish."""
    monkeypatch.setattr(adapter_of_psycopg, "SILENT_S", 0.1)
    async with closing(postgres.outbox()) as outbox:
        outbox.learn_source()
        conn = await postgres.connect()
        await postgres.business(conn)
        with suppress(psycopg.Error):
            async for _ in conn.cursor().stream("SELECT generate_series(1, 3)"):
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await outbox.publish(conn, "s", 1, key="k")
        with suppress(psycopg.Error):
            await conn.commit()
    assert postgres.counts() == (0, 0, 0)


async def test_p9_publish_beside_a_listener_is_given_up_at_once(postgres: Side) -> None:
    """`notifies()` holds the connection, on which nothing is open: there is nothing to wait for."""
    async with closing(postgres.outbox()) as outbox:
        outbox.learn_source()
        conn = await postgres.connect(autocommit=True)
        listening = asyncio.ensure_future(anext(conn.notifies()))
        publish = asyncio.ensure_future(outbox.publish(conn, "s", 1, key="k"))
        await cancelled(publish)
        assert publish.done()
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
        assert not conn.closed


class Interrupted(BaseException):
    pass


@contextmanager
def interrupted(at: int) -> Iterator[None]:
    """As a handler of a signal does (a time limit, Ctrl-C): raise before the so-manieth step."""
    seen = 0
    code, first = inspect.getsourcelines(run_sync)
    line = first + next(number for number, text in enumerate(code) if "adapter.do(" in text)

    def at_line(frame: Any, event: str, arg: object) -> Any:
        nonlocal seen
        if event == "line" and frame.f_lineno == line:
            seen += 1
            if seen == at:
                raise Interrupted
        return at_line

    def at_call(frame: Any, event: str, arg: object) -> Any:
        return at_line if frame.f_code is run_sync.__code__ else None

    before = sys.gettrace()
    sys.settrace(at_call)
    try:
        yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("kind", ["sqlite3", "psycopg"])
def test_r16_publish_that_is_interrupted_by_a_signal_is_whole_or_nothing(folder: Path, request: pytest.FixtureRequest, kind: str) -> None:
    """Swallowed, and then committed: no fence without its rows."""
    side = sqlite_side(folder, kind) if kind == "sqlite3" else postgres_side(request.getfixturevalue("server"), kind)
    outbox = side.outbox()
    outbox.learn_source()
    conn = asyncio.run(side.connect())
    step, reached = 0, True
    while reached:
        step += 1
        conn.execute(f"INSERT INTO business (id) VALUES ('{step}')")
        reached = False
        with interrupted(step):
            try:
                outbox.publish_many(conn, [plain() for _ in range(3)])
            except Interrupted:
                reached = True
        conn.commit()
        _, rows, fences = side.counts()
        assert rows == 3 * fences == side.last_number(), step
    conn.close()
    outbox._home.close_sync()
    assert step > 10
