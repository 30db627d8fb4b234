"""What an operator looks at is what is stored now."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from typing import Any

import pytest

from halfmsg.coordinator import doctor, hub
from halfmsg.coordinator.service import looking
from tests.support.serving import DEADLINE_S, Served, eventually


async def test_p2_lag_of_a_group_is_of_now(coordinator: Served) -> None:
    """Looked at before and after each message: nothing is remembered from an earlier look."""
    await coordinator.call("PUT", "/v1/topics/plain", {"kind": "unordered"})
    await coordinator.call("PUT", "/v1/groups/g", {"topics": [{"topic": "plain"}]})
    seen = []
    for _ in range(3):
        _, group = await coordinator.call("GET", "/v1/groups/g")
        seen.append(group["lag"])
        await coordinator.call("POST", "/v1/topics/plain/messages", {"data": 1})
    assert seen == [0, 1, 2]


async def test_oldest_of_a_group_is_also_one_that_failed_and_waits_for_its_next_attempt(coordinator: Served) -> None:
    """A lag without an age would hide for how long a failing handler has held its key."""
    await coordinator.call("PUT", "/v1/topics/keyed", {"kind": "arrival"})
    await coordinator.call("PUT", "/v1/groups/g", {"topics": [{"topic": "keyed"}]})
    await coordinator.call("POST", "/v1/topics/keyed/messages", {"data": 1, "key": "k"})
    ages = [(await coordinator.call("GET", "/v1/groups/g"))[1]["oldest_at"]]
    _, handed = await coordinator.call("POST", "/v1/groups/g/fetch", {"max": 1, "member": "m"})
    token = handed["deliveries"][0]["token"]
    ages.append((await coordinator.call("GET", "/v1/groups/g"))[1]["oldest_at"])
    await coordinator.call("POST", "/v1/groups/g/nack", {"deliveries": [{"token": token, "reason": "not now", "delay_s": 60}]})
    _, group = await coordinator.call("GET", "/v1/groups/g")
    assert (group["lag"], group["in_flight"], group["blocked_keys"]) == (1, 0, 1)
    assert None not in ages
    assert [*ages, group["oldest_at"]] == [ages[0]] * 3


async def test_group_shows_the_inbox_that_it_is_bound_to(coordinator: Served) -> None:
    """Who is told `wrong_inbox` compares the two; before the first member there is none."""
    await coordinator.call("PUT", "/v1/topics/plain", {"kind": "unordered"})
    await coordinator.call("PUT", "/v1/groups/g", {"topics": [{"topic": "plain"}]})
    assert (await coordinator.call("GET", "/v1/groups/g"))[1]["inbox"] is None
    await coordinator.call("POST", "/v1/groups/g/fetch", {"max": 1, "inbox": "ab" * 16})
    _, page = await coordinator.call("GET", "/v1/groups")
    assert [each["inbox"] for each in page["items"]] == ["ab" * 16]


async def _sent(coordinator: Served, count: int) -> None:
    await coordinator.call("PUT", "/v1/topics/plain", {"kind": "unordered", "allow_no_group": True})
    await coordinator.call("PUT", "/v1/topics/keyed", {"kind": "arrival", "allow_no_group": True})
    for n in range(count):
        await coordinator.call("POST", "/v1/topics/keyed/messages", {"data": n, "key": f"k{n}"})


async def _listed(coordinator: Served, query: str) -> list[Any]:
    """The keys of all pages, in the order given."""
    found: list[Any] = []
    cursor: str | None = ""
    while cursor is not None:
        status, page = await coordinator.call("GET", f"/v1/transactions?{query}&cursor={cursor}")
        assert status == 200
        found += [item["messages"][0].get("key") for item in page["items"]]
        cursor = page["next"]
    return found


async def test_transactions_are_listed_by_key_and_from_either_end(coordinator: Served) -> None:
    """`order=newest` is the same list backwards, also page by page; a key is one of a message of it."""
    await _sent(coordinator, 5)
    for limit in (2, 100):
        assert await _listed(coordinator, f"limit={limit}") == ["k0", "k1", "k2", "k3", "k4"]
        assert await _listed(coordinator, f"limit={limit}&order=newest") == ["k4", "k3", "k2", "k1", "k0"]
    assert await _listed(coordinator, "key=k3") == ["k3"]
    assert await _listed(coordinator, "key=k3&topic=plain") == []


async def test_what_is_in_doubt_is_found_behind_many_that_are_decided(coordinator: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page looks at a bounded number of transactions: an empty one with a cursor is not the end."""
    monkeypatch.setattr(looking, "SCAN_MAX", 1)
    monkeypatch.setattr(looking, "STEP", 1)
    await _sent(coordinator, 3)
    await coordinator.call("PUT", "/v1/producers/orders", {"check_url": "http://127.0.0.1:9/check"})
    await coordinator.call("POST", "/v1/transactions", {"producer": "orders", "messages": [{"topic": "plain", "data": 1}]})
    _, first = await coordinator.call("GET", "/v1/transactions?state=prepared")
    assert (first["items"], first["next"]) == ([], "1")
    assert len(await _listed(coordinator, "state=prepared")) == 1


