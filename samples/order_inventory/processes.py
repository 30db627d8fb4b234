"""The demo's three programs as real processes: start, kill -9, start again, and end them all whatever happens.

Each writes to a log file of its own in the data directory, which outlives it. Nothing waits without a limit.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from .ports import FIRST, HOST, Ports

START_S: Final = 30.0  # a loaded machine may take seconds to import
STOP_S: Final = 10.0
POLL_S: Final = 0.02
NAMES: Final = ("coordinator", "orders", "inventory")
ANSWER_S: Final = 2.0
HALFMSG: Final = "from halfmsg.coordinator.cli import main; main()"  # the command of the same name, which may not be on the PATH


class ProcessFailed(Exception):
    """A program ended or never answered; the text names its log."""


@dataclass(slots=True)
class Program:
    """One of the three; `process` is None while it is down."""

    name: str
    port: int
    command: Sequence[str]
    health: str
    log: Path
    process: asyncio.subprocess.Process | None = None
    kills: int = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    async def start(self, web: aiohttp.ClientSession) -> None:
        """Start it and wait until it answers. Raises ProcessFailed."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                cwd=self.log.parent, env=_environment(),  # neither a halfmsg.toml nor a HALFMSG_... of somebody else's
            )  # fmt: skip
        await self._healthy(web)

    async def kill(self) -> None:
        """kill -9, counted; returns when it is gone. One that has just killed itself is counted too."""
        self.kills += 1
        if self.process is None:
            return
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        self.process = None

    async def gone(self, limit_s: float = START_S) -> None:
        """Wait until it has killed itself, as a hook told it to. Raises ProcessFailed where it lives on."""
        if self.process is None:
            raise ProcessFailed(f"{self.name} is not running")
        try:
            code = await asyncio.wait_for(self.process.wait(), limit_s)
        except TimeoutError:
            raise ProcessFailed(f"{self.name} was told to die {limit_s:g} s ago and lives; its log is {self.log}") from None
        if code != -signal.SIGKILL:
            raise ProcessFailed(f"{self.name} ended with {code}; its log is {self.log}")
        await self.kill()

    async def stop(self) -> None:
        """In good order, else with force."""
        process, self.process = self.process, None
        if process is None or process.returncode is not None:
            return
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()

    def end_now(self) -> None:
        """Without waiting: for a way out on which nothing may be awaited any more."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    async def _healthy(self, web: aiohttp.ClientSession) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + START_S
        while loop.time() < deadline:
            if self.process is None or self.process.returncode is not None:
                code = self.process.returncode if self.process else "a kill"
                raise ProcessFailed(f"{self.name} ended at its start with {code}; its log is {self.log}")
            found = await ask(web, self.url + self.health)
            if found is not None and found.get("pid", self.process.pid) == self.process.pid:
                return
            await asyncio.sleep(POLL_S)
        raise ProcessFailed(f"{self.name} did not answer {self.health} within {START_S:g} s; its log is {self.log}")


@dataclass(slots=True)
class Trio:
    """The coordinator and the two services, in the order in which they start."""

    coordinator: Program
    orders: Program
    inventory: Program
    ports: Ports

    @property
    def moved(self) -> list[str]:
        """What to say of ports that were taken."""
        usual = zip(self.all, range(FIRST, FIRST + len(NAMES)), strict=True)
        return [f"port {port} is taken, so {program.name} listens on {program.port}" for program, port in usual if program.port != port]

    @property
    def all(self) -> tuple[Program, Program, Program]:
        return self.coordinator, self.orders, self.inventory

    async def stop(self) -> None:
        try:
            for program in reversed(self.all):  # the services first: they may still hand something over
                await program.stop()
        finally:
            for program in self.all:
                program.end_now()
            self.ports.close()


def trio(folder: Path, databases: tuple[str, str]) -> Trio:
    """The three as they will run; nothing is started. `databases` are the order service's and the inventory's."""
    held = Ports()
    ports = held.claim(NAMES)
    coordinator = f"http://{HOST}:{ports['coordinator']}"
    serve = [
        sys.executable, "-c", HALFMSG, "serve", "--listen", f"{HOST}:{ports['coordinator']}", "--store", str(folder / "coordinator.db"),
        "--set", "check.first_delay_s=1", "--set", "check.question_timeout_s=2", "--set", "group.lease_s=2", "--set", "drain_s=3",
    ]  # fmt: skip

    def service(name: str, module: str, database: str) -> Program:
        command = [
            sys.executable, "-m", f"{__package__}.{module}", "--port", str(ports[name]), "--db", database, "--coordinator", coordinator, "--demo",
        ]  # fmt: skip
        return Program(name, ports[name], command, "/health", folder / f"{name}.log")

    return Trio(
        Program("coordinator", ports["coordinator"], serve, "/readyz", folder / "coordinator.log"),
        service("orders", "order", databases[0]),
        service("inventory", "inventory", databases[1]),
        held,
    )


async def ask(web: aiohttp.ClientSession, url: str) -> Mapping[str, Any] | None:
    """The JSON that stands there, or None where nobody answers in time."""
    try:
        async with web.get(url, timeout=aiohttp.ClientTimeout(total=ANSWER_S)) as answer:
            if answer.status != 200:
                return None
            found: Mapping[str, Any] = await answer.json(content_type=None) if answer.content_type == "application/json" else {}
            return found
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("HALFMSG_")}
