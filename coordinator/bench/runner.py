"""Runs the floors and the loads against a coordinator in a process of its own, and prints one table."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import floors, http_load
from .loads import GROUP, PRODUCER, TOPIC, HttpLoad, StreamLoad, open_loop
from .plan import BODY_BYTES, Plan, machine

BARS = {"stream": 0.15, "http": 0.35, "p99_ms": 15.0}
SERVER = "import sys\nfrom halfmsg.coordinator import app, settings\nsys.exit(app.run(settings.Settings(listen=sys.argv[1], store=sys.argv[2]), {}))"
BARE = "import asyncio, sys\nfrom halfmsg.coordinator.bench import floors\nasyncio.run(floors.serve_bare(int(sys.argv[1]), sys.argv[2].encode()))"


def run(plan: Plan | None = None, say: Callable[[str], None] = print) -> int:
    """Measure and print; 0 when every bar holds, else 1 with the bars that were missed."""
    plan = plan or Plan()
    for label, text in machine().items():
        say(f"{label:<12}{text}")
    say(
        f"{'settings':<12}{BODY_BYTES} B bodies, one unordered topic with 1 lane, one group; stream: {plan.producers} transactions in flight; "
        f"HTTP: {plan.http_connections} connections, fetch and ack {plan.batch}; {plan.runs} runs of {plan.seconds:g} s; load in another process"
    )
    say("")
    rows = [_measure(plan, number, say) for number in range(1, plan.runs + 1)]
    return _report(rows, say)


def _measure(plan: Plan, number: int, say: Callable[[str], None]) -> dict[str, float]:
    row: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=plan.folder or None) as where:
        row["s"] = floors.store_rate(plan, where)
        with process(BARE, "7698", _answer()):
            request = http_load.post("/v1/transactions", HttpLoad(0, plan).prepare()[1].partition(b"\r\n\r\n")[2])
            row["h"] = asyncio.run(http_load.closed_loop(7698, plan.http_connections, plan.seconds, lambda: request))
        with process(SERVER, "127.0.0.1:7699", f"{where}/stream.db"):
            row |= asyncio.run(_stream("http://127.0.0.1:7699", plan))
        with process(SERVER, "127.0.0.1:7699", f"{where}/http.db"):
            row |= asyncio.run(_http(7699, plan))
    say(f"run {number}  " + "  ".join(f"{name}={value:,.1f}" if name.endswith("ms") else f"{name}={value:,.0f}" for name, value in row.items()))
    return row


async def _stream(url: str, plan: Plan) -> dict[str, float]:
    async with StreamLoad(url, plan) as load:
        rate = await load.rate()
        latencies = await open_loop(rate / 2, plan.seconds, load.one)
    return {"stream": rate, "stream_p50_ms": _percentile(latencies, 50), "stream_p99_ms": _percentile(latencies, 99)}


async def _http(port: int, plan: Plan) -> dict[str, float]:
    async with HttpLoad(port, plan) as load:
        rate = await load.rate()
        latencies = await open_loop(rate / 2, plan.seconds, load.one)
    return {"http": rate, "http_p50_ms": _percentile(latencies, 50), "http_p99_ms": _percentile(latencies, 99)}


def _percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _report(rows: list[dict[str, float]], say: Callable[[str], None]) -> int:
    median = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    say("\n" + f"{'':<34}{'median':>10}{'lowest':>10}{'highest':>10}")
    words = {
        "s": "(s) store alone, groups of 100", "h": "(h) bare aiohttp, requests/s", "stream": "stream, complete transactions/s",
        "stream_p50_ms": "  prepare p50 at half load, ms", "stream_p99_ms": "  prepare p99 at half load, ms",
        "http": "HTTP, complete transactions/s", "http_p50_ms": "  prepare p50 at half load, ms", "http_p99_ms": "  prepare p99 at half load, ms",
    }  # fmt: skip
    for name, text in words.items():
        values = [row[name] for row in rows]
        form = ",.1f" if name.endswith("ms") else ",.0f"
        say(f"{text:<34}{median[name]:>10{form}}{min(values):>10{form}}{max(values):>10{form}}")
    say("")
    bars = [
        ("stream >= 0.15 s", median["stream"] / median["s"], BARS["stream"], True),
        ("HTTP >= 0.35 h/2", median["http"] / (median["h"] / 2), BARS["http"], True),
        ("stream p99 < 15 ms", median["stream_p99_ms"], BARS["p99_ms"], False),
        ("HTTP p99 < 15 ms", median["http_p99_ms"], BARS["p99_ms"], False),
    ]
    missed = 0
    for text, value, bar, at_least in bars:
        holds = value >= bar if at_least else value < bar
        missed += not holds
        say(f"{'holds ' if holds else 'MISSED'}  {text:<20} {value:.2f}")
    return 1 if missed else 0


def _answer() -> str:
    digest, id = "0" * 32, "01a1fdc3-1afc-7405-a6ea-33b7dde5a5dc"
    messages = [{"id": f"{id}-0", "topic": TOPIC}]
    at = "2026-01-01T00:00:00.000Z"
    return json.dumps({"id": id, "state": "prepared", "digest": digest, "prepared_at": at, "attempts": 0, "messages": messages})


@contextmanager
def process(code: str, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child that serves on a port of the loopback; ended at the end, whatever happens."""
    port = int(args[0].rpartition(":")[2])
    child = subprocess.Popen([sys.executable, "-c", code, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(port, child)
        if code is SERVER:
            _make(port)
        yield child
    finally:
        child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _wait(port: int, child: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until and child.poll() is None:
        try:
            urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/livez"), timeout=1)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"the server on port {port} did not start; is the port in use?")


def _make(port: int) -> None:
    """Topic, group and a producer with a way to ask."""
    group = {"topics": [{"topic": TOPIC}]}
    producer = {"check_url": "http://127.0.0.1:1/x"}
    for path, body in ((f"topics/{TOPIC}", {"kind": "unordered"}), (f"groups/{GROUP}", group), (f"producers/{PRODUCER}", producer)):
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/{path}", data, {"Content-Type": "application/json"}, method="PUT")
        urllib.request.urlopen(request, timeout=5).close()
