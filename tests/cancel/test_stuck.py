"""A blocked event loop and a blocked writer are seen, and neither puts one message into two hands."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from halfmsg.coordinator import engine
from halfmsg.coordinator.watchdog import Watchdog
from tests.support import serving
from tests.support.serving import Served, eventually

STUCK_S = 0.2
LEASE_S = 0.6


@pytest_asyncio.fixture
async def served(folder: Path) -> AsyncIterator[Served]:
    one = await serving.started(serving.settings(folder, stuck_s=STUCK_S))
    async with aiohttp.ClientSession() as session:
        served = Served(one, session)
        for topic, kind in (("a", "arrival"), ("u", "unordered")):
            assert (await served.call("PUT", f"/v1/topics/{topic}", {"kind": kind, "lanes": 1}))[0] == 201
            assert (await served.call("PUT", f"/v1/groups/{topic}", {"topics": [{"topic": topic}], "lease_s": LEASE_S}))[0] == 201
        yield served
    await one.stop()


@contextmanager
def held_writer(served: Served) -> Iterator[threading.Event]:
    """The writer's thread waits, as in an fsync that does not come back."""
    gate = threading.Event()
    waiting = served.coordinator.engine._writer.outside(lambda: gate.wait(20))
    task = asyncio.ensure_future(waiting)
    try:
        yield gate
    finally:
        gate.set()
        task.add_done_callback(lambda _: None)


def stalls(served: Served, part: str) -> float:
    return served.coordinator.metrics.registry.get_sample_value("halfmsg_stalls_total", {"part": part}) or 0.0


async def fetch(served: Served, group: str, member: str, wait_s: float = 0) -> list[dict[str, Any]]:
    status, answer = await served.call("POST", f"/v1/groups/{group}/fetch", {"max": 10, "wait_s": wait_s, "member": member})
    assert status == 200, answer
    return list(answer["deliveries"])


async def ack(served: Served, group: str, *given: dict[str, Any]) -> list[str]:
    status, answer = await served.call("POST", f"/v1/groups/{group}/ack", {"deliveries": [{"token": each["token"]} for each in given]})
    assert status == 200, answer
    return [result.get("error", {}).get("code", "") for result in answer["results"]]


async def send(served: Served, topic: str, *numbers: int) -> None:
    for number in numbers:
        status, answer = await served.call("POST", f"/v1/topics/{topic}/messages", {"data": number} | ({"key": "k"} if topic == "a" else {}))
        assert status == 201, answer


def block(seconds: float) -> None:
    """What a handler does that must not: it waits, and the loop with it."""
    threading.Event().wait(seconds)


