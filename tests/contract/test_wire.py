"""The wire shapes stand twice, in the coordinator and in the client; these files bind the two (DESIGN §7).

`golden/*.json` is what travels. Each side must read it, and each must write it: what the client sends, what the coordinator answers.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfmsg.checkback import frames, question, verdict
from halfmsg.checkback.answers import Answer, Missing
from halfmsg.checkback.answers import Verdict as Said
from halfmsg.checkback.ports import DueCheck
from halfmsg.coordinator import digests as ours
from halfmsg.coordinator import parse, render, wire
from halfmsg.coordinator.errors import CODES, Problem
from halfmsg.txclient import _digest as theirs
from halfmsg.txclient import _wire
from halfmsg.txclient._transaction import Transaction

GOLDEN = Path(__file__).parent / "golden"
SENT = {"prepare": _wire.Prepare, "submit": _wire.Submit, "commit": _wire.Commit, "rollback": _wire.Rollback, "ack": _wire.Ack, "nack": _wire.Nack,
        "reject": _wire.Reject, "extend": _wire.Extend, "hello": _wire.Hello, "subscribe": _wire.Subscribe, "unsubscribe": _wire.Unsubscribe,
        "credit": _wire.Credit, "verdicts": _wire.Verdicts, "beat": _wire.Beat}  # fmt: skip


def golden(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def named(name: str, member: str) -> list[Any]:
    return [pytest.param(each[member], id=each["name"]) for each in golden(name)]


def _raw(value: Any) -> bytes:
    """The bytes of a raw JSON body, as one value without white space."""
    return msgspec.json.encode(value)


def _client_op(op: dict[str, Any]) -> Any:
    """The client's own value of an operation: a body is bytes there."""
    fields = {name: value for name, value in op.items() if name != "op"}
    if "messages" in fields:
        fields["messages"] = [_client_message(each) for each in fields["messages"]]
    if "deliveries" in fields:
        fields["deliveries"] = [_wire.Item(**each) for each in fields["deliveries"]]
    return SENT[op["op"]](**fields)


def _client_message(given: dict[str, Any]) -> _wire.M:
    fields = dict(given)
    body = base64.b64decode(fields.pop("data_base64")) if "data_base64" in fields else _raw(fields.pop("data"))
    return _wire.M(data=body, **fields)


def _plain(op: Any) -> Any:
    """A decoded operation of the coordinator as plain values, its bodies as bytes."""
    fields = {name: getattr(op, name) for name in op.__struct_fields__}
    if "messages" in fields:
        fields["messages"] = [_with_body(each) for each in op.messages]
    return fields


def _with_body(message: wire.MessageIn) -> dict[str, Any]:
    body = bytes(message.data) if message.data is not msgspec.UNSET else base64.b64decode(message.data_base64 or "")  # type: ignore[arg-type]
    names = ("topic", "key", "tag", "attributes", "content_type", "traceparent", "index", "sequence")
    return {name: getattr(message, name) for name in names} | {"body": body}


@pytest.mark.parametrize("op", named("ops", "op"))
def test_client_writes_the_operation(op: dict[str, Any]) -> None:
    """JSON of the client is the golden one, member by member, nothing more."""
    assert json.loads(bytes(_wire.Json().op(_client_op(op)))) == op


@pytest.mark.parametrize("op", named("ops", "op"))
def test_coordinator_reads_the_operation_alike_in_both_encodings(op: dict[str, Any]) -> None:
    """The same command comes out of golden JSON, of the client's JSON and of the client's msgpack."""
    from_golden = wire.decode_json(msgspec.json.encode(op), wire.Op)
    from_json = wire.decode_json(bytes(_wire.Json().op(_client_op(op))), wire.Op)
    from_msgpack = wire.decode_msgpack(bytes(_wire.Msgpack().op(_client_op(op))), wire.Op)
    assert _plain(from_golden) == _plain(from_json)
    assert type(from_msgpack) is type(from_golden)
    if "messages" not in op:
        assert from_msgpack == from_golden
        return
    for packed, bare in zip(from_msgpack.messages, from_golden.messages, strict=True):
        ours_packed, ours_bare = parse.message(packed, 0, packed=True), parse.message(bare, 0, packed=False)
        assert ours_packed == ours_bare
    rest = [name for name in from_golden.__struct_fields__ if name != "messages"]
    assert [getattr(from_msgpack, name) for name in rest] == [getattr(from_golden, name) for name in rest]


def test_every_operation_has_a_golden_file() -> None:
    """A new operation without one would be bound by nothing."""
    tags = {kind.__struct_config__.tag for kind in wire.Op.__args__}
    assert tags == {each["op"]["op"] for each in golden("ops")}
    frame_tags = {kind.__struct_config__.tag for kind in wire.ClientFrame.__args__}
    assert frame_tags - {"ops"} == {each["frame"]["type"] for each in golden("client_frames")}


