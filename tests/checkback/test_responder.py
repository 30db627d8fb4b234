"""The producer's side without I/O: what is read, what is refused, what is left out."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfmsg.checkback import Answer, Question, Reply, Responder, Verdict, deciding, frames, signing
from halfmsg.checkback.answers import Answers, Holders, Missing, Questions
from tests.checkback.fakes import OTHER_SECRET, SECRET, SOURCE, Clock

CLOCK = Clock()
OTHER_SOURCE = "6" * 32


def check(*ids: str, source: str | None = SOURCE, **more: Any) -> bytes:
    transactions = [{"id": id_, "mark": 7, "prepared_at": "2024-01-01T00:00:00.000Z", "attempt": 1, "topics": ["t"]} for id_ in ids]
    question: dict[str, Any] = {"type": "check", "producer": "orders", "transactions": transactions} | more
    return json.dumps(question | ({"source": source} if source else {})).encode()


def signed(body: bytes, *secrets: str) -> dict[str, str]:
    return signing.sign(secrets, "msg_1", CLOCK.unix_s(), body)


def all_committed(questions: Questions) -> Answers:
    return {question.id: Answer(Verdict.COMMITTED, "d" * 32, [None, 3]) for question in questions}


def never(questions: Questions) -> Answers:
    raise AssertionError("nothing may be decided")


class Database:
    """An object with everything a responder may use."""

    def __init__(self, source_id: str | None = SOURCE) -> None:
        self.source_id = source_id
        self.asked: list[Question] = []

    def decide(self, questions: Questions, /) -> Answers:
        self.asked += questions
        return all_committed(questions)

    async def holders(self, missing: Sequence[Missing]) -> Holders:
        return {place: "b" if place.sequence == 1 else None for place in missing} | {Missing("not", "asked", 1): "x"}


def responder(decide: Any, secret: str | list[str] | None = None) -> Responder:
    return Responder(decide, secret=secret, now=CLOCK.unix_s)


def content(reply: Reply) -> Any:
    return json.loads(reply.body)


async def both(answering: Responder, body: bytes, headers: Mapping[str, str] | None = None) -> Any:
    """The reply, the same by the way with a loop and the way without."""
    reply = await answering.answer(headers or {}, body)
    assert await asyncio.to_thread(answering.answer_sync, headers or {}, body) == reply
    return content(reply)


async def test_questions_are_answered_with_digest_numbers_and_source() -> None:
    """A committed one carries all that the coordinator needs (R5), and says which database speaks (R7)."""
    entry = {"id": "a", "verdict": "committed", "digest": "d" * 32, "numbers": [None, 3]}
    assert await both(responder(Database()), check("a")) == {"source": SOURCE, "verdicts": [entry]}


async def test_question_reaches_decide_with_mark_and_source() -> None:
    """The mark decides whether an absent row proves anything (R3), so it must arrive."""
    database = Database()
    await responder(database).answer({}, check("a", "b"))
    assert database.asked == [Question("a", 7, SOURCE), Question("b", 7, SOURCE)]


async def test_r7_another_databases_question_lays_no_fence() -> None:
    """It is answered with our source and no verdict, and decide is not called."""
    database = Database()
    assert await both(responder(database), check("a", source=OTHER_SOURCE)) == {"source": SOURCE, "verdicts": []}
    assert database.asked == []


async def test_question_without_a_source_is_answered() -> None:
    """A coordinator that knows no source yet may ask, and learns ours."""
    assert (await both(responder(Database()), check("a", source=None)))["source"] == SOURCE


async def async_decide(questions: Questions) -> Answers:
    return all_committed(questions)


def lazily(questions: Questions) -> Awaitable[Answers]:
    return async_decide(questions)


class Awaiting:
    async def decide(self, questions: Questions, /) -> Answers:
        return all_committed(questions)


@pytest.mark.parametrize(
    "decide", [all_committed, async_decide, lazily, Awaiting(), Database()], ids=["function", "async", "lazy", "object", "sync object"]
)
async def test_decide_may_be_of_either_colour(decide: Any) -> None:
    """Function or object, sync, async or a maker of coroutines: each serves every mount."""
    found = await both(responder(decide), check("a", source=None))
    assert [entry["verdict"] for entry in found["verdicts"]] == ["committed"]


async def test_sync_decide_runs_off_the_loop_and_without_a_loop_in_the_callers_thread() -> None:
    """It may read a database: the loop must not wait, and a framework's own connections must be at hand."""
    threads: list[threading.Thread] = []

    def decide(questions: Questions) -> Answers:
        threads.append(threading.current_thread())
        return {}

    answering = responder(decide)
    await answering.answer({}, check("a"))
    answering.answer_sync({}, check("a"))
    assert threads[0] is not threading.current_thread()
    assert threads[1] is threading.current_thread()


