"""What an operator looks at is what is stored now."""

from __future__ import annotations

from tests.support.serving import Served


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
