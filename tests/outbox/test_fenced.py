"""Being too late: a check-back has ruled, or this id stands committed (R1, R3, R8). The caller cannot swallow it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from halfmsg import Answer, Fenced, NotInTransaction, Verdict
from halfmsg.checkback import Question
from halfmsg.outbox import AlreadyCommitted

from .sides import Side, closing, plain, settled


async def ask(side: Side, id: str, mark: int = 0) -> Answer | None:
    """One check-back, by the database itself."""
    async with closing(side.outbox()) as outbox:
        return (await outbox.decide([Question(id, mark, None)])).get(id)


async def swallow(side: Side, conn: Any, call: Any) -> BaseException:
    """A caller that catches what the library raises, and commits."""
    try:
        await settled(call())
    except Exception as error:
        await side.commit(conn)
        return error
    raise AssertionError("it was not refused")


async def test_r8_late_fence_takes_its_transaction_with_it(side: Side) -> None:
    """Check-back first, then the fence of the same id: Fenced, and nothing of the late transaction stays though the caller commits."""
    half = side.outbox().prepared(plain())
    assert await ask(side, half.id) == Answer(Verdict.ROLLED_BACK)
    conn = await side.connect()
    await side.begin(conn)
    await side.business(conn)
    error = await swallow(side, conn, lambda: half.fence(conn))
    assert isinstance(error, Fenced)
    assert side.counts() == (0, 0, 1)
    assert side.verdict(half.id) == 2
    assert side.last_number() == 0


async def test_r8_repeated_id_is_already_committed(side: Side) -> None:
    """The same id once more is told apart: it stands committed, so the second transaction falls and the first is left alone."""
    id, conn = str(uuid4()), await side.connect()
    await side.begin(conn)
    await side.business(conn, "first")
    await settled(side.outbox().prepared(plain(), id=id).fence(conn))
    await side.commit(conn)
    await side.begin(conn)
    await side.business(conn, "second")
    error = await swallow(side, conn, lambda: side.outbox().prepared(plain(), id=id).fence(conn))
    assert isinstance(error, AlreadyCommitted)
    assert side.counts() == (1, 1, 1)
    answer = await ask(side, id)
    assert answer is not None
    assert (answer.verdict, answer.numbers) == (Verdict.COMMITTED, [1])


async def test_r8_later_publish_on_the_ended_transaction_raises(side: Side) -> None:
    """After a swallowed Fenced every later publish raises, so that no message goes without the rows it belongs to."""
    half = side.outbox().prepared(plain())
    await ask(side, half.id)
    conn = await side.connect()
    await side.begin(conn)
    with pytest.raises(Fenced):
        await settled(half.fence(conn))
    with pytest.raises(Exception, match=r"transaction") as caught:
        await settled(side.outbox().publish(conn, "u", 1))
    assert isinstance(caught.value, NotInTransaction) or type(caught.value).__name__ == "InFailedSqlTransaction"
    await side.rollback(conn)


async def test_r8_error_of_a_driver_ends_the_transaction_too(side: Side) -> None:
    """Any error of the library's statements ends the caller's transaction: swallowed, it must not leave business rows without a fence."""
    conn = await side.connect()
    with side.broken_out():
        await side.begin(conn)
        await side.business(conn)
        error = await swallow(side, conn, lambda: side.outbox().publish(conn, "u", 1))
    assert "body" in str(error)
    assert side.counts() == (0, 0, 0)


async def test_r3_attempt_below_the_watermark_is_fenced_out(side: Side) -> None:
    """A mark below purged_before: its tombstone may have been deleted, so the local commit is refused with all that belongs to it."""
    outbox = side.outbox()
    outbox._purged_before = 4  # as read when it was opened
    half = outbox.prepared(plain())
    side.read("UPDATE halfmsg_meta SET n = 5 WHERE k = 'purged_before'")
    conn = await side.connect()
    await side.begin(conn)
    await side.business(conn)
    error = await swallow(side, conn, lambda: half.fence(conn))
    assert isinstance(error, Fenced)
    assert "older" in str(error)
    assert side.counts() == (0, 0, 0)


async def test_r3_attempt_at_the_watermark_goes_in(side: Side) -> None:
    """A mark equal to purged_before is not below it."""
    outbox = side.outbox()
    outbox._purged_before = 5
    half = outbox.prepared(plain())
    side.read("UPDATE halfmsg_meta SET n = 5 WHERE k = 'purged_before'")
    conn = await side.connect()
    await side.begin(conn)
    await settled(half.fence(conn))
    await side.commit(conn)
    assert side.read("SELECT mark, verdict FROM halfmsg_tx") == [(5, 1)]


async def test_r15_open_transaction_is_running(side: Side) -> None:
    """While the local transaction holds the fence row the answer is running; after its commit it is committed, with digest and number."""
    half = side.outbox().prepared(plain())
    conn = await side.connect()
    await side.begin(conn)
    await settled(half.fence(conn))
    assert await ask(side, half.id) == Answer(Verdict.RUNNING)
    await side.commit(conn)
    answer = await ask(side, half.id)
    assert answer == Answer(Verdict.COMMITTED, half._digest.hex(), [1])


async def test_p5_rolled_back_transaction_is_ruled_for_good(side: Side) -> None:
    """After the local rollback the check-back lays the tombstone, and says the same again."""
    half = side.outbox().prepared(plain())
    conn = await side.connect()
    await side.begin(conn)
    await settled(half.fence(conn))
    await side.rollback(conn)
    assert [await ask(side, half.id) for _ in range(2)] == [Answer(Verdict.ROLLED_BACK)] * 2
    assert side.counts() == (0, 0, 1)


async def test_p5_many_responders_agree(database: Side) -> None:
    """Eight check-backs of one absent id at once: one tombstone, and each says rolled_back or, while another lays it, running."""
    id = str(uuid4())
    answers = await asyncio.gather(*(ask(database, id) for _ in range(8)))
    assert {answer.verdict for answer in answers if answer} <= {Verdict.ROLLED_BACK, Verdict.RUNNING}
    assert Answer(Verdict.ROLLED_BACK) in answers
    assert database.counts() == (0, 0, 1)
