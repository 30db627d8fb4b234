"""What docs/operations.md tells after a restore: a number whose body only the lost coordinator had is said again, and its key goes on."""

from __future__ import annotations

from tests.support.serving import Served, heard, say

SOURCE = "0d" * 16


def _transaction(number: int) -> dict[str, object]:
    message = {"topic": "shop.order", "key": "s0", "sequence": number, "data": {"order": number}}
    return {
        "id": f"018f0000-0000-7000-8000-{number:012}", "producer": "shop", "source": SOURCE, "state": "committed", "messages": [message],
    }  # fmt: skip


async def test_p2_lost_number_said_again_by_hand_frees_its_key(coordinator: Served) -> None:
    """1 is known, 2 was lost, 3 came again and waits. 2 with its own id and number frees both, in order; said twice it is the same."""
    await coordinator.call("PUT", "/v1/producers/shop", {})
    await coordinator.call("PUT", "/v1/topics/shop.order", {"kind": "sequence"})
    await coordinator.call("PUT", "/v1/groups/g", {"topics": [{"topic": "shop.order"}]})
    ws = await coordinator.stream()
    await say(ws, {"type": "hello", "client": "test", "version": "1", "producers": [{"name": "shop", "source": SOURCE}]})
    await heard(ws)
    for number in (1, 3):
        assert (await coordinator.call("POST", "/v1/transactions", _transaction(number)))[0] == 201
    assert (await coordinator.call("GET", "/v1/keys"))[1]["items"][0]["next"] == 2
    assert [(await coordinator.call("POST", "/v1/transactions", _transaction(2)))[0] for _ in range(2)] == [201, 200]
    _, handed = await coordinator.call("POST", "/v1/groups/g/fetch", {"max": 10, "member": "m"})
    assert [each["data"]["order"] for each in handed["deliveries"]] == [1, 2, 3]
    await ws.close()
