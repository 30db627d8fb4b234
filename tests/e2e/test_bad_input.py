"""What a stranger, a bug or an attacker may send over HTTP: each is a typed problem, and nothing stored changes."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halfmsg.coordinator.errors import CODES
from tests.support.serving import Served
from tests.support.stores import changed

from .standing import DECIDED, ID, OPEN, POST, M, deep, message, tx

BAD: list[Any] = [
    # name, path, body (dict or bytes), status, code
    ("garbage", POST, b"\x00\xff garbage", 400, "bad_request"),
    ("half", POST, b'{"producer":', 400, "bad_request"),
    ("two_values", POST, b"{} {}", 400, "bad_request"),
    ("array", POST, b"[]", 400, "bad_request"),
    ("null", POST, b"null", 400, "bad_request"),
    ("empty", POST, b"", 400, "bad_request"),
    ("nan", POST, b'{"producer":"orders","messages":[{"topic":"plain","data":NaN}]}', 400, "bad_request"),
    ("infinity", POST, b'{"producer":"orders","mark":Infinity,"messages":[{"topic":"plain"}]}', 400, "bad_request"),
    ("lone_surrogate_key", POST, b'{"producer":"orders","messages":[{"topic":"seq","key":"\\ud800"}]}', 400, "bad_request"),
    ("invalid_utf8", POST, b'{"producer":"orders","messages":[{"topic":"seq","key":"\xff"}]}', 400, "bad_request"),
    ("deep", POST, deep(100_000), 400, "bad_request"),
    ("unknown_field", POST, tx(dealy_s=1), 400, "unknown_field"),
    ("unknown_message_field", POST, message(tpoic="x"), 400, "unknown_field"),
    ("string_mark", POST, tx(mark="1"), 400, "bad_request"),
    ("float_mark", POST, tx(mark=1.5), 400, "bad_request"),
    ("negative_mark", POST, tx(mark=-1), 400, "bad_request"),
    ("huge_mark", POST, tx(mark=2**53), 400, "bad_request"),
    ("enormous_number", POST, b'{"producer":"orders","mark":' + b"9" * 5_000 + b',"messages":[{"topic":"plain"}]}', 400, "bad_request"),
    ("boolean_id", POST, tx(id=True), 400, "bad_request"),
    ("id_no_uuid", POST, tx(id="z" * 36), 400, "bad_request"),
    ("id_short", POST, tx(id="1" * 31), 400, "bad_request"),
    ("bad_state", POST, tx(state="rolled_back"), 400, "bad_request"),
    ("no_messages", POST, tx(messages=[]), 400, "bad_request"),
    ("no_producer", POST, {"messages": [M]}, 400, "bad_request"),
    ("too_many_messages", POST, tx(messages=[M] * 1_001), 413, "too_large"),
    ("long_producer", POST, tx(producer="p" * 129), 400, "bad_name"),
    ("long_topic", POST, message(topic="t" * 129), 400, "bad_name"),
    ("topic_with_nul", POST, message(topic="pl\x00ain"), 400, "bad_name"),
    ("bad_source", POST, tx(source="xyz"), 400, "bad_name"),
    ("unknown_topic", POST, message(topic="nowhere"), 404, "topic_not_found"),
    ("unknown_producer", POST, tx(producer="nobody"), 404, "producer_not_found"),
    ("other_digest", POST, tx(digest="0" * 32), 409, "content_differs"),
    ("other_content", POST, {"id": DECIDED} | message(data=2), 409, "content_differs"),
    ("long_key", POST, message(topic="seq", key="k" * 257), 400, "bad_name"),
    ("long_key_in_bytes", POST, message(topic="seq", key="ü" * 129), 400, "bad_name"),
    ("empty_key", POST, message(topic="seq", key=""), 400, "bad_name"),
    ("key_on_unordered", POST, message(key="k"), 400, "combination_refused"),
    ("no_key_on_sequence", POST, message(topic="seq"), 400, "combination_refused"),
    ("many_attributes", POST, message(attributes={str(i): "" for i in range(33)}), 413, "too_large"),
    ("long_attribute_name", POST, message(attributes={"n" * 65: ""}), 413, "too_large"),
    ("long_attribute_value", POST, message(attributes={"n": "v" * 1_025}), 413, "too_large"),
    ("attribute_number", POST, message(attributes={"n": 1}), 400, "bad_request"),
    ("two_bodies", POST, message(data_base64="AA=="), 400, "bad_request"),
    ("bad_base64", POST, {"producer": "orders", "messages": [{"topic": "plain", "data_base64": "not base64!"}]}, 400, "bad_request"),
    ("duplicate_index", POST, tx(messages=[M | {"index": 1}, M]), 400, "bad_request"),
    ("index_over", POST, message(index=1_024), 400, "bad_request"),
    ("big_body", POST, message(data="x" * (1024 * 1024)), 413, "too_large"),
    ("big_transaction", POST, tx(messages=[M | {"data": "x" * 1_000_000}] * 5), 413, "too_large"),
    ("over_the_request_limit", POST, b" " * (8 * 1024 * 1024 + 1), 413, "too_large"),
    ("delay", POST, message(delay_s=5), 501, "not_supported"),
    ("submit_without_number", POST, message(topic="seq", key="k") | {"state": "committed"}, 422, "incomplete_decision"),
    ("negative_first_check", POST, tx(first_check_s=-1), 400, "bad_request"),
    ("plain_send_with_key", "/v1/topics/plain/messages", {"data": 1, "key": "k"}, 400, "combination_refused"),
    ("plain_send_on_sequence", "/v1/topics/seq/messages", {"data": 1, "key": "k"}, 400, "combination_refused"),
    ("plain_send_to_nowhere", "/v1/topics/nowhere/messages", {"data": 1}, 404, "topic_not_found"),
    ("commit_unknown", f"/v1/transactions/{ID % 9}/commit", {}, 404, "transaction_not_found"),
    ("commit_no_uuid", "/v1/transactions/nonsense/commit", {}, 400, "bad_request"),
    ("commit_without_digest", f"/v1/transactions/{OPEN}/commit", {}, 422, "incomplete_decision"),
    ("commit_other_digest", f"/v1/transactions/{OPEN}/commit", {"digest": "0" * 32}, 422, "incomplete_decision"),
    ("commit_as_another", f"/v1/transactions/{OPEN}/commit", {"producer": "mallory"}, 409, "wrong_source"),
    ("opposite_decision", f"/v1/transactions/{DECIDED}/rollback", {"producer": "orders"}, 409, "decided_otherwise"),
    ("force_without_reason", f"/v1/transactions/{OPEN}/commit", {"force": True}, 400, "bad_request"),
    ("force_of_prepared", f"/v1/transactions/{OPEN}/commit", {"force": True, "reason": "x"}, 409, "state_changed"),
    ("park_without_reason", f"/v1/transactions/{OPEN}/park", {"reason": ""}, 400, "bad_request"),
    ("park_in_no_state", f"/v1/transactions/{OPEN}/park", {"reason": "x", "if_state": "open"}, 400, "bad_request"),
    ("long_reason", f"/v1/transactions/{OPEN}/park", {"reason": "r" * 1_025}, 413, "too_large"),
    ("park_decided", f"/v1/transactions/{DECIDED}/park", {"reason": "x"}, 409, "decided_otherwise"),
    ("rollback_unknown_by_nobody", f"/v1/transactions/{ID % 9}/rollback", {}, 400, "bad_request"),
    ("fetch_unknown_group", "/v1/groups/nobody/fetch", {}, 404, "group_not_found"),
    ("fetch_negative", "/v1/groups/g/fetch", {"max": -1}, 400, "bad_request"),
    ("fetch_none", "/v1/groups/g/fetch", {"max": 0}, 400, "bad_request"),
    ("fetch_too_many", "/v1/groups/g/fetch", {"max": 1_001}, 400, "bad_request"),
    ("fetch_forever", "/v1/groups/g/fetch", {"wait_s": 1e300}, 400, "bad_request"),
    ("fetch_tiny_lease", "/v1/groups/g/fetch", {"lease_s": 0}, 400, "bad_request"),
    ("ack_nothing", "/v1/groups/g/ack", {"deliveries": []}, 400, "bad_request"),
    ("ack_too_many", "/v1/groups/g/ack", {"deliveries": [{"token": "1"}] * 1_001}, 413, "too_large"),
    ("ack_unknown_group", "/v1/groups/nobody/ack", {"deliveries": [{"token": "1"}]}, 404, "group_not_found"),
    ("nack_negative_delay", "/v1/groups/g/nack", {"deliveries": [{"token": "1", "delay_s": -1}]}, 400, "bad_request"),
    ("extend_by_nothing", "/v1/groups/g/extend", {"deliveries": [{"token": "1"}], "by_s": 0}, 400, "bad_request"),
    ("batch_empty", "/v1/batch", {"ops": []}, 400, "bad_request"),
    ("batch_over", "/v1/batch", {"ops": [{"op": "commit", "id": DECIDED}] * 1_001}, 413, "too_large"),
    ("batch_unknown_op", "/v1/batch", {"ops": [{"op": "destroy"}]}, 400, "bad_request"),
    ("skip_is_not_built", "/v1/topics/seq/keys/k/skip", {"to_sequence": 1, "reason": "x"}, 501, "not_supported"),
    ("unknown_path", "/v1/nothing", {}, 404, "not_found"),
]
BY_NAME = {each[0]: each for each in BAD}


@pytest.mark.parametrize("name", BY_NAME)
async def test_p9_bad_request_is_typed_and_stores_nothing(standing: Served, name: str) -> None:
    """The code, the status, problem+json with a request id, and a store that is the same byte for byte."""
    _, path, body, status, code = BY_NAME[name]
    before = standing.dump()
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    async with standing.session.post(standing.url + path, data=io.BytesIO(raw), headers={"Content-Type": "application/json"}) as answer:
        problem = await answer.json(content_type="application/problem+json")
        assert (answer.status, problem["code"], problem["status"]) == (status, code, status)
        assert problem["request_id"] == answer.headers["Halfmsg-Request-Id"] and problem["detail"] and problem["title"] == CODES[code][1]
    assert changed(before, standing.dump()) == {}


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("PUT", "/v1/topics/plain", {"kind": "sequence"}, "state_changed"),
        ("PUT", "/v1/topics/plain", {"kind": "unordered", "lanes": 7}, "state_changed"),
        ("PUT", "/v1/topics/halfmsg.own", {"kind": "unordered"}, "bad_name"),
        ("PUT", "/v1/topics/" + "t" * 129, {"kind": "unordered"}, "bad_name"),
        ("PUT", "/v1/topics/%00", {"kind": "unordered"}, "bad_name"),
        ("PUT", "/v1/topics/new", {"kind": "ordered"}, "bad_request"),
        ("PUT", "/v1/topics/new", {"kind": "unordered", "lanes": 1_025}, "bad_request"),
        ("PUT", "/v1/groups/new", {"topics": [{"topic": "nowhere"}]}, "topic_not_found"),
        ("PUT", "/v1/groups/new", {"topics": [{"topic": "plain"}, {"topic": "plain"}]}, "bad_request"),
        ("PUT", "/v1/groups/new", {"topics": [{"topic": "plain"}], "mode": "broadcast"}, "not_supported"),
        ("PUT", "/v1/groups/new", {"topics": [{"topic": "plain"}], "push": {"url": "http://x"}}, "not_supported"),
        ("PUT", "/v1/groups/new", {"topics": [{"topic": "plain"}], "start": "2026-11-21T15:00:00Z"}, "not_supported"),
        ("PUT", "/v1/groups/new", {"topics": [{"topic": "plain"}], "start": "erliest"}, "bad_request"),
        ("PUT", "/v1/groups/g", {"topics": [{"topic": "seq"}]}, "state_changed"),
        ("PUT", "/v1/groups/new", {"topics": [{"topic": "plain"}], "backoff": {"first_s": 5, "max_s": 1}}, "bad_request"),
        ("PUT", "/v1/groups/new", {"topics": [{"topic": "plain"}], "backoff": {"max_s": 0.5}}, "bad_request"),
        ("PUT", "/v1/groups/new", {"topics": [{"topic": "plain"}], "backoff": {"first_s": 0.0001}}, "bad_request"),
        ("PUT", "/v1/groups/g", {"topics": [{"topic": "plain"}], "backoff": {"first_s": 700}}, "bad_request"),
        ("PUT", "/v1/producers/new", {"check_url": "http://192.0.2.1/"}, "bad_request"),
        ("PUT", "/v1/producers/new", {"check_url": "file:///etc/passwd"}, "bad_request"),
        ("PUT", "/v1/producers/new", {"check_url": "not a url"}, "bad_request"),
        ("DELETE", "/v1/groups/g", None, "group_busy"),
        ("DELETE", "/v1/topics/plain", None, "group_busy"),
        ("DELETE", "/v1/topics/seq%2F..", None, "topic_not_found"),
        ("DELETE", "/v1/producers/orders", None, "state_changed"),
        ("GET", f"/v1/transactions/{ID % 9}", None, "transaction_not_found"),
        ("GET", f"/v1/transactions/{OPEN}?wait_s=1&until=settled", None, "not_supported"),
        ("GET", f"/v1/transactions/{OPEN}?until=done", None, "bad_request"),
        ("GET", f"/v1/transactions/{OPEN}?wait_s=31", None, "bad_request"),
        ("GET", f"/v1/transactions/{OPEN}?wait_s=nan", None, "bad_request"),
        ("GET", f"/v1/transactions/{ID % 9}?wait_s=30", None, "transaction_not_found"),
        ("GET", "/v1/transactions?limit=0", None, "bad_request"),
        ("GET", "/v1/transactions?limit=1001", None, "bad_request"),
        ("GET", "/v1/transactions?state=done", None, "bad_request"),
        ("GET", "/v1/transactions?cursor=-1", None, "bad_request"),
        ("GET", "/v1/transactions?order=random", None, "bad_request"),
        ("GET", "/v1/topics/plain/messages?lane=9", None, "bad_request"),
        ("GET", "/v1/topics/plain/messages?from_offset=x", None, "bad_request"),
        ("GET", "/v1/topics/plain/keys/k", None, "combination_refused"),
        ("GET", "/v1/messages/nonsense", None, "bad_request"),
        ("GET", f"/v1/messages/{OPEN}-0", None, "message_not_found"),
        ("GET", f"/v1/messages/{DECIDED}-1024", None, "message_not_found"),
        ("GET", "/v1/groups/g/dead-letters/99", None, "dead_letter_not_found"),
        ("PATCH", "/v1/transactions", None, "method_not_allowed"),
        ("GET", "/v1/transactions?stat=prepared", None, "unknown_field"),
        ("GET", "/v1/topics?limt=1", None, "unknown_field"),
        ("GET", "/v1/topics?namespace=other", None, "not_supported"),
        ("GET", "/v1/stream?namespace=other", None, "not_supported"),
        ("PUT", "/v1/producers/new", {"limits": {}}, "not_supported"),
        ("DELETE", "/v1/groups/g/dead-letters/1", None, "not_supported"),
        ("POST", "/v1/producers/orders/rotate-secret", {}, "not_supported"),
        ("GET", "/v1/tasks/1", None, "not_supported"),
        ("GET", "/v1/sinks", None, "not_supported"),
        ("PUT", "/v1/sinks/kafka", {"url": "x"}, "not_supported"),
        ("GET", "/v1/tokens", None, "not_supported"),
        ("GET", "/v1/audit", None, "not_supported"),
        ("GET", "/console", None, "not_supported"),
    ],
)
async def test_p9_bad_resource_call_is_typed_and_stores_nothing(standing: Served, method: str, path: str, body: Any, code: str) -> None:
    """PUT, DELETE and GET alike."""
    before = standing.dump()
    status, problem = await standing.call(method, path, body)
    assert (status, problem["code"]) == (CODES[code][0], code)
    assert changed(before, standing.dump()) == {}


@pytest.mark.parametrize("url", ["http://[::1/", "http://127.0.0.1:99999/", "ftp://127.0.0.1/check", "//127.0.0.1/check"])
async def test_check_url_that_is_no_url_is_a_bad_request(standing: Served, url: str) -> None:
    """Refused when it is registered, by name."""
    status, problem = await standing.call("PUT", "/v1/producers/new", {"check_url": url})
    assert (status, problem["code"]) == (400, "bad_request")


SUPERSCRIPT = "%C2%B2"


@pytest.mark.parametrize("path", [f"/v1/transactions?limit={SUPERSCRIPT}", f"/v1/keys?cursor={SUPERSCRIPT}", f"/v1/messages/{DECIDED}-{SUPERSCRIPT}",
                                  f"/v1/groups/g/dead-letters/{SUPERSCRIPT}"])  # fmt: skip
async def test_p9_digits_that_are_no_numbers_are_a_bad_request(standing: Served, path: str) -> None:
    """A superscript two is a digit to Unicode and no number to anybody."""
    status, problem = await standing.call("GET", path)
    assert (status, problem["code"]) == (400, "bad_request")


@pytest.mark.parametrize(("path", "body"), [("/v1/topics/new%0A", {"kind": "unordered"}), ("/v1/groups/new%0A", {"topics": [{"topic": "plain"}]}),
                                            ("/v1/groups/new", {"topics": [{"topic": "plain", "tag": "a\n"}]})])  # fmt: skip
async def test_p9_name_with_a_newline_is_refused(standing: Served, path: str, body: Any) -> None:
    """A name ends where it ends: one with a newline behind it would be another topic that looks the same."""
    before = standing.dump()
    status, problem = await standing.call("PUT", path, body)
    assert (status, problem.get("code")) == (400, "bad_name")
    assert changed(before, standing.dump()) == {}


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_wrong_content_type_is_415(standing: Served, content_type: str) -> None:
    """Said by name, and nothing stored; a form of a browser cannot publish."""
    before = standing.dump()
    status, problem = await standing.call("POST", POST, tx(), headers={"Content-Type": content_type})
    assert (status, problem["code"]) == (415, "unsupported_media_type")
    assert changed(before, standing.dump()) == {}


@pytest.mark.parametrize("headers", [
    {"Content-Type": "application/cloudevents+json"},
    {"Content-Type": "application/cloudevents-batch+json"},
    {"Content-Type": "application/json", "ce-specversion": "1.0", "ce-id": "1", "ce-type": "t", "ce-source": "/x"},
], ids=["structured", "batch", "binary"])  # fmt: skip
async def test_cloud_event_is_refused_by_name(standing: Served, headers: dict[str, str]) -> None:
    """Not taken as a message without what its headers say."""
    before = standing.dump()
    status, problem = await standing.call("POST", "/v1/topics/plain/messages", {"data": 1}, headers=headers)
    assert (status, problem["code"]) == (501, "not_supported")
    assert changed(before, standing.dump()) == {}


async def test_body_that_lies_about_its_encoding_is_a_bad_request(standing: Served) -> None:
    """`Content-Encoding: gzip` over what is no gzip is the caller's fault, not ours."""
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with standing.session.post(standing.url + POST, data=b"not gzip", headers=headers) as answer:
        assert 400 <= answer.status < 500


