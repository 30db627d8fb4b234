"""A real coordinator, empty or with something of everything; see tests/support."""

import pytest_asyncio

from tests.support.fixtures import clock, coordinator
from tests.support.serving import Served

from .standing import DECIDED, OPEN, M

__all__ = ["clock", "coordinator"]


@pytest_asyncio.fixture
async def standing(coordinator: Served) -> Served:
    """A topic of each kind, a producer, a group, one committed and one half message, and one delivery in a hand."""
    for topic, kind in (("plain", "unordered"), ("seq", "sequence")):
        assert (await coordinator.call("PUT", f"/v1/topics/{topic}", {"kind": kind, "allow_no_group": True}))[0] == 201
    await coordinator.call("PUT", "/v1/groups/g", {"topics": [{"topic": "plain"}]})
    await coordinator.call("PUT", "/v1/producers/orders", {"check_url": "http://127.0.0.1:9/check"})
    await coordinator.call("POST", "/v1/transactions", {"id": DECIDED, "producer": "orders", "state": "committed", "messages": [M]})
    await coordinator.call("POST", "/v1/transactions", {"id": OPEN, "producer": "orders", "messages": [M]})
    status, answer = await coordinator.call("POST", "/v1/groups/g/fetch", {"max": 10})
    assert (status, len(answer["deliveries"])) == (200, 1)
    return coordinator
