"""The programs of the kill test as real processes: started, killed with signal 9, stopped past a lease, and ended whatever happens."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from tests.kill import load
from tests.kill.zygote import Fork, Zygote

ROOT: Final = Path(__file__).resolve().parents[2]
HOST: Final = "127.0.0.1"
PORTS: Final = range(20_000, 32_000)
START_S: Final = 30.0  # a loaded machine may take seconds to import
STOP_S: Final = 15.0
POLL_S: Final = 0.02
HALFMSG: Final = "halfmsg.coordinator.cli"


class Stuck(Exception):
    """A program did not do in time what it must; the text names its log."""


@dataclass(slots=True)
class Program:
    """One of them. `started` says whether the running process is up."""

    name: str
    module: str
    arguments: list[str]
    log: Path
    is_up: Callable[[Program], bool]
    zygote: Zygote | None = None
    process: subprocess.Popen[bytes] | Fork | None = None
    pids: list[int] = field(default_factory=list)
    kills: int = 0

    @property
    def pid(self) -> int:
        if self.process is None:
            raise Stuck(f"{self.name} is not running")
        return self.process.pid

    def start(self, **environment: str) -> None:
        """Start it and do not wait: a fork of the zygote, or without one a fresh interpreter."""
        if self.zygote is not None:
            self.process = self.zygote.popen(self.module, self.arguments, self.log, environment)
        else:
            with self.log.open("ab") as log:
                self.process = _spawn([sys.executable, "-m", self.module, *self.arguments], log, self.log.parent, environment)
        self.pids.append(self.process.pid)

    def wait_up(self) -> None:
        """Until it answers. Raises Stuck; one that has ended by itself is Stuck too, but not one that a fail point killed."""
        wait_for(self._is_up_or_killed, START_S, f"{self.name} did not start; its log is {self.log}")

    def _is_up_or_killed(self) -> bool:
        code = self.ended()
        if code not in (None, -signal.SIGKILL):
            raise Stuck(f"{self.name} ended with {code}; its log is {self.log}")
        return code is not None or self.is_up(self)

    def ended(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return None if self.process is None else self.process.poll()

    def kill(self) -> None:
        """kill -9; returns when it is gone. One that has just killed itself counts as well."""
        if self.process is None:
            return
        self.kills += 1
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(STOP_S)

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def stop(self) -> int | None:
        """In good order, else with force; gives the exit code."""
        self.signal(signal.SIGTERM)
        if self.process is None:
            return None
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait(STOP_S)

    def end_now(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_S)


def _spawn(command: list[str], log: IO[bytes], folder: Path, more: dict[str, str]) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HALFMSG_")}
    environment |= {"PYTHONPATH": str(ROOT), **more}
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=folder, env=environment
    )  # fmt: skip


def wait_for(true: Callable[[], bool], limit_s: float, otherwise: str) -> None:
    """Poll until it is true. Raises Stuck after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > deadline:
            raise Stuck(f"{otherwise} (waited {limit_s:g} s)")
        time.sleep(POLL_S)


class Api:
    """The coordinator's HTTP face, for the harness. Every call is bounded; `None` where nobody answers."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = 10.0) -> tuple[int, Any] | None:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout_s)
        try:
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"} if data is not None else {})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        return answer.status, json.loads(text) if text and "json" in answer.getheader("Content-Type", "") else text.decode()

    def must(self, method: str, path: str, body: Any = None) -> Any:
        """Raises Stuck for anything but success."""
        answer = self.ask(method, path, body, 30.0)
        if answer is None or answer[0] >= 300:
            raise Stuck(f"{method} {path}: {answer}")
        return answer[1]

    def is_ready(self) -> bool:
        answer = self.ask("GET", "/readyz", timeout_s=2.0)
        return answer is not None and answer[0] == 200

    def pages(self, path: str, cursor: str = "") -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """(cursor of the page, its items), to the last page."""
        join = "&" if "?" in path else "?"
        while True:
            page = self.must("GET", f"{path}{join}limit=1000" + (f"&cursor={cursor}" if cursor else ""))
            yield cursor, page["items"]
            if page["next"] is None:
                return
            cursor = page["next"]

    def items(self, path: str) -> list[dict[str, Any]]:
        return [item for _, items in self.pages(path) for item in items]


@dataclass(slots=True)
class Cast:
    """Everybody, in the order in which they start."""

    folder: Path
    api: Api
    coordinator: Program
    producers: list[Program]
    relays: list[Program]
    consumers: list[Program]

    @property
    def all(self) -> list[Program]:
        return [self.coordinator, *self.producers, *self.relays, *self.consumers]

    def end_now(self) -> None:
        for program in self.all:
            program.end_now()


def cast(folder: Path, seed: int, rate: float, zygote: Zygote | None = None) -> Cast:
    """The programs as they will run; nothing is started."""
    api = Api(free_port())
    url = f"http://{HOST}:{api.port}"
    settings = {
        "check.first_delay_s": load.FIRST_CHECK_S, "check.gap_delay_s": 0.05, "check.max_interval_s": 2, "check.question_timeout_s": 3,
        "group.lease_s": load.LEASE_S, "drain_s": 3,
    }  # fmt: skip
    serve = ["serve", "--listen", f"{HOST}:{api.port}", "--store", str(folder / "coordinator.db")]
    serve += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]

    def program(module: str, process: str, *more: str) -> Program:
        arguments = ["--process", process, "--folder", str(folder), "--url", url, *more]
        return Program(process, f"tests.kill.{module}", arguments, folder / f"{process}.log", lambda self: says(self, "ready"), zygote)

    def producer(number: int, name: str) -> Program:
        return program("producer", name, "--name", name, "--seed", str(seed * 10 + number), "--rate", str(rate))

    relay = program("producer", "relay-a", "--name", load.PRODUCERS[0], "--answers-only")
    members = [program("consumer", f"{group}-{number}", "--group", group) for group in load.GROUPS for number in (1, 2)]
    return Cast(
        folder,
        api,
        Program("coordinator", HALFMSG, serve, folder / "coordinator.log", lambda _: api.is_ready(), zygote),
        [producer(number, name) for number, name in enumerate(load.PRODUCERS)],
        [relay],
        members,
    )


def says(program: Program, what: str) -> bool:
    """Has the process that runs now told this (`load.tell`)?"""
    path = program.log.with_suffix(f".{what}")
    return path.exists() and path.read_text() == str(program.pid)


def free_port() -> int:
    """Below the ports that outgoing connections are given: while the coordinator is down, a client of its own could get its port."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise Stuck(f"none of 100 ports of {PORTS.start} to {PORTS.stop} is free")