async def test_page_tells_the_next_one_as_a_link(coordinator: Served) -> None:
    """`Link: rel="next"` keeps what was asked; the last page has none."""
    await _sent(coordinator, 2)
    async with coordinator.session.get(coordinator.url + "/v1/transactions?limit=1&state=committed") as answer:
        link = answer.headers["Link"]
    assert link == '</v1/transactions?limit=1&state=committed&cursor=1>; rel="next"'
    async with coordinator.session.get(coordinator.url + "/v1/transactions?limit=100") as answer:
        assert "Link" not in answer.headers


async def test_plain_send_tells_where_it_stands(coordinator: Served) -> None:
    """Its lane and offset, also when it is repeated."""
    await _sent(coordinator, 0)
    id = "018f0000-0000-7000-8000-000000000001"
    for status in (201, 200):
        told = await coordinator.call("POST", "/v1/topics/plain/messages", {"data": 1, "id": id})
        assert told == (status, {"id": f"{id}-0", "transaction_id": id, "lane": 0, "offset": 0})


async def test_r26_a_repeated_prepare_tells_the_messages_as_they_stand(coordinator: Served) -> None:
    """The answer is the transaction of now, its messages in it."""
    await _sent(coordinator, 0)
    await coordinator.call("PUT", "/v1/producers/orders", {"check_url": "http://127.0.0.1:9/check"})
    asked = {"id": "018f0000-0000-7000-8000-000000000001", "producer": "orders", "messages": [{"topic": "plain", "data": 1}]}
    first = (await coordinator.call("POST", "/v1/transactions", asked))[1]
    assert (await coordinator.call("POST", "/v1/transactions", asked))[1] == first
    await coordinator.call("POST", f"/v1/transactions/{asked['id']}/commit", {"digest": first["digest"]})
    again = (await coordinator.call("POST", "/v1/transactions", asked))[1]
    assert (again["state"], again["messages"][0]["offset"]) == ("committed", 0)


async def test_who_waits_for_a_decision_is_told_when_it_is_made(coordinator: Served) -> None:
    """`wait_s` is a limit: the answer comes with the decision, or says what stands when the time is up."""
    await _sent(coordinator, 0)
    await coordinator.call("PUT", "/v1/producers/orders", {"check_url": "http://127.0.0.1:9/check"})
    asked = {"id": "018f0000-0000-7000-8000-000000000001", "producer": "orders", "messages": [{"topic": "plain", "data": 1}]}
    await coordinator.call("POST", "/v1/transactions", asked)
    path = f"/v1/transactions/{asked['id']}"
    assert (await coordinator.call("GET", f"{path}?until=decided"))[1]["state"] == "prepared"
    waiting = asyncio.ensure_future(coordinator.call("GET", f"{path}?wait_s=30&until=decided"))
    await eventually(lambda: hub.DECIDED in coordinator.coordinator.engine.hub._waiters, "somebody to wait")
    await coordinator.call("POST", f"{path}/rollback", {"producer": "orders"})
    status, told = await asyncio.wait_for(waiting, 5)
    assert (status, told["state"]) == (200, "rolled_back")


async def test_look_at_a_key_goes_on_behind_many_others(coordinator: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next page is asked for with `cursor` like any other's, and an empty one is not the end."""
    monkeypatch.setattr(looking, "LOOK_MAX", 2)
    await coordinator.call("PUT", "/v1/topics/one", {"kind": "arrival", "lanes": 1, "allow_no_group": True})
    for n in range(5):
        await coordinator.call("POST", "/v1/topics/one/messages", {"data": n, "key": f"k{n}"})
    path, seen, cursor = "/v1/topics/one/messages?key=k4", [], ""
    while cursor is not None:
        _, page = await coordinator.call("GET", f"{path}&cursor={cursor}")
        seen.append([item["data"] for item in page["items"]])
        cursor = page["next"]
    assert seen == [[], [], [4]]


async def test_doctor_keeps_nobody_waiting(coordinator: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that takes its whole time holds up no other look, and no snapshot is held over two checks."""
    slow = doctor.Invariant("slow", "P9", "SELECT name FROM topic WHERE name IS NULL", "never")
    late = doctor.Invariant("late", "P9", "SELECT name FROM topic WHERE name = 'made_meanwhile'", "it sees what was made while the one before ran")
    monkeypatch.setattr(doctor, "INVARIANTS", (slow, late))
    check, begun, go = doctor.check, threading.Event(), threading.Event()

    def slowly(conn: sqlite3.Connection, invariant: doctor.Invariant, **more: Any) -> doctor.Finding:
        begun.set()
        assert go.wait(DEADLINE_S)
        return check(conn, invariant, **more)

    monkeypatch.setattr(doctor, "check", slowly)
    asked = asyncio.create_task(coordinator.call("GET", "/v1/doctor"))
    await eventually(begun.is_set, "the first check")
    async with asyncio.timeout(DEADLINE_S / 2):
        assert (await coordinator.call("PUT", "/v1/topics/made_meanwhile", {"kind": "unordered"}))[0] == 201
        assert (await coordinator.call("GET", "/v1/topics/made_meanwhile"))[0] == 200
    go.set()
    _, found = await asked
    assert [(each["name"], each["ok"]) for each in found["items"]][:2] == [("slow", True), ("late", False)]
