"""`halfmsg demo`: three processes, a story, a day of real orders under kill -9, and books that must balance."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Final

import aiohttp

from . import checker, csvbook
from .data import DAY
from .ports import NoPort
from .processes import ProcessFailed, Trio, trio
from .replay import Replay
from .screen import Screen, console
from .shop import Failed, Shop
from .story import ORDERS, Story

KILLS: Final = 12
CONNECT_S: Final = 3
INTERRUPTED: Final = 130


@dataclass(frozen=True, slots=True)
class Chosen:
    keep: bool
    seed: int
    kills: int
    file: Path
    databases: tuple[str, str] | None  # of the order service and the inventory; None: files in the data directory

    def urls(self, folder: Path) -> tuple[str, str]:
        return self.databases or (f"sqlite:///{folder / 'orders.db'}", f"sqlite:///{folder / 'inventory.db'}")


def run(*, keep: bool, seed: int | None, kills: int | None, data: Path | None, databases: tuple[str, str] | None = None) -> int:
    """Play it all; 0 where the books balance, 1 where not, 2 where `data` is no file of orders, 130 when interrupted before the books."""
    chosen = Chosen(keep, SystemRandom().randrange(10_000) if seed is None else seed, KILLS if kills is None else kills, data or DAY, databases)
    screen = Screen(console())
    try:
        invoices = csvbook.read(chosen.file)
    except csvbook.BadFile as error:
        screen.line(str(error))
        return 2
    folder = Path(tempfile.mkdtemp(prefix="halfmsg-demo-"))
    code = 1
    try:
        code = asyncio.run(_play(chosen, screen, invoices, folder))
    except (KeyboardInterrupt, asyncio.CancelledError):
        code = INTERRUPTED
        screen.line("interrupted; everything is stopped")
    finally:
        if code != 1 and not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return code


async def _play(chosen: Chosen, screen: Screen, invoices: list[csvbook.Invoice], folder: Path) -> int:
    _end_on_sigterm()
    start = asyncio.get_running_loop().time()
    try:
        programs = trio(folder, chosen.urls(folder))
    except NoPort as error:
        screen.problems("FAILED before anything was started.", [str(error)], folder)
        return 1
    storage = f"{folder} ({'PostgreSQL' if chosen.databases else 'SQLite'}, {'kept' if chosen.keep else 'deleted on exit; kept with --keep'})"
    screen.banner(programs, chosen.file, chosen.file == DAY, storage, chosen.seed)
    try:
        timeout = aiohttp.ClientTimeout(total=30, connect=CONNECT_S)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(force_close=True)) as web:
            books = await _perform(chosen, screen, Shop(web, programs), invoices, folder)
        if not books.balanced:
            screen.problems("THE BOOKS DO NOT BALANCE.", books.problems, folder)
            return 1
        screen.line(f"Books balance.   {asyncio.get_running_loop().time() - start:.1f} s")
        if chosen.keep:
            screen.line(f"All three go on running; databases and logs are in {folder}.  Ctrl-C to stop.")
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return 0
    except (Failed, ProcessFailed) as error:
        screen.problems("FAILED before the books could be counted.", [str(error)], folder)
        return 1
    finally:
        await _stop(programs)


async def _perform(chosen: Chosen, screen: Screen, shop: Shop, invoices: list[csvbook.Invoice], folder: Path) -> checker.Books:
    """The story, the replay, the books."""
    await _start(shop)
    if len(invoices) >= ORDERS:
        await Story(shop, screen).tell(invoices)
    screen.line()
    screen.event(f"now all {len(invoices):,} invoices of the file, {chosen.kills} kills among them")
    await Replay(shop, screen, invoices, seed=chosen.seed, kills=chosen.kills).run()
    orders, inventory = chosen.urls(folder)
    books = await asyncio.to_thread(checker.check, chosen.file, orders, inventory, shop.trio.coordinator.url)
    screen.books(books, [(program.name, program.kills) for program in shop.trio.all])
    return books


async def _start(shop: Shop) -> None:
    await shop.trio.coordinator.start(shop.web)
    await shop.furnish()
    await asyncio.gather(shop.trio.orders.start(shop.web), shop.trio.inventory.start(shop.web))


async def _stop(programs: Trio) -> None:
    """Also when this task is being cancelled: nothing may be left running."""
    try:
        await asyncio.shield(programs.stop())
    finally:
        for program in programs.all:
            program.end_now()


def _end_on_sigterm() -> None:
    """As Ctrl-C, so that the children end too."""
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
