"""What an answer means for each id that was asked. Pure: bytes or a decoded frame in, one ruling an id out.

A ruling is a decision only if the answer is well formed in every part that bears on it; whatever else comes back, a
404 of a deploy that dropped the route, a proxy's HTML, a bare 200, is `no_answer` (R15): it decides nothing and costs no
attempt (P5). Nothing here raises for any input. That `committed` is complete (R5) and that its digest is the stored one (R9)
is judged by the coordinator, which knows the transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from .answers import Missing

WRONG_SOURCE = "wrong_source"
"""The detail of a ruling whose answer came from another database than the one asked (R7): the coordinator alarms on it."""
DETAIL_CHARS_MAX = 200
NUMBERS_MAX = 1024  # messages of one transaction
NUMBER_MAX = 2**53 - 1  # counters stay exact in every JSON reader


class Result(StrEnum):
    """What the coordinator notes for one id after one question."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    RUNNING = "running"
    UNKNOWN = "unknown"
    NO_ANSWER = "no_answer"

    @property
    def decides(self) -> bool:
        """Whether it is a decision: the other three leave the transaction as it is."""
        return self in (Result.COMMITTED, Result.ROLLED_BACK)


@dataclass(frozen=True, slots=True)
class Ruling:
    """The meaning of an answer for one id. `digest` and `numbers` stand as the producer gave them, and with `committed` only."""

    result: Result
    digest: str | None = None
    numbers: tuple[int | None, ...] | None = None
    detail: str = ""
    """A few words for the console; for `no_answer` why there is none."""


def no_answer(detail: str) -> Ruling:
    """The ruling of an id that got no usable answer, and why, in a few words."""
    return Ruling(Result.NO_ANSWER, detail=detail)


def no_answers(asked: Sequence[str], detail: str) -> dict[str, Ruling]:
    """The same for every id of a question."""
    return dict.fromkeys(asked, no_answer(detail))


def read_reply(asked: Sequence[str], source: str | None, status: int, content_type: str, body: bytes) -> dict[str, Ruling]:
    """The rulings of an HTTP answer. Only a 200 with `application/json` is looked into (R15)."""
    frame = read_frame(status, content_type, body)
    return no_answers(asked, frame) if isinstance(frame, str) else read_verdicts(asked, source, frame)


def read_frame(status: int, content_type: str, body: bytes) -> dict[str, object] | str:
    """The JSON object of an HTTP answer, or the reason why there is none."""
    if status != 200:
        return f"HTTP {status}"
    if content_type.partition(";")[0].strip().lower() != "application/json":
        return "not JSON"
    try:
        frame = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return "not JSON"
    return frame if isinstance(frame, dict) else "not a JSON object"


def read_verdicts(asked: Sequence[str], source: str | None, frame: Mapping[str, object]) -> dict[str, Ruling]:
    """The rulings of a decoded answer: one for each id asked, none for others.

    Where `source` is ours to give, the answer must name the same: an answer that names none has not shown that it speaks
    for the database that was asked (R7). An id answered twice counts only if both say the same.
    """
    if source is not None and frame.get("source") != source:
        return no_answers(asked, WRONG_SOURCE)
    entries = frame.get("verdicts")
    if not isinstance(entries, list | tuple):
        return no_answers(asked, "no list of verdicts")
    rulings = no_answers(asked, "id not in the answer")
    seen: set[str] = set()
    for entry in entries:
        id_ = entry.get("id") if isinstance(entry, Mapping) else None
        if not isinstance(id_, str) or id_ not in rulings:
            continue
        ruling = _read_one(entry)
        rulings[id_] = _agreed(rulings[id_], ruling) if id_ in seen else ruling
        seen.add(id_)
    return rulings


def _agreed(first: Ruling, second: Ruling) -> Ruling:
    same = (first.result, first.digest, first.numbers) == (second.result, second.digest, second.numbers)
    return first if same else no_answer("answered twice, differently")


def _read_one(entry: Mapping[str, object]) -> Ruling:
    word = entry.get("verdict")
    if word not in ("committed", "rolled_back", "running", "unknown"):
        return no_answer("not a verdict")
    detail = _readable(entry.get("detail"))
    if word != "committed":
        return Ruling(Result(word), detail=detail)
    digest, numbers = entry.get("digest"), entry.get("numbers")
    if not (digest is None or isinstance(digest, str)):
        return no_answer("digest is not text")
    if numbers is None:
        return Ruling(Result.COMMITTED, digest, None, detail)
    if not isinstance(numbers, list | tuple) or len(numbers) > NUMBERS_MAX or not all(map(_is_number_or_none, numbers)):
        return no_answer("numbers are not whole numbers")
    return Ruling(Result.COMMITTED, digest, tuple(numbers), detail)


def _is_number_or_none(value: object) -> bool:
    # bool is an int to Python, and `true` is no number
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= NUMBER_MAX)


def _readable(detail: object) -> str:
    """The producer's own words, cut short, and unable to break a log line."""
    if not isinstance(detail, str):
        return ""
    return "".join(c if c.isprintable() else " " for c in detail[:DETAIL_CHARS_MAX])


def read_dtm(status: int) -> Ruling:
    """DTM's way: the status is the answer. Only for a producer registered with `dialect: "dtm"`, one id a question.

    Else a bare 200 of a health page would commit (dtm#535).
    """
    known = {200: Result.COMMITTED, 409: Result.ROLLED_BACK, 425: Result.RUNNING}
    result = known.get(status)
    return no_answer(f"HTTP {status}") if result is None else Ruling(result, detail="dtm")


def read_holders(asked: Sequence[Missing], source: str | None, frame: Mapping[str, object]) -> dict[Missing, str | None]:
    """Who holds the missing numbers, from the `holders` part of an answer (R5); None = the producer says that nobody does.

    Only what was asked, answered well and answered once is in the result: a hint for the gap list decides nothing.
    """
    entries = frame.get("holders")
    if (source is not None and frame.get("source") != source) or not isinstance(entries, list | tuple):
        return {}
    found: dict[Missing, set[str | None]] = {}
    for entry in entries:
        place, holder = _read_holder(entry)
        if place is not None and place in asked:
            found.setdefault(place, set()).add(holder)
    return {place: holders.pop() for place, holders in found.items() if len(holders) == 1}


def _read_holder(entry: object) -> tuple[Missing | None, str | None]:
    if not isinstance(entry, Mapping):
        return None, None
    topic, key, sequence, holder = (entry.get(name) for name in ("topic", "key", "sequence", "id"))
    if not (isinstance(topic, str) and isinstance(key, str) and isinstance(sequence, int) and not isinstance(sequence, bool)):
        return None, None
    if not (holder is None or isinstance(holder, str)):
        return None, None
    return Missing(topic, key, sequence), holder
