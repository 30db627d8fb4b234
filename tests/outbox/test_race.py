"""The race that the fence must win: a local commit that is late, against the responder that says "rolled back" (P5, R1, R8)."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from halfmsg import Answer, Fenced, Outbox, Verdict
from halfmsg.checkback import Question

from .sides import Side, closing, plain

log = logging.getLogger(__name__)
TRIALS = 200
YIELDS_MAX = 60


class Trial:
    """One local transaction against one check-back that starts at a random place in it; all of it follows from the seed."""

    def __init__(self, side: Side, outbox: Outbox, conn: Any, seed: int) -> None:
        self.side, self.outbox, self.conn = side, outbox, conn
        self.dice = random.Random(seed)
        self.id = str(uuid4())
        self.place = self.dice.randrange(5)  # before BEGIN, before the fence, before the end, beside the end, after it
        self.waits = self.dice.random() < 0.4  # for the answer, or goes on beside it
        self.commits = self.dice.random() < 0.75
        self.question: asyncio.Task[Answer | None] | None = None

    async def ask(self) -> Answer | None:
        return (await self.outbox.decide([Question(self.id, 0, None)])).get(self.id)

    async def pause(self) -> None:
        for _ in range(self.dice.randrange(YIELDS_MAX)):
            await asyncio.sleep(0)

    async def reach(self, place: int) -> None:
        if place == self.place:
            self.question = asyncio.create_task(self.ask())
            if self.waits and place != 3:
                await asyncio.wait({self.question})
        await self.pause()

    async def local(self) -> str:
        conn = self.conn
        half = self.outbox.prepared(plain(self.id), id=self.id)
        try:
            await self.reach(0)
            await self.side.execute(conn, self.begin())
            await self.side.business(conn, self.id)
            await self.reach(1)
            await half.fence(conn)
            await self.reach(2)
        except (Fenced, psycopg.errors.SerializationFailure):
            if self.dice.random() < 0.5:
                await conn.commit()  # a caller that swallows it
            return "fenced"
        else:
            await self.reach(3)
            await (conn.commit() if self.commits else conn.rollback())
            await self.reach(4)
            return "committed" if self.commits else "rolled back"
        finally:
            await conn.rollback()

    def begin(self) -> str:
        if self.side.dialect == "sqlite":
            return "BEGIN IMMEDIATE"
        return "BEGIN ISOLATION LEVEL " + self.dice.choice(["READ COMMITTED", "REPEATABLE READ"])

    async def run(self) -> tuple[str, str]:
        """(what the local transaction came to, what the first check-back said), after judging both."""
        outcome = await self.local()
        assert self.question is not None
        said, final = await self.question, await self.ask()
        row = bool(self.side.read("SELECT 1 FROM business WHERE id = ?", self.id))
        assert row is (outcome == "committed")
        assert final is not None
        assert final.verdict == (Verdict.COMMITTED if row else Verdict.ROLLED_BACK)
        assert said in (final, Answer(Verdict.RUNNING)), "a verdict was taken back"
        if row:
            assert final.numbers is not None
            assert self.side.read("SELECT seq FROM halfmsg_out WHERE okey = ?", self.id.encode()) == [(final.numbers[0],)]
        return outcome, said.verdict.value


@pytest.mark.parametrize("trials", [TRIALS])
async def test_p5_r1_late_commit_and_responder_never_both_win(database: Side, trials: int) -> None:
    """200 random interleavings: never a business row beside "rolled back", never "committed" without the row; every outcome occurs."""
    seen: Counter[tuple[str, str]] = Counter()
    async with closing(database.outbox()) as outbox:
        conn = await database.connect(autocommit=True)
        for seed in range(trials):
            seen[await Trial(database, outbox, conn, seed).run()] += 1
    log.info("%s: %s", database.dialect, {"/".join(outcome): count for outcome, count in sorted(seen.items())})
    assert seen[("committed", "committed")]
    assert seen[("committed", "running")]
    assert seen[("rolled back", "rolled_back")]
    assert seen[("fenced", "rolled_back")]
