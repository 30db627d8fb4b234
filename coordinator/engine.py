"""The running core: writer, reader, hub and the commands between them. What api, stream and loops call; it knows no wire."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from . import gauges
from .clock import Clock, SteadyClock
from .env import Env
from .errors import Problem
from .hub import DECIDED, FALLBACK_S, Hub
from .messages import Content, Delivery, Fetch
from .metrics import Metrics
from .reader import Reader
from .service import fetching, groups, transactions
from .settings import Settings
from .store.base import StoreBroken
from .store.sqlite import file
from .store.sqlite.backend import SqliteBackend
from .store.sqlite.deliveries import Deliveries
from .store.writer import Call, Fn, Writer
from .watchdog import Watchdog

T = TypeVar("T")
GAUGES_S = 5.0
STORAGE_ANSWERS_S = 2.0
"""A probe must not hang where the writer does."""
COMMAND_BYTES = 500
"""What a command weighs in the queue besides its bodies."""


class Names:
    """Names behind the numbers of events, for metrics; filled as they are seen."""

    def __init__(self) -> None:
        self.topics: dict[int, str] = {}
        self.groups: dict[int, tuple[str, str]] = {}
        self.producers: dict[int, str] = {}

    def topic_name(self, id: int) -> str:
        return self.topics.get(id, "other")

    def group_name(self, id: int) -> tuple[str, str]:
        return self.groups.get(id, ("other", "other"))

    def producer_name(self, id: int) -> str:
        return self.producers.get(id, "other")


class Engine:
    """Open it in a running loop. Raises StartError when the file cannot be had. `clock` is the machine's; its own is steady (R19)."""

    writer_type = Writer
    """Where groups run: a thread of its own. The simulation runs the same groups as steps of its loop."""

    def __init__(self, settings: Settings, clock: Clock, metrics: Metrics, on_broken: Callable[[BaseException], None]) -> None:
        self.settings, self.metrics = settings, metrics
        self.env = Env(settings)
        self.names = Names()
        self.path = file.real(Path(settings.store))
        self.draining = False
        self.names_stale = False
        """Something was made, and its name could not be read yet."""
        self._gauges_at = -GAUGES_S
        self.on_event: dict[str, Callable[[tuple[Any, ...]], None]] = {}
        self._backend = SqliteBackend(self.path, env=self.env, synchronous=settings.storage.synchronous, now_ms=clock.now_ms())
        self.clock = SteadyClock(clock, self._backend.newest_ms())
        self.hub = Hub(self.clock)
        self._writer = self.writer_type(
            self._backend,
            self.clock,
            calls_max=settings.storage.queue_commands_max,
            bytes_max=settings.storage.queue_bytes_max,
            on_durable=self._durable,
            on_group=metrics.on_group,
            on_broken=on_broken,
        )
        self.reader = Reader(self.path, self.env)
        self._long_reader = Reader(self.path, self.env)
        """For reads of seconds: short ones do not wait behind them."""
        self.watchdog = Watchdog(settings.stuck_s, metrics.stalled)

    async def open(self) -> None:
        self.watchdog.watch_loop(asyncio.get_running_loop())
        self.watchdog.watch("writer", self._writer.thread, self._writer.progress)
        self.watchdog.start()
        await self.reader.open()
        await self.refresh_names()

    async def close(self) -> None:
        self.hub.close()
        await self.reader.close()
        await self._long_reader.close()
        await self._writer.stop()
        self.watchdog.stop()

    # --- commands ---

    async def call(self, fn: Fn, command: Any) -> Any:
        """One command whose answer is awaited. Raises Problem."""
        return await self._writer.call(fn, command)

    async def make(self, fn: Fn, command: Any) -> Any:
        """A command that may bring a new name."""
        try:
            result = await self.call(fn, command)
            await self.names_changed()
        except asyncio.CancelledError:
            self.names_stale = True
            raise
        return result

    async def store_content(self, command: Content) -> Any:
        """Prepare or submit: the two that the door may refuse (R20)."""
        self.check_open()
        return await self._writer.call(transactions.store_content, command, weight=weight(command), essential=False)

    def submit(self, calls: Sequence[Call]) -> asyncio.Future[list[Any]]:
        """Several commands, answered together when durable."""
        total = sum(weight(command) for _, command in calls)
        return self._writer.submit(calls, weight=total, essential=not any(fn is transactions.store_content for fn, _ in calls))

    async def read(self, read: Callable[[Deliveries], T]) -> T:
        return await self.reader.run(read)

    async def read_long(self, read: Callable[[Deliveries], T]) -> T:
        return await self._long_reader.run(read)

    def check_open(self) -> None:
        if self.draining:
            raise Problem("draining", "the coordinator is stopping; nothing was stored")

    async def fetch(self, command: Fetch, wait_s: float) -> list[Delivery]:
        """Long poll: what there is, else wait for news, else nothing after `wait_s`."""
        found: list[Delivery] = await self.call(fetching.fetch, command)
        if found or wait_s <= 0:
            return found
        waiter = self.hub.register(await self.topics_of(command.group))
        deadline = self.clock.monotonic() + wait_s
        try:
            while not self.draining:
                found = await self.call(fetching.fetch, command)
                left = deadline - self.clock.monotonic()
                if found or left <= 0:
                    return found
                await waiter.wait(min(left, FALLBACK_S))
            return []
        finally:
            self.hub.unregister(waiter)

    async def read_until(self, read: Callable[[Deliveries], T], holds: Callable[[T], bool], wait_s: float) -> T:
        """Read now, and again after each decision, until it holds; what stands after `wait_s`."""
        waiter = self.hub.register((DECIDED,))
        deadline = self.clock.monotonic() + wait_s
        try:
            while True:
                found = await self.read(read)
                left = deadline - self.clock.monotonic()
                if holds(found) or left <= 0 or self.draining:
                    return found
                await waiter.wait(min(left, FALLBACK_S))
        finally:
            self.hub.unregister(waiter)

    async def topics_of(self, group: str) -> tuple[int, ...]:
        found = await self.call(groups.get, group)
        return tuple(each.topic for each in found)

    async def storage_answers(self) -> bool:
        """Does the store write, and soon? An empty group is taken through the writer."""
        if "writer" in self.watchdog.stuck:
            return False
        try:
            async with asyncio.timeout(STORAGE_ANSWERS_S):
                await self.call(_nothing, None)
        except (Problem, TimeoutError):
            return False
        return True

    async def refresh_gauges(self) -> None:
        """From bounded look-ups, at most once in 5 s."""
        now = self.clock.monotonic()
        if now - self._gauges_at < GAUGES_S:
            return
        self._gauges_at = now
        now_ms = self.clock.now_ms()
        members = self.env.members
        self.metrics.set_gauges(await self.read(lambda tx: gauges.snapshot(tx.conn, now_ms, lambda grp: len(members.live(grp, now_ms)))))

    async def checkpoint(self) -> None:
        await self._writer.outside(self._backend.checkpoint)

    def look_at_files(self) -> None:
        """A store that was removed or replaced under its coordinator takes each further commit with it: stop, and say so."""
        gone = self._backend.gone()
        if gone is not None:
            self._writer.break_off(StoreBroken(f"{gone} was removed or replaced while it was open; put it back, or restore a backup"))

    # --- events of durable groups ---

    def _durable(self, events: list[tuple[Any, ...]]) -> None:
        woken: set[int] = set()
        for event in events:
            kind = event[0]
            if kind == "released":
                woken.add(event[1])
            elif kind == "decided":
                woken.add(DECIDED)
            elif kind == "wake":
                self.hub.wake_at(event[1], event[2])
            elif (react := self.on_event.get(kind)) is not None:
                react(event)
        for topic in woken:
            self.hub.wake(topic)
        self.metrics.on_events(events, self.names)

    async def names_changed(self) -> None:
        """One was made. What cannot be read now is read by the next pass: names are for metrics alone."""
        try:
            await self.refresh_names()
        except Problem:
            self.names_stale = True

    async def refresh_names(self) -> None:
        """Names are few; read them again after one was made."""

        def read(tx: Deliveries) -> tuple[dict[int, str], dict[int, tuple[str, str]], dict[int, str]]:
            topics = dict(tx.all("SELECT id, name FROM topic LIMIT 10000"))
            groups = {id: (name, topics.get(topic, "other")) for id, name, topic in tx.all("SELECT id, name, topic FROM grp LIMIT 10000")}
            return topics, groups, dict(tx.all("SELECT id, name FROM source LIMIT 10000"))

        self.names.topics, self.names.groups, self.names.producers = await self.read(read)
        self.names_stale = False


def _nothing(tx: Any, now: int, command: None) -> None:
    return None


def weight(command: Any) -> int:
    """Bytes that a command holds while it waits."""
    if isinstance(command, Content):
        return COMMAND_BYTES + sum(len(message.body) + len(message.extra) for message in command.messages)
    return COMMAND_BYTES
