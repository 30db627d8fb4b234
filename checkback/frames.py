"""Question and answer as they travel, from the side that answers: what came in becomes questions, answers become an object.

Used over HTTP by the responder, and over the stream by whoever holds it. Pure. Fields that a newer coordinator may add
are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from .answers import Answer, Answers, Holders, Missing, Question, Questions, Reply, Verdict

IDS_MAX = 50
BODY_BYTES_MAX = 1024 * 1024

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
_Whole = Annotated[int, msgspec.Meta(ge=0)]


class Malformed(ValueError):
    """The body is not a check-back question; nothing was looked at."""


class Asked(tuple[Question, ...]):
    """The questions of one request, with what else its answer must know."""

    message_id: str
    """The request's `webhook-id`. The answer is signed under the same one, so that it answers this question and no other."""
    source: str | None
    missing: tuple[Missing, ...]

    def __new__(cls, questions: Iterable[Question], *, message_id: str = "", source: str | None = None, missing: tuple[Missing, ...] = ()) -> Asked:
        self = super().__new__(cls, questions)
        self.message_id, self.source, self.missing = message_id, source, missing
        return self


class _Transaction(msgspec.Struct, frozen=True):
    id: _Name
    mark: _Whole


class _Place(msgspec.Struct, frozen=True):
    topic: str
    key: str
    sequence: _Whole


class _Check(msgspec.Struct, frozen=True):
    type: Literal["check"]
    transactions: Annotated[list[_Transaction], msgspec.Meta(max_length=IDS_MAX)]
    source: str | None = None
    holders: Annotated[list[_Place], msgspec.Meta(max_length=IDS_MAX)] = []


def read_body(body: bytes, message_id: str = "") -> Asked:
    """The questions of a JSON body. Errors: Malformed."""
    try:
        return _asked(msgspec.json.decode(body, type=_Check), message_id)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error


def read_frame(frame: Mapping[str, Any]) -> Asked:
    """The questions of a decoded `check` frame of the stream. Errors: Malformed."""
    try:
        return _asked(msgspec.convert(frame, _Check), "")
    except msgspec.ValidationError as error:
        raise Malformed(str(error)) from error


def _asked(check: _Check, message_id: str) -> Asked:
    ids = [transaction.id for transaction in check.transactions]
    if len(set(ids)) < len(ids):
        raise Malformed("an id is asked twice")
    if not ids and not check.holders:
        raise Malformed("nothing is asked")
    return Asked(
        (Question(transaction.id, transaction.mark, check.source) for transaction in check.transactions),
        message_id=message_id,
        source=check.source,
        missing=tuple(Missing(place.topic, place.key, place.sequence) for place in check.holders),
    )


def write_verdicts(questions: Questions, answers: Answers, source_id: str | None, holders: Holders | None = None) -> dict[str, Any]:
    """The answer as an object. What was not asked, or is not a whole `Answer`, is left out: one bad one costs no other (R15)."""
    asked = ((question.id, answers.get(question.id)) for question in questions)
    reply: dict[str, Any] = {"verdicts": [_verdict(id_, answer) for id_, answer in asked if _is_answer(answer)]}
    if source_id is not None:
        reply["source"] = source_id
    found = {place: holders[place] for place in getattr(questions, "missing", ()) if place in holders} if holders else {}
    if found:
        reply["holders"] = [place._asdict() | ({} if id_ is None else {"id": str(id_)}) for place, id_ in found.items()]
    return reply


def _is_answer(answer: object) -> bool:
    if not (isinstance(answer, Answer) and isinstance(answer.verdict, Verdict) and isinstance(answer.digest, str | None)):
        return False
    return answer.numbers is None or all(isinstance(number, int | None) for number in answer.numbers)


def _verdict(id_: str, answer: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": id_, "verdict": str(answer.verdict)}
    if answer.verdict is Verdict.COMMITTED and answer.digest is not None:
        entry["digest"] = answer.digest
    if answer.verdict is Verdict.COMMITTED and answer.numbers is not None:
        entry["numbers"] = list(answer.numbers)
    return entry


def refusal(status: int, code: str, detail: str = "") -> Reply:
    """A problem+json reply that decides nothing: to the asker every status but 200 is `no_answer`."""
    problem = {"status": status, "code": code, "detail": detail}
    return Reply(status, {"content-type": "application/problem+json"}, msgspec.json.encode(problem))