def failing(questions: Questions) -> Answers:
    raise RuntimeError("database is gone")


async def failing_later(questions: Questions) -> Answers:
    raise RuntimeError("database is gone")


def time_out(questions: Questions) -> Answers:
    raise TimeoutError


def not_a_mapping(questions: Questions) -> Any:
    return [Answer(Verdict.COMMITTED)]


@pytest.mark.parametrize("decide", [failing, failing_later, time_out, not_a_mapping])
async def test_r15_decide_that_fails_leaves_every_id_out(decide: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Silence costs no attempt; the reason is in the producer's log."""
    assert await both(responder(decide), check("a", source=None)) == {"verdicts": []}
    assert "check-back not answered" in caplog.text


@pytest.mark.parametrize(
    "wrong",
    [
        Verdict.COMMITTED,
        "committed",
        ("committed", None, None),
        Answer("committed"),  # type: ignore[arg-type]
        Answer(Verdict.COMMITTED, b"d"),  # type: ignore[arg-type]
        Answer(Verdict.COMMITTED, None, ["1"]),  # type: ignore[list-item]
        None,
    ],
)
async def test_r15_answer_of_a_wrong_type_is_left_out_alone(wrong: Any) -> None:
    """One bad value costs its id the answer, and no other."""
    found = await both(responder(lambda questions: {"a": wrong, "b": Answer(Verdict.RUNNING)}), check("a", "b", source=None))
    assert found == {"verdicts": [{"id": "b", "verdict": "running"}]}


async def test_id_that_was_not_asked_is_not_answered() -> None:
    """A decide that says too much gives nothing away."""
    assert await both(responder(lambda questions: {"z": Answer(Verdict.RUNNING)}), check("a", source=None)) == {"verdicts": []}


async def test_r28_late_async_decide_is_cut_off() -> None:
    """With a loop the budget ends the wait, whatever decide waits for."""
    cut = asyncio.Event()

    async def hangs(questions: Questions) -> Answers:
        try:
            await asyncio.Event().wait()
        finally:
            cut.set()
        return {}

    assert await deciding.call(hangs, [Question("a", 1, None)], budget_s=0) == {}
    assert await asyncio.to_thread(deciding.call_sync, hangs, [Question("a", 1, None)], 0.001) == {}
    assert cut.is_set()


def ticking(*times: float) -> Callable[[], float]:
    left = iter(times)
    return lambda: next(left)


@pytest.mark.parametrize(("took_s", "answered"), [(4.5, True), (4.51, False)])
def test_r28_late_sync_decide_is_left_out(took_s: float, answered: bool) -> None:
    """Nobody waits for it any more, so what it found is left for the next question."""
    found = deciding.call_sync(all_committed, [Question("a", 1, None)], monotonic=ticking(0.0, took_s))
    assert bool(found) is answered


def test_r28_budget_is_below_half_of_the_questions_time_out_and_above_the_outboxs_own() -> None:
    """An outbox that stops at 4 s must still get its findings through; 10 s is the time-out."""
    assert 4 < deciding.BUDGET_S < 5


async def test_r5_holders_of_missing_numbers_are_named() -> None:
    """Nobody holds the second one: said by leaving out the id. What was not asked is not told."""
    places = [{"topic": "t", "key": "k", "sequence": 1}, {"topic": "t", "key": "k", "sequence": 2}]
    found = await both(responder(Database()), check(holders=places))
    assert found == {"source": SOURCE, "verdicts": [], "holders": [places[0] | {"id": "b"}, places[1]]}


async def test_holders_are_not_answered_by_who_cannot_tell() -> None:
    """A plain function answers for transactions only."""
    place = {"topic": "t", "key": "k", "sequence": 1}
    assert "holders" not in await both(responder(all_committed), check("a", source=None, holders=[place]))


async def test_signed_question_gets_an_answer_signed_under_its_id() -> None:
    """The answer to one question cannot be played back as the answer to another."""
    body = check("a")
    reply = await responder(Database(), SECRET).answer(signed(body, SECRET), body)
    assert reply.headers[signing.ID] == "msg_1"
    assert signing.verify([SECRET], reply.headers, reply.body, CLOCK.unix_s())


async def test_either_secret_is_good_while_rotating() -> None:
    """Producer and coordinator change secrets at different moments."""
    body = check("a")
    for one in (SECRET, OTHER_SECRET):
        reply = await responder(Database(), [SECRET, OTHER_SECRET]).answer(signed(body, one), body)
        assert reply.status == 200
        assert signing.verify([one], reply.headers, reply.body, CLOCK.unix_s())


@pytest.mark.parametrize("headers", [{}, signed(check("a"), OTHER_SECRET), signed(check("b"), SECRET), {"webhook-signature": "v1,é"}])
async def test_bad_signature_is_401_and_nothing_is_decided(headers: dict[str, str]) -> None:
    """Who does not know the secret learns nothing and lays no fence."""
    reply = await responder(never, SECRET).answer(headers, check("a"))
    assert (reply.status, content(reply)["code"]) == (401, "bad_signature")


def test_without_a_secret_questions_are_open_and_answers_unsigned() -> None:
    """Only what is handed in counts: no environment, no default."""
    reply = responder(all_committed).answer_sync({}, check("a"))
    assert reply.status == 200
    assert reply.headers == {"content-type": "application/json"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"type":"check"}',
        b'{"type":"hello","transactions":[{"id":"a","mark":1}]}',
        check(),
        check("a", "a"),
        check(""),
        check(*map(str, range(51))),
        check("a").replace(b"7", b'"7"'),
        check("a").replace(b"7", b"-7"),
    ],
)
def test_malformed_question_is_400_and_nothing_is_decided(body: bytes) -> None:
    """What is not a question in every part is not half answered."""
    reply = responder(never).answer_sync({}, body)
    assert (reply.status, content(reply)["code"]) == (400, "malformed")


