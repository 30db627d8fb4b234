"""Plain sends with a key, to a topic in order of arrival: from nodes without a database, which know only what they were told."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

from halfmsg.txclient import Busy, TransportError
from tests.kill import load
from tests.support import history

from .recorder import SimRecorder

if TYPE_CHECKING:
    from .world import World

TOPIC: Final = "till"
KEYS: Final = ("kasse 1", "kasse 2", "Kasse ü")
WORKERS: Final = 2
TRIES: Final = 3


class Till:
    def __init__(self, world: World, process: str, seed: int, url: str) -> None:
        self.world, self.chance = world, random.Random(seed)
        self.book = history.Writer(world.folder / "till.events", process)
        self.client = SimRecorder(url, self.book, world, self.chance)

    async def main(self) -> None:
        async with self.client:
            await asyncio.gather(*(self._work() for _ in range(WORKERS)))
            await asyncio.Event().wait()

    async def _work(self) -> None:
        while not self.world.healed:
            await asyncio.sleep(self.chance.expovariate(self.world.rate / WORKERS))
            await self._one()

    async def _one(self) -> None:
        """Sent again under its id while the answer is not known; given up after some tries, and then it may have arrived or not."""
        drawn, key, id = load.item(self.chance, f"till-{self.chance.random()}"), self.chance.choice(KEYS), self.client._ids.transaction()
        item = load.Item(TOPIC, key, drawn.tag, drawn.attributes, drawn.content_type, drawn.body)
        self.book.add("sent", transaction=id, message=f"{id}-0", topic=TOPIC, key=key, sequence=None, digest=item.digest)
        for _ in range(TRIES):
            try:
                sent = await self.client.send(TOPIC, item.body, id=id, **item.options())
            except (TransportError, Busy):
                await asyncio.sleep(self.chance.uniform(0, 1.0))
                continue
            self.book.add("acknowledged", what="send", transaction=sent.id, state=sent.state)
            return
