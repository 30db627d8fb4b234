"""A hello that is said again on its stream: who was taken already is not woken a second time."""

from __future__ import annotations

from tests.support.serving import Served, eventually, heard, say

SOURCE, ID = "0e" * 16, "018f0000-0000-7000-8000-00000000f00d"
HELLO = {"type": "hello", "client": "test", "version": "1", "producers": [{"name": "shop", "source": SOURCE}, {"name": "not-made", "source": None}]}


async def test_r4_hello_said_again_for_a_refused_neighbour_asks_about_no_parked_one_again(coordinator: Served) -> None:
    """A parked one is asked about once when its producer comes back, not at each beat for as long as a neighbour is refused."""
    await coordinator.call("PUT", "/v1/producers/shop", {})
    await coordinator.call("PUT", "/v1/topics/t", {"kind": "unordered", "allow_no_group": True})
    half = {"id": ID, "producer": "shop", "source": SOURCE, "messages": [{"topic": "t", "data": 1}], "first_check_s": 86_400}
    earlier = await coordinator.stream()
    await say(earlier, HELLO)
    await heard(earlier)
    assert (await coordinator.call("POST", "/v1/transactions", half))[0] == 201
    await earlier.close()
    assert (await coordinator.call("POST", f"/v1/transactions/{ID}/park", {"reason": "test"}))[0] == 200
    ws = await coordinator.stream()
    await say(ws, HELLO)
    assert [each["name"] for each in (await heard(ws))["refused"]] == ["not-made"]
    question = await heard(ws)
    assert question["type"] == "check"
    await say(ws, {"type": "verdicts", "n": question["n"], "source": SOURCE, "verdicts": [{"id": ID, "verdict": "running"}]})
    await eventually(lambda: any("check running" in str(row) for row in coordinator.dump()["tx_note"]), "the answer is written down")
    before = coordinator.dump()["tx"]
    await say(ws, HELLO)
    assert (await heard(ws))["type"] == "hello"
    await say(ws, {"type": "beat", "producers": []})
    assert (await heard(ws))["type"] == "beat"
    assert coordinator.dump()["tx"] == before
    await ws.close()
