"""A gap is a question, not a wait (R5): who holds the number that an ordered key waits for?

The undecided transactions of the key are asked about by the poller (release.py makes them due). Here the producer is asked who holds the
missing number itself: an id that is not here yet stands in its outbox, and nobody means that a person must look. Kept in memory, for
`GET /v1/keys` and the log; nothing is decided by it.
"""

from __future__ import annotations

import logging
from typing import Any

from msgspec import Struct

from halfmsg.checkback import question, verdict
from halfmsg.checkback.answers import Missing

from .engine import Engine
from .service import looking
from .store.sqlite.deliveries import Deliveries
from .stream import Streams

log = logging.getLogger("halfmsg.gaps")

KEYS_MAX = 100
PATIENCE_MS = 1_000
AGAIN_MS = 10_000
TIMEOUT_S = 5.0


class Gap(Struct):
    """One key that waits. `holder`: the transaction that has the number, "nobody", or None while nobody has answered."""

    number: int
    since_ms: int
    asked_ms: int = 0
    holder: str | None = None


class Gaps:
    def __init__(self, engine: Engine, streams: Streams) -> None:
        self._engine, self._streams = engine, streams
        self.known: dict[int, Gap] = {}

    async def tick(self) -> int:
        """Look at the keys that wait; ask about those that have waited for a second. Gives how many wait."""
        waiting = await self._engine.read(_waiting)
        now = self._engine.clock.now_ms()
        found: dict[int, Gap] = {}
        for key in waiting:
            gap = self.known.get(key["id"])
            found[key["id"]] = gap if gap is not None and gap.number == key["next"] else Gap(key["next"], now)
        self.known = found
        for key in waiting:
            gap = found[key["id"]]
            if now - gap.since_ms >= PATIENCE_MS and now - gap.asked_ms >= AGAIN_MS and key["producer"] is not None:
                gap.asked_ms = now
                await self._ask(key, gap)
        return len(waiting)

    async def _ask(self, key: dict[str, Any], gap: Gap) -> None:
        connections = self._streams.of_producer(key["producer"])
        if not connections:
            return
        missing = Missing(key["topic"], key["key"], gap.number)
        frame = await connections[0].ask(question.build(key["producer"], key["source"], [], [missing]), TIMEOUT_S)
        if frame is None:
            return
        holders = verdict.read_holders([missing], key["source"], frame)
        if missing in holders:
            gap.holder = holders[missing] or "nobody"
            log.warning("a key waits", extra={"topic": key["topic"], "producer": key["producer"], "number": gap.number, "holder": gap.holder})

    def of(self, okey: int) -> dict[str, Any]:
        """What is known of a key's gap, for people."""
        gap = self.known.get(okey)
        return {} if gap is None else {"since_s": (self._engine.clock.now_ms() - gap.since_ms) / 1000, "holder": gap.holder}


def _waiting(tx: Deliveries) -> list[dict[str, Any]]:
    keys = looking.keys_with_gaps(tx, 0, KEYS_MAX)
    for key in keys:
        source = None if key["producer"] is None else tx.source(key["producer"])
        key["source"] = None if source is None or source.db_id is None else source.db_id.hex()
    return [key for key in keys if not key["draining"]]
