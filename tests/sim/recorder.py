"""Clients that say some things twice; that of whoever publishes keeps what was acknowledged as well."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from halfmsg import Client
from halfmsg.txclient import HalfmsgError
from tests.kill.producer import Recorder
from tests.support import history
from tests.support.checker import DECIDED

if TYPE_CHECKING:
    from .world import World

DOUBLED = 0.06
DOUBLED_WITHIN_S = 8.0


class Twice(Client):
    """Some of what it says arrives twice, the second time after other things."""

    world: World
    chance: random.Random
    _doubles: list[asyncio.Task[None]]

    def doubled_in(self, world: World, chance: random.Random) -> None:
        self.world, self.chance, self._doubles = world, chance, []

    async def op(self, op: Any, *, timeout: float | None = None, retry: bool = True) -> Any:
        if self.chance.random() < DOUBLED:
            self._doubles.append(asyncio.create_task(self._again(op, self.chance.uniform(0, DOUBLED_WITHIN_S))))
        return await super().op(op, timeout=timeout, retry=retry)

    async def _again(self, op: Any, after_s: float) -> None:
        """As a proxy that lost the answer would; nobody hears what comes of it, the ledger judges it."""
        await asyncio.sleep(after_s)
        try:
            await Client.op(self, op, timeout=2.0)
        except HalfmsgError:
            return
        self.world.mark("said_twice")


class SimRecorder(Twice, Recorder):
    """Keeps what was acknowledged, for the operator to look for."""

    def __init__(self, url: str, book: history.Writer, world: World, chance: random.Random) -> None:
        super().__init__(url, book)
        self.doubled_in(world, chance)

    async def op(self, op: Any, *, timeout: float | None = None, retry: bool = True) -> Any:
        answer = await super().op(op, timeout=timeout, retry=retry)
        if isinstance(answer, dict) and "state" in answer and isinstance(answer.get("id"), str):
            self.world.told.append(answer["id"])
            if self.world.states.get(answer["id"]) not in DECIDED:  # an answer that was on its way for longer says what was
                self.world.states[answer["id"]] = answer["state"]
        return answer
