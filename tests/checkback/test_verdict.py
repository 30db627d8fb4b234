"""What an answer means: a decision only if well formed, else no_answer, for any bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfmsg.checkback import verdict
from halfmsg.checkback.answers import Missing
from halfmsg.checkback.verdict import Result, Ruling

A, B = "018f-a", "018f-b"
OURS, THEIRS = "1" * 32, "2" * 32
DIGEST = "d" * 32


def read(*entries: Any, asked: tuple[str, ...] = (A,)) -> dict[str, Ruling]:
    body = json.dumps({"verdicts": list(entries)}).encode()
    return verdict.read_reply(asked, None, 200, "application/json", body)


@pytest.mark.parametrize("word", ["rolled_back", "running", "unknown"])
def test_word_of_a_verdict_is_its_result(word: str) -> None:
    """Each word of the wire has its result, and detail goes with it."""
    assert read({"id": A, "verdict": word, "detail": "database is locked"})[A] == Ruling(Result(word), detail="database is locked")


def test_r5_committed_keeps_digest_and_numbers_as_given() -> None:
    """Completeness is the coordinator's to judge, so nothing is filled in or taken away."""
    assert read({"id": A, "verdict": "committed", "digest": DIGEST, "numbers": [None, 7]})[A] == Ruling(Result.COMMITTED, DIGEST, (None, 7))
    assert read({"id": A, "verdict": "committed"})[A] == Ruling(Result.COMMITTED)


@pytest.mark.parametrize(
    ("status", "content_type", "body", "detail"),
    [
        (200, "text/html", b"<html>committed</html>", "not JSON"),
        (200, "application/json", b"<html>", "not JSON"),
        (200, "application/json", b"", "not JSON"),
        (200, "", b"", "not JSON"),
        (200, "application/json", b"[]", "not a JSON object"),
        (200, "application/json", b"{}", "no list of verdicts"),
        (200, "application/json", b'{"verdicts": {"018f-a": "committed"}}', "no list of verdicts"),
        (200, "application/json", b"[" * 100_000, "not JSON"),
        (200, "application/json", b'{"verdicts": "\xff"}', "not JSON"),
        (404, "application/json", b'{"verdicts": [{"id": "018f-a", "verdict": "rolled_back"}]}', "HTTP 404"),
        (503, "application/json", b'{"verdicts": [{"id": "018f-a", "verdict": "committed"}]}', "HTTP 503"),
        (201, "application/json", b'{"verdicts": [{"id": "018f-a", "verdict": "committed"}]}', "HTTP 201"),
        (302, "", b"", "HTTP 302"),
    ],
)
def test_p5_what_is_not_an_answer_is_no_answer(status: int, content_type: str, body: bytes, detail: str) -> None:
    """A dropped route, a proxy's page and a bare 200 decide nothing, and cost no attempt."""
    assert verdict.read_reply((A, B), None, status, content_type, body) == {A: verdict.no_answer(detail), B: verdict.no_answer(detail)}


def test_p5_html_answer_is_no_answer() -> None:
    """HTML is no answer even when it is labelled JSON."""
    assert verdict.read_reply((A,), None, 200, "application/json", b"<html>committed</html>")[A].result is Result.NO_ANSWER


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", "application/json;x=y"])
def test_parameters_of_the_content_type_do_not_matter(content_type: str) -> None:
    """JSON is JSON in any spelling of its type."""
    body = json.dumps({"verdicts": [{"id": A, "verdict": "running"}]}).encode()
    assert verdict.read_reply((A,), None, 200, content_type, body)[A].result is Result.RUNNING


@pytest.mark.parametrize(
    "entry",
    [
        {"id": A, "verdict": "COMMITTED"},
        {"id": A, "verdict": "commit"},
        {"id": A, "verdict": "no_answer"},
        {"id": A, "verdict": True},
        {"id": A, "verdict": ["committed"]},
        {"id": A, "verdict": None},
        {"id": A},
        {"id": A, "verdict": "committed", "digest": 7},
        {"id": A, "verdict": "committed", "numbers": "1"},
        {"id": A, "verdict": "committed", "numbers": [1.0]},
        {"id": A, "verdict": "committed", "numbers": [True]},
        {"id": A, "verdict": "committed", "numbers": [0]},
        {"id": A, "verdict": "committed", "numbers": [-1]},
        {"id": A, "verdict": "committed", "numbers": [2**53]},
        {"id": A, "verdict": "committed", "numbers": [1] * 1025},
        {"id": [A], "verdict": "committed"},
        "committed",
        None,
    ],
)
def test_p5_other_words_and_types_are_no_answer(entry: Any) -> None:
    """One malformed entry decides nothing and costs its neighbour nothing."""
    rulings = read(entry, {"id": B, "verdict": "rolled_back"}, asked=(A, B))
    assert rulings[A].result is Result.NO_ANSWER
    assert rulings[B].result is Result.ROLLED_BACK


def test_numbers_are_accepted_up_to_the_last_exact_one() -> None:
    """2^53 - 1 is exact in every JSON reader."""
    assert read({"id": A, "verdict": "committed", "numbers": [2**53 - 1]})[A].numbers == (2**53 - 1,)


