"""Frames that no client of ours would send: a problem or a close with a reason, and nothing stored changes."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import aiohttp
import pytest

from halfmsg.coordinator import render
from halfmsg.coordinator.errors import CODES
from tests.support.serving import Served, heard, say
from tests.support.stores import changed

from .standing import DECIDED, ID, OPEN, M

FIRST: list[Any] = [
    ("not_hello", {"type": "ops", "n": 1, "ops": [{"op": "commit", "id": DECIDED}]}),
    ("subscribe_first", {"type": "subscribe", "group": "g", "credits": 1, "member": "m"}),
    ("unknown_type", {"type": "dance"}),
    ("no_type", {"client": "x"}),
    ("list", []),
    ("unknown_member", {"type": "hello", "client": "x", "clinet": "y"}),
    ("long_client", {"type": "hello", "client": "x" * 257}),
    ("many_producers", {"type": "hello", "client": "x", "producers": [{"name": "p"}] * 65}),
]


@pytest.mark.parametrize("protocol", ["halfmsg.v1.json", "halfmsg.v1.msgpack"])
@pytest.mark.parametrize("frame", [pytest.param(frame, id=name) for name, frame in FIRST])
async def test_p9_bad_first_frame_closes_the_stream(standing: Served, protocol: str, frame: Any) -> None:
    """An error frame with a code, then close 4400; nothing is stored, and other streams live on."""
    other = await standing.stream()
    before = standing.dump()
    ws = await standing.stream(protocol, hello=False)
    await say(ws, frame)
    told = await heard(ws)
    assert told["type"] == "error" and told["error"]["code"] in CODES
    assert await heard(ws) is None and ws.close_code == 4400
    assert changed(before, standing.dump()) == {}
    await say(other, {"type": "beat"})
    assert (await heard(other))["type"] == "beat"
    await other.close()


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xc1", b"\xff" * 100, b'{"type":"hello","client":"x"}', b"\x81\xa4type" + b"\xdf\xff\xff\xff\xff"])
async def test_p9_garbage_on_msgpack_closes_the_stream(standing: Served, data: bytes) -> None:
    """JSON on the msgpack protocol, and bytes that are nothing."""
    ws = await standing.stream("halfmsg.v1.msgpack", hello=False)
    await ws.send_bytes(data)
    assert (await heard(ws))["error"]["code"] == "bad_request"
    assert await heard(ws) is None and ws.close_code == 4400


async def test_p9_one_bad_op_does_not_take_its_neighbours(standing: Served) -> None:
    """Results stand at the places of their ops: refused ones with a code, good ones done."""
    ws = await standing.stream()
    good = {"op": "submit", "id": ID % 30, "messages": [M]}
    misspelt = {"op": "submit", "id": ID % 31, "messages": [M | {"tpoic": 1}]}
    await say(ws, {"type": "ops", "n": 4, "ops": [misspelt, good, {"op": "destroy"}, 7, {"op": "prepare", "id": "no", "messages": [M]}]})
    results = (await heard(ws))["results"]
    assert [each.get("error", {}).get("code") for each in results] == ["unknown_field", None, "bad_request", "bad_request", "bad_request"]
    assert results[1]["ok"]["state"] == "committed"
    await ws.close()


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**63) - 1, 10**30])
async def test_p9_huge_frame_number_does_not_break_the_stream(standing: Served, number: int) -> None:
    """It is answered or refused by code; the connection does not fall over."""
    ws = await standing.stream()
    await say_raw(ws, b'{"type":"ops","n":%d,"ops":[{"op":"destroy"}]}' % number)
    told = await heard(ws)
    assert told is not None and (told["type"] == "results" or told["error"]["code"] in CODES)
    await ws.close()


@pytest.mark.parametrize("frame", [
    {"type": "subscribe", "group": "g", "credits": 1, "member": "m", "lease_s": float("nan")},
    {"type": "ops", "n": 1, "ops": [{"op": "nack", "group": "g", "deliveries": [{"token": "1.0.0.0.1", "delay_s": float("nan")}]}]},
    {"type": "ops", "n": 1, "ops": [{"op": "prepare", "producer": "orders", "messages": [{"topic": "plain"}], "first_check_s": float("nan")}]},
    {"type": "ops", "n": 1, "ops": [{"op": "extend", "group": "g", "deliveries": [{"token": "1.0.0.0.1"}], "by_s": float("nan")}]},
], ids=["subscribe", "nack", "prepare", "extend"])  # fmt: skip
async def test_p9_nan_in_msgpack_is_refused(standing: Served, frame: Any) -> None:
    """msgpack can say NaN where JSON cannot: refused by code, the connection does not fall over."""
    before = standing.dump()
    ws = await standing.stream("halfmsg.v1.msgpack")
    await say(ws, frame)
    told = await heard(ws)
    assert told is not None
    error = told["error"] if told["type"] == "error" else told["results"][0]["error"]
    assert error["code"] in CODES and error["code"] != "internal"
    await ws.close()
    assert changed(before, standing.dump()) == {}


async def say_raw(ws: aiohttp.ClientWebSocketResponse, data: bytes) -> None:
    await ws.send_str(data.decode())


async def test_p9_frame_over_the_limit_closes_the_stream(standing: Served) -> None:
    """9 MiB in one frame: closed, and the coordinator lives."""
    ws = await standing.stream()
    with contextlib.suppress(ConnectionError):  # it may be gone before all of it was sent
        await ws.send_str(" " * (9 * 1024 * 1024))
    assert await heard(ws) is None
    await ws.close()
    assert (await standing.call("GET", "/v1/info"))[0] == 200


@pytest.mark.parametrize("frame", [
    {"type": "subscribe", "group": "g", "credits": -1, "member": "m"},
    {"type": "subscribe", "group": "g", "credits": 10_001, "member": "m"},
    {"type": "credit", "group": "g", "add": 0},
    {"type": "ops", "n": 1, "ops": []},
    {"type": "ops", "n": "1", "ops": [{"op": "commit", "id": DECIDED}]},
], ids=lambda frame: json.dumps(frame)[:60])  # fmt: skip
async def test_p9_bad_frame_after_hello_closes_the_stream(standing: Served, frame: Any) -> None:
    """By name, with 4400."""
    before = standing.dump()
    ws = await standing.stream()
    await say(ws, frame)
    assert (await heard(ws))["error"]["code"] in ("bad_request", "too_large")
    assert await heard(ws) is None and ws.close_code == 4400
    assert changed(before, standing.dump()) == {}


async def test_refused_subscription_costs_nothing_else_on_its_stream(standing: Served) -> None:
    """By its group's name; operations and other groups go on, and it is subscribed when its group is there."""
    ws = await standing.stream()
    for group in ("nobody", "g"):
        await say(ws, {"type": "subscribe", "group": group, "credits": 5, "member": "m"})
    refused = await heard(ws)
    assert (refused["type"], refused["group"], refused["error"]["code"]) == ("error", "nobody", "group_not_found")
    message = {"topic": "plain", "data": 1}
    await say(ws, {"type": "ops", "n": 1, "ops": [{"op": "submit", "id": "018f0000-0000-7000-8000-00000000cafe", "messages": [message]}]})
    frames = [await heard(ws), await heard(ws)]
    assert None not in frames, "the stream was closed"
    answers = {frame["type"]: frame for frame in frames}
    assert "ok" in answers["results"]["results"][0] and answers["deliver"]["group"] == "g"
    assert (await standing.call("PUT", "/v1/groups/nobody", {"topics": [{"topic": "plain"}]}))[0] == 201
    await say(ws, {"type": "subscribe", "group": "nobody", "credits": 50, "member": "m"})
    assert (await heard(ws))["group"] == "nobody"
    await ws.close()


