"""What the outbox answers to a check-back: its budget, what it leaves out, and who holds a number (R3, R5, R7, R15, R28)."""

from __future__ import annotations

import asyncio
import os
import time
from uuid import uuid4

import msgspec
import pytest

from halfmsg import Answer, Outbox, Responder, Verdict
from halfmsg.checkback import Question
from halfmsg.checkback.answers import Missing
from halfmsg.outbox import _clock

from .sides import Side, closing, plain, settled


async def committed(side: Side, outbox: Outbox, key: str = "k") -> str:
    conn = await side.connect()
    await side.begin(conn)
    [receipt] = await settled(outbox.publish_many(conn, [plain(key)]))
    await side.commit(conn)
    return str(receipt.transaction_id)


async def test_r28_fifty_questions_with_ten_locked_rows(postgres: Side) -> None:
    """Ten open transactions, ten committed, thirty absent: all fifty are answered within the budget, the locked ones as running."""
    async with closing(postgres.outbox()) as outbox:
        done = [await committed(postgres, outbox, f"k{n}") for n in range(10)]
        locked = []
        for n in range(10):
            conn = await postgres.connect()
            half = outbox.prepared(plain(f"l{n}"))
            await half.fence(conn)
            locked.append(half.id)
        absent = [str(uuid4()) for _ in range(30)]
        asked = [Question(id, 0, None) for id in (*locked, *absent, *done)]
        started = time.monotonic()
        answers = await outbox.decide(asked)
        assert time.monotonic() - started < 4.0
    assert {answers[id].verdict for id in done} == {Verdict.COMMITTED}
    assert {answers[id] for id in locked} == {Answer(Verdict.RUNNING)}
    assert {answers[id] for id in absent} == {Answer(Verdict.ROLLED_BACK)}


