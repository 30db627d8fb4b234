"""A question names each transaction once: a responder refuses one that names it twice, and then nothing of it is answered."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from halfmsg.coordinator.ids import parse_id
from tests.support.serving import Served, heard, say

SOURCE, ID = "0e" * 16, "018f0000-0000-7000-8000-00000000f00d"


async def _half(coordinator: Served) -> aiohttp.ClientWebSocketResponse:
    """An undecided transaction, and the stream of its producer."""
    await coordinator.call("PUT", "/v1/producers/shop", {})
    await coordinator.call("PUT", "/v1/topics/t", {"kind": "unordered", "allow_no_group": True})
    ws = await coordinator.stream()
    await say(ws, {"type": "hello", "client": "test", "version": "1", "producers": [{"name": "shop", "source": SOURCE}]})
    await heard(ws)
    half = {"id": ID, "producer": "shop", "source": SOURCE, "messages": [{"topic": "t", "data": 1}], "first_check_s": 86_400}
    assert (await coordinator.call("POST", "/v1/transactions", half))[0] == 201
    return ws


async def test_id_that_is_given_twice_by_hand_is_asked_once(coordinator: Served) -> None:
    """Also where it is written in two ways."""
    ws = await _half(coordinator)
    asking = asyncio.create_task(coordinator.call("POST", "/v1/producers/shop/check", {"ids": [ID, ID.replace("-", ""), ID]}))
    question = await heard(ws)
    assert [each["id"] for each in question["transactions"]] == [ID]
    await say(ws, {"type": "verdicts", "n": question["n"], "source": SOURCE, "verdicts": [{"id": ID, "verdict": "running"}]})
    status, answer = await asking
    assert status == 200
    assert [(each["id"], each["verdict"]) for each in answer["items"]] == [(ID, "running")]
    await ws.close()


async def test_p2_half_message_that_is_parked_while_it_is_claimed_is_asked_once(coordinator: Served) -> None:
    """Parked, and due again, between the claims of what is open and of what is parked (simulation, seed 103320)."""
    ws = await _half(coordinator)
    one = coordinator.coordinator
    [(source,)] = await one.engine.read(lambda tx: tx.all("SELECT id FROM source WHERE name = 'shop'"))

    def make_due(tx: Any, now: int, id: bytes) -> None:
        tx.run("UPDATE tx SET next_check = 1 WHERE n = ?", tx.find(id).n)

    def park(tx: Any, now: int, id: bytes) -> None:
        tx.park(tx.find(id), now, "test")

    id = parse_id(ID)  # all three in one turn of the loop, so that no tick comes between them
    _, claimed, _ = await asyncio.gather(one.engine.call(make_due, id), one.checks.store.claim_due_checks({source: 10}), one.engine.call(park, id))
    assert [check.id for check in claimed] == [ID]
    await ws.close()
