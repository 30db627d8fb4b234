"""The README's two programs, as they stand there, against a real coordinator: what a newcomer types must work."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COORDINATOR, SHOP = 7690, 7691


def programs() -> tuple[str, str, str]:
    """(orders.py, inventory.py, tables.py) from the README, the shop on a port that a test may use."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    orders = next(block for block in blocks if "web.run_app" in block)
    inventory = next(block for block in blocks if "consumer.run()" in block)
    tables = next(block for block in blocks if "CREATE TABLE" in block)
    return orders.replace("port=8001", f"port={SHOP}"), inventory, tables


@contextmanager
def running(folder: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    env = {"HALFMSG_URL": f"http://127.0.0.1:{COORDINATOR}", "PYTHONPATH": str(ROOT), "PATH": ""}
    with (folder / "out.log").open("ab") as log:
        child = subprocess.Popen([sys.executable, *command], cwd=folder, env=env, stdout=log, stderr=log)
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def eventually(look: object, folder: Path, seconds: float = 25) -> None:
    """Ask until it is so; the wait between is the poll of a real process, and bounded."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with suppress(urllib.error.URLError, ConnectionError, sqlite3.Error):
            if look():  # type: ignore[operator]
                return
        threading.Event().wait(0.1)
    pytest.fail((folder / "out.log").read_text()[-3_000:])


def call(method: str, url: str, body: object = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.read()


def test_readme_programs_save_an_order_and_tell_the_other_service(tmp_path: Path) -> None:
    """An order placed at the README's shop moves stock in the README's inventory, once, and what has no stock is a dead letter."""
    for name, text in zip(("orders.py", "inventory.py", "tables.py"), programs(), strict=True):
        (tmp_path / name).write_text(text)
    subprocess.run([sys.executable, "tables.py"], cwd=tmp_path, check=True)
    with ExitStack() as stack:
        serve = ["-m", "halfmsg.coordinator.cli", "serve", "--dev", "--listen", f"127.0.0.1:{COORDINATOR}", "--store", "h.db"]
        stack.enter_context(running(tmp_path, *serve))
        eventually(lambda: call("GET", f"http://127.0.0.1:{COORDINATOR}/livez"), tmp_path)
        stack.enter_context(running(tmp_path, "orders.py"))
        stack.enter_context(running(tmp_path, "inventory.py"))
        order = {"id": "7", "sku": "mug", "qty": 3}
        eventually(lambda: call("POST", f"http://127.0.0.1:{SHOP}/orders", order), tmp_path)
        eventually(lambda: free(tmp_path) == 7, tmp_path)
        call("POST", f"http://127.0.0.1:{SHOP}/orders", {"id": "8", "sku": "mug", "qty": 99})
        letters = f"http://127.0.0.1:{COORDINATOR}/v1/groups/inventory/dead-letters"
        eventually(lambda: [each["reason"] for each in json.loads(call("GET", letters))["items"]] == ["rejected"], tmp_path)
        assert free(tmp_path) == 7
    said = (tmp_path / "out.log").read_text()
    assert "Unclosed" not in said and "Traceback" not in said, said


def test_readme_shop_can_be_imported_by_the_relay(tmp_path: Path) -> None:
    """`halfmsg outbox relay orders:outbox`: an import that began to serve would never come back."""
    (tmp_path / "orders.py").write_text(programs()[0])
    code = "import orders; print(orders.outbox.name)"
    env = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=20, check=False)
    assert done.stdout == "orders\n", done.stderr


def free(folder: Path) -> int:
    with sqlite3.connect(folder / "inventory.db") as db:
        found: int = db.execute("SELECT free FROM stock").fetchone()[0]
    return found