def test_r15_id_left_out_is_no_answer_and_id_not_asked_is_ignored() -> None:
    """The rulings are of the ids asked, no more and no fewer."""
    assert read({"id": B, "verdict": "committed"}) == {A: verdict.no_answer("id not in the answer")}


def test_id_answered_twice_alike_counts_once_and_differently_not_at_all() -> None:
    """Two words for one id are no word."""
    yes, no = {"id": A, "verdict": "committed", "digest": DIGEST}, {"id": A, "verdict": "rolled_back"}
    assert read(yes, yes)[A].result is Result.COMMITTED
    for entries in ((yes, no), (yes, no, yes), (yes, yes | {"digest": "e" * 32}), (yes, {"id": A, "verdict": "?"}), (yes, yes | {"numbers": [1]})):
        assert read(*entries)[A].result is Result.NO_ANSWER, entries


@pytest.mark.parametrize("frame", [{"source": THEIRS}, {"source": None}, {"source": 1}, {}])
def test_r7_answer_of_another_database_is_wrong_source(frame: dict[str, Any]) -> None:
    """Asked for our database, an answer that names another or none has not spoken for it."""
    body = json.dumps({"verdicts": [{"id": A, "verdict": "rolled_back"}]} | frame).encode()
    assert verdict.read_reply((A,), OURS, 200, "application/json", body) == {A: verdict.no_answer(verdict.WRONG_SOURCE)}


def test_r7_answer_of_the_same_database_or_of_any_while_none_is_bound_counts() -> None:
    """The source is compared only where we know it."""
    body = {"verdicts": [{"id": A, "verdict": "running"}]}
    assert verdict.read_verdicts((A,), OURS, body | {"source": OURS})[A].result is Result.RUNNING
    assert verdict.read_verdicts((A,), None, body | {"source": THEIRS})[A].result is Result.RUNNING


def test_detail_is_short_and_cannot_break_a_log_line() -> None:
    """A stranger's text reaches the console as one short line."""
    detail = read({"id": A, "verdict": "unknown", "detail": "a\nb\x1b[31m" + "x" * 500})[A].detail
    assert detail.startswith("a b [31m") and len(detail) == verdict.DETAIL_CHARS_MAX
    assert read({"id": A, "verdict": "unknown", "detail": 7})[A].detail == ""


@pytest.mark.parametrize(("status", "result"), [(200, "committed"), (409, "rolled_back"), (425, "running"), (404, "no_answer"), (204, "no_answer")])
def test_dtm_status_is_the_answer(status: int, result: str) -> None:
    """Three statuses speak, every other is silence."""
    assert verdict.read_dtm(status).result == result


def test_r5_holders_are_those_asked_answered_well_and_once() -> None:
    """What names another place, or two holders for one, is left out."""
    one, two, three = (Missing("t", "k", n) for n in (1, 2, 3))
    frame = {
        "source": OURS,
        "holders": [
            one._asdict() | {"id": A},
            two._asdict(),
            three._asdict() | {"id": A},
            three._asdict() | {"id": B},
            {"topic": "t", "key": "k", "sequence": 9, "id": A},
            {"topic": "t", "key": "k", "sequence": True, "id": A},
            {"topic": "t", "key": "k", "sequence": 1, "id": 5},
            "x",
        ],
    }
    assert verdict.read_holders([one, two, three], OURS, frame) == {one: A, two: None}
    assert verdict.read_holders([one], THEIRS, frame) == {}
    assert verdict.read_holders([one], OURS, {"source": OURS, "holders": 3}) == {}


def may_decide(body: bytes) -> set[tuple[str, str]]:
    """By another reader: which (id, word) a body says anywhere in a list named verdicts."""
    try:
        frame = json.loads(body)
        entries = [entry for entry in frame["verdicts"] if isinstance(entry, dict)]
        return {(str(entry.get("id")), str(entry.get("verdict"))) for entry in entries}
    except (ValueError, RecursionError, TypeError, KeyError):
        return set()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from([A, B, "committed", "rolled_back"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "verdict", "digest", "numbers", "source"]), inner, max_size=5),
    max_leaves=12,
)
near_answers = st.fixed_dictionaries({"verdicts": json_values}).map(lambda frame: json.dumps(frame).encode())


@given(
    body=st.binary(max_size=200) | near_answers,
    status=st.sampled_from([200, 200, 200, 404, 500]),
    content_type=st.sampled_from(["application/json", "text/html"]),
)
def test_p5_any_bytes_give_each_id_a_ruling_and_decide_only_if_well_formed(body: bytes, status: int, content_type: str) -> None:
    """No input raises, none leaves an id out, and a decision stands in the body in so many words."""
    rulings = verdict.read_reply((A, B), None, status, content_type, body)
    assert rulings.keys() == {A, B}
    decisions = {(id_, ruling.result.value) for id_, ruling in rulings.items() if ruling.result.decides}
    assert decisions <= (may_decide(body) if (status, content_type) == (200, "application/json") else set())


@given(frame=st.dictionaries(st.sampled_from(["verdicts", "source", "holders"]), json_values))
def test_any_frame_of_the_stream_gives_each_id_a_ruling(frame: dict[str, Any]) -> None:
    """The decoded form is as safe as the bytes; source and holders of any type included."""
    assert verdict.read_verdicts((A, B), OURS, frame).keys() == {A, B}
    verdict.read_holders([Missing("t", "k", 1)], None, frame)
