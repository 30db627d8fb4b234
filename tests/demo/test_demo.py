"""The demo itself, on a small file: real processes, real kills, and the exit code that `make demo` ends with."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from halfmsg.samples.order_inventory import checker, demo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(100)]
STORY = (
    "prepared -> committed -> stock reserved",
    "prepared -> local transaction failed -> rolled back",
    "prepared -> order service KILLED after its commit",
    "check-back: committed -> stock reserved",
    "coordinator KILLED; the order is taken all the same",
    "coordinator back -> handed over -> stock reserved",
    "inventory KILLED in mid-effect",
    "no double",
)


def test_demo_tells_its_story_kills_and_balances(small_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 means: each line of the file moved stock exactly once, in order, whatever was killed."""
    code = demo.run(keep=False, seed=7, kills=3, data=small_file)
    printed = capfd.readouterr().out
    assert code == 0, printed
    assert [part for part in (*STORY, "each exactly once", "Books balance.") if part not in printed] == []
    assert not list(_children())


def test_demo_runs_on_postgresql(small_file: Path, postgres: tuple[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    """The same two services, with `--db postgresql://...`."""
    code = demo.run(keep=False, seed=11, kills=2, data=small_file, databases=postgres)
    printed = capfd.readouterr().out
    assert code == 0, printed
    assert "Books balance." in printed


def test_demo_that_is_kept_runs_until_it_is_interrupted(small_file: Path) -> None:
    """`--keep`: all three go on, the databases can be looked at, and Ctrl-C leaves nothing running."""
    call = f"demo.run(keep=True, seed=1, kills=0, data=Path({str(small_file)!r}))"
    interruptible = "signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's background job starts with it ignored
    program = f"import signal, sys; {interruptible}; from pathlib import Path; from halfmsg.samples.order_inventory import demo; sys.exit({call})"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment) as kept:
        assert kept.stdout is not None
        printed = []
        for line in kept.stdout:
            printed.append(line)
            if "Ctrl-C to stop" in line:
                break
        children = psutil.Process(kept.pid).children(recursive=True)
        kept.send_signal(signal.SIGINT)
        kept.stdout.read()
        try:
            assert kept.wait(timeout=30) == 0
        finally:
            kept.kill()
        assert len(children) == 3, "".join(printed)
        [folder] = [Path(line.split()[1]) for line in printed if line.split()[:1] == ["Data"]]
    assert psutil.wait_procs(children, timeout=10)[1] == []
    books = checker.check(small_file, f"sqlite:///{folder / 'orders.db'}", f"sqlite:///{folder / 'inventory.db'}")
    assert books.problems == []
    with closing(sqlite3.connect(folder / "orders.db")) as db:
        assert db.execute("SELECT lines, answered FROM invoice WHERE invoice = 'L1'").fetchall() == [(1_050, 1_050)]
    shutil.rmtree(folder)


def test_demo_says_what_is_wrong_with_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Before anything is started."""
    assert demo.run(keep=False, seed=1, kills=0, data=tmp_path / "absent.csv") == 2
    assert "cannot read" in capfd.readouterr().out


def _children() -> list[psutil.Process]:
    alive = (child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE)
    return [child for child in alive if "halfmsg" in " ".join(child.cmdline())]
