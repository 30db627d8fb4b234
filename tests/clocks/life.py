"""A small life at a real coordinator whose clock a test moves: an ordered topic, one without order, a producer that is asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from halfmsg.coordinator.settings import Check
from tests.support import serving
from tests.support.clock import WildClock
from tests.support.serving import Served, eventually

LEASE_S, BACKOFF_S, FIRST_CHECK_S, MAX_AGE_S = 30, 10, 5, 3_600
PRODUCER = "orders"


class Life:
    """`word` is what the producer answers to check-backs; `asked` counts them by transaction."""

    def __init__(self, served: Served, clock: WildClock) -> None:
        self.served, self.clock = served, clock
        self.word = "running"
        self.asked: Counter[str] = Counter()
        self.digests: dict[str, str] = {}

    async def make(self) -> None:
        policy = {"lease_s": LEASE_S, "max_attempts": 100, "backoff": {"first_s": BACKOFF_S, "max_s": BACKOFF_S}}
        for topic, kind in (("a", "arrival"), ("u", "unordered")):
            await self.must("PUT", f"/v1/topics/{topic}", {"kind": kind, "lanes": 1})
            await self.must("PUT", f"/v1/groups/{topic}", {"topics": [{"topic": topic}]} | policy)

    async def must(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = await self.served.call(method, path, body)
        assert status < 300, (status, answer)
        return answer

    async def send(self, topic: str, *numbers: int) -> None:
        for number in numbers:
            await self.must("POST", f"/v1/topics/{topic}/messages", {"data": number} | ({"key": "k"} if topic == "a" else {}))

    async def fetch(self, topic: str, count: int = 10, *, member: str = "m") -> list[dict[str, Any]]:
        wanted = {"max": count, "wait_s": 0, "member": member}
        found: list[dict[str, Any]] = (await self.must("POST", f"/v1/groups/{topic}/fetch", wanted))["deliveries"]
        return found

    async def fetched(self, topic: str, want: list[int], *, member: str = "m") -> list[dict[str, Any]]:
        """All of these, in this order; the coordinator's loops work in real time, so it may take a moment."""
        got: list[dict[str, Any]] = []

        async def all_there() -> bool:
            got.extend(await self.fetch(topic, member=member))
            return len(got) >= len(want)

        await eventually(all_there, f"{want} of topic {topic}")
        assert [each["data"] for each in got] == want
        return got

    async def drained(self, topic: str, want: list[int], *, member: str = "m") -> None:
        """All of these come, in this order, each acked before the next."""
        got: list[int] = []

        async def all_there() -> bool:
            given = await self.fetch(topic, member=member)
            assert await self.settle("ack", topic, *given) == [""] * len(given)
            got.extend(each["data"] for each in given)
            return len(got) >= len(want)

        await eventually(all_there, f"{want} of topic {topic}")
        assert got == want

    async def drained_all(self, topic: str) -> None:
        """Until nothing comes."""
        while given := await self.fetch(topic):
            await self.settle("ack", topic, *given)

    async def settle(self, what: str, topic: str, *given: dict[str, Any]) -> list[str]:
        """The error codes, "" for done."""
        if not given:
            return []
        items = [{"token": each["token"]} | ({} if what == "ack" else {"reason": "no"}) for each in given]
        results = (await self.must("POST", f"/v1/groups/{topic}/{what}", {"deliveries": items}))["results"]
        return [result.get("error", {}).get("code", "") for result in results]

    async def prepare(self) -> str:
        made = await self.must("POST", "/v1/transactions", {"producer": PRODUCER, "messages": [{"topic": "u", "data": 0}]})
        self.digests[made["id"]] = made["digest"]
        return str(made["id"])

    async def state(self, id: str) -> str:
        return str((await self.must("GET", f"/v1/transactions/{id}"))["state"])

    async def is_sound(self) -> None:
        items = (await self.must("GET", "/v1/doctor"))["items"]
        assert [item for item in items if item["ok"] is not True] == []

    async def written(self) -> None:
        """All that was asked of the store is done, also by a call that was cancelled meanwhile: its lease begins before the clock is moved."""
        await self.served.coordinator.engine.call(lambda tx, now, command: None, None)

    async def later(self, seconds: float) -> None:
        """Both clocks, and a turn of the loops."""
        self.clock.advance(seconds)
        await self.turn()

    async def turn(self) -> None:
        """Every loop has begun and ended a pass with the time as it is now: a loop notes when it ended, so it is waited for twice."""
        for _ in range(2):
            self.clock.advance(0.002)
            now_s = self.served.coordinator.engine.clock.now_ms() / 1000
            await eventually(lambda now_s=now_s: min(map(self._ended_at, ("leases", "check"))) >= now_s, "a turn of the loops")  # type: ignore[misc]

    def _ended_at(self, task: str) -> float:
        return self.served.coordinator.metrics.registry.get_sample_value("halfmsg_task_last_success_timestamp_seconds", {"task": task}) or 0.0

    async def answer(self) -> None:
        """The producer: says hello and answers each question with `word`."""
        ws = await self.served.stream(hello=False)
        await serving.say(ws, {"type": "hello", "client": "test", "producers": [{"name": PRODUCER}]})
        async for message in ws:
            frame = message.json()
            if frame["type"] == "check":
                ids = [each["id"] for each in frame["transactions"]]
                self.asked.update(ids)
                said = [{"id": id, "verdict": self.word, "digest": self.digests[id], "numbers": [None]} for id in ids]
                await serving.say(ws, {"type": "verdicts", "n": frame["n"], "verdicts": said})


@asynccontextmanager
async def living(folder: Path, clock: WildClock) -> AsyncIterator[Life]:
    """Started over the file of `folder`, as it stands; stopped in good order."""
    settings = serving.settings(folder, dev=True, check=Check(first_delay_s=FIRST_CHECK_S, max_interval_s=60, max_age_s=MAX_AGE_S))
    coordinator = await serving.started(settings, clock)
    try:
        async with aiohttp.ClientSession() as session:
            life = Life(Served(coordinator, session), clock)
            await life.make()
            producer = asyncio.create_task(life.answer())
            await eventually(lambda: coordinator.streams.of_producer(PRODUCER), "the hello")
            await life.must("GET", "/v1/info")  # the producer's stream has taken the session's first connection
            yield life
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)
    finally:
        await coordinator.stop()