async def test_r28_slow_database_is_answered_for_in_part(database: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second a row: what was read within the budget is the answer. A whole one comes when the asker has gone, at every question."""
    async with closing(database.outbox()) as outbox:
        done = [await committed(database, outbox, f"k{n}") for n in range(20)]
        now = iter(range(1_000))
        monkeypatch.setattr(_clock, "monotonic", lambda: next(now) / 2)
        answers = await outbox.decide([Question(id, 0, None) for id in done])
        assert {answer.verdict for answer in answers.values()} == {Verdict.COMMITTED}
        assert 5 <= len(answers) <= 8


async def test_r28_lock_wait_is_bounded_on_sqlite(file: Side) -> None:
    """One writer holds the file: five absent ids are running, after 50 ms each."""
    async with closing(file.outbox()) as outbox:
        await outbox._load_source()
        conn = await file.connect()
        await file.begin(conn)
        asked = [Question(str(uuid4()), 0, None) for _ in range(5)]
        started = time.monotonic()
        answers = await outbox.decide(asked)
        assert time.monotonic() - started < 2.0
        assert [answers[each.id] for each in asked] == [Answer(Verdict.RUNNING)] * 5
        await file.rollback(conn)
    assert file.count("halfmsg_tx") == 0


async def test_r7_question_for_another_database_is_left_out(database: Side) -> None:
    """A question that names another source decides nothing here, for an id that is there and for one that is not."""
    async with closing(database.outbox()) as outbox:
        there = await committed(database, outbox)
        absent = str(uuid4())
        assert await outbox.decide([Question(there, 0, "ab" * 16), Question(absent, 0, "ab" * 16)]) == {}
        assert database.verdict(absent) is None
        answers = await outbox.decide([Question(there, 0, outbox.source_id), Question(absent, 0, outbox.source_id)])
    assert [answers[id].verdict for id in (there, absent)] == [Verdict.COMMITTED, Verdict.ROLLED_BACK]


async def test_p5_another_database_behind_the_same_url_answers_nothing(database: Side) -> None:
    """A fail-over name, a schema that is swapped: what is absent there says nothing, whether the question names a source or none."""
    async with closing(database.outbox()) as outbox:
        there, absent = await committed(database, outbox), str(uuid4())
        assert len(await outbox.decide([Question(there, 0, None)])) == 1
        ours = outbox.source_id
        database.read("UPDATE halfmsg_meta SET v = ? WHERE k = 'source'", os.urandom(16))
        for source in (ours, None):
            assert await outbox.decide([Question(there, 0, source), Question(absent, 0, source)]) == {}
        half = outbox.prepared(plain("k", 1))
        half._sent = True
        await half._withdraw()
        assert database.verdict(absent) is database.verdict(half.id) is None


async def test_r3_question_below_the_watermark_is_left_out(database: Side) -> None:
    """Where rows may have been purged an absent one proves nothing: no answer and no tombstone; a row that is there still answers."""
    async with closing(database.outbox()) as outbox:
        there, below, at = await committed(database, outbox), str(uuid4()), str(uuid4())
        database.read("UPDATE halfmsg_meta SET n = 5 WHERE k = 'purged_before'")
        answers = await outbox.decide([Question(there, 4, None), Question(below, 4, None), Question(at, 5, None)])
    assert {id: answer.verdict for id, answer in answers.items()} == {there: Verdict.COMMITTED, at: Verdict.ROLLED_BACK}
    assert database.verdict(below) is None


async def test_r15_what_is_no_id_is_left_out(database: Side) -> None:
    """A question that names no UUID is not answered, and disturbs no other."""
    async with closing(database.outbox()) as outbox:
        there = await committed(database, outbox)
        assert list(await outbox.decide([Question("x", 0, None), Question(there, 0, None)])) == [there]


async def test_r28_replica_says_what_is_proven_and_leaves_the_rest_out(postgres: Side) -> None:
    """A database that takes no writes lays no tombstone: committed rows are answered, absent ones are not."""
    there = await committed(postgres, postgres.outbox())
    replica = postgres.url + "%20-cdefault_transaction_read_only%3Don"
    async with closing(Outbox(postgres.outbox().client, "orders", replica)) as outbox:
        answers = await outbox.decide([Question(str(uuid4()), 0, None), Question(there, 0, None)])
    assert list(answers) == [there]


async def test_p9_questions_at_a_blocking_mount_leave_no_connections(database: Side) -> None:
    """Under Flask, Django or WSGI each question is answered in a loop of its own: what it opened must not stay open behind it."""
    async with closing(database.outbox()) as outbox:
        responder = Responder(outbox)

        def ask() -> int:
            body = msgspec.json.encode({"type": "check", "transactions": [{"id": str(uuid4()), "mark": 0}]})
            assert b"rolled_back" in responder.answer_sync({}, body).body
            return len(os.listdir("/proc/self/fd"))

        opened = [await asyncio.to_thread(ask) for _ in range(6)]
    assert opened[-1] <= opened[0]


async def test_r5_holder_of_a_number_is_named(database: Side) -> None:
    """A number that has not arrived is traced to its transaction; one that nobody drew has no holder."""
    async with closing(database.outbox()) as outbox:
        there = await committed(database, outbox)
        held, free = Missing("s", "k", 1), Missing("s", "k", 2)
        assert await outbox.holders([held, free]) == {held: there, free: None}


async def test_r5_frame_of_the_stream_is_answered_whole(database: Side) -> None:
    """A `check` frame gets source, verdicts with digest and numbers, and holders."""
    async with closing(database.outbox()) as outbox:
        there = await committed(database, outbox)
        frame = {
            "type": "check", "producer": "orders", "transactions": [{"id": there, "mark": 0, "prepared_at": "x", "attempt": 1, "topics": ["s"]}],
            "holders": [{"topic": "s", "key": "k", "sequence": 1}],
        }  # fmt: skip
        answer = await outbox.answer(frame)
    [verdict] = answer["verdicts"]
    assert (verdict["id"], verdict["verdict"], verdict["numbers"]) == (there, "committed", [1])
    assert answer["source"] == outbox.source_id
    assert answer["holders"] == [{"topic": "s", "key": "k", "sequence": 1, "id": there}]


async def test_r7_beats_are_the_last_sixteen(database: Side) -> None:
    """Each beat appends a random value and reports the last 16, oldest first."""
    async with closing(database.outbox()) as outbox:
        reports = [(await outbox.beat())["beats"] for _ in range(18)]
    assert [len(report) for report in reports] == [*range(1, 17), 16, 16]
    assert reports[-1][:-1] == reports[-2][1:]
    assert len({beat for report in reports for beat in report}) == 18
