"""The whole file through the two services, several orders at a time, while processes are killed at moments that a seed chooses."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import aiohttp
from rich.progress import Progress, TaskID

from .csvbook import Invoice
from .processes import Program, Trio, ask
from .screen import Screen
from .shop import Failed, Shop, until

AT_ONCE: Final = 8
AGAIN_S: Final = 0.1
LOOK_S: Final = 0.1
STUCK_S: Final = 60.0  # without any progress; the longest honest pause is a lease, a restart and a check-back
DOWN_S: Final = 0.4
PLACING: Final = 0.25  # of all the work; the rest is moving stock and answering
TOGETHER: Final = 0.2  # how often the next victim falls with this one


@dataclass(slots=True)
class Counts:
    placed: int = 0
    moves: int = 0
    answered: int = 0
    in_doubt: int | None = None


class Replay:
    def __init__(self, shop: Shop, screen: Screen, invoices: Sequence[Invoice], *, seed: int, kills: int) -> None:
        self.shop = shop
        self.screen = screen
        self.random = Random(seed)
        self.kills = kills
        self.killed = 0
        self.waiting = deque(invoices)
        self.invoices = len(invoices)
        self.lines = sum(len(invoice.lines) for invoice in invoices)
        self.counts = Counts()

    async def run(self) -> None:
        """Until every line is moved and answered and nothing is in doubt. Raises Failed when it stands still, ProcessFailed."""
        with self.screen.bar() as bar:
            shown = [bar.add_task("orders placed", total=self.invoices, remark=""), bar.add_task("lines answered", total=self.lines, remark="")]
            work = [asyncio.create_task(self._place()) for _ in range(AT_ONCE)]
            work += [asyncio.create_task(self._kill()), asyncio.create_task(self._watch(bar, shown))]
            try:
                await asyncio.gather(*work)
            finally:
                for task in work:
                    task.cancel()
                await asyncio.gather(*work, return_exceptions=True)

    async def _place(self) -> None:
        while self.waiting:
            await self._place_one(self.waiting.popleft())
            self.counts.placed += 1

    async def _place_one(self, invoice: Invoice) -> None:
        """Ask until it is there: without an answer nobody knows, and asking again is safe. `_watch` ends what never succeeds."""
        while True:
            try:
                status, _ = await self.shop.place(invoice)
            except (aiohttp.ClientError, TimeoutError):
                status = 0
            if status in (200, 201):
                return
            if 400 <= status < 500:
                raise Failed(f"order {invoice.number} was refused with {status}")
            await asyncio.sleep(AGAIN_S)

    async def _kill(self) -> None:
        """Spread over the run: kill k comes about when k parts of all the work are done, so each meets a busy system."""
        for at in sorted(self.random.uniform(0.02, 0.95) for _ in range(self.kills)):
            await until(self._past(at), "the next kill", math.inf)  # `_watch` ends a run that stands still
            if self.killed >= self.kills:
                return
            victims = self._victims()
            self.killed += len(victims)
            await asyncio.gather(*(self._fell(victim, self.random.uniform(0, DOWN_S)) for victim in victims))

    def _victims(self) -> list[Program]:
        trio: Trio = self.shop.trio
        two = self.random.random() < TOGETHER and self.kills - self.killed > 1
        fewest = sorted(trio.all, key=lambda program: (program.kills, self.random.random()))
        return fewest[: 2 if two else 1]

    async def _fell(self, victim: Program, down_s: float) -> None:
        await victim.kill()
        await asyncio.sleep(down_s)
        await victim.start(self.shop.web)

    def _past(self, at: float) -> Callable[[], Awaitable[bool]]:
        async def past() -> bool:
            placed, answered = self.counts.placed / self.invoices, self.counts.answered / self.lines
            return PLACING * placed + (1 - PLACING) * answered >= at

        return past

    async def _watch(self, bar: Progress, shown: Sequence[TaskID]) -> None:
        """Look at both services and the coordinator until all is done; a figure of one that is down stays as it was."""
        loop = asyncio.get_running_loop()
        moved_at, before = loop.time(), self._state()
        while not self._finished():
            await asyncio.sleep(LOOK_S)
            await self._look()
            bar.update(shown[0], completed=self.counts.placed)
            bar.update(shown[1], completed=self.counts.answered, remark=f"kill -9: {self.killed} of {self.kills}")
            if self._state() != before:
                moved_at, before = loop.time(), self._state()
            if loop.time() - moved_at > STUCK_S:
                raise Failed(f"no progress for {STUCK_S:g} s: {self.say()}")

    def _state(self) -> tuple[int | None, ...]:
        return self.counts.placed, self.counts.moves, self.counts.answered, self.counts.in_doubt, self.killed

    def _finished(self) -> bool:
        counts = self.counts
        all_done = counts.placed == self.invoices and counts.answered >= self.lines and counts.moves >= self.lines
        return all_done and counts.in_doubt == 0 and self.killed >= self.kills

    async def _look(self) -> None:
        trio = self.shop.trio
        orders, inventory = await asyncio.gather(ask(self.shop.web, f"{trio.orders.url}/status"), ask(self.shop.web, f"{trio.inventory.url}/status"))
        self.counts.answered = orders["answered"] if orders else self.counts.answered
        self.counts.moves = inventory["moves"] if inventory else self.counts.moves
        if self.counts.answered >= self.lines:
            doubtful = await self.shop.in_doubt()
            self.counts.in_doubt = None if doubtful is None else len(doubtful)

    def say(self) -> str:
        counts = self.counts
        doubt = "" if counts.in_doubt is None else f", {counts.in_doubt} transactions in doubt"
        return f"{counts.placed} of {self.invoices} orders placed, {counts.moves} of {self.lines} lines moved, {counts.answered} answered{doubt}"