def test_p9_question_of_50_ids_is_answered_and_its_body_has_a_limit() -> None:
    """Fifty ids pass; a body past 1 MiB is not even parsed."""
    assert len(content(responder(all_committed).answer_sync({}, check(*map(str, range(50)))))["verdicts"]) == 50
    assert responder(never).answer_sync({}, b" " * (frames.BODY_BYTES_MAX + 1)).status == 413


def test_fields_of_a_newer_coordinator_are_ignored() -> None:
    """Within /v1 the wire only grows."""
    assert responder(all_committed).answer_sync({}, check("a", source=None, urgency="high")).status == 200


@given(body=st.binary(max_size=100), headers=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_any_bytes_are_refused_and_never_an_error(body: bytes, headers: dict[str, str]) -> None:
    """Garbage is a 400, with a secret a 401."""
    assert responder(never).answer_sync(headers, body).status == 400
    assert responder(never, SECRET).answer_sync(headers, body).status == 401


def test_misconfigured_responder_is_refused_at_once() -> None:
    """A wrong secret or a thing that cannot decide fails where it is written, not at the first question."""
    with pytest.raises(ValueError, match="check secret"):
        Responder(all_committed, secret="hunter2")
    with pytest.raises(TypeError, match="decide"):
        Responder(42)  # type: ignore[arg-type]


def test_frame_of_the_stream_is_read_and_answered_by_the_same_words() -> None:
    """A holder of the stream needs no HTTP to answer."""
    asked = frames.read_frame(json.loads(check("a")) | {"n": 4})
    assert tuple(asked) == (Question("a", 7, SOURCE),)
    answered = frames.write_verdicts(asked, {"a": Answer(Verdict.UNKNOWN)}, SOURCE)
    assert answered == {"source": SOURCE, "verdicts": [{"id": "a", "verdict": "unknown"}]}
    with pytest.raises(frames.Malformed):
        frames.read_frame({"type": "check", "transactions": "all"})