async def test_p2_deliveries_that_end_over_a_defect_are_said(standing: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client subscribes again. In silence the group would stand still for ever, and look like one that has nothing to do."""
    ws = await standing.stream()
    with monkeypatch.context() as broken:
        broken.setattr(render, "deliveries", lambda *_, **__: 1 / 0)
        await standing.call("POST", "/v1/topics/plain/messages", {"data": 1})
        await say(ws, {"type": "subscribe", "group": "g", "credits": 5, "member": "m"})
        refused = await heard(ws)
    assert (refused["type"], refused["group"], refused["error"]["code"]) == ("error", "g", "internal")
    await standing.call("POST", "/v1/topics/plain/messages", {"data": 2})
    await say(ws, {"type": "subscribe", "group": "g", "credits": 5, "member": "m"})
    assert (await heard(ws))["type"] == "deliver"
    await ws.close()


async def test_p2_bit_that_flips_in_a_time_stops_no_group(standing: Served) -> None:
    """No digest covers the time at which a message became visible: the message is what it was, and its group can be looked at."""
    await standing.call("POST", "/v1/topics/plain/messages", {"data": "late"})
    await standing.coordinator.engine.call(_flip_times, None)
    status, answer = await standing.call("POST", "/v1/groups/g/fetch", {"max": 10})
    assert (status, [each["data"] for each in answer["deliveries"]]) == (200, ["late"])
    assert (await standing.call("GET", "/v1/groups/g"))[0] == 200


def _flip_times(tx: Any, now: int, command: None) -> None:
    tx.run("UPDATE log SET at = at | (1 << 50)")


async def test_member_that_was_refused_and_leaves_frees_its_lanes(standing: Served) -> None:
    """Another one needs not wait for its lease: who says goodbye is gone, subscribed or not."""
    await standing.call("PUT", "/v1/topics/arr", {"kind": "arrival", "lanes": 1})
    await standing.call("PUT", "/v1/groups/ordered", {"topics": [{"topic": "arr"}]})
    await standing.call("POST", "/v1/topics/arr/messages", {"data": 1, "key": "k"})
    ws = await standing.stream()
    join = {"type": "subscribe", "group": "ordered", "credits": 5, "member": "m", "inbox": "0a" * 16}
    await say(ws, join)
    token = (await heard(ws))["deliveries"][0]["token"]
    await say(ws, join | {"inbox": "0b" * 16, "holding": [token]})
    assert (await heard(ws))["error"]["code"] == "wrong_inbox"
    await say(ws, {"type": "ops", "n": 1, "ops": [{"op": "ack", "group": "ordered", "deliveries": [{"token": token}]}]})
    assert (await heard(ws))["type"] == "results"
    await say(ws, {"type": "unsubscribe", "group": "ordered", "member": "m"})
    await say(ws, {"type": "beat", "producers": []})
    assert (await heard(ws))["type"] == "beat"
    assert (await standing.call("GET", "/v1/groups/ordered"))[1]["members"] == 0
    await ws.close()


async def test_p9_too_many_ops_in_a_frame_are_refused(standing: Served) -> None:
    """A thousand and one: too_large, nothing of it done."""
    before = standing.dump()
    ws = await standing.stream()
    await say(ws, {"type": "ops", "n": 1, "ops": [{"op": "rollback", "id": OPEN, "producer": "orders"}] * 1_001})
    assert (await heard(ws))["error"]["code"] == "too_large"
    assert changed(before, standing.dump()) == {}
    await ws.close()


async def test_p5_hello_with_another_database_is_refused_by_name(standing: Served) -> None:
    """A second database under the name, and an unknown producer, are refused in the answer; the stream stays."""
    first = await standing.stream(hello=False)
    await say(first, {"type": "hello", "client": "x", "producers": [{"name": "orders", "source": "a" * 32}]})
    assert "refused" not in await heard(first)
    second = await standing.stream(hello=False)
    await say(second, {"type": "hello", "client": "x", "producers": [{"name": "orders", "source": "b" * 32}, {"name": "nobody"}]})
    refused = (await heard(second))["refused"]
    assert [(each["name"], each["code"]) for each in refused] == [("orders", "wrong_source"), ("nobody", "producer_not_found")]
    await first.close()
    await second.close()
