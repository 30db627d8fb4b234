"""Limits of a running coordinator, seen from outside (P9)."""

from __future__ import annotations

from typing import Any

from tests.support.serving import Served, eventually

SEND = {"messages": [{"topic": "small", "data": 1}], "state": "committed"}


async def test_p9_full_topic_refuses_what_is_new_until_its_group_has_taken_some(coordinator: Served) -> None:
    """`max_backlog` is looked at once a second: past it 429 with nothing stored, and open again when the group has taken up."""

    async def send() -> tuple[int, Any]:
        return await coordinator.call("POST", "/v1/transactions", SEND)

    async def refused() -> Any:
        status, answer = await send()
        return answer if status == 429 else None

    async def taken() -> bool:
        return (await send())[0] == 201

    await coordinator.call("PUT", "/v1/topics/small", {"kind": "unordered", "max_backlog": 3})
    await coordinator.call("PUT", "/v1/groups/g", {"topics": [{"topic": "small"}]})
    for _ in range(3):
        assert await taken()
    problem = await eventually(refused, "a refusal")
    assert problem["code"] == "backlog_full" and "a group of topic small has 3 messages to take or to try again" in problem["detail"]
    stored = coordinator.dump(without=("counter",))
    assert (await send())[0] == 429
    assert coordinator.dump(without=("counter",)) == stored
    await coordinator.call("POST", "/v1/groups/g/fetch", {"max": 1_000})
    await eventually(taken, "an open door")


async def test_p9_coordinator_gives_memory_back(coordinator: Served) -> None:
    """What the allocator keeps free is given back by a background task of its own, and each pass is in the metrics."""
    value = coordinator.coordinator.metrics.registry.get_sample_value
    await eventually(lambda: value("halfmsg_task_last_success_timestamp_seconds", {"task": "memory"}), "a pass")
