"""What both services share: their arguments, a web server, a life that ends in good order, and the tables of halfmsg on PostgreSQL.

Run one:  python -m halfmsg.samples.order_inventory.order --port 7611 --db sqlite:///orders.db
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, LiteralString, Protocol

from aiohttp import web

from halfmsg import Client, Consumer, Outbox
from halfmsg.outbox import admin

from . import db
from .hooks import Hooks

HOST: Final = "127.0.0.1"
BODY_BYTES_MAX: Final = 16 * 1024 * 1024  # an invoice of many thousand lines
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    port: int
    db: str
    coordinator: str
    demo: bool


class Service(Protocol):
    """A service as `run` sees it."""

    client: Client
    outbox: Outbox
    consumer: Consumer
    database: db.Database
    hooks: Hooks
    tables: LiteralString

    def routes(self) -> list[web.RouteDef]: ...
    async def status(self) -> Mapping[str, Any]: ...


def options(argv: Sequence[str] | None = None, *, port: int, file: str) -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=port)
    parser.add_argument("--db", default=f"sqlite:///{file}", help="sqlite:///FILE or postgresql://...")
    parser.add_argument("--coordinator", default="http://127.0.0.1:7610")
    parser.add_argument("--demo", action="store_true", help="offer POST /crash, to die at a named place")
    given = parser.parse_args(argv)
    return Options(given.port, given.db, given.coordinator, given.demo)


def run(service: Service, chosen: Options) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(_run(service, chosen))


async def _run(service: Service, chosen: Options) -> None:
    """Serve until SIGTERM or SIGINT: the web server, the relay and the consumer, in one loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, service.consumer.stop)
    await service.database.open(service.tables)
    try:
        await _install(service)
        async with service.outbox:  # hands over, answers check-backs
            runner = web.AppRunner(_app(service, chosen), access_log=None)
            await runner.setup()
            try:
                await web.TCPSite(runner, HOST, chosen.port).start()
                await service.consumer.serve()  # waits for the coordinator if it is away
            finally:
                await runner.cleanup()
    finally:
        await service.client.aclose()
        await service.database.close()


def _app(service: Service, chosen: Options) -> web.Application:
    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.add_routes(service.routes())

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"pid": os.getpid()})

    async def status(_: web.Request) -> web.Response:
        return web.json_response(await service.status())

    async def crash(request: web.Request) -> web.Response:
        order = await request.json()
        try:
            service.hooks.arm(order["at"], int(order.get("passes", 0)))
        except (KeyError, ValueError) as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        return web.json_response({"armed": order["at"]})

    app.add_routes([web.get("/health", health), web.get("/status", status)])
    if chosen.demo:
        app.add_routes([web.post("/crash", crash)])
    return app


async def _install(service: Service) -> None:
    """halfmsg's own tables. On SQLite it makes them on first use; on a server somebody has to run `halfmsg outbox install URL`: here we do."""
    if service.database.postgres:
        made = await asyncio.to_thread(admin.install, service.database.url)
        log.info("tables of halfmsg: %s", f"made {', '.join(made)}" if made else "all there")
