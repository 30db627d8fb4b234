"""What a person sees when the coordinator cannot start: one line with the cause and the next command, and the right exit code."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from halfmsg.coordinator.app import try_address
from halfmsg.coordinator.errors import StartError
from halfmsg.coordinator.settings import Settings
from tests.support.stores import changed_by_hand, open_sqlite

DEADLINE_S = 20


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("HALFMSG_")}


def serve(folder: Path, *args: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`halfmsg serve` as a process of its own, that is expected to end by itself."""
    command = [sys.executable, "-m", "halfmsg.coordinator.cli", "serve", *args]
    if not (Path(__file__).parents[2] / "coordinator/cli/__main__.py").exists():
        command[1:3] = ["-c", "from halfmsg.coordinator.cli import main; main()"]
    given = _environment() | {"PYTHONPATH": str(Path(__file__).parents[2])} | (environment or {})
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S, env=given, check=False)


def is_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """The last word on stderr is one line, without a traceback, that names what it is about."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0], lines[0]


def test_port_in_use(tmp_path: Path) -> None:
    """Another program has the address: exit code 1, the address named, and no store is made."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = serve(tmp_path, "--listen", address)
    assert done.returncode == 1
    is_one_line(done, address, "in use", "--listen")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["no-such-host.invalid:7610", "192.0.2.1:7610"])
def test_address_that_is_not_of_this_machine(tmp_path: Path, address: str) -> None:
    """As in use: named in one line, and no store is made."""
    done = serve(tmp_path, "--listen", address, "--insecure")
    assert done.returncode == 1
    is_one_line(done, f"cannot listen on {address}", "--listen HOST:PORT")
    assert list(tmp_path.iterdir()) == []


