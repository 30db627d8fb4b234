"""Databases of producers and consumers: a file, or a schema in a scratch database on this machine's PostgreSQL."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import psycopg.sql
import pytest
import pytest_asyncio

from halfmsg import Client
from halfmsg.coordinator.app import Coordinator
from halfmsg.coordinator.settings import Check, Settings

from .sides import KINDS, Side, postgres_side, sqlite_side

SERVER = "postgresql://postgres@127.0.0.1:5432"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HALFMSG_URL", "HALFMSG_TOKEN", "HALFMSG_TOKEN_FILE", "HALFMSG_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)


def _listens() -> bool:
    try:
        socket.create_connection(("127.0.0.1", 5432), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """A scratch database, dropped afterwards. No server: skipped; but in CI with something that listens there: failed."""
    name = f"halfmsg_outbox_{uuid4().hex[:12]}"
    try:
        admin = psycopg.connect(f"{SERVER}/postgres", autocommit=True, connect_timeout=3)
    except psycopg.OperationalError as error:
        if os.environ.get("CI") == "true" and _listens():
            pytest.fail(f"something listens on 127.0.0.1:5432, and it is no PostgreSQL for these tests: {error}")
        pytest.skip(f"no PostgreSQL on 127.0.0.1:5432: {error}")
    with admin:
        admin.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
        off = psycopg.sql.SQL("ALTER DATABASE {} SET synchronous_commit = off")  # faster; no test here pulls the plug
        admin.execute(off.format(psycopg.sql.Identifier(name)))
        try:
            yield f"{SERVER}/{name}"
        finally:
            admin.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(psycopg.sql.Identifier(name)))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where the SQLite files stand: in memory where the system has such a folder, as every commit waits for the disk."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


def make_side(request: pytest.FixtureRequest, folder: Path, kind: str) -> Side:
    if "sqlite" in kind:
        return sqlite_side(folder, kind)
    return postgres_side(request.getfixturevalue("server"), kind)


@pytest_asyncio.fixture(params=KINDS)
async def side(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Side]:
    """Each of the four kinds of connection."""
    one = make_side(request, folder, request.param)
    yield one
    await one.close()


@pytest_asyncio.fixture(params=["aiosqlite", "psycopg async"])
async def database(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Side]:
    """Each of the two databases, by its async driver."""
    one = make_side(request, folder, request.param)
    yield one
    await one.close()


@pytest_asyncio.fixture
async def postgres(server: str) -> AsyncIterator[Side]:
    one = postgres_side(server)
    yield one
    await one.close()


@pytest_asyncio.fixture
async def file(folder: Path) -> AsyncIterator[Side]:
    one = sqlite_side(folder)
    yield one
    await one.close()


@pytest_asyncio.fixture
async def coordinator(folder: Path) -> AsyncIterator[Coordinator]:
    """The real one, in this process: topics `s` (sequence) and `u` (unordered), a group `g` on both, producer `orders`."""
    one = Coordinator(Settings(listen="127.0.0.1:0", store=str(folder / "coordinator.db"), check=Check(first_delay_s=1)))
    await one.start()
    async with Client(f"http://{one.address}") as client:
        await client.put_topic("s", kind="sequence", lanes=4)
        await client.put_topic("u", kind="unordered")
        await client.put_group("g", topics=[{"topic": "s"}, {"topic": "u"}], lease_s=2)
        await client._put("/v1/producers/orders", {})
    yield one
    await one.stop()


@pytest_asyncio.fixture
async def client(coordinator: Coordinator) -> AsyncIterator[Client]:
    async with Client(f"http://{coordinator.address}", timeout=5) as one:
        yield one
