"""The floors: what the store alone does, and what HTTP alone does."""

from __future__ import annotations

import asyncio
import base64
import tempfile
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from ..clock import SystemClock
from ..digests import transaction_digest
from ..env import Env
from ..messages import Content, Decision, Fetch, Kind, Settle, SettleMany
from ..parse import message
from ..service import fetching, groups, producers, settling, topics, transactions
from ..settings import Settings
from ..store.sqlite.backend import SqliteBackend
from ..wire import MessageIn
from .plan import Plan, body

PRODUCER = "bench"


class _Store:
    """The transaction functions, group by group, as the writer runs them."""

    def __init__(self, path: Path) -> None:
        self.clock = SystemClock()
        settings = Settings(dev=True)
        self.backend = SqliteBackend(path, env=Env(settings), synchronous="FULL", now_ms=self.clock.now_ms())
        self.group([(topics.put, topics.TopicWanted("bench", Kind.UNORDERED))])
        wanted = groups.GroupWanted("g", (groups.Wanted("bench", None, ()),), "earliest", None, 16, None, None)
        self.group([(groups.put, wanted)])
        self.group([(producers.hello, producers.Hello(PRODUCER, None))])

    def group(self, calls: list[Any]) -> list[Any]:
        self.backend.begin()
        tx = self.backend.tx
        now = tx.now = self.clock.now_ms()
        results = [fn(tx, now, command) for fn, command in calls]
        self.backend.commit()
        tx.events = []
        return results


def store_rate(plan: Plan, folder: str) -> float:
    """Complete transactions a second: prepare, commit, fetch, ack, each in groups of `batch`."""
    with tempfile.TemporaryDirectory(dir=folder or None) as where:
        store = _Store(Path(where) / "floor.db")
        one = message(MessageIn(topic="bench", data_base64=base64.b64encode(body()).decode()), 0, packed=False)
        digest = transaction_digest([one.digest])
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < plan.seconds:
            ids = [_id(done + at) for at in range(plan.batch)]
            store.group([(transactions.store_content, Content(id, PRODUCER, None, None, digest, (one,), None, False)) for id in ids])
            store.group([(transactions.decide, Decision(id, True, PRODUCER, None, digest)) for id in ids])
            handed = store.group([(fetching.fetch, Fetch("g", plan.batch, None, None, None))])[0]
            store.group([(settling.settle, SettleMany("g", tuple(Settle(each.token, "ack") for each in handed)))])
            done += len(handed)
        rate = done / (time.perf_counter() - started)
        store.backend.close()
        return rate


def _id(number: int) -> bytes:
    return (time.time_ns() // 1_000_000).to_bytes(6, "big") + number.to_bytes(10, "big")


async def bare_server(port: int, answer: bytes) -> web.AppRunner:
    """A handler that reads the request and answers the same bytes, with no storage behind it."""

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(body=answer, status=201, headers={"Content-Type": "application/json", "Halfmsg-Time": "0", "Halfmsg-Request-Id": "0"})

    app = web.Application(client_max_size=8 * 1024 * 1024)
    app.router.add_post("/v1/transactions", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return runner


async def serve_bare(port: int, answer: bytes) -> None:
    await bare_server(port, answer)
    await asyncio.Event().wait()
