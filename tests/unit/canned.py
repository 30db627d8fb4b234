"""The command line in this process, against a server that gives prepared answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any

from click.testing import CliRunner, Result

from halfmsg.coordinator.cli import cli


def run(*args: str, **kwargs: Any) -> Result:
    return CliRunner().invoke(cli, args, prog_name="halfmsg", **kwargs)


class Canned(BaseHTTPRequestHandler):
    """Gives one prepared answer to everything (after those of `bodies`), and keeps what it was asked."""

    status = 200
    body: bytes = b"{}"
    bodies: Sequence[bytes] = ()
    asked: list[tuple[str, str, bytes]]

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.asked.append((self.command, self.path, self.rfile.read(length)))
        body, type(self).bodies = (self.bodies[0], self.bodies[1:]) if self.bodies else (self.body, ())
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, format: str, *args: Any) -> None:
        return


def ask(canned: Any, *args: str, status: int = 200, body: object = None, **kwargs: Any) -> Result:
    canned.status, canned.body = status, body if isinstance(body, bytes) else json.dumps(body).encode()
    return run(*args, "--url", canned.url, **kwargs)
