"""One coordinator over one store file, for tests that kill it at a chosen place: started, asked, killed, and its file read as it lies.

Everything here has names and ids of its own choosing, so two runs of one operation leave the same rows; what differs is time, and it is
written as "time" before rows are compared.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import aiohttp

from halfmsg.checkback import signing
from halfmsg.coordinator import doctor
from tests.kill.processes import HOST, Api, Stuck
from tests.kill.zygote import Zygote
from tests.support.stores import dump

STORE: Final = "coordinator.db"
UP_S: Final = 20.0
DOWN_S: Final = 20.0
TIME_FROM: Final = 10**12
FAR_MS: Final = 3_300_000
"""Later than this from now is another word than sooner, so that a longer lease shows."""
QUIET: Final = {"check.gap_delay_s": 86_400, "check.first_delay_s": 86_400, "check.max_interval_s": 86_400}
"""Nothing is asked but what a test has asked for, also where a store that was made once is used for an hour."""
_LISTENING: Final = re.compile(r"Listening +http://[^:]+:(\d+)")
Rows = dict[str, list[tuple[Any, ...]]]


@dataclass(slots=True)
class Scene:
    """A folder with a store and at most one coordinator over it. `facts` is what an operation must remember: tokens, answers."""

    zygote: Zygote
    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    pid: int = 0
    port: int = 0
    starts: int = 0

    @property
    def store(self) -> Path:
        return self.folder / STORE

    @property
    def api(self) -> Api:
        return Api(self.port)

    @property
    def fired(self) -> list[str]:
        path = self.folder / "failpoints.log"
        return path.read_text().split() if path.exists() else []

    def begin(self, failpoints: str = "") -> None:
        """Start and do not wait."""
        self.starts += 1
        arguments = ["serve", "--listen", f"{HOST}:0", "--store", str(self.store)]
        arguments += [word for name, value in (QUIET | self.settings).items() for word in ("--set", f"{name}={value}")]
        armed = {"HALFMSG_FAILPOINTS": failpoints, "HALFMSG_FAILPOINT_LOG": str(self.folder / "failpoints.log")} if failpoints else {}
        self.pid = self.zygote.fork("halfmsg.coordinator.cli", arguments, self._log, armed)

    def start(self, failpoints: str = "") -> bool:
        """Start, and wait until it listens; False when a fail point killed it before. Raises Stuck for any other end."""
        self.begin(failpoints)
        deadline = time.monotonic() + UP_S
        while True:
            code = self.zygote.wait(self.pid, 0.0)
            if (found := _LISTENING.search(self.log)) is not None:
                self.port = int(found[1])
                return True
            if code is not None and not (failpoints and code == -signal.SIGKILL):
                raise Stuck(f"the coordinator ended with {code}: {self.log[-2_000:]}")
            if code is not None:
                return False
            if time.monotonic() > deadline:
                raise Stuck(f"the coordinator does not listen: {self.log[-2_000:]}")
            time.sleep(0.005)

    @property
    def _log(self) -> Path:
        return self.folder / f"{self.starts}.log"

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def listens(self) -> bool:
        return _LISTENING.search(self.log) is not None

    def ended(self, limit_s: float) -> int | None:
        return self.zygote.wait(self.pid, limit_s)

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        if self.ended(0.0) is None:
            os.kill(self.pid, signal.SIGKILL)
            self.ended(DOWN_S)

    def stop(self) -> int | None:
        os.kill(self.pid, signal.SIGTERM)
        return self.ended(DOWN_S)

    def copy(self, folder: Path) -> Scene:
        """The same store in another folder, as it lies; nobody may be writing to it."""
        folder.mkdir(parents=True)
        for name in (STORE, f"{STORE}-wal", f"{STORE}-sums"):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)
        return Scene(self.zygote, folder, self.settings, dict(self.facts))

    def rows_at_rest(self) -> Rows:
        """What SQLite recovers from the file as it lies, read from a copy, so that looking changes nothing."""
        look = self.copy(self.folder / f"look-{time.monotonic_ns()}")
        try:
            with closing(sqlite3.connect(look.store)) as conn:
                return plain(dump(conn))
        finally:
            shutil.rmtree(look.folder)

    def rows(self) -> Rows:
        """What another process reads of it now."""
        with closing(sqlite3.connect(f"{self.store.as_uri()}?mode=ro", uri=True)) as conn:
            conn.execute("BEGIN")
            return plain(dump(conn))

    def ill(self) -> list[str]:
        """What doctor and SQLite find wrong."""
        with closing(sqlite3.connect(f"{self.store.as_uri()}?mode=ro", uri=True, isolation_level=None)) as conn:
            return [f"{each.name}: {each.rows}" for each in doctor.run(conn, integrity=True) if not each.ok]

    def wait_rows(self, wanted: Rows, limit_s: float, without: Sequence[str] = ()) -> Rows:
        """Until it reads as wanted; else what it reads at the deadline."""
        deadline = time.monotonic() + limit_s
        while (found := {name: rows for name, rows in self.rows().items() if name not in without}) != wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        return found

    # --- asking ---

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any] | None:
        return self.api.ask(method, path, body)

    def must(self, method: str, path: str, body: Any = None) -> Any:
        return self.api.must(method, path, body)

    def say(self, *frames: dict[str, Any]) -> list[Any] | None:
        """Frames over a stream of its own, each with its answer; None when the connection was lost."""
        return asyncio.run(_say(f"http://{HOST}:{self.port}/v1/stream", frames))


async def _say(url: str, frames: Sequence[dict[str, Any]]) -> list[Any] | None:
    answers = []
    try:
        async with aiohttp.ClientSession() as session, session.ws_connect(url, protocols=("halfmsg.v1.json",)) as ws:
            for frame in (*frames, {"type": "beat"}):  # the stream is read in order, so the answer to a last beat closes the rest
                await ws.send_str(json.dumps(frame))
            while True:
                message = await ws.receive(10.0)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    return None
                answers.append(json.loads(message.data))
                if answers[-1]["type"] == "beat":
                    return answers
    except (aiohttp.ClientError, OSError):
        return None


_WORDS: Final = ((re.compile(r"\d+ ms"), "ms"), (re.compile(r"whsec_[\w+/=]+"), "secret"))


def plain(rows: Rows) -> Rows:
    """Without what no two runs have in common."""
    far = time.time() * 1000 + FAR_MS
    return {table: sorted((tuple(_plain(value, far) for value in row) for row in found), key=repr) for table, found in rows.items()}


def _plain(value: Any, far: float) -> Any:
    if isinstance(value, int) and value > TIME_FROM:
        return "far time" if value > far else "time"
    if isinstance(value, str):
        for pattern, word in _WORDS:
            value = pattern.sub(word, value)
    return value


def difference(wanted: Rows, found: Rows) -> str:
    """For people: the rows of each table that are on one side only."""
    lines = []
    for table in wanted.keys() | found.keys():
        left, right = wanted.get(table, []), found.get(table, [])
        lines += [f"{table}: missing {row}" for row in left if row not in right]
        lines += [f"{table}: not wanted {row}" for row in right if row not in left]
    return "\n".join(lines)


class Answers:
    """A producer's check URL: gives the verdict that the harness chose, signed. Use as a context."""

    def __init__(self) -> None:
        self.verdict: dict[str, Any] | None = None
        self.secret = ""
        answers = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                answers._reply(self)

            def log_message(self, format: str, *args: Any) -> None:
                return None

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://{HOST}:{self._server.server_port}/check"

    def __enter__(self) -> Answers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _reply(self, request: BaseHTTPRequestHandler) -> None:
        question = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        entries = [{"id": each["id"], **self.verdict} for each in question["transactions"]] if self.verdict else []
        body = json.dumps({"source": question.get("source"), "verdicts": entries}).encode()
        request.send_response(200 if self.verdict else 503)
        headers = signing.sign([self.secret], request.headers["webhook-id"], time.time(), body)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)
