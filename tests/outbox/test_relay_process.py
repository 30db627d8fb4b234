"""The relay as a process of its own, and what an operator does with the tables."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

import halfmsg
from halfmsg import Client, UsageError
from halfmsg.coordinator.app import Coordinator
from halfmsg.outbox import Outbox, admin
from halfmsg.outbox.relay import Relay
from halfmsg.outbox.tables import NAMES
from tests.support.serving import eventually

from .sides import NOWHERE, Side, plain
from .test_relay import bodies, publish, unsent

CLI = "from halfmsg.coordinator.cli import main; main()"
Process = asyncio.subprocess.Process
Start = Callable[[], Awaitable[Process]]


@pytest_asyncio.fixture
async def start(database: Side, coordinator: Coordinator, tmp_path: Path) -> AsyncIterator[Start]:
    """`halfmsg outbox relay shop:outbox` in the folder of a service, up to its first line."""
    (tmp_path / "shop.py").write_text(f"""
from halfmsg import Client, Outbox
outbox = Outbox(Client("http://{coordinator.address}"), "orders", {database.url!r})
""")
    root = str(Path(halfmsg.__file__).parent.parent)
    running: list[Process] = []

    async def run() -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-u", "-c", CLI, "outbox", "relay", "shop:outbox",
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        running.append(process)
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        assert "orders  relaying and answering; source " in line
        return process

    yield run
    for process in running:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_p2_relay_process_hands_over_and_ends_on_sigterm(database: Side, client: Client, start: Start) -> None:
    """Rows of a service that has no relay of its own are handed over; SIGTERM ends it with code 0 and a line of figures."""
    process = await start()
    await publish(database, plain("k", "one"), plain("k", "two"))
    assert await bodies(client, 2) == ["one", "two"]
    await eventually(lambda: unsent(database) == [None, None], "the relay marking what it has handed over")
    process.send_signal(signal.SIGTERM)
    out, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    assert out.decode().split() == ["orders", "committed", "0", "sent", "2", "refused", "0"]
    assert unsent(database) == [None, None]


async def test_p2_another_relay_takes_over_after_kill(database: Side, client: Client, start: Start) -> None:
    """kill -9 of the relay: its lanes are free when its lease has ended, and the next relay hands over what is left, once."""
    process = await start()
    await publish(database, *(plain("k", n) for n in range(10)))
    assert await bodies(client, 10) == list(range(10))
    process.kill()
    await process.wait()
    await publish(database, *(plain("k", n) for n in range(10, 40)))
    outbox = database.outbox()
    await outbox._load_source()
    try:
        assert await Relay(client, "orders", outbox._home, outbox._source or b"").drain(15) == 0
    finally:
        await outbox._home.aclose()
    assert await bodies(client, 30) == list(range(10, 40))


# --- install, verify, load ---


@pytest.fixture
def empty(request: pytest.FixtureRequest, database: Side) -> Side:
    """A database without our tables."""
    for name in NAMES:
        database.read(f"DROP TABLE halfmsg_{name}")

    def again() -> None:
        admin.install(database.url)

    request.addfinalizer(again)
    return database


async def test_install_makes_what_is_missing_and_no_more(empty: Side) -> None:
    """The first run names what it made, the second makes nothing and keeps the source id; verify is content only afterwards."""
    assert len(admin.verify(empty.url)) == len(NAMES)
    assert sorted(admin.install(empty.url)) == sorted(f"halfmsg_{name}" for name in NAMES)
    before = empty.read("SELECT k, v, n FROM halfmsg_meta ORDER BY k")
    assert admin.verify(empty.url) == []
    assert admin.install(empty.url) == []
    assert empty.read("SELECT k, v, n FROM halfmsg_meta ORDER BY k") == before


async def test_install_fills_tables_that_a_migration_made(empty: Side) -> None:
    """Tables made by the printed DDL have no rows yet: verify says so, and install gives the database its source id."""
    for statement in admin.install(empty.url, print_only=True):
        empty.read(statement)
    assert admin.verify(empty.url) != []
    assert admin.install(empty.url) == []
    assert admin.verify(empty.url) == []
    assert empty.count("halfmsg_lane") == 64


@pytest.mark.parametrize("look", [admin.waiting, admin.retry, lambda url: admin.resend(url, 0)])
def test_p2_misspelt_file_does_not_say_that_nothing_waits(look: Callable[[str], object], tmp_path: Path) -> None:
    """Neither a file nor tables are made by looking; what is not there is said."""
    url = f"sqlite:///{tmp_path}/order.db"
    with pytest.raises(UsageError, match=r"no file .*order\.db") as caught:
        look(url)
    assert (caught.value.code, list(tmp_path.iterdir())) == ("bad_url", [])
    assert "no file" in admin.verify(url)[0] and list(tmp_path.iterdir()) == []
    with contextlib.closing(sqlite3.connect(tmp_path / "order.db")) as conn:
        conn.execute("CREATE TABLE another (id)")
        with pytest.raises(UsageError, match="outbox install"):
            look(url)
        assert conn.execute("SELECT name FROM sqlite_master").fetchall() == [("another",)]


async def test_schema_is_what_install_runs(database: Side) -> None:
    """`Outbox.schema` gives the same DDL, for one's own migrations; another dialect is refused by name."""
    outbox = Outbox(Client(NOWHERE), "orders", database.url)
    assert outbox.schema(database.dialect).split(";\n")[:-1] == admin.install(database.url, print_only=True)
    with pytest.raises(UsageError) as caught:
        outbox.schema("mysql")
    assert caught.value.code == "unknown_database"


@pytest.mark.parametrize("target", ["shop", "shop:", "no_such_module:outbox", "os:path", "os:nothing"])
def test_relay_target_that_is_no_outbox_is_named(target: str) -> None:
    """MODULE:OUTBOX that cannot be loaded raises bad_name with the target in the text."""
    with pytest.raises(UsageError) as caught:
        admin.load(target)
    assert caught.value.code == "bad_name"
    assert target in str(caught.value)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("sqlite:///", "bad_url"),
        ("sqlite:///:memory:", "bad_url"),
        ("sqlite:////no/such/folder/x.db", "bad_url"),
        ("oracle://x", "unknown_database"),
        (7, "unknown_database"),
    ],
)
def test_database_that_relay_and_service_cannot_share_is_refused(url: object, code: str) -> None:
    """A URL must name a database that two processes can open."""
    with pytest.raises(UsageError) as caught:
        Outbox(Client(NOWHERE), "orders", url)
    assert caught.value.code == code


def test_looking_makes_no_database(tmp_path: Path) -> None:
    """`outbox ls` and `outbox verify` of a mistyped path say so, and leave no file."""
    file = tmp_path / "mistyped.db"
    assert [str(file) in line for line in admin.verify(f"sqlite:///{file}")] == [True]
    with pytest.raises(UsageError, match="there is no file") as caught:
        admin.waiting(f"sqlite:///{file}")
    assert caught.value.code == "bad_url" and not list(tmp_path.iterdir())