async def test_stream_without_an_upgrade_is_a_problem(standing: Served) -> None:
    """A plain GET of the stream is refused like everything else: problem+json with a code."""
    async with standing.session.get(standing.url + "/v1/stream") as answer:
        assert answer.status == 400
        assert (await answer.json(content_type="application/problem+json"))["code"] == "bad_request"


async def test_p4_opposite_decision_is_listed_once_and_changes_nothing_else(standing: Served) -> None:
    """A commit after a rollback is a conflict that carries the decision, and stands in the list."""
    assert (await standing.call("POST", f"/v1/transactions/{OPEN}/rollback", {"producer": "orders"}))[0] == 200
    before = standing.dump()
    for _ in range(2):
        _, open_one = await standing.call("GET", f"/v1/transactions/{OPEN}")
        status, problem = await standing.call("POST", f"/v1/transactions/{OPEN}/commit", {"digest": open_one["digest"]})
        assert (status, problem["code"], problem["transaction"]["state"]) == (409, "decided_otherwise", "rolled_back")
    after = standing.dump()
    assert changed(before, after).keys() == {"conflict"} and len(after["conflict"]) == 1


async def test_stale_token_is_lease_lost_item_by_item(standing: Served) -> None:
    """Bad tokens are refused one by one, each with its code; nothing changes."""
    before = standing.dump()
    tokens = ["", "1.0.0.0.999", "x.y.z.a.b", "\x00", "1.0.0.0", "9.9.9.9.9"]
    for verb, more in (("ack", {}), ("nack", {}), ("reject", {"reason": "x"})):
        status, answer = await standing.call("POST", f"/v1/groups/g/{verb}", {"deliveries": [{"token": token} | more for token in tokens]})
        assert (status, [each["error"]["code"] for each in answer["results"]]) == (200, ["lease_lost"] * len(tokens))
    assert changed(before, standing.dump()) == {}


