"""Messages, bodies, digests and ids: what is refused before anything is sent, and what bytes come out."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from halfmsg.txclient import ApiError, Client, Delivery, Ids, Message, Reject, Retry, UsageError, _member, message_digest, transaction_digest


@dataclass
class Order:
    id: str
    when: datetime | None = None


class Model:
    """A pydantic model by its shape."""

    def model_dump_json(self) -> str:
        return '{"id":"7"}'


@pytest.mark.parametrize(
    ("body", "expected", "content_type"),
    [
        (b"\x00", b"\x00", "application/octet-stream"),
        ("text", b'"text"', "application/json"),
        ({"a": [1, None]}, b'{"a":[1,null]}', "application/json"),
        (Order("7"), b'{"id":"7","when":null}', "application/json"),
        (Model(), b'{"id":"7"}', "application/json"),
        (None, b"null", "application/json"),
    ],
)
def test_body_becomes_bytes(body: object, expected: bytes, content_type: str) -> None:
    """Bytes go as they are, everything else is JSON."""
    message = Message("t", body)
    assert (message.body, message.content_type) == (expected, content_type)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"key": "k" * 257}, "too_large"),
        ({"key": ""}, "bad_name"),
        ({"key": "\ud800"}, "bad_name"),
        ({"tag": "a b"}, "bad_name"),
        ({"attributes": {f"n{n}": "" for n in range(33)}}, "too_large"),
        ({"attributes": {"n": "v" * 1_025}}, "too_large"),
        ({"attributes": {"n": 1}}, "bad_name"),
        ({"deliver_at": datetime(2030, 1, 1)}, "naive_datetime"),
        ({"delay": 1, "deliver_at": datetime(2030, 1, 1, tzinfo=UTC)}, "combination_refused"),
        ({"delay": 5, "expires_in": 5}, "combination_refused"),
        ({"priority": 10}, "bad_request"),
        ({"priority": 1, "key": "k"}, "combination_refused"),
        ({"delay": -1}, "bad_request"),
        ({"delay": math.inf}, "bad_request"),
        ({"content_type": "text/plain"}, "combination_refused"),
    ],
)
def test_message_refuses_what_would_be_refused_for_ever(options: dict[str, Any], code: str) -> None:
    """Each limit of the wire is a UsageError with its code, before anything is sent."""
    with pytest.raises(UsageError) as caught:
        Message("t", "body", **options)
    assert caught.value.code == code
    assert caught.value.doc_url.endswith(code)


@pytest.mark.parametrize("topic", ["", "a b", ".x", "t" * 129, "halfmsg.dead", 7])
def test_topic_must_be_a_name(topic: Any) -> None:
    """Names follow one pattern, and halfmsg.* is ours."""
    with pytest.raises(UsageError) as caught:
        Message(topic, 1)
    assert caught.value.code == "bad_name"


@pytest.mark.parametrize("body", [float("nan"), {"a": [math.inf]}, object(), {"s": "\ud800"}, {"n": None, "x": float("nan")}])
def test_body_that_json_cannot_say_is_refused(body: object) -> None:
    """A NaN that becomes null in silence would be a silent strip."""
    with pytest.raises(UsageError) as caught:
        Message("t", body)
    assert caught.value.code == "body_not_encodable"


def test_limits_hold_at_the_edge() -> None:
    """What is just inside a limit is taken."""
    Message("t" * 128, b"", key="k" * 256, attributes={"n" * 64: "v" * 1_024}, tag="T" * 128)


@pytest.mark.parametrize(("key", "text"), [(7, "7"), (UUID(int=1), "00000000-0000-0000-0000-000000000001"), ("x", "x")])
def test_primary_keys_may_be_keys(key: Any, text: str) -> None:
    """Integers and UUIDs have one spelling each."""
    assert Message("t", 1, key=key).key == text


def test_unknown_option_is_a_type_error() -> None:
    """A misspelt option is named."""
    with pytest.raises(TypeError, match="dealy"):
        Message("t", 1, dealy=1)  # type: ignore[call-arg]


def part(value: bytes | None) -> bytes:
    return b"\xff\xff\xff\xff" if value is None else len(value).to_bytes(4, "big") + value


def test_digest_is_r9_byte_for_byte() -> None:
    """topic, key, tag, content type, delay, deliver_at, expiry, priority, body, attributes sorted by name."""
    at = datetime(2030, 1, 1, tzinfo=UTC)
    message = Message("t", b"body", tag="g", attributes={"b": "2", "ä": "1"}, deliver_at=at, expires_in=timedelta(seconds=1.5), priority=0)
    head: list[bytes | None] = [b"t", None, b"g", b"application/octet-stream", None, str(int(at.timestamp() * 1000)).encode(), b"1500", b"0", b"body"]
    names: list[bytes | None] = [b"b", b"2", "ä".encode(), b"1"]
    expected = blake2b(b"".join(map(part, head + names)), digest_size=16).digest()
    assert message.digest() == expected
    assert transaction_digest([expected, expected]) == blake2b(expected * 2, digest_size=16).digest()


def test_digest_tells_absent_from_empty() -> None:
    """Fields cannot run into one another."""
    plain: dict[str, Any] = {"topic": "t", "key": None, "content_type": "c", "body": b""}
    assert message_digest(**plain, tag=None) != message_digest(**plain, tag="")


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_ids_are_uuid7(ms: int, random: bytes) -> None:
    """Version, variant and time are where RFC 9562 puts them."""
    made = UUID(Ids(lambda: ms, lambda n: random[:n]).transaction())
    assert (made.version, made.variant, made.int >> 80) == (7, "specified in RFC 4122", ms)


def test_ids_in_one_millisecond_differ() -> None:
    """74 random bits stand behind the time."""
    ids = Ids(lambda: 1)
    assert len({ids.transaction() for _ in range(1_000)}) == 1_000


def delivery(body: bytes) -> Delivery:
    return Delivery(id="i-0", transaction_id="i", topic="t", lane=0, offset=0, time=datetime(2030, 1, 1, tzinfo=UTC), body=body)


def test_delivery_that_does_not_decode_is_rejected_not_retried() -> None:
    """What is no JSON will never be."""
    assert delivery(b'{"a":1}').json() == {"a": 1}
    with pytest.raises(Reject, match="does not decode"):
        delivery(b"{").json()
    with pytest.raises(Reject, match="does not decode"):
        delivery(b"{}").decode(Order)
    assert delivery(b'{"id":"7"}').decode(Order) == Order("7")


def test_delivery_ignores_fields_it_does_not_know() -> None:
    """Answers may grow (API §6)."""
    raw = msgspec.msgpack.encode({**msgspec.to_builtins(delivery(b"x"), builtin_types=(bytes,)), "later": 1})
    assert msgspec.msgpack.decode(raw, type=Delivery).body == b"x"


@pytest.mark.parametrize("url", ["", "x", "ftp://h", "http://", "http://h:99999", "http://h?x=1"])
def test_client_refuses_a_bad_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bad_url is said at construction; the token never shows."""
    monkeypatch.setenv("HALFMSG_URL", "nonsense")
    with pytest.raises(UsageError) as caught:
        Client(url)
    assert caught.value.code == "bad_url"


def test_token_is_masked() -> None:
    """Secrets are not in a repr."""
    client = Client("http://h", token="hunter2")
    assert "hunter2" not in repr(client) + repr(client._settings)


def test_errors_survive_pickling() -> None:
    """Process pools carry exceptions."""
    error = pickle.loads(pickle.dumps(ApiError("forbidden", "no", status=403, request_id="r")))
    assert (error.code, error.status, str(error)) == ("forbidden", 403, "forbidden: no (request r)")


@pytest.mark.parametrize(("delay", "expected"), [(None, None), (-5, None), ("soon", None), (10**9, 86_400.0), (2, 2.0)])
def test_delay_of_a_retry_is_within_what_the_coordinator_takes(delay: object, expected: float | None) -> None:
    """A negative or odd wish of a handler must not wedge its key: the group's back-off stands in."""
    assert _member._delay_s(Retry("later", delay=delay)) == expected  # type: ignore[arg-type]
