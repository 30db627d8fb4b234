"""What a consumer is sent over the stream is what it has given credit for."""

from __future__ import annotations

from tests.support.serving import Served, heard, say


async def test_p9_stream_sends_no_more_than_the_credit(coordinator: Served) -> None:
    """Two credits: two of five messages; then exactly as many as are added."""
    await coordinator.call("PUT", "/v1/topics/plain", {"kind": "unordered"})
    await coordinator.call("PUT", "/v1/groups/g", {"topics": [{"topic": "plain"}]})
    ws = await coordinator.stream()
    ops = [{"op": "submit", "id": f"018f0000-0000-7000-8000-{n:012}", "messages": [{"topic": "plain", "data": n}]} for n in range(5)]
    await say(ws, {"type": "ops", "n": 1, "ops": ops})
    assert all("ok" in each for each in (await heard(ws))["results"])
    await say(ws, {"type": "subscribe", "group": "g", "member": "m", "credits": 2})
    sent = [len((await heard(ws))["deliveries"])]
    for add in (1, 2):
        await say(ws, {"type": "credit", "group": "g", "add": add})
        sent.append(len((await heard(ws))["deliveries"]))
    assert sent == [2, 1, 2]
    await ws.close()
