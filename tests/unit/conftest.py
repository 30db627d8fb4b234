"""What tests of the command line stand on."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import HTTPServer
from pathlib import Path

import pytest

from .canned import Canned


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the shell's settings nor a halfmsg.toml of the checkout are seen."""
    for name in list(os.environ):
        if name.startswith("HALFMSG_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def canned() -> Iterator[type[Canned]]:
    handler = type("Handler", (Canned,), {"asked": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    handler.url = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()