def test_address_of_a_family_that_the_kernel_has_not_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`localhost` may have ::1 where there is no IPv6; asyncio listens on the other one, and so may we."""
    own = socket.socket

    def socket_of(family: int = -1, *args: Any, **kwargs: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return own(family, *args, **kwargs)

    found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 0, 0, 0)), (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "socket", socket_of)
    try_address(Settings(listen="localhost:0", store=str(tmp_path / "halfmsg.db")))
    found[:] = found[:1]
    with pytest.raises(StartError, match="cannot listen on localhost:0"):
        try_address(Settings(listen="localhost:0", store=str(tmp_path / "halfmsg.db")))


def test_file_locked_by_another_coordinator(tmp_path: Path) -> None:
    """Exit code 75: try again later, or name another file; the holder is named."""
    store = open_sqlite(tmp_path / "halfmsg.db")
    try:
        done = serve(tmp_path, "--listen", "127.0.0.1:0")
    finally:
        store.close()
    assert done.returncode == 75
    is_one_line(done, "halfmsg.db", f"process {os.getpid()}", "--store")


def test_newer_database(tmp_path: Path) -> None:
    """Exit code 1, with what to install; the file is left as it is."""
    open_sqlite(tmp_path / "halfmsg.db").close()
    conn = sqlite3.connect(tmp_path / "halfmsg.db")
    with conn:
        conn.execute("INSERT INTO migration VALUES (99, '0099_future.sql', 0)")
    conn.close()
    changed_by_hand(tmp_path / "halfmsg.db")
    done = serve(tmp_path, "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    is_one_line(done, "99", "newer", "pip install")


def test_file_that_is_no_store(tmp_path: Path) -> None:
    """Exit code 1 for a text file under the store's name, which is not touched."""
    (tmp_path / "halfmsg.db").write_text("my notes " * 500)
    done = serve(tmp_path, "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    is_one_line(done, "halfmsg.db", "--store")
    assert (tmp_path / "halfmsg.db").read_text() == "my notes " * 500


def test_missing_folder(tmp_path: Path) -> None:
    """Exit code 1, the folder named."""
    done = serve(tmp_path, "--listen", "127.0.0.1:0", "--store", "nowhere/halfmsg.db")
    assert done.returncode == 1
    is_one_line(done, "no folder nowhere", "--store")


def test_folder_as_store(tmp_path: Path) -> None:
    """Exit code 1, a file in it named, and nothing left beside it."""
    (tmp_path / "data").mkdir()
    done = serve(tmp_path, "--listen", "127.0.0.1:0", "--store", "data")
    assert done.returncode == 1
    is_one_line(done, "data is a folder", "--store data/halfmsg.db")
    assert [each.name for each in tmp_path.iterdir()] == ["data"]


def test_settings_file_that_is_no_text(tmp_path: Path) -> None:
    """Exit code 2, the file named."""
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    done = serve(tmp_path, "--config", "bytes.toml")
    assert done.returncode == 2
    is_one_line(done, "bytes.toml", "Mend it")


@pytest.mark.skipif(os.geteuid() == 0, reason="for root every folder is writable")
def test_read_only_folder(tmp_path: Path) -> None:
    """Exit code 1, the folder named."""
    tmp_path.chmod(0o500)
    try:
        done = serve(tmp_path, "--listen", "127.0.0.1:0")
    finally:
        tmp_path.chmod(0o700)
    assert done.returncode == 1
    is_one_line(done, "writable", "--store")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--listen", "0.0.0.0:0"), ("0.0.0.0:0", "--insecure")),
        (("--listen", "nonsense"), ("nonsense", "HOST:PORT")),
        (("--listen", "127.0.0.1:99999"), ("99999", "HOST:PORT")),
        (("--store", "postgresql://x/y"), ("PostgreSQL",)),
        (("--set", "check.first_delay_s=0"), ("first_delay_s",)),
        (("--store", "sqlite:///x.db"), ("sqlite:///x.db", "--store halfmsg.db")),
        (("--set", "nothing.at_all=1"), ("nothing", "from flag", "halfmsg config show")),
        (("--set", "listn=1"), ("listn", "from flag", "Did you mean listen?")),
        (("--set", "check.first_dely_s=1"), ("check.first_dely_s", "Did you mean check.first_delay_s?")),
        (("--set", "storage.synchronous=NORMAL"), ("i_accept_loss",)),
        (("--set", "check.max_attempts=many"), ("check.max_attempts", "from flag")),
        (("--config", "missing.toml"), ("missing.toml",)),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, args: tuple[str, ...], words: tuple[str, ...]) -> None:
    """A setting that cannot be: exit code 2, the culprit named, and no file made."""
    done = serve(tmp_path, *args)
    assert done.returncode == 2
    is_one_line(done, *words)
    assert list(tmp_path.iterdir()) == []


def test_wrong_environment_is_exit_code_2(tmp_path: Path) -> None:
    """The variable's setting is named."""
    done = serve(tmp_path, environment={"HALFMSG_CHECK__MAX_ATTEMPTS": "0"})
    assert done.returncode == 2
    is_one_line(done, "max_attempts")


@pytest.mark.parametrize("first_s", ["700", "0.0001"])
def test_backoff_that_cannot_be_is_exit_code_2(tmp_path: Path, first_s: str) -> None:
    """Groups would be made with it, and none of their leases could end."""
    done = serve(tmp_path, environment={"HALFMSG_GROUP__BACKOFF_FIRST_S": first_s})
    assert done.returncode == 2
    is_one_line(done, "backoff_first_s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_by_a_signal_is_exit_code_0(tmp_path: Path, number: signal.Signals) -> None:
    """It says where it listens, ends when asked, and leaves the file free."""
    command = [sys.executable, "-c", "from halfmsg.coordinator.cli import main; main()", "serve", "--listen", "127.0.0.1:0"]
    given = _environment() | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=given) as process:
        watchdog = threading.Timer(DEADLINE_S, process.kill)
        watchdog.start()
        assert process.stdout is not None
        assert any("Listening" in line for line in process.stdout)
        process.send_signal(number)
        _, errors = process.communicate(timeout=DEADLINE_S)
        watchdog.cancel()
    assert process.returncode == 0 and "Traceback" not in errors
    open_sqlite(tmp_path / "halfmsg.db").close()
