"""A real coordinator, empty or with something of everything; see tests/support."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest_asyncio

from tests.support import serving
from tests.support.clock import ManualClock
from tests.support.fixtures import clock, coordinator
from tests.support.serving import Served

from .standing import DECIDED, OPEN, M

__all__ = ["clock", "coordinator"]


@pytest_asyncio.fixture
async def dev(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Served]:
    """A coordinator that makes topics and producers on first use."""
    one = await serving.started(serving.settings(tmp_path, dev=True), clock)
    async with aiohttp.ClientSession() as session:
        yield Served(one, session)
    await one.stop()


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