MEMBERS = ("id", "producer", "messages", "topic", "data", "data_base64", "key", "tag", "attributes", "mark", "digest", "state", "index", "sequence")


async def test_p9_garbage_to_prepare_never_gives_500(standing: Served) -> None:
    """Any bytes: a typed refusal, or a stored transaction; never a defect."""
    loop = asyncio.get_running_loop()
    near = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["plain", "seq", "orders", OPEN, "1"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner),
        max_leaves=8)  # fmt: skip
    shaped = near.map(lambda value: json.dumps(value).encode())
    some = {"key": st.text(), "data": near, "tag": st.text(max_size=3), "index": st.integers(0, 3)}
    messages = st.lists(st.fixed_dictionaries({"topic": st.sampled_from(["plain", "seq"])}, optional=some), max_size=3)
    complete = st.fixed_dictionaries({"producer": st.just("orders"), "messages": messages}).map(lambda value: json.dumps(value).encode())

    @settings(max_examples=150, deadline=None)
    @given(raw=st.binary(max_size=60) | shaped | complete)
    def send(raw: bytes) -> None:
        status, answer = asyncio.run_coroutine_threadsafe(standing.call("POST", POST, raw=raw), loop).result(10)
        assert status in (200, 201) or (status < 500 and answer["code"] in CODES)

    await asyncio.to_thread(send)
