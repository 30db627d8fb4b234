"""Every HTTP handler cancelled at each of its awaits: nothing stays open, nothing leaks, and the next request is answered at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.test_utils import make_mocked_request

from halfmsg.coordinator import api
from halfmsg.coordinator.api_calls import Calls
from halfmsg.coordinator.gaps import Gaps
from halfmsg.coordinator.routes import ROUTES, Route
from tests.cancel.rows import LONGEST_S, NOT_BUILT, ROWS, Asked, Make, World
from tests.clocks.life import BACKOFF_S, Life, living
from tests.outbox.faults import cancel_at
from tests.support.clock import WildClock
from tests.support.serving import eventually

CANCELS_MAX = 120
CASES = [(route, make) for route in ROUTES for make in ROWS.get((route.method, route.path), ())]


@pytest_asyncio.fixture
async def world(folder: Path) -> AsyncIterator[World]:
    async with living(folder, WildClock()) as life:
        yield World(life)


def request_of(route: Route, asked: Asked) -> web.Request:
    """What the server would hand to the handler, its body read."""
    loop = asyncio.get_running_loop()
    payload = StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    if asked.body is not None:
        payload.feed_data(msgspec.json.encode(asked.body))
    payload.feed_eof()
    headers = {"Content-Type": "application/json"}
    return make_mocked_request(route.method, f"/?{asked.query}", headers, match_info=dict(asked.path), payload=payload)


class Watch:
    """What was there before a call, and whether a call left more."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.engine = life.served.coordinator.engine
        self.tasks = asyncio.all_tasks()

    async def nothing_is_left(self) -> None:
        await eventually(lambda: asyncio.all_tasks() <= self.tasks, "the end of every task")
        assert self.engine.hub._waiters == {}
        await self.engine.call(lambda tx, now, command: None, None)
        await eventually(lambda: self.engine._writer._calls_waiting == 0 and not self.engine._backend._conn.in_transaction, "an idle store")


async def goes_on(world: World) -> None:
    """A normal life works at once."""
    life = world.life
    async with asyncio.timeout(5):
        given = await world.given()
        assert await life.settle("ack", "u", given) == [""]
        world.owed.discard(given["data"])


async def nothing_is_lost(world: World) -> None:
    """What a cancelled call took under a lease or gave back comes again when that has ended, and the wait before another attempt; not later."""
    life = world.life
    await life.later(LONGEST_S + 1)
    await life.later(BACKOFF_S + 1)
    got: set[int] = set()

    async def all_there() -> bool:
        given = await life.fetch("u")
        assert await life.settle("ack", "u", *given) == [""] * len(given)
        got.update(each["data"] for each in given)
        return got >= world.owed

    await eventually(all_there, f"the messages {world.owed}")
    await life.is_sound()


def test_every_route_has_a_row() -> None:
    """A route that nobody cancels is a route that nobody knows."""
    assert set(ROWS) == {(route.method, route.path) for route in ROUTES}
    assert set(ROWS) >= NOT_BUILT


def is_as_built(route: Route, answer: web.Response) -> None:
    """A row whose call is refused, as a whole or an item of it, reaches few awaits of what it stands for."""
    if (route.method, route.path) in NOT_BUILT:
        assert answer.status == 501, f"it is built: give its row a body, and take it out of NOT_BUILT ({answer.status} {answer.text})"
        return
    assert 200 <= answer.status < 300, answer.text
    items = msgspec.json.decode(answer.body).get("results", []) if answer.body else []
    assert [each for each in items if "error" in each] == []


@pytest.mark.parametrize(("route", "make"), CASES, ids=[f"{route.method} {route.path} {make.__name__}" for route, make in CASES])
async def test_p3_handler_cancelled_at_every_await_leaves_nothing_behind(world: World, route: Route, make: Make) -> None:
    """No open transaction, no waiter, no task, no message that does not come again; and the store is sound."""
    coordinator = world.life.served.coordinator
    calls = Calls(coordinator.engine, coordinator.checks, coordinator.streams, Gaps(coordinator.engine, coordinator.streams))
    handle = api.Http(coordinator.engine).handler(route, getattr(calls, route.call))
    answers: list[web.Response] = []

    async def answered(request: web.Request) -> None:
        answers.append(await handle(request))

    for k in range(1, CANCELS_MAX):
        request = request_of(route, await make(world))
        watch = Watch(world.life)
        reached, error = await cancel_at(answered(request), k)
        assert isinstance(error, asyncio.CancelledError) is reached, error
        await watch.nothing_is_left()
        await goes_on(world)
        if not reached:
            break
    else:
        raise AssertionError("it never came to its end")
    [answer] = answers  # of the run that nobody cancelled
    is_as_built(route, answer)
    await nothing_is_lost(world)


async def test_what_a_cancelled_call_made_has_its_name_in_the_metrics(world: World) -> None:
    """Else its messages would be counted as `other` until the next restart."""
    coordinator = world.life.served.coordinator
    calls = Calls(coordinator.engine, coordinator.checks, coordinator.streams, Gaps(coordinator.engine, coordinator.streams))
    [route] = [route for route in ROUTES if route.call == "put_topic"]
    [make] = ROWS["PUT", "/v1/topics/{topic}"]
    made = set()
    for k in (1, 2):
        asked = await make(world)
        reached, _ = await cancel_at(api.Http(coordinator.engine).handler(route, calls.put_topic)(request_of(route, asked)), k)
        assert reached
        made.add(asked.path["topic"])
    await eventually(lambda: made <= set(coordinator.engine.names.topics.values()), "the names")


@pytest.mark.parametrize("face", ["_metrics", "_ready"])
async def test_p3_probe_cancelled_at_every_await_leaves_nothing_behind(world: World, face: str) -> None:
    """A scraper that gives up."""
    handle: Any = getattr(api, face)(world.life.served.coordinator.engine)
    for k in range(1, CANCELS_MAX):
        watch = Watch(world.life)
        world.life.clock.advance(6)
        reached, _ = await cancel_at(handle(make_mocked_request("GET", "/")), k)
        await watch.nothing_is_left()
        if not reached:
            break
    await goes_on(world)