@pytest.mark.parametrize("frame", named("client_frames", "frame"))
def test_frame_of_the_client_is_read_in_both_encodings(frame: dict[str, Any]) -> None:
    """What the client writes is the golden frame, and the coordinator takes it from JSON and msgpack alike."""
    value = SENT[frame["type"]](**{name: each for name, each in frame.items() if name != "type"})
    assert json.loads(_wire.Json.encode(value)) == frame
    from_json = wire.decode_json(_wire.Json.encode(value), wire.ClientFrame)
    assert from_json == wire.decode_msgpack(_wire.Msgpack.encode(value), wire.ClientFrame)
    assert json.loads(msgspec.json.encode(from_json)) == frame


def test_ops_frame_is_read_in_both_encodings() -> None:
    """Everything that waits goes in one frame."""
    ops = [_client_op(each["op"]) for each in golden("ops")]
    for codec, decode in ((_wire.Json(), wire.decode_json), (_wire.Msgpack(), wire.decode_msgpack)):
        frame = decode(codec.encode(_wire.Ops(n=7, ops=[codec.op(op) for op in ops])), wire.ClientFrame)
        assert (frame.n, [type(op).__struct_config__.tag for op in frame.ops]) == (7, [each["op"]["op"] for each in golden("ops")])


@pytest.mark.parametrize("frame", named("server_frames", "frame"))
def test_frame_of_the_coordinator_is_read_by_the_client(frame: dict[str, Any]) -> None:
    """Every member that is in the frame is read; unknown members and unknown types are passed over."""
    for codec, encode in ((_wire.Json(), msgspec.json.encode), (_wire.Msgpack(), msgspec.msgpack.encode)):
        read = codec.frame(encode(frame | {"unheard_of": [1]}))
        assert type(read).__struct_config__.tag == frame["type"]
        for name in frame.keys() - {"type", "results", "deliveries"}:
            assert getattr(read, name) == frame[name]
        assert codec.frame(encode({"type": "of_the_future", "n": 1})) is None


@pytest.mark.parametrize("transaction", golden("transactions"), ids=["committed", "prepared"])
def test_transaction_is_written_and_read(transaction: dict[str, Any]) -> None:
    """T: the coordinator's struct and the client's hold every member of it."""
    assert json.loads(msgspec.json.encode(msgspec.convert(transaction, wire.TransactionOut))) == {k: v for k, v in transaction.items() if v != []}
    read = msgspec.convert(transaction, Transaction)
    assert (read.id, read.state, read.digest) == (transaction["id"], transaction["state"], transaction["digest"])
    assert [each.id for each in read.messages] == [each["id"] for each in transaction["messages"]]


@pytest.mark.parametrize("delivery", golden("deliveries"), ids=["full", "smallest"])
def test_delivery_is_written_and_read(delivery: dict[str, Any]) -> None:
    """D: bytes out are bytes in, in both encodings, and no member is lost on the way."""
    body = base64.b64decode(delivery["data_base64"]) if "data_base64" in delivery else _raw(delivery["data"])
    fields = {name: value for name, value in delivery.items() if not name.startswith("data")}
    as_json = wire.DeliveryOut(**fields, **({"data_base64": delivery["data_base64"]} if "data_base64" in delivery else {"data": msgspec.Raw(body)}))
    assert json.loads(wire.encode_json(as_json)) == delivery
    as_msgpack = wire.DeliveryOut(**fields, data=body)
    [read] = _wire.Json().deliveries([msgspec.Raw(wire.encode_json(as_json))], "billing")
    [packed] = _wire.Msgpack().deliveries([msgspec.Raw(wire.encode_msgpack(as_msgpack))], "billing")
    assert read == packed
    assert read.body == body
    told = json.loads(msgspec.json.encode(read))
    for name, value in fields.items():
        if name not in ("time", "lease_until"):
            assert told[name] == value


@pytest.mark.parametrize("problem", golden("problems"), ids=lambda each: each["code"])
def test_problem_is_written_and_raised(problem: dict[str, Any]) -> None:
    """The coordinator writes it, and the client raises an error with the same code, status and decision."""
    from halfmsg.txclient.errors import api_error

    written = Problem(problem["code"], problem["detail"], **({"transaction": problem["transaction"]} if "transaction" in problem else {}))
    assert json.loads(wire.encode_json(render.problem(written))) == problem
    error: Any = api_error(problem)
    assert (error.code, error.status) == (problem["code"], problem["status"])


def test_every_code_has_a_status_that_the_client_understands() -> None:
    """No code makes the client fail on reading it."""
    from halfmsg.txclient.errors import HalfmsgError, api_error

    for code in CODES:
        error = api_error(render.problem(Problem(code, "x")))
        assert isinstance(error, HalfmsgError) and error.code == code


# --- check-back ---


def test_question_is_written_by_the_one_who_asks() -> None:
    """Every member as in the golden question."""
    asked = golden("check")["question"]
    [each] = asked["transactions"]
    due = DueCheck(1, each["id"], each["mark"], 1, "orders", asked["source"], 1_790_000_000_123, 1, tuple(each["topics"]))
    built = question.build("orders", asked["source"], [due], [Missing("orders", "k", 4)])
    assert built["transactions"][0].pop("prepared_at").endswith(".123Z")
    del each["prepared_at"]
    assert json.loads(json.dumps(built)) == asked


