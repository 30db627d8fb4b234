"""The composition root: the one place that constructs, starts and stops the coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import platform
import resource
import signal
import socket
import sqlite3
import sys
from collections.abc import Mapping

import msgspec
from aiohttp import web

from halfmsg import __version__
from halfmsg.checkback import allowlist

from . import api, logs, loops
from .checks import Checks
from .clock import Clock, SystemClock
from .engine import Engine
from .errors import Problem, StartError
from .gaps import Gaps
from .metrics import Metrics
from .service import verdicts
from .settings import Settings
from .store.sqlite import file
from .stream import Streams

log = logging.getLogger("halfmsg")

GIL_SWITCH_S = 0.001
"""The writer thread and the loop share one interpreter; the default of 5 ms would be the latency of an answer under load."""
GC_THRESHOLDS = (20_000, 20, 50)
"""Requests leave few cycles behind; at Python's own thresholds full collections show in the p99 of an answer."""

DESCRIPTORS_MAX = 65_536


class Coordinator:
    """One running coordinator. `start` raises StartError with nothing left behind; `stop` is graceful and may be called once."""

    engine_type = Engine

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.metrics = Metrics(version=__version__, storage="sqlite")
        self.broken: BaseException | None = None
        self.stopped = asyncio.Event()
        self.address = settings.listen
        self.makes_store = not os.path.exists(settings.store)
        self._tasks: list[asyncio.Task[None]] = []
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        self.engine = self.engine_type(self.settings, self.clock, self.metrics, self._on_broken)
        try:
            await self._open()
        except BaseException as error:
            await self._close()
            if isinstance(error, sqlite3.DatabaseError | msgspec.MsgspecError | Problem):
                path, words = self.engine.path, str(self.broken or error)
                raise StartError(f"cannot read {path}: {words}", file.next_after(path, words)) from error
            raise

    async def _open(self) -> None:
        await self.engine.open()
        self.streams = Streams(self.engine, self._on_hello)
        self.engine.on_event["revoked"] = self.streams.revoke
        self.engine.on_event["silent"] = self.streams.silence
        self._session = await allowlist.open_session(self.settings.callback.allow)
        self.checks = Checks(self.engine, self.streams, self._session)
        gaps = Gaps(self.engine, self.streams)
        ticks = loops.Ticks(self.engine, self.checks, gaps)
        await self.engine.call(verdicts.unclaim_all, None)
        await ticks.capacity()
        await ticks.ways()
        application = api.application(self.engine, self.streams, self.checks, gaps)
        self._runner = web.AppRunner(
            application, access_log=None, handle_signals=False, keepalive_timeout=75.0, handler_cancellation=True
        )  # a long poll whose client is gone takes nothing any more
        await self._runner.setup()
        await self._listen()
        for name, (seconds, tick) in ticks.all().items():
            self._tasks.append(
                asyncio.create_task(loops.every(seconds, name, tick, self.metrics.task_done, self.engine.clock.now_ms), name=f"halfmsg-{name}")
            )

    async def _listen(self) -> None:
        host, port = self.settings.host_port
        runner = self._runner
        if runner is None:
            raise RuntimeError("the runner is set up first")
        site = web.TCPSite(runner, host, port, reuse_address=True, backlog=1_024)
        try:
            await site.start()
        except OSError as error:
            raise cannot_listen(self.settings, error) from error
        bound = runner.addresses[0]
        self.address = f"{bound[0]}:{bound[1]}"

    def _on_hello(self, producer: str) -> None:
        self.checks.hello(producer)

    def _on_broken(self, error: BaseException) -> None:
        """An I/O error of the store: stop, and recover by starting anew. What was being written has an unknown outcome."""
        self.broken = error
        self.stopped.set()

    async def stop(self) -> None:
        """Refuse new work, tell the streams, finish what is queued, close the store."""
        self.engine.draining = True
        self.engine.hub.wake_all()
        await self.streams.drain(reconnect_after_s=1.0)
        await self._close()

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "checks"):
            await self.checks.poller.aclose(0.5)
        if hasattr(self, "streams"):
            await self.streams.close()
        if self._runner is not None:
            await self._runner.cleanup()
        if hasattr(self, "_session"):
            await self._session.aclose()
        await self.engine.close()


def cannot_listen(settings: Settings, error: OSError) -> StartError:
    if error.errno == errno.EADDRINUSE:
        return StartError(f"{settings.listen} is in use by another program", "Stop it, or name a free port: --listen 127.0.0.1:7620")
    return StartError(f"cannot listen on {settings.listen}: {error.strerror}", "Name another address with --listen HOST:PORT")


def try_address(settings: Settings) -> None:
    """Before a store is made or opened: who cannot listen leaves nothing behind. Raises StartError."""
    unknown: OSError | None = None
    bound = 0
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(*settings.host_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            try:
                tried = socket.socket(family, kind, protocol)
            except OSError as error:  # a kernel without IPv6, whose names still have such addresses: asyncio listens on the others
                unknown = error
                continue
            with tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                tried.bind(address)
                bound += 1
        if unknown is not None and not bound:
            raise unknown
    except OSError as error:
        raise cannot_listen(settings, error) from error


def banner(coordinator: Coordinator) -> list[tuple[str, str]]:
    settings = coordinator.settings
    rows = [
        ("Listening", f"http://{coordinator.address}"),
        ("API docs", "/openapi.json"),
        ("Metrics", f"http://{coordinator.address}/metrics"),
        ("Store", f"{settings.store} ({'new, ' if coordinator.makes_store else ''}SQLite {sqlite3.sqlite_version}, {settings.storage.synchronous})"),
        ("Auth", "off (insecure)" if settings.insecure else "off (loopback)"),
    ]
    if settings.dev:
        rows.append(("Mode", "dev: topics, groups and producers are made on first use; not for production"))
    note = file.version_note()
    return [*rows, ("Note", note)] if note else rows


async def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; gives the exit code."""
    try_address(settings)
    coordinator = Coordinator(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, coordinator.stopped.set)
    loop.set_exception_handler(loops.NoDescriptors(coordinator.clock.monotonic))
    await coordinator.start()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    print(f"\n  halfmsg {__version__} coordinator\n")
    for label, text in banner(coordinator):
        print(f"  {label:<12}{text}")
    print(flush=True)
    log.info("started", extra={"pid": os.getpid(), "python": platform.python_version()})
    await coordinator.stopped.wait()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(settings.drain_s):
            await coordinator.stop()
    loop.remove_signal_handler(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends already: one that comes now must not take the place of the exit code
    if coordinator.broken is not None:
        print(f"halfmsg: the store failed: {coordinator.broken}. Start again; if it fails again, look at the disk", file=sys.stderr)
        return 1
    return 0


def _take_descriptors() -> None:
    """As many as the administrator allows: the soft limit of 1,024 that shells give is below `stream.connections_max` and its company."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(settings: Settings, origins: Mapping[str, str]) -> int:
    """What `halfmsg serve` calls. Raises StartError."""
    logs.configure(dev=settings.dev)
    sys.setswitchinterval(GIL_SWITCH_S)
    _take_descriptors()
    return asyncio.run(serve(settings))