async def test_a_stuck_writer_is_logged_with_its_stack_counted_and_not_ready(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """While it is stuck the probe says so at once and does not hang itself; when it goes on, all is as before."""
    with caplog.at_level(logging.WARNING, "halfmsg.watchdog"), held_writer(served):
        await eventually(lambda: stalls(served, "writer") == 1, "the stall")
        await eventually(lambda: any("gate.wait" in record.getMessage() for record in caplog.records), "its stack in the log")
        async with asyncio.timeout(1), served.session.get(served.url + "/readyz?verbose") as answer:
            assert (answer.status, "[-]storage failed" in await answer.text()) == (503, True)
        async with served.session.get(served.url + "/livez") as answer:
            assert answer.status == 200
    await eventually(lambda: served.coordinator.engine.watchdog.stuck == (), "the end of the stall")
    assert any("goes on" in record.getMessage() for record in caplog.records)
    async with served.session.get(served.url + "/readyz") as answer:
        assert answer.status == 200
    assert stalls(served, "loop") == 0


async def test_a_writer_that_does_not_answer_is_not_ready_before_it_counts_as_stuck(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody watches here: the probe has a limit of its own."""
    monkeypatch.setattr(engine, "STORAGE_ANSWERS_S", 0.05)
    served.coordinator.engine.watchdog.stop()
    with held_writer(served):
        async with served.session.get(served.url + "/readyz?verbose") as answer:
            assert (answer.status, "[-]storage failed" in await answer.text()) == (503, True)
    assert served.coordinator.engine.watchdog.stuck == ()


async def test_a_blocked_loop_is_logged_with_its_stack_and_measured(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    """The stack shows who blocked it, and the lag histogram the time, whenever it came."""
    with caplog.at_level(logging.WARNING, "halfmsg.watchdog"):
        block(STUCK_S * 3)
        await eventually(lambda: stalls(served, "loop") == 1, "the stall")
    assert any("block(STUCK_S * 3)" in record.getMessage() for record in caplog.records)
    registry = served.coordinator.metrics.registry
    late = lambda: (registry.get_sample_value("halfmsg_event_loop_lag_seconds_sum") or 0) > STUCK_S  # noqa: E731
    await eventually(late, "the lag")


def test_a_process_that_was_stopped_is_no_stall() -> None:
    """After SIGSTOP the watchdog sees a long time pass: it was stopped itself, and counts two of its own pauses at most."""
    told: list[str] = []
    dog = Watchdog(1.0, told.append)
    steps = iter([1, 1, 1, 2, 2, None, 2, 2, 2])
    dog.watch("part", threading.get_ident(), lambda: next(steps))
    for _ in range(3):
        dog.look(0.3)
    assert (told, dog.stuck) == ([], ())
    dog.look(0.5)
    dog.look(0.5)
    dog.look(0.5)
    dog.look(0.6)
    dog.look(0.6)
    assert (told, dog.stuck) == ([], ())
    dog.look(0.6)
    assert (told, dog.stuck) == (["part"], ("part",))


def test_time_in_which_the_watchdog_stood_still_itself_is_not_counted() -> None:
    """A hundred seconds pass between two of its looks, and what it watches goes on with each second look."""
    told: list[str] = []
    looks, hours, enough = itertools.count(), itertools.count(), threading.Event()
    dog = Watchdog(0.2, told.append)

    def progress() -> int:
        if (look := next(looks)) == 8:
            enough.set()
        return look // 2

    dog.watch("part", threading.get_ident(), progress)
    dog._clock = SimpleNamespace(monotonic=lambda: next(hours) * 100.0)  # type: ignore[assignment]
    dog.start()
    assert enough.wait(20)
    dog.stop()
    assert told == []


@pytest.mark.parametrize("topic", ["a", "u"])
async def test_p7_a_blocked_loop_never_splits_ownership(served: Served, topic: str) -> None:
    """Blocked past the lease: the ack that waited meanwhile is refused, the message comes again, and then only once."""
    await send(served, topic, 1, 2)
    first = await fetch(served, topic, "one")
    assert [each["data"] for each in first] == [1, 2]
    acked = asyncio.ensure_future(ack(served, topic, *first))
    asyncio.get_running_loop().call_soon(block, LEASE_S * 1.5)
    assert await acked in (["lease_lost"] * 2, ["", ""])
    if acked.result() == ["", ""]:  # it was judged before the block: then nobody gets them again
        assert await fetch(served, topic, "two") == []
        return
    await once_more(served, topic)


@pytest.mark.parametrize("topic", ["a", "u"])
async def test_p7_a_stuck_writer_never_splits_ownership(served: Served, topic: str) -> None:
    """An ack and a fetch that wait for a writer which is stuck past the lease are judged by the time when it goes on."""
    await send(served, topic, 1, 2)
    first = await fetch(served, topic, "one")
    with held_writer(served) as gate:
        await eventually(lambda: served.coordinator.engine._writer.progress() is not None, "the writer at the gate")
        acked = asyncio.ensure_future(ack(served, topic, *first))
        clock = served.coordinator.engine.clock
        until = clock.monotonic() + LEASE_S * 1.5
        await eventually(lambda: clock.monotonic() > until, "a lease's length")
        gate.set()
        assert await acked == ["lease_lost"] * 2
    await once_more(served, topic)


async def once_more(served: Served, topic: str) -> None:
    """In order, each in one hand, each ack good, and then nothing."""
    got: list[int] = []

    async def all_there() -> bool:
        given = await fetch(served, topic, "two")
        assert await fetch(served, topic, "three") == [] or topic == "u"
        assert set(await ack(served, topic, *given)) <= {""}
        got.extend(each["data"] for each in given)
        return len(got) >= 2

    await eventually(all_there, "both messages")
    assert got == [1, 2]
    assert [item for item in (await served.call("GET", "/v1/doctor"))[1]["items"] if not item["ok"]] == []