def test_question_is_read_by_the_one_who_answers() -> None:
    """Over HTTP and over the stream."""
    asked = golden("check")["question"]
    for read in (frames.read_body(json.dumps(asked).encode()), frames.read_frame(asked | {"n": 3})):
        assert [(each.id, each.mark) for each in read] == [(asked["transactions"][0]["id"], 5)]
        assert (read.source, read.missing) == (asked["source"], (Missing("orders", "k", 4),))


@pytest.mark.parametrize("case", golden("check")["answers"], ids=lambda case: case["name"])
def test_p5_verdict_means_the_same_on_both_sides(case: dict[str, Any]) -> None:
    """What the responder writes is the golden answer; what the coordinator reads in it is the golden ruling."""
    asked = golden("check")["question"]
    read = frames.read_frame(asked)
    id = asked["transactions"][0]["id"]
    ruling = case["ruling"]
    word = ruling["result"]
    numbers = tuple(ruling["numbers"]) if "numbers" in ruling else None
    answers = {} if word == "no_answer" else {id: Answer(Said(word), ruling.get("digest"), numbers)}
    holders = {Missing("orders", "k", 4): case["holder"]} if "holder" in case else None
    assert frames.write_verdicts(read, answers, asked["source"], holders) == case["answer"]
    found = verdict.read_verdicts([id], asked["source"], case["answer"])[id]
    assert (found.result.value, found.digest, found.numbers) == (word, ruling.get("digest"), numbers)
    assert verdict.read_holders([Missing("orders", "k", 4)], asked["source"], case["answer"]) == (holders or {})


# --- digests ---


@pytest.mark.parametrize("case", golden("digests"))
def test_p8_digests_are_the_golden_ones(case: dict[str, Any]) -> None:
    """Both sides compute what stands in the file (R9)."""
    mine, other = [], []
    for each in case["messages"]:
        shared = {"topic": each["topic"], "tag": each.get("tag"), "content_type": each["content_type"], "body": base64.b64decode(each["body_base64"])}
        key, attributes = each.get("key"), each.get("attributes")
        mine.append(ours.message_digest(**shared, key=None if key is None else key.encode(), attributes=attributes))
        other.append(theirs.message_digest(**shared, key=key, attributes=attributes))
        assert mine[-1].hex() == other[-1].hex() == each["digest"]
    assert ours.transaction_digest(mine).hex() == theirs.transaction_digest(other).hex() == case["digest"]


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@given(topic=TEXT, key=st.none() | TEXT, tag=st.none() | TEXT, content_type=TEXT, body=st.binary(max_size=50),
       attributes=st.none() | st.dictionaries(TEXT, TEXT, max_size=4))  # fmt: skip
def test_p8_digests_of_both_sides_are_equal(
    topic: str, key: str | None, tag: str | None, content_type: str, body: bytes, attributes: dict[str, str] | None
) -> None:
    """Whatever the content, an absent field is not an empty one, and the order of attributes does not matter."""
    mine = ours.message_digest(topic=topic, key=None if key is None else key.encode(), tag=tag, content_type=content_type, body=body,
                               attributes=attributes)  # fmt: skip
    turned = None if attributes is None else dict(reversed(attributes.items()))
    other = theirs.message_digest(topic=topic, key=key, tag=tag, content_type=content_type, body=body, attributes=turned)
    assert mine == other
    assert ours.transaction_digest([mine, other]) == theirs.transaction_digest([other, mine])
    if key is None:
        assert mine != theirs.message_digest(topic=topic, key="", tag=tag, content_type=content_type, body=body, attributes=attributes)


@given(body=st.binary(max_size=40) | st.text(max_size=20).map(msgspec.json.encode) | st.sampled_from(
    [b"", b"1", b" 1", b"1\n", b"NaN", b"[1,]", b"{}", b"1 2", b'"\\ud800"', b"[" * 2_000 + b"]" * 2_000, b"\xef\xbb\xbf1"]))  # fmt: skip
def test_p8_both_sides_agree_on_what_is_bare_json(body: bytes) -> None:
    """A body stands as raw `data` for both or for neither."""
    from halfmsg.txclient._body import is_bare_json

    assert wire.is_bare_json("application/json", body) == is_bare_json("application/json", body)


@given(body=st.binary(max_size=200), content_type=st.sampled_from(["application/json", "text/plain", None]))
def test_p8_any_body_goes_in_and_out_as_it_is(body: bytes, content_type: str | None) -> None:
    """Client to coordinator in both encodings: the very bytes."""
    op = _wire.Submit(id="0" * 32, messages=[_wire.M(topic="t", content_type=content_type, data=body)])
    from_json = wire.decode_json(bytes(_wire.Json().op(op)), wire.Op)
    from_msgpack = wire.decode_msgpack(bytes(_wire.Msgpack().op(op)), wire.Op)
    assert wire.body_of(from_json.messages[0], packed=False) == wire.body_of(from_msgpack.messages[0], packed=True) == body
