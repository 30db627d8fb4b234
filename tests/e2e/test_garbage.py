"""What is no HTTP is refused, and the log stays readable; a real defect still stands in it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from halfmsg.coordinator import logs

ROOT = Path(__file__).parents[2]
GARBAGE = {
    "tls": bytes.fromhex("16030100c8010000c40303") + b"\x00" * 100,
    "text": b"hello?\r\n\r\n",
    "binary": bytes(range(256)),
    "header": b"GET /v1/topics HTTP/1.1\r\nHost x\r\n\r\n",
    "length": b"POST /v1/batch HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
    "second": b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n\x16\x03\x01\r\n\r\n",
}


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """(`halfmsg serve` as a process of its own, its port); it has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "halfmsg.coordinator.cli", "serve", "--listen", f"127.0.0.1:{port}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("HALFMSG_")} | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "started" in line:
                break
        yield process, port
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(20) == 0


def test_garbage_and_tls_leave_no_error_in_the_log(tmp_path: Path) -> None:
    """Anybody can send it: a traceback for each piece would hide what matters, and fill the disk."""
    with serving(tmp_path) as (process, port):
        for data in GARBAGE.values():
            with socket.create_connection(("127.0.0.1", port), timeout=10) as conn:
                conn.sendall(data)
                conn.shutdown(socket.SHUT_WR)
                answer = b"".join(iter(lambda conn=conn: conn.recv(65_536), b""))  # type: ignore[misc]
                assert b" 400 " in answer or not answer
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        said = process.stderr.read()
    assert "Traceback" not in said and '"level": "error"' not in said, said


def test_defect_of_a_handler_is_still_logged() -> None:
    """The filter knows what is no HTTP, and nothing else."""
    record = logging.LogRecord("aiohttp.server", logging.ERROR, "", 0, "Error handling request from %s", ("x",), None)
    for error in (ValueError("ours"), ConnectionError("x")):
        record.exc_info = (type(error), error, None)
        assert logs.NotHttp().filter(record)
    record.exc_info = None
    assert logs.NotHttp().filter(record)


def test_what_is_no_http_is_one_line_for_who_debugs(caplog: pytest.LogCaptureFixture) -> None:
    from aiohttp.http_exceptions import BadStatusLine

    record = logging.LogRecord("aiohttp.server", logging.ERROR, "", 0, "Error handling request from %s", ("192.0.2.1",), None)
    error = BadStatusLine("\x16\x03\n  x")
    record.exc_info = (type(error), error, None)
    with caplog.at_level(logging.DEBUG, "halfmsg.api"):
        assert not logs.NotHttp().filter(record)
    assert [line.levelname for line in caplog.records] == ["DEBUG"] and "192.0.2.1" in caplog.text and "\n" not in caplog.messages[0]
